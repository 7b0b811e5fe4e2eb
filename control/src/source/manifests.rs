//! A directory of Kubernetes manifests.
//!
//! [`Manifests::scan`] compares the files with what was read before and reads
//! those that changed. A file that does not parse is reported by name and
//! line and keeps its last good content; a file that is gone takes its
//! objects along. Files end in `.yaml`, `.yml` or `.json` (which is YAML) and
//! do not begin with a dot, so that what editors and mounted ConfigMaps keep
//! beside them is left alone. Other directories in it are not read, and named.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::cluster::{Change, Cluster, repetition};
use super::object::{self, Content, Object};

/// Most objects that are named for standing more than once.
const MOST_NAMED: usize = 5;

/// Files that are worth a thread of their own to read.
const SHARE: usize = 16;

/// Longest file that is read.
const LONGEST_FILE: u64 = 1 << 30;

/// What tells that a file changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A file that changed in place is whole, where nobody tells so, when it has
/// rested so long…
const RESTED: Duration = Duration::from_secs(1);
/// …or has been changing so long…
const CHANGING: Duration = Duration::from_secs(10);
/// …or was cut off so long ago, and is empty yet: whoever makes its content may
/// need a while.
const FILLING: Duration = Duration::from_secs(60);

/// A file that may be about to be written.
#[derive(Debug, Clone, Copy)]
struct Unfinished {
    /// As it is now.
    stamp: Stamp,
    /// Since when it is so.
    since: Instant,
    /// Since when it is not as it was read.
    began: Instant,
}

impl Unfinished {
    /// Goes on with what is known of a file.
    fn next(before: Option<Unfinished>, stamp: Stamp, now: Instant) -> Unfinished {
        let same = before.filter(|before| before.stamp == stamp);
        Unfinished {
            stamp,
            since: same.map_or(now, |before| before.since),
            began: before.map_or(now, |before| before.began),
        }
    }

    fn is_whole(&self, now: Instant) -> bool {
        match self.stamp.len {
            0 => now - self.began >= FILLING,
            _ => now - self.since >= RESTED || now - self.began >= CHANGING,
        }
    }
}

impl Stamp {
    fn is_of_the_same_file(&self, other: &Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Debug)]
struct File {
    /// As it was when it was last read.
    stamp: Stamp,
    /// Its last good content.
    objects: Vec<Object>,
    /// Why the present content is not in force.
    error: Option<String>,
    /// What of it is yet to be read.
    unfinished: Option<Unfinished>,
}

/// The directory and what it holds.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    /// Threads that read at once at most.
    readers: usize,
    /// Whether files are left alone while they are written.
    is_patient: bool,
    files: BTreeMap<Arc<str>, File>,
    cluster: Cluster,
    /// Kinds that were said to be ignored.
    told: HashSet<String>,
    /// Files that are links.
    links: BTreeSet<String>,
    /// Why the directory could not be read the last time.
    error: Option<String>,
    /// Directories in it, which are not read.
    directories: BTreeSet<String>,
    /// Times that something could not be read.
    read_errors: u64,
}

impl Manifests {
    /// Nothing is read yet; many files are, by that many threads at once.
    pub fn new(dir: &Path, readers: usize) -> Manifests {
        Manifests {
            dir: dir.to_path_buf(),
            readers: readers.max(1),
            is_patient: false,
            files: BTreeMap::new(),
            cluster: Cluster::default(),
            told: HashSet::new(),
            links: BTreeSet::new(),
            error: None,
            directories: BTreeSet::new(),
            read_errors: 0,
        }
    }

    /// Many files are read by that many threads from now on.
    pub fn read_by(&mut self, readers: usize) {
        self.readers = readers.max(1);
    }

    /// The objects of all files.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files that are links, by path.
    pub fn links(&self) -> impl Iterator<Item = PathBuf> {
        self.links.iter().map(|name| self.dir.join(name))
    }

    /// Files whose present content is not in force, and why.
    pub fn errors(&self) -> impl Iterator<Item = &str> {
        let files = self.files.values().filter_map(|f| f.error.as_deref());
        self.error.as_deref().into_iter().chain(files)
    }

    /// What is in force otherwise than who wrote the files may think.
    pub fn warnings(&self) -> Vec<String> {
        let directories = self.directories.iter();
        let mut warnings: Vec<String> = directories.map(|name| self.unread(name)).collect();
        let repeated = self.cluster.repeated();
        let repeated = repeated.map(|(object, files)| repetition(object, files));
        warnings.extend(repeated.take(MOST_NAMED));
        let more = self.cluster.repeated().skip(MOST_NAMED).count();
        if more > 0 {
            warnings.push(format!("{more} more objects stand more than once"));
        }
        warnings
    }

    fn unread(&self, directory: &str) -> String {
        let dir = self.dir.display();
        format!(
            "{dir}/{directory} is a directory: manifests in it are not read; move them to {dir}"
        )
    }

    /// Times that a file or the directory could not be read.
    pub fn read_errors(&self) -> u64 {
        self.read_errors
    }

    /// Lets files that are being written be, until they are named or have
    /// rested. Not those behind links, which nobody names.
    pub fn wait_for_writers(&mut self) {
        self.is_patient = true;
    }

    /// Whether a file is left alone at the moment.
    pub fn is_waiting(&self) -> bool {
        self.files.values().any(|file| file.unfinished.is_some())
    }

    /// Reads what changed. Files of these names are read in any case.
    pub fn scan(&mut self, touched: &BTreeSet<String>) -> Change {
        self.scan_at(touched, Instant::now())
    }

    fn scan_at(&mut self, touched: &BTreeSet<String>, now: Instant) -> Change {
        let names = match self.list() {
            Ok(names) => {
                self.error = None;
                names
            }
            Err(error) => {
                // What is in force stays: a directory that is being replaced
                // must not take the cluster's nodes away.
                let message = format!("cannot read manifests in {}: {error}", self.dir.display());
                if self.error.as_ref() != Some(&message) {
                    tracing::error!("{message}; make the directory");
                }
                self.error = Some(message);
                self.read_errors += 1;
                return Change::default();
            }
        };
        let mut change = Change::default();
        let gone: Vec<Arc<str>> = self
            .files
            .keys()
            .filter(|name| !names.contains_key(&***name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(file) = self.files.remove(&name) {
                change |= self.cluster.replace(&name, &file.objects, &[]);
            }
        }
        let mut due: Vec<(String, Stamp)> = names.into_iter().collect();
        due.retain(|(name, stamp)| {
            let Some(file) = self.files.get_mut(name.as_str()) else {
                return true;
            };
            let is_patient = self.is_patient && !self.links.contains(name);
            let is_same = is_patient && stamp.is_of_the_same_file(&file.stamp);
            let unfinished = (is_same && *stamp != file.stamp)
                .then(|| Unfinished::next(file.unfinished, *stamp, now))
                .filter(|unfinished| !unfinished.is_whole(now) && !touched.contains(name));
            file.unfinished = unfinished;
            touched.contains(name) || (*stamp != file.stamp && unfinished.is_none())
        });
        let contents = side_by_side(&due, self.readers, |(name, stamp)| {
            read(&self.dir.join(name), *stamp)
        });
        for ((name, stamp), content) in due.iter().zip(contents) {
            change |= self.take(name, *stamp, content);
        }
        change
    }

    fn list(&mut self) -> io::Result<BTreeMap<String, Stamp>> {
        let mut names = BTreeMap::new();
        let (mut directories, mut links) = (BTreeSet::new(), BTreeSet::new());
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            if is_manifest(&name) && entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                links.insert(name.clone());
            }
            // Through links: a mounted ConfigMap is made of them. A file that
            // vanishes meanwhile is gone.
            match std::fs::metadata(self.dir.join(&name)) {
                Ok(metadata) if metadata.is_dir() => {
                    directories.insert(name);
                }
                Ok(metadata) if metadata.is_file() && is_manifest(&name) => {
                    names.insert(name, Stamp::of(&metadata));
                }
                _ => {}
            }
        }
        for name in directories.difference(&self.directories) {
            tracing::warn!("{}", self.unread(name));
        }
        self.directories = directories;
        self.links = links;
        Ok(names)
    }

    fn take(&mut self, name: &str, stamp: Stamp, content: Result<Content, String>) -> Change {
        let path = self.dir.join(name);
        let name: Arc<str> = name.into();
        let before = self.files.remove(&name);
        let mut file = before.unwrap_or(File {
            stamp,
            objects: Vec::new(),
            error: None,
            unfinished: None,
        });
        file.stamp = stamp;
        let mut change = Change::default();
        match content {
            Ok(content) => {
                if file.error.take().is_some() {
                    tracing::info!("{}: in force again", path.display());
                }
                change = self.cluster.replace(&name, &file.objects, &content.objects);
                self.tell_ignored(&path, &content);
                file.objects = content.objects;
            }
            Err(message) => {
                if file.error.as_ref() != Some(&message) {
                    let kept = match file.objects.len() {
                        0 => "nothing of it is in force".to_owned(),
                        count => format!("its last good content ({count} objects) stays in force"),
                    };
                    tracing::error!("{message}; {kept}");
                }
                file.error = Some(message);
                self.read_errors += 1;
            }
        }
        self.files.insert(name, file);
        change
    }

    fn tell_ignored(&mut self, path: &Path, content: &Content) {
        for kind in content.others.keys() {
            if self.told.insert(kind.clone()) {
                tracing::info!(
                    "{}: objects of kind {kind} have no effect in this version",
                    path.display()
                );
            }
        }
    }
}

/// Whether a file of that name is read.
pub(super) fn is_manifest(name: &str) -> bool {
    !name.starts_with('.')
        && [".yaml", ".yml", ".json"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// What `read` makes of each file, in order. Many are read by several threads,
/// of which this one is the first.
fn side_by_side<F: Sync, T: Send>(
    files: &[F],
    readers: usize,
    read: impl Fn(&F) -> T + Sync,
) -> Vec<T> {
    let read_some = |files: &[F]| files.iter().map(&read).collect::<Vec<T>>();
    let share = files.len().div_ceil(readers).max(SHARE);
    let (first, others) = files.split_at(share.min(files.len()));
    std::thread::scope(|scope| {
        let readers = others.chunks(share).map(|files| {
            let reader = Builder::new().name("reader".to_owned());
            (files, reader.spawn_scoped(scope, || read_some(files)))
        });
        let readers: Vec<_> = readers.collect();
        let mut contents = read_some(first);
        for (files, reader) in readers {
            contents.extend(match reader {
                Ok(reader) => reader.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // No thread is to be had.
                Err(_) => read_some(files),
            });
        }
        contents
    })
}

/// The content, or one line that says what is wrong with the file.
fn read(path: &Path, stamp: Stamp) -> Result<Content, String> {
    let at = path.display();
    if stamp.len > LONGEST_FILE {
        return Err(format!(
            "{at}: {} bytes are more than {LONGEST_FILE}: split the file",
            stamp.len
        ));
    }
    let bytes = std::fs::read(path).map_err(|e| format!("{at}: cannot be read: {e}"))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = good.iter().filter(|b| **b == b'\n').count() + 1;
        format!("{at}:{line}: is not UTF-8")
    })?;
    object::parse(&text).map_err(|error| match error.line {
        Some(line) => format!("{at}:{line}: {error}"),
        None => format!("{at}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cidr: &str) -> String {
        format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nspec:\n  podCIDR: {cidr}\n")
    }

    fn names(manifests: &Manifests) -> Vec<&str> {
        let nodes = manifests.cluster().nodes();
        nodes.map(|node| node.name.as_str()).collect()
    }

    fn scan(manifests: &mut Manifests) -> Change {
        manifests.scan(&BTreeSet::new())
    }

    #[test]
    fn files_come_change_break_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        let mut manifests = Manifests::new(dir.path(), 2);
        assert!(!scan(&mut manifests).any());
        write("a.yaml", node("a", "10.0.1.0/24"));
        write(
            "b.yml",
            node("b", "10.0.2.0/24") + "---\n" + &node("c", "10.0.3.0/24"),
        );
        write(".a.yaml.swp", "{{{".to_owned());
        write("README", "{{{".to_owned());
        assert!(scan(&mut manifests).nodes);
        assert_eq!(names(&manifests), ["a", "b", "c"]);
        assert!(!scan(&mut manifests).any(), "nothing changed");

        write("b.yml", "kind: Node\nmetadata: [\n".to_owned());
        assert!(!scan(&mut manifests).any());
        assert_eq!(names(&manifests), ["a", "b", "c"], "the last good content");
        let errors: Vec<_> = manifests.errors().collect();
        assert_eq!(errors.len(), 1);
        assert!(errors[0].contains("b.yml:"), "{errors:?}");

        write("b.yml", node("c", "10.0.4.0/24"));
        assert!(scan(&mut manifests).nodes);
        assert_eq!(names(&manifests), ["a", "c"]);
        assert_eq!(manifests.errors().count(), 0);
        let cidr = manifests.cluster().node("c").unwrap().pod_cidrs[0];
        assert_eq!(cidr.to_string(), "10.0.4.0/24");

        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert!(scan(&mut manifests).nodes);
        assert_eq!(names(&manifests), ["c"]);
    }

    #[test]
    fn a_file_is_not_read_while_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let write = |text: String| std::fs::write(&path, text).unwrap();
        let mut manifests = Manifests::new(dir.path(), 2);
        manifests.wait_for_writers();
        let began = Instant::now();
        let unnamed = BTreeSet::new();
        let mut at = |seconds: u64, named: &BTreeSet<String>| {
            let change = manifests.scan_at(named, began + Duration::from_secs(seconds));
            (change.nodes, manifests.is_waiting())
        };
        let (read, waits, nothing) = ((true, false), (false, true), (false, false));
        write(node("a", "10.0.1.0/24"));
        assert_eq!(at(0, &unnamed), read, "nothing was known of it");

        write(String::new());
        assert_eq!(at(10, &unnamed), waits, "its content is to come");
        assert_eq!(at(69, &unnamed), waits);
        assert_eq!(at(70, &unnamed), read, "it stays empty");
        write(node("b", "10.0.1.0/24"));
        assert_eq!(at(80, &unnamed), waits, "there may be more");
        assert_eq!(at(81, &unnamed), read, "there is not");
        assert_eq!(at(82, &unnamed), nothing);
        for second in 0..10 {
            write(node(&"c".repeat(1 + second), "10.0.1.0/24"));
            assert_eq!(at(90 + second as u64, &unnamed), waits);
        }
        assert_eq!(at(100, &unnamed), read, "it never rests");

        write(node("d", "10.0.1.0/24"));
        assert_eq!(at(101, &unnamed), waits);
        let named = BTreeSet::from(["a.yaml".to_owned()]);
        assert_eq!(at(101, &named), read, "somebody has closed it");
        let other = dir.path().join(".other");
        std::fs::write(&other, "").unwrap();
        std::fs::rename(other, &path).unwrap();
        assert_eq!(at(101, &unnamed), read, "another file");
    }

    #[test]
    fn the_first_file_decides_and_the_next_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        let mut manifests = Manifests::new(dir.path(), 2);
        write("2.yaml", node("a", "10.0.2.0/24"));
        scan(&mut manifests);
        write("1.yaml", node("a", "10.0.1.0/24"));
        assert!(scan(&mut manifests).nodes);
        let cidr = |m: &Manifests| m.cluster().node("a").unwrap().pod_cidrs[0].to_string();
        assert_eq!(cidr(&manifests), "10.0.1.0/24");
        write("3.yaml", node("a", "10.0.3.0/24"));
        assert!(!scan(&mut manifests).any());
        std::fs::remove_file(dir.path().join("1.yaml")).unwrap();
        assert!(scan(&mut manifests).nodes);
        assert_eq!(cidr(&manifests), "10.0.2.0/24");
    }

    /// Files of one node, in which the object that stands first is edited,
    /// put behind others, and taken away.
    #[test]
    fn in_a_file_the_first_object_decides_after_edits_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifests = Manifests::new(dir.path(), 2);
        let cases: &[(&[u8], bool)] = &[
            (&[1, 2], true),
            (&[3, 2], true),
            (&[3, 4], false),
            (&[4, 3], true),
            (&[4, 4, 3], false),
            (&[5, 4, 3], true),
            (&[5, 3, 4], false),
            (&[3, 4], true),
            (&[3], false),
            (&[6, 3], true),
        ];
        for &(ranges, is_change) in cases {
            let nodes = ranges.iter().map(|n| node("a", &format!("10.0.{n}.0/24")));
            let text = nodes.collect::<Vec<_>>().join("---\n");
            std::fs::write(dir.path().join("1.yaml"), text).unwrap();
            let change = manifests.scan(&["1.yaml".to_owned()].into());
            assert_eq!(change.nodes, is_change, "{ranges:?}");
            let cidr = manifests.cluster().node("a").unwrap().pod_cidrs[0];
            assert_eq!(cidr.to_string(), format!("10.0.{}.0/24", ranges[0]));
            let repeated = manifests.cluster().repeated().map(|(_, files)| files.len());
            let expected = (ranges.len() > 1).then_some(ranges.len());
            assert_eq!(repeated.collect::<Vec<_>>(), Vec::from_iter(expected));
        }
    }

    #[test]
    fn what_is_not_in_force_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        let mut manifests = Manifests::new(dir.path(), 2);
        let mut warnings = || {
            scan(&mut manifests);
            manifests.warnings()
        };
        write("1.yaml", node("a", "10.0.1.0/24"));
        for hidden in ["..data", ".git"] {
            std::fs::create_dir(dir.path().join(hidden)).unwrap();
        }
        assert_eq!(warnings(), [""; 0]);
        std::fs::create_dir(dir.path().join("more")).unwrap();
        let text = warnings().join("\n");
        assert!(text.contains("/more is a directory"), "{text}");
        std::fs::remove_dir(dir.path().join("more")).unwrap();

        write(
            "2.yaml",
            node("a", "10.0.2.0/24") + "---\n" + &node("b", "10.0.3.0/24"),
        );
        let text = "Node a stands 2 times, in 1.yaml, 2.yaml: the first one of 1.yaml is in force; remove the others";
        assert_eq!(warnings(), [text]);
        write("0.yaml", node("a", "10.0.0.0/24"));
        assert!(warnings()[0].contains("3 times, in 0.yaml, 1.yaml, 2.yaml"));
        std::fs::remove_file(dir.path().join("1.yaml")).unwrap();
        assert!(warnings()[0].contains("2 times, in 0.yaml, 2.yaml"));
        write("2.yaml", node("b", "10.0.3.0/24"));
        assert_eq!(warnings(), [""; 0]);
        write(
            "2.yaml",
            node("b", "10.0.3.0/24") + "---\n" + &node("b", "10.0.4.0/24"),
        );
        assert!(warnings()[0].starts_with("Node b stands 2 times, in 2.yaml:"));
        std::fs::remove_file(dir.path().join("2.yaml")).unwrap();
        assert_eq!(warnings(), [""; 0]);
        let alike = node("c", "10.0.6.0/24");
        write("2.yaml", alike.clone() + "---\n" + &alike);
        assert!(warnings()[0].starts_with("Node c stands 2 times, in 2.yaml:"));
        write("2.yaml", alike.clone());
        assert_eq!(warnings(), [""; 0]);
        write("2.yaml", alike.clone() + "---\n" + &alike);
        assert!(warnings()[0].starts_with("Node c stands 2 times, in 2.yaml:"));
        std::fs::remove_file(dir.path().join("2.yaml")).unwrap();
        assert_eq!(warnings(), [""; 0]);
        for file in ["3.yaml", "4.yaml"] {
            let nodes = (0..8).map(|n| node(&format!("n{n}"), "10.0.5.0/24"));
            write(file, nodes.collect::<Vec<_>>().join("---\n"));
        }
        let named = warnings();
        assert_eq!(named.len(), MOST_NAMED + 1);
        assert_eq!(named[MOST_NAMED], "3 more objects stand more than once");
    }

    #[test]
    fn a_directory_that_goes_away_keeps_the_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifests");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("a.yaml"), node("a", "10.0.1.0/24")).unwrap();
        let mut manifests = Manifests::new(&path, 2);
        scan(&mut manifests);
        std::fs::remove_dir_all(&path).unwrap();
        assert!(!scan(&mut manifests).any());
        assert_eq!(names(&manifests), ["a"]);
        assert_eq!(manifests.errors().count(), 1);
    }

    #[test]
    fn many_files_are_read_in_order_by_no_more_threads_than_asked_for() {
        use std::thread::{ThreadId, current};
        for (files, readers, expect) in [(100, 1, 1), (100, 3, 3), (SHARE, 3, 1), (0, 3, 0)] {
            let files: Vec<usize> = (0..files).collect();
            let read = side_by_side(&files, readers, |file| (*file, current().id()));
            let (order, threads): (Vec<usize>, HashSet<ThreadId>) = read.into_iter().unzip();
            assert_eq!(order, files);
            assert_eq!(threads.len(), expect, "{} by {readers}", files.len());
        }
    }

    /// 1 000 nodes with 110 pods each, a file a node. The time is held to its
    /// bound in release builds; `--nocapture` shows it, and the memory.
    #[test]
    fn a_large_cluster_loads() {
        use std::fmt::Write as _;
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = 0;
        for n in 0..1000u32 {
            let (a, b) = (n / 250, n % 250);
            let mut text = node(&format!("node-{n}"), &format!("10.{}.{b}.0/24", 16 + a));
            for p in 0..110 {
                let ip = format!("10.{}.{b}.{}", 16 + a, p + 2);
                write!(
                    text,
                    "---\napiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    app: web\n  name: web-{n}-{p}\n  namespace: shop\nspec:\n  containers:\n  - image: nginx:1.27\n    name: nginx\n    ports:\n    - containerPort: 80\n      protocol: TCP\n  nodeName: node-{n}\nstatus:\n  hostIP: 172.31.{a}.{b}\n  phase: Running\n  podIP: {ip}\n  podIPs:\n  - ip: {ip}\n"
                )
                .unwrap();
            }
            bytes += text.len();
            std::fs::write(dir.path().join(format!("node-{n:04}.yaml")), text).unwrap();
        }
        let rss = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let before = rss();
        let started = std::time::Instant::now();
        let mut manifests = Manifests::new(dir.path(), 2);
        scan(&mut manifests);
        let took = started.elapsed();
        assert_eq!(
            manifests.cluster().counts(),
            [("Node", 1000), ("Namespace", 0), ("Pod", 110_000)]
        );
        println!(
            "{bytes} bytes in {took:?}, {} KiB resident for it",
            rss().saturating_sub(before)
        );
        let started = std::time::Instant::now();
        std::fs::write(
            dir.path().join("node-0500.yaml"),
            node("node-500", "10.99.0.0/24"),
        )
        .unwrap();
        assert!(scan(&mut manifests).nodes);
        println!("one node changed: {:?}", started.elapsed());
        assert!(cfg!(debug_assertions) || took < std::time::Duration::from_secs(2));
    }
}
