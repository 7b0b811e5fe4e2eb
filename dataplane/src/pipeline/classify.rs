//! What becomes of the first packet of a routed flow, by the snapshot alone.
//!
//! The answer holds for every packet with the same key until the next
//! snapshot; what depends on the single packet (its hop count, its length,
//! its checksum) is left to [`super::route`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Lane;
use super::parse::{Headers, Part};
use super::refuse::Refusal;
use crate::drops::DropReason;
use crate::snapshot::{Destination, PortEntry, Role, Snapshot};
use crate::tables::flow::{Actions, FlowKey, FlowTable, KeyV4, KeyV6, UpperKey};
use crate::types::{PortId, is_routable};
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
    /// An echo request to the gateway.
    Echo,
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
}

/// Decides a routed packet that no flow answers for.
pub(super) fn classify<K: RoutedKey>(snapshot: &Snapshot, key: &K, headers: &Headers) -> Decision {
    let Some(port) = snapshot.port(PortId(key.upper().in_port)) else {
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
    if let Err(reason) = admit(snapshot, port, source, destination, headers.to_group) {
        return Decision::Drop(reason);
    }
    match snapshot.host(destination) {
        Some(Destination::Pod(out) | Destination::Host(out)) => deliver(snapshot, port, out),
        Some(Destination::Gateway) => serve::<K>(headers),
        None if snapshot.is_pod_address(destination) => {
            Decision::Refuse(Refusal::HostUnreachable, DropReason::NoEndpoint)
        }
        None => Decision::Refuse(Refusal::NetUnreachable, DropReason::NoRoute),
    }
}

/// Whether the addresses may cross the switch, and may come from this port.
fn admit(
    snapshot: &Snapshot,
    port: &PortEntry,
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
    if !may_send(snapshot, port, source) {
        return Err(DropReason::Spoofed);
    }
    // Link-local addresses stay on their link (RFC 4007, section 9): between
    // the pod and the gateway.
    let to_gateway = snapshot.host(destination) == Some(Destination::Gateway);
    if (is_link_local(source) || is_link_local(destination)) && !to_gateway {
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

/// The source guard: whether packets from this port may carry the address as
/// their source.
pub(super) fn may_send(snapshot: &Snapshot, port: &PortEntry, source: IpAddr) -> bool {
    match port.role {
        Role::Host => match snapshot.host(source) {
            Some(Destination::Pod(_) | Destination::Gateway) => false,
            Some(Destination::Host(_)) => true,
            None => !snapshot.is_pod_address(source),
        },
        Role::Pod | Role::SegmentPod(_) => port.may_use(source),
        Role::Uplink => false,
    }
}

fn deliver(snapshot: &Snapshot, port: &PortEntry, out: PortId) -> Decision {
    if out == port.id {
        return Decision::Drop(DropReason::SamePort);
    }
    let Some(entry) = snapshot.port(out) else {
        return Decision::Drop(DropReason::PortGone);
    };
    let mut flags = Actions::ROUTE;
    if entry.super_frames {
        flags |= Actions::SUPER_FRAMES;
    }
    let mtu = port.mtu.min(entry.mtu).min(u32::from(u16::MAX));
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
    let echo = match K::IS_V6 {
        true => (protocol::ICMPV6, icmpv6::kind::ECHO_REQUEST),
        false => (protocol::ICMP, icmpv4::kind::ECHO_REQUEST),
    };
    if (headers.protocol, headers.icmp_kind) == echo && headers.part == Part::Whole {
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
