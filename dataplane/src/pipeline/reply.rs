//! The gateway's echo reply, written over the request.

use super::Round;
use super::parse::{Headers, L3};
use crate::drops::DropReason;
use crate::frame::{Batch, Verdict};
use crate::wire::checksum;
use crate::wire::{icmpv4, icmpv6};

/// Hops that the gateway's own packets start with.
const HOPS: u8 = 64;

/// Turns an echo request round. Only the head frame of an answer is sent, so
/// a request of several frames is not served.
pub(super) fn echo(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    headers: &Headers,
    is_v6: bool,
) -> Verdict {
    if batch.packets()[index].frames > 1 {
        return Verdict::Drop(DropReason::GatewayUnserved);
    }
    let own_mac = round.own_mac(&batch.packets()[index]);
    let bytes = round.umem.bytes_mut(batch.head_mut(index));
    bytes.copy_within(6..12, 0);
    bytes[6..12].copy_from_slice(&own_mac.0);
    if is_v6 {
        swap::<16>(bytes, L3 + 8, L3 + 24);
        bytes[L3 + 7] = HOPS;
    } else {
        swap::<4>(bytes, L3 + 12, L3 + 16);
        set(bytes, L3 + 8, HOPS, L3 + 10);
    }
    let reply = match is_v6 {
        true => icmpv6::kind::ECHO_REPLY,
        false => icmpv4::kind::ECHO_REPLY,
    };
    let transport = usize::from(headers.transport);
    set(bytes, transport, reply, transport + 2);
    if !is_v6 {
        icmpv4::choose_zero(&mut bytes[transport..transport + headers.transport_len()]);
    }
    Verdict::Reply { dropped: None }
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
