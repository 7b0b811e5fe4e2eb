//! Merges runs of TCP segments that came by the uplink into super-frames, as
//! the kernel's generic receive offload does, before they go to a local port.
//!
//! It stands between `process` and the way out: every packet of the batch has
//! its verdict, is taken out of its tunnel, and begins with the Ethernet
//! header that it leaves with. Nothing is copied: the segments' frames are
//! chained, all headers but the first cut off. The result is what the sender
//! would have handed to a network card that segments, with a partial checksum,
//! and its verdict says how to cut it ([`Verdict::Segment`]), so that cutting
//! it gives the same segments again. A packet socket hands it on uncut where
//! the device takes it.
//!
//! Merged is what net/ipv4/tcp_offload.c (`tcp_gro_receive`) and
//! include/net/gro.h (`inet_gro_flush`, `ipv6_gro_flush`) merge, and a little
//! less: neighbours in sequence of one connection whose headers differ in
//! length, checksum, IPv4 identification (one more each; or all the same where
//! DF makes it meaningless, RFC 6864) and sequence number only. PSH and FIN end
//! a run and CWR may only begin one; other flags than ACK and ECE, empty
//! segments, options besides timestamps (SACK blocks, say) and extension
//! headers are never merged. Any packet of a connection ends its run, so that
//! nothing is overtaken.
//!
//! A checksum is verified before its packet is merged: the receiver will not
//! look at it any more. A packet with a wrong one goes on as it is.

use super::chain;
use crate::frame::{Batch, MAX_CHAIN, Packet, TxChecksum, Verdict};
use crate::snapshot::{PortEntry, Role, Snapshot};
use crate::types::PortId;
use crate::umem::Umem;
use crate::wire::checksum::{self, Sum, pseudo_header};
use crate::wire::ethernet;
use crate::wire::ipv4::{self, DONT_FRAGMENT};
use crate::wire::ipv6;
use crate::wire::protocol;
use crate::wire::tcp::{self, flags};

const L3: usize = ethernet::HEADER_LEN;

/// Connections that are followed at a time; a batch rarely has more that send
/// in bulk.
const MAX_RUNS: usize = 8;

/// Longest IP packet.
const MAX_LEN: usize = 65535;

/// No packet of the batch.
const NONE: u8 = u8::MAX;

/// A timestamp option behind two no-operations, as everybody sends it (RFC
/// 7323, appendix A).
const ALIGNED_TIMESTAMP: [u8; 4] = [1, 1, 8, 10];

/// The stage's memory, kept from batch to batch.
#[derive(Debug)]
pub(crate) struct Coalescer(Batch);

impl Coalescer {
    pub(crate) fn new() -> Coalescer {
        Coalescer(Batch::new())
    }

    /// Merges what can be merged in a decided batch of one port. Every frame
    /// stays in the batch; merged packets are where their first segment was.
    #[inline]
    pub(crate) fn merge(&mut self, umem: &Umem, batch: &mut Batch, snapshot: &Snapshot) -> bool {
        if !(2..=Batch::MAX_PACKETS).contains(&batch.len()) {
            return false;
        }
        let from = snapshot.port(batch.packets()[0].in_port);
        from.is_some_and(|port| port.role == Role::Uplink) && self.merge_all(umem, batch, snapshot)
    }

    fn merge_all(&mut self, umem: &Umem, batch: &mut Batch, snapshot: &Snapshot) -> bool {
        let mut runs = Runs::new();
        for index in 0..batch.len() {
            if let Some(segment) = Segment::read(umem, batch, index, snapshot) {
                runs.add(umem, batch, index, segment);
            }
        }
        if runs.joined == 0 {
            return false;
        }
        for index in 0..batch.len() {
            if runs.joined >> index & 1 == 0 {
                self.take_over(umem, batch, index, &runs);
            }
        }
        batch.clear();
        std::mem::swap(batch, &mut self.0);
        true
    }

    /// Moves a packet and those that joined it.
    fn take_over(&mut self, umem: &Umem, batch: &mut Batch, head: usize, runs: &Runs) {
        let mut packet = batch.packets()[head];
        let first = self.0.frames.len();
        self.0.frames.extend(batch.take(head).map(Some));
        if runs.next[head] != NONE
            && let Verdict::Forward { out, .. } = packet.verdict
        {
            packet.verdict = Verdict::Segment {
                out,
                // Each piece as long as the first segment was.
                mtu: packet.len - L3 as u32,
            };
            packet.len += self.take_payloads(umem, batch, first, runs.following(head));
            if let Some(frame) = self.0.frames[first].as_mut() {
                let headers = Headers::of(umem.bytes(frame));
                let len = packet.len as usize;
                headers.rewrite(umem.bytes_mut(frame), len, runs.ends[head]);
            }
        }
        packet.first = first as u32;
        packet.frames = (self.0.frames.len() - first) as u8;
        self.0.packets.push(packet);
    }

    /// Moves what stands behind the headers of packets, and says how many
    /// bytes. The first frame of their run is at `first`.
    fn take_payloads(
        &mut self,
        umem: &Umem,
        batch: &mut Batch,
        first: usize,
        members: impl Iterator<Item = usize>,
    ) -> u32 {
        let frames = &mut self.0.frames;
        let headers = frames[first].as_ref().map(|f| Headers::of(umem.bytes(f)));
        let cut = headers.map_or(0, |headers| headers.payload);
        let mut len = 0;
        for member in members {
            // Segment::read() saw one byte more at least.
            let is_cut = batch.head_mut(member).pull_front(cut);
            debug_assert!(is_cut, "a segment goes on behind its headers");
            len += batch.packets()[member].len - cut as u32;
            frames.extend(batch.take(member).map(Some));
        }
        len
    }
}

/// Where the headers of a segment lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Headers {
    is_v6: bool,
    pub(super) transport: usize,
    pub(super) payload: usize,
}

impl Headers {
    /// Of a packet that [`is_plain`] let pass.
    fn of(bytes: &[u8]) -> Headers {
        let is_v6 = bytes[L3] >> 4 == 6;
        let transport = L3
            + if is_v6 {
                ipv6::HEADER_LEN
            } else {
                ipv4::HEADER_LEN
            };
        let payload = transport + usize::from(bytes[transport + 12] >> 4) * 4;
        Headers {
            is_v6,
            transport,
            payload,
        }
    }

    /// Makes the first segment's headers those of a packet of `len` bytes with
    /// a partial checksum, and sets the flags `ends`.
    pub(super) fn rewrite(&self, bytes: &mut [u8], len: usize, ends: u8) {
        let (ip_len, tcp_len) = (len - L3, len - self.transport);
        let addresses = match self.is_v6 {
            true => {
                let payload_len = (ip_len - ipv6::HEADER_LEN) as u16;
                bytes[L3 + 4..L3 + 6].copy_from_slice(&payload_len.to_be_bytes());
                L3 + 8..L3 + 40
            }
            false => {
                bytes[L3 + 2..L3 + 4].copy_from_slice(&(ip_len as u16).to_be_bytes());
                bytes[L3 + 10..L3 + 12].fill(0);
                let sum = checksum::checksum(&bytes[L3..L3 + ipv4::HEADER_LEN]);
                bytes[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
                L3 + 12..L3 + 20
            }
        };
        bytes[self.transport + 13] |= ends;
        let partial = pseudo_header(&bytes[addresses], protocol::TCP, tcp_len as u16).fold();
        let field = self.transport + tcp::CHECKSUM_OFFSET;
        bytes[field..field + 2].copy_from_slice(&partial.to_be_bytes());
    }
}

/// A TCP packet on its way to a port that takes super-frames.
#[derive(Debug, Clone, Copy)]
struct Segment {
    out: PortId,
    /// Longest packet that the port's device takes.
    limit: usize,
    /// Folds addresses and ports: unequal for most pairs of connections.
    hash: u32,
    headers: Headers,
    /// Bytes of payload.
    len: usize,
    frames: usize,
    /// Whether it may be merged at all, into an older run or with a younger
    /// segment.
    is_plain: bool,
    checksum: Option<TxChecksum>,
}

impl Segment {
    /// `None` for what is no TCP packet: it ends nobody's run.
    fn read(umem: &Umem, batch: &Batch, index: usize, snapshot: &Snapshot) -> Option<Segment> {
        let packet = &batch.packets()[index];
        let (out, checksum, is_whole) = match packet.verdict {
            Verdict::Forward { out, checksum } => (out, checksum, true),
            Verdict::Segment { out, .. } => (out, None, false),
            Verdict::Tunnel { .. }
            | Verdict::Flood { .. }
            | Verdict::Wait(_)
            | Verdict::Reply { .. }
            | Verdict::Drop(_) => return None,
        };
        let bytes = umem.bytes(batch.head(index));
        let (headers, is_bare) = locate(bytes)?;
        let mut segment = Segment {
            out,
            limit: 0,
            hash: hash(bytes, &headers),
            len: (packet.len as usize).saturating_sub(headers.payload),
            frames: usize::from(packet.frames),
            is_plain: false,
            checksum,
            headers,
        };
        if is_whole
            && is_bare
            && let Some(port) = snapshot.port(out)
            && takes_merged(port, packet)
        {
            segment.limit = L3 + MAX_LEN.min(port.device_mtu as usize);
            segment.is_plain = is_plain(bytes, &headers, packet.len as usize);
        }
        Some(segment)
    }
}

/// Whether packets for that port may be merged, and this one is none already.
fn takes_merged(port: &PortEntry, packet: &Packet) -> bool {
    port.super_frames && port.role != Role::Uplink && packet.len as usize <= L3 + port.mtu as usize
}

/// Where the headers of a TCP packet lie, and whether nothing stands between
/// the plain IP header and TCP's.
pub(super) fn locate(bytes: &[u8]) -> Option<(Headers, bool)> {
    let ip = bytes.get(L3..)?;
    let (is_v6, len, is_bare) = match (bytes.get(12..14)?, *ip.first()?) {
        ([0x08, 0x00], version_ihl) => {
            if *ip.get(9)? != protocol::TCP || version_ihl >> 4 != 4 {
                return None;
            }
            // A fragment has no header to look at, or not the whole segment.
            let is_whole = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & !DONT_FRAGMENT == 0;
            let len = usize::from(version_ihl & 0x0f) * 4;
            (false, len, is_whole && len == ipv4::HEADER_LEN)
        }
        ([0x86, 0xdd], version_class) if version_class >> 4 == 6 => {
            let upper = ipv6::walk(ip).ok()?;
            if upper.protocol != protocol::TCP {
                return None;
            }
            (true, upper.offset, upper.offset == ipv6::HEADER_LEN)
        }
        _ => return None,
    };
    let transport = L3 + len;
    let tcp = bytes.get(transport..transport + tcp::HEADER_LEN)?;
    let payload = transport + usize::from(tcp[12] >> 4) * 4;
    let headers = Headers {
        is_v6,
        transport,
        payload,
    };
    Some((headers, is_bare))
}

/// Whether the headers of a segment of `len` bytes of frame allow merging: it
/// has payload, and its lengths, flags and options are the ordinary ones.
pub(super) fn is_plain(bytes: &[u8], headers: &Headers, len: usize) -> bool {
    let Headers {
        is_v6,
        transport,
        payload,
    } = *headers;
    let claimed = match is_v6 {
        true => ipv6::HEADER_LEN + usize::from(word(bytes, L3 + 4)),
        false => usize::from(word(bytes, L3 + 2)),
    };
    let others = flags::SYN | flags::RST | flags::URG;
    payload >= transport + tcp::HEADER_LEN
        && payload < bytes.len()
        && claimed + L3 == len
        && bytes[transport + 13] & others == 0
        && has_plain_options(&bytes[transport + tcp::HEADER_LEN..payload])
}

/// No options but timestamps.
fn has_plain_options(options: &[u8]) -> bool {
    options.is_empty() || options.len() == 12 && options[..4] == ALIGNED_TIMESTAMP
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn double_word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Bytes of both addresses in the frame.
fn addresses(headers: &Headers) -> std::ops::Range<usize> {
    match headers.is_v6 {
        true => L3 + 8..L3 + 40,
        false => L3 + 12..L3 + 20,
    }
}

fn hash(bytes: &[u8], headers: &Headers) -> u32 {
    let at = addresses(headers);
    let source = double_word(bytes, at.start + at.len() / 2 - 4);
    let destination = double_word(bytes, at.end - 4);
    let ports = double_word(bytes, headers.transport);
    source.rotate_left(7) ^ destination ^ ports.rotate_left(13)
}

pub(super) fn is_same_connection(a: &[u8], b: &[u8], one: &Headers, other: &Headers) -> bool {
    let (x, y) = (one.transport, other.transport);
    one.is_v6 == other.is_v6
        && a[addresses(one)] == b[addresses(other)]
        && a[x..x + 4] == b[y..y + 4]
}

/// Segments of one connection that are to be merged.
#[derive(Debug, Clone, Copy)]
struct Run {
    head: u8,
    last: u8,
    frames: usize,
    line: Line,
    /// The head as it was read.
    first: Segment,
    /// Its checksum was found right.
    is_verified: bool,
}

/// Segments in sequence, as far as their headers tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    /// Of the first one.
    headers: Headers,
    count: u16,
    /// Bytes of the merged packet.
    pub(super) len: usize,
    /// Bytes of the first one's payload: no other has more.
    pub(super) first_len: usize,
    /// IPv4 identification does not count up.
    is_fixed_id: bool,
}

/// What the line is like with one segment more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Next {
    is_fixed_id: bool,
}

/// The runs of a batch.
struct Runs {
    open: [Option<Run>; MAX_RUNS],
    /// Which one makes room for the next.
    oldest: usize,
    /// The packet that follows each in its run.
    next: [u8; Batch::MAX_PACKETS],
    /// PSH and FIN of the last segment, by its run's head.
    ends: [u8; Batch::MAX_PACKETS],
    /// Packets that joined an older one, a bit each.
    joined: u64,
}

const _: () = assert!(Batch::MAX_PACKETS <= 64 && Batch::MAX_PACKETS < NONE as usize);

impl Runs {
    fn new() -> Runs {
        Runs {
            open: [None; MAX_RUNS],
            oldest: 0,
            next: [NONE; Batch::MAX_PACKETS],
            ends: [0; Batch::MAX_PACKETS],
            joined: 0,
        }
    }

    /// The packets that joined the run of `head`, in order.
    fn following(&self, head: usize) -> impl Iterator<Item = usize> + '_ {
        let after = |at: usize| {
            let next = self.next[at];
            (next != NONE).then_some(usize::from(next))
        };
        std::iter::successors(after(head), move |&at| after(at))
    }

    /// Has packet `index` join its connection's run, or ends that and begins
    /// another.
    fn add(&mut self, umem: &Umem, batch: &Batch, index: usize, segment: Segment) {
        let bytes = umem.bytes(batch.head(index));
        let known = self.open.iter().position(|run| {
            run.as_ref().is_some_and(|run| {
                run.first.hash == segment.hash && {
                    let head = umem.bytes(batch.head(run.head.into()));
                    is_same_connection(head, bytes, &run.first.headers, &segment.headers)
                }
            })
        });
        let ends = bytes[segment.headers.transport + 13] & (flags::PSH | flags::FIN);
        let Some(place) = known else {
            if segment.is_plain && ends == 0 {
                self.open[self.oldest] = Some(Run::begin(index, segment));
                self.oldest = (self.oldest + 1) % MAX_RUNS;
            }
            return;
        };
        let Some(run) = &mut self.open[place] else {
            return;
        };
        if run.takes(umem, batch, index, &segment) {
            self.next[usize::from(run.last)] = index as u8;
            self.ends[usize::from(run.head)] |= ends;
            self.joined |= 1 << index;
            run.last = index as u8;
            run.frames += segment.frames;
            // A short one is the last of what its sender had.
            if ends != 0 || segment.len < run.first.len {
                self.open[place] = None;
            }
        } else {
            let begins = segment.is_plain && ends == 0;
            self.open[place] = begins.then(|| Run::begin(index, segment));
        }
    }
}

impl Run {
    fn begin(index: usize, first: Segment) -> Run {
        Run {
            head: index as u8,
            last: index as u8,
            frames: first.frames,
            line: Line::begin(first.headers, first.len),
            first,
            is_verified: false,
        }
    }

    /// Whether packet `index` of the same connection continues the run, which
    /// then has it.
    fn takes(&mut self, umem: &Umem, batch: &Batch, index: usize, segment: &Segment) -> bool {
        let fits = segment.is_plain
            && segment.out == self.first.out
            && self.line.len + segment.len <= self.first.limit
            && self.frames + segment.frames <= MAX_CHAIN;
        if !fits {
            return false;
        }
        let head = umem.bytes(batch.head(self.head.into()));
        let bytes = umem.bytes(batch.head(index));
        let (headers, len) = (&segment.headers, segment.len);
        let Some(next) = self.line.next(head, bytes, headers, len) else {
            return false;
        };
        if !self.is_verified {
            self.is_verified = is_right(umem, batch, self.head.into(), &self.first);
        }
        if !self.is_verified || !is_right(umem, batch, index, segment) {
            return false;
        }
        self.line.extend(len, next);
        true
    }
}

impl Line {
    /// Of one segment with `len` bytes of payload.
    pub(super) fn begin(headers: Headers, len: usize) -> Line {
        Line {
            headers,
            count: 1,
            len: headers.payload + len,
            first_len: len,
            is_fixed_id: false,
        }
    }

    /// Whether a segment with `len` bytes of payload comes next, by its
    /// headers in `bytes` and those of the first one in `head`.
    pub(super) fn next(
        &self,
        head: &[u8],
        bytes: &[u8],
        headers: &Headers,
        len: usize,
    ) -> Option<Next> {
        let is_alike = len <= self.first_len
            && headers.is_v6 == self.headers.is_v6
            && headers.payload == self.headers.payload
            && head[..12] == bytes[..12]
            && self.continues(head, bytes);
        if !is_alike {
            return None;
        }
        let is_fixed_id = match headers.is_v6 {
            true => follows_v6(head, bytes).then_some(false),
            false => self.follows_v4(head, bytes),
        };
        is_fixed_id.map(|is_fixed_id| Next { is_fixed_id })
    }

    /// Adds a segment that [`Line::next`] let pass.
    pub(super) fn extend(&mut self, len: usize, next: Next) {
        self.count += 1;
        self.len += len;
        self.is_fixed_id = next.is_fixed_id;
    }

    /// How many segments there are.
    pub(super) fn count(&self) -> u64 {
        self.count.into()
    }

    /// The first one's headers.
    pub(super) fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Whether the TCP headers differ as neighbours' may.
    fn continues(&self, head: &[u8], bytes: &[u8]) -> bool {
        let at = self.headers.transport;
        let sent = (self.len - self.headers.payload) as u32;
        let may_differ = flags::FIN | flags::PSH | flags::CWR;
        double_word(bytes, at + 4) == double_word(head, at + 4).wrapping_add(sent)
            // Acknowledgment and header length.
            && bytes[at + 8..at + 13] == head[at + 8..at + 13]
            && (bytes[at + 13] ^ head[at + 13]) & !may_differ == 0
            && bytes[at + 13] & flags::CWR == 0
            // Window; urgent pointer and options.
            && bytes[at + 14..at + 16] == head[at + 14..at + 16]
            && bytes[at + 18..self.headers.payload] == head[at + 18..self.headers.payload]
    }

    /// Whether the IPv4 headers do, and then whether the identification stands
    /// still.
    fn follows_v4(&self, head: &[u8], bytes: &[u8]) -> Option<bool> {
        let is_same = |at: usize| bytes[L3 + at] == head[L3 + at];
        // Service, flags and offset, hops.
        if !(is_same(1) && is_same(6) && is_same(7) && is_same(8)) {
            return None;
        }
        let step = word(bytes, L3 + 4).wrapping_sub(word(head, L3 + 4));
        let may_stand = word(bytes, L3 + 6) & DONT_FRAGMENT != 0;
        match self.count {
            1 if step == 0 && may_stand => Some(true),
            _ if self.is_fixed_id => (step == 0).then_some(true),
            count => (step == count).then_some(false),
        }
    }
}

/// Whether the IPv6 headers differ as neighbours' may: class and flow label
/// and the hops are the same.
fn follows_v6(head: &[u8], bytes: &[u8]) -> bool {
    bytes[L3..L3 + 4] == head[L3..L3 + 4] && bytes[L3 + 7] == head[L3 + 7]
}

/// Whether the checksums are right: the IPv4 header's, and TCP's, which may be
/// partial where the port may have that.
fn is_right(umem: &Umem, batch: &Batch, index: usize, segment: &Segment) -> bool {
    let headers = &segment.headers;
    let bytes = umem.bytes(batch.head(index));
    let tcp_sum = || chain::sum(umem, batch, index, headers.transport);
    match segment.checksum {
        Some(partial) => {
            has_right_header(bytes, headers) && usize::from(partial.start) == headers.transport
        }
        None => are_right(bytes, headers, segment.len, tcp_sum),
    }
}

/// Whether the checksums of a segment with `len` bytes of payload are right.
/// `tcp_sum` is that of TCP header and payload.
pub(super) fn are_right(
    bytes: &[u8],
    headers: &Headers,
    len: usize,
    tcp_sum: impl FnOnce() -> Sum,
) -> bool {
    let tcp_len = headers.payload - headers.transport + len;
    let pseudo = pseudo_header(&bytes[addresses(headers)], protocol::TCP, tcp_len as u16);
    has_right_header(bytes, headers) && pseudo.sum(tcp_sum()).checksum() == 0
}

fn has_right_header(bytes: &[u8], headers: &Headers) -> bool {
    headers.is_v6 || checksum::checksum(&bytes[L3..headers.transport]) == 0
}
