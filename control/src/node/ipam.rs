//! Which addresses pods get.
//!
//! A scope is the routed network or one segment; each has its own ranges.
//! Addresses are given in rotating order and a released one rests for
//! [`QUARANTINE_S`], so that nobody's stale packets, caches or policies meet
//! its next holder; when all that are free still rest, the one that rested
//! longest is given, because a pod without an address is worse. Network address, first address (the gateway's) and IPv4
//! broadcast are never given. Pure: time is an argument, in Unix seconds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// How long a released address rests, in seconds, while others are free.
pub const QUARANTINE_S: u64 = 60;

/// The routed network (`None`) or a segment.
pub type ScopeName = Option<String>;

/// Why no address was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address of every range of one family is held.
    #[error(
        "no address is free in {pool}: {held} held; delete pods or give the node a larger range"
    )]
    Exhausted {
        /// The ranges that were tried.
        pool: String,
        /// Addresses held.
        held: usize,
    },
    /// Somebody has it.
    #[error("address {0} is in use: ask for another or delete the pod that holds it")]
    InUse(IpAddr),
    /// Not ours to give.
    #[error("address {address} is in none of the ranges {ranges}: ask for one inside")]
    Outside {
        /// The address.
        address: IpAddr,
        /// The scope's ranges.
        ranges: String,
    },
    /// Another station of the network has it.
    #[error("address {0} belongs to another station of the uplink's network: ask for another")]
    Taken(IpAddr),
    /// Network, gateway or broadcast address.
    #[error("address {0} is its range's network, gateway or broadcast address: ask for another")]
    Reserved(IpAddr),
    /// The scope has no ranges at all.
    #[error(
        "{0} has no address ranges: configure some, give the network an `ipam` section, or ask for addresses"
    )]
    NoRanges(String),
}

/// An address with the range that it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// Its range.
    pub range: IpNet,
}

#[derive(Debug)]
struct Range {
    net: IpNet,
    /// First and last address that may be given; empty when first > last.
    first: u128,
    last: u128,
    /// The address given last.
    cursor: u128,
}

#[derive(Debug, Default)]
struct Scope {
    ranges: Vec<Range>,
    held: HashSet<IpAddr>,
    /// When each was released.
    resting: HashMap<IpAddr, u64>,
    /// Given last, of ranges that are not there yet.
    early: Vec<IpAddr>,
    /// Addresses that others have.
    taken: HashSet<IpAddr>,
    /// Addresses that were seen in use.
    seen: HashSet<IpAddr>,
}

/// All scopes.
#[derive(Debug, Default)]
pub struct Ipam {
    scopes: BTreeMap<ScopeName, Scope>,
}

impl Ipam {
    /// Scopes with their ranges.
    pub fn new(scopes: impl IntoIterator<Item = (ScopeName, Vec<IpNet>)>) -> Ipam {
        let mut ipam = Ipam::default();
        for (name, ranges) in scopes {
            let scope = ipam.scopes.entry(name).or_default();
            scope.ranges = ranges.into_iter().map(Range::new).collect();
        }
        ipam
    }

    /// Gives a scope other ranges. What is held or rests stays so; a range
    /// that stays goes on where it stood.
    pub fn set_ranges(&mut self, scope: &ScopeName, ranges: &[IpNet]) {
        let scope = self.scopes.entry(scope.clone()).or_default();
        let mut before = std::mem::take(&mut scope.ranges);
        for net in ranges {
            let known = before.iter().position(|range| range.net == net.trunc());
            let mut range = match known {
                Some(at) => before.swap_remove(at),
                None => Range::new(*net),
            };
            if known.is_none()
                && let Some(at) = scope.early.iter().find(|at| net.contains(*at))
            {
                range.go_on_after(*at);
            }
            scope.ranges.push(range);
        }
    }

    /// One address of each family that the scope has ranges for. Nothing is
    /// held when one family fails.
    pub fn allocate(&mut self, scope: &ScopeName, now_s: u64) -> Result<Vec<Lease>, IpamError> {
        self.allocate_families(scope, &[false, true], now_s)
    }

    /// As [`allocate`](Ipam::allocate), for some families only (`true` is
    /// IPv6).
    pub fn allocate_families(
        &mut self,
        scope: &ScopeName,
        families: &[bool],
        now_s: u64,
    ) -> Result<Vec<Lease>, IpamError> {
        let scope = self.ranged(scope)?;
        scope.rest(now_s);
        let mut leases = Vec::new();
        for &v6 in families {
            if scope.ranges.iter().any(|r| is_v6(&r.net) == v6) {
                match scope.next(v6) {
                    Ok(lease) => leases.push(lease),
                    Err(error) => {
                        for lease in &leases {
                            scope.held.remove(&lease.address);
                        }
                        return Err(error);
                    }
                }
            }
        }
        Ok(leases)
    }

    /// A scope that has ranges.
    fn ranged(&mut self, scope: &ScopeName) -> Result<&mut Scope, IpamError> {
        let found = self.scopes.get_mut(scope);
        found
            .filter(|found| !found.ranges.is_empty())
            .ok_or_else(|| IpamError::NoRanges(describe(scope)))
    }

    /// A certain address. It may rest: who asks by name means it.
    pub fn request(&mut self, scope: &ScopeName, address: IpAddr) -> Result<Lease, IpamError> {
        let scope = self.ranged(scope)?;
        let Some(range) = scope.ranges.iter().find(|r| r.net.contains(&address)) else {
            return Err(IpamError::Outside {
                address,
                ranges: list(scope.ranges.iter()),
            });
        };
        if !(range.first..=range.last).contains(&number(address)) {
            return Err(IpamError::Reserved(address));
        }
        let range = range.net;
        if scope.held.contains(&address) {
            return Err(IpamError::InUse(address));
        }
        if scope.taken.contains(&address) {
            return Err(IpamError::Taken(address));
        }
        scope.held.insert(address);
        scope.resting.remove(&address);
        Ok(Lease { address, range })
    }

    /// Says which addresses others have on the scope's network, which nobody
    /// gets, and which were seen there, which nobody gets who does not ask.
    pub fn set_others(&mut self, scope: &ScopeName, taken: HashSet<IpAddr>, seen: HashSet<IpAddr>) {
        if let Some(scope) = self.scopes.get_mut(scope) {
            scope.taken = taken;
            scope.seen = seen;
        }
    }

    /// Holds an address that somebody else chose (a delegated plugin, the
    /// store), wherever it lies.
    pub fn hold(&mut self, scope: &ScopeName, address: IpAddr) -> Result<(), IpamError> {
        let scope = self.scopes.entry(scope.clone()).or_default();
        if !scope.held.insert(address) {
            return Err(IpamError::InUse(address));
        }
        scope.resting.remove(&address);
        Ok(())
    }

    /// Gives an address back; from now on it rests.
    pub fn release(&mut self, scope: &ScopeName, address: IpAddr, now_s: u64) {
        if let Some(scope) = self.scopes.get_mut(scope)
            && scope.held.remove(&address)
        {
            scope.resting.insert(address, now_s);
        }
    }

    /// Restores a rest that began before the agent started.
    pub fn restore_rest(&mut self, scope: &ScopeName, address: IpAddr, released_s: u64) {
        if let Some(scope) = self.scopes.get_mut(scope)
            && !scope.held.contains(&address)
        {
            scope.resting.insert(address, released_s);
        }
    }

    /// Restores where a rotation stood: `address` was given last.
    pub fn restore_cursor(&mut self, scope: &ScopeName, address: IpAddr) {
        let Some(scope) = self.scopes.get_mut(scope) else {
            return;
        };
        let mut ranges = scope.ranges.iter_mut();
        match ranges.find(|range| range.net.contains(&address)) {
            Some(range) => range.go_on_after(address),
            None => scope.early.push(address),
        }
    }

    /// Whether [`allocate`](Ipam::allocate) would succeed.
    pub fn available(&mut self, scope: &ScopeName, now_s: u64) -> Result<(), IpamError> {
        let before = self.scopes.get(scope).map(|scope| {
            let cursors: Vec<u128> = scope.ranges.iter().map(|range| range.cursor).collect();
            (cursors, scope.resting.clone())
        });
        let leases = self.allocate(scope, now_s)?;
        if let (Some(scope), Some((cursors, resting))) = (self.scopes.get_mut(scope), before) {
            // As if nothing had been given.
            for lease in leases {
                scope.held.remove(&lease.address);
            }
            for (range, cursor) in scope.ranges.iter_mut().zip(cursors) {
                range.cursor = cursor;
            }
            scope.resting = resting;
        }
        Ok(())
    }

    /// Whether the scope has ranges to give addresses from.
    pub fn has_ranges(&self, scope: &ScopeName) -> bool {
        self.scopes.get(scope).is_some_and(|s| !s.ranges.is_empty())
    }
}

impl Scope {
    fn rest(&mut self, now_s: u64) {
        // A clock that went back must not hold addresses for ever.
        self.resting
            .retain(|_, at| now_s.abs_diff(*at) < QUARANTINE_S);
    }

    fn next(&mut self, v6: bool) -> Result<Lease, IpamError> {
        for range in self.ranges.iter_mut().filter(|r| is_v6(&r.net) == v6) {
            let Some(size) = range.size() else { continue };
            // Among so many neighbours at least one is free, if any is.
            let others = self.taken.len() + self.seen.len();
            let busy = (self.held.len() + self.resting.len() + others) as u128;
            for step in 1..=size.min(busy + 1) {
                let offset = (range.cursor - range.first + step) % size;
                let address = address(range.first + offset, v6);
                let is_busy = self.held.contains(&address)
                    || self.resting.contains_key(&address)
                    || self.taken.contains(&address)
                    || self.seen.contains(&address);
                if !is_busy {
                    range.cursor = range.first + offset;
                    self.held.insert(address);
                    let range = range.net;
                    return Ok(Lease { address, range });
                }
            }
        }
        if let Some(lease) = self.longest_rested(v6) {
            self.resting.remove(&lease.address);
            self.held.insert(lease.address);
            return Ok(lease);
        }
        let inside = |a: &&IpAddr| a.is_ipv6() == v6;
        Err(IpamError::Exhausted {
            pool: list(self.ranges.iter().filter(|r| is_v6(&r.net) == v6)),
            held: self.held.iter().filter(inside).count(),
        })
    }

    /// The resting address that was released first; of several the lowest.
    fn longest_rested(&self, v6: bool) -> Option<Lease> {
        let usable = |address: IpAddr| {
            let range = self.ranges.iter().find(|range| {
                range.net.contains(&address)
                    && (range.first..=range.last).contains(&number(address))
            })?;
            let range = range.net;
            Some(Lease { address, range })
        };
        self.resting
            .iter()
            .filter(|(address, _)| address.is_ipv6() == v6 && !self.taken.contains(address))
            .filter_map(|(&address, &at_s)| Some((at_s, address, usable(address)?)))
            .min_by_key(|&(at_s, address, _)| (at_s, address))
            .map(|(_, _, lease)| lease)
    }
}

impl Range {
    fn new(net: IpNet) -> Range {
        let net = net.trunc();
        let (network, top) = (number(net.network()), number(net.broadcast()));
        let first = network.saturating_add(2);
        let last = if is_v6(&net) {
            top
        } else {
            top.saturating_sub(1)
        };
        // The first allocation steps to `first`.
        Range {
            net,
            first,
            last,
            cursor: last.max(first),
        }
    }

    /// As if `address` had been given last.
    fn go_on_after(&mut self, address: IpAddr) {
        self.cursor = number(address).clamp(self.first, self.last.max(self.first));
    }

    /// Addresses that may be given; `None` when there are none. The whole
    /// IPv6 space does not occur: two addresses are always reserved.
    fn size(&self) -> Option<u128> {
        (self.first <= self.last).then(|| self.last - self.first + 1)
    }
}

/// The first address of a range: the gateway's.
pub fn first_address(net: &IpNet) -> IpAddr {
    address(number(net.network()).saturating_add(1), is_v6(net))
}

fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::from(number))
    } else {
        IpAddr::V4(Ipv4Addr::from(number as u32))
    }
}

fn list<'a>(ranges: impl Iterator<Item = &'a Range>) -> String {
    let names: Vec<String> = ranges.map(|r| r.net.to_string()).collect();
    names.join(", ")
}

fn describe(scope: &ScopeName) -> String {
    match scope {
        None => "the node's pod network".to_owned(),
        Some(name) => format!("segment {name:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipam(ranges: &[&str]) -> Ipam {
        Ipam::new([(None, ranges.iter().map(|r| r.parse().unwrap()).collect())])
    }

    fn one(ipam: &mut Ipam, now: u64) -> IpAddr {
        ipam.allocate(&None, now).unwrap()[0].address
    }

    #[test]
    fn reserved_addresses_are_never_given() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        let given: Vec<String> = (0..5).map(|_| one(&mut ipam, 0).to_string()).collect();
        let expect: Vec<String> = (2..7).map(|n| format!("10.0.0.{n}")).collect();
        assert_eq!(given, expect);
        let error = ipam.allocate(&None, 0).unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/29"), "{error}");
    }

    #[test]
    fn ranges_come_late_and_change_while_addresses_are_held() {
        let mut ipam = ipam(&[]);
        let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>();
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        // As a start restores them, before the range is known.
        ipam.hold(&None, at("10.0.0.2")).unwrap();
        ipam.restore_rest(&None, at("10.0.0.4"), 0);
        ipam.restore_cursor(&None, at("10.0.0.2"));
        assert!(ipam.allocate(&None, 1).is_err());
        ipam.set_ranges(&None, &nets(&["10.0.0.0/29"]));
        assert_eq!(one(&mut ipam, 1), at("10.0.0.3"));
        ipam.set_ranges(&None, &nets(&["10.1.0.0/29", "10.0.0.0/29"]));
        assert_eq!(one(&mut ipam, 1), at("10.1.0.2"));
        ipam.set_ranges(&None, &nets(&["10.0.0.0/29"]));
        assert_eq!(one(&mut ipam, 1), at("10.0.0.5"), "goes on where it stood");
        let outside = ipam.request(&None, at("10.1.0.3"));
        assert!(matches!(outside, Err(IpamError::Outside { .. })));
        // What was given from a range that is gone comes back all the same.
        ipam.release(&None, at("10.1.0.2"), 2);
        ipam.hold(&None, at("10.1.0.2")).unwrap();
    }

    #[test]
    fn released_addresses_rest_and_come_last() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        let first = one(&mut ipam, 0);
        ipam.release(&None, first, 10);
        for _ in 0..4 {
            assert_ne!(one(&mut ipam, 11), first);
        }
        assert_eq!(one(&mut ipam, 69), first);
        assert!(ipam.allocate(&None, 69).is_err());
    }

    #[test]
    fn a_small_range_that_churns_gives_the_address_that_rested_longest() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        let pods: Vec<IpAddr> = (0..5).map(|_| one(&mut ipam, 0)).collect();
        for (pod, at) in [(3, 10), (1, 11), (4, 12)] {
            ipam.release(&None, pods[pod], at);
        }
        assert!(ipam.available(&None, 13).is_ok());
        assert_eq!(one(&mut ipam, 13), pods[3]);
        ipam.release(&None, pods[3], 14);
        let given: Vec<IpAddr> = (0..3).map(|_| one(&mut ipam, 15)).collect();
        assert_eq!(given, [pods[1], pods[4], pods[3]]);
    }

    #[test]
    fn dual_stack_gives_both_or_none() {
        let mut ipam = ipam(&["10.0.0.0/30", "fd00::/64"]);
        let both = ipam.allocate(&None, 0).unwrap();
        assert_eq!(both[0].address.to_string(), "10.0.0.2");
        assert_eq!(both[1].address.to_string(), "fd00::2");
        assert!(ipam.allocate(&None, 0).is_err());
        ipam.release(&None, both[0].address, 0);
        let again = ipam.allocate(&None, 100).unwrap();
        assert_eq!(again[1].address.to_string(), "fd00::3");
    }

    #[test]
    fn second_family_missing_frees_the_first() {
        let mut ipam = ipam(&["10.0.0.0/24", "fd00::/127"]);
        assert!(ipam.allocate(&None, 0).is_err());
        assert!(ipam.request(&None, "10.0.0.2".parse().unwrap()).is_ok());
    }

    #[test]
    fn requests_say_why_not() {
        let mut ipam = ipam(&["10.0.0.0/24"]);
        let ask = |ipam: &mut Ipam, text: &str| ipam.request(&None, text.parse().unwrap());
        assert!(ask(&mut ipam, "10.0.0.9").is_ok());
        assert!(matches!(
            ask(&mut ipam, "10.0.0.9"),
            Err(IpamError::InUse(_))
        ));
        for reserved in ["10.0.0.0", "10.0.0.1", "10.0.0.255"] {
            assert!(matches!(
                ask(&mut ipam, reserved),
                Err(IpamError::Reserved(_))
            ));
        }
        assert!(matches!(
            ask(&mut ipam, "10.0.1.9"),
            Err(IpamError::Outside { .. })
        ));
    }

    #[test]
    fn rotation_survives_a_restart() {
        let mut before = ipam(&["10.0.0.0/24"]);
        let last = (0..7).map(|_| one(&mut before, 0)).last().unwrap();
        let mut after = ipam(&["10.0.0.0/24"]);
        after.restore_cursor(&None, last);
        assert_eq!(one(&mut after, 0), one(&mut before, 0));
    }

    #[test]
    fn asking_whether_it_would_work_changes_nothing() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        for expect in 2..7 {
            assert!(ipam.available(&None, 0).is_ok());
            assert_eq!(one(&mut ipam, 0).to_string(), format!("10.0.0.{expect}"));
        }
        assert!(ipam.available(&None, 0).is_err());
    }

    proptest! {
        /// Against a model: a list of holders and a list of release times.
        #[test]
        fn never_gives_held_or_reserved_nor_resting_before_free(
            length in 24u8..=31,
            steps in proptest::collection::vec((0u8..3, 0usize..64, 0u64..40), 1..200),
        ) {
            let net: IpNet = format!("10.1.0.0/{length}").parse().unwrap();
            let usable = (1u64 << (32 - length)).saturating_sub(3);
            let mut ipam = Ipam::new([(None, vec![net])]);
            let (mut now, mut held, mut resting) = (1000u64, Vec::<IpAddr>::new(), HashMap::new());
            for (what, which, pause) in steps {
                now += pause;
                if what == 0 && !held.is_empty() {
                    let address = held.remove(which % held.len());
                    ipam.release(&None, address, now);
                    resting.insert(address, now);
                    continue;
                }
                resting.retain(|_, at| now - *at < QUARANTINE_S);
                match ipam.allocate(&None, now) {
                    Ok(leases) => {
                        let address = leases[0].address;
                        prop_assert!(!held.contains(&address));
                        if let Some(at) = resting.remove(&address) {
                            let is_free = (held.len() + resting.len() + 1) as u64 != usable;
                            prop_assert!(!is_free, "{} rests, and others are free", address);
                            prop_assert!(resting.values().all(|other| *other >= at));
                        }
                        prop_assert!(net.contains(&address));
                        prop_assert!(address != net.network() && address != net.broadcast());
                        prop_assert!(address != first_address(&net));
                        held.push(address);
                    }
                    Err(_) => prop_assert_eq!(held.len() as u64, usable),
                }
            }
        }
    }
}
