//! IPv6 and its extension headers (RFC 8200).

use std::net::Ipv6Addr;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::protocol;
use crate::types::MacAddr;

/// Bytes of the header.
pub const HEADER_LEN: usize = 40;

/// Extension headers that are walked at most. Real packets have one or two.
pub const MAX_EXTENSIONS: usize = 8;

/// Everybody on a link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Where [`ALL_NODES`] are reached on Ethernet (RFC 2464, section 7).
pub const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// Next header numbers that are extension headers.
mod next {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const HIP: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
}

/// The header.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version, traffic class and flow label.
    pub version_class_flow: [u8; 4],
    /// Bytes behind this header.
    pub payload_length: U16,
    /// What follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

const _: () = assert!(size_of::<Ipv6Header>() == HEADER_LEN);

impl Ipv6Header {
    /// The version field.
    #[inline]
    pub fn version(&self) -> u8 {
        self.version_class_flow[0] >> 4
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> Ipv6Addr {
        self.source.into()
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        self.destination.into()
    }
}

/// The fragment header's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Where the payload stands in its datagram, in bytes.
    pub offset: usize,
    /// Whether more follows.
    pub more: bool,
    /// Which datagram it belongs to.
    pub identification: u32,
}

/// What stands behind the extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upper {
    /// Its protocol.
    pub protocol: u8,
    /// Where it begins, from the start of the IPv6 header.
    pub offset: usize,
    /// The fragment header, when there is one.
    pub fragment: Option<Fragment>,
}

/// Why the extension headers could not be walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkError {
    /// One ends beyond the packet or what is seen of it.
    Truncated,
    /// Out of order, too many, or one that is refused: routing type 0
    /// (RFC 5095), options that overrun their header.
    Refused,
}

/// Walks the extension headers of `packet`, which begins with the IPv6 header
/// and may be cut short. Behind the header of a later fragment nothing is
/// walked: what follows is payload.
#[inline]
pub fn walk(packet: &[u8]) -> Result<Upper, WalkError> {
    let protocol = *packet.get(6).ok_or(WalkError::Truncated)?;
    match protocol {
        // Nearly all packets.
        protocol::TCP | protocol::UDP if packet.len() >= HEADER_LEN => Ok(Upper {
            protocol,
            offset: HEADER_LEN,
            fragment: None,
        }),
        _ => walk_from(packet, protocol),
    }
}

fn walk_from(packet: &[u8], mut protocol: u8) -> Result<Upper, WalkError> {
    let mut offset = HEADER_LEN;
    let mut fragment = None;
    for count in 0..=MAX_EXTENSIONS {
        let header = packet.get(offset..).ok_or(WalkError::Truncated)?;
        let len = match protocol {
            next::HOP_BY_HOP if count > 0 => return Err(WalkError::Refused),
            next::HOP_BY_HOP | next::DESTINATION => {
                let header = sized(header, 8, 8)?;
                if !options_fit(&header[2..]) {
                    return Err(WalkError::Refused);
                }
                header.len()
            }
            next::ROUTING => {
                let header = sized(header, 8, 8)?;
                if header[2] == 0 {
                    return Err(WalkError::Refused);
                }
                header.len()
            }
            next::MOBILITY | next::HIP | next::SHIM6 => sized(header, 8, 8)?.len(),
            next::AUTHENTICATION => sized(header, 4, 8)?.len(),
            next::FRAGMENT if fragment.is_some() => return Err(WalkError::Refused),
            next::FRAGMENT => {
                let header = header.get(..8).ok_or(WalkError::Truncated)?;
                let field = u16::from_be_bytes([header[2], header[3]]);
                fragment = Some(Fragment {
                    offset: usize::from(field & 0xfff8),
                    more: field & 1 == 1,
                    identification: u32::from_be_bytes([
                        header[4], header[5], header[6], header[7],
                    ]),
                });
                8
            }
            _ => {
                return Ok(Upper {
                    protocol,
                    offset,
                    fragment,
                });
            }
        };
        protocol = header[0];
        offset += len;
        if fragment.is_some_and(|f| f.offset > 0) {
            return Ok(Upper {
                protocol,
                offset,
                fragment,
            });
        }
    }
    Err(WalkError::Refused)
}

/// The extension header at the front of `bytes`, whose second byte counts
/// units of `unit` bytes beyond the first `base`.
fn sized(bytes: &[u8], unit: usize, base: usize) -> Result<&[u8], WalkError> {
    let units = usize::from(*bytes.get(1).ok_or(WalkError::Truncated)?);
    bytes.get(..base + units * unit).ok_or(WalkError::Truncated)
}

/// Whether the options of a hop-by-hop or destination header end where it
/// does.
fn options_fit(mut options: &[u8]) -> bool {
    while let Some(&kind) = options.first() {
        let len = match (kind, options.get(1)) {
            (0, _) => 1,
            (_, Some(&len)) => usize::from(len) + 2,
            (_, None) => return false,
        };
        match options.get(len..) {
            Some(rest) => options = rest,
            None => return false,
        }
    }
    true
}

/// The group in which somebody who has the address is asked for it (RFC 4291,
/// section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

/// `fe80::/10`.
pub fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// The link-local address that Linux computes from a MAC address (RFC 4291,
/// appendix A).
pub fn link_local(mac: crate::types::MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}
