//! A node that runs no agent: Linux routes its pods, through a vxlan device as
//! flannel sets one up or by the other nodes' addresses.

use std::net::IpAddr;

use crate::cluster::{Cluster, ROUTER, UPLINK, pod_cidrs};
use crate::error::{LabError, Result};
use crate::namespace::{Namespace, veth};

/// The node, and its one pod.
#[derive(Debug)]
pub struct PlainNode {
    node: Namespace,
    pod: Namespace,
    number: u8,
    pod_addresses: [IpAddr; 2],
}

/// A station's bridge ([`bridge`]).
pub const BRIDGE: &str = "br0";

/// Its vxlan device.
const VXLAN_DEVICE: &str = "vx0";

impl PlainNode {
    /// Joins `cluster` as station `number`: told to every agent, and told of
    /// every node that is there; `tunnels` says which of them are reached
    /// through the overlay.
    ///
    /// # Errors
    /// When a step fails.
    pub fn join(cluster: &Cluster, number: u8, tunnels: impl Fn(u8) -> bool) -> Result<Self> {
        let pod_addresses = [
            IpAddr::from([10, 244, number, 2]),
            IpAddr::from([0xfd44, 0, 0, u16::from(number), 0, 0, 0, 2]),
        ];
        let plain = Self::plug(cluster, number, pod_addresses)?;
        let count = u8::try_from(cluster.nodes().len()).unwrap_or(u8::MAX);
        let (far, near): (Vec<u8>, Vec<u8>) = (1..=count).partition(|other| tunnels(*other));
        let mtu = match far.is_empty() {
            true => 1500,
            false => overlay_mtu(cluster),
        };
        plain.set_up_pod(mtu)?;
        for &other in &near {
            route_to_pods(&plain.node, cluster, other)?;
        }
        match far.is_empty() {
            true => cluster.announce(number, None)?,
            false => plain.set_up_overlay(cluster, &far)?,
        }
        Ok(plain)
    }

    /// Shares the link with its pod as station `number` and its neighbour, by
    /// a Linux bridge.
    ///
    /// # Errors
    /// When a step fails.
    pub fn share(cluster: &Cluster, number: u8) -> Result<Self> {
        let pod_addresses = [
            IpAddr::from([172, 31, 0, 190]),
            IpAddr::from([0xfd31, 0, 0, 0, 0, 0, u16::from(number), 2]),
        ];
        let plain = Self::plug(cluster, number, pod_addresses)?;
        bridge(&plain.node)?;
        let [v4, v6] = pod_addresses;
        plain.node.ip(&format!("link set pod0 master {BRIDGE}"))?;
        plain.pod.ip(&format!("address add {v4}/24 dev eth0"))?;
        plain
            .pod
            .ip(&format!("address add {v6}/64 dev eth0 nodad"))?;
        Ok(plain)
    }

    fn plug(cluster: &Cluster, number: u8, pod_addresses: [IpAddr; 2]) -> Result<Self> {
        let node = Namespace::create("plain")?;
        let pod = Namespace::create("plainpod")?;
        cluster.underlay().plug(&node, number)?;
        veth((&node, "pod0"), (&pod, "eth0"))?;
        Ok(Self {
            node,
            pod,
            number,
            pod_addresses,
        })
    }

    /// The namespace that plays the node.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.node
    }

    /// The namespace of its one pod.
    #[must_use]
    pub fn pod(&self) -> &Namespace {
        &self.pod
    }

    /// The number of its station.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The addresses that the node uses towards pods: its own, and those of its
    /// end of the overlay, as flannel has it.
    #[must_use]
    pub fn addresses(&self, cluster: &Cluster) -> Vec<IpAddr> {
        let mut addresses = cluster.addresses(self.number);
        addresses.push(IpAddr::from([10, 244, self.number, 0]));
        let number = u16::from(self.number);
        addresses.push(IpAddr::from([0xfd44, 0, 0, number, 0, 0, 0, 0]));
        addresses
    }

    /// The pod's addresses.
    #[must_use]
    pub fn pod_addresses(&self) -> [IpAddr; 2] {
        self.pod_addresses
    }

    fn set_up_pod(&self, mtu: u32) -> Result<()> {
        let number = self.number;
        self.node.sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward\n\
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n\
             echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter\n\
             ip link set pod0 mtu {mtu}\n\
             ip address add 10.244.{number}.1/24 dev pod0\n\
             ip address add fd44:0:0:{number:x}::1/64 dev pod0 nodad\n"
        ))?;
        // What flannel writes into a pod's configuration.
        self.pod.sh(&format!(
            "ip link set eth0 mtu {mtu}\n\
             ip address add 10.244.{number}.2/24 dev eth0\n\
             ip address add fd44:0:0:{number:x}::2/64 dev eth0 nodad\n\
             ip route add default via 10.244.{number}.1\n\
             ip -6 route add default via fd44:0:0:{number:x}::1\n"
        ))?;
        Ok(())
    }

    fn set_up_overlay(&self, cluster: &Cluster, far: &[u8]) -> Result<()> {
        let number = self.number;
        let own = cluster.addresses(number)[0];
        let mtu = overlay_mtu(cluster);
        self.node.sh(&format!(
            "ip link add {VXLAN_DEVICE} mtu {mtu} type vxlan id 1 dstport 4789 local {own} dev {UPLINK} nolearning\n\
             ip address add 10.244.{number}.0/32 dev {VXLAN_DEVICE}\n\
             ip address add fd44:0:0:{number:x}::/128 dev {VXLAN_DEVICE} nodad\n\
             ip link set {VXLAN_DEVICE} up\n\
             echo 0 > /proc/sys/net/ipv4/conf/{VXLAN_DEVICE}/rp_filter\n\
             ip rule add iif pod0 lookup 100\n\
             ip -6 rule add iif pod0 lookup 100\n"
        ))?;
        for &other in far {
            self.add_far(cluster, other)?;
        }
        let shown = self.node.ip(&format!("-o link show {VXLAN_DEVICE}"))?;
        let mac = shown
            .split("link/ether ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .ok_or_else(|| LabError::unexpected("MAC of the vxlan device", shown.clone()))?;
        let annotation =
            format!("flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}'");
        cluster.announce(number, Some(&annotation))
    }

    /// Tells Linux of a node: its ranges behind its end of the overlay.
    fn add_far(&self, cluster: &Cluster, other: u8) -> Result<()> {
        let addresses = cluster.addresses(other);
        let mac = match addresses[0] {
            // What the product computes, so that nobody announces it.
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
            }
            IpAddr::V6(_) => {
                let mac = format!("0a:58:00:00:31:{other:02x}");
                cluster.announce(other, Some(&format!("spinlane.io/vtep-mac: {mac}")))?;
                mac
            }
        };
        let [v4, v6] = [format!("10.244.{other}.0"), format!("fd44:0:0:{other:x}::")];
        let dev = VXLAN_DEVICE;
        self.node.sh(&format!(
            "bridge fdb append {mac} dev {dev} dst {to}\n\
             ip neigh replace {v4} lladdr {mac} dev {dev} nud permanent\n\
             ip route add {v4}/24 via {v4} dev {dev} onlink\n\
             ip -6 neigh replace {v6} lladdr {mac} dev {dev} nud permanent\n\
             ip -6 route add {v6}/64 via {v6} dev {dev} onlink\n",
            to = addresses[0],
        ))?;
        // Answers to nodes go back by the way that their packets came.
        for address in addresses {
            let via = if address.is_ipv4() { &v4 } else { &v6 };
            self.node.ip(&format!(
                "route add {address} via {via} dev {dev} onlink table 100"
            ))?;
        }
        Ok(())
    }
}

/// Makes a station's uplink a port of the bridge [`BRIDGE`], which has the
/// addresses then.
///
/// # Errors
/// When the kernel refuses.
pub fn bridge(station: &Namespace) -> Result<()> {
    let held = station.ip(&format!("-br address show dev {UPLINK}"))?;
    let addresses = held.split_whitespace().skip(2);
    let global: Vec<&str> = addresses.filter(|a| !a.starts_with("fe80")).collect();
    station.ip(&format!("link add {BRIDGE} type bridge forward_delay 0"))?;
    station.ip(&format!("link set {UPLINK} master {BRIDGE}"))?;
    station.ip(&format!("address flush dev {UPLINK}"))?;
    station.ip(&format!("link set {BRIDGE} up"))?;
    for address in global {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        station.ip(&format!("address add {address} dev {BRIDGE} {nodad}"))?;
    }
    Ok(())
}

/// Routes a station of the first link to the pods of a node by its address, or
/// by the router that it is behind.
pub(crate) fn route_to_pods(station: &Namespace, cluster: &Cluster, node: u8) -> Result<()> {
    let own = cluster.underlay().addresses(node);
    let there = cluster.addresses(node);
    let ways = match there == own {
        true => there,
        false => cluster.underlay().addresses(ROUTER),
    };
    for via in ways {
        let [v4, v6] = pod_cidrs(node);
        let net = if via.is_ipv4() { v4 } else { v6 };
        station.ip(&format!("route add {net} via {via}"))?;
    }
    Ok(())
}

/// Longest packet through the overlay.
fn overlay_mtu(cluster: &Cluster) -> u32 {
    match cluster.addresses(1)[0] {
        IpAddr::V4(_) => 1450,
        IpAddr::V6(_) => 1430,
    }
}
