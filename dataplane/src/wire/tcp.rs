//! TCP (RFC 9293).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header without options.
pub const HEADER_LEN: usize = 20;
/// Where the checksum is.
pub const CHECKSUM_OFFSET: usize = 16;
/// The least that the data offset's byte can be: five words, no flags.
pub const SHORTEST_OFFSET: u8 = 0x50;

/// Kinds of options.
pub mod option {
    /// End of the list; no length.
    pub const END: u8 = 0;
    /// Nothing; no length.
    pub const NOTHING: u8 = 1;
    /// The longest segment that the sender takes.
    pub const MAX_SEGMENT_SIZE: u8 = 2;
    /// The sender's clock, and the last that it saw of the other (RFC 7323).
    pub const TIMESTAMPS: u8 = 8;
}

/// Flag bits.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// The header without options.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TcpHeader {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Number of the first byte.
    pub sequence: U32,
    /// Next number expected from the other side.
    pub acknowledgment: U32,
    /// Header length in words in the high half.
    pub data_offset: u8,
    /// Flags.
    pub flags: u8,
    /// Receive window.
    pub window: U16,
    /// Over pseudo-header, header and data.
    pub checksum: U16,
    /// End of urgent data.
    pub urgent: U16,
}

const _: () = assert!(size_of::<TcpHeader>() == HEADER_LEN);

impl TcpHeader {
    /// Bytes of the header as it claims.
    pub fn header_len(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}

/// The options of a segment that begins with its header, each with its kind and
/// content; what lacks a part ends them.
pub fn options(segment: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let end = segment.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    let mut rest = segment.get(HEADER_LEN..end).unwrap_or_default();
    std::iter::from_fn(move || {
        while let Some((&option::NOTHING, next)) = rest.split_first() {
            rest = next;
        }
        let &[kind, len, ..] = rest else { return None };
        if kind == option::END {
            return None;
        }
        let content = rest.get(2..usize::from(len))?;
        rest = &rest[usize::from(len)..];
        Some((kind, content))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_end_where_they_are_broken() {
        type Options<'a> = &'a [(u8, &'a [u8])];
        let cases: &[(&str, u8, &[u8], Options<'_>)] = &[
            ("none", 5, &[], &[]),
            ("one", 6, &[2, 4, 5, 180], &[(2, &[5, 180])]),
            ("after nothing", 6, &[1, 1, 4, 2], &[(4, &[])]),
            ("the end", 7, &[4, 2, 0, 0, 2, 4, 5, 180], &[(4, &[])]),
            ("cut off", 6, &[1, 2, 4, 5], &[]),
            ("of no length", 6, &[2, 0, 5, 180], &[]),
            ("of too little", 6, &[2, 1, 5, 180], &[]),
            ("more than there is", 7, &[4, 2, 1, 1], &[]),
            ("no header", 2, &[], &[]),
        ];
        for (name, words, bytes, expect) in cases {
            let mut segment = [0; HEADER_LEN].to_vec();
            segment[12] = words << 4;
            segment.extend_from_slice(bytes);
            assert_eq!(&options(&segment).collect::<Vec<_>>(), expect, "{name}");
        }
        assert_eq!(options(&[]).count(), 0);
    }
}
