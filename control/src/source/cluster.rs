//! The objects of all files together. Each belongs to the files that hold it;
//! where several do, the file whose name comes first decides, and in a file the
//! one that stands first: at any time, as if all files were read just now.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::object::{Namespace, Node, Object, Pod};

/// Objects of one kind by name, with the files that hold them.
type Held<K, V> = BTreeMap<K, Vec<(Arc<str>, Arc<V>)>>;

/// Which kinds changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Some node did.
    pub nodes: bool,
    /// Some namespace did.
    pub namespaces: bool,
    /// Some pod did.
    pub pods: bool,
}

impl Change {
    /// Whether anything did.
    pub fn any(self) -> bool {
        self.nodes || self.namespaces || self.pods
    }
}

impl std::ops::BitOrAssign for Change {
    fn bitor_assign(&mut self, other: Change) {
        self.nodes |= other.nodes;
        self.namespaces |= other.namespaces;
        self.pods |= other.pods;
    }
}

/// The cluster as a source knows it.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Held<String, Node>,
    namespaces: Held<String, Namespace>,
    pods: Held<(Box<str>, Box<str>), Pod>,
    /// Objects that stand more than once, and in which files.
    repeated: Repeated,
}

/// By kind and name, as `Node a`.
type Repeated = BTreeMap<String, Vec<Arc<str>>>;

impl Cluster {
    /// Nodes by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes
            .values()
            .filter_map(|held| Some(&held.first()?.1))
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        Some(&self.nodes.get(name)?.first()?.1)
    }

    /// How many nodes, namespaces and pods there are.
    pub fn counts(&self) -> [(&'static str, usize); 3] {
        [
            ("Node", self.nodes.len()),
            ("Namespace", self.namespaces.len()),
            ("Pod", self.pods.len()),
        ]
    }

    /// Objects that stand more than once, with the files that hold them: the
    /// first one's is in force.
    pub fn repeated(&self) -> impl Iterator<Item = (&str, &[Arc<str>])> {
        let repeated = self.repeated.iter();
        repeated.map(|(object, files)| (object.as_str(), files.as_slice()))
    }

    /// Puts what a file holds now in the place of what it held before. Looks
    /// at these objects only.
    pub fn replace(&mut self, file: &Arc<str>, before: &[Object], now: &[Object]) -> Change {
        let (repeated, objects) = (&mut self.repeated, [before, now]);
        Change {
            nodes: NODES.replace(&mut self.nodes, repeated, file, objects),
            namespaces: NAMESPACES.replace(&mut self.namespaces, repeated, file, objects),
            pods: PODS.replace(&mut self.pods, repeated, file, objects),
        }
    }
}

/// Objects of one kind that a file held, and that it holds now.
type ByName<'o, K, V> = BTreeMap<K, [Vec<&'o Arc<V>>; 2]>;

/// How objects of one kind are told from others, and from each other.
struct Kind<K, V> {
    of: fn(&Object) -> Option<&Arc<V>>,
    name: fn(&V) -> K,
    /// Kind and name.
    title: fn(&K) -> String,
}

const NODES: Kind<String, Node> = Kind {
    of: |object| match object {
        Object::Node(node) => Some(node),
        Object::Namespace(_) | Object::Pod(_) => None,
    },
    name: |node| node.name.clone(),
    title: |name| format!("Node {name}"),
};

const NAMESPACES: Kind<String, Namespace> = Kind {
    of: |object| match object {
        Object::Namespace(namespace) => Some(namespace),
        Object::Node(_) | Object::Pod(_) => None,
    },
    name: |namespace| namespace.name.clone(),
    title: |name| format!("Namespace {name}"),
};

const PODS: Kind<(Box<str>, Box<str>), Pod> = Kind {
    of: |object| match object {
        Object::Pod(pod) => Some(pod),
        Object::Node(_) | Object::Namespace(_) => None,
    },
    name: |pod| (pod.namespace.clone(), pod.name.clone()),
    title: |(namespace, name)| format!("Pod {namespace}/{name}"),
};

impl<K: Ord, V: PartialEq> Kind<K, V> {
    /// Returns whether another object of this kind is in force.
    fn replace(
        &self,
        held: &mut Held<K, V>,
        repeated: &mut Repeated,
        file: &Arc<str>,
        objects: [&[Object]; 2],
    ) -> bool {
        let mut is_changed = false;
        for (key, [before, now]) in self.by_name(objects) {
            // What stays as it is makes no change and no work.
            if before == now {
                continue;
            }
            let title = (self.title)(&key);
            let files = match held.entry(key) {
                Entry::Occupied(mut entry) => {
                    is_changed |= put(entry.get_mut(), file, &now);
                    let files = names(entry.get());
                    if entry.get().is_empty() {
                        entry.remove();
                    }
                    files
                }
                Entry::Vacant(entry) => {
                    let held = entry.insert(Vec::new());
                    is_changed |= put(held, file, &now);
                    names(held)
                }
            };
            match files {
                None if repeated.is_empty() => {}
                None => {
                    repeated.remove(&title);
                }
                Some(files) => {
                    if !now.is_empty() {
                        tracing::warn!("{}", repetition(&title, &files));
                    }
                    repeated.insert(title, files);
                }
            }
        }
        is_changed
    }

    /// The objects of this kind, by name and in order, before and now.
    fn by_name<'o>(&self, objects: [&'o [Object]; 2]) -> ByName<'o, K, V> {
        let mut by_name = ByName::new();
        for (side, objects) in objects.into_iter().enumerate() {
            for value in objects.iter().filter_map(self.of) {
                by_name.entry((self.name)(value)).or_default()[side].push(value);
            }
        }
        by_name
    }
}

/// What is wrong with an object that stands more than once.
pub(super) fn repetition(object: &str, files: &[Arc<str>]) -> String {
    let first = files.first().map(|file| &**file).unwrap_or_default();
    let mut names: Vec<&str> = files.iter().map(|file| &**file).collect();
    names.dedup();
    format!(
        "{object} stands {} times, in {}: the first one of {first} is in force; remove the others",
        files.len(),
        names.join(", ")
    )
}

/// The files that hold an object, where it stands more than once.
fn names<V>(held: &[(Arc<str>, Arc<V>)]) -> Option<Vec<Arc<str>>> {
    (held.len() > 1).then(|| held.iter().map(|(file, _)| Arc::clone(file)).collect())
}

/// Puts objects of one name that a file holds, in its order, in the place of
/// those that it held. Returns whether another one, or none, is in force now.
fn put<V: PartialEq>(
    held: &mut Vec<(Arc<str>, Arc<V>)>,
    file: &Arc<str>,
    values: &[&Arc<V>],
) -> bool {
    let before = held.first().map(|(_, value)| Arc::clone(value));
    let from = held.partition_point(|(other, _)| other < file);
    let to = held.partition_point(|(other, _)| other <= file);
    let values = values.iter();
    let values = values.map(|value| (Arc::clone(file), Arc::clone(value)));
    drop(held.splice(from..to, values));
    held.first().map(|(_, value)| value) != before.as_ref()
}
