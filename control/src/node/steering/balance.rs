//! Which ports' receive work is steered, by what they carry.
//!
//! Steering is what suits conversations and bulk TCP: its packets keep their
//! order whatever CPU their sender runs on, and the receiving pod's protocol
//! stack runs beside the lane. It costs a hash and a queue for each packet.
//! Floods of short packets pay that dearly, so theirs is taken off: on the way
//! in as long as the lane keeps up, on the way out where the CPUs that it goes
//! to have no time left. There bulk TCP's is, too, if the lane has time.

use std::collections::HashMap;
use std::time::Duration;

use spinlane_dataplane::engine::{PortStats, Traffic};
use spinlane_dataplane::types::PortId;

/// Packets a second from which on short ones from a port are a flood: more
/// than conversations and the acknowledgements of bulk TCP make.
const FLOOD_IN: f64 = 250_000.0;

/// The same, to a port.
const FLOOD_OUT: f64 = 100_000.0;

/// Bytes a second to a port from which on its protocol stack is a load worth
/// placing, whatever the packets' length.
const STREAM_OUT: f64 = 50_000_000.0;

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

/// How busy a lane is at most that takes the protocol stack of a pod with bulk
/// TCP on.
const LANE_HAS_TIME: f64 = 0.7;

/// How busy a lane is at least that should be rid of pods' protocol stacks.
const LANE_HAS_NONE: f64 = 0.97;

/// Share of a port's packets that is lost when its lane does not keep up. What
/// then enters faster is lost, too.
const LOSING: f64 = 0.1;

/// Looks after which such a port's flood is tried without steering again: what
/// was in the lane's way may be over. Each time in vain doubles them.
const FIRST_WAIT: u32 = 5;

/// Where doubling ends.
const LONGEST_WAIT: u32 = 320;

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

/// A way that a flood has come by.
#[derive(Debug, Clone, Copy, Default)]
struct Flooded {
    /// How often it was quiet in a row.
    quiet: u32,
    /// Steering was put back before the end.
    is_on: bool,
    /// What the port had lost at the last look.
    lost: u64,
    /// How often in a row it had lost too much.
    losing: u32,
    /// Looks since it was put back because of that, and until the next try.
    waited: u32,
    wait: u32,
}

/// What was seen and done so far.
#[derive(Debug, Default)]
pub struct Balance {
    last: HashMap<PortId, PortStats>,
    last_busy_nanos: Vec<u64>,
    flooded: HashMap<(PortId, Way), Flooded>,
}

/// What a look may ask for, where it matters.
pub struct Asked<Idle, Lost> {
    /// Which share of the time the CPUs that work is steered to were idle.
    pub idle: Idle,
    /// How many packets of a port were lost so far.
    pub lost: Lost,
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

    /// Whether it is worth a look; `share` is how much of that is enough.
    fn counts(self, way: Way, share: f64) -> bool {
        match way {
            Way::In => self.is_flood(FLOOD_IN * share),
            Way::Out => {
                self.is_flood(FLOOD_OUT * share) || self.packets * self.length >= STREAM_OUT * share
            }
        }
    }
}

impl Flooded {
    /// Whether too much of what was received is lost, now and at the last look.
    fn is_losing(&mut self, lost: u64, received: u64) -> bool {
        let more = lost.saturating_sub(std::mem::replace(&mut self.lost, lost));
        self.losing = match more as f64 > LOSING * received as f64 {
            true => self.losing + 1,
            false => 0,
        };
        self.losing > 1
    }

    /// Whether the way in is for steering in spite of the flood.
    fn suits_steering(&mut self, lost: u64, received: u64) -> bool {
        let is_losing = self.is_losing(lost, received);
        if !self.is_on {
            if is_losing {
                self.wait = (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
                self.waited = 0;
            }
            return is_losing;
        }
        self.waited += 1;
        let tries = self.waited >= self.wait;
        if tries {
            self.losing = 0;
        }
        !tries
    }
}

/// Whether the way out of a flood or a stream is for the others' CPUs, where it
/// `was_on` them or not.
fn suits_others(was_on: bool, rate: Rate, busy: f64, idle: &impl Fn() -> Option<f64>) -> bool {
    match was_on {
        true => {
            let could_leave = rate.is_flood(FLOOD_OUT) || busy < LANE_HAS_TIME;
            !(could_leave && idle().is_some_and(|idle| idle < NO_TIME))
        }
        false => busy > LANE_HAS_NONE && idle().is_some_and(|idle| idle > TIME),
    }
}

impl Balance {
    /// What to change after `traffic`, `span` after the last look.
    pub fn look(
        &mut self,
        traffic: Traffic,
        span: Duration,
        asked: &Asked<impl Fn() -> Option<f64>, impl Fn(PortId) -> u64>,
    ) -> Vec<Change> {
        let busy = self.lane_share(&traffic.busy_nanos, span);
        let mut changes = Vec::new();
        let mut seen = HashMap::with_capacity(traffic.ports.len());
        for (port, stats) in traffic.ports {
            seen.insert(port, stats);
            let Some(last) = self.last.get(&port) else {
                continue;
            };
            let since = |now: u64, then: u64| now.saturating_sub(then);
            let received = since(stats.rx_packets, last.rx_packets);
            let bytes_received = since(stats.rx_bytes, last.rx_bytes);
            let sent = since(stats.tx_packets, last.tx_packets);
            let bytes_sent = since(stats.tx_bytes, last.tx_bytes);
            let rate_in = Rate::of((received, bytes_received), span);
            let rate_out = Rate::of((sent, bytes_sent), span);
            for (way, rate) in [(Way::In, rate_in), (Way::Out, rate_out)] {
                let known = self.flooded.get(&(port, way)).copied();
                if known.is_none() && !rate.counts(way, 1.0) {
                    continue;
                }
                let was_on = known.is_none_or(|flooded| flooded.is_on);
                let mut flooded = known.unwrap_or(Flooded {
                    lost: (asked.lost)(port),
                    ..Flooded::default()
                });
                flooded.quiet = match rate.counts(way, EBB) {
                    true => 0,
                    false => flooded.quiet + 1,
                };
                let is_over = flooded.quiet >= PATIENCE;
                flooded.is_on = is_over
                    || match way {
                        Way::In => flooded.suits_steering((asked.lost)(port), received),
                        Way::Out => suits_others(was_on, rate, busy, &asked.idle),
                    };
                match is_over {
                    true => self.flooded.remove(&(port, way)),
                    false => self.flooded.insert((port, way), flooded),
                };
                if flooded.is_on != was_on {
                    changes.push(Change {
                        port,
                        way,
                        is_on: flooded.is_on,
                    });
                }
            }
        }
        // Numbers of ports that are gone begin again, steered.
        self.flooded.retain(|(port, _), _| seen.contains_key(port));
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
        lost: u64,
    }

    impl Seen {
        fn new() -> Seen {
            let mut seen = Seen {
                balance: Balance::default(),
                stats: PortStats::default(),
                busy_nanos: 0,
                lost: 0,
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
            let lost = self.lost;
            let asked = Asked {
                idle: || idle,
                lost: |_| lost,
            };
            let changes = self.balance.look(traffic, SPAN, &asked);
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
    fn a_flood_that_the_lane_does_not_keep_up_with_is_steered() {
        let (mut seen, flood) = (Seen::new(), (80_000, 64));
        assert_eq!(seen.after(flood, (0, 0), 1.0, None), [(Way::In, false)]);
        seen.lost += 5_000;
        assert_eq!(seen.after(flood, (0, 0), 1.0, None), []);
        for change in [None, Some((Way::In, true))] {
            seen.lost += 9_000;
            assert_eq!(seen.after(flood, (0, 0), 1.0, None), Vec::from_iter(change));
        }
        // To and fro would help nobody.
        assert_eq!(seen.after(flood, (0, 0), 1.0, None), []);
        for _ in 0..PATIENCE {
            assert_eq!(seen.after((0, 0), (0, 0), 0.0, None), []);
        }
        // The next one is looked at anew.
        assert_eq!(seen.after(flood, (0, 0), 1.0, None), [(Way::In, false)]);
    }

    #[test]
    fn a_flood_is_tried_without_steering_again_and_again_later() {
        let (mut seen, flood) = (Seen::new(), (80_000, 64));
        let (mut turns, mut look) = (Vec::new(), 0);
        while turns.len() < 7 {
            seen.lost += 9_000;
            let changes = seen.after(flood, (0, 0), 1.0, None);
            turns.extend(changes.iter().map(|&(_, is_on)| (look, is_on)));
            look += 1;
        }
        let of = |on| {
            turns
                .iter()
                .filter(move |turn| turn.1 == on)
                .map(|turn| turn.0)
        };
        let steered: Vec<u32> = of(true)
            .zip(of(false).skip(1))
            .map(|(on, off)| off - on)
            .collect();
        assert_eq!(steered, [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]);
        // Whatever was in the lane's way is over.
        for _ in 0..2 * LONGEST_WAIT {
            seen.after(flood, (0, 0), 0.9, None);
        }
        assert_eq!(seen.after(flood, (0, 0), 0.9, None), []);
        assert!(seen.balance.flooded.values().all(|flooded| !flooded.is_on));
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
    fn bulk_tcp_to_a_pod_goes_where_time_is_left() {
        let bulk = (2_000, 60_000);
        let mut seen = Seen::new();
        assert_eq!(seen.after((0, 0), bulk, 0.95, Some(0.0)), [], "nobody has");
        assert_eq!(seen.after((0, 0), bulk, 0.5, Some(0.4)), []);
        assert_eq!(
            seen.after((0, 0), bulk, 0.5, Some(0.0)),
            [(Way::Out, false)]
        );
        assert_eq!(seen.after((0, 0), bulk, 0.9, Some(0.0)), []);
        for _ in 0..PATIENCE - 1 {
            assert_eq!(seen.after((0, 0), (10, 60_000), 0.1, Some(0.9)), []);
        }
        let end = seen.after((0, 0), (10, 60_000), 0.1, Some(0.9));
        assert_eq!(end, [(Way::Out, true)]);
    }

    #[test]
    fn a_new_port_under_an_old_number_begins_steered() {
        let mut seen = Seen::new();
        assert_eq!(
            seen.after((80_000, 64), (0, 0), 0.9, None),
            [(Way::In, false)]
        );
        let nothing = Traffic::default();
        let asked = Asked {
            idle: || None,
            lost: |_| 0,
        };
        assert_eq!(seen.balance.look(nothing, SPAN, &asked), []);
        seen.stats = PortStats::default();
        assert_eq!(seen.after((0, 0), (0, 0), 0.0, None), []);
        assert_eq!(
            seen.after((80_000, 64), (0, 0), 0.9, None),
            [(Way::In, false)]
        );
    }
}
