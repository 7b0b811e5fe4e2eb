//! Puts another address and port into a packet, as its connection has them:
//! the source of what goes out, the destination of what comes back, and both
//! inside what an ICMP error quotes.
//!
//! Checksums follow incrementally (RFC 1624), so a wrong one stays wrong. A
//! *partial* one holds the pseudo-header's sum and no more: of it only the
//! addresses are a part. A UDP checksum of 0 means none, and stays.

use zerocopy::FromBytes;

use super::parse::{Headers, L3, Part};
use crate::tables::connection::{Address, End, Side, Tuple};
use crate::tables::flow::Translation;
use crate::wire::checksum::{self, Sum};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::{icmpv4, icmpv6, ipv6, protocol, tcp, udp};

/// Where the source address stands in the network header.
const SOURCE_V4: usize = 12;
const SOURCE_V6: usize = 8;
/// Where an IPv4 header has its checksum.
const CHECKSUM_V4: usize = 10;
/// Where an ICMP header has its checksum and, of an echo, its identifier.
const ICMP_CHECKSUM: usize = 2;
const ICMP_IDENTIFIER: usize = 4;

impl Translation {
    /// From the end that a packet names to the one that it is to name.
    pub(super) fn between(old: End, new: End, side: Side) -> Translation {
        let (old_port, port) = (old.port.to_be_bytes(), new.port.to_be_bytes());
        // Both are of one family.
        let (bytes, address_delta) = match new.address.is_v4() {
            true => {
                let octets @ [a, b, c, d] = new.address.octets_v4();
                let delta = checksum::delta(&old.address.octets_v4(), &octets);
                ([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], delta)
            }
            false => {
                let octets = new.address.octets_v6();
                (octets, checksum::delta(&old.address.octets_v6(), &octets))
            }
        };
        Translation {
            address: bytes,
            port,
            is_reply: u8::from(side == Side::Reply),
            is_v6: u8::from(!new.address.is_v4()),
            address_delta,
            port_delta: checksum::delta(&old_port, &port),
            ..Translation::default()
        }
    }
}

/// Translates a packet's own headers. `is_partial` says that its transport
/// checksum is.
#[inline]
pub(super) fn apply(
    bytes: &mut [u8],
    headers: &Headers,
    is_v6: bool,
    translation: &Translation,
    is_partial: bool,
) {
    if translation.is_none == 1 {
        return;
    }
    let is_reply = usize::from(translation.is_reply);
    set_address(bytes, L3, is_v6, is_reply, translation);
    if headers.part == Part::Later || translation.is_address_only == 1 {
        return;
    }
    let transport = usize::from(headers.transport);
    let Some(fields) = Fields::of(headers.protocol, is_reply) else {
        return;
    };
    bytes[transport + fields.port..transport + fields.port + 2].copy_from_slice(&translation.port);
    let at = transport + fields.checksum;
    match headers.protocol {
        _ if is_partial => {
            let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let sum = Sum::ZERO.word(field).word(translation.address_delta);
            bytes[at..at + 2].copy_from_slice(&sum.fold().to_be_bytes());
        }
        protocol::ICMP => {
            adjust(bytes, at, translation.port_delta);
            if bytes[at..at + 2] == [0, 0] {
                icmpv4::choose_zero(bytes, transport, headers.transport_len());
            }
        }
        protocol::UDP => adjust_udp(bytes, at, translation.both_deltas()),
        _ => adjust(bytes, at, translation.both_deltas()),
    }
}

/// Sets the source or destination address of the network header at `at`, and
/// its checksum.
#[inline]
fn set_address(
    bytes: &mut [u8],
    at: usize,
    is_v6: bool,
    is_destination: usize,
    translation: &Translation,
) {
    match is_v6 {
        true => {
            let at = at + SOURCE_V6 + 16 * is_destination;
            bytes[at..at + 16].copy_from_slice(&translation.address);
        }
        false => {
            let address = at + SOURCE_V4 + 4 * is_destination;
            bytes[address..address + 4].copy_from_slice(&translation.address[..4]);
            adjust(bytes, at + CHECKSUM_V4, translation.address_delta);
        }
    }
}

/// Where a transport header has what translation changes.
struct Fields {
    port: usize,
    checksum: usize,
}

impl Fields {
    #[inline]
    fn of(protocol: u8, is_destination: usize) -> Option<Fields> {
        let (port, checksum) = match protocol {
            protocol::TCP => (2 * is_destination, tcp::CHECKSUM_OFFSET),
            protocol::UDP => (2 * is_destination, udp::CHECKSUM_OFFSET),
            protocol::ICMP | protocol::ICMPV6 => (ICMP_IDENTIFIER, ICMP_CHECKSUM),
            _ => return None,
        };
        Some(Fields { port, checksum })
    }
}

/// Brings a complete checksum up to date.
#[inline]
fn adjust(bytes: &mut [u8], at: usize, delta: u16) {
    let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let new = checksum::update(field, 0, delta);
    bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
}

#[inline]
fn adjust_udp(bytes: &mut [u8], at: usize, delta: u16) {
    if bytes[at..at + 2] == [0, 0] {
        return;
    }
    adjust(bytes, at, delta);
    if bytes[at..at + 2] == [0, 0] {
        bytes[at..at + 2].fill(0xff);
    }
}

/// What a packet's own transport header, or one that an ICMP error quotes,
/// says of its connection. `None` for what is not translated.
pub(super) fn tuple(
    addresses: (Address, Address),
    protocol: u8,
    transport: &[u8],
) -> Option<Tuple> {
    let word = |at: usize| {
        Some(u16::from_be_bytes([
            *transport.get(at)?,
            *transport.get(at + 1)?,
        ]))
    };
    let (source_port, destination_port) = match protocol {
        protocol::TCP | protocol::UDP => (word(0)?, word(2)?),
        protocol::ICMP => match *transport.first()? {
            icmpv4::kind::ECHO_REQUEST => (word(ICMP_IDENTIFIER)?, 0),
            icmpv4::kind::ECHO_REPLY => (0, word(ICMP_IDENTIFIER)?),
            _ => return None,
        },
        protocol::ICMPV6 => match *transport.first()? {
            icmpv6::kind::ECHO_REQUEST => (word(ICMP_IDENTIFIER)?, 0),
            icmpv6::kind::ECHO_REPLY => (0, word(ICMP_IDENTIFIER)?),
            _ => return None,
        },
        _ => return None,
    };
    Some(Tuple {
        source: End {
            address: addresses.0,
            port: source_port,
        },
        destination: End {
            address: addresses.1,
            port: destination_port,
        },
        protocol,
    })
}

/// Source and destination of the network header at the front of `bytes`.
pub(super) fn addresses(bytes: &[u8], is_v6: bool) -> Option<(Address, Address)> {
    match is_v6 {
        true => {
            let v6 = |at: usize| Some(Address::v6(bytes.get(at..at + 16)?.try_into().ok()?));
            Some((v6(SOURCE_V6)?, v6(SOURCE_V6 + 16)?))
        }
        false => {
            let v4 = |at: usize| Some(Address::v4(bytes.get(at..at + 4)?.try_into().ok()?));
            Some((v4(SOURCE_V4)?, v4(SOURCE_V4 + 4)?))
        }
    }
}

/// The packet that an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quote {
    /// What its connection is known by.
    pub(super) tuple: Tuple,
    /// Where its network header begins in the frame.
    network: usize,
    /// Where its transport header begins.
    transport: usize,
}

/// Reads the quote of an ICMP error whose header is where `headers` says.
/// `None` where it names no connection: too short, a later fragment, or not a
/// protocol that is translated.
pub(super) fn quote(bytes: &[u8], headers: &Headers, is_v6: bool) -> Option<Quote> {
    let network = usize::from(headers.transport) + icmpv4::HEADER_LEN;
    let end = bytes.len().min(L3 + headers.ip_len as usize);
    let packet = bytes.get(network..end)?;
    let (protocol, offset) = match is_v6 {
        true => {
            let upper = ipv6::walk(packet).ok()?;
            let is_later = upper.fragment.is_some_and(|f| f.offset > 0);
            let is_v6 = packet.first()? >> 4 == 6;
            (is_v6 && !is_later).then_some((upper.protocol, upper.offset))?
        }
        false => {
            let (ip, _) = Ipv4Header::ref_from_prefix(packet).ok()?;
            let is_sound = ip.version() == 4 && ip.header_len() >= 20;
            let is_first = ip.fragment_offset() == 0;
            (is_sound && is_first).then_some((ip.protocol, ip.header_len()))?
        }
    };
    // Eight bytes at least (RFC 792): ports, or an echo's identifier.
    let transport = packet.get(offset..)?;
    transport.get(..8)?;
    Some(Quote {
        tuple: tuple(addresses(packet, is_v6)?, protocol, transport)?,
        network,
        transport: network + offset,
    })
}

/// Translates inside an ICMP error: the end of the quoted packet that is
/// `is_reply`'s, with its checksums as far as they are quoted, and the error's
/// own checksum. Its outer header is [`apply`]'s.
pub(super) fn apply_to_quote(
    bytes: &mut [u8],
    headers: &Headers,
    is_v6: bool,
    quote: &Quote,
    translation: &Translation,
) {
    let end = bytes.len().min(L3 + headers.ip_len as usize);
    // What a packet's answers have as destination, the packet has as source.
    let is_source = translation.is_reply == 1;
    let inner = Inner {
        at: quote.network,
        transport: quote.transport,
        protocol: quote.tuple.protocol,
        is_destination: usize::from(!is_source),
    };
    let start = usize::from(headers.transport);
    let before = Sum::ZERO.bytes(&bytes[quote.network..end]);
    inner.write(&mut bytes[..end], is_v6, translation);
    let after = Sum::ZERO.bytes(&bytes[quote.network..end]);
    let delta = Sum::ZERO.word(!before.fold()).sum(after);
    let at = start + ICMP_CHECKSUM;
    // The pseudo-header's share of the outer address (RFC 4443, section 2.3).
    let delta = match is_v6 {
        true => delta.word(translation.address_delta),
        false => delta,
    };
    adjust(bytes, at, delta.fold());
}

/// The quoted packet in its frame.
struct Inner {
    at: usize,
    transport: usize,
    protocol: u8,
    is_destination: usize,
}

impl Inner {
    fn write(&self, bytes: &mut [u8], is_v6: bool, translation: &Translation) {
        set_address(bytes, self.at, is_v6, self.is_destination, translation);
        let Some(fields) = Fields::of(self.protocol, self.is_destination) else {
            return;
        };
        let port = self.transport + fields.port;
        bytes[port..port + 2].copy_from_slice(&translation.port);
        let at = self.transport + fields.checksum;
        if at + 2 > bytes.len() {
            return;
        }
        match self.protocol {
            protocol::ICMP => adjust(bytes, at, translation.port_delta),
            protocol::UDP => adjust_udp(bytes, at, translation.both_deltas()),
            _ => adjust(bytes, at, translation.both_deltas()),
        }
    }
}
