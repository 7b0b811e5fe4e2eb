//! What control reads of the connections.

use super::{Connections, Origin, Side, State, Tuple};
use crate::types::PortId;

/// One connection, ready to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// The tuple of the first packet.
    pub original: Tuple,
    /// The tuple of the answers as they arrive.
    pub reply: Tuple,
    /// Where it stands.
    pub state: State,
    /// Who began it.
    pub origin: Origin,
    /// Port of the pod that it counts for.
    pub pod: PortId,
    /// Milliseconds since the last packet, give or take [`REFRESH_MS`](super::REFRESH_MS).
    pub idle_ms: u64,
    /// Packets of both directions. Those of flows are added when a flow
    /// refreshes its connection.
    pub packets: u64,
}

impl Connections {
    /// The connections whose time is not over. Takes time by the size of the
    /// table; for control.
    pub fn records(&self, now_ms: u64) -> Vec<ConnectionRecord> {
        let used = (0..self.shard_count).flat_map(|shard| self.shards.used(shard));
        used.filter_map(|entry| self.record(entry, now_ms))
            .collect()
    }

    fn record(&self, entry: u32, now_ms: u64) -> Option<ConnectionRecord> {
        let pair = self.entries.read(entry)?;
        let found = self.found(entry, &pair, Side::Original, now_ms)?;
        found.is_live.then(|| ConnectionRecord {
            original: found.original,
            reply: found.reply,
            state: found.state,
            origin: found.origin,
            pod: self.entries.share(entry).pod,
            idle_ms: now_ms.saturating_sub(self.entries.seen_ms(entry)),
            packets: self.entries.packets(entry),
        })
    }
}
