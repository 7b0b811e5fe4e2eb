//! ICMP for IPv4 (RFC 792, RFC 1812 section 4.3).

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// Longest error in bytes of IP packet (RFC 1812, section 4.3.2.3).
pub const MAX_ERROR_LEN: usize = 576;

/// Message types.
pub mod kind {
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Asks for an echo.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// A header field makes no sense.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Codes of [`kind::UNREACHABLE`].
pub mod unreachable {
    /// No route to the network.
    pub const NET: u8 = 0;
    /// Nobody has the address.
    pub const HOST: u8 = 1;
    /// Nobody listens.
    pub const PORT: u8 = 3;
    /// Too big, and not to be fragmented (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Communication administratively prohibited (RFC 1812, section 5.2.7.1).
    pub const PROHIBITED: u8 = 13;
}

/// The header.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Icmpv4Header {
    /// Message type.
    pub kind: u8,
    /// Its variant.
    pub code: u8,
    /// Over header and data.
    pub checksum: U16,
    /// Identifier of an echo; 0 in errors.
    pub identifier: U16,
    /// Sequence of an echo; the next hop's MTU in fragmentation-needed.
    pub sequence: U16,
}

const _: () = assert!(size_of::<Icmpv4Header>() == HEADER_LEN);

/// Makes the checksum of a message of nothing but zeros right: of `len` bytes,
/// from `at` on in a packet of which `head` is there. The two zeros of one's
/// complement differ only where nothing else is summed (RFC 1071, section 1).
/// So of a message whose rest is elsewhere either will do: unless that is
/// zeros, too, both are right.
pub(crate) fn choose_zero(head: &mut [u8], at: usize, len: usize) {
    let end = head.len().min(at + len);
    let message = &mut head[at..end];
    if message.len() >= HEADER_LEN && message.iter().all(|byte| *byte == 0) {
        message[2..4].fill(0xff);
    }
}

/// Whether a message of this type is a query or its answer. Everything else
/// counts as an error, about which no error may be sent (RFC 1122, section
/// 3.2.2).
pub fn is_query(kind: u8) -> bool {
    matches!(kind, 0 | 8 | 9 | 10 | 13..=18)
}

/// Whether a message of this type is an error that quotes a packet and that
/// the packet's sender is to hear of, also behind a translator (RFC 5508,
/// section 4). Redirects and source quenches are not.
pub fn is_transit_error(kind: u8) -> bool {
    matches!(
        kind,
        kind::UNREACHABLE | kind::TIME_EXCEEDED | kind::PARAMETER_PROBLEM
    )
}
