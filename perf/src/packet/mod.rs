//! Frames that generators send: Ethernet, IPv4 or IPv6, UDP, TCP or ICMP,
//! bare or inside VXLAN.
//!
//! ```text
//! [ Ethernet 14 | IP 20 or 40 | UDP 8 | VXLAN 8 ]   with a tunnel
//!   Ethernet 14 | IP 20 or 40 | UDP 8, TCP 20 or ICMP 8 | stamp 18 | zeros …
//! ```
//!
//! A [`Traffic`] says what the frames are, a [`Template`] how a frame is
//! written, a [`Stamp`] what a sink finds in it. Sizes are those of RFC 2544:
//! they count the frame check sequence, which no virtual device carries.

mod range;
mod sizes;
mod stamp;
mod template;
mod traffic;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

pub use range::{AddressRange, PortRange};
pub use sizes::Sizes;
pub(crate) use stamp::{FLOW_BITS, MAGIC};
pub use stamp::{STAMP_BYTES, Stamp};
pub use template::Template;
pub(crate) use template::{Layer3, TUNNEL_PORTS};
pub use traffic::{Protocol, Traffic, Tunnel};

/// The Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// The frame check sequence, which sizes count and devices do not carry.
pub const FCS_BYTES: usize = 4;
/// UDP port of VXLAN (RFC 7348, section 8).
pub const VXLAN_PORT: u16 = 4789;
/// Largest frame: that of a 9,216-byte MTU, as jumbo-capable devices have it.
pub const MAX_FRAME_BYTES: usize = 9216 + ETHERNET_BYTES + FCS_BYTES;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let wrong = || format!("{text:?} is no Ethernet address such as 02:00:00:00:00:0a");
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(wrong)?;
        }
        match parts.next() {
            None => Ok(Mac(bytes)),
            Some(_) => Err(wrong()),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What cannot be a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Source and destination are of different families.
    #[error("--src {0} and --dst {1} are of different address families; give two of one")]
    Families(IpAddr, IpAddr),
    /// The ends of the tunnel are.
    #[error(
        "--outer-src {0} and --outer-dst {1} are of different address families; give two of one"
    )]
    TunnelFamilies(IpAddr, IpAddr),
    /// Too small or too large.
    #[error(
        "--size {size}: {what} takes {least} to {most} bytes, the 4 of the frame check sequence counted"
    )]
    Size {
        /// What was asked for.
        size: usize,
        /// What the frame has to hold.
        what: String,
        /// The least that holds the headers.
        least: usize,
        /// The most that the engine carries.
        most: usize,
    },
    /// More flows than the ranges hold.
    #[error(
        "--flows {flows}: the ranges of addresses and ports hold {room}; widen --sport, --dport, --src or --dst"
    )]
    Flows {
        /// What was asked for.
        flows: u32,
        /// How many there can be.
        room: u64,
    },
    /// Something that the engine cannot send.
    #[error("--engine {engine} does not send {what}; {instead}")]
    Engine {
        /// The engine's name.
        engine: &'static str,
        /// What it cannot do.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
}

/// Sum of the big-endian words, an odd last byte padded with zero.
pub(crate) fn sum_words(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

/// One's complement sum in 16 bits (RFC 1071).
pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests;
