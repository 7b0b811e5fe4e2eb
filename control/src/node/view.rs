//! What the node shows of itself.

use spinlane_api::view::{FdbEntry, Port, PortKind, XdpMode};
use spinlane_dataplane::types::PortId;

use super::Node;
use super::host_port::SWITCH_SIDE;
use super::inventory::BoundPort;

impl Node {
    /// Every port, its packet counters still zero, with its id: the caller
    /// fills in what the data path counts.
    pub fn ports(&self) -> Vec<(PortId, Port)> {
        let core = &self.core;
        let inventory = core.inventory();
        let mut rows = Vec::new();
        if let Some(host) = inventory.host {
            let mut row = row(host.port, SWITCH_SIDE.to_owned(), PortKind::Host);
            row.mac = host.mac.to_string();
            row.addresses = inventory.local.iter().map(ToString::to_string).collect();
            row.mtu = core.setup.path_mtu;
            row.super_frames = core.setup.offloads;
            rows.push((host.port.id, row));
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

    /// Every station of every segment.
    pub fn fdb(&self) -> Vec<FdbEntry> {
        let core = &self.core;
        let inventory = core.inventory();
        let now_s = core.now_s();
        let mut rows: Vec<FdbEntry> = inventory
            .fdb
            .iter()
            .filter_map(|(segment, mac, station)| {
                let name = &core.setup.segments.get(segment.index())?.name;
                Some(FdbEntry {
                    segment: name.clone(),
                    mac: mac.to_string(),
                    port: inventory.port_name(station.port),
                    vtep: None,
                    age_s: if station.is_static {
                        0.0
                    } else {
                        now_s - station.seen_s
                    },
                    is_static: station.is_static,
                })
            })
            .collect();
        rows.sort_by(|a, b| (&a.segment, &a.mac).cmp(&(&b.segment, &b.mac)));
        rows
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
