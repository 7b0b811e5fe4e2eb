//! What control decided: the tables that `classify` reads.
//!
//! A snapshot never changes. Control builds a new one that shares every table
//! which did not change (`Arc` each), and publishes it with one pointer swap;
//! lanes refresh their reference once per batch. Nothing here is read for a
//! packet whose flow is already in the lane's flow table and whose generation
//! still holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::types::{Generation, MacAddr, NextHopId, PortId, SegmentId, VtepId};
use crate::wire::ipv6::link_local;

mod masquerade;
mod routes;
mod spread;
mod underlay;

pub use masquerade::Masquerade;
pub use routes::{RouteTable, RouteTarget};
pub use spread::Spread;
pub(crate) use underlay::Template;
pub use underlay::{Network, NextHop, OuterHeader, OuterPath, Underlay, Vtep};

/// A map keyed by address, seeded per process so that nobody can aim at one
/// bucket.
pub type AddressMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// The node's forwarding state at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Which publication this is; set by the publisher.
    pub generation: Generation,
    /// Ports by [`PortId`]; `None` where an id is not in use.
    pub ports: Arc<Vec<Option<PortEntry>>>,
    /// Routed IPv4 destinations that this node delivers itself.
    pub hosts_v4: Arc<AddressMap<Ipv4Addr, Destination>>,
    /// Routed IPv6 destinations that this node delivers itself.
    pub hosts_v6: Arc<AddressMap<Ipv6Addr, Destination>>,
    /// The switch as the routed pods' gateway.
    pub gateway: Arc<Gateway>,
    /// Layer-2 segments by [`SegmentId`]; `None` where an id is not in use.
    pub segments: Arc<Vec<Option<Segment>>>,
    /// What lies beyond this node, by longest prefix; looked at after `hosts`
    /// and this node's pod ranges.
    pub routes: Arc<RouteTable>,
    /// Remote ends of the overlay by [`VtepId`]; `None` where an id is not in
    /// use.
    pub vteps: Arc<Vec<Option<Vtep>>>,
    /// Neighbours on the underlay by [`NextHopId`]; `None` where an id is not
    /// in use.
    pub next_hops: Arc<Vec<Option<NextHop>>>,
    /// The uplink, and this node's own end of the overlay.
    pub underlay: Arc<Underlay>,
    /// Which packets leave with the node's address.
    pub masquerade: Arc<Masquerade>,
}

impl Snapshot {
    /// The port's entry, when it has one.
    pub fn port(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(id.index())?.as_ref()
    }

    /// The segment, when it exists.
    pub fn segment(&self, id: SegmentId) -> Option<&Segment> {
        self.segments.get(id.index())?.as_ref()
    }

    /// The remote end of the overlay, when it exists.
    pub fn vtep(&self, id: VtepId) -> Option<&Vtep> {
        self.vteps.get(id.index())?.as_ref()
    }

    /// The neighbour on the underlay, when it exists.
    pub fn next_hop(&self, id: NextHopId) -> Option<&NextHop> {
        self.next_hops.get(id.index())?.as_ref()
    }

    /// Whether the way to a remote end is known down to its neighbour.
    pub fn is_resolved(&self, vtep: &Vtep) -> bool {
        let next_hop = self.next_hop(vtep.next_hop);
        next_hop.is_some_and(|next_hop| next_hop.mac.is_some())
    }

    /// The segment that a port belongs to.
    pub fn segment_of(&self, port: &PortEntry) -> Option<SegmentId> {
        match port.role {
            Role::SegmentPod(segment) => Some(segment),
            Role::Host | Role::Uplink => self.underlay.segment,
            Role::Pod => None,
        }
    }

    /// Whether frames pass between two ports of one segment: not between the
    /// host port and the uplink, which the kernel has for itself.
    pub fn may_bridge(&self, from: PortId, to: PortId) -> bool {
        let role = |id| self.port(id).map(|port| port.role);
        !matches!(
            (role(from), role(to)),
            (Some(Role::Host), Some(Role::Uplink)) | (Some(Role::Uplink), Some(Role::Host))
        )
    }

    /// The routed destination of an address.
    pub fn host(&self, address: IpAddr) -> Option<Destination> {
        match address {
            IpAddr::V4(v4) => self.hosts_v4.get(&v4).copied(),
            IpAddr::V6(v6) => self.hosts_v6.get(&v6).copied(),
        }
    }

    /// Whether the address lies in this node's pod ranges, held or not.
    pub fn is_pod_address(&self, address: IpAddr) -> bool {
        self.gateway.pod_cidrs.iter().any(|c| c.contains(address))
    }
}

/// What a port is and may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortEntry {
    /// The port.
    pub id: PortId,
    /// What it connects and which network it belongs to.
    pub role: Role,
    /// MAC of the far end: the pod's interface, or the host's `spinlane0`.
    /// Frames towards the port carry it as destination; routed pods must send
    /// from it.
    pub mac: MacAddr,
    /// Addresses that may stand as source on this port (routed pods, guarded
    /// segments). Link-local IPv6 computed from `mac` is allowed besides.
    pub addresses: Vec<IpAddr>,
    /// Path MTU in bytes: longest IP packet that is not a super-frame.
    pub mtu: u32,
    /// Whether frames longer than `mtu` may be delivered whole. When `false`
    /// the switch segments to `segment_mtu`.
    pub super_frames: bool,
    /// MTU of the far end's device in bytes. A super-frame up to that length may
    /// arrive in one piece that tells where to cut it, where `super_frames`
    /// does not hold.
    pub device_mtu: u32,
    /// Longest IP packet after segmentation, at most `mtu`.
    pub segment_mtu: u32,
    /// Whether frames from this port may carry a partial checksum: veths, not
    /// physical NICs.
    pub partial_checksums: bool,
}

impl PortEntry {
    /// Whether the far end may use the address: one of its own, or the
    /// link-local one computed from its MAC address.
    pub fn may_use(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || address == IpAddr::V6(link_local(self.mac))
    }
}

/// What a port connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A pod on the routed network: gateway, source guard, L3 delivery.
    Pod,
    /// A pod in a layer-2 segment.
    SegmentPod(SegmentId),
    /// The host's own namespace.
    Host,
    /// The node's interface to other nodes and the world.
    Uplink,
}

/// Where a routed address is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To a pod's port, with the MAC of [`PortEntry::mac`].
    Pod(PortId),
    /// To the host's namespace through the host port: an address that the
    /// kernel holds.
    Host(PortId),
    /// The gateway's own address.
    Gateway,
}

/// The switch as it appears to routed pods and to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Its one MAC address, on every routed port.
    pub mac: MacAddr,
    /// IPv4 gateway addresses (the first of each pod CIDR).
    pub addresses_v4: Vec<Ipv4Addr>,
    /// IPv6 gateway addresses: the first of each pod CIDR, and `fe80::1`.
    pub addresses_v6: Vec<Ipv6Addr>,
    /// This node's pod ranges: an address inside that nobody holds is
    /// unreachable here, not elsewhere.
    pub pod_cidrs: Vec<Prefix>,
}

/// An address prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Network address.
    pub address: IpAddr,
    /// Length in bits.
    pub len: u8,
}

impl Prefix {
    /// An address with the bits beyond `len` cleared.
    pub(crate) fn network(address: IpAddr, len: u8) -> IpAddr {
        match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32)));
                Ipv4Addr::from(u32::from(v4) & mask.unwrap_or(0)).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128)));
                Ipv6Addr::from(u128::from(v6) & mask.unwrap_or(0)).into()
            }
        }
    }

    /// Whether the prefix covers `address`; never across families.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(a)) => {
                let shift = 32 - u32::from(self.len.min(32));
                (u64::from(u32::from(net)) >> shift) == (u64::from(u32::from(a)) >> shift)
            }
            (IpAddr::V6(net), IpAddr::V6(a)) => match 128 - u32::from(self.len.min(128)) {
                128 => true,
                shift => (u128::from(net) >> shift) == (u128::from(a) >> shift),
            },
            _ => false,
        }
    }
}

/// A layer-2 segment: one broadcast domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    /// Where each known station is.
    pub fdb: Arc<AddressMap<MacAddr, FdbTarget>>,
    /// Ports that belong to the segment, for flooding.
    pub members: Arc<Vec<PortId>>,
    /// Remote ends that have stations of the segment: each gets its own copy
    /// of what is flooded from a port (head-end replication), never of what
    /// came through the tunnel.
    pub vteps: Arc<Vec<VtepId>>,
    /// Source guard: frames must carry the port's own MAC and addresses.
    pub guard: bool,
}

/// Where a station of a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbTarget {
    /// Behind what it is.
    pub at: Location,
    /// Set by configuration: it does not move.
    pub is_static: bool,
    /// It moved to and fro too often: what it sends from elsewhere is dropped
    /// until control lets go (loop damping).
    pub is_held: bool,
}

impl Location {
    /// Set in a flow key's port for what came out of the overlay.
    const OVERLAY: u16 = 1 << 15;

    /// As flow keys hold it: ports and remote ends share a number space.
    #[inline]
    pub fn to_key(self) -> u16 {
        match self {
            Location::Port(port) => port.0,
            Location::Vtep(vtep) => Location::OVERLAY | vtep.0,
        }
    }

    /// From a flow key.
    #[inline]
    pub fn from_key(number: u16) -> Location {
        match number & Location::OVERLAY {
            0 => Location::Port(PortId(number)),
            _ => Location::Vtep(VtepId(number & !Location::OVERLAY)),
        }
    }
}

const _: () = assert!(PortId::LIMIT <= 1 << 15 && VtepId::LIMIT <= 1 << 15);

/// Behind what a station of a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// A port of this switch.
    Port(PortId),
    /// A remote end of the overlay.
    Vtep(VtepId),
}
