//! The objects of all files together. Each belongs to the files that hold it;
//! where several do, the file whose name comes first decides.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
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
        let mut change = Change::default();
        // What stays as it is makes no change and no work.
        for object in surplus(before, now) {
            change |= self.remove(file, object);
        }
        for object in surplus(now, before) {
            change |= self.insert(file, object);
        }
        change
    }

    fn insert(&mut self, file: &Arc<str>, object: &Object) -> Change {
        let mut change = Change::default();
        let files = match object {
            Object::Node(node) => {
                let files = self.nodes.entry(node.name.clone()).or_default();
                change.nodes = insert(files, file, node);
                names(files)
            }
            Object::Namespace(namespace) => {
                let files = self.namespaces.entry(namespace.name.clone()).or_default();
                change.namespaces = insert(files, file, namespace);
                names(files)
            }
            Object::Pod(pod) => {
                let key = (pod.namespace.clone(), pod.name.clone());
                let files = self.pods.entry(key).or_default();
                change.pods = insert(files, file, pod);
                names(files)
            }
        };
        if let Some(files) = files {
            tracing::warn!("{}", repetition(&title(object), &files));
            self.repeated.insert(title(object), files);
        }
        change
    }

    fn remove(&mut self, file: &Arc<str>, object: &Object) -> Change {
        let mut change = Change::default();
        let files = match object {
            Object::Node(node) => remove(
                &mut self.nodes,
                node.name.clone(),
                (file, node),
                &mut change.nodes,
            ),
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                let changed = &mut change.namespaces;
                remove(&mut self.namespaces, name, (file, namespace), changed)
            }
            Object::Pod(pod) => {
                let key = (pod.namespace.clone(), pod.name.clone());
                remove(&mut self.pods, key, (file, pod), &mut change.pods)
            }
        };
        if self.repeated.is_empty() {
            return change;
        }
        match files {
            Some(files) => self.repeated.insert(title(object), files),
            None => self.repeated.remove(&title(object)),
        };
        change
    }
}

/// What stands in `these` more often than in `those`, as often as that.
fn surplus<'o>(these: &'o [Object], those: &[Object]) -> Vec<&'o Object> {
    let mut left: HashMap<&Object, usize> = HashMap::new();
    for object in those {
        *left.entry(object).or_default() += 1;
    }
    let mut more = Vec::new();
    for object in these {
        match left.get_mut(object) {
            Some(count) if *count > 0 => *count -= 1,
            _ => more.push(object),
        }
    }
    more
}

/// Kind and name of an object.
fn title(object: &Object) -> String {
    match object {
        Object::Node(node) => format!("Node {}", node.name),
        Object::Namespace(namespace) => format!("Namespace {}", namespace.name),
        Object::Pod(pod) => format!("Pod {}/{}", pod.namespace, pod.name),
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

/// Returns whether the object in force is another one now.
fn insert<V>(held: &mut Vec<(Arc<str>, Arc<V>)>, file: &Arc<str>, value: &Arc<V>) -> bool {
    let at = held.partition_point(|(other, _)| other <= file);
    held.insert(at, (Arc::clone(file), Arc::clone(value)));
    at == 0
}

/// Says whether the object in force is another one, or none, now. Returns the
/// files that hold it, where it still stands more than once.
fn remove<K: Ord, V: PartialEq>(
    held: &mut Held<K, V>,
    key: K,
    (file, value): (&Arc<str>, &Arc<V>),
    changed: &mut bool,
) -> Option<Vec<Arc<str>>> {
    let Entry::Occupied(mut entry) = held.entry(key) else {
        return None;
    };
    let files = entry.get_mut();
    let at = files
        .iter()
        .position(|(other, held)| other == file && held == value);
    if let Some(at) = at {
        files.remove(at);
        *changed = at == 0;
    }
    let repeated = names(files);
    if files.is_empty() {
        entry.remove();
    }
    repeated
}
