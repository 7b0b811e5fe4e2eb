//! The gateway's echo reply, written over the request.
//!
//! A fragment of a request is turned round as the fragment of the reply: the
//! first one has all that differs, and later ones are known by it. So nothing
//! is reassembled, and the reply comes in pieces that its way takes.

use super::Lane;
use super::Round;
use super::classify::RoutedKey;
use super::masquerade::Subject;
use super::parse::{L3, Part};
use super::pieces::Datagram;
use crate::drops::DropReason;
use crate::frame::{Batch, Verdict};
use crate::tables::connection::{ConnectionId, Side};
use crate::tables::flow::Translation;
use crate::wire::checksum;
use crate::wire::{icmpv4, icmpv6};

/// Hops that the gateway's own packets start with.
pub(super) const HOPS: u8 = 64;

/// Turns an echo request round, or a piece of one. What other nodes ask in
/// several frames is not served.
pub(super) fn echo<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    subject: Subject<'_, K>,
    lane: &mut Lane,
) -> Verdict {
    let (index, headers) = (subject.index, subject.headers);
    let packet = batch.packets()[index];
    if packet.frames > 1 && packet.vtep.is_some() {
        return Verdict::Drop(DropReason::GatewayUnserved);
    }
    let bytes = round.umem.bytes(batch.head(index));
    if !is_of_an_echo(round, bytes, subject, lane) {
        return Verdict::Drop(DropReason::GatewayFragment);
    }
    let own_mac = round.own_mac(&packet);
    let bytes = round.umem.bytes_mut(batch.head_mut(index));
    bytes.copy_within(6..12, 0);
    bytes[6..12].copy_from_slice(&own_mac.0);
    if K::IS_V6 {
        swap::<16>(bytes, L3 + 8, L3 + 24);
        bytes[L3 + 7] = HOPS;
    } else {
        swap::<4>(bytes, L3 + 12, L3 + 16);
        set(bytes, L3 + 8, HOPS, L3 + 10);
    }
    if headers.part != Part::Later {
        let reply = match K::IS_V6 {
            true => icmpv6::kind::ECHO_REPLY,
            false => icmpv4::kind::ECHO_REPLY,
        };
        let transport = usize::from(headers.transport);
        set(bytes, transport, reply, transport + 2);
        if !K::IS_V6 {
            icmpv4::choose_zero(bytes, transport, headers.transport_len());
        }
    }
    match packet.frames {
        0 | 1 => Verdict::Reply { dropped: None },
        // Of a reply only the head frame is sent.
        _ => Verdict::Forward {
            out: packet.in_port,
            checksum: None,
        },
    }
}

/// Whether a packet is an echo request, which its later pieces do not say.
fn is_of_an_echo<K: RoutedKey>(
    round: &Round<'_>,
    bytes: &[u8],
    subject: Subject<'_, K>,
    lane: &mut Lane,
) -> bool {
    if subject.headers.part == Part::Whole {
        return true;
    }
    let Some(datagram) = Datagram::of(bytes, subject.headers, subject.key) else {
        return false;
    };
    let pieces = K::pieces(lane);
    if subject.headers.part == Part::First {
        let nothing = Translation::none(ConnectionId::default(), Side::Original);
        pieces.remember(subject.hash, datagram, nothing, round.now_ms);
        return true;
    }
    pieces.find(subject.hash, &datagram, round.now_ms).is_some()
}

fn swap<const N: usize>(bytes: &mut [u8], one: usize, other: usize) {
    let (front, back) = bytes.split_at_mut(other);
    front[one..one + N].swap_with_slice(&mut back[..N]);
}

/// Sets the first byte of the word at `at`, and updates the checksum that
/// covers it. A wrong checksum stays wrong, for the sender to see.
fn set(bytes: &mut [u8], at: usize, value: u8, checksum_at: usize) {
    let old = word(bytes, at);
    bytes[at] = value;
    let sum = checksum::update(word(bytes, checksum_at), old, word(bytes, at));
    bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
