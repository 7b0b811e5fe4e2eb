//! Protocol headers as they lie in a frame: one protocol a file, each with
//! its view, its checks and its setters.
//!
//! Nothing here knows ports, tables or lanes. Views are `zerocopy` structs of
//! big-endian fields, so a header is read where it lies; every function takes
//! a slice and stays inside it.

#[cfg(not(loom))]
pub mod arp;
#[cfg(not(loom))]
pub mod checksum;
#[cfg(not(loom))]
pub mod ecn;
#[cfg(not(loom))]
pub mod ethernet;
#[cfg(not(loom))]
pub mod icmpv4;
#[cfg(not(loom))]
pub mod icmpv6;
#[cfg(not(loom))]
pub mod ipv4;
#[cfg(not(loom))]
pub mod ipv6;
pub mod tcp;
#[cfg(not(loom))]
pub mod tunnel;
#[cfg(not(loom))]
pub mod udp;
#[cfg(not(loom))]
pub mod vxlan;

/// Numbers of the IPv4 protocol and IPv6 next header fields (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// Generic routing encapsulation.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;

    /// Whether the payload begins with a source and a destination port.
    #[inline]
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP | DCCP | UDP_LITE)
    }
}
