//! Which ports' receive work is steered, by what they carry.
//!
//! Steering is what suits conversations and bulk TCP: its packets keep their
//! order whatever CPU their sender runs on, and the receiving pod's protocol
//! stack runs beside the lane. It costs a hash and a queue for each packet.
//! Floods of short packets pay that dearly, so theirs is taken off: on the way
//! in always, on the way out where the CPUs that it goes to have no time left.

use std::collections::HashMap;
use std::time::Duration;

use spinlane_dataplane::engine::{PortStats, Traffic};
use spinlane_dataplane::types::PortId;

/// Packets a second from which on short ones from a port are a flood: more
/// than conversations and the acknowledgements of bulk TCP make.
const FLOOD_IN: f64 = 250_000.0;

/// The same, to a port.
const FLOOD_OUT: f64 = 100_000.0;

/// Bytes of a packet, on the average, up to which packets are short.
const SHORT: f64 = 1600.0;

/// Share of a flood that is left of it when it is over.
const EBB: f64 = 0.3;

/// Looks without a flood before steering is put back.
const PATIENCE: u32 = 3;

/// What CPUs without time left are idle at most, and what those that have are
/// idle at least.
const NO_TIME: f64 = 0.1;
const TIME: f64 = 0.3;

/// How busy a lane is at least that should be rid of pods' protocol stacks.
const LANE_HAS_NONE: f64 = 0.97;

/// A direction, seen from the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// What the pod sends.
    In,
    /// What it receives.
    Out,
}

/// Steering to put on or take off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub port: PortId,
    /// Which way.
    pub way: Way,
    /// Whether it is to be on.
    pub is_on: bool,
}

/// A way whose steering is off, and how often it was quiet in a row.
type Unsteered = HashMap<(PortId, Way), u32>;

/// What was seen and done so far.
#[derive(Debug, Default)]
pub struct Balance {
    last: HashMap<PortId, PortStats>,
    last_busy_nanos: Vec<u64>,
    unsteered: Unsteered,
}

/// Packets a second one way, and their mean length in bytes.
#[derive(Debug, Clone, Copy)]
struct Rate {
    packets: f64,
    length: f64,
}

impl Rate {
    fn of((packets, bytes): (u64, u64), span: Duration) -> Rate {
        Rate {
            packets: packets as f64 / span.as_secs_f64(),
            length: bytes as f64 / packets.max(1) as f64,
        }
    }

    fn is_flood(self, from: f64) -> bool {
        self.packets >= from && self.length <= SHORT
    }
}

impl Balance {
    /// What to change after `traffic`, `span` after the last look. `idle`
    /// tells which share of the time the CPUs that work is steered to were
    /// idle; it is asked only if that matters.
    pub fn look(
        &mut self,
        traffic: Traffic,
        span: Duration,
        idle: impl Fn() -> Option<f64>,
    ) -> Vec<Change> {
        let busy = self.lane_share(&traffic.busy_nanos, span);
        let mut changes = Vec::new();
        let mut seen = HashMap::with_capacity(traffic.ports.len());
        for (port, stats) in traffic.ports {
            seen.insert(port, stats);
            let Some(last) = self.last.get(&port) else {
                continue;
            };
            let packets = |now: u64, then: u64| now.saturating_sub(then);
            let rate_in = Rate::of(
                (
                    packets(stats.rx_packets, last.rx_packets),
                    packets(stats.rx_bytes, last.rx_bytes),
                ),
                span,
            );
            let rate_out = Rate::of(
                (
                    packets(stats.tx_packets, last.tx_packets),
                    packets(stats.tx_bytes, last.tx_bytes),
                ),
                span,
            );
            for (way, rate, flood) in [
                (Way::In, rate_in, FLOOD_IN),
                (Way::Out, rate_out, FLOOD_OUT),
            ] {
                let is_on = !self.unsteered.contains_key(&(port, way));
                let wanted = match is_on {
                    true => !(rate.is_flood(flood) && (way == Way::In || overloads_others(&idle))),
                    false => {
                        self.is_over((port, way), rate, flood)
                            || way == Way::Out && overloads_lane(busy, &idle)
                    }
                };
                if wanted != is_on {
                    match wanted {
                        true => self.unsteered.remove(&(port, way)),
                        false => self.unsteered.insert((port, way), 0),
                    };
                    changes.push(Change {
                        port,
                        way,
                        is_on: wanted,
                    });
                }
            }
        }
        // Numbers of ports that are gone begin again, steered.
        self.unsteered
            .retain(|(port, _), _| seen.contains_key(port));
        self.last = seen;
        changes
    }

    /// Share of the time that the lanes had packets in hand.
    fn lane_share(&mut self, busy_nanos: &[u64], span: Duration) -> f64 {
        let before = std::mem::replace(&mut self.last_busy_nanos, busy_nanos.to_vec());
        let spent: u64 = busy_nanos
            .iter()
            .zip(before)
            .map(|(now, then)| now.saturating_sub(then))
            .sum();
        spent as f64 / (span.as_nanos() as f64 * busy_nanos.len().max(1) as f64)
    }

    /// Whether an unsteered way has been quiet for long enough.
    fn is_over(&mut self, way: (PortId, Way), rate: Rate, flood: f64) -> bool {
        let Some(quiet) = self.unsteered.get_mut(&way) else {
            return false;
        };
        *quiet = match rate.is_flood(flood * EBB) {
            true => 0,
            false => *quiet + 1,
        };
        *quiet >= PATIENCE
    }
}

fn overloads_others(idle: &impl Fn() -> Option<f64>) -> bool {
    idle().is_some_and(|idle| idle < NO_TIME)
}

fn overloads_lane(busy: f64, idle: &impl Fn() -> Option<f64>) -> bool {
    busy > LANE_HAS_NONE && idle().is_some_and(|idle| idle > TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_millis(100);
    const PORT: PortId = PortId(3);

    /// A switch with one lane and one port, looked at every 100 ms.
    struct Seen {
        balance: Balance,
        stats: PortStats,
        busy_nanos: u64,
    }

    impl Seen {
        fn new() -> Seen {
            let mut seen = Seen {
                balance: Balance::default(),
                stats: PortStats::default(),
                busy_nanos: 0,
            };
            assert_eq!(seen.after((0, 0), (0, 0), 0.0, None), []);
            seen
        }

        /// The changes after so many packets of so many bytes came and went in
        /// one span, with the lane busy and the other CPUs idle for that share
        /// of it.
        fn after(
            &mut self,
            (rx, rx_len): (u64, u64),
            (tx, tx_len): (u64, u64),
            busy: f64,
            idle: Option<f64>,
        ) -> Vec<(Way, bool)> {
            self.stats.rx_packets += rx;
            self.stats.rx_bytes += rx * rx_len;
            self.stats.tx_packets += tx;
            self.stats.tx_bytes += tx * tx_len;
            self.busy_nanos += (busy * SPAN.as_nanos() as f64) as u64;
            let traffic = Traffic {
                ports: vec![(PORT, self.stats)],
                busy_nanos: vec![self.busy_nanos],
            };
            let changes = self.balance.look(traffic, SPAN, || idle);
            changes.into_iter().map(|c| (c.way, c.is_on)).collect()
        }
    }

    #[test]
    fn a_flood_of_short_packets_is_not_steered_on_its_way_in() {
        let mut seen = Seen::new();
        assert_eq!(
            seen.after((80_000, 64), (0, 0), 0.9, None),
            [(Way::In, false)]
        );
        assert_eq!(seen.after((80_000, 64), (0, 0), 0.9, None), []);
        // A lull is no end.
        assert_eq!(seen.after((0, 0), (0, 0), 0.0, None), []);
        assert_eq!(seen.after((80_000, 64), (0, 0), 0.9, None), []);
        for _ in 0..PATIENCE - 1 {
            assert_eq!(seen.after((100, 64), (0, 0), 0.0, None), []);
        }
        assert_eq!(seen.after((100, 64), (0, 0), 0.0, None), [(Way::In, true)]);
    }

    #[test]
    fn conversations_and_bulk_tcp_are_steered() {
        let mut seen = Seen::new();
        for _ in 0..10 {
            assert_eq!(seen.after((7_000, 66), (7_000, 66), 0.5, Some(0.0)), []);
            // Super-frames one way, acknowledgements the other.
            assert_eq!(
                seen.after((2_000, 200_000), (9_000, 66), 1.0, Some(0.3)),
                []
            );
            // A flood that long packets are part of.
            assert_eq!(seen.after((40_000, 9_000), (0, 0), 1.0, Some(0.0)), []);
        }
    }

    #[test]
    fn a_flood_to_a_pod_leaves_cpus_without_time() {
        let flood = (50_000, 64);
        let mut seen = Seen::new();
        assert_eq!(seen.after((0, 0), flood, 0.6, Some(0.5)), []);
        assert_eq!(seen.after((0, 0), flood, 0.6, None), [], "it is not known");
        assert_eq!(
            seen.after((0, 0), flood, 0.6, Some(0.02)),
            [(Way::Out, false)]
        );
        assert_eq!(seen.after((0, 0), flood, 1.0, Some(0.02)), []);
        assert_eq!(
            seen.after((0, 0), flood, 1.0, Some(0.6)),
            [(Way::Out, true)]
        );
    }

    #[test]
    fn a_new_port_under_an_old_number_begins_steered() {
        let mut seen = Seen::new();
        assert_eq!(
            seen.after((80_000, 64), (0, 0), 0.9, None),
            [(Way::In, false)]
        );
        let nothing = Traffic::default();
        assert_eq!(seen.balance.look(nothing, SPAN, || None), []);
        seen.stats = PortStats::default();
        assert_eq!(seen.after((0, 0), (0, 0), 0.0, None), []);
        assert_eq!(
            seen.after((80_000, 64), (0, 0), 0.9, None),
            [(Way::In, false)]
        );
    }
}
