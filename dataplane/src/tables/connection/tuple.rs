//! What names one direction of a connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::tables::mix::mix;

/// An address of either family: IPv4 as IPv4-mapped IPv6 (RFC 4291, section
/// 2.5.5.2), which never stands in a packet that the switch forwards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address(pub(super) [u64; 2]);

impl Address {
    const MAPPED: u64 = 0xffff << 32;

    /// From the bytes of an IPv4 header.
    #[inline]
    pub fn v4(octets: [u8; 4]) -> Address {
        Address([0, Address::MAPPED | u64::from(u32::from_be_bytes(octets))])
    }

    /// From the bytes of an IPv6 header.
    #[inline]
    pub fn v6(octets: [u8; 16]) -> Address {
        let whole = u128::from_be_bytes(octets);
        Address([(whole >> 64) as u64, whole as u64])
    }

    /// Whether it is an IPv4 address.
    #[inline]
    pub fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] >> 32 == 0xffff
    }

    /// The bytes of an IPv4 header.
    #[inline]
    pub fn octets_v4(self) -> [u8; 4] {
        (self.0[1] as u32).to_be_bytes()
    }

    /// The bytes of an IPv6 header.
    #[inline]
    pub fn octets_v6(self) -> [u8; 16] {
        (u128::from(self.0[0]) << 64 | u128::from(self.0[1])).to_be_bytes()
    }

    /// As the standard library has it.
    pub fn ip(self) -> IpAddr {
        match self.is_v4() {
            true => Ipv4Addr::from(self.octets_v4()).into(),
            false => Ipv6Addr::from(self.octets_v6()).into(),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Address {
        match address {
            IpAddr::V4(v4) => Address::v4(v4.octets()),
            IpAddr::V6(v6) => Address::v6(v6.octets()),
        }
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.ip())
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its address.
    pub address: Address,
    /// Its port. An echo's identifier stands at the end that asked, 0 at the
    /// other.
    pub port: u16,
}

/// Source, destination and protocol of the packets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: End,
    /// Who receives.
    pub destination: End,
    /// Protocol of the IP header.
    pub protocol: u8,
}

impl Tuple {
    /// The same ends the other way round.
    #[inline]
    pub fn reversed(&self) -> Tuple {
        Tuple {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
        }
    }

    #[inline]
    fn words(&self) -> [u64; 5] {
        let [a, b] = self.source.address.0;
        let [c, d] = self.destination.address.0;
        let ports = u64::from(self.source.port) << 16 | u64::from(self.destination.port);
        [a, b, c, d, ports | u64::from(self.protocol) << 32]
    }

    /// Hash of the tuple under a seed that nobody outside knows.
    #[inline]
    pub fn hash(&self, seed: u64) -> u64 {
        mix(&self.words(), seed)
    }
}

impl End {
    /// Hash of the end, for one protocol.
    #[inline]
    pub(super) fn hash(&self, protocol: u8, seed: u64) -> u64 {
        let [a, b] = self.address.0;
        let upper = u64::from(self.port) | u64::from(protocol) << 32;
        mix(&[a, b, upper], seed)
    }
}
