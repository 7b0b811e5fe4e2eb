//! Several nodes on one link, or on several that a router joins: namespaces
//! that a bridge in a namespace of its own joins, each with a real agent.

use std::net::IpAddr;

use crate::error::{LabError, Result};
use crate::namespace::{Namespace, veth};
use crate::node::{Node, NodeConfig};

/// The interface of every station on the link.
pub const UPLINK: &str = "eth0";

/// Number of the station that joins links, on each of them.
pub const ROUTER: u8 = 254;

/// A bridge, and the stations on it.
#[derive(Debug)]
pub struct Underlay {
    namespace: Namespace,
    families: Families,
    subnet: u8,
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
        Self::numbered(families, 0)
    }

    /// As [`Underlay::new`], with addresses of another subnet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn numbered(families: Families, subnet: u8) -> Result<Self> {
        let namespace = Namespace::create("link")?;
        namespace.ip("link add br0 type bridge forward_delay 0")?;
        namespace.ip("link set br0 up")?;
        Ok(Self {
            namespace,
            families,
            subnet,
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

    /// The addresses of station `number` in subnet `S`: `172.31.S.N` and
    /// `fd31:0:0:S::N`.
    #[must_use]
    pub fn addresses(&self, number: u8) -> Vec<IpAddr> {
        let v4 = IpAddr::from([172, 31, self.subnet, number]);
        let (subnet, number) = (u16::from(self.subnet), u16::from(number));
        let v6 = IpAddr::from([0xfd31, 0, 0, subnet, 0, 0, 0, number]);
        match self.families {
            Families::V4 => vec![v4],
            Families::V6 => vec![v6],
            Families::Dual => vec![v4, v6],
        }
    }

    /// The networks of the addresses.
    #[must_use]
    pub fn networks(&self) -> Vec<String> {
        let lengths = self.addresses(0).into_iter();
        lengths
            .map(|network| format!("{network}/{}", prefix_len(network)))
            .collect()
    }

    /// Joins a namespace to the link as station `number`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(&self, station: &Namespace, number: u8) -> Result<()> {
        self.plug_as(station, UPLINK, number)
    }

    /// As [`Underlay::plug`], by an interface of another name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug_as(&self, station: &Namespace, interface: &str, number: u8) -> Result<()> {
        // Nobody else has the addresses, and link-local ones are needed at once.
        station.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        let port = Self::port(number);
        veth((station, interface), (&self.namespace, &port))?;
        self.namespace
            .ip(&format!("link set {port} master br0 up"))?;
        for address in self.addresses(number) {
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            let len = prefix_len(address);
            station.ip(&format!(
                "address add {address}/{len} dev {interface} {nodad}"
            ))?;
        }
        Ok(())
    }
}

fn prefix_len(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    }
}

/// Nodes that know each other by manifests.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    underlays: Vec<Underlay>,
    /// The subnet of each node.
    subnets: Vec<u8>,
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
        Self::prepare_in(&vec![0; usize::from(count)], families, change)
    }

    /// As [`Cluster::prepare`], a node for each of `subnets`, on the link with
    /// that number. What joins links is the caller's.
    ///
    /// # Errors
    /// When a step fails.
    pub fn prepare_in(
        subnets: &[u8],
        families: Families,
        change: impl Fn(&mut NodeConfig),
    ) -> Result<Self> {
        let count = subnets.iter().max().map_or(1, |last| last + 1);
        let underlays = (0..count).map(|subnet| Underlay::numbered(families, subnet));
        let mut cluster = Self {
            nodes: Vec::new(),
            underlays: underlays.collect::<Result<_>>()?,
            subnets: subnets.to_vec(),
        };
        for (number, &subnet) in (1..).zip(subnets) {
            let mut config = NodeConfig::new(&format!("n{number}"));
            let addresses = cluster.addresses(number);
            config.addresses = addresses.iter().map(ToString::to_string).collect();
            config.uplink = UPLINK.to_owned();
            // The ranges come from the Node object.
            config.pod_cidrs = Vec::new();
            change(&mut config);
            let node = Node::prepare(&config)?;
            cluster.underlays[usize::from(subnet)].plug(node.namespace(), number)?;
            cluster.nodes.push(node);
        }
        for (number, _) in (1..).zip(subnets) {
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

    /// The link, the first one of several.
    #[must_use]
    pub fn underlay(&self) -> &Underlay {
        &self.underlays[0]
    }

    /// All links, by subnet.
    #[must_use]
    pub fn underlays(&self) -> &[Underlay] {
        &self.underlays
    }

    /// The link that station `number` is on: its node's, the first one for
    /// other stations.
    #[must_use]
    pub fn underlay_of(&self, number: u8) -> &Underlay {
        let index = usize::from(number).checked_sub(1);
        let subnet = index.and_then(|index| self.subnets.get(index));
        &self.underlays[usize::from(subnet.copied().unwrap_or(0))]
    }

    /// The addresses of station `number` on its link.
    #[must_use]
    pub fn addresses(&self, number: u8) -> Vec<IpAddr> {
        self.underlay_of(number).addresses(number)
    }

    /// Writes the Node object of station `number` for every agent;
    /// `annotation` is one line of YAML.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn announce(&self, number: u8, annotation: Option<&str>) -> Result<()> {
        let text = node_manifest(number, &self.addresses(number), annotation);
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
        let mut text = node_manifest(number, &self.addresses(number), None);
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
