//! The address and port that a flow's packets get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::tables::connection::{ConnectionId, Side};

/// What translation does to each packet of a flow; lies beside the flow's
/// slot, and only flows that carry one read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Translation {
    /// The new address as it lies in the header; of IPv4 the first four bytes.
    pub address: [u8; 16],
    /// The new port, or the echo's new identifier, as it lies in the header.
    pub port: [u8; 2],
    /// 1 for answers, whose destination is translated; 0 for the others, whose
    /// source is.
    pub is_reply: u8,
    /// 1 when the transport header is none of its business: an ICMP error.
    pub is_address_only: u8,
    /// 1 for an IPv6 address.
    pub is_v6: u8,
    /// 1 when packets stay as they are, and their connection is only told of
    /// them.
    pub is_none: u8,
    /// What the address's change adds to a one's complement sum.
    pub address_delta: u16,
    /// What the port's change adds to it.
    pub port_delta: u16,
    /// Longest packet of the original sender, as the connection had it; 0
    /// when unknown.
    pub mtu: u16,
    /// [`ConnectionId::to_parts`].
    pub connection: [u32; 2],
    /// Packets of the flow that its connection knows of, wrapping.
    pub reported: u32,
}

impl Translation {
    /// Of a connection that nobody translates.
    pub fn none(connection: ConnectionId, side: Side) -> Translation {
        Translation {
            is_reply: side as u8,
            is_none: 1,
            ..Translation::default()
        }
        .of(connection)
    }

    /// The connection that the flow belongs to.
    #[inline]
    pub fn connection_id(&self) -> ConnectionId {
        ConnectionId::from_parts(self.connection)
    }

    /// The new address.
    pub fn to(&self) -> IpAddr {
        match self.is_v6 {
            0 => {
                let [a, b, c, d, ..] = self.address;
                Ipv4Addr::new(a, b, c, d).into()
            }
            _ => Ipv6Addr::from(self.address).into(),
        }
    }

    /// Names the connection.
    pub fn of(self, connection: ConnectionId) -> Translation {
        Translation {
            connection: connection.to_parts(),
            ..self
        }
    }

    /// What both changes add to a one's complement sum.
    #[inline]
    pub fn both_deltas(&self) -> u16 {
        let (sum, carry) = self.address_delta.overflowing_add(self.port_delta);
        sum + u16::from(carry)
    }
}
