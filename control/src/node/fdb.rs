//! Stations of the segments: which MAC address is behind which port of this
//! node or behind which remote end of the overlay.
//!
//! Lanes report stations that are new, moved or due for a refresh; entries
//! age out; configuration sets static ones, which neither age nor move. A
//! station that moves to and fro (two hosts with one address, or a loop) is
//! held where it is for a while, and what it sends from elsewhere dropped. Pure:
//! time is an argument, in seconds of any monotonic clock.

use std::collections::HashMap;

use spinlane_dataplane::snapshot::Location;
use spinlane_dataplane::types::{MacAddr, SegmentId, VtepId};

/// Seconds after which a silent station is forgotten (IEEE 802.1Q's default).
pub const AGEING_S: f64 = 300.0;
/// Stations that one port may hold, so that a pod that invents addresses
/// fills its own share only.
pub const PORT_LIMIT: usize = 1024;
/// The same for the uplink, which leads to a whole network.
pub const WIDE_LIMIT: usize = 16_384;

/// A station that moves so often within so many seconds is held, for so long.
pub const MOVES_LIMIT: u32 = 5;
const MOVES_WINDOW_S: f64 = 10.0;
const HOLD_S: f64 = 60.0;

/// A known station.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Station {
    /// Behind which port of this node, or which remote end.
    pub at: Location,
    /// When it was last heard.
    pub seen_s: f64,
    /// Set by configuration.
    pub is_static: bool,
    /// It moved too often.
    pub is_held: bool,
}

/// How often a station moved lately.
#[derive(Debug, Clone, Copy)]
struct Moves {
    count: u32,
    since_s: f64,
}

/// All stations.
#[derive(Debug, Default)]
pub struct Fdb {
    stations: HashMap<(SegmentId, MacAddr), Station>,
    /// Stations behind each of them.
    held: HashMap<Location, usize>,
    /// Stations that moved lately.
    moves: HashMap<(SegmentId, MacAddr), Moves>,
    /// The port that leads to a whole network.
    wide: Option<Location>,
}

impl Fdb {
    /// A station sent from there. Returns whether forwarding changes.
    pub fn learn(&mut self, segment: SegmentId, mac: MacAddr, at: Location, now_s: f64) -> bool {
        if !mac.is_unicast() {
            return false;
        }
        let known = self.stations.get(&(segment, mac)).copied();
        match known {
            Some(station) if station.at == at => {
                self.refresh((segment, mac), now_s);
                return false;
            }
            Some(station) if station.is_held => return false,
            Some(station) if station.is_static && !self.moves_too_often((segment, mac), now_s) => {
                return false;
            }
            Some(station) if station.is_static || self.moves_too_often((segment, mac), now_s) => {
                let held = Station {
                    is_held: true,
                    seen_s: now_s,
                    ..station
                };
                self.insert((segment, mac), held);
                return true;
            }
            _ if self.held_by(at) >= self.limit_of(at) => return false,
            _ => {}
        }
        self.insert(
            (segment, mac),
            Station {
                at,
                seen_s: now_s,
                is_static: false,
                is_held: false,
            },
        );
        true
    }

    /// Lets more stations be behind a port that leads to a whole network.
    pub fn set_wide(&mut self, at: Option<Location>) {
        self.wide = at;
    }

    fn limit_of(&self, at: Location) -> usize {
        match self.wide == Some(at) {
            true => WIDE_LIMIT,
            false => PORT_LIMIT,
        }
    }

    /// Where a station is.
    pub fn place(&self, segment: SegmentId, mac: MacAddr) -> Option<Location> {
        Some(self.stations.get(&(segment, mac))?.at)
    }

    fn refresh(&mut self, key: (SegmentId, MacAddr), now_s: f64) {
        if let Some(station) = self.stations.get_mut(&key) {
            station.seen_s = now_s;
        }
    }

    /// Counts a move, and says whether it is one too many.
    fn moves_too_often(&mut self, key: (SegmentId, MacAddr), now_s: f64) -> bool {
        let none = Moves {
            count: 0,
            since_s: now_s,
        };
        let moves = self.moves.entry(key).or_insert(none);
        if now_s - moves.since_s > MOVES_WINDOW_S {
            *moves = none;
        }
        moves.count += 1;
        moves.count > MOVES_LIMIT
    }

    /// Whether a station is held.
    pub fn is_held(&self, segment: SegmentId, mac: MacAddr) -> bool {
        self.stations
            .get(&(segment, mac))
            .is_some_and(|station| station.is_held)
    }

    /// Sets a static entry. Returns whether forwarding changes.
    pub fn fix(&mut self, segment: SegmentId, mac: MacAddr, at: Location, now_s: f64) -> bool {
        let station = Station {
            at,
            seen_s: now_s,
            is_static: true,
            is_held: false,
        };
        let before = self.insert((segment, mac), station);
        before.is_none_or(|b| b.at != at || !b.is_static)
    }

    /// Forgets stations that have been silent too long. Returns whether
    /// forwarding changes.
    pub fn age(&mut self, now_s: f64) -> bool {
        let mut let_go = false;
        self.moves.retain(|key, moves| {
            let age_s = now_s - moves.since_s;
            let station = self.stations.get_mut(key);
            match station.filter(|station| station.is_held) {
                Some(station) if age_s > HOLD_S => {
                    station.is_held = false;
                    let_go = true;
                    false
                }
                Some(_) => true,
                None => age_s <= MOVES_WINDOW_S,
            }
        });
        let_go | self.retain(|s| s.is_static || now_s - s.seen_s < AGEING_S)
    }

    /// Forgets everything behind a port or a remote end.
    pub fn remove(&mut self, at: Location) -> bool {
        self.retain(|s| s.at != at)
    }

    /// Forgets what is behind remote ends that are gone.
    pub fn retain_remote(&mut self, exists: impl Fn(VtepId) -> bool) -> bool {
        self.retain(|s| match s.at {
            Location::Vtep(id) => exists(id),
            Location::Port(_) => true,
        })
    }

    /// Every station.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentId, MacAddr, Station)> + '_ {
        self.stations
            .iter()
            .map(|((segment, mac), station)| (*segment, *mac, *station))
    }

    fn held_by(&self, at: Location) -> usize {
        self.held.get(&at).copied().unwrap_or(0)
    }

    fn insert(&mut self, key: (SegmentId, MacAddr), station: Station) -> Option<Station> {
        let before = self.stations.insert(key, station);
        *self.held.entry(station.at).or_default() += 1;
        if let Some(before) = before {
            let_go(&mut self.held, before.at);
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
                let_go(held, station.at);
            }
            stays
        });
        self.stations.len() != before
    }
}

fn let_go(held: &mut HashMap<Location, usize>, at: Location) {
    if let Some(count) = held.get_mut(&at) {
        *count -= 1;
        if *count == 0 {
            held.remove(&at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spinlane_dataplane::types::PortId;

    const ONE: Location = Location::Port(PortId(1));
    const TWO: Location = Location::Vtep(VtepId(2));
    const BLUE: SegmentId = SegmentId(0);
    const RED: SegmentId = SegmentId(1);
    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn find(fdb: &Fdb, segment: SegmentId, mac: MacAddr) -> Option<Location> {
        fdb.iter()
            .find(|(s, m, _)| (*s, *m) == (segment, mac))
            .map(|(_, _, station)| station.at)
    }

    #[test]
    fn learns_moves_and_ages() {
        let mut fdb = Fdb::default();
        assert!(fdb.learn(BLUE, A, ONE, 0.0));
        assert!(!fdb.learn(BLUE, A, ONE, 200.0), "a refresh only");
        assert!(!fdb.age(400.0), "refreshed 200 s ago");
        assert!(fdb.learn(BLUE, A, TWO, 401.0), "moved");
        assert_eq!(find(&fdb, BLUE, A), Some(TWO));
        assert!(fdb.age(701.0));
        assert_eq!(find(&fdb, BLUE, A), None);
    }

    #[test]
    fn a_remote_end_that_goes_takes_its_stations() {
        let mut fdb = Fdb::default();
        fdb.learn(BLUE, A, ONE, 0.0);
        fdb.learn(BLUE, B, TWO, 0.0);
        assert!(!fdb.retain_remote(|id| id == VtepId(2)));
        assert!(fdb.retain_remote(|_| false));
        assert_eq!(find(&fdb, BLUE, B), None);
        assert_eq!(find(&fdb, BLUE, A), Some(ONE));
    }

    #[test]
    fn a_station_that_moves_to_and_fro_is_held() {
        let mut fdb = Fdb::default();
        fdb.learn(BLUE, A, ONE, 0.0);
        for turn in 0..MOVES_LIMIT {
            let at = if turn % 2 == 0 { TWO } else { ONE };
            assert!(fdb.learn(BLUE, A, at, 1.0), "move {turn}");
        }
        assert_eq!(find(&fdb, BLUE, A), Some(TWO));
        assert!(fdb.learn(BLUE, A, ONE, 2.0), "one too many: held");
        assert!(fdb.is_held(BLUE, A));
        assert!(!fdb.learn(BLUE, A, ONE, 3.0));
        assert_eq!(find(&fdb, BLUE, A), Some(TWO));
        assert!(!fdb.age(1.0 + HOLD_S));
        assert!(fdb.age(1.5 + HOLD_S), "let go");
        assert!(fdb.learn(BLUE, A, ONE, 63.0));
        assert!(fdb.moves.len() == 1 && !fdb.is_held(BLUE, A));
        // Slow moves are no fault.
        for turn in 0..20 {
            let at = if turn % 2 == 0 { TWO } else { ONE };
            assert!(fdb.learn(BLUE, A, at, 100.0 + 5.0 * f64::from(turn)));
        }
    }

    #[test]
    fn a_static_station_that_is_seen_elsewhere_is_told_of_and_stays() {
        let mut fdb = Fdb::default();
        fdb.fix(BLUE, A, ONE, 0.0);
        for second in 1..=MOVES_LIMIT {
            assert!(!fdb.learn(BLUE, A, TWO, f64::from(second)));
        }
        assert!(fdb.learn(BLUE, A, TWO, 6.0), "one too many: told");
        assert!(fdb.is_held(BLUE, A));
        assert_eq!(find(&fdb, BLUE, A), Some(ONE));
        assert!(!fdb.learn(BLUE, A, TWO, 7.0));
        assert!(fdb.age(2.0 + HOLD_S), "let go");
        let (_, _, station) = fdb.iter().next().unwrap();
        assert!(station.is_static && !station.is_held);
        assert_eq!(station.at, ONE);
    }

    #[test]
    fn segments_are_apart() {
        let mut fdb = Fdb::default();
        fdb.learn(BLUE, A, ONE, 0.0);
        fdb.learn(RED, A, TWO, 0.0);
        assert_eq!(find(&fdb, BLUE, A), Some(ONE));
        assert_eq!(find(&fdb, RED, A), Some(TWO));
    }

    #[test]
    fn static_entries_stay() {
        let mut fdb = Fdb::default();
        assert!(fdb.fix(BLUE, A, ONE, 0.0));
        assert!(!fdb.fix(BLUE, A, ONE, 1.0));
        assert!(!fdb.learn(BLUE, A, TWO, 1.0));
        assert!(!fdb.age(1e9));
        assert_eq!(find(&fdb, BLUE, A), Some(ONE));
        assert!(fdb.remove(ONE));
        assert_eq!(fdb.iter().count(), 0);
    }

    #[test]
    fn group_addresses_are_no_stations() {
        let mut fdb = Fdb::default();
        assert!(!fdb.learn(BLUE, MacAddr::BROADCAST, ONE, 0.0));
        assert!(!fdb.learn(BLUE, MacAddr::ZERO, ONE, 0.0));
    }

    #[test]
    fn a_flooding_port_fills_its_share_only() {
        let mut fdb = Fdb::default();
        fdb.learn(BLUE, B, TWO, 0.0);
        for n in 0..2 * PORT_LIMIT as u32 {
            let [a, b, c, d] = n.to_be_bytes();
            fdb.learn(BLUE, MacAddr([6, 0, a, b, c, d]), ONE, 0.0);
        }
        assert_eq!(fdb.iter().count(), PORT_LIMIT + 1);
        assert_eq!(find(&fdb, BLUE, B), Some(TWO));
        fdb.age(AGEING_S);
        assert!(fdb.learn(BLUE, A, ONE, AGEING_S), "room again");
        assert_eq!(fdb.held.len(), 1);
    }
}
