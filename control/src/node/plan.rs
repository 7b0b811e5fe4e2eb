//! From what the node has to the snapshot that the lanes read. Pure, and
//! sparing: a table that did not change is the one of the snapshot before, so
//! that a new endpoint costs the lanes nothing but its own entries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use spinlane_dataplane::snapshot::{
    AddressMap, Destination, FdbTarget, Gateway, Location, PortEntry, Prefix, Role, Segment,
    Snapshot,
};
use spinlane_dataplane::types::{MacAddr, PortId, SegmentId, Vni};

use super::beyond::Tables;
use super::bound::BoundUplink;

/// A pod's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPort {
    /// The port.
    pub id: PortId,
    /// Container that it belongs to; ports of one container may send from
    /// each other's addresses.
    pub container_id: String,
    /// Segment; routed when absent.
    pub segment: Option<SegmentId>,
    /// MAC of the pod's end.
    pub mac: MacAddr,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Path MTU in bytes.
    pub mtu: u32,
    /// Whether super-frames are delivered whole.
    pub super_frames: bool,
    /// MTU of the pod's device in bytes.
    pub device_mtu: u32,
    /// Longest packet after segmentation, in bytes.
    pub segment_mtu: u32,
}

/// The port into the host's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// The port.
    pub id: PortId,
    /// MAC of `spinlane0`.
    pub mac: MacAddr,
    /// Path MTU in bytes.
    pub mtu: u32,
    /// Whether super-frames are delivered whole.
    pub super_frames: bool,
    /// MTU of `spinlane0` in bytes.
    pub device_mtu: u32,
    /// Longest packet after segmentation, in bytes.
    pub segment_mtu: u32,
}

/// A segment and its stations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentState {
    /// Source guard.
    pub guard: bool,
    /// Stations.
    pub stations: BTreeMap<MacAddr, FdbTarget>,
    /// Its network between nodes.
    pub vni: Option<Vni>,
    /// Static stations behind the remote ends with these addresses.
    pub remote: Vec<(MacAddr, IpAddr)>,
}

/// What the node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The switch as a gateway.
    pub gateway_mac: MacAddr,
    /// Its addresses.
    pub gateways: BTreeSet<IpAddr>,
    /// This node's pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Pods.
    pub pods: Vec<PodPort>,
    /// The host port.
    pub host: Option<HostPort>,
    /// The way out.
    pub uplink: Option<BoundUplink>,
    /// Addresses that the kernel holds.
    pub local: BTreeSet<IpAddr>,
    /// Segments by [`SegmentId`].
    pub segments: Vec<SegmentState>,
    /// The one that the host port and the uplink are members of.
    pub shared: Option<SegmentId>,
}

/// The next snapshot, sharing with `before` what did not change.
pub fn plan(desired: &Desired, beyond: &Tables, before: &Snapshot) -> Snapshot {
    let (hosts_v4, hosts_v6) = hosts(desired);
    Snapshot {
        generation: before.generation,
        ports: keep(&before.ports, ports(desired)),
        hosts_v4: keep(&before.hosts_v4, hosts_v4),
        hosts_v6: keep(&before.hosts_v6, hosts_v6),
        gateway: keep(&before.gateway, gateway(desired)),
        segments: segments(desired, beyond, &before.segments),
        routes: Arc::clone(&beyond.routes),
        vteps: Arc::clone(&beyond.vteps),
        next_hops: Arc::clone(&beyond.next_hops),
        underlay: Arc::clone(&beyond.underlay),
        masquerade: Arc::clone(&beyond.masquerade),
    }
}

/// Whether two snapshots say the same, table by table.
pub fn is_same(a: &Snapshot, b: &Snapshot) -> bool {
    Arc::ptr_eq(&a.ports, &b.ports)
        && Arc::ptr_eq(&a.hosts_v4, &b.hosts_v4)
        && Arc::ptr_eq(&a.hosts_v6, &b.hosts_v6)
        && Arc::ptr_eq(&a.gateway, &b.gateway)
        && Arc::ptr_eq(&a.segments, &b.segments)
        && Arc::ptr_eq(&a.routes, &b.routes)
        && Arc::ptr_eq(&a.vteps, &b.vteps)
        && Arc::ptr_eq(&a.next_hops, &b.next_hops)
        && Arc::ptr_eq(&a.underlay, &b.underlay)
        && Arc::ptr_eq(&a.masquerade, &b.masquerade)
}

fn keep<T: PartialEq>(before: &Arc<T>, now: T) -> Arc<T> {
    if **before == now {
        Arc::clone(before)
    } else {
        Arc::new(now)
    }
}

fn ports(desired: &Desired) -> Vec<Option<PortEntry>> {
    // Several interfaces of a pod share its default route, so packets with
    // the address of one leave by another.
    let mut owned: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    for pod in desired.pods.iter().filter(|p| p.segment.is_none()) {
        owned
            .entry(&pod.container_id)
            .or_default()
            .extend(&pod.addresses);
    }
    let pods = desired.pods.iter().map(|pod| PortEntry {
        id: pod.id,
        role: pod.segment.map_or(Role::Pod, Role::SegmentPod),
        mac: pod.mac,
        addresses: match pod.segment {
            None => owned
                .get(pod.container_id.as_str())
                .map(|all| all.iter().copied().collect())
                .unwrap_or_default(),
            Some(_) => pod.addresses.clone(),
        },
        mtu: pod.mtu,
        super_frames: pod.super_frames,
        device_mtu: pod.device_mtu,
        segment_mtu: pod.segment_mtu,
        partial_checksums: true,
    });
    let host = desired.host.iter().map(|host| PortEntry {
        id: host.id,
        role: Role::Host,
        mac: host.mac,
        addresses: Vec::new(),
        mtu: host.mtu,
        super_frames: host.super_frames,
        device_mtu: host.device_mtu,
        segment_mtu: host.segment_mtu,
        partial_checksums: true,
    });
    let uplink = desired.uplink.iter().map(|uplink| PortEntry {
        id: uplink.port.id,
        role: Role::Uplink,
        mac: uplink.mac,
        addresses: Vec::new(),
        mtu: uplink.mtu,
        super_frames: false,
        device_mtu: uplink.mtu,
        segment_mtu: uplink.mtu,
        partial_checksums: uplink.has_partial_checksums(),
    });
    let mut table: Vec<Option<PortEntry>> = Vec::new();
    for entry in pods.chain(host).chain(uplink) {
        let index = entry.id.index();
        if table.len() <= index {
            table.resize(index + 1, None);
        }
        table[index] = Some(entry);
    }
    table
}

type Hosts = (
    AddressMap<Ipv4Addr, Destination>,
    AddressMap<Ipv6Addr, Destination>,
);

fn hosts(desired: &Desired) -> Hosts {
    let mut hosts = Hosts::default();
    let mut insert = |address: IpAddr, destination| match address {
        IpAddr::V4(v4) => drop(hosts.0.insert(v4, destination)),
        IpAddr::V6(v6) => drop(hosts.1.insert(v6, destination)),
    };
    // Later ones win: a pod's address over one that the kernel holds too,
    // the gateway's over both.
    if let Some(host) = desired.host {
        for &address in &desired.local {
            insert(address, Destination::Host(host.id));
        }
    }
    for pod in desired.pods.iter().filter(|p| p.segment.is_none()) {
        for &address in &pod.addresses {
            insert(address, Destination::Pod(pod.id));
        }
    }
    for &address in &desired.gateways {
        insert(address, Destination::Gateway);
    }
    hosts
}

fn gateway(desired: &Desired) -> Gateway {
    let mut gateway = Gateway {
        mac: desired.gateway_mac,
        pod_cidrs: desired
            .pod_cidrs
            .iter()
            .map(|net| Prefix {
                address: net.network(),
                len: net.prefix_len(),
            })
            .collect(),
        ..Gateway::default()
    };
    for &address in &desired.gateways {
        match address {
            IpAddr::V4(v4) => gateway.addresses_v4.push(v4),
            IpAddr::V6(v6) => gateway.addresses_v6.push(v6),
        }
    }
    gateway
}

fn segments(
    desired: &Desired,
    beyond: &Tables,
    before: &Arc<Vec<Option<Segment>>>,
) -> Arc<Vec<Option<Segment>>> {
    let now = desired.segments.iter().enumerate().map(|(index, state)| {
        let id = SegmentId(index as u16);
        let fdb: AddressMap<MacAddr, FdbTarget> = state
            .stations
            .iter()
            .map(|(&mac, &target)| (mac, target))
            .chain(remote(state, beyond))
            .collect();
        let pods = desired.pods.iter().filter(|pod| pod.segment == Some(id));
        let node = [
            desired.host.map(|host| host.id),
            desired.uplink.map(|uplink| uplink.port.id),
        ];
        let node = node.into_iter().flatten();
        let members: Vec<PortId> = pods
            .map(|pod| pod.id)
            .chain(node.filter(|_| desired.shared == Some(id)))
            .collect();
        let vteps = beyond.segment_vteps.get(&id).cloned().unwrap_or_default();
        let old = before.get(index).and_then(Option::as_ref);
        Some(match old {
            Some(old) => Segment {
                fdb: keep(&old.fdb, fdb),
                members: keep(&old.members, members),
                vteps,
                guard: state.guard,
            },
            None => Segment {
                fdb: Arc::new(fdb),
                members: Arc::new(members),
                vteps,
                guard: state.guard,
            },
        })
    });
    keep(before, now.collect())
}

fn target(at: Location, is_static: bool) -> FdbTarget {
    FdbTarget {
        at,
        is_static,
        is_held: false,
    }
}

/// The static stations behind remote ends that exist.
fn remote<'a>(
    state: &'a SegmentState,
    beyond: &'a Tables,
) -> impl Iterator<Item = (MacAddr, FdbTarget)> + 'a {
    state.remote.iter().filter_map(|(mac, address)| {
        let id = *beyond.underlay.peers.get(&(state.vni?, *address))?;
        Some((*mac, target(Location::Vtep(id), true)))
    })
}

/// Ids of ports: dense, the lowest free one first.
#[derive(Debug, Default)]
pub struct PortIds {
    used: BTreeSet<u16>,
}

impl PortIds {
    /// The lowest free id; `None` when all are in use.
    pub fn take(&mut self) -> Option<PortId> {
        let id = (0..PortId::LIMIT as u16).find(|id| !self.used.contains(id))?;
        self.used.insert(id);
        Some(PortId(id))
    }

    /// Gives an id back.
    pub fn give_back(&mut self, id: PortId) {
        self.used.remove(&id.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::setup::GATEWAY_LINK_LOCAL;

    fn pod(id: u16, container: &str, address: &str, segment: Option<SegmentId>) -> PodPort {
        PodPort {
            id: PortId(id),
            container_id: container.into(),
            segment,
            mac: MacAddr([2, 0, 0, 0, 0, id as u8]),
            addresses: vec![address.parse().unwrap()],
            mtu: 1450,
            super_frames: true,
            device_mtu: 65535,
            segment_mtu: 1450,
        }
    }

    fn desired() -> Desired {
        Desired {
            gateway_mac: MacAddr([2, 9, 9, 9, 9, 9]),
            gateways: ["10.0.0.1".parse().unwrap(), GATEWAY_LINK_LOCAL.into()].into(),
            pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()],
            pods: vec![
                pod(1, "a", "10.0.0.2", None),
                pod(2, "b", "10.0.0.3", None),
                pod(4, "c", "10.50.0.3", Some(SegmentId(0))),
            ],
            uplink: None,
            host: Some(HostPort {
                id: PortId(0),
                mac: MacAddr([2, 0, 0, 0, 0, 0]),
                mtu: 1450,
                super_frames: true,
                device_mtu: 65535,
                segment_mtu: 1450,
            }),
            local: ["192.0.2.7".parse().unwrap()].into(),
            segments: vec![SegmentState::default()],
            shared: None,
        }
    }

    #[test]
    fn everything_finds_its_table() {
        let snapshot = plan(&desired(), &Tables::default(), &Snapshot::default());
        let host = |text: &str| snapshot.host(text.parse().unwrap());
        assert_eq!(host("10.0.0.2"), Some(Destination::Pod(PortId(1))));
        assert_eq!(host("192.0.2.7"), Some(Destination::Host(PortId(0))));
        assert_eq!(host("10.0.0.1"), Some(Destination::Gateway));
        assert_eq!(host("fe80::1"), Some(Destination::Gateway));
        assert_eq!(host("10.50.0.3"), None, "segments are not routed");
        assert!(snapshot.port(PortId(3)).is_none());
        let segment = snapshot.segment(SegmentId(0)).unwrap();
        assert_eq!(*segment.members, vec![PortId(4)]);
    }

    #[test]
    fn a_change_touches_only_its_tables() {
        let before = plan(&desired(), &Tables::default(), &Snapshot::default());
        let same = plan(&desired(), &Tables::default(), &before);
        assert!(Arc::ptr_eq(&same.ports, &before.ports));
        assert!(Arc::ptr_eq(&same.hosts_v4, &before.hosts_v4));
        assert!(Arc::ptr_eq(&same.segments, &before.segments));
        let mut changed = desired();
        changed.segments[0].stations.insert(
            MacAddr([2, 0, 0, 0, 0, 4]),
            target(Location::Port(PortId(4)), false),
        );
        let after = plan(&changed, &Tables::default(), &before);
        assert!(Arc::ptr_eq(&after.ports, &before.ports));
        assert!(Arc::ptr_eq(&after.hosts_v4, &before.hosts_v4));
        assert!(!Arc::ptr_eq(&after.segments, &before.segments));
        let members = |s: &Snapshot| Arc::clone(&s.segment(SegmentId(0)).unwrap().members);
        assert!(Arc::ptr_eq(&members(&after), &members(&before)));
    }

    #[test]
    fn interfaces_of_one_pod_share_their_source_addresses() {
        let mut desired = desired();
        desired.pods[1].container_id = "a".into();
        let snapshot = plan(&desired, &Tables::default(), &Snapshot::default());
        for id in [1, 2] {
            assert_eq!(snapshot.port(PortId(id)).unwrap().addresses.len(), 2);
        }
    }

    #[test]
    fn ids_are_dense_and_come_back() {
        let mut ids = PortIds::default();
        let taken: Vec<_> = (0..3).filter_map(|_| ids.take()).collect();
        assert_eq!(taken, [PortId(0), PortId(1), PortId(2)]);
        ids.give_back(PortId(1));
        assert_eq!(ids.take(), Some(PortId(1)));
        for _ in 3..PortId::LIMIT {
            assert!(ids.take().is_some());
        }
        assert_eq!(ids.take(), None);
    }
}
