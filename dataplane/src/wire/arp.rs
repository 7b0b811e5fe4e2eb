//! Address resolution for IPv4 on Ethernet (RFC 826, RFC 5227).

use std::net::Ipv4Addr;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::MacAddr;

/// Bytes of a packet.
pub const PACKET_LEN: usize = 28;

/// What a packet says.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Operation(pub U16);

impl Operation {
    /// Who has it?
    pub const REQUEST: Operation = Operation(U16::new(1));
    /// It is at.
    pub const REPLY: Operation = Operation(U16::new(2));
}

/// The packet.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ArpPacket {
    hardware: U16,
    protocol: U16,
    hardware_len: u8,
    protocol_len: u8,
    /// Request or reply.
    pub operation: Operation,
    /// The sender's hardware address.
    pub sender_mac: MacAddr,
    sender_ip: [u8; 4],
    /// The target's hardware address; of no meaning in a request.
    pub target_mac: MacAddr,
    target_ip: [u8; 4],
}

const _: () = assert!(size_of::<ArpPacket>() == PACKET_LEN);

impl ArpPacket {
    /// Whether it is about IPv4 on Ethernet.
    pub fn is_ipv4_on_ethernet(&self) -> bool {
        self.hardware.get() == 1
            && self.protocol.get() == 0x0800
            && self.hardware_len == 6
            && self.protocol_len == 4
    }

    /// The sender's address; unspecified in a probe.
    pub fn sender_ip(&self) -> Ipv4Addr {
        self.sender_ip.into()
    }

    /// The address asked for.
    pub fn target_ip(&self) -> Ipv4Addr {
        self.target_ip.into()
    }

    /// The reply that `mac` has the address asked for.
    #[must_use]
    pub fn answer(&self, mac: MacAddr) -> ArpPacket {
        ArpPacket {
            operation: Operation::REPLY,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
            ..*self
        }
    }
}
