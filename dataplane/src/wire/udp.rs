//! UDP (RFC 768).

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is; 0 there means none.
pub const CHECKSUM_OFFSET: usize = 6;

/// The header.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct UdpHeader {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Header and data.
    pub length: U16,
    /// Over pseudo-header, header and data; 0 for none.
    pub checksum: U16,
}

const _: () = assert!(size_of::<UdpHeader>() == HEADER_LEN);
