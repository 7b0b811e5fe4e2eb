//! When a lane naps.
//!
//! A flood that the lane could carry twice over keeps it going round for
//! packets that have not come yet. That is CPU time for nothing, and each look
//! pulls the ring's cache lines away from the CPU that fills them. So a lane
//! that has nothing to do but one port's flood of short packets sleeps for a
//! moment each time it has caught up with it. Packets of other ports wake it at
//! once; the flooding port's sender finds nobody to wake.
//!
//! Where a second port brings packets, somebody may be waiting for an answer:
//! then nobody naps for as long as a lane lingers after its last packet.

use crate::types::{Nanos, PortId};

/// How long one port alone has to bring packets, at which rate, before the lane
/// naps, and how often that is looked at.
const WINDOW_NANOS: u64 = 200_000;

/// Packets a second from which on it is a flood.
const FLOOD: u64 = 300_000;

/// Bytes of a packet, on the average, up to which packets are short.
const SHORT: u64 = 256;

/// How long a nap is, if the chunks that are posted last for several.
const NAP_NANOS: u64 = 100_000;

/// Shorter ones cost more than they spare: falling asleep and waking take some
/// 5 µs of CPU time.
const SHORTEST_NAP_NANOS: u64 = 30_000;

/// Part of the chunks posted that a nap may use up: the sender may be faster
/// for a moment, or the lane wake later.
const SHARE_OF_POSTED: u64 = 4;

/// What a port has brought, and what it can still take in.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Brought {
    /// Packets since the port came.
    pub(super) packets: u64,
    /// Bytes since then.
    pub(super) bytes: u64,
    /// Chunks posted for filling on the queue that has the fewest.
    pub(super) posted: u32,
}

/// A nap that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nap {
    /// The port whose packets do not end it.
    pub(super) port: PortId,
    /// How long it is at most.
    pub(super) nanos: u64,
}

/// Which port has lately been alone in bringing packets, and how many.
#[derive(Debug, Default)]
pub(super) struct Naps {
    alone: Option<PortId>,
    /// The current window's beginning, and what the port had brought by then;
    /// `None` until the first look after it was alone.
    window: Option<(Nanos, Brought)>,
    /// Packets a second in the window before, while they are a flood.
    flood: Option<u64>,
}

impl Naps {
    /// Notes that a port brought packets.
    #[inline]
    pub(super) fn came(&mut self, port: PortId) {
        if self.alone != Some(port) {
            *self = Naps {
                alone: Some(port),
                ..Naps::default()
            };
        }
    }

    /// The port that has been alone.
    pub(super) fn port(&self) -> Option<PortId> {
        self.alone
    }

    /// The nap that is due now that the lane has caught up with `brought`.
    pub(super) fn due(&mut self, brought: Brought, now: Nanos) -> Option<Nap> {
        let (began, before) = *self.window.get_or_insert((now, brought));
        let span = now.since(began);
        if span >= WINDOW_NANOS {
            let packets = brought.packets.saturating_sub(before.packets);
            let bytes = brought.bytes.saturating_sub(before.bytes);
            let rate = packets.saturating_mul(1_000_000_000) / span;
            let is_flood = rate >= FLOOD && bytes <= packets * SHORT;
            self.flood = is_flood.then_some(rate);
            self.window = Some((now, brought));
        }
        let nanos = nap_nanos(self.flood?, brought.posted)?;
        let port = self.alone?;
        Some(Nap { port, nanos })
    }

    /// Chunks to have posted for a whole nap, under a flood.
    pub(super) fn wanted(&self) -> Option<u32> {
        let in_a_nap = self.flood?.saturating_mul(NAP_NANOS) / 1_000_000_000;
        u32::try_from(in_a_nap * SHARE_OF_POSTED).ok()
    }
}

/// How long a lane may nap while so many packets a second come; `None` when
/// that is too short to be worth it.
fn nap_nanos(rate: u64, posted: u32) -> Option<u64> {
    let room = u64::from(posted) / SHARE_OF_POSTED;
    let nanos = (room * 1_000_000_000 / rate.max(1)).min(NAP_NANOS);
    (nanos >= SHORTEST_NAP_NANOS).then_some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: PortId = PortId(1);
    const OTHER: PortId = PortId(2);
    /// Between two looks of a lane that keeps up.
    const STEP_NANOS: u64 = 10_000;

    /// A lane that looks again and again while packets of one length come.
    struct Looks {
        naps: Naps,
        brought: Brought,
        now: Nanos,
    }

    impl Looks {
        fn new(posted: u32) -> Looks {
            let brought = Brought {
                posted,
                ..Brought::default()
            };
            Looks {
                naps: Naps::default(),
                brought,
                now: Nanos(7),
            }
        }

        /// What is due after `nanos` with so many packets a second.
        fn after(&mut self, nanos: u64, rate: u64, len: u64) -> Option<Nap> {
            let mut due = None;
            for _ in 0..nanos / STEP_NANOS {
                let packets = rate * STEP_NANOS / 1_000_000_000;
                if packets > 0 {
                    self.naps.came(ONE);
                }
                self.brought.packets += packets;
                self.brought.bytes += packets * len;
                self.now = Nanos(self.now.0 + STEP_NANOS);
                due = self.naps.due(self.brought, self.now);
            }
            due
        }
    }

    #[test]
    fn a_flood_of_one_port_is_napped_under() {
        let whole = Some(Nap {
            port: ONE,
            nanos: NAP_NANOS,
        });
        struct Case {
            name: &'static str,
            rate: u64,
            len: u64,
            posted: u32,
            expect: Option<Nap>,
        }
        let cases = [
            Case {
                name: "a flood",
                rate: 1_400_000,
                len: 60,
                posted: 2048,
                expect: whole,
            },
            Case {
                name: "too few for one",
                rate: 200_000,
                len: 60,
                posted: 2048,
                expect: None,
            },
            Case {
                name: "long packets",
                rate: 1_400_000,
                len: 1514,
                posted: 2048,
                expect: None,
            },
            Case {
                name: "chunks for a shorter nap only",
                rate: 1_000_000,
                len: 60,
                posted: 200,
                expect: Some(Nap {
                    port: ONE,
                    nanos: 50_000,
                }),
            },
            Case {
                name: "chunks for none",
                rate: 1_000_000,
                len: 60,
                posted: 64,
                expect: None,
            },
        ];
        for case in cases {
            let mut looks = Looks::new(case.posted);
            let due = looks.after(1_000_000, case.rate, case.len);
            assert_eq!(due, case.expect, "{}", case.name);
        }
    }

    #[test]
    fn nobody_naps_before_a_port_was_alone_for_a_while() {
        let mut looks = Looks::new(2048);
        assert_eq!(looks.after(WINDOW_NANOS, 1_000_000, 60), None);
        assert!(looks.after(2 * STEP_NANOS, 1_000_000, 60).is_some());
        looks.naps.came(OTHER);
        assert_eq!(looks.after(WINDOW_NANOS, 1_000_000, 60), None);
        assert!(looks.after(2 * STEP_NANOS, 1_000_000, 60).is_some());
    }

    #[test]
    fn ports_that_answer_each_other_keep_the_lane_awake() {
        let mut looks = Looks::new(2048);
        for _ in 0..1000 {
            assert_eq!(looks.after(STEP_NANOS, 1_000_000, 60), None);
            looks.naps.came(OTHER);
        }
    }

    #[test]
    fn a_flood_that_is_over_lets_the_lane_be() {
        let mut looks = Looks::new(2048);
        assert!(looks.after(1_000_000, 1_000_000, 60).is_some());
        assert_eq!(looks.after(2 * WINDOW_NANOS, 0, 60), None);
        assert_eq!(looks.naps.wanted(), None);
    }

    #[test]
    fn chunks_are_wanted_for_several_naps() {
        let mut looks = Looks::new(64);
        assert_eq!(looks.after(1_000_000, 1_000_000, 60), None);
        assert_eq!(looks.naps.wanted(), Some(400));
        looks.brought.posted = 400;
        let due = looks.after(STEP_NANOS, 1_000_000, 60);
        assert_eq!(due.map(|nap| nap.nanos), Some(NAP_NANOS));
    }
}
