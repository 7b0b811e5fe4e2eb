//! Follows the directory of manifests: a change is in force within
//! milliseconds, a burst of changes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::cluster::{Change, Cluster};
use super::links;
use super::manifests::{Manifests, is_manifest};

/// A burst ends when nothing happened for so long…
const QUIET: Duration = Duration::from_millis(5);
/// …or when it has lasted so long.
const LONGEST_BURST: Duration = Duration::from_millis(50);
/// How often the files are compared without an event: file systems that tell
/// none, a directory whose parent comes later.
const COMPARE: Duration = Duration::from_secs(if cfg!(test) { 3600 } else { 2 });

/// Why a directory is not followed.
#[derive(Debug, thiserror::Error)]
#[error("cannot follow changes of {dir}: {source}")]
pub struct SourceError {
    dir: String,
    source: std::io::Error,
}

/// How reading goes, for others to see.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// The directory.
    pub path: String,
    /// How many objects of each kind are in force.
    pub objects: Vec<(&'static str, usize)>,
    /// When everything was last read without an error.
    pub last_good_read: Option<SystemTime>,
    /// Times that a file or the directory could not be read.
    pub read_errors: u64,
    /// What cannot be read now.
    pub errors: Vec<String>,
    /// What is in force otherwise than who wrote the files may think.
    pub warnings: Vec<String>,
}

/// The health of a source, which its thread keeps up to date.
pub type SharedHealth = Arc<Mutex<Health>>;

/// Hears of the cluster.
pub trait Sink {
    /// Something changed.
    fn changed(&self, cluster: &Cluster, change: Change);
}

/// The watching thread's state.
#[derive(Debug)]
pub struct Watch {
    manifests: Manifests,
    inotify: Inotify,
    watched: Option<WatchDescriptor>,
    /// Where links are and lead to, outside of the directory.
    elsewhere: BTreeMap<PathBuf, Elsewhere>,
    health: SharedHealth,
}

/// A directory that paths lead through.
#[derive(Debug)]
struct Elsewhere {
    watch: WatchDescriptor,
    /// What matters in it.
    names: BTreeSet<OsString>,
}

/// What tells of a change in a directory.
const NEWS: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_ONLYDIR);

impl Watch {
    /// Begins to hear of changes, then reads everything, many files by
    /// `readers` threads at once. What changes later is read by `later`.
    pub fn start(dir: &Path, readers: usize, later: usize) -> Result<Watch, SourceError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let inotify = inotify.map_err(|errno| SourceError {
            dir: dir.display().to_string(),
            source: errno.into(),
        })?;
        let mut watch = Watch {
            manifests: Manifests::new(dir, readers),
            inotify,
            watched: None,
            elsewhere: BTreeMap::new(),
            health: SharedHealth::default(),
        };
        watch.subscribe();
        let started = Instant::now();
        watch.scan(&BTreeSet::new());
        watch.manifests.read_by(later);
        watch.manifests.wait_for_writers();
        watch.follow_links();
        let [nodes, namespaces, pods] = watch.manifests.cluster().counts().map(|(_, n)| n);
        tracing::info!(
            nodes,
            namespaces,
            pods,
            seconds = started.elapsed().as_secs_f64(),
            "read the manifests in {}",
            dir.display()
        );
        Ok(watch)
    }

    /// What is known now.
    pub fn cluster(&self) -> &Cluster {
        self.manifests.cluster()
    }

    /// How reading goes, from now on.
    pub fn health(&self) -> SharedHealth {
        Arc::clone(&self.health)
    }

    fn scan(&mut self, touched: &BTreeSet<String>) -> Change {
        let change = self.manifests.scan(touched);
        let manifests = &self.manifests;
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.path = manifests.dir().display().to_string();
        health.objects = manifests.cluster().counts().to_vec();
        health.read_errors = manifests.read_errors();
        health.errors = manifests.errors().map(str::to_owned).collect();
        health.warnings = manifests.warnings();
        if health.errors.is_empty() && !manifests.is_waiting() {
            health.last_good_read = Some(SystemTime::now());
        }
        drop(health);
        change
    }

    /// Follows the directory until `stop` is readable.
    pub fn run(mut self, stop: BorrowedFd<'_>, sink: &dyn Sink) {
        let mut compared = Instant::now();
        loop {
            let Some(happened) = self.wait(stop, COMPARE) else {
                return;
            };
            let mut touched = BTreeSet::new();
            if happened {
                let began = Instant::now();
                let mut is_news = self.drain(&mut touched);
                while is_news && began.elapsed() < LONGEST_BURST {
                    match self.wait(stop, QUIET) {
                        None => return,
                        Some(false) => break,
                        Some(true) => is_news |= self.drain(&mut touched),
                    }
                }
                // Places that others write to all the time put nothing off.
                if !is_news && compared.elapsed() < COMPARE {
                    continue;
                }
            }
            compared = Instant::now();
            self.subscribe();
            let change = self.scan(&touched);
            if happened || change.any() {
                self.follow_links();
            }
            if change.any() {
                sink.changed(self.manifests.cluster(), change);
            }
        }
    }

    /// Whether the directory changed within `patience`; `None` to stop.
    fn wait(&self, stop: BorrowedFd<'_>, patience: Duration) -> Option<bool> {
        let timeout = Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let directory = self.inotify.as_fd();
        let mut fds = [
            PollFd::new(&stop, PollFlags::IN),
            PollFd::new(&directory, PollFlags::IN),
        ];
        if let Err(error) = poll(&mut fds, Some(&timeout))
            && error != rustix::io::Errno::INTR
        {
            std::thread::sleep(patience);
        }
        let [stopped, changed] = fds.map(|fd| !fd.revents().is_empty());
        (!stopped).then_some(changed)
    }

    /// Takes what happened; whether it matters.
    fn drain(&mut self, touched: &mut BTreeSet<String>) -> bool {
        let mut is_news = false;
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                // Of which place is unknown where the kernel lost some.
                let is_lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                is_news |= match Some(event.wd) == self.watched {
                    true => self.is_news(&event, touched),
                    false => is_lost || self.is_news_elsewhere(&event),
                };
            }
        }
        is_news
    }

    /// Something happened in the directory. Creating alone is no news: a file is
    /// read when who writes it is done. A link is whole when it is there.
    fn is_news(&mut self, event: &InotifyEvent, touched: &mut BTreeSet<String>) -> bool {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched = None;
        }
        let name = event.name.as_deref();
        if event.mask.contains(AddWatchFlags::IN_CREATE) {
            return name.is_some_and(|name| is_whole(&self.manifests.dir().join(name)));
        }
        if let Some(name) = name.and_then(OsStr::to_str)
            && is_manifest(name)
        {
            touched.insert(name.to_owned());
        }
        true
    }

    /// Something happened on the way to the directory or to a file.
    fn is_news_elsewhere(&mut self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.elsewhere.retain(|_, place| place.watch != event.wd);
            return false;
        }
        let mut places = self.elsewhere.iter();
        let place = places.find(|(_, place)| place.watch == event.wd);
        place.zip(event.name.as_ref()).is_some_and(|(place, name)| {
            let (dir, Elsewhere { names, .. }) = place;
            let is_begun = event.mask.contains(AddWatchFlags::IN_CREATE);
            names.contains(name) && (!is_begun || is_whole(&dir.join(name)))
        })
    }

    /// Watches the directory: another one, when it was made anew or the way to
    /// it leads elsewhere.
    fn subscribe(&mut self) {
        let own = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        let watched = self.inotify.add_watch(self.manifests.dir(), NEWS | own);
        let former = std::mem::replace(&mut self.watched, watched.ok());
        if let Some(former) = former.filter(|former| Some(*former) != self.watched) {
            // It may be gone with its directory.
            let _ = self.inotify.rm_watch(former);
        }
    }

    /// Watches where links are and lead to, and where the directory itself is.
    fn follow_links(&mut self) {
        let Ok(dir) = std::path::absolute(self.manifests.dir()) else {
            return;
        };
        let inside = dir.canonicalize().unwrap_or_else(|_| dir.clone());
        let mut wanted: BTreeMap<PathBuf, BTreeSet<OsString>> = BTreeMap::new();
        let links = self
            .manifests
            .links()
            .filter_map(|link| std::path::absolute(link).ok());
        for (place, name) in links.chain([dir]).flat_map(|path| links::places(&path)) {
            if place != inside {
                wanted.entry(place).or_default().insert(name);
            }
        }
        let inotify = &self.inotify;
        self.elsewhere.retain(|place, known| {
            let is_wanted = wanted.contains_key(place);
            if !is_wanted {
                let _ = inotify.rm_watch(known.watch);
            }
            is_wanted
        });
        for (place, names) in wanted {
            // One that cannot be watched is compared.
            let Ok(watch) = self.inotify.add_watch(&place, NEWS) else {
                continue;
            };
            let former = self.elsewhere.insert(place, Elsewhere { watch, names });
            // Another directory stood there.
            let former = former.map(|former| former.watch);
            let is_in_use = |former: &_| *former == watch || Some(*former) == self.watched;
            if let Some(former) = former.filter(|former| !is_in_use(former)) {
                let _ = self.inotify.rm_watch(former);
            }
        }
    }
}

/// Whether what was just made needs nothing written into it.
fn is_whole(path: &Path) -> bool {
    let metadata = std::fs::symlink_metadata(path);
    metadata.is_ok_and(|metadata| !metadata.is_file() || metadata.nlink() > 1)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::symlink;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    struct Told(Sender<Vec<String>>);

    impl Sink for Told {
        fn changed(&self, cluster: &Cluster, _: Change) {
            let cidrs = cluster.nodes().map(|node| node.pod_cidrs[0].to_string());
            let _ = self.0.send(cidrs.collect());
        }
    }

    fn node(cidr: &str) -> String {
        format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: a\nspec:\n  podCIDR: {cidr}\n")
    }

    /// Follows a directory while the test changes it. Nothing is compared
    /// without an event meanwhile ([`COMPARE`]).
    fn following(dir: &Path, test: impl FnOnce(&Receiver<Vec<String>>)) {
        let watch = Watch::start(dir, 1, 1).unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (sender, told) = channel();
        std::thread::scope(|scope| {
            let _end = End(&stop);
            scope.spawn(|| watch.run(stop.as_fd(), &Told(sender)));
            test(&told);
        });
    }

    /// Ends the following, also of a test that failed.
    struct End<'a>(&'a OwnedFd);

    impl Drop for End<'_> {
        fn drop(&mut self) {
            rustix::io::write(self.0, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Waits for the next change.
    fn next(told: &Receiver<Vec<String>>) -> String {
        let cidrs = told.recv_timeout(Duration::from_secs(30)).unwrap();
        cidrs.join(" ")
    }

    #[test]
    fn a_mounted_config_map_swaps_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let version = |name: &str, cidr: &str| {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("nodes.yaml"), node(cidr)).unwrap();
            symlink(name, at("..data_tmp")).unwrap();
            std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        version("..1", "10.0.1.0/24");
        symlink("..data/nodes.yaml", at("nodes.yaml")).unwrap();
        following(dir.path(), |told| {
            version("..2", "10.0.2.0/24");
            assert_eq!(next(told), "10.0.2.0/24");
            std::fs::remove_dir_all(at("..1")).unwrap();
            version("..3", "10.0.3.0/24");
            assert_eq!(next(told), "10.0.3.0/24");
        });
    }

    #[test]
    fn links_are_followed_wherever_they_lead() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let swap = |target: &str, name: &str| {
            symlink(target, at("new")).unwrap();
            std::fs::rename(at("new"), at(name)).unwrap();
        };
        for (dir, cidr) in [("v1", "10.0.1.0/24"), ("v2", "10.0.2.0/24")] {
            std::fs::create_dir(at(dir)).unwrap();
            std::fs::write(at(dir).join("a.yaml"), node(cidr)).unwrap();
        }
        swap("v1", "manifests");
        following(&at("manifests"), |told| {
            // The directory is another one.
            swap("v2", "manifests");
            assert_eq!(next(told), "10.0.2.0/24");
            // In one step, or the empty file would be read, too.
            let write = |name: &str, cidr: &str| {
                std::fs::write(at("aside"), node(cidr)).unwrap();
                std::fs::rename(at("aside"), at(name)).unwrap();
            };
            write("v2/a.yaml", "10.0.3.0/24");
            assert_eq!(next(told), "10.0.3.0/24");
            // A file is gone, and then a link that leads out.
            std::fs::remove_file(at("v2/a.yaml")).unwrap();
            assert_eq!(next(told), "");
            symlink(at("v1/a.yaml"), at("v2/a.yaml")).unwrap();
            assert_eq!(next(told), "10.0.1.0/24");
            write("v1/a.yaml", "10.0.4.0/24");
            assert_eq!(next(told), "10.0.4.0/24");
        });
    }

    #[test]
    fn a_directory_that_comes_later_is_read_at_once() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        following(&at("manifests"), |told| {
            for (count, cidr) in ["10.0.1.0/24", "10.0.2.0/24"].iter().enumerate() {
                std::fs::create_dir(at("aside")).unwrap();
                std::fs::write(at("aside/a.yaml"), node(cidr)).unwrap();
                let _ = std::fs::rename(at("manifests"), at(&format!("former{count}")));
                std::fs::rename(at("aside"), at("manifests")).unwrap();
                assert_eq!(next(told), *cidr);
            }
        });
    }
}
