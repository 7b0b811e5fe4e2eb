//! Cuts a packet into pieces that fit the path: a TCP super-frame into
//! segments, as a network card with segmentation offload would, any other
//! IPv4 packet into fragments (`fragment`).
//!
//! Of segments, sequence numbers, IP identification, lengths and checksums are each
//! segment's own; PSH and FIN are on the last one only (RFC 9293), CWR on the
//! first one only (RFC 3168, section 6.1.2), options are copied.

use zerocopy::FromBytes;
use zerocopy::big_endian::U16;

use super::chain::{Cutter, MAX_HEADERS};
use super::fragment;
use crate::drops::DropReason;
use crate::frame::{Batch, TxChecksum};
use crate::umem::{FramePool, Umem};
use crate::wire::checksum::{self, Sum, pseudo_header};
use crate::wire::ethernet::{self, EtherType};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::protocol;
use crate::wire::tcp::{TcpHeader, flags};
use crate::wire::tunnel;

/// Where a TCP header has its checksum (RFC 9293, section 3.1).
const TCP_CHECKSUM_OFFSET: u16 = 16;

/// Where the headers of the super-frame lie.
pub(super) struct Layout {
    is_v6: bool,
    network: usize,
    transport: usize,
    pub(super) payload: usize,
    pub(super) end: usize,
}

/// Cuts packet `index` of `batch` into pieces of at most `mtu` bytes of IP
/// packet, which are pushed to `out`; their verdicts are the caller's to set.
/// They need no checksum of the receiver. The packet itself stays where it is.
///
/// On `Err` nothing is added to `out`, and every frame taken from `pool` is
/// back there.
pub fn segment(
    umem: &Umem,
    pool: &mut FramePool,
    batch: &Batch,
    index: usize,
    mtu: u32,
    out: &mut Batch,
) -> Result<(), DropReason> {
    segment_from(umem, pool, (batch, index, 0), mtu, out)
}

/// As [`segment`], of a super-frame whose payload before byte `from` has left,
/// in whole segments. Packets of other kinds have none that did.
pub fn segment_from(
    umem: &Umem,
    pool: &mut FramePool,
    (batch, index, from): (&Batch, usize, usize),
    mtu: u32,
    out: &mut Batch,
) -> Result<(), DropReason> {
    let (frames, packets) = (out.frames.len(), out.packets.len());
    let head = umem.bytes(batch.head(index));
    let done = match is_super_frame(head, batch.packets()[index].len as usize) {
        true => cut(umem, pool, (batch, index, from), mtu, out),
        false => fragment::cut(umem, pool, batch, index, mtu, out),
    };
    if done.is_err() {
        for frame in out.frames.drain(frames..).flatten() {
            pool.free(frame);
        }
        out.packets.truncate(packets);
    }
    done
}

/// What the kernel can be left to do for a packet with a partial checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// The partial checksum.
    pub checksum: TxChecksum,
    /// Where and how to cut it; `None` leaves it whole.
    pub cut: Option<Cut>,
}

/// What a packet is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segments {
    /// TCP segments.
    Tcp {
        /// Over IPv6 rather than IPv4.
        is_v6: bool,
        /// CWR is set, which only the first segment may carry (RFC 3168).
        is_congestion_window_reduced: bool,
    },
    /// UDP datagrams.
    Udp,
}

/// A super-frame as the kernel's own segmentation wants it described: what a
/// port can leave to the kernel need not be cut here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// What comes of it.
    pub segments: Segments,
    /// Bytes of all headers, Ethernet's included.
    pub header_len: u16,
    /// Bytes of payload that a segment carries at most.
    pub segment_len: u16,
}

/// Describes packet `index` for cutting to `mtu` bytes of IP packet; `None`
/// for all that is no plain TCP super-frame.
pub fn offload(umem: &Umem, batch: &Batch, index: usize, mtu: u32) -> Option<Offload> {
    let (layout, segment_len) = plain(umem, batch, index, mtu)?;
    let head = umem.bytes(batch.head(index));
    let (tcp, _) = TcpHeader::ref_from_prefix(head.get(layout.transport..)?).ok()?;
    Some(Offload {
        checksum: TxChecksum {
            start: layout.transport as u16,
            offset: TCP_CHECKSUM_OFFSET,
        },
        cut: Some(Cut {
            segments: Segments::Tcp {
                is_v6: layout.is_v6,
                is_congestion_window_reduced: tcp.flags & flags::CWR != 0,
            },
            header_len: layout.payload as u16,
            segment_len: segment_len as u16,
        }),
    })
}

/// Where the headers of packet `index` lie, and how much payload each segment
/// has when it is cut to `mtu` bytes of IP packet; `None` for all that is no
/// plain TCP super-frame.
pub(super) fn plain(umem: &Umem, batch: &Batch, index: usize, mtu: u32) -> Option<(Layout, usize)> {
    let head = umem.bytes(batch.head(index));
    let len = batch.packets()[index].len as usize;
    if !is_super_frame(head, len) {
        return None;
    }
    let layout = layout(head, len).ok()?;
    let (tcp, _) = TcpHeader::ref_from_prefix(head.get(layout.transport..)?).ok()?;
    let segment_len = (mtu as usize + layout.network).checked_sub(layout.payload)?;
    let is_plain = layout.end == len && tcp.flags & (flags::SYN | flags::URG) == 0;
    (is_plain && segment_len > 0).then_some((layout, segment_len))
}

/// A TCP packet of `len` bytes of frame whose sender left its checksum, and so
/// its cutting, to a device.
pub(crate) fn is_super_frame(head: &[u8], len: usize) -> bool {
    let partial = ethernet::payload(head)
        .and_then(|(ethertype, at)| tunnel::partial_checksum(head, len, ethertype, at));
    partial.is_some_and(|partial| partial.is_own_tcp)
}

fn cut(
    umem: &Umem,
    pool: &mut FramePool,
    (batch, index, from): (&Batch, usize, usize),
    mtu: u32,
    out: &mut Batch,
) -> Result<(), DropReason> {
    let packet = &batch.packets()[index];
    let head = umem.bytes(batch.head(index));
    let layout = layout(head, packet.len as usize)?;
    let mut headers = [0; MAX_HEADERS];
    let headers = headers
        .get_mut(..layout.payload)
        .ok_or(DropReason::Oversize)?;
    headers.copy_from_slice(&head[..layout.payload]);
    let most = (mtu as usize + layout.network)
        .checked_sub(layout.payload)
        .filter(|&most| most > 0)
        .ok_or(DropReason::Oversize)?;
    let total = layout.end - layout.payload;
    let mut cutter = Cutter::new(umem, pool, (batch, index), layout.payload, out);
    cutter.skip(from);
    let mut offset = from;
    loop {
        let len = most.min(total - offset);
        let is_last = offset + len == total;
        let piece = Piece {
            number: (offset / most) as u16,
            offset: offset as u32,
            is_last,
        };
        let (bytes, sum) = cutter.piece(headers, len)?;
        finish(bytes, &layout, &piece, len, sum);
        offset += len;
        if is_last {
            return Ok(());
        }
    }
}

fn layout(head: &[u8], len: usize) -> Result<Layout, DropReason> {
    let (ethertype, network) = ethernet::payload(head).ok_or(DropReason::Runt)?;
    let packet = &head[network..];
    let (is_v6, transport, end) = match ethertype {
        EtherType::IPV4 => {
            let (ip, _) = Ipv4Header::ref_from_prefix(packet).map_err(|_| DropReason::Runt)?;
            let transport = match ip.protocol {
                protocol::TCP => network + ip.header_len(),
                _ => return Err(DropReason::Oversize),
            };
            let end = network + ip.packet_len(len.saturating_sub(network));
            (false, transport, end)
        }
        EtherType::IPV6 => {
            let (ip, _) = Ipv6Header::ref_from_prefix(packet).map_err(|_| DropReason::Runt)?;
            let upper = ipv6::walk(packet).map_err(|_| DropReason::BadExtension)?;
            if upper.protocol != protocol::TCP || upper.fragment.is_some() {
                return Err(DropReason::Oversize);
            }
            let end = network + ipv6::HEADER_LEN + usize::from(ip.payload_length.get());
            (true, network + upper.offset, end)
        }
        _ => return Err(DropReason::Oversize),
    };
    let tcp = head.get(transport..).ok_or(DropReason::Runt)?;
    let (tcp, _) = TcpHeader::ref_from_prefix(tcp).map_err(|_| DropReason::Runt)?;
    let payload = transport + tcp.header_len();
    let is_sound = tcp.header_len() >= size_of::<TcpHeader>()
        && transport >= network + size_of::<Ipv4Header>()
        && payload <= head.len()
        && payload <= end
        && end <= len;
    match is_sound {
        true => Ok(Layout {
            is_v6,
            network,
            transport,
            payload,
            end,
        }),
        false => Err(DropReason::BadLength),
    }
}

/// Which part of the super-frame a segment is.
pub(super) struct Piece {
    pub(super) number: u16,
    pub(super) offset: u32,
    pub(super) is_last: bool,
}

/// Makes the copied headers this segment's own.
pub(super) fn finish(bytes: &mut [u8], layout: &Layout, piece: &Piece, len: usize, payload: Sum) {
    let pseudo = renumber(bytes, layout, piece, len);
    let transport = &mut bytes[layout.transport..layout.payload];
    let sum = pseudo.bytes(transport).sum(payload).checksum();
    transport[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// As [`finish`], but leaves the checksum partial.
pub(super) fn finish_partly(bytes: &mut [u8], layout: &Layout, piece: &Piece, len: usize) {
    let sum = renumber(bytes, layout, piece, len).fold();
    let transport = &mut bytes[layout.transport..layout.payload];
    transport[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// Makes all but TCP's checksum, which is cleared, this segment's own, and
/// gives the sum of its pseudo-header.
fn renumber(bytes: &mut [u8], layout: &Layout, piece: &Piece, len: usize) -> Sum {
    let ip_len = layout.payload - layout.network + len;
    let transport_len = layout.payload - layout.transport + len;
    let (network, transport) =
        bytes[layout.network..layout.payload].split_at_mut(layout.transport - layout.network);
    let addresses = match layout.is_v6 {
        true => {
            if let Ok((ip, _)) = Ipv6Header::mut_from_prefix(network) {
                ip.payload_length = U16::new((ip_len - ipv6::HEADER_LEN) as u16);
            }
            &network[8..40]
        }
        false => {
            if let Ok((ip, _)) = Ipv4Header::mut_from_prefix(network) {
                ip.total_length = U16::new(ip_len as u16);
                ip.identification
                    .set(ip.identification.get().wrapping_add(piece.number));
                ip.checksum = U16::ZERO;
            }
            let sum = checksum::checksum(network);
            network[10..12].copy_from_slice(&sum.to_be_bytes());
            &network[12..20]
        }
    };
    if let Ok((tcp, _)) = TcpHeader::mut_from_prefix(transport) {
        number(tcp, piece);
        tcp.checksum = U16::ZERO;
    }
    pseudo_header(addresses, protocol::TCP, transport_len as u16)
}

/// Sequence number, flags and urgent pointer of one segment.
fn number(tcp: &mut TcpHeader, piece: &Piece) {
    let is_first = piece.offset == 0;
    let mut clear = 0;
    if !piece.is_last {
        clear |= flags::FIN | flags::PSH;
    }
    if !is_first {
        // SYN takes a sequence number before the first byte.
        let syn = u32::from(tcp.flags & flags::SYN != 0);
        let sequence = tcp.sequence.get().wrapping_add(piece.offset + syn);
        tcp.sequence.set(sequence);
        clear |= flags::CWR | flags::SYN;
    }
    if tcp.flags & flags::URG != 0 {
        match u32::from(tcp.urgent.get()).checked_sub(piece.offset) {
            Some(left) if left > 0 => tcp.urgent.set(left as u16),
            _ => {
                tcp.urgent.set(0);
                clear |= flags::URG;
            }
        }
    }
    tcp.flags &= !clear;
}
