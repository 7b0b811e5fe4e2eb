//! Frames that generators send: Ethernet, IPv4 or IPv6, UDP.
//!
//! ```text
//! | Ethernet 14 | IPv4 20 or IPv6 40 | UDP 8 | filler 2 | zeros … |
//! ```
//!
//! The first payload word, the *filler*, is the one's complement of the
//! flow's number, which is added to the source port. The two cancel in the
//! UDP checksum, so a generator varies flows by writing two words and the
//! checksum stays right.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

const ETHERNET_BYTES: usize = 14;
const UDP_BYTES: usize = 8;
const FILLER_BYTES: usize = 2;
/// Largest frame that one page of a live run holds with its head room.
pub const MAX_FRAME_BYTES: usize = 1514;

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
    #[error("source {0} and destination {1} are of different address families; give two of one")]
    Families(IpAddr, IpAddr),
    /// Too small or too large.
    #[error("a frame of {size} bytes: choose {least} to {MAX_FRAME_BYTES}")]
    Size {
        /// What was asked for.
        size: usize,
        /// The least that holds the headers.
        least: usize,
    },
    /// Source ports would run over.
    #[error("{flows} flows from source port {port}: at most {} fit", u32::from(u16::MAX) + 1 - u32::from(*port))]
    Flows {
        /// What was asked for.
        flows: u32,
        /// The first source port.
        port: u16,
    },
}

/// What a stream of frames looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Source Ethernet address.
    pub source_mac: Mac,
    /// Destination Ethernet address.
    pub destination_mac: Mac,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port of the first flow; flow n has this + n.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Bytes of a frame, from the Ethernet header on, without the FCS.
    pub size_bytes: usize,
    /// How many source ports.
    pub flows: u32,
}

/// A frame of flow 0, and where another flow differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    bytes: Vec<u8>,
    source_port: u16,
    source_port_at: usize,
    filler_at: usize,
    flows: u32,
}

impl Template {
    /// The frame of flow 0 of `stream`.
    ///
    /// # Errors
    /// When the stream cannot be: mixed families, no room, too many flows.
    pub fn new(stream: &Stream) -> Result<Template, PacketError> {
        let ip_bytes = match (stream.source, stream.destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => 20,
            (IpAddr::V6(_), IpAddr::V6(_)) => 40,
            (source, destination) => return Err(PacketError::Families(source, destination)),
        };
        let udp_at = ETHERNET_BYTES + ip_bytes;
        let least = udp_at + UDP_BYTES + FILLER_BYTES;
        if !(least..=MAX_FRAME_BYTES).contains(&stream.size_bytes) {
            return Err(PacketError::Size {
                size: stream.size_bytes,
                least,
            });
        }
        let room = u32::from(u16::MAX) + 1 - u32::from(stream.source_port);
        if stream.flows == 0 || stream.flows > room {
            return Err(PacketError::Flows {
                flows: stream.flows,
                port: stream.source_port,
            });
        }
        let mut bytes = vec![0u8; stream.size_bytes];
        bytes[0..6].copy_from_slice(&stream.destination_mac.0);
        bytes[6..12].copy_from_slice(&stream.source_mac.0);
        write_network(&mut bytes[12..udp_at], stream, stream.size_bytes - udp_at);
        write_udp(&mut bytes[udp_at..], stream);
        Ok(Template {
            bytes,
            source_port: stream.source_port,
            source_port_at: udp_at,
            filler_at: udp_at + UDP_BYTES,
            flows: stream.flows,
        })
    }

    /// The frame of flow 0.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// First source port.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        self.source_port
    }

    /// Offset of the source port in the frame.
    #[must_use]
    pub fn source_port_at(&self) -> usize {
        self.source_port_at
    }

    /// Offset of the filler in the frame.
    #[must_use]
    pub fn filler_at(&self) -> usize {
        self.filler_at
    }

    /// How many flows.
    #[must_use]
    pub fn flows(&self) -> u32 {
        self.flows
    }
}

/// The Ethernet type and the network header.
fn write_network(bytes: &mut [u8], stream: &Stream, payload_bytes: usize) {
    let (ethertype, header) = bytes.split_at_mut(2);
    let payload = u16::try_from(payload_bytes).expect("a frame is shorter than 64 KiB");
    match (stream.source, stream.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethertype.copy_from_slice(&0x0800u16.to_be_bytes());
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(payload + 20).to_be_bytes());
            header[6] = 0x40; // do not fragment
            header[8] = 64;
            header[9] = 17;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let sum = !fold(sum_words(header));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethertype.copy_from_slice(&0x86ddu16.to_be_bytes());
            header[0] = 0x60;
            header[4..6].copy_from_slice(&payload.to_be_bytes());
            header[6] = 17;
            header[7] = 64;
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
        }
        _ => unreachable!("Template::new refuses mixed families"),
    }
}

/// The UDP header, the filler of flow 0 and the checksum over all.
fn write_udp(datagram: &mut [u8], stream: &Stream) {
    let length = u16::try_from(datagram.len()).expect("a frame is shorter than 64 KiB");
    datagram[0..2].copy_from_slice(&stream.source_port.to_be_bytes());
    datagram[2..4].copy_from_slice(&stream.destination_port.to_be_bytes());
    datagram[4..6].copy_from_slice(&length.to_be_bytes());
    datagram[8..10].copy_from_slice(&u16::MAX.to_be_bytes());
    let addresses = match (stream.source, stream.destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => sum_words(&a.octets()) + sum_words(&b.octets()),
        (IpAddr::V6(a), IpAddr::V6(b)) => sum_words(&a.octets()) + sum_words(&b.octets()),
        _ => unreachable!("Template::new refuses mixed families"),
    };
    let sum = addresses + 17 + u32::from(length) + sum_words(datagram);
    let checksum = match !fold(sum) {
        0 => u16::MAX, // RFC 768: zero means none
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
}

/// Sum of the big-endian words, an odd last byte padded with zero.
fn sum_words(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

/// One's complement sum in 16 bits (RFC 1071).
fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn stream(source: &str, destination: &str, size_bytes: usize) -> Stream {
        Stream {
            source_mac: Mac([2, 0, 0, 0, 0, 0x0a]),
            destination_mac: Mac([2, 0, 0, 0, 0, 0x0b]),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: 5000,
            destination_port: 9,
            size_bytes,
            flows: 1000,
        }
    }

    /// The frame of `flow`, as the generator's program writes it.
    fn frame_of(template: &Template, flow: u16) -> Vec<u8> {
        let mut bytes = template.bytes().to_vec();
        let (port, filler) = (template.source_port_at(), template.filler_at());
        bytes[port..port + 2].copy_from_slice(&(template.source_port() + flow).to_be_bytes());
        bytes[filler..filler + 2].copy_from_slice(&(!flow).to_be_bytes());
        bytes
    }

    #[test]
    fn frames_parse_and_their_checksums_hold_for_every_flow() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            for size in [64, 65, 128, 1514] {
                let template = Template::new(&stream(source, destination, size)).unwrap();
                for flow in [0, 1, 255, 256, 999] {
                    let bytes = frame_of(&template, flow);
                    assert_eq!(bytes.len(), size);
                    let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
                    let Some(TransportSlice::Udp(udp)) = packet.transport else {
                        panic!("{source} {size}: no UDP")
                    };
                    assert_eq!(udp.source_port(), 5000 + flow);
                    assert_eq!(udp.destination_port(), 9);
                    let expected = match packet.net.unwrap() {
                        NetSlice::Ipv4(ip) => {
                            let header = ip.header().to_header();
                            assert_eq!(header.header_checksum, header.calc_header_checksum());
                            udp.to_header().calc_checksum_ipv4(&header, udp.payload())
                        }
                        NetSlice::Ipv6(ip) => udp
                            .to_header()
                            .calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                        other => panic!("{other:?}"),
                    }
                    .unwrap();
                    assert_eq!(udp.checksum(), expected, "{source} {size} flow {flow}");
                }
            }
        }
    }

    #[test]
    fn refuses_what_cannot_be() {
        let mixed = Template::new(&stream("10.0.0.1", "fd00::2", 64));
        assert!(matches!(mixed, Err(PacketError::Families(..))));
        for size in [0, 43, 1515] {
            let wrong = Template::new(&stream("10.0.0.1", "10.0.0.2", size));
            assert!(matches!(wrong, Err(PacketError::Size { least: 44, .. })));
        }
        let mut many = stream("10.0.0.1", "10.0.0.2", 64);
        many.flows = 60_537;
        assert!(matches!(
            Template::new(&many),
            Err(PacketError::Flows { .. })
        ));
        many.flows = 60_536;
        assert!(Template::new(&many).is_ok());
    }

    #[test]
    fn addresses_read_as_they_are_written() {
        let mac: Mac = "02:00:0a:ff:00:0b".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:0a:ff:00:0b");
        for wrong in [
            "",
            "02:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "gg:00:00:00:00:00",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
