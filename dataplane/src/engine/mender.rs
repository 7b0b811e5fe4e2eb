//! Puts right what goes wrong while nobody calls: sockets that the kernel
//! refuses to serve, ports that a lane hands over late, lanes that ended.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::closing::Closing;
use super::{EngineError, Inner, PortError, lock};
use crate::lane::Wedged;
use crate::port::PortSpec;
use crate::types::PortId;

/// How often it looks around by itself.
const LOOK: Duration = Duration::from_secs(1);

/// First and longest pause before a port that could not be rebuilt is tried
/// again; doubled from try to try.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A port without sockets.
pub(super) struct Broken {
    spec: PortSpec,
    /// What became of the last try.
    pub(super) fault: String,
    pause: Duration,
    due: Instant,
}

/// Starts the thread. It ends when the engine has stopped and the last lane
/// is gone.
pub(super) fn start(
    inner: Arc<Inner>,
    wedged: Receiver<Wedged>,
) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new()
        .name("port-mender".to_owned())
        .spawn(move || run(&inner, &wedged))
        .map_err(|source| EngineError::Lane { lane: 0, source })
}

fn run(inner: &Inner, wedged: &Receiver<Wedged>) {
    let mut mourned = HashSet::new();
    loop {
        // Acquire: pairs with the swap that began the stop.
        let is_stopping = inner.stopping.load(Ordering::Acquire);
        let pause = match is_stopping {
            true => LOOK,
            false => inner.next_try().min(LOOK),
        };
        match wedged.recv_timeout(pause) {
            Ok(wedged) => inner.rebuild(wedged),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if inner.stopping.load(Ordering::Acquire) => return,
            // Every lane has ended by itself.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
        }
        if inner.stopping.load(Ordering::Acquire) {
            continue;
        }
        for lane in inner.dead_lanes().filter(|&lane| mourned.insert(lane)) {
            tracing::error!(lane, "a lane has ended unexpectedly; restart the agent");
        }
        inner.close_late();
        inner.retry();
    }
}

impl Inner {
    /// The lanes whose threads have ended although nobody stopped them.
    pub(super) fn dead_lanes(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.lanes.len()).filter(|&lane| self.is_dead(lane))
    }

    /// Puts fresh sockets in the place of one that the kernel refuses to
    /// serve. A report about a socket that is gone meanwhile changes nothing.
    pub(super) fn rebuild(&self, wedged: Wedged) {
        let _change = lock(&self.changes);
        let is_in_use = |handle: &crate::port::PortHandle| handle.tags.contains(&wedged.tag);
        if !lock(&self.ports).get(&wedged.port).is_some_and(is_in_use) {
            return;
        }
        let Some(closing) = self.remove(wedged.port) else {
            return;
        };
        let spec = closing.handle.spec.clone();
        tracing::warn!(port = %spec.name, "the kernel refuses a descriptor of this port for ever; rebuilding its sockets");
        match self.close(closing) {
            Ok(()) => self.attach_again(spec, FIRST_PAUSE),
            // It keeps its queue until it has time.
            Err(late) => self.put_off(spec, &late, FIRST_PAUSE),
        }
    }

    /// The caller holds `changes`.
    fn attach_again(&self, spec: PortSpec, pause: Duration) {
        match self.attach(spec.clone()) {
            Ok(_) => {
                // First, so that nobody sees it rebuilt and at fault.
                lock(&self.broken).remove(&spec.id);
                // Relaxed: a statistic.
                self.rebuilds.fetch_add(1, Ordering::Relaxed);
                tracing::info!(port = %spec.name, "the port has fresh sockets");
            }
            Err(error) => self.put_off(spec, &error, pause),
        }
    }

    fn put_off(&self, spec: PortSpec, error: &PortError, pause: Duration) {
        let fault = error.to_string();
        let broken = Broken {
            due: Instant::now() + pause,
            pause,
            fault: fault.clone(),
            spec,
        };
        let (id, name) = (broken.spec.id, broken.spec.name.clone());
        let before = lock(&self.broken).insert(id, broken);
        // The same answer again is no news.
        if before.is_none_or(|before| before.fault != fault) {
            tracing::error!(port = %name, %fault, "a port could not be rebuilt; trying again");
        }
    }

    /// How long until a broken port is due.
    fn next_try(&self) -> Duration {
        let now = Instant::now();
        let dues = lock(&self.broken);
        let pauses = dues.values().map(|b| b.due.saturating_duration_since(now));
        pauses.min().unwrap_or(LOOK)
    }

    fn retry(&self) {
        let now = Instant::now();
        let due: Vec<PortId> = lock(&self.broken)
            .iter()
            .filter(|(_, broken)| broken.due <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            let _change = lock(&self.changes);
            // Looked up under the lock: the port may be detached meanwhile.
            let next = lock(&self.broken)
                .get(&id)
                .map(|broken| (broken.spec.clone(), broken.pause));
            let Some((spec, pause)) = next else {
                continue;
            };
            let pause = (pause * 2).min(LONGEST_PAUSE);
            let is_late = |closing: &Closing| closing.handle.spec.id == id;
            let is_late = lock(&self.closing).iter().any(is_late);
            match is_late {
                true => self.put_off(spec.clone(), &PortError::Lane(spec.name), pause),
                false => self.attach_again(spec, pause),
            }
        }
    }

    /// Closes the ports that lanes have handed over by now.
    fn close_late(&self) {
        let late = std::mem::take(&mut *lock(&self.closing));
        for mut closing in late {
            self.gather(&mut closing, Instant::now());
            // Kept again while a lane is still missing.
            let _ = self.close(closing);
        }
    }
}
