//! Several nodes on one link: namespaces that a bridge in a namespace of its
//! own joins, each with a real agent; hosts that are no nodes beside them.

use std::net::IpAddr;

use crate::error::{LabError, Result};
use crate::namespace::{Namespace, veth};
use crate::node::{Node, NodeConfig};

/// The interface of every station on the link.
pub const UPLINK: &str = "eth0";

/// A bridge, and the stations on it.
#[derive(Debug)]
pub struct Underlay {
    namespace: Namespace,
    families: Families,
}

/// Which addresses stations on the link get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Underlay {
    /// A link without stations.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(families: Families) -> Result<Self> {
        let namespace = Namespace::create("link")?;
        namespace.ip("link add br0 type bridge forward_delay 0")?;
        namespace.ip("link set br0 up")?;
        Ok(Self {
            namespace,
            families,
        })
    }

    /// The bridge's namespace; its ports are named `pN` by station.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The link's end of station `number`'s interface.
    #[must_use]
    pub fn port(number: u8) -> String {
        format!("p{number}")
    }

    /// The addresses of station `number`: `172.31.0.N` and `fd31::N`.
    #[must_use]
    pub fn addresses(&self, number: u8) -> Vec<IpAddr> {
        let v4 = IpAddr::from([172, 31, 0, number]);
        let v6 = IpAddr::from([0xfd31, 0, 0, 0, 0, 0, 0, u16::from(number)]);
        match self.families {
            Families::V4 => vec![v4],
            Families::V6 => vec![v6],
            Families::Dual => vec![v4, v6],
        }
    }

    /// Joins a namespace to the link as station `number`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(&self, station: &Namespace, number: u8) -> Result<()> {
        let port = Self::port(number);
        veth((station, UPLINK), (&self.namespace, &port))?;
        self.namespace
            .ip(&format!("link set {port} master br0 up"))?;
        for address in self.addresses(number) {
            let (len, nodad) = match address {
                IpAddr::V4(_) => (24, ""),
                IpAddr::V6(_) => (64, "nodad"),
            };
            station.ip(&format!("address add {address}/{len} dev {UPLINK} {nodad}"))?;
        }
        Ok(())
    }
}

/// Nodes on one link that know each other by manifests.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    underlay: Underlay,
}

impl Cluster {
    /// As many nodes as asked for, their agents running; `change` has the last
    /// word on each configuration.
    ///
    /// # Errors
    /// When a step fails.
    pub fn start(count: u8, families: Families, change: impl Fn(&mut NodeConfig)) -> Result<Self> {
        let mut cluster = Self::prepare(count, families, change)?;
        for node in &mut cluster.nodes {
            node.start_agent()?;
        }
        Ok(cluster)
    }

    /// As [`Cluster::start`], the agents not yet started.
    ///
    /// # Errors
    /// When a step fails.
    pub fn prepare(
        count: u8,
        families: Families,
        change: impl Fn(&mut NodeConfig),
    ) -> Result<Self> {
        let underlay = Underlay::new(families)?;
        let mut nodes = Vec::new();
        for number in 1..=count {
            let mut config = NodeConfig::new(&format!("n{number}"));
            let addresses = underlay.addresses(number);
            config.addresses = addresses.iter().map(ToString::to_string).collect();
            config.uplink = UPLINK.to_owned();
            // The ranges come from the Node object.
            config.pod_cidrs = Vec::new();
            change(&mut config);
            let node = Node::prepare(&config)?;
            underlay.plug(node.namespace(), number)?;
            nodes.push(node);
        }
        let cluster = Self { nodes, underlay };
        for number in 1..=count {
            cluster.announce(number, None)?;
        }
        Ok(cluster)
    }

    /// The nodes, `n1` first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes, to start and stop.
    #[must_use]
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The link.
    #[must_use]
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Writes the Node object of station `number` for every agent;
    /// `annotation` is one line of YAML.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn announce(&self, number: u8, annotation: Option<&str>) -> Result<()> {
        let text = node_manifest(number, &self.underlay.addresses(number), annotation);
        for node in &self.nodes {
            write(node, number, &text)?;
        }
        Ok(())
    }

    /// As [`Cluster::announce`], with pod ranges other than [`pod_cidrs`].
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn announce_ranges(&self, number: u8, ranges: [&str; 2]) -> Result<()> {
        let mut text = node_manifest(number, &self.underlay.addresses(number), None);
        for (usual, other) in pod_cidrs(number).iter().zip(ranges) {
            text = text.replace(usual.as_str(), other);
        }
        for node in &self.nodes {
            write(node, number, &text)?;
        }
        Ok(())
    }

    /// Removes the Node object of station `number` everywhere.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn withdraw(&self, number: u8) -> Result<()> {
        for node in &self.nodes {
            let path = node.manifests_dir().join(file_name(number));
            std::fs::remove_file(&path)
                .map_err(LabError::io(format!("remove {}", path.display())))?;
        }
        Ok(())
    }
}

/// The pod ranges of station `number`.
#[must_use]
pub fn pod_cidrs(number: u8) -> [String; 2] {
    [
        format!("10.244.{number}.0/24"),
        format!("fd44:0:0:{number:x}::/64"),
    ]
}

fn file_name(number: u8) -> String {
    format!("node-{number}.yaml")
}

fn write(node: &Node, number: u8, text: &str) -> Result<()> {
    let path = node.manifests_dir().join(file_name(number));
    std::fs::write(&path, text).map_err(LabError::io(format!("write {}", path.display())))
}

/// A Node object as `kubectl get -o yaml` prints it.
fn node_manifest(number: u8, addresses: &[IpAddr], annotation: Option<&str>) -> String {
    let [v4, v6] = pod_cidrs(number);
    let annotation = annotation.map_or(String::new(), |line| format!("    {line}\n"));
    let addresses: String = addresses
        .iter()
        .map(|address| format!("  - address: \"{address}\"\n    type: InternalIP\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  annotations:\n\
         \x20   node.alpha.kubernetes.io/ttl: \"0\"\n{annotation}\
         \x20 labels:\n    kubernetes.io/hostname: n{number}\n  name: n{number}\n\
         spec:\n  podCIDR: {v4}\n  podCIDRs:\n  - {v4}\n  - {v6}\n\
         status:\n  addresses:\n{addresses}  - address: n{number}\n    type: Hostname\n"
    )
}

/// A node that runs no agent: Linux routes its pods through a vxlan device,
/// as flannel sets one up.
#[derive(Debug)]
pub struct PlainNode {
    node: Namespace,
    pod: Namespace,
    number: u8,
}

/// The vxlan device of a plain node.
const VXLAN_DEVICE: &str = "vx0";

impl PlainNode {
    /// Joins `cluster` as station `number`: told to every agent, and told of
    /// every node that is there.
    ///
    /// # Errors
    /// When a step fails.
    pub fn join(cluster: &Cluster, number: u8) -> Result<Self> {
        let node = Namespace::create("plain")?;
        let pod = Namespace::create("plainpod")?;
        cluster.underlay().plug(&node, number)?;
        let plain = Self { node, pod, number };
        plain.set_up_pod()?;
        plain.set_up_overlay(cluster)?;
        Ok(plain)
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

    /// The pod's addresses.
    #[must_use]
    pub fn pod_addresses(&self) -> [IpAddr; 2] {
        [
            IpAddr::from([10, 244, self.number, 2]),
            IpAddr::from([0xfd44, 0, 0, u16::from(self.number), 0, 0, 0, 2]),
        ]
    }

    fn set_up_pod(&self) -> Result<()> {
        let number = self.number;
        veth((&self.node, "pod0"), (&self.pod, "eth0"))?;
        self.node.sysctl("net.ipv4.ip_forward", "1")?;
        self.node.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        self.node
            .ip(&format!("address add 10.244.{number}.1/24 dev pod0"))?;
        self.node.ip(&format!(
            "address add fd44:0:0:{number:x}::1/64 dev pod0 nodad"
        ))?;
        // What flannel writes into a pod's configuration.
        self.pod.ip("link set eth0 mtu 1450")?;
        self.pod
            .ip(&format!("address add 10.244.{number}.2/24 dev eth0"))?;
        self.pod.ip(&format!(
            "address add fd44:0:0:{number:x}::2/64 dev eth0 nodad"
        ))?;
        self.pod
            .ip(&format!("route add default via 10.244.{number}.1"))?;
        self.pod
            .ip(&format!("-6 route add default via fd44:0:0:{number:x}::1"))?;
        Ok(())
    }

    fn set_up_overlay(&self, cluster: &Cluster) -> Result<()> {
        let number = self.number;
        let own = cluster.underlay().addresses(number)[0];
        self.node.ip(&format!(
            "link add {VXLAN_DEVICE} type vxlan id 1 dstport 4789 local {own} dev {UPLINK} nolearning"
        ))?;
        self.node.ip(&format!(
            "address add 10.244.{number}.0/32 dev {VXLAN_DEVICE}"
        ))?;
        self.node.ip(&format!(
            "address add fd44:0:0:{number:x}::/128 dev {VXLAN_DEVICE} nodad"
        ))?;
        self.node.ip(&format!("link set {VXLAN_DEVICE} up"))?;
        // Answers to nodes go back by the way that their packets came.
        self.node.sh(&format!(
            "ip rule add iif pod0 lookup 100\n\
             echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter\n\
             echo 0 > /proc/sys/net/ipv4/conf/{VXLAN_DEVICE}/rp_filter\n"
        ))?;
        let count = u8::try_from(cluster.nodes().len()).unwrap_or(u8::MAX);
        for other in 1..=count {
            self.add_node(cluster, other)?;
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
    fn add_node(&self, cluster: &Cluster, other: u8) -> Result<()> {
        let addresses = cluster.underlay().addresses(other);
        // What the product computes, so that nobody announces it.
        let mac = match addresses[0] {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
            }
            IpAddr::V6(_) => {
                return Err(LabError::unexpected(
                    "a plain node",
                    "it needs an IPv4 underlay",
                ));
            }
        };
        let [v4, v6] = [format!("10.244.{other}.0"), format!("fd44:0:0:{other:x}::")];
        let dev = VXLAN_DEVICE;
        self.node.sh(&format!(
            "bridge fdb append {mac} dev {dev} dst {to}\n\
             ip neigh replace {v4} lladdr {mac} dev {dev} nud permanent\n\
             ip route add {v4}/24 via {v4} dev {dev} onlink\n\
             ip -6 neigh replace {v6} lladdr {mac} dev {dev} nud permanent\n\
             ip -6 route add {v6}/64 via {v6} dev {dev} onlink\n\
             ip route add {to} via {v4} dev {dev} onlink table 100\n",
            to = addresses[0],
        ))?;
        Ok(())
    }
}
