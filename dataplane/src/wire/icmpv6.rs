//! ICMP for IPv6 (RFC 4443) and neighbour discovery (RFC 4861).

use std::net::Ipv6Addr;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::MacAddr;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// Longest error in bytes of IP packet: the least MTU (RFC 4443, 2.4 c).
pub const MAX_ERROR_LEN: usize = 1280;

/// Message types.
pub mod kind {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Asks for an echo.
    pub const ECHO_REQUEST: u8 = 128;
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 129;
    /// Is a router there?
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// A router speaks.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Who has the address?
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    /// It is at.
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    /// There is a better way.
    pub const REDIRECT: u8 = 137;
}

/// Codes of [`kind::UNREACHABLE`].
pub mod unreachable {
    /// No route.
    pub const NO_ROUTE: u8 = 0;
    /// Communication administratively prohibited.
    pub const PROHIBITED: u8 = 1;
    /// Nobody has the address.
    pub const ADDRESS: u8 = 3;
    /// Nobody listens.
    pub const PORT: u8 = 4;
}

/// The header.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Icmpv6Header {
    /// Message type.
    pub kind: u8,
    /// Its variant.
    pub code: u8,
    /// Over pseudo-header, header and data.
    pub checksum: U16,
    /// Identifier and sequence of an echo, MTU of packet-too-big, flags of a
    /// neighbour advertisement.
    pub body: U32,
}

const _: () = assert!(size_of::<Icmpv6Header>() == HEADER_LEN);

/// Errors have the high bit clear (RFC 4443, section 2.1).
pub fn is_error(kind: u8) -> bool {
    kind < 128
}

/// Whether a message belongs to neighbour discovery and never leaves its link.
pub fn is_neighbor_discovery(kind: u8) -> bool {
    (kind::ROUTER_SOLICITATION..=kind::REDIRECT).contains(&kind)
}

/// Router flag of a neighbour advertisement's body.
pub const NA_ROUTER: u32 = 1 << 31;
/// Solicited flag of a neighbour advertisement's body.
pub const NA_SOLICITED: u32 = 1 << 30;
/// Override flag of a neighbour advertisement's body.
pub const NA_OVERRIDE: u32 = 1 << 29;

/// A neighbour solicitation or advertisement, header included.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NeighborMessage {
    /// The header.
    pub header: Icmpv6Header,
    /// The address asked for or claimed.
    pub target: [u8; 16],
}

const _: () = assert!(size_of::<NeighborMessage>() == 24);

impl NeighborMessage {
    /// The address asked for or claimed.
    pub fn target(&self) -> Ipv6Addr {
        self.target.into()
    }
}

/// A link-layer address option, of a solicitation's source or an
/// advertisement's target.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LinkLayerOption {
    /// 1 for the source, 2 for the target.
    pub kind: u8,
    /// Length in units of 8 bytes.
    pub units: u8,
    /// The address.
    pub mac: MacAddr,
}

/// Option type: source link-layer address.
pub const OPTION_SOURCE: u8 = 1;
/// Option type: target link-layer address.
pub const OPTION_TARGET: u8 = 2;

/// Options of a neighbour discovery message that are malformed (RFC 4861,
/// section 4.6) or contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadOptions;

/// The link-layer address that options of type `wanted` name.
pub fn link_layer_option(mut options: &[u8], wanted: u8) -> Result<Option<MacAddr>, BadOptions> {
    let mut found = None;
    while !options.is_empty() {
        let units = *options.get(1).ok_or(BadOptions)?;
        if units == 0 {
            return Err(BadOptions);
        }
        let (option, rest) = options
            .split_at_checked(usize::from(units) * 8)
            .ok_or(BadOptions)?;
        if option[0] == wanted {
            let (option, _) = LinkLayerOption::ref_from_prefix(option).map_err(|_| BadOptions)?;
            if units != 1 || found.replace(option.mac).is_some() {
                return Err(BadOptions);
            }
        }
        options = rest;
    }
    Ok(found)
}
