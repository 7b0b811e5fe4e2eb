//! The lab of mode `l2`: a link with nodes, a router that leads to a host
//! outside, and a plain host.

use std::net::IpAddr;

use crate::cluster::{Cluster, Families, UPLINK};
use crate::error::Result;
use crate::namespace::{Namespace, veth};
use crate::node::{Node, NodeConfig};
use crate::pod::Pod;

/// Number of the router on the link.
pub const ROUTER: u8 = 254;
/// Number of the plain host on the link.
pub const HOST: u8 = 200;

/// The host behind the router.
pub const OUTSIDE: [&str; 2] = ["198.51.100.9", "2001:db8:9::9"];

/// Nodes, a plain host and a router on one link.
#[derive(Debug)]
pub struct Lan {
    cluster: Cluster,
    router: Namespace,
    host: Namespace,
    outside: Namespace,
}

/// A way between two stations: its name, both ends, and the address used.
pub type Pair<'a> = (String, &'a Namespace, &'a Namespace, IpAddr);

impl Lan {
    /// Nodes in mode `l2`; `change` has the last word on each configuration.
    pub fn start(count: u8, change: impl Fn(&mut NodeConfig)) -> Result<Self> {
        let mut lan = Self::prepare(count, change)?;
        for node in lan.cluster.nodes_mut() {
            node.start_agent()?;
        }
        Ok(lan)
    }

    /// As [`Lan::start`], the agents not yet started.
    pub fn prepare(count: u8, change: impl Fn(&mut NodeConfig)) -> Result<Self> {
        let cluster = Cluster::prepare(count, Families::Dual, |config| {
            share(config);
            change(config);
        })?;
        let lan = Self {
            cluster,
            router: Namespace::create("router")?,
            host: Namespace::create("host")?,
            outside: Namespace::create("outside")?,
        };
        lan.cluster.underlay().plug(&lan.router, ROUTER)?;
        lan.cluster.underlay().plug(&lan.host, HOST)?;
        let nodes = lan.cluster.nodes().iter().map(Node::namespace);
        for station in nodes.chain([&lan.host]) {
            station.ip(&format!("route add default via 172.31.0.{ROUTER}"))?;
            station.ip(&format!("-6 route add default via fd31::{ROUTER:x}"))?;
            for interface in ["all", "default", UPLINK] {
                station.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1")?;
            }
        }
        veth((&lan.router, "away"), (&lan.outside, "eth0"))?;
        for forwarding in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            lan.router.sysctl(forwarding, "1")?;
        }
        for (address, len) in OUTSIDE.iter().zip([24, 64]) {
            let near = address.replace(".9", ".1").replace("::9", "::1");
            lan.router.ip(&format!(
                "address add {near}/{len} dev away {}",
                nodad(&near)
            ))?;
            lan.outside.ip(&format!(
                "address add {address}/{len} dev eth0 {}",
                nodad(address)
            ))?;
            let family = if near.contains(':') { "-6 " } else { "" };
            lan.outside
                .ip(&format!("{family}route add default via {near}"))?;
        }
        Ok(lan)
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        self.cluster.nodes()
    }

    /// The nodes, to start and stop.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        self.cluster.nodes_mut()
    }

    /// The bridge's namespace, whose ports are named `pN` by station.
    pub fn link(&self) -> &Namespace {
        self.cluster.underlay().namespace()
    }

    /// The plain host on the link.
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// The router on the link.
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// The host behind the router.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// The addresses of a station on the link, by its number.
    pub fn addresses(&self, number: u8) -> Vec<IpAddr> {
        self.cluster.underlay().addresses(number)
    }

    /// Every ordered pair of pods, nodes, the plain host and the host outside
    /// with every address of the second.
    pub fn pairs<'a>(&'a self, pods: &'a [Pod]) -> Result<Vec<Pair<'a>>> {
        let underlay = self.cluster.underlay();
        let mut stations: Vec<(&str, &Namespace, Vec<IpAddr>)> = Vec::new();
        for pod in pods {
            stations.push((pod.name(), pod.namespace(), pod.addresses("eth0")?));
        }
        for (node, number) in self.nodes().iter().zip(1..) {
            let namespace = node.namespace();
            stations.push((namespace.name(), namespace, underlay.addresses(number)));
        }
        stations.push(("host", &self.host, underlay.addresses(HOST)));
        let outside = OUTSIDE.map(|text| text.parse().expect("an address"));
        stations.push(("outside", &self.outside, outside.to_vec()));
        let mut pairs = Vec::new();
        for (from, source, _) in &stations {
            for (to, target, addresses) in &stations {
                if from != to {
                    pairs.extend(addresses.iter().map(|&address| {
                        (
                            format!("{from} to {to} ({address})"),
                            *source,
                            *target,
                            address,
                        )
                    }));
                }
            }
        }
        Ok(pairs)
    }
}

/// Has node `nN` share its network with its pods: they get a part of the
/// link's addresses that is its own.
pub fn share(config: &mut NodeConfig) {
    config.mode = "l2".to_owned();
    config.cluster_cidrs = Vec::new();
    let number: u8 = config.name[1..].parse().expect("nodes are named nN");
    config.pod_cidrs = vec![
        format!("172.31.0.{}/27", 32 * number),
        format!("fd31::{number}:0/112"),
    ];
}

fn nodad(address: &str) -> &'static str {
    match address.contains(':') {
        true => "nodad",
        false => "",
    }
}
