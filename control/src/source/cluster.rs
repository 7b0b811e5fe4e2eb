//! The objects of all files together. Each belongs to the files that hold it;
//! where several do, the file whose name comes first decides.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
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
}

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

    /// Puts what a file holds now in the place of what it held before. Looks
    /// at these objects only.
    pub fn replace(&mut self, file: &Arc<str>, before: &[Object], now: &[Object]) -> Change {
        let mut change = Change::default();
        // What stays as it is makes no change and no work.
        let set = |objects: &'_ [Object], other: &[Object]| -> HashSet<Object> {
            match other.is_empty() {
                true => HashSet::new(),
                false => objects.iter().cloned().collect(),
            }
        };
        let stays = set(now, before);
        for object in before.iter().filter(|o| !stays.contains(*o)) {
            change |= self.remove(file, object);
        }
        let stays = set(before, now);
        for object in now.iter().filter(|o| !stays.contains(*o)) {
            change |= self.insert(file, object);
        }
        change
    }

    fn insert(&mut self, file: &Arc<str>, object: &Object) -> Change {
        let mut change = Change::default();
        match object {
            Object::Node(node) => {
                change.nodes = insert(&mut self.nodes, node.name.clone(), file, node);
            }
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                change.namespaces = insert(&mut self.namespaces, name, file, namespace);
            }
            Object::Pod(pod) => {
                let key = (pod.namespace.clone(), pod.name.clone());
                change.pods = insert(&mut self.pods, key, file, pod);
            }
        }
        change
    }

    fn remove(&mut self, file: &Arc<str>, object: &Object) -> Change {
        let mut change = Change::default();
        match object {
            Object::Node(node) => {
                change.nodes = remove(&mut self.nodes, node.name.clone(), file, node);
            }
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                change.namespaces = remove(&mut self.namespaces, name, file, namespace);
            }
            Object::Pod(pod) => {
                let key = (pod.namespace.clone(), pod.name.clone());
                change.pods = remove(&mut self.pods, key, file, pod);
            }
        }
        change
    }
}

/// Returns whether the object in force is another one now.
fn insert<K: Ord + std::fmt::Debug, V>(
    held: &mut Held<K, V>,
    key: K,
    file: &Arc<str>,
    value: &Arc<V>,
) -> bool {
    let entry = held.entry(key);
    if let Entry::Occupied(taken) = &entry
        && let Some((other, _)) = taken.get().first()
    {
        let (first, second) = if other <= file {
            (other, file)
        } else {
            (file, other)
        };
        tracing::warn!(
            object = ?taken.key(),
            "stands twice, in {first} and {second}: the one in {first} is in force; remove the other"
        );
    }
    let files = entry.or_default();
    let at = files.partition_point(|(other, _)| other <= file);
    files.insert(at, (Arc::clone(file), Arc::clone(value)));
    at == 0
}

/// Returns whether the object in force is another one, or none, now.
fn remove<K: Ord, V: PartialEq>(
    held: &mut Held<K, V>,
    key: K,
    file: &Arc<str>,
    value: &Arc<V>,
) -> bool {
    let Entry::Occupied(mut entry) = held.entry(key) else {
        return false;
    };
    let files = entry.get_mut();
    let position = files
        .iter()
        .position(|(other, held)| other == file && held == value);
    let Some(at) = position else { return false };
    files.remove(at);
    if files.is_empty() {
        entry.remove();
    }
    at == 0
}
