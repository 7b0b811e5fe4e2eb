//! Follows the directory of manifests: a change is in force within
//! milliseconds, a burst of changes at once.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::cluster::{Change, Cluster};
use super::manifests::{Manifests, is_manifest};

/// A burst ends when nothing happened for so long…
const QUIET: Duration = Duration::from_millis(5);
/// …or when it has lasted so long.
const LONGEST_BURST: Duration = Duration::from_millis(50);
/// How often the files are compared without an event: file systems that tell
/// none, links into other directories, a directory that comes later.
const COMPARE: Duration = Duration::from_secs(2);

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
    watched: bool,
    health: SharedHealth,
}

impl Watch {
    /// Begins to hear of changes, then reads everything.
    pub fn start(dir: &Path) -> Result<Watch, SourceError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let inotify = inotify.map_err(|errno| SourceError {
            dir: dir.display().to_string(),
            source: errno.into(),
        })?;
        let mut watch = Watch {
            manifests: Manifests::new(dir),
            inotify,
            watched: false,
            health: SharedHealth::default(),
        };
        watch.subscribe();
        let started = Instant::now();
        watch.scan(&BTreeSet::new());
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
        if health.errors.is_empty() {
            health.last_good_read = Some(SystemTime::now());
        }
        drop(health);
        change
    }

    /// Follows the directory until `stop` is readable.
    pub fn run(mut self, stop: BorrowedFd<'_>, sink: &dyn Sink) {
        loop {
            let Some(happened) = self.wait(stop, COMPARE) else {
                return;
            };
            let mut touched = BTreeSet::new();
            if happened {
                let began = Instant::now();
                self.drain(&mut touched);
                while began.elapsed() < LONGEST_BURST {
                    match self.wait(stop, QUIET) {
                        None => return,
                        Some(false) => break,
                        Some(true) => self.drain(&mut touched),
                    }
                }
            }
            self.subscribe();
            let change = self.scan(&touched);
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

    fn drain(&mut self, touched: &mut BTreeSet<String>) {
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                if event
                    .mask
                    .intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF)
                {
                    self.watched = false;
                }
                let name = event.name.map(OsString::into_string);
                if let Some(Ok(name)) = name
                    && is_manifest(&name)
                {
                    touched.insert(name);
                }
            }
        }
    }

    /// Watches the directory, again when it was made anew. Creating alone is
    /// no news: a file is read when who writes it is done.
    fn subscribe(&mut self) {
        if self.watched {
            return;
        }
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        self.watched = self.inotify.add_watch(self.manifests.dir(), flags).is_ok();
    }
}
