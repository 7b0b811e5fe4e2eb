//! From the cluster's nodes and the kernel's tables to what the snapshot says
//! of everything beyond this node: routes, remote ends of the overlay, next
//! hops, this node's own end. Pure; [`Beyond`] remembers which numbers it
//! gave and what stood in the tables, so that a node that comes or goes
//! touches its own entries and no others.

pub mod inputs;
pub mod unreached;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use spinlane_dataplane::snapshot::{
    Masquerade, Network as OverlayNetwork, NextHop, OuterHeader, OuterPath, RouteTable,
    RouteTarget, Spread, Underlay, Vtep,
};
use spinlane_dataplane::types::{MacAddr, NextHopId, SegmentId, Vni, VtepId};

use super::bound::BoundUplink;
use super::kernel::Way;
use super::masquerade::masquerade;
use super::routes::{How, KernelRoute};
use super::setup::pod_mac;
use crate::config::{Mode, Mtu, VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6};
use crate::source;
use inputs::{Inputs, prefix};
use unreached::{Unreached, Why};

/// Kernel routes that are followed at most.
const MOST_KERNEL_ROUTES: usize = 16_384;

/// The tables, as the snapshot shares them.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Prefixes beyond this node.
    pub routes: Arc<RouteTable>,
    /// Remote ends.
    pub vteps: Arc<Vec<Option<Vtep>>>,
    /// Neighbours on the underlay.
    pub next_hops: Arc<Vec<Option<NextHop>>>,
    /// The uplink and this node's own end.
    pub underlay: Arc<Underlay>,
    /// What leaves with this node's address.
    pub masquerade: Arc<Masquerade>,
    /// Remote ends that take part in each segment.
    pub segment_vteps: BTreeMap<SegmentId, Arc<Vec<VtepId>>>,
    /// Ranges of pods that the kernel too reaches as they are, and the
    /// neighbour on the uplink that they are behind.
    pub direct: Arc<BTreeMap<IpNet, IpAddr>>,
    /// Ranges of other nodes' pods.
    pub pods: Arc<BTreeSet<IpNet>>,
    /// Nodes whose pods are out of reach.
    pub unreached: Arc<Unreached>,
}

/// The planner.
#[derive(Debug, Default)]
pub struct Beyond {
    tables: Tables,
    targets: BTreeMap<IpNet, RouteTarget>,
    vtep_ids: Ids<(Vni, IpAddr)>,
    /// By the route's MTU, too: one neighbour may stand in several routes.
    next_hop_ids: Ids<(IpAddr, Option<u32>)>,
}

impl Beyond {
    /// The tables in force.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Follows the inputs. Returns whether a table changed.
    pub fn follow(&mut self, inputs: &Inputs<'_>) -> bool {
        let mut draft = Draft::new(inputs, self);
        draft.overlay();
        draft.nodes();
        if inputs.setup.network.mode != Mode::L2 {
            draft.cluster();
            draft.kernel_routes();
        }
        let Draft {
            targets,
            vteps,
            next_hops,
            underlay,
            segment_vteps,
            direct,
            pods,
            unreached,
            ..
        } = draft;
        self.vtep_ids.release_unused();
        self.next_hop_ids.release_unused();
        let changed = [
            self.route(targets),
            replace(&mut self.tables.vteps, vteps),
            replace(&mut self.tables.next_hops, next_hops),
            replace(&mut self.tables.underlay, underlay),
            replace(&mut self.tables.masquerade, masquerade(inputs, &pods)),
            self.segments(segment_vteps),
            replace(&mut self.tables.direct, direct),
            replace(&mut self.tables.pods, pods),
            replace(&mut self.tables.unreached, unreached),
        ];
        changed.contains(&true)
    }

    /// Changes the routes that differ.
    fn route(&mut self, targets: BTreeMap<IpNet, RouteTarget>) -> bool {
        if targets == self.targets {
            return false;
        }
        let mut table = RouteTable::clone(&self.tables.routes);
        for net in self
            .targets
            .keys()
            .filter(|net| !targets.contains_key(*net))
        {
            table.remove(prefix(*net));
        }
        for (net, target) in &targets {
            if self.targets.get(net) != Some(target) {
                table.insert(prefix(*net), *target);
            }
        }
        self.tables.routes = Arc::new(table);
        self.targets = targets;
        true
    }

    fn segments(&mut self, now: BTreeMap<SegmentId, Vec<VtepId>>) -> bool {
        let same = now.len() == self.tables.segment_vteps.len()
            && now.iter().all(|(id, vteps)| {
                self.tables
                    .segment_vteps
                    .get(id)
                    .is_some_and(|v| **v == *vteps)
            });
        if !same {
            let shared = now.into_iter().map(|(id, vteps)| (id, Arc::new(vteps)));
            self.tables.segment_vteps = shared.collect();
        }
        !same
    }
}

fn replace<T: PartialEq>(table: &mut Arc<T>, now: T) -> bool {
    let changed = **table != now;
    if changed {
        *table = Arc::new(now);
    }
    changed
}

/// Dense numbers that stay with what they were given for.
#[derive(Debug)]
struct Ids<K> {
    given: HashMap<K, (u16, bool)>,
    free: BTreeSet<u16>,
    next: u16,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        Ids {
            given: HashMap::new(),
            free: BTreeSet::new(),
            next: 0,
        }
    }
}

impl<K: Eq + Hash> Ids<K> {
    fn of(&mut self, key: K) -> Option<u16> {
        if let Some((id, used)) = self.given.get_mut(&key) {
            *used = true;
            return Some(*id);
        }
        let id = match self.free.pop_first() {
            Some(id) => id,
            None if usize::from(self.next) < VtepId::LIMIT => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.given.insert(key, (id, true));
        Some(id)
    }

    /// Takes back what was not asked for since the last time.
    fn release_unused(&mut self) {
        let free = &mut self.free;
        self.given.retain(|_, (id, used)| {
            if !*used {
                free.insert(*id);
            }
            std::mem::take(used)
        });
    }
}

/// The MAC address of a node's end of the overlay.
pub fn vtep_mac(node: &source::Node) -> MacAddr {
    node.vtep_mac
        .unwrap_or_else(|| pod_mac(node.addresses.iter().copied(), node.name.as_bytes()))
}

/// Tables under construction.
struct Draft<'a, 'b> {
    inputs: &'a Inputs<'a>,
    vtep_ids: &'b mut Ids<(Vni, IpAddr)>,
    next_hop_ids: &'b mut Ids<(IpAddr, Option<u32>)>,
    targets: BTreeMap<IpNet, RouteTarget>,
    vteps: Vec<Option<Vtep>>,
    next_hops: Vec<Option<NextHop>>,
    underlay: Underlay,
    segment_vteps: BTreeMap<SegmentId, Vec<VtepId>>,
    direct: BTreeMap<IpNet, IpAddr>,
    pods: BTreeSet<IpNet>,
    unreached: Unreached,
}

impl<'a, 'b> Draft<'a, 'b> {
    fn new(inputs: &'a Inputs<'a>, beyond: &'b mut Beyond) -> Self {
        Draft {
            inputs,
            vtep_ids: &mut beyond.vtep_ids,
            next_hop_ids: &mut beyond.next_hop_ids,
            targets: BTreeMap::new(),
            vteps: Vec::new(),
            next_hops: Vec::new(),
            underlay: Underlay::default(),
            segment_vteps: BTreeMap::new(),
            direct: BTreeMap::new(),
            pods: BTreeSet::new(),
            unreached: Unreached::default(),
        }
    }

    /// This node's own end.
    fn overlay(&mut self) {
        let setup = self.inputs.setup;
        self.underlay.segment = setup.shared_segment();
        let Some(uplink) = self.inputs.uplink else {
            return;
        };
        let network = &setup.network;
        let own = self.inputs.nodes.iter().find(|n| n.name == setup.name);
        let underlay = &mut self.underlay;
        underlay.uplink = Some(uplink.port.id);
        underlay.mac = uplink.mac;
        underlay.addresses.clone_from(&setup.addresses);
        underlay.is_routed = network.mode == Mode::Routed;
        // What everybody else takes from the same object.
        underlay.vtep_mac = match own {
            Some(node) if node.vtep_mac.is_some() || !node.addresses.is_empty() => vtep_mac(node),
            _ => pod_mac(setup.addresses.iter().copied(), setup.name.as_bytes()),
        };
        if let Some(vni) = self.routed_vni() {
            self.underlay.networks.insert(vni, OverlayNetwork::Routed);
        }
        for (index, segment) in setup.segments.iter().enumerate() {
            if let Some(vni) = segment.vni.and_then(Vni::new) {
                let id = SegmentId(index as u16);
                self.underlay
                    .networks
                    .insert(vni, OverlayNetwork::Segment(id));
                self.segment_vteps.insert(id, Vec::new());
            }
        }
        if !self.underlay.networks.is_empty() {
            self.underlay.vxlan_port = network.vxlan_port;
        }
    }

    /// The routed network's VNI, where it has an overlay.
    fn routed_vni(&self) -> Option<Vni> {
        self.inputs.setup.network.overlay_vni().and_then(Vni::new)
    }

    /// The other nodes.
    fn nodes(&mut self) {
        let inputs = self.inputs;
        for node in inputs.nodes {
            if node.name != inputs.setup.name {
                self.node(node);
            }
        }
    }

    fn node(&mut self, node: &source::Node) {
        let setup = self.inputs.setup;
        let ends = self.ends(node);
        for (id, vteps) in self.segment_ends(node, ends) {
            self.segment_vteps.entry(id).or_default().push(vteps);
        }
        if setup.network.mode == Mode::L2 {
            return;
        }
        let way = ends.and_then(|(_, remote)| self.inputs.kernel.way(remote));
        let through = match setup.network.mode {
            Mode::Vxlan => true,
            // A node of another subnet is behind a gateway.
            _ => setup.network.cross_subnet && way.is_none_or(|way| !way.is_on_link),
        };
        let end = self.routed_vni().zip(ends);
        let end = end.and_then(|(vni, ends)| self.vtep(vni, ends, vtep_mac(node)));
        // Whether that node reaches this one through the overlay is its own
        // routes' to say.
        let behind = end.filter(|_| !through).map(RouteTarget::Vtep);
        let vtep = end.filter(|_| through);
        for net in &node.pod_cidrs {
            if let Some(why) = self.refuses(net) {
                self.unreached.add(why, &node.name);
                continue;
            }
            self.pods.insert(net.trunc());
            if let Some(end) = behind {
                self.underlay.sources.insert(prefix(*net), end);
            }
            let target = match through {
                true => vtep.map(RouteTarget::Vtep),
                false => self.next_hop_to(node, matches!(net, IpNet::V6(_))),
            };
            if let Some(RouteTarget::NextHop(id)) = target
                && let Some(Some(next_hop)) = self.next_hops.get(id.index())
                && next_hop.address.is_ipv6() == matches!(net, IpNet::V6(_))
            {
                self.direct.insert(*net, next_hop.address);
            }
            if target.is_none()
                && let Some(why) = self.why_unreached(node, ends.filter(|_| through), through)
            {
                self.unreached.add(why, &node.name);
            }
            self.targets
                .insert(*net, target.unwrap_or(RouteTarget::Unreachable));
        }
        for &address in &node.addresses {
            if let Some(end) = behind {
                self.underlay.sources.insert(prefix(address.into()), end);
            }
            let target = match through {
                true => vtep.map(RouteTarget::Vtep),
                false => self.toward(address),
            };
            if let Some(target) = target.filter(|_| !setup.addresses.contains(&address)) {
                self.targets.insert(address.into(), target);
            }
        }
    }

    /// Why a range cannot be another node's.
    fn refuses(&self, net: &IpNet) -> Option<Why> {
        let setup = self.inputs.setup;
        let is_within = |own: &IpNet| own.contains(net);
        match () {
            () if setup.pod_cidrs.iter().any(is_within) => Some(Why::OurRange),
            () if setup.addresses.iter().any(|own| net.contains(own)) => Some(Why::OurAddress),
            () if self.pods.contains(&net.trunc()) => Some(Why::TakenRange),
            () => None,
        }
    }

    /// What keeps a node's pods out of reach; nothing while that is the
    /// uplink's or this node's own lack of an address.
    fn why_unreached(
        &self,
        node: &source::Node,
        ends: Option<(IpAddr, IpAddr)>,
        through: bool,
    ) -> Option<Why> {
        let uplink = self.inputs.uplink?;
        if node.addresses.is_empty() {
            return Some(Why::NoAddress);
        }
        let Some((_, remote)) = ends else {
            return match through {
                true if self.inputs.setup.addresses.is_empty() => None,
                true => Some(Why::NoCommonFamily),
                false => Some(Why::NoRoute),
            };
        };
        match self.inputs.kernel.way(remote) {
            Some(way) if way.oif != uplink.port.ifindex => Some(Why::AnotherInterface),
            _ => Some(Why::NoRoute),
        }
    }

    /// Both ends of a tunnel, of one family: IPv4 where both have it.
    fn ends(&self, node: &source::Node) -> Option<(IpAddr, IpAddr)> {
        self.inputs.setup.addresses.iter().find_map(|own| {
            let mut remote = node.addresses.iter();
            let remote = remote.find(|a| a.is_ipv4() == own.is_ipv4())?;
            Some((*own, *remote))
        })
    }

    fn segment_ends(
        &mut self,
        node: &source::Node,
        ends: Option<(IpAddr, IpAddr)>,
    ) -> Vec<(SegmentId, VtepId)> {
        let networks: Vec<_> = self
            .underlay
            .networks
            .iter()
            .filter_map(|(vni, network)| match network {
                OverlayNetwork::Segment(id) => Some((*vni, *id)),
                OverlayNetwork::Routed => None,
            })
            .collect();
        let ends = ends.into_iter();
        let all = ends.flat_map(|ends| networks.iter().map(move |n| (ends, *n)));
        let all: Vec<_> = all.collect();
        all.into_iter()
            .filter_map(|(ends, (vni, id))| Some((id, self.vtep(vni, ends, vtep_mac(node))?)))
            .collect()
    }

    /// The remote end in one network; none where it is not reached by the
    /// uplink.
    fn vtep(&mut self, vni: Vni, (own, remote): (IpAddr, IpAddr), mac: MacAddr) -> Option<VtepId> {
        let uplink = self.inputs.uplink?;
        let way = self.inputs.kernel.way(remote)?;
        let next_hop = self.next_hop(&way)?;
        let id = VtepId(self.vtep_ids.of((vni, remote))?);
        let path = OuterPath {
            source_mac: uplink.mac,
            destination_mac: self.mac_of(next_hop).unwrap_or(MacAddr::ZERO),
            source: own,
            destination: remote,
        };
        let overhead = match remote {
            IpAddr::V4(_) => VXLAN_OVERHEAD_V4,
            IpAddr::V6(_) => VXLAN_OVERHEAD_V6,
        };
        let vtep = Vtep {
            address: remote,
            vni,
            mac,
            mtu: self.mtu(uplink, &way, remote).saturating_sub(overhead),
            next_hop,
            outer: OuterHeader::new(&path, self.inputs.setup.network.vxlan_port, vni)?,
        };
        put(&mut self.vteps, id.index(), vtep);
        self.underlay.peers.insert((vni, remote), id);
        Some(id)
    }

    /// Where packets for a node's pods go as they are: to its address of that
    /// family, else to the other, since only the neighbour counts.
    fn next_hop_to(&mut self, node: &source::Node, v6: bool) -> Option<RouteTarget> {
        let mut addresses: Vec<IpAddr> = node.addresses.clone();
        addresses.sort_by_key(|a| a.is_ipv6() != v6);
        addresses.into_iter().find_map(|a| self.toward(a))
    }

    /// Where packets for an address on the underlay go as they are.
    fn toward(&mut self, address: IpAddr) -> Option<RouteTarget> {
        let way = self.inputs.kernel.way(address)?;
        self.by(&way)
    }

    fn by(&mut self, way: &Way) -> Option<RouteTarget> {
        match self.inputs.uplink {
            Some(uplink) if uplink.port.ifindex == way.oif => {
                self.next_hop(way).map(RouteTarget::NextHop)
            }
            _ => self.inputs.host.map(|(port, _)| RouteTarget::Host(port)),
        }
    }

    /// The neighbour on the uplink; none for a way by another interface.
    fn next_hop(&mut self, way: &Way) -> Option<NextHopId> {
        let uplink = self.inputs.uplink?;
        if way.oif != uplink.port.ifindex {
            return None;
        }
        let id = NextHopId(self.next_hop_ids.of((way.next, way.mtu))?);
        let neighbour = self.inputs.kernel.neighbours.get(&(way.oif, way.next));
        let mtu = self.mtu(uplink, way, way.next);
        let next_hop = NextHop {
            address: way.next,
            port: uplink.port.id,
            mac: neighbour.map(|n| n.mac),
            mtu,
        };
        put(&mut self.next_hops, id.index(), next_hop);
        Some(id)
    }

    fn mac_of(&self, id: NextHopId) -> Option<MacAddr> {
        self.next_hops.get(id.index())?.as_ref()?.mac
    }

    /// Longest packet on the underlay by everything that is known.
    fn mtu(&self, uplink: BoundUplink, way: &Way, remote: IpAddr) -> u32 {
        let configured = match self.inputs.setup.network.mtu {
            Mtu::Bytes(bytes) => bytes,
            Mtu::Auto => u32::MAX,
        };
        let learned = self.inputs.path_mtus.get(&remote).copied();
        let known = [Some(uplink.mtu), way.mtu, learned, Some(configured)];
        known
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(uplink.mtu)
            .min(65535)
    }

    /// What of the cluster's ranges nobody has is nowhere.
    fn cluster(&mut self) {
        for net in &self.inputs.setup.network.cluster_cidrs {
            let nowhere = RouteTarget::Unreachable;
            self.targets.entry(*net).or_insert(nowhere);
        }
    }

    /// The rest of the world as the kernel has it: by the uplink to the
    /// gateway, by any other interface through the host, or nowhere.
    fn kernel_routes(&mut self) {
        let inputs = self.inputs;
        let mut best: BTreeMap<IpNet, &KernelRoute> = BTreeMap::new();
        for route in inputs.kernel.routes.iter().take(MOST_KERNEL_ROUTES) {
            let net = route.to.trunc();
            let ours = inputs
                .host
                .is_some_and(|(_, index)| route.oif == Some(index));
            if ours || !self.is_the_kernels(&net) || !inputs.kernel.is_usable(route) {
                continue;
            }
            let best = best.entry(net).or_insert(route);
            if route.priority < best.priority {
                *best = route;
            }
        }
        for refused in inputs.kernel.refused.iter().take(MOST_KERNEL_ROUTES) {
            let net = refused.to.trunc();
            let is_better = |route: &&KernelRoute| route.priority <= refused.priority;
            if self.is_the_kernels(&net)
                && !self.is_of_pods(&net)
                && !best.get(&net).is_some_and(is_better)
            {
                let nowhere = match refused.how {
                    How::Unreachable => RouteTarget::Unreachable,
                    How::Prohibited => RouteTarget::Prohibited,
                    How::Blackhole => RouteTarget::Blackhole,
                };
                self.targets.entry(net).or_insert(nowhere);
            }
        }
        for (net, route) in best {
            let Some(way) = inputs.kernel.way_by(route, net.network()) else {
                continue;
            };
            // A network that this node is in: its stations follow one by one.
            let is_by_uplink = |way: &Way| inputs.uplink.is_some_and(|u| way.oif == u.port.ifindex);
            if is_by_uplink(&way) && way.is_on_link {
                self.targets.entry(net).or_insert(RouteTarget::OnLink);
                self.stations(&net);
                continue;
            }
            if !self.targets.contains_key(&net)
                && let Some(target) = self.by_gateways(route).or_else(|| self.by(&way))
            {
                self.targets.insert(net, target);
            }
        }
    }

    /// Where packets go by a route's gateways on the uplink; several share them
    /// by their weights, whatever other interfaces the route has.
    fn by_gateways(&mut self, route: &KernelRoute) -> Option<RouteTarget> {
        let mut ways = self.inputs.kernel.ways_by(route, route.to.network());
        ways.retain(|(way, _)| !way.is_on_link);
        let hops = ways.iter().filter_map(|(way, weight)| {
            // None by another interface.
            Some((self.next_hop(way)?, *weight))
        });
        match &hops.collect::<Vec<_>>()[..] {
            [(only, _)] => Some(RouteTarget::NextHop(*only)),
            hops => Spread::new(hops).map(RouteTarget::Spread),
        }
    }

    /// Whether a network is in some node's range of pods.
    fn is_of_pods(&self, net: &IpNet) -> bool {
        let mut ranges = self.inputs.nodes.iter().flat_map(|node| &node.pod_cidrs);
        ranges.any(|range| range.contains(net))
    }

    /// Whether the kernel has the say where a network is: not of this node's
    /// pods nor in the cluster's ranges.
    fn is_the_kernels(&self, net: &IpNet) -> bool {
        let setup = self.inputs.setup;
        let inside = |list: &[IpNet]| list.iter().any(|wide| wide.contains(net));
        !is_local(net) && !inside(&setup.pod_cidrs) && !inside(&setup.network.cluster_cidrs)
    }

    /// The neighbours that the kernel knows in a network of the uplink.
    fn stations(&mut self, net: &IpNet) {
        let inputs = self.inputs;
        let Some(uplink) = inputs.uplink else { return };
        for (ifindex, address) in inputs.kernel.neighbours.keys() {
            let host = IpNet::from(*address);
            if *ifindex == uplink.port.ifindex
                && net.contains(address)
                && !self.targets.contains_key(&host)
                && let Some(target) = self.toward(*address)
            {
                self.targets.insert(host, target);
            }
        }
    }
}

/// Whether a prefix means nothing beyond one link.
fn is_local(net: &IpNet) -> bool {
    match net {
        IpNet::V4(v4) => v4.addr().is_loopback() || v4.addr().is_multicast(),
        IpNet::V6(v6) => {
            let first = v6.addr().segments()[0];
            v6.prefix_len() > 0
                && (first & 0xffc0 == 0xfe80 || first & 0xff00 == 0xff00 || v6.addr().is_loopback())
        }
    }
}

fn put<T>(table: &mut Vec<Option<T>>, index: usize, entry: T) {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(entry);
}

#[cfg(test)]
mod tests;
