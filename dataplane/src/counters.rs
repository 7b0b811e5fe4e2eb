//! Counters that lanes write and control reads.
//!
//! Each lane writes its own copy with plain relaxed stores (no locked
//! instruction), readers add the copies up. A reader may see one packet's
//! counters half done; over time they are exact.

use crossbeam::utils::CachePadded;

use crate::drops::DropReason;
use crate::sync::{AtomicU64, Ordering};

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only ever called by the one writer.
    #[inline]
    pub fn add(&self, n: u64) {
        // Relaxed load and store: one writer, and readers need no order.
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Sets a gauge; only ever called by the one writer.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one lane counts at one port.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Packets received.
    pub rx_packets: Counter,
    /// Bytes received.
    pub rx_bytes: Counter,
    /// Packets handed to the kernel.
    pub tx_packets: Counter,
    /// Bytes handed to the kernel.
    pub tx_bytes: Counter,
    /// Packets dropped that came by this port.
    pub drops: Counter,
}

/// What one lane counts besides.
#[derive(Debug)]
pub struct LaneCounters {
    /// Drops by [`DropReason`].
    pub drops: [Counter; DropReason::COUNT],
    /// Packets received.
    pub rx_packets: Counter,
    /// Packets transmitted.
    pub tx_packets: Counter,
    /// Packets that missed the flow table.
    pub flow_misses: Counter,
    /// Packets that hit it.
    pub flow_hits: Counter,
    /// Entries in the flow tables now.
    pub flow_entries: Counter,
    /// Entries pushed out for others.
    pub flow_evictions: Counter,
    /// Rounds of the poll loop.
    pub rounds: Counter,
    /// Nanoseconds spent in rounds that had packets.
    pub busy_nanos: Counter,
    /// Busy share of the last second, in millionths.
    pub busy_ppm: Counter,
    /// Time of the last round, [`crate::types::Nanos`].
    pub last_round: Counter,
    /// Times that the lane went to sleep.
    pub sleeps: Counter,
    /// Times that it napped under a flood.
    pub naps: Counter,
    /// Chunks on the lane's free list.
    pub frames_free: Counter,
    /// Chunks that the lane posted for filling.
    pub frames_filling: Counter,
    /// Events lost because control did not keep up.
    pub events_lost: Counter,
}

impl LaneCounters {
    /// Zeros, on cache lines of their own.
    pub fn new() -> CachePadded<LaneCounters> {
        CachePadded::new(LaneCounters {
            drops: std::array::from_fn(|_| Counter::default()),
            rx_packets: Counter::default(),
            tx_packets: Counter::default(),
            flow_misses: Counter::default(),
            flow_hits: Counter::default(),
            flow_entries: Counter::default(),
            flow_evictions: Counter::default(),
            rounds: Counter::default(),
            busy_nanos: Counter::default(),
            busy_ppm: Counter::default(),
            last_round: Counter::default(),
            sleeps: Counter::default(),
            naps: Counter::default(),
            frames_free: Counter::default(),
            frames_filling: Counter::default(),
            events_lost: Counter::default(),
        })
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;

    use super::Counter;

    #[test]
    fn readers_see_a_counter_grow_to_its_sum() {
        loom::model(|| {
            let counter = Arc::new(Counter::default());
            let written = Arc::clone(&counter);
            let writer = loom::thread::spawn(move || {
                written.add(1);
                written.add(2);
            });
            let (early, late) = (counter.get(), counter.get());
            assert!([0, 1, 3].contains(&early), "never written: {early}");
            assert!(early <= late, "went back from {early} to {late}");
            writer.join().unwrap();
            assert_eq!(counter.get(), 3);
        });
    }
}
