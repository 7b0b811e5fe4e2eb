//! Which packets leave with the node's address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::Prefix;

/// Masquerade as configured. Without an egress address of a family nothing of
/// that family is translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Destinations that see the pod's own address: cluster, node and
    /// configured prefixes.
    pub excluded: Vec<Prefix>,
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
            egress_v4: Vec::new(),
            egress_v6: Vec::new(),
            ports: 61_000..=65_535,
        }
    }
}

impl Masquerade {
    /// Whether packets to this destination keep their source.
    pub fn excludes(&self, destination: IpAddr) -> bool {
        self.excluded.iter().any(|p| p.contains(destination))
    }
}
