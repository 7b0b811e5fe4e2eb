//! What leaves the node, and what the underlay says about it.
//!
//! Packets that leave go through [`super::route`] or [`super::bridge`] like
//! any other; [`leave`] then does what no device does for them: it finishes
//! their checksums and puts the outer headers before them.

use std::net::IpAddr;

use zerocopy::FromBytes;

use super::classify::{self, Decision, Ingress};
use super::parse::Headers;
use super::refuse::Refusal;
use super::{Lane, Round, chain, overlay};
use crate::drops::DropReason;
use crate::event::Event;
use crate::frame::{Awaited, Batch, TxChecksum, Verdict};
use crate::snapshot::{NextHop, PortEntry, RouteTarget, Snapshot, Vtep};
use crate::tables::flow::Actions;
use crate::types::{NextHopId, PortId, VtepId};
use crate::wire::icmpv4::{self, Icmpv4Header};
use crate::wire::icmpv6::{self, Icmpv6Header};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::protocol;
use crate::wire::udp::UdpHeader;

/// Where a packet of a port goes whose destination is not on this node.
pub(super) fn beyond(
    snapshot: &Snapshot,
    port: &PortEntry,
    (source, destination): (IpAddr, IpAddr),
) -> Decision {
    let unreachable = Decision::Refuse(Refusal::NetUnreachable, DropReason::NoRoute);
    let to = |id: NextHopId| match snapshot.next_hop(id) {
        Some(next_hop) => by(snapshot, port, (id, next_hop)),
        None => unreachable,
    };
    match snapshot.routes.lookup(destination) {
        None | Some(RouteTarget::Unreachable) => unreachable,
        Some(RouteTarget::Prohibited) => Decision::Refuse(Refusal::Prohibited, DropReason::NoRoute),
        Some(RouteTarget::Blackhole) => Decision::Drop(DropReason::NoRoute),
        Some(RouteTarget::OnLink) => Decision::Find(destination),
        Some(RouteTarget::Host(out)) => classify::deliver(snapshot, Ingress::Port(port), out),
        Some(RouteTarget::Vtep(id)) => match snapshot.vtep(id) {
            Some(vtep) => through(snapshot, port, (id, vtep)),
            None => unreachable,
        },
        Some(RouteTarget::NextHop(id)) => to(id),
        Some(RouteTarget::Spread(spread)) => to(spread.next_hop(source, destination)),
    }
}

/// Through the overlay.
fn through(snapshot: &Snapshot, port: &PortEntry, (id, vtep): (VtepId, &Vtep)) -> Decision {
    if let Err(missing) = resolved(snapshot, vtep) {
        return missing.map_or(
            Decision::Refuse(Refusal::NetUnreachable, DropReason::NoRoute),
            Decision::Wait,
        );
    }
    let mtu = port.mtu.min(vtep.mtu).min(u32::from(u16::MAX)) as u16;
    Decision::Forward(Actions {
        destination: vtep.mac,
        source: snapshot.underlay.vtep_mac,
        out: id.0,
        mtu,
        segment_mtu: mtu,
        flags: Actions::ROUTE | Actions::ENCAPSULATE,
    })
}

/// Whether the way to a remote end is known, else the neighbour that is
/// missing, when there is one.
pub(super) fn resolved(snapshot: &Snapshot, vtep: &Vtep) -> Result<(), Option<NextHopId>> {
    match snapshot.next_hop(vtep.next_hop) {
        None => Err(None),
        Some(next_hop) if next_hop.mac.is_none() => Err(Some(vtep.next_hop)),
        Some(_) => Ok(()),
    }
}

/// To a neighbour on the underlay, as it is.
fn by(snapshot: &Snapshot, port: &PortEntry, (id, next_hop): (NextHopId, &NextHop)) -> Decision {
    let Some(mac) = next_hop.mac else {
        return Decision::Wait(id);
    };
    let mtu = port.mtu.min(next_hop.mtu).min(u32::from(u16::MAX)) as u16;
    Decision::Forward(Actions {
        destination: mac,
        source: snapshot.underlay.mac,
        out: next_hop.port.0,
        mtu,
        segment_mtu: mtu,
        flags: Actions::ROUTE | Actions::UPLINK,
    })
}

/// Makes a packet that goes on as it is ready for the wire, and names the way
/// out.
#[inline(always)]
pub(super) fn leave(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    (checksum, actions, hash): (Option<TxChecksum>, &Actions, u64),
) -> Result<PortId, DropReason> {
    if let Some(field) = checksum {
        chain::complete(round.umem, batch, index, field);
    }
    if !actions.has(Actions::ENCAPSULATE) {
        return Ok(PortId(actions.out));
    }
    let vtep = round.snapshot.vtep(VtepId(actions.out));
    let (Some(vtep), Some(out)) = (vtep, round.snapshot.underlay.uplink) else {
        return Err(DropReason::PortGone);
    };
    let source_port = overlay::source_port(hash);
    overlay::wrap(round.umem, batch, index, vtep, source_port)?;
    Ok(out)
}

/// What becomes of a packet that goes on in pieces of at most `mtu` bytes.
pub(super) fn in_pieces(mtu: u16, actions: &Actions, hash: u64) -> Verdict {
    let mtu = u32::from(mtu);
    match actions.has(Actions::ENCAPSULATE) {
        true => Verdict::Tunnel {
            vtep: VtepId(actions.out),
            mtu,
            source_port: overlay::source_port(hash),
        },
        false => Verdict::Segment {
            out: PortId(actions.out),
            mtu,
        },
    }
}

/// Sends the switch's answer to a packet that came out of the overlay back
/// into it.
#[cold]
pub(super) fn answer(
    round: &Round<'_>,
    batch: &mut Batch,
    index: usize,
    dropped: Option<DropReason>,
) -> Verdict {
    let id = batch.packets()[index].vtep;
    let Some(vtep) = id.and_then(|id| round.snapshot.vtep(id)) else {
        return Verdict::Reply { dropped };
    };
    match overlay::wrap_reply(round.umem, batch.head_mut(index), vtep) {
        Ok(()) => Verdict::Reply { dropped },
        Err(reason) => Verdict::Drop(reason),
    }
}

/// An ICMP error to the node: about an outer packet it may say the path's MTU,
/// which control is told.
pub(super) fn news(
    round: &Round<'_>,
    batch: &Batch,
    index: usize,
    headers: &Headers,
    lane: &mut Lane,
) -> Verdict {
    let bytes = round.umem.bytes(batch.head(index));
    let message = bytes.get(usize::from(headers.transport)..);
    let port = round.snapshot.underlay.vxlan_port;
    let about = message.and_then(|message| match headers.protocol {
        protocol::ICMP => quoted_v4(message, port),
        protocol::ICMPV6 => quoted_v6(message, port),
        _ => None,
    });
    let Some((destination, mtu)) = about else {
        return Verdict::Drop(DropReason::NoEndpoint);
    };
    let mut vteps = round.snapshot.vteps.iter().flatten();
    if !vteps.any(|vtep| vtep.address == destination) {
        return Verdict::Drop(DropReason::UnknownVtep);
    }
    if let Some(mtu) = mtu {
        lane.tell(Event::PathMtu { destination, mtu });
    }
    Verdict::Drop(DropReason::OuterUndelivered)
}

/// Where an outer packet went that an ICMP error quotes, and the MTU that the
/// error names.
fn quoted_v4(message: &[u8], vxlan_port: u16) -> Option<(IpAddr, Option<u32>)> {
    let (icmp, quote) = Icmpv4Header::ref_from_prefix(message).ok()?;
    let (ip, _) = Ipv4Header::ref_from_prefix(quote).ok()?;
    let (udp, _) = UdpHeader::ref_from_prefix(quote.get(ip.header_len()..)?).ok()?;
    if ip.protocol != protocol::UDP || udp.destination.get() != vxlan_port {
        return None;
    }
    let is_too_big = (icmp.kind, icmp.code)
        == (
            icmpv4::kind::UNREACHABLE,
            icmpv4::unreachable::FRAGMENTATION_NEEDED,
        );
    let mtu = is_too_big.then(|| u32::from(icmp.sequence.get()));
    Some((ip.destination().into(), mtu))
}

fn quoted_v6(message: &[u8], vxlan_port: u16) -> Option<(IpAddr, Option<u32>)> {
    let (icmp, quote) = Icmpv6Header::ref_from_prefix(message).ok()?;
    let (ip, _) = Ipv6Header::ref_from_prefix(quote).ok()?;
    let (udp, _) = UdpHeader::ref_from_prefix(quote.get(ipv6::HEADER_LEN..)?).ok()?;
    if ip.next_header != protocol::UDP || udp.destination.get() != vxlan_port {
        return None;
    }
    let mtu = (icmp.kind == icmpv6::kind::PACKET_TOO_BIG).then(|| icmp.body.get());
    Some((ip.destination().into(), mtu))
}

impl Lane {
    /// Tells control that a packet waits, now and then for each neighbour.
    pub(super) fn tell_missing(&mut self, next_hop: NextHopId, now_ms: u32) {
        if self.told_missing.may_tell(u32::from(next_hop.0), now_ms) {
            self.tell(Event::NeighborMissing { next_hop });
        }
    }

    /// Tells control of a station that it is to find, and gives what its
    /// packets wait for.
    pub(super) fn tell_wanted(&mut self, address: IpAddr, now_ms: u32) -> Awaited {
        let digest = station_digest(address);
        if self.told_wanted.may_tell(digest, now_ms) {
            self.tell(Event::StationWanted { address });
        }
        Awaited::Station(digest)
    }
}

/// Of an address, the same number every time.
fn station_digest(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => v6.segments().chunks(2).fold(0, |digest: u32, pair| {
            digest.rotate_left(5) ^ (u32::from(pair[0]) << 16 | u32::from(pair[1]))
        }),
    }
}

/// What control was told of lately, by number: once in [`AGAIN_MS`] of each,
/// and of so many in that time, whoever scans a network.
#[derive(Debug)]
pub(super) struct Told {
    /// The number and when, in milliseconds; numbers that fall together forget
    /// each other.
    places: [(u32, u32); Told::PLACES],
    began_ms: u32,
    count: u32,
}

/// How often control hears of a neighbour that packets wait for.
const AGAIN_MS: u32 = 100;

impl Told {
    pub(super) const PLACES: usize = 64;
    const MOST: u32 = 64;

    /// So long ago that the lane's first moment may tell: its clock starts at
    /// 0.
    const NEVER_MS: u32 = 0u32.wrapping_sub(AGAIN_MS);

    pub(super) const fn nothing() -> Told {
        Told {
            places: [(0, Told::NEVER_MS); Told::PLACES],
            began_ms: Told::NEVER_MS,
            count: 0,
        }
    }

    fn may_tell(&mut self, number: u32, now_ms: u32) -> bool {
        let (last, told_ms) = &mut self.places[number as usize % Told::PLACES];
        if *last == number && now_ms.wrapping_sub(*told_ms) < AGAIN_MS {
            return false;
        }
        if now_ms.wrapping_sub(self.began_ms) >= AGAIN_MS {
            (self.began_ms, self.count) = (now_ms, 0);
        }
        self.count += 1;
        let is_told = self.count <= Told::MOST;
        if is_told {
            (*last, *told_ms) = (number, now_ms);
        }
        is_told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_of_at_once_and_then_now_and_then() {
        let mut told = Told::nothing();
        // Two that fall together, from the first moment.
        let (one, other) = (7, 7 + Told::PLACES as u32);
        assert!(told.may_tell(one, 0));
        assert!(!told.may_tell(one, AGAIN_MS - 1));
        assert!(told.may_tell(other, AGAIN_MS - 1));
        assert!(told.may_tell(other, 2 * AGAIN_MS));
    }

    #[test]
    fn a_scan_is_not_told_in_full() {
        let mut told = Told::nothing();
        let tell =
            |told: &mut Told, now_ms| (1000..2000).filter(|n| told.may_tell(*n, now_ms)).count();
        assert_eq!(tell(&mut told, 5), Told::MOST as usize);
        assert_eq!(tell(&mut told, 50), 0);
        assert_eq!(tell(&mut told, 5 + AGAIN_MS), Told::MOST as usize);
    }
}
