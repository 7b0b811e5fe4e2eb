//! Packets as pcapng: what `spinlane capture` shows.
//!
//! Lanes copy packets to a bounded queue; [`record`] takes them from there, in
//! a thread of its own, keeps those that the [`Filter`] matches and cuts them
//! into blocks of a pcapng file. A reader that does not keep up loses packets
//! (each block says how many), never the lanes time.

mod filter;
mod pcapng;

use std::time::Duration;

use tokio::sync::mpsc::Sender;

pub use filter::{Filter, FilterError};
pub use pcapng::{Blocks, LARGEST_BLOCK_BYTES};

use crate::views::Packets;
use pcapng::Writer;

/// How long a capture may go without noticing that its reader left.
const ATTENTION: Duration = Duration::from_millis(100);
/// Bytes that go to the reader at once while packets keep coming.
const LOT_BYTES: usize = 64 * 1024;

/// What to record.
#[derive(Debug, Default)]
pub struct Recording {
    /// Packets to keep; all when absent.
    pub filter: Option<Filter>,
    /// The expression of `filter`, for the file.
    pub expression: Option<String>,
    /// Packets after which it ends.
    pub count: Option<u64>,
    /// Bytes kept of each packet.
    pub snaplen: usize,
}

/// Records until `count` packets are through, the reader leaves, or the one
/// port that it is of is gone.
pub fn record(recording: &Recording, packets: &mut dyn Packets, reader: &Sender<Vec<u8>>) {
    let mut writer = Writer::new(recording.snaplen, recording.expression.as_deref());
    let mut left = recording.count.unwrap_or(u64::MAX);
    // The header goes out at once: who reads live sees that it began.
    let mut open = reader.blocking_send(writer.take()).is_ok();
    while open && left > 0 {
        let pending = writer.len() > 0;
        let patience = if pending { Duration::ZERO } else { ATTENTION };
        let packet = packets.next(patience);
        match &packet {
            Some(packet) => {
                let wanted = recording.filter.as_ref().is_none_or(|f| f.matches(packet));
                if wanted {
                    writer.packet(packet, packets.lost());
                    left -= 1;
                }
            }
            None if !pending => open = !reader.is_closed() && !packets.is_over(),
            None => {}
        }
        if writer.len() > 0 && (packet.is_none() || writer.len() >= LOT_BYTES || left == 0) {
            open = reader.blocking_send(writer.take()).is_ok();
        }
    }
}

#[cfg(test)]
mod tests;
