//! Which packets leave with the node's address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use hashbrown::HashSet;

use super::Prefix;

/// Masquerade as configured. Without an egress address of a family nothing of
/// that family is translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Destinations that see the pod's own address: cluster and configured
    /// prefixes.
    pub excluded: Vec<Prefix>,
    /// Nodes' addresses, which see it too: many, so not among the prefixes.
    pub nodes: HashSet<IpAddr, foldhash::fast::RandomState>,
    /// IPv4 addresses to leave with.
    pub egress_v4: Vec<Ipv4Addr>,
    /// IPv6 addresses to leave with.
    pub egress_v6: Vec<Ipv6Addr>,
    /// Ports (and echo identifiers) that are this switch's at those addresses.
    pub ports: RangeInclusive<u16>,
}

impl Default for Masquerade {
    /// Nothing is translated.
    fn default() -> Self {
        Masquerade {
            excluded: Vec::new(),
            nodes: HashSet::default(),
            egress_v4: Vec::new(),
            egress_v6: Vec::new(),
            ports: 61_000..=65_535,
        }
    }
}

impl Masquerade {
    /// Whether packets to this destination keep their source.
    pub fn excludes(&self, destination: IpAddr) -> bool {
        self.nodes.contains(&destination) || self.excluded.iter().any(|p| p.contains(destination))
    }
}
