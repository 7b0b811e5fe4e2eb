//! IPv4 (RFC 791).

use std::net::Ipv4Addr;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{checksum, protocol};

/// Bytes of the header without options.
pub const HEADER_LEN: usize = 20;

/// Don't-fragment bit of the flags field.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More-fragments bit of the flags field.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset below the flags.
pub const OFFSET: u16 = 0x1fff;

/// The header without options.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version in the high, header length in words in the low half.
    pub version_ihl: u8,
    /// Differentiated services and congestion notification.
    pub tos: u8,
    /// Bytes of the packet, header included.
    pub total_length: U16,
    /// Which datagram a fragment belongs to.
    pub identification: U16,
    /// Flags and fragment offset in units of 8 bytes.
    pub flags_fragment: U16,
    /// Hops left.
    pub ttl: u8,
    /// What the payload is.
    pub protocol: u8,
    /// Over the header.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

const _: () = assert!(size_of::<Ipv4Header>() == HEADER_LEN);

impl Ipv4Header {
    /// Bytes of the header as it claims.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// Bytes of the packet, of whose frame `room` are left from here on. A
    /// TCP super-frame too long for the field has 0 there and ends with its
    /// frame (`skb_ip_totlen`, include/linux/ip.h).
    #[inline]
    pub fn packet_len(&self, room: usize) -> usize {
        match self.total_length.get() {
            0 if room > usize::from(u16::MAX) && self.protocol == protocol::TCP => room,
            len => usize::from(len),
        }
    }

    /// The version field.
    #[inline]
    pub fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Where the payload stands in its datagram, in bytes.
    #[inline]
    pub fn fragment_offset(&self) -> usize {
        usize::from(self.flags_fragment.get() & OFFSET) * 8
    }

    /// Whether more of the datagram follows.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.flags_fragment.get() & MORE_FRAGMENTS != 0
    }

    /// Whether it may not be fragmented.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.flags_fragment.get() & DONT_FRAGMENT != 0
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        self.source.into()
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        self.destination.into()
    }

    /// One hop less; the checksum follows (RFC 1141).
    #[inline]
    pub fn decrement_ttl(&mut self) {
        self.ttl = self.ttl.wrapping_sub(1);
        let sum = u32::from(self.checksum.get()) + 0x0100;
        self.checksum = U16::new((sum + (sum >= 0xffff) as u32) as u16);
    }

    /// Sets the checksum of a header without options.
    pub fn fill_checksum(&mut self) {
        self.checksum = U16::ZERO;
        self.checksum = U16::new(checksum::checksum(self.as_bytes()));
    }
}

/// Whether options are well formed and none of them routes by source (LSRR,
/// SSRR; RFC 7126 sections 4.3 and 4.4).
pub fn options_allowed(mut options: &[u8]) -> bool {
    while let Some(&kind) = options.first() {
        let len = match kind {
            0 => return true,
            1 => 1,
            131 | 137 => return false,
            _ => match options.get(1) {
                Some(&len) if len >= 2 => usize::from(len),
                _ => return false,
            },
        };
        match options.get(len..) {
            Some(rest) => options = rest,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_walked_with_bounds() {
        let cases: &[(&str, &[u8], bool)] = &[
            ("none", &[], true),
            ("end of list hides the rest", &[0, 131, 0, 0], true),
            ("padding", &[1, 1, 1, 0], true),
            ("record route", &[7, 7, 4, 0, 0, 0, 0, 0], true),
            ("router alert", &[148, 4, 0, 0], true),
            ("loose source route", &[131, 7, 4, 1, 2, 3, 4, 0], false),
            ("strict source route", &[1, 137, 7, 4, 1, 2, 3, 4], false),
            ("length 0", &[7, 0, 0, 0], false),
            ("length 1", &[7, 1, 0, 0], false),
            ("longer than the header", &[7, 5, 0, 0], false),
            ("length missing", &[1, 1, 1, 7], false),
        ];
        for (name, options, expect) in cases {
            assert_eq!(options_allowed(options), *expect, "{name}");
        }
    }

    #[test]
    fn every_ttl_step_keeps_the_checksum_right() {
        for identification in 0..=u16::MAX {
            let mut header = Ipv4Header {
                version_ihl: 0x45,
                tos: 0,
                total_length: U16::new(60),
                identification: U16::new(identification),
                flags_fragment: U16::ZERO,
                ttl: 64,
                protocol: 6,
                checksum: U16::ZERO,
                source: [10, 244, 1, 2],
                destination: [10, 244, 1, 3],
            };
            header.fill_checksum();
            header.decrement_ttl();
            assert_eq!(checksum::checksum(header.as_bytes()), 0, "{identification}");
        }
    }
}
