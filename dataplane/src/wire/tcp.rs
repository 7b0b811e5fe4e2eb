//! TCP (RFC 9293).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header without options.
pub const HEADER_LEN: usize = 20;
/// Where the checksum is.
pub const CHECKSUM_OFFSET: usize = 16;
/// The least that the data offset's byte can be: five words, no flags.
pub const SHORTEST_OFFSET: u8 = 0x50;

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
