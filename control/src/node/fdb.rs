//! Stations of the segments: which MAC address is behind which port.
//!
//! Lanes report stations that are new, moved or due for a refresh; entries
//! age out; configuration sets static ones, which neither age nor move. Pure:
//! time is an argument, in seconds of any monotonic clock.

use std::collections::HashMap;

use spinlane_dataplane::types::{MacAddr, PortId, SegmentId};

/// Seconds after which a silent station is forgotten (IEEE 802.1Q's default).
pub const AGEING_S: f64 = 300.0;
/// Stations that one port may hold, so that a pod that invents addresses
/// fills its own share only.
pub const PORT_LIMIT: usize = 1024;

/// A known station.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Station {
    /// Where it is.
    pub port: PortId,
    /// When it was last heard.
    pub seen_s: f64,
    /// Set by configuration.
    pub is_static: bool,
}

/// All stations.
#[derive(Debug, Default)]
pub struct Fdb {
    stations: HashMap<(SegmentId, MacAddr), Station>,
    /// Stations behind each port.
    held: HashMap<PortId, usize>,
}

impl Fdb {
    /// A station sent from `port`. Returns whether forwarding changes.
    pub fn learn(&mut self, segment: SegmentId, mac: MacAddr, port: PortId, now_s: f64) -> bool {
        if !mac.is_unicast() {
            return false;
        }
        let known = self.stations.get(&(segment, mac)).copied();
        match known {
            Some(station) if station.is_static => return false,
            Some(station) if station.port == port => {}
            _ if self.held_by(port) >= PORT_LIMIT => return false,
            _ => {}
        }
        self.insert(
            (segment, mac),
            Station {
                port,
                seen_s: now_s,
                is_static: false,
            },
        );
        known.is_none_or(|station| station.port != port)
    }

    /// Sets a static entry. Returns whether forwarding changes.
    pub fn fix(&mut self, segment: SegmentId, mac: MacAddr, port: PortId, now_s: f64) -> bool {
        let station = Station {
            port,
            seen_s: now_s,
            is_static: true,
        };
        let before = self.insert((segment, mac), station);
        before.is_none_or(|b| b.port != port || !b.is_static)
    }

    /// Forgets stations that have been silent too long. Returns whether
    /// forwarding changes.
    pub fn age(&mut self, now_s: f64) -> bool {
        self.retain(|s| s.is_static || now_s - s.seen_s < AGEING_S)
    }

    /// Forgets everything behind a port.
    pub fn remove_port(&mut self, port: PortId) -> bool {
        self.retain(|s| s.port != port)
    }

    /// Every station.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentId, MacAddr, Station)> + '_ {
        self.stations
            .iter()
            .map(|((segment, mac), station)| (*segment, *mac, *station))
    }

    fn held_by(&self, port: PortId) -> usize {
        self.held.get(&port).copied().unwrap_or(0)
    }

    fn insert(&mut self, key: (SegmentId, MacAddr), station: Station) -> Option<Station> {
        let before = self.stations.insert(key, station);
        *self.held.entry(station.port).or_default() += 1;
        if let Some(before) = before {
            let_go(&mut self.held, before.port);
        }
        before
    }

    /// Returns whether anything was forgotten.
    fn retain(&mut self, keep: impl Fn(&Station) -> bool) -> bool {
        let before = self.stations.len();
        let held = &mut self.held;
        self.stations.retain(|_, station| {
            let stays = keep(station);
            if !stays {
                let_go(held, station.port);
            }
            stays
        });
        self.stations.len() != before
    }
}

fn let_go(held: &mut HashMap<PortId, usize>, port: PortId) {
    if let Some(count) = held.get_mut(&port) {
        *count -= 1;
        if *count == 0 {
            held.remove(&port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLUE: SegmentId = SegmentId(0);
    const RED: SegmentId = SegmentId(1);
    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn find(fdb: &Fdb, segment: SegmentId, mac: MacAddr) -> Option<PortId> {
        fdb.iter()
            .find(|(s, m, _)| (*s, *m) == (segment, mac))
            .map(|(_, _, station)| station.port)
    }

    #[test]
    fn learns_moves_and_ages() {
        let mut fdb = Fdb::default();
        assert!(fdb.learn(BLUE, A, PortId(1), 0.0));
        assert!(!fdb.learn(BLUE, A, PortId(1), 200.0), "a refresh only");
        assert!(!fdb.age(400.0), "refreshed 200 s ago");
        assert!(fdb.learn(BLUE, A, PortId(2), 401.0), "moved");
        assert_eq!(find(&fdb, BLUE, A), Some(PortId(2)));
        assert!(fdb.age(701.0));
        assert_eq!(find(&fdb, BLUE, A), None);
    }

    #[test]
    fn segments_are_apart() {
        let mut fdb = Fdb::default();
        fdb.learn(BLUE, A, PortId(1), 0.0);
        fdb.learn(RED, A, PortId(2), 0.0);
        assert_eq!(find(&fdb, BLUE, A), Some(PortId(1)));
        assert_eq!(find(&fdb, RED, A), Some(PortId(2)));
    }

    #[test]
    fn static_entries_stay() {
        let mut fdb = Fdb::default();
        assert!(fdb.fix(BLUE, A, PortId(1), 0.0));
        assert!(!fdb.fix(BLUE, A, PortId(1), 1.0));
        assert!(!fdb.learn(BLUE, A, PortId(2), 1.0));
        assert!(!fdb.age(1e9));
        assert_eq!(find(&fdb, BLUE, A), Some(PortId(1)));
        assert!(fdb.remove_port(PortId(1)));
        assert_eq!(fdb.iter().count(), 0);
    }

    #[test]
    fn group_addresses_are_no_stations() {
        let mut fdb = Fdb::default();
        assert!(!fdb.learn(BLUE, MacAddr::BROADCAST, PortId(1), 0.0));
        assert!(!fdb.learn(BLUE, MacAddr::ZERO, PortId(1), 0.0));
    }

    #[test]
    fn a_flooding_port_fills_its_share_only() {
        let mut fdb = Fdb::default();
        fdb.learn(BLUE, B, PortId(2), 0.0);
        for n in 0..2 * PORT_LIMIT as u32 {
            let [a, b, c, d] = n.to_be_bytes();
            fdb.learn(BLUE, MacAddr([6, 0, a, b, c, d]), PortId(1), 0.0);
        }
        assert_eq!(fdb.iter().count(), PORT_LIMIT + 1);
        assert_eq!(find(&fdb, BLUE, B), Some(PortId(2)));
        fdb.age(AGEING_S);
        assert!(fdb.learn(BLUE, A, PortId(1), AGEING_S), "room again");
        assert_eq!(fdb.held.len(), 1);
    }
}
