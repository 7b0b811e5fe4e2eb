//! The longest-prefix table of what lies beyond this node.
//!
//! One map for each prefix length in use, longest first: a cluster has few
//! lengths and many prefixes. Only classify looks here; flows keep the answer.
//! A change copies the map of its length and no other.

use std::net::IpAddr;
use std::sync::Arc;

use super::{AddressMap, Prefix, Spread};
use crate::types::{NextHopId, PortId, VtepId};

/// Where packets for a prefix go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTarget {
    /// Through the overlay.
    Vtep(VtepId),
    /// To a neighbour on the underlay, as they are.
    NextHop(NextHopId),
    /// To one of several neighbours on the underlay.
    Spread(Spread),
    /// Into the host's namespace, by the host port: what the kernel routes by
    /// another device than the uplink.
    Host(PortId),
    /// A network that the uplink is in: each of its stations is a neighbour of
    /// its own, with a longer prefix once control has found it. Until then its
    /// packets wait, and control is told.
    OnLink,
    /// Nowhere; the sender is told that there is no route.
    Unreachable,
    /// Nowhere; the sender is told that somebody forbids it.
    Prohibited,
    /// Nowhere; nobody is told.
    Blackhole,
}

/// Prefixes of one length and family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Length {
    len: u8,
    targets: Arc<AddressMap<IpAddr, RouteTarget>>,
}

/// The table. Equal content compares equal whatever the order of insertion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteTable {
    v4: Vec<Length>,
    v6: Vec<Length>,
}

impl RouteTable {
    /// The target of the longest prefix that covers `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<RouteTarget> {
        self.family(address).iter().find_map(|length| {
            let network = Prefix::network(address, length.len);
            length.targets.get(&network).copied()
        })
    }

    /// The target of this very prefix.
    pub fn get(&self, prefix: Prefix) -> Option<RouteTarget> {
        let mut lengths = self.family(prefix.address).iter();
        let length = lengths.find(|length| length.len == prefix.len)?;
        let network = Prefix::network(prefix.address, prefix.len);
        length.targets.get(&network).copied()
    }

    /// Sets a prefix's target; gives the one it had. Bits beyond the prefix's
    /// length are ignored.
    pub fn insert(&mut self, prefix: Prefix, target: RouteTarget) -> Option<RouteTarget> {
        let network = Prefix::network(prefix.address, prefix.len);
        let lengths = match prefix.address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        // Longest first.
        let at = lengths.partition_point(|length| length.len > prefix.len);
        if lengths.get(at).is_none_or(|l| l.len != prefix.len) {
            let len = prefix.len;
            let targets = Arc::default();
            lengths.insert(at, Length { len, targets });
        }
        Arc::make_mut(&mut lengths[at].targets).insert(network, target)
    }

    /// Removes a prefix; gives the target it had.
    pub fn remove(&mut self, prefix: Prefix) -> Option<RouteTarget> {
        let network = Prefix::network(prefix.address, prefix.len);
        let lengths = match prefix.address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        let at = lengths.iter().position(|l| l.len == prefix.len)?;
        let removed = Arc::make_mut(&mut lengths[at].targets).remove(&network);
        if lengths[at].targets.is_empty() {
            lengths.remove(at);
        }
        removed
    }

    /// Every prefix with its target, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, RouteTarget)> + '_ {
        self.v4.iter().chain(&self.v6).flat_map(|length| {
            let len = length.len;
            let targets = length.targets.iter();
            targets.map(move |(&address, &target)| (Prefix { address, len }, target))
        })
    }

    fn family(&self, address: IpAddr) -> &[Length] {
        match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        Prefix {
            address: address.parse().unwrap(),
            len: len.parse().unwrap(),
        }
    }

    fn vtep(number: u16) -> RouteTarget {
        RouteTarget::Vtep(VtepId(number))
    }

    #[test]
    fn the_longest_prefix_wins_whatever_the_order() {
        let routes = [
            ("0.0.0.0/0", RouteTarget::NextHop(NextHopId(0))),
            ("10.244.0.0/16", RouteTarget::Unreachable),
            ("10.244.2.0/24", vtep(2)),
            ("172.31.0.2/32", vtep(2)),
            ("::/0", RouteTarget::NextHop(NextHopId(1))),
            ("fd00:2::/64", vtep(3)),
        ];
        let cases = [
            ("10.244.2.9", Some(vtep(2))),
            ("10.244.3.9", Some(RouteTarget::Unreachable)),
            ("172.31.0.2", Some(vtep(2))),
            ("172.31.0.3", Some(RouteTarget::NextHop(NextHopId(0)))),
            ("fd00:2::7", Some(vtep(3))),
            ("fd00:3::7", Some(RouteTarget::NextHop(NextHopId(1)))),
        ];
        for is_reversed in [false, true] {
            let mut table = RouteTable::default();
            let mut order = routes.to_vec();
            if is_reversed {
                order.reverse();
            }
            for (text, target) in order {
                assert_eq!(table.insert(prefix(text), target), None);
            }
            for (address, expect) in cases {
                assert_eq!(table.lookup(address.parse().unwrap()), expect, "{address}");
            }
            assert_eq!(table.iter().count(), routes.len());
        }
    }

    #[test]
    fn a_removed_prefix_uncovers_the_shorter_one() {
        let mut table = RouteTable::default();
        table.insert(prefix("10.0.0.0/8"), vtep(1));
        table.insert(prefix("10.1.2.3/16"), vtep(2));
        assert_eq!(table.lookup("10.1.9.9".parse().unwrap()), Some(vtep(2)));
        assert_eq!(table.remove(prefix("10.1.0.0/16")), Some(vtep(2)));
        assert_eq!(table.lookup("10.1.9.9".parse().unwrap()), Some(vtep(1)));
        assert_eq!(table.remove(prefix("10.1.0.0/16")), None);
        assert_eq!(table.lookup("11.1.9.9".parse().unwrap()), None);
    }
}
