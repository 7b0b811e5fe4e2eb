//! What becomes of the first packet of a routed flow, by the snapshot alone.
//!
//! The answer holds for every packet with the same key until the next
//! snapshot; what depends on the single packet (its hop count, its length,
//! its checksum) is left to [`super::route`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::parse::{Headers, Part};
use super::pieces::Pieces;
use super::refuse::Refusal;
use super::{Lane, uplink};
use crate::drops::DropReason;
use crate::frame::Packet;
use crate::snapshot::{Destination, Location, PortEntry, Role, RouteTarget, Snapshot};
use crate::tables::flow::{Actions, FlowKey, FlowTable, KeyV4, KeyV6, UpperKey};
use crate::types::{NextHopId, PortId, VtepId, is_routable};
use crate::wire::{icmpv4, icmpv6, ipv6, protocol};
use zerocopy::FromBytes;

/// What classify decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Goes on, and so does the flow.
    Forward(Actions),
    /// Goes nowhere.
    Drop(DropReason),
    /// Neighbour discovery, for [`super::neighbor`].
    Neighbor,
    /// An echo request to the gateway, or a piece of what may be one.
    Echo,
    /// An ICMP error to the node itself, for [`super::uplink::news`].
    News,
    /// Waits for a neighbour on the underlay.
    Wait(NextHopId),
    /// A station on the uplink's own network, which control has to find.
    Find(IpAddr),
    /// Goes nowhere, and its sender is told.
    Refuse(Refusal, DropReason),
}

/// A key of a routed flow.
pub(super) trait RoutedKey: FlowKey + FromBytes {
    const IS_V6: bool;
    fn source(&self) -> IpAddr;
    fn destination(&self) -> IpAddr;
    fn upper(&self) -> &UpperKey;
    fn table(lane: &mut Lane) -> &mut FlowTable<Self>;
    fn pieces(lane: &mut Lane) -> &mut Pieces<Self>;
}

impl RoutedKey for KeyV4 {
    const IS_V6: bool = false;

    fn source(&self) -> IpAddr {
        let [a, b, c, d, ..] = self.addresses;
        Ipv4Addr::new(a, b, c, d).into()
    }

    fn destination(&self) -> IpAddr {
        let [.., a, b, c, d] = self.addresses;
        Ipv4Addr::new(a, b, c, d).into()
    }

    #[inline(always)]
    fn upper(&self) -> &UpperKey {
        &self.upper
    }

    #[inline(always)]
    fn table(lane: &mut Lane) -> &mut FlowTable<KeyV4> {
        &mut lane.flows_v4
    }

    fn pieces(lane: &mut Lane) -> &mut Pieces<KeyV4> {
        &mut lane.pieces_v4
    }
}

impl RoutedKey for KeyV6 {
    const IS_V6: bool = true;

    fn source(&self) -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.addresses[..16]);
        Ipv6Addr::from(octets).into()
    }

    fn destination(&self) -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.addresses[16..]);
        Ipv6Addr::from(octets).into()
    }

    #[inline(always)]
    fn upper(&self) -> &UpperKey {
        &self.upper
    }

    #[inline(always)]
    fn table(lane: &mut Lane) -> &mut FlowTable<KeyV6> {
        &mut lane.flows_v6
    }

    fn pieces(lane: &mut Lane) -> &mut Pieces<KeyV6> {
        &mut lane.pieces_v6
    }
}

/// Decides a routed packet that no flow answers for.
pub(super) fn classify<K: RoutedKey>(snapshot: &Snapshot, key: &K, headers: &Headers) -> Decision {
    let Some(from) = Ingress::of(snapshot, key.upper().in_port) else {
        return Decision::Drop(DropReason::PortRemoved);
    };
    let (source, destination) = (key.source(), key.destination());
    if headers.protocol == protocol::ICMPV6
        && K::IS_V6
        && icmpv6::is_neighbor_discovery(headers.icmp_kind)
    {
        // Neighbour discovery is never fragmented (RFC 6980).
        return match headers.part {
            Part::Whole => Decision::Neighbor,
            Part::First | Part::Later => Decision::Drop(DropReason::BadFragment),
        };
    }
    if let Err(reason) = admit(snapshot, from, source, destination, headers.to_group) {
        return Decision::Drop(reason);
    }
    match snapshot.host(destination) {
        Some(Destination::Host(_)) if from.is_uplink() => Decision::News,
        Some(Destination::Pod(out) | Destination::Host(out)) => deliver(snapshot, from, out),
        Some(Destination::Gateway) => serve::<K>(headers),
        None if from.is_uplink() && snapshot.underlay.addresses.contains(&destination) => {
            Decision::News
        }
        None if snapshot.is_pod_address(destination) => {
            Decision::Refuse(Refusal::HostUnreachable, DropReason::NoEndpoint)
        }
        None => match from {
            Ingress::Port(port) if port.role != Role::Uplink => {
                uplink::beyond(snapshot, port, (source, destination))
            }
            Ingress::Port(_) | Ingress::Overlay(_) => Decision::Drop(DropReason::SplitHorizon),
        },
    }
}

/// Where a routed packet came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ingress<'a> {
    /// A port of this switch.
    Port(&'a PortEntry),
    /// A remote end of the overlay.
    Overlay(VtepId),
}

impl<'a> Ingress<'a> {
    /// As a flow key has it; `None` when it is gone.
    pub(super) fn of(snapshot: &'a Snapshot, in_port: u16) -> Option<Ingress<'a>> {
        match Location::from_key(in_port) {
            Location::Port(id) => snapshot.port(id).map(Ingress::Port),
            Location::Vtep(id) => snapshot.vtep(id).map(|_| Ingress::Overlay(id)),
        }
    }

    /// Of a packet.
    pub(super) fn of_packet(snapshot: &'a Snapshot, packet: &Packet) -> Option<Ingress<'a>> {
        let location = match packet.vtep {
            Some(vtep) => Location::Vtep(vtep),
            None => Location::Port(packet.in_port),
        };
        Ingress::of(snapshot, location.to_key())
    }

    pub(super) fn is_uplink(self) -> bool {
        matches!(self, Ingress::Port(port) if port.role == Role::Uplink)
    }

    /// The port, unless other nodes are beyond it.
    pub(super) fn local(self) -> Option<&'a PortEntry> {
        match self {
            Ingress::Port(port) if port.role != Role::Uplink => Some(port),
            Ingress::Port(_) | Ingress::Overlay(_) => None,
        }
    }
}

/// Whether the addresses may cross the switch, and may come from this port.
pub(super) fn admit(
    snapshot: &Snapshot,
    from: Ingress<'_>,
    source: IpAddr,
    destination: IpAddr,
    to_group: bool,
) -> Result<(), DropReason> {
    if is_group(destination) {
        return Err(DropReason::Multicast);
    }
    // Unicast inside a link-layer group frame is not forwarded (RFC 1812,
    // section 5.3.4).
    if to_group {
        return Err(DropReason::WrongMac);
    }
    if is_martian(source) || is_martian(destination) {
        return Err(DropReason::Martian);
    }
    if source == destination {
        return Err(DropReason::SelfAddressed);
    }
    if !may_send(snapshot, from, source) {
        return Err(DropReason::Spoofed);
    }
    // Link-local addresses stay on their link (RFC 4007, section 9): between
    // the pod and the gateway.
    let to_gateway = || snapshot.host(destination) == Some(Destination::Gateway);
    if (is_link_local(source) || is_link_local(destination)) && !to_gateway() {
        return Err(DropReason::Martian);
    }
    Ok(())
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

fn is_martian(address: IpAddr) -> bool {
    let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !is_routable(address) || is_mapped
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if ipv6::is_link_local(v6))
}

/// The source guard: whether packets from there may carry the address as
/// their source. Through the overlay come only addresses of the remote end.
pub(super) fn may_send(snapshot: &Snapshot, from: Ingress<'_>, source: IpAddr) -> bool {
    let port = match from {
        Ingress::Port(port) => port,
        Ingress::Overlay(vtep) => {
            let its = Some(RouteTarget::Vtep(vtep));
            return snapshot.routes.lookup(source) == its
                || snapshot.underlay.sources.lookup(source) == its;
        }
    };
    match port.role {
        Role::Host => match snapshot.host(source) {
            Some(Destination::Pod(_) | Destination::Gateway) => false,
            Some(Destination::Host(_)) => true,
            None => !snapshot.is_pod_address(source),
        },
        Role::Pod | Role::SegmentPod(_) => port.may_use(source),
        // What the underlay carries, but nobody out there is one of us.
        Role::Uplink => snapshot.host(source).is_none() && !snapshot.is_pod_address(source),
    }
}

pub(super) fn deliver(snapshot: &Snapshot, from: Ingress<'_>, out: PortId) -> Decision {
    let mtu = match from {
        Ingress::Port(port) if port.id == out => return Decision::Drop(DropReason::SamePort),
        Ingress::Port(port) => port.mtu,
        Ingress::Overlay(_) => u32::MAX,
    };
    let Some(entry) = snapshot.port(out) else {
        return Decision::Drop(DropReason::PortGone);
    };
    let mut flags = Actions::ROUTE;
    if entry.super_frames {
        flags |= Actions::SUPER_FRAMES;
    }
    let mtu = mtu.min(entry.mtu).min(u32::from(u16::MAX));
    Decision::Forward(Actions {
        destination: entry.mac,
        source: snapshot.gateway.mac,
        out: out.0,
        mtu: mtu as u16,
        segment_mtu: entry.segment_mtu.min(mtu) as u16,
        flags,
    })
}

/// What the gateway itself answers. It reassembles nothing.
fn serve<K: RoutedKey>(headers: &Headers) -> Decision {
    let (icmp, request) = match K::IS_V6 {
        true => (protocol::ICMPV6, icmpv6::kind::ECHO_REQUEST),
        false => (protocol::ICMP, icmpv4::kind::ECHO_REQUEST),
    };
    let may_be_echo = headers.part == Part::Later || headers.icmp_kind == request;
    if headers.protocol == icmp && may_be_echo {
        return Decision::Echo;
    }
    if headers.part != Part::Whole {
        return Decision::Drop(DropReason::GatewayFragment);
    }
    match headers.protocol {
        protocol::UDP => Decision::Refuse(Refusal::PortUnreachable, DropReason::GatewayUnserved),
        _ => Decision::Drop(DropReason::GatewayUnserved),
    }
}
