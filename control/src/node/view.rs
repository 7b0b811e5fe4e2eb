//! What the node shows of itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::UNIX_EPOCH;

use ipnet::IpNet;
use spinlane_api::view::{
    FdbEntry, Port, PortKind, Route, RouteVia, Source, Stations, Uplink, XdpMode,
};
use spinlane_dataplane::snapshot::{Destination, Location, RouteTarget, Snapshot};
use spinlane_dataplane::types::PortId;

use super::Node;
use super::bound::BoundPort;
use super::host_port::SWITCH_SIDE;
use super::surroundings::UplinkState;
use super::{masquerade, own};
use crate::config::Mode;
use crate::source::Health;

impl Node {
    /// Every port, its packet counters still zero, with its id: the caller
    /// fills in what the data path counts.
    pub fn ports(&self) -> Vec<(PortId, Port)> {
        let core = &self.core;
        let setup = core.setup();
        let inventory = core.inventory();
        let mut rows = Vec::new();
        if let Some(host) = inventory.host {
            let mut row = row(host.port, SWITCH_SIDE.to_owned(), PortKind::Host);
            row.mac = host.mac.to_string();
            row.addresses = inventory.local.iter().map(ToString::to_string).collect();
            row.mtu = setup.path_mtu;
            row.super_frames = setup.offloads;
            rows.push((host.port.id, row));
        }
        if let Some(uplink) = inventory.surroundings.uplink {
            let name = inventory.uplink_name().unwrap_or_default();
            let mut row = row(uplink.port, name, PortKind::Uplink);
            row.mac = uplink.mac.to_string();
            let addresses = setup.addresses.iter();
            row.addresses = addresses.map(ToString::to_string).collect();
            row.mtu = uplink.mtu;
            row.queues = uplink.offer.queues;
            row.super_frames = false;
            rows.push((uplink.port.id, row));
        }
        for live in inventory.endpoints.values() {
            let Some(port) = live.port else { continue };
            let endpoint = &live.endpoint;
            let mut row = row(port, endpoint.host_ifname.clone(), PortKind::Pod);
            row.namespace.clone_from(&endpoint.pod.namespace);
            row.pod.clone_from(&endpoint.pod.name);
            row.container_id
                .clone_from(&endpoint.attachment.container_id);
            row.ifname.clone_from(&endpoint.attachment.ifname);
            row.network.clone_from(&endpoint.attachment.network);
            row.segment.clone_from(&endpoint.segment);
            row.addresses = endpoint.ips().map(|ip| ip.to_string()).collect();
            row.mac.clone_from(&endpoint.mac);
            row.super_frames = endpoint.super_frames;
            row.mtu = endpoint.mtu;
            rows.push((port.id, row));
        }
        rows.sort_by_key(|(id, _)| *id);
        rows
    }

    /// The node's way out; none where the configuration wants none.
    pub fn uplink(&self) -> Option<Uplink> {
        let setup = self.core.setup();
        let inventory = self.core.inventory();
        let surroundings = &inventory.surroundings;
        let addresses = setup.addresses.iter().map(ToString::to_string).collect();
        (surroundings.state != UplinkState::Unwanted).then(|| Uplink {
            name: inventory
                .uplink_name()
                .unwrap_or_else(|| setup.uplink.name().to_owned()),
            state: surroundings.state.name().to_owned(),
            mtu: surroundings.uplink.map_or(0, |uplink| uplink.mtu),
            addresses,
        })
    }

    /// How reading the cluster's objects goes.
    pub fn source(&self) -> Option<Source> {
        let health = self.source_health()?;
        let objects = health.objects.iter();
        Some(Source {
            path: health.path,
            objects: objects
                .map(|(kind, count)| ((*kind).to_owned(), *count as u64))
                .collect(),
            last_good_read_s: health
                .last_good_read
                .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
                .map_or(0.0, |since| since.as_secs_f64()),
            read_errors: health.read_errors,
            errors: health.errors,
        })
    }

    fn source_health(&self) -> Option<Health> {
        let health = self.core.source.as_ref()?.lock();
        Some(health.unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// How many stations the segments have.
    pub fn stations(&self) -> Stations {
        let inventory = self.core.inventory();
        let stations = || inventory.fdb.iter().map(|(_, _, station)| station);
        Stations {
            known: stations().count() as u64,
            held: stations().filter(|station| station.is_held).count() as u64,
        }
    }

    /// What is not as it should be, and what to do about it.
    pub fn notices(&self) -> Vec<String> {
        let setup = self.core.setup();
        let inventory = self.core.inventory();
        let mut notices = Vec::new();
        notices.extend(inventory.surroundings.state.notice(setup.uplink.name()));
        let trouble = self.core.store.trouble();
        notices.extend(trouble.map(|why| format!("pods can neither attach nor leave: {why}")));
        if setup.addresses.is_empty() && setup.network.mode != Mode::L2 {
            let text = "the node has no address: give the uplink one, or write node.address";
            notices.push(text.to_owned());
        }
        if setup.pod_cidrs.is_empty() && setup.network.mode != Mode::L2 {
            notices.push(format!(
                "the node has no pod ranges: write node.pod-cidrs, or give Node {} spec.podCIDRs",
                setup.name
            ));
        }
        let refusals = setup.refusals.iter();
        notices.extend(refusals.map(|why| format!("Node {}: spec.podCIDRs: {why}", setup.name)));
        notices.extend(own::strangers_notice(&inventory.strangers(&setup)));
        notices.extend(inventory.segmentless_notice(&setup));
        notices.extend(inventory.held_notices(&setup));
        let is_up = inventory.surroundings.state == UplinkState::Up;
        drop(inventory);
        let tables = self.core.tables();
        if is_up {
            notices.extend(tables.unreached.notices());
            notices.extend(masquerade::notice(&setup, &tables.routes));
        }
        notices.extend(self.core.qdisc_notices());
        let source = self.source_health().into_iter();
        notices.extend(source.flat_map(|source| [source.errors, source.warnings].concat()));
        notices
    }

    /// Every station of every segment.
    pub fn fdb(&self) -> Vec<FdbEntry> {
        let core = &self.core;
        let snapshot = core.published_snapshot();
        let setup = core.setup();
        let inventory = core.inventory();
        let now_s = core.now_s();
        let mut rows: Vec<FdbEntry> = inventory
            .fdb
            .iter()
            .filter_map(|(segment, mac, station)| {
                let name = &setup.segments.get(segment.index())?.name;
                Some(FdbEntry {
                    segment: name.clone(),
                    mac: mac.to_string(),
                    port: inventory.place_name(station.at),
                    vtep: match station.at {
                        Location::Port(_) => None,
                        Location::Vtep(id) => snapshot.vtep(id).map(|v| v.address.to_string()),
                    },
                    age_s: if station.is_static {
                        0.0
                    } else {
                        now_s - station.seen_s
                    },
                    is_static: station.is_static,
                    is_held: station.is_held,
                })
            })
            .collect();
        rows.sort_by(|a, b| (&a.segment, &a.mac).cmp(&(&b.segment, &b.mac)));
        rows
    }

    /// Where packets go, by prefix.
    pub fn routes(&self) -> Vec<Route> {
        let snapshot = self.core.published_snapshot();
        let inventory = self.core.inventory();
        let name = |id: PortId| inventory.port_name(id);
        let v4 = snapshot.hosts_v4.iter();
        let v4 = v4.map(|(address, to)| (IpAddr::V4(*address), *to));
        let v6 = snapshot.hosts_v6.iter();
        let hosts = v4.chain(v6.map(|(address, to)| (IpAddr::V6(*address), *to)));
        let hosts = hosts.map(|(address, to)| {
            let (via, port) = match to {
                Destination::Pod(id) => (RouteVia::Local, Some(id)),
                Destination::Gateway => (RouteVia::Local, None),
                Destination::Host(id) => (RouteVia::Host, Some(id)),
            };
            let mut route = route(IpNet::from(address), via);
            route.port = port.and_then(name);
            route.mtu = port.and_then(|id| Some(snapshot.port(id)?.mtu));
            (IpNet::from(address), route)
        });
        let beyond = snapshot.routes.iter().flat_map(|(prefix, target)| {
            let net = IpNet::new(prefix.address, prefix.len).ok();
            let row = |target| net.map(|net| (net, beyond(&snapshot, net, target, &name)));
            // One row for each neighbour that takes a share.
            let each: BTreeSet<_> = match target {
                RouteTarget::Spread(spread) => spread.slots().iter().copied().collect(),
                _ => BTreeSet::new(),
            };
            match each.is_empty() {
                true => Vec::from_iter(row(target)),
                false => each
                    .into_iter()
                    .map(RouteTarget::NextHop)
                    .filter_map(row)
                    .collect(),
            }
        });
        let mut rows: Vec<_> = hosts.chain(beyond).collect();
        rows.sort_by_key(|(net, _)| *net);
        rows.into_iter().map(|(_, route)| route).collect()
    }

    /// Name of a port's interface on the node.
    pub fn port_name(&self, id: PortId) -> Option<String> {
        self.core.inventory().port_name(id)
    }

    /// Attached pod interfaces.
    pub fn endpoints(&self) -> usize {
        let inventory = self.core.inventory();
        let attached = inventory.endpoints.values().filter(|l| l.port.is_some());
        attached.count()
    }
}

fn route(net: IpNet, via: RouteVia) -> Route {
    Route {
        prefix: net.to_string(),
        via,
        port: None,
        vtep: None,
        gateway: None,
        mac: None,
        mtu: None,
    }
}

/// What lies beyond this node.
fn beyond(
    snapshot: &Snapshot,
    net: IpNet,
    target: RouteTarget,
    name: &dyn Fn(PortId) -> Option<String>,
) -> Route {
    let via = match target {
        RouteTarget::Vtep(_) => RouteVia::Vtep,
        RouteTarget::NextHop(_) | RouteTarget::Spread(_) | RouteTarget::OnLink => RouteVia::Gateway,
        RouteTarget::Host(_) => RouteVia::Host,
        RouteTarget::Unreachable => RouteVia::Unreachable,
        RouteTarget::Prohibited => RouteVia::Prohibited,
        RouteTarget::Blackhole => RouteVia::Blackhole,
    };
    let mut row = route(net, via);
    let next_hop = match target {
        RouteTarget::Vtep(id) => {
            let Some(vtep) = snapshot.vtep(id) else {
                return row;
            };
            row.vtep = Some(vtep.address.to_string());
            row.mtu = Some(vtep.mtu);
            snapshot.next_hop(vtep.next_hop)
        }
        RouteTarget::NextHop(id) => snapshot.next_hop(id),
        RouteTarget::Host(id) => {
            row.port = name(id);
            None
        }
        RouteTarget::OnLink => {
            row.port = snapshot.underlay.uplink.and_then(name);
            None
        }
        RouteTarget::Spread(_)
        | RouteTarget::Unreachable
        | RouteTarget::Prohibited
        | RouteTarget::Blackhole => None,
    };
    if let Some(next_hop) = next_hop {
        row.port = name(next_hop.port);
        row.gateway = Some(next_hop.address.to_string());
        row.mac = next_hop.mac.map(|mac| mac.to_string());
        row.mtu = row.mtu.or(Some(next_hop.mtu));
    }
    row
}

fn row(port: BoundPort, name: String, kind: PortKind) -> Port {
    Port {
        name,
        kind,
        namespace: String::new(),
        pod: String::new(),
        container_id: String::new(),
        ifname: String::new(),
        network: String::new(),
        segment: None,
        addresses: Vec::new(),
        mac: String::new(),
        ifindex: port.ifindex,
        xdp_mode: if port.binding.native {
            XdpMode::Native
        } else {
            XdpMode::Generic
        },
        zero_copy: port.binding.zero_copy,
        lanes: (0..port.binding.lanes).collect(),
        queues: port.binding.lanes as u32,
        super_frames: true,
        mtu: 0,
        rx_packets: 0,
        rx_bytes: 0,
        tx_packets: 0,
        tx_bytes: 0,
        drops: 0,
        fault: None,
    }
}
