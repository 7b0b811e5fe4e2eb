//! Finds datagrams that can leave together: a run of one UDP flow within a
//! batch, all of one length but the last, described so that the kernel cuts it
//! into the same datagrams again, at the receiving socket or where it leaves
//! the receiver. The receiver's protocol stack then takes one packet instead
//! of sixty.
//!
//! Only what comes out the same is taken together: no fragments, no options or
//! extension headers, IPv4 identifications that count up, as the kernel gives
//! them (or any with the don't-fragment bit, where they say nothing: RFC 6864,
//! section 4), and checksums that are
//! either the receiver's to fill in or verified here. A datagram without a
//! checksum stays by itself, so that it does not get one.
//!
//! By the uplink, datagrams of the overlay leave together, where the device
//! cuts them. Their outer headers were written here; over IPv4 they get a
//! checksum by it (RFC 7348, section 5, allows one), which the device fills in
//! for each.

use zerocopy::FromBytes;
use zerocopy::big_endian::U16;

use super::apart;
use super::segment::{Cut, Offload, Segments};
use crate::frame::{Batch, TxChecksum, Verdict};
use crate::types::PortId;
use crate::umem::Umem;
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::ethernet::{self, EtherType, EthernetHeader};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::protocol;
use crate::wire::udp::{self, UdpHeader};
use crate::wire::vxlan;

/// Datagrams that leave together at most.
pub(crate) const MAX_DATAGRAMS: usize = Batch::MAX_PACKETS;

/// Bytes of Ethernet, IPv6 and UDP header.
const MAX_HEADERS: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + udp::HEADER_LEN;

/// Longest IP packet.
const MAX_PACKET: usize = u16::MAX as usize;

/// A run of datagrams of one flow.
#[derive(Debug)]
pub(crate) struct Run {
    /// Packets of the batch, from the one asked for on.
    pub(crate) packets: usize,
    /// How the kernel is to cut it.
    pub(crate) offload: Offload,
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
}

impl Run {
    /// The headers of the whole.
    pub(crate) fn headers(&self) -> &[u8] {
        &self.headers[..self.headers_len]
    }

    /// The payload of packet `index` of the batch, which belongs to the run.
    pub(crate) fn payload<'a>(&self, umem: &'a Umem, batch: &'a Batch, index: usize) -> &'a [u8] {
        umem.bytes(batch.head(index))
            .get(self.headers_len..)
            .unwrap_or_default()
    }
}

/// Whose datagrams may leave together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Those of any flow with checksums.
    Any,
    /// Those to this port, the overlay's, which were wrapped here.
    Overlay(u16),
}

/// A plain datagram in one frame.
#[derive(Clone, Copy)]
struct Datagram<'a> {
    bytes: &'a [u8],
    is_v6: bool,
    /// The sender left the checksum to a device.
    is_partial: bool,
}

/// The longest run that begins with packet `first` and goes to `out`; `None`
/// when the next packet does not continue it.
pub(crate) fn run(
    umem: &Umem,
    batch: &Batch,
    first: usize,
    (out, taken): (PortId, Taken),
) -> Option<Run> {
    let head = Datagram::of(umem, batch, first, out)?;
    let second = Datagram::of(umem, batch, first + 1, out)?;
    if !second.continues(&head, 1) || !head.is_sound(taken) {
        return None;
    }
    let mut payload = head.payload_len();
    let mut packets = 1;
    let mut next = Some(second);
    while let Some(datagram) = next {
        let len = datagram.payload_len();
        let fits = head.headers_len() - ethernet::HEADER_LEN + payload + len <= MAX_PACKET;
        if !fits || !datagram.continues(&head, packets as u16) || !datagram.is_sound(taken) {
            break;
        }
        payload += len;
        packets += 1;
        if len < head.payload_len() || packets == MAX_DATAGRAMS {
            break;
        }
        next = Datagram::of(umem, batch, first + packets, out);
    }
    (packets > 1).then(|| head.describe(packets, payload))
}

impl<'a> Datagram<'a> {
    fn of(umem: &'a Umem, batch: &'a Batch, index: usize, out: PortId) -> Option<Datagram<'a>> {
        let packet = batch.packets().get(index)?;
        let checksum = match packet.verdict {
            Verdict::Forward { out: to, checksum } if to == out && packet.frames == 1 => checksum,
            _ => return None,
        };
        let bytes = umem.bytes(batch.head(index));
        let (ethernet, network) = EthernetHeader::ref_from_prefix(bytes).ok()?;
        let (is_v6, is_plain) = match ethernet.ethertype {
            EtherType::IPV4 => {
                let (ip, _) = Ipv4Header::ref_from_prefix(network).ok()?;
                let is_plain = ip.version_ihl == 0x45
                    && ip.protocol == protocol::UDP
                    && ip.flags_fragment.get() & !ipv4::DONT_FRAGMENT == 0
                    && usize::from(ip.total_length.get()) == network.len();
                (false, is_plain)
            }
            EtherType::IPV6 => {
                let (ip, _) = Ipv6Header::ref_from_prefix(network).ok()?;
                let is_plain = ip.next_header == protocol::UDP
                    && usize::from(ip.payload_length.get()) + ipv6::HEADER_LEN == network.len();
                (true, is_plain)
            }
            _ => return None,
        };
        let datagram = Datagram {
            bytes,
            is_v6,
            is_partial: checksum.is_some(),
        };
        let (udp, _) = UdpHeader::ref_from_prefix(bytes.get(datagram.transport()..)?).ok()?;
        let is_own = checksum.is_none_or(|checksum| checksum == datagram.checksum_field());
        let is_whole =
            usize::from(udp.length.get()) == datagram.transport_len() && datagram.payload_len() > 0;
        (is_plain && is_own && is_whole).then_some(datagram)
    }

    fn transport(&self) -> usize {
        ethernet::HEADER_LEN
            + match self.is_v6 {
                true => ipv6::HEADER_LEN,
                false => ipv4::HEADER_LEN,
            }
    }

    fn headers_len(&self) -> usize {
        self.transport() + udp::HEADER_LEN
    }

    /// Bytes from the UDP header on.
    fn transport_len(&self) -> usize {
        self.bytes.len() - self.transport()
    }

    fn payload_len(&self) -> usize {
        self.bytes.len().saturating_sub(self.headers_len())
    }

    fn addresses(&self) -> &'a [u8] {
        let bytes = self.bytes;
        match self.is_v6 {
            true => &bytes[22..54],
            false => &bytes[26..34],
        }
    }

    fn checksum_field(&self) -> TxChecksum {
        TxChecksum {
            start: self.transport() as u16,
            offset: udp::CHECKSUM_OFFSET as u16,
        }
    }

    /// Whether it may stand `places` behind `head`: the same flow, no longer,
    /// and every header field alike that does not follow from the rest.
    fn continues(&self, head: &Datagram<'_>, places: u16) -> bool {
        let alike = |from: usize, to: usize| self.bytes[from..to] == head.bytes[from..to];
        self.is_v6 == head.is_v6
            && self.is_partial == head.is_partial
            && self.bytes.len() <= head.bytes.len()
            && match self.is_v6 {
                // Up to the payload length; from the next header to the ports.
                true => alike(0, 18) && alike(20, 58),
                // Up to the length; flags to protocol; addresses and ports.
                false => {
                    alike(0, 16)
                        && alike(20, 24)
                        && alike(26, 38)
                        && (head.is_atomic()
                            || self.identification() == head.identification().wrapping_add(places))
                }
            }
    }

    /// Whether nobody may cut it, so that its identification says nothing.
    fn is_atomic(&self) -> bool {
        self.bytes[20] & (ipv4::DONT_FRAGMENT >> 8) as u8 != 0
    }

    fn identification(&self) -> u16 {
        u16::from_be_bytes([self.bytes[18], self.bytes[19]])
    }

    /// Whether it may leave with others: its checksum is right, as far as
    /// anybody can tell, or its outer headers are the switch's own.
    fn is_sound(&self, taken: Taken) -> bool {
        let word = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        match taken {
            Taken::Any => {
                let field = word(self.transport() + udp::CHECKSUM_OFFSET);
                field != 0 && (self.is_partial || self.sum().checksum() == 0)
            }
            Taken::Overlay(port) => {
                let frame = self.bytes.get(self.headers_len() + vxlan::HEADER_LEN..);
                !self.is_partial
                    && word(self.transport() + 2) == port
                    && frame.is_some_and(apart::tells_length)
            }
        }
    }

    fn sum(&self) -> Sum {
        pseudo_header(self.addresses(), protocol::UDP, self.transport_len() as u16)
            .bytes(&self.bytes[self.transport()..])
    }

    /// A run that begins with this one and carries `payload` bytes.
    fn describe(&self, packets: usize, payload: usize) -> Run {
        let mut headers = [0; MAX_HEADERS];
        let headers_len = self.headers_len();
        headers[..headers_len].copy_from_slice(&self.bytes[..headers_len]);
        stand_for_all(&mut headers[..headers_len], self.is_v6, payload);
        Run {
            packets,
            offload: Offload {
                checksum: self.checksum_field(),
                cut: Some(Cut {
                    segments: Segments::Udp,
                    header_len: headers_len as u16,
                    segment_len: self.payload_len() as u16,
                }),
            },
            headers,
            headers_len,
        }
    }
}

/// Makes the headers of a datagram those of a run of them that carries
/// `payload` bytes; whoever cuts it sums each.
pub(super) fn stand_for_all(headers: &mut [u8], is_v6: bool, payload: usize) {
    let length = udp::HEADER_LEN + payload;
    let at = headers.len() - udp::HEADER_LEN;
    let (network, rest) = headers[ethernet::HEADER_LEN..].split_at_mut(at - ethernet::HEADER_LEN);
    let addresses = match is_v6 {
        true => {
            if let Ok(ip) = Ipv6Header::mut_from_bytes(network) {
                ip.payload_length = U16::new(length as u16);
            }
            &network[8..40]
        }
        false => {
            if let Ok(ip) = Ipv4Header::mut_from_bytes(network) {
                ip.total_length = U16::new((ipv4::HEADER_LEN + length) as u16);
                ip.fill_checksum();
            }
            &network[12..20]
        }
    };
    if let Ok((udp, _)) = UdpHeader::mut_from_prefix(rest) {
        udp.length = U16::new(length as u16);
        let pseudo = pseudo_header(addresses, protocol::UDP, length as u16);
        udp.checksum = U16::new(pseudo.fold());
    }
}
