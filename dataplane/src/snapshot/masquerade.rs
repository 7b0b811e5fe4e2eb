//! Which packets leave with the node's address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use hashbrown::HashSet;

use super::Prefix;

/// Masquerade as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Whether pods' own addresses are kept from the outside. Packets of a
    /// family without an egress address then do not leave at all.
    pub is_on: bool,
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
            is_on: false,
            excluded: Vec::new(),
            nodes: HashSet::default(),
            egress_v4: Vec::new(),
            egress_v6: Vec::new(),
            ports: 61_000..=65_535,
        }
    }
}

impl Masquerade {
    /// Whether packets leave with this address.
    pub fn leaves_with(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.egress_v4.contains(&v4),
            IpAddr::V6(v6) => self.egress_v6.contains(&v6),
        }
    }

    /// Whether packets to this destination keep their source.
    pub fn excludes(&self, destination: IpAddr) -> bool {
        self.nodes.contains(&destination) || self.excluded.iter().any(|p| p.contains(destination))
    }
}
