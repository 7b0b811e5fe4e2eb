//! What a sink keeps of each flow, and what it says of loss and order.
//!
//! Numbers are 32 bits and wrap; here they are 64, so that they only grow.
//! Order is that of RFC 4737: a packet is reordered when a later one of its
//! flow came before it. The distance is by how many numbers it was behind.

use std::collections::HashMap;

use serde::Serialize;

use crate::packet::Stamp;
use crate::sink::latency::Latencies;

/// Words of a flow's record; the same in the kernel and here.
pub(crate) const NEXT: usize = 0;
pub(crate) const UNIQUE: usize = 1;
pub(crate) const DUPLICATES: usize = 2;
pub(crate) const REORDERED: usize = 3;
pub(crate) const LATE: usize = 4;
pub(crate) const DISTANCE: usize = 5;
pub(crate) const LOWEST_INVERTED: usize = 6;
pub(crate) const WINDOW: usize = 8;
/// Slots of the window, a power of two. A slot holds 32 packets: their
/// common number in the upper half, a bit for each in the lower.
pub(crate) const SLOTS: usize = 64;
/// Words of a record.
pub(crate) const WORDS: usize = WINDOW + SLOTS;
/// Where numbers begin, so that earlier ones than the first have room.
pub(crate) const ORIGIN: u64 = 1 << 32;

/// Loss, duplicates and order of all flows together.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Order {
    /// Flows seen.
    pub flows: u64,
    /// Different packets that came.
    pub received: u64,
    /// Numbers missing between each flow's lowest and highest.
    pub lost: u64,
    /// Packets that came again.
    pub duplicates: u64,
    /// Packets that came after a later one of their flow (RFC 4737).
    pub reordered: u64,
    /// The farthest that one was behind, in packets of its flow.
    pub largest_distance: u64,
    /// Packets so far behind that it is not known whether they came before;
    /// their numbers count as lost.
    pub too_late: u64,
}

impl Order {
    /// Adds a flow's record.
    pub(crate) fn add(&mut self, record: &[u64; WORDS]) {
        let unique = record[UNIQUE];
        self.flows += 1;
        self.received += unique;
        self.duplicates += record[DUPLICATES];
        self.reordered += record[REORDERED];
        self.too_late += record[LATE];
        self.largest_distance = self.largest_distance.max(record[DISTANCE]);
        if unique > 0 {
            let span = record[NEXT] - !record[LOWEST_INVERTED];
            self.lost += span.saturating_sub(unique);
        }
    }

    /// Lost of those sent.
    #[must_use]
    pub fn loss_ratio(&self) -> f64 {
        self.lost as f64 / ((self.lost + self.received) as f64).max(1.0)
    }

    /// Reordered of those received.
    #[must_use]
    pub fn reordered_ratio(&self) -> f64 {
        self.reordered as f64 / (self.received as f64).max(1.0)
    }
}

/// What the program in the kernel does, for packets that reach user space;
/// it also knows the jitter of RFC 3550.
#[derive(Debug, Default)]
pub struct Tracker {
    flows: HashMap<u32, Flow>,
    /// One-way delays.
    pub latencies: Latencies,
    /// Packets without a stamp.
    pub unstamped: u64,
}

#[derive(Debug)]
struct Flow {
    record: [u64; WORDS],
    /// Delay of the packet before, in nanoseconds.
    transit_ns: Option<i64>,
    jitter_ns: f64,
}

/// Flows that are tracked at most; packets of others count as unstamped.
const MAX_FLOWS: usize = 1 << 20;

impl Tracker {
    /// Takes a packet's payload that came at `now_ns`.
    pub fn add(&mut self, payload: &[u8], now_ns: u64) {
        let known =
            |stamp: &Stamp| self.flows.len() < MAX_FLOWS || self.flows.contains_key(&stamp.stream);
        let Some(stamp) = Stamp::read(payload).filter(known) else {
            self.unstamped += 1;
            return;
        };
        if let Some(latency) = now_ns.checked_sub(stamp.time_ns) {
            self.latencies.add(latency);
        }
        let flow = self.flows.entry(stamp.stream).or_insert_with(|| Flow {
            record: [0; WORDS],
            transit_ns: None,
            jitter_ns: 0.0,
        });
        add_to_record(&mut flow.record, stamp.sequence);
        let transit = now_ns.wrapping_sub(stamp.time_ns).cast_signed();
        if let Some(before) = flow.transit_ns.replace(transit) {
            // RFC 3550, 6.4.1: J += (|D| - J) / 16.
            let difference = transit.abs_diff(before) as f64;
            flow.jitter_ns += (difference - flow.jitter_ns) / 16.0;
        }
    }

    /// Loss, duplicates and order so far.
    #[must_use]
    pub fn order(&self) -> Order {
        let mut order = Order::default();
        for flow in self.flows.values() {
            order.add(&flow.record);
        }
        order
    }

    /// The largest interarrival jitter of a flow, in microseconds.
    #[must_use]
    pub fn jitter_us(&self) -> Option<f64> {
        self.flows
            .values()
            .map(|flow| flow.jitter_ns / 1e3)
            .max_by(f64::total_cmp)
    }
}

fn add_to_record(record: &mut [u64; WORDS], sequence: u32) {
    let next = record[NEXT];
    let number = if next == 0 {
        ORIGIN + u64::from(sequence)
    } else {
        let ahead = sequence.wrapping_sub(next as u32).cast_signed();
        next.wrapping_add_signed(ahead.into())
    };
    let chunk = (number >> 5) as u32;
    let bit = 1u64 << (number & 31);
    let slot = &mut record[WINDOW + (number >> 5) as usize % SLOTS];
    let age = chunk.wrapping_sub((*slot >> 32) as u32).cast_signed();
    if *slot == 0 || age > 0 {
        *slot = u64::from(chunk) << 32 | bit;
    } else if age < 0 {
        record[LATE] += 1;
        return;
    } else if *slot & bit != 0 {
        record[DUPLICATES] += 1;
        return;
    } else {
        *slot |= bit;
    }
    record[UNIQUE] += 1;
    record[LOWEST_INVERTED] = record[LOWEST_INVERTED].max(!number);
    if number < next {
        record[REORDERED] += 1;
        record[DISTANCE] = record[DISTANCE].max(next - 1 - number);
    } else {
        record[NEXT] = number + 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn order(sequences: impl IntoIterator<Item = u32>) -> Order {
        let mut tracker = Tracker::default();
        for sequence in sequences {
            let stamp = Stamp {
                stream: 1,
                sequence,
                time_ns: 5,
            };
            tracker.add(&stamp.bytes(), 10);
        }
        tracker.order()
    }

    proptest! {
        /// Against the definitions, on whole lists.
        #[test]
        fn matches_the_definitions(sequences in prop::collection::vec(900u32..1300, 1..400)) {
            let order = order(sequences.iter().copied());
            let mut seen = HashSet::new();
            let mut highest = None;
            let (mut duplicates, mut reordered, mut distance) = (0, 0, 0);
            for sequence in &sequences {
                if !seen.insert(*sequence) {
                    duplicates += 1;
                } else if let Some(most) = highest.filter(|most| sequence < most) {
                    reordered += 1;
                    distance = distance.max(u64::from(most - sequence));
                }
                highest = highest.max(Some(*sequence));
            }
            let span = highest.unwrap() - seen.iter().min().unwrap() + 1;
            prop_assert_eq!(order.received, seen.len() as u64);
            prop_assert_eq!(order.duplicates, duplicates);
            prop_assert_eq!(order.reordered, reordered);
            prop_assert_eq!(order.largest_distance, distance);
            prop_assert_eq!(order.lost, u64::from(span) - seen.len() as u64);
            prop_assert_eq!(order.too_late, 0);
        }
    }

    #[test]
    fn numbers_wrap() {
        let counted = order((u32::MAX - 9..=u32::MAX).chain(0..10));
        assert_eq!((counted.received, counted.lost), (20, 0));
        assert_eq!((counted.reordered, counted.duplicates), (0, 0));
    }

    #[test]
    fn what_left_the_window_is_too_late() {
        let counted = order((0..100).chain(5000..5010).chain([50]));
        assert_eq!(
            (counted.received, counted.too_late),
            (110, 0),
            "an empty slot"
        );
        let counted = order((0..5000).chain([50]));
        assert_eq!((counted.received, counted.too_late), (5000, 1));
        assert_eq!((counted.duplicates, counted.lost), (0, 0));
    }

    #[test]
    fn jitter_is_that_of_rfc_3550() {
        let mut tracker = Tracker::default();
        // Delays 10, 26, 10 µs: |D| is 16 µs twice.
        for (sequence, delay) in [(0, 10_000), (1, 26_000), (2, 10_000)] {
            let stamp = Stamp {
                stream: 0,
                sequence,
                time_ns: 1_000_000,
            };
            tracker.add(&stamp.bytes(), 1_000_000 + delay);
        }
        // J = 1, then 1 + (16 - 1) / 16.
        assert_eq!(tracker.jitter_us(), Some(1.9375));
    }
}
