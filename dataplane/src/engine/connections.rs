//! The connections as control sees them, and how they outlive the process.

use std::path::Path;
use std::time::Instant;

use super::Engine;
use crate::snapshot::Destination;
use crate::tables::connection::{ConnectionRecord, Connections, Origin};

/// How many connections there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionCount {
    /// All of them.
    pub all: u64,
    /// Those that somebody outside began.
    pub from_outside: u64,
    /// How many fit.
    pub limit: u64,
}

/// The table, and the origin of its time. Without a file, or when it cannot be
/// had, it goes with the process.
pub(super) fn open(file: Option<&Path>) -> (Connections, Instant) {
    let fresh = || (Connections::default(), Instant::now());
    let Some(path) = file else { return fresh() };
    let kept = match Connections::kept(path, Connections::DEFAULT_CAPACITY) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::error!("{error}");
            return fresh();
        }
    };
    let path = path.display();
    if let Some(reason) = &kept.unusable {
        tracing::warn!(file = %path, %reason, "the connections of before the restart are lost");
    }
    if kept.taken_over + kept.lost > 0 {
        let (taken_over, lost) = (kept.taken_over, kept.lost);
        tracing::info!(file = %path, taken_over, lost, "connections of before the restart");
    }
    (kept.connections, kept.origin)
}

impl Engine {
    /// The connections that the node follows. Takes time by their number.
    pub fn connections(&self) -> Vec<ConnectionRecord> {
        let now_ms = self.inner.epoch.elapsed().as_millis() as u64;
        self.inner.connections.records(now_ms)
    }

    /// How many connections there are, some perhaps just over.
    pub fn connection_count(&self) -> ConnectionCount {
        let connections = &self.inner.connections;
        ConnectionCount {
            all: connections.len() as u64,
            from_outside: connections.begun_by(Origin::Outside) as u64,
            limit: connections.capacity() as u64,
        }
    }

    /// Ends connections of before the restart whose pods are not in the
    /// snapshot in force. To be called once, with the first that has them all.
    pub fn settle_connections(&self) {
        let snapshot = self.snapshot();
        self.inner
            .connections
            .settle(|address| match snapshot.host(address) {
                Some(Destination::Pod(port)) => Some(port),
                Some(Destination::Host(_) | Destination::Gateway) | None => None,
            });
    }
}
