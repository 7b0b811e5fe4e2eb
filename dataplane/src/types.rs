//! The small words of the data path: addresses and identifiers.
//!
//! Everything here is a value without behaviour beyond validation and text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An Ethernet address (IEEE 802-2014, section 8.2).
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All ones.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
    /// All zeros: no address.
    pub const ZERO: MacAddr = MacAddr([0; 6]);

    /// The address computed from an IPv4 address: `0a:58` and its four bytes,
    /// so that nobody needs to announce it.
    pub const fn from_ipv4(address: Ipv4Addr) -> MacAddr {
        let [a, b, c, d] = address.octets();
        MacAddr([0x0a, 0x58, a, b, c, d])
    }

    /// Group bit set: broadcast or multicast.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Usable as a station's own address: neither zero nor a group.
    pub const fn is_unicast(self) -> bool {
        !self.is_multicast()
            && u64::from_be_bytes([
                0, 0, self.0[0], self.0[1], self.0[2], self.0[3], self.0[4], self.0[5],
            ]) != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a MAC address: write six hexadecimal bytes with colons, as in 0a:58:0a:f4:01:02"
)]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(refuse)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        match parts.next() {
            None => Ok(MacAddr(bytes)),
            Some(_) => Err(refuse()),
        }
    }
}

/// A port of the switch: a dense index, reused after its frames came home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    /// Ports that one switch can have.
    pub const LIMIT: usize = 4096;

    /// As an index into the tables by port.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A layer-2 segment: a dense index into the snapshot's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u16);

impl SegmentId {
    /// As an index into the snapshot's segments.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A remote end of the overlay in one network: a dense index into the
/// snapshot's VTEPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VtepId(pub u16);

impl VtepId {
    /// VTEPs that one switch can know.
    pub const LIMIT: usize = 1 << 15;

    /// As an index into the snapshot's VTEPs.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A neighbour on the underlay: a dense index into the snapshot's next hops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHopId(pub u16);

impl NextHopId {
    /// As an index into the snapshot's next hops.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// The identifier; `None` beyond 24 bits.
    pub const fn new(value: u32) -> Option<Vni> {
        match value < 1 << 24 {
            true => Some(Vni(value)),
            false => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// From its three bytes.
    pub const fn from_bytes([a, b, c]: [u8; 3]) -> Vni {
        Vni(u32::from_be_bytes([0, a, b, c]))
    }

    /// As three bytes.
    pub const fn to_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }
}

/// A poll loop, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u8);

/// Counts published snapshots; flows remember the one that decided them.
/// Starts at 1; 0 is never in force, so a zeroed entry is always stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u32);

impl Generation {
    /// The one after it; never 0.
    pub const fn next(self) -> Generation {
        match self.0.wrapping_add(1) {
            0 => Generation(1),
            next => Generation(next),
        }
    }

    /// What flows remember where more than the snapshot decides: moves on when
    /// either does. Never 0.
    pub const fn with_epoch(self, epoch: u32) -> Generation {
        match self.0.wrapping_add(epoch) {
            0 => Generation(u32::MAX),
            sum => Generation(sum),
        }
    }
}

/// Monotonic time in nanoseconds, read once per batch and handed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Whole seconds.
    pub const fn seconds(self) -> u32 {
        (self.0 / 1_000_000_000) as u32
    }

    /// Nanoseconds since `earlier`, 0 when that lies ahead.
    pub const fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Whether an address may stand as a source or destination beyond one link:
/// not unspecified, loopback, multicast, broadcast or reserved (RFC 1812
/// section 5.3.7, RFC 6890, RFC 4291 section 2.5.3).
pub fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}
