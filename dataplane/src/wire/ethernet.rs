//! Ethernet II (IEEE 802.3, clause 3).
//!
//! ```text
//! 0              6              12      14
//! | destination  | source       | type  | payload …
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::MacAddr;

/// Bytes of the header.
pub const HEADER_LEN: usize = 14;

/// Shortest frame without its check sequence; shorter payloads are padded.
pub const MIN_FRAME_LEN: usize = 60;

/// What the payload is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct EtherType(pub [u8; 2]);

impl EtherType {
    /// IPv4.
    pub const IPV4: EtherType = EtherType(0x0800u16.to_be_bytes());
    /// Address resolution.
    pub const ARP: EtherType = EtherType(0x0806u16.to_be_bytes());
    /// IPv6.
    pub const IPV6: EtherType = EtherType(0x86ddu16.to_be_bytes());
    /// Customer VLAN tag (IEEE 802.1Q).
    pub const VLAN: EtherType = EtherType(0x8100u16.to_be_bytes());
    /// Service VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: EtherType = EtherType(0x88a8u16.to_be_bytes());
    /// An Ethernet frame, inside GRE or Geneve.
    pub const TRANSPARENT_ETHERNET: EtherType = EtherType(0x6558u16.to_be_bytes());
}

/// The header.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct EthernetHeader {
    /// Destination address.
    pub destination: MacAddr,
    /// Source address.
    pub source: MacAddr,
    /// What the payload is; below 1536 a length (IEEE 802.2).
    pub ethertype: EtherType,
}

const _: () = assert!(size_of::<EthernetHeader>() == HEADER_LEN);

/// Where the payload begins behind at most two VLAN tags, and what it is.
/// `None` when the frame ends before that.
pub fn payload(frame: &[u8]) -> Option<(EtherType, usize)> {
    let (header, _) = EthernetHeader::ref_from_prefix(frame).ok()?;
    let (mut ethertype, mut at) = (header.ethertype, HEADER_LEN);
    for _ in 0..2 {
        if ethertype != EtherType::VLAN && ethertype != EtherType::SERVICE_VLAN {
            break;
        }
        ethertype = EtherType([*frame.get(at + 2)?, *frame.get(at + 3)?]);
        at += 4;
    }
    Some((ethertype, at))
}

/// Group addresses that a bridge never forwards (IEEE 802.1Q, table 8-1):
/// spanning tree, pause, LLDP and the like.
pub fn is_reserved_group(address: MacAddr) -> bool {
    address.0[..5] == [0x01, 0x80, 0xc2, 0x00, 0x00] && address.0[5] < 0x10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_found_behind_tags() {
        let mut frame = vec![0u8; 12];
        frame.extend([0x88, 0xa8, 0, 5, 0x81, 0x00, 0, 7, 0x08, 0x00, 0x45]);
        assert_eq!(payload(&frame), Some((EtherType::IPV4, 22)));
        assert_eq!(payload(&frame[..21]), None);
        assert_eq!(payload(&frame[..13]), None);
    }

    #[test]
    fn reserved_groups_end_at_0f() {
        assert!(is_reserved_group("01:80:c2:00:00:00".parse().unwrap()));
        assert!(is_reserved_group("01:80:c2:00:00:0f".parse().unwrap()));
        assert!(!is_reserved_group("01:80:c2:00:00:10".parse().unwrap()));
        assert!(!is_reserved_group(MacAddr::BROADCAST));
    }
}
