//! Cuts an IPv4 packet into fragments (RFC 791, section 2.3).
//!
//! Every fragment carries the datagram's identification; the more-fragments
//! bit is clear on the last only. Options without the copied bit stay on the
//! first one: in the others no-operations stand in their place.

use zerocopy::FromBytes;
use zerocopy::big_endian::U16;

use super::chain::{self, Cutter, MAX_HEADERS};
use crate::drops::DropReason;
use crate::frame::Batch;
use crate::umem::{FramePool, Umem};
use crate::wire::checksum;
use crate::wire::ethernet::{self, EtherType};
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::tunnel;

/// Where the IPv4 header lies, and where the packet ends.
struct Layout {
    network: usize,
    payload: usize,
    end: usize,
}

/// As [`super::segment::segment`], which calls it and undoes what it did when
/// it fails.
pub(super) fn cut(
    umem: &Umem,
    pool: &mut FramePool,
    batch: &Batch,
    index: usize,
    mtu: u32,
    out: &mut Batch,
) -> Result<(), DropReason> {
    let packet = &batch.packets()[index];
    let head = umem.bytes(batch.head(index));
    let layout = layout(head, packet.len as usize)?;
    let mut headers = [0; MAX_HEADERS];
    let headers = &mut headers[..layout.payload];
    headers.copy_from_slice(&head[..layout.payload]);
    // All but the last hold a multiple of 8 bytes.
    let room = (mtu as usize + layout.network).saturating_sub(layout.payload);
    let most = room & !7;
    if most == 0 {
        return Err(DropReason::Oversize);
    }
    let total = layout.end - layout.payload;
    let mut cutter = Cutter::new(umem, pool, (batch, index), layout.payload, out);
    let mut offset = 0;
    while offset < total {
        let len = match total - offset <= room {
            true => total - offset,
            false => most,
        };
        let (bytes, _) = cutter.piece(headers, len)?;
        let is_last = offset + len == total;
        finish(
            &mut bytes[layout.network..layout.payload],
            offset,
            len,
            is_last,
        );
        if offset == 0 {
            complete_checksum(umem, batch, index, bytes)?;
            drop_uncopied(&mut headers[layout.network + ipv4::HEADER_LEN..]);
        }
        offset += len;
    }
    Ok(())
}

fn layout(head: &[u8], len: usize) -> Result<Layout, DropReason> {
    let (ethertype, network) = ethernet::payload(head).ok_or(DropReason::Runt)?;
    if ethertype != EtherType::IPV4 {
        return Err(DropReason::Oversize);
    }
    let (ip, _) = Ipv4Header::ref_from_prefix(&head[network..]).map_err(|_| DropReason::Runt)?;
    if ip.dont_fragment() {
        return Err(DropReason::Oversize);
    }
    let payload = network + ip.header_len();
    let end = network + usize::from(ip.total_length.get());
    let is_sound = ip.header_len() >= ipv4::HEADER_LEN
        && payload <= head.len()
        && payload <= end
        && end <= len;
    match is_sound {
        true => Ok(Layout {
            network,
            payload,
            end,
        }),
        false => Err(DropReason::BadLength),
    }
}

/// Makes the copied header this fragment's own; `offset` counts from the
/// packet's payload, which may be a fragment itself.
fn finish(header: &mut [u8], offset: usize, len: usize, is_last: bool) {
    let header_len = header.len();
    if let Ok((ip, _)) = Ipv4Header::mut_from_prefix(header) {
        let more = match is_last && !ip.more_fragments() {
            true => 0,
            false => ipv4::MORE_FRAGMENTS,
        };
        let units = ((ip.fragment_offset() + offset) / 8) as u16;
        ip.total_length = U16::new((header_len + len) as u16);
        ip.flags_fragment = U16::new(more | units);
        ip.checksum = U16::ZERO;
    }
    let sum = checksum::checksum(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A partial checksum covers the whole datagram, so nobody could finish it
/// from a fragment: it is finished here, in the first one.
fn complete_checksum(
    umem: &Umem,
    batch: &Batch,
    index: usize,
    first: &mut [u8],
) -> Result<(), DropReason> {
    let head = umem.bytes(batch.head(index));
    let total = batch.packets()[index].len as usize;
    let partial = ethernet::payload(head)
        .and_then(|(ethertype, at)| tunnel::partial_checksum(head, total, ethertype, at));
    let Some(partial) = partial else {
        return Ok(());
    };
    let sum = chain::sum(umem, batch, index, usize::from(partial.field.start));
    let at = usize::from(partial.field.start + partial.field.offset);
    let field = first.get_mut(at..at + 2).ok_or(DropReason::Oversize)?;
    let sum = chain::finished(sum, partial.field);
    field.copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Puts no-operations in the place of options that only the first fragment
/// carries. Parse walked them already.
fn drop_uncopied(options: &mut [u8]) {
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        let len = match kind {
            0 => return,
            1 => 1,
            _ => usize::from(options.get(at + 1).copied().unwrap_or(1)).max(1),
        };
        let end = (at + len).min(options.len());
        if kind & 0x80 == 0 {
            options[at..end].fill(1);
        }
        at = end;
    }
}
