//! What the node has at this moment, in memory: endpoints and their ports,
//! addresses, stations. One lock guards it, held for lookups and changes
//! only, never over a call to the kernel, the disk or the data path.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use spinlane_api::cni::Attachment;
use spinlane_dataplane::snapshot::{FdbTarget, Location};
use spinlane_dataplane::types::{MacAddr, PortId, SegmentId, Vni};

use super::bound::{BoundHost, BoundPort};
use super::endpoint::Endpoint;
use super::fdb::Fdb;
use super::ipam::Ipam;
use super::plan::{Desired, HostPort, PodPort, PortIds, SegmentState};
use super::setup::{GATEWAY_LINK_LOCAL, Setup};
use super::surroundings::Surroundings;
use crate::config::{Segment, StationPlace};

/// Where pods are whose segment is not configured: no snapshot has it.
const NO_SEGMENT: SegmentId = SegmentId(u16::MAX);

/// An endpoint and its port; none when the interface vanished.
#[derive(Debug, Clone)]
pub struct Live {
    /// The record.
    pub endpoint: Endpoint,
    /// Its port.
    pub port: Option<BoundPort>,
    /// How far its bulk TCP is led.
    pub lead: Lead,
}

/// How far a pod's bulk TCP is led (`sequel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    /// As it is to be.
    Settled,
    /// It is to be led, which comes after ADD's answer.
    Due,
    /// It could not be led; that is tried again.
    Failed,
}

/// Everything.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Endpoints.
    pub endpoints: HashMap<Attachment, Live>,
    /// Addresses.
    pub ipam: Ipam,
    /// Stations.
    pub fdb: Fdb,
    /// Ids of ports.
    pub ids: PortIds,
    /// The host port.
    pub host: Option<BoundHost>,
    /// Until when the node's kernel counts as one that forwards super-frames.
    pub host_forwards: Option<Instant>,
    /// Addresses that the kernel holds.
    pub local: BTreeSet<IpAddr>,
    /// Other nodes and the ways to them.
    pub surroundings: Surroundings,
    /// Counts changes that the snapshot must follow.
    pub version: u64,
}

impl Inventory {
    /// Says that the snapshot must follow.
    pub fn touch(&mut self) {
        self.version += 1;
    }

    /// The endpoint behind a port.
    pub fn by_port(&self, id: PortId) -> Option<&Live> {
        self.endpoints
            .values()
            .find(|live| live.port.is_some_and(|port| port.id == id))
    }

    /// The endpoint whose host end has that index.
    pub fn by_ifindex(&self, ifindex: u32) -> Option<&Live> {
        self.endpoints
            .values()
            .find(|live| live.port.is_some_and(|port| port.ifindex == ifindex))
    }

    /// Whether an interface is an end of the host port.
    pub fn is_host_port(&self, ifindex: u32) -> bool {
        self.host
            .is_some_and(|host| [host.ifindex, host.port.ifindex].contains(&ifindex))
    }

    /// Name of a port's interface.
    pub fn port_name(&self, id: PortId) -> Option<String> {
        if self.host.is_some_and(|host| host.port.id == id) {
            return Some(super::host_port::SWITCH_SIDE.to_owned());
        }
        if self.surroundings.uplink.is_some_and(|u| u.port.id == id) {
            return self.uplink_name();
        }
        self.by_port(id)
            .map(|live| live.endpoint.host_ifname.clone())
    }

    /// Stations that are held, and what that means.
    pub fn held_notices(&self, setup: &Setup) -> Vec<String> {
        let held = self.fdb.iter().filter(|(_, _, station)| station.is_held);
        let mut notices: Vec<String> = held
            .filter_map(|(segment, mac, station)| {
                let segment = &setup.segments.get(segment.index())?.name;
                let port = self.place_name(station.at);
                let port = port.map_or(String::new(), |port| format!(" behind {port}"));
                Some(format!(
                    "station {mac} of segment {segment} moves to and fro and is held{port}: there is a loop, or another station with its address; find it and take it away"
                ))
            })
            .collect();
        notices.sort();
        notices
    }

    /// Name of the port that a station is behind.
    pub fn place_name(&self, at: Location) -> Option<String> {
        match at {
            Location::Port(id) => self.port_name(id),
            Location::Vtep(_) => None,
        }
    }

    /// Name of the uplink, when it is attached.
    pub fn uplink_name(&self) -> Option<String> {
        let uplink = self.surroundings.uplink?;
        let link = self.surroundings.kernel.link(uplink.port.ifindex)?;
        Some(link.name.clone())
    }

    /// Index of a configured segment.
    pub fn segment_id(setup: &Setup, name: &str) -> Option<SegmentId> {
        let position = setup.segments.iter().position(|s| s.name == name)?;
        Some(SegmentId(position as u16))
    }

    /// The segment that an endpoint is in: one without members and stations
    /// where configuration no longer has it, so that it reaches nobody.
    fn segment_of(setup: &Setup, endpoint: &Endpoint) -> Option<SegmentId> {
        let name = endpoint.segment.as_ref()?;
        Some(Inventory::segment_id(setup, name).unwrap_or(NO_SEGMENT))
    }

    /// Says which pods are in segments that configuration no longer has.
    pub fn segmentless_notice(&self, setup: &Setup) -> Option<String> {
        let live = self.endpoints.values().map(|live| &live.endpoint);
        let mut names: Vec<String> = live
            .filter(|endpoint| Inventory::segment_of(setup, endpoint) == Some(NO_SEGMENT))
            .map(|endpoint| {
                let segment = endpoint.segment.as_deref().unwrap_or_default();
                format!("{} (segment {segment})", endpoint.owner())
            })
            .collect();
        names.sort();
        (!names.is_empty()).then(|| {
            format!(
                "{} interfaces are in segments that spinlane.toml no longer has, and reach nobody; put the segments back or delete the pods: {}",
                names.len(),
                names.join(", ")
            )
        })
    }

    /// Sets the static stations behind a port of that endpoint: its own where
    /// a guard holds it to that, and those that configuration puts there by
    /// the name of the interface, the pod, or namespace and pod.
    pub fn fix_stations(&mut self, setup: &Setup, attachment: &Attachment, now_s: f64) {
        let Some(Live {
            endpoint,
            port: Some(port),
            ..
        }) = self.endpoints.get(attachment)
        else {
            return;
        };
        let names = [
            endpoint.host_ifname.clone(),
            endpoint.pod.name.clone(),
            format!("{}/{}", endpoint.pod.namespace, endpoint.pod.name),
        ];
        let Some(name) = endpoint.segment.clone() else {
            return;
        };
        let id = port.id;
        let Some(segment) = Inventory::segment_id(setup, &name) else {
            return;
        };
        let segment_setup = &setup.segments[segment.index()];
        if segment_setup.guard
            && let Ok(mac) = endpoint.mac.parse()
        {
            // It sends as nothing else, and nobody else as it.
            self.fdb.fix(segment, mac, Location::Port(id), now_s);
        }
        for station in &segment_setup.stations {
            if let StationPlace::Port(place) = &station.at
                && names.contains(place)
            {
                self.fdb
                    .fix(segment, station.mac, Location::Port(id), now_s);
            }
        }
    }

    /// Sets what is known of the segment that pods share with the uplink: the
    /// node is behind the host port with the uplink's MAC address, and what
    /// configuration puts behind the uplink.
    pub fn fix_node_stations(&mut self, setup: &Setup, now_s: f64) {
        let (Some(segment), Some(uplink)) = (setup.shared_segment(), self.surroundings.uplink)
        else {
            return;
        };
        let beyond = Location::Port(uplink.port.id);
        self.fdb.set_wide(Some(beyond));
        if let Some(host) = self.host {
            let at = Location::Port(host.port.id);
            self.fdb.remove(at);
            self.fdb.fix(segment, uplink.mac, at, now_s);
        }
        let name = self.uplink_name();
        for station in &setup.segments[segment.index()].stations {
            if let StationPlace::Port(place) = &station.at
                && name.as_ref() == Some(place)
            {
                self.fdb.fix(segment, station.mac, beyond, now_s);
            }
        }
    }

    /// What the snapshot should say.
    pub fn desired(&self, setup: &Setup) -> Desired {
        let shared = setup.shared_segment();
        // In the uplink's own network the switch is no gateway.
        let pod_cidrs = match shared {
            Some(_) => Vec::new(),
            None => setup.pod_cidrs.clone(),
        };
        let mut gateways: BTreeSet<IpAddr> =
            pod_cidrs.iter().map(super::ipam::first_address).collect();
        if shared.is_none() {
            gateways.insert(GATEWAY_LINK_LOCAL.into());
        }
        let mut pods = Vec::new();
        for live in self.endpoints.values() {
            let Some(port) = live.port else { continue };
            let endpoint = &live.endpoint;
            if endpoint.segment.is_none() {
                gateways.extend(endpoint.addresses.iter().filter_map(|a| a.gateway));
            }
            pods.push(PodPort {
                id: port.id,
                container_id: endpoint.attachment.container_id.clone(),
                segment: Inventory::segment_of(setup, endpoint),
                mac: endpoint.mac.parse().unwrap_or_default(),
                addresses: endpoint.ips().collect(),
                mtu: endpoint.mtu,
                super_frames: endpoint.super_frames,
                device_mtu: endpoint.device_mtu,
                segment_mtu: endpoint.segment_mtu,
            });
        }
        pods.sort_by_key(|pod| pod.id);
        let mut segments: Vec<SegmentState> = setup
            .segments
            .iter()
            .map(|segment| SegmentState {
                guard: segment.guard,
                vni: segment.vni.and_then(Vni::new),
                remote: remote_stations(segment),
                ..SegmentState::default()
            })
            .collect();
        for (segment, mac, station) in self.fdb.iter() {
            if let Some(state) = segments.get_mut(segment.index()) {
                let target = FdbTarget {
                    at: station.at,
                    is_static: station.is_static,
                    is_held: station.is_held,
                };
                state.stations.insert(mac, target);
            }
        }
        Desired {
            gateway_mac: setup.gateway_mac(),
            gateways,
            pod_cidrs,
            pods,
            shared,
            host: self.host.map(|host| HostPort {
                id: host.port.id,
                mac: host.mac,
                mtu: setup.path_mtu,
                // There the kernel may pass it on, and needs to know where to cut.
                super_frames: setup.offloads && shared.is_none() && self.host_forwards.is_none(),
                device_mtu: setup.device_mtu(),
                segment_mtu: setup.path_mtu,
            }),
            uplink: self.surroundings.uplink,
            local: self.local.clone(),
            segments,
        }
    }
}

/// Stations that configuration puts behind other nodes.
fn remote_stations(segment: &Segment) -> Vec<(MacAddr, IpAddr)> {
    let stations = segment.stations.iter();
    let remote = stations.filter_map(|station| match station.at {
        StationPlace::Vtep(address) => Some((station.mac, address)),
        StationPlace::Port(_) => None,
    });
    remote.collect()
}
