//! The whole lab: three nodes, a plain Linux node and a host outside, in any
//! of the ways in which nodes reach each other.
//!
//! ```text
//! pods  n1   n2   plain   outside          n3 (across: behind the router)
//!        │    │     │        │              │
//!        └────┴─────┴────────┴── router ────┘
//! ```

use std::net::IpAddr;

use crate::cluster::{Cluster, Families, ROUTER, UPLINK, pod_cidrs};
use crate::error::Result;
use crate::lan;
use crate::namespace::Namespace;
use crate::node::Node;
use crate::plain::{PlainNode, route_to_pods};
use crate::pod::Pod;

/// How packets get from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the overlay.
    Vxlan,
    /// As they are, all nodes on one link.
    Routed,
    /// As they are, the third node behind a router that knows the pods' ranges.
    Across,
    /// As they are on the link, through the overlay to the node behind a router
    /// that knows no pods.
    CrossSubnet,
    /// Pods, nodes and everybody else are stations of one network.
    L2,
}

impl Way {
    /// Whether nothing goes through the overlay, so that others can route to
    /// pods too; the host outside does then.
    #[must_use]
    pub fn is_routed(self) -> bool {
        matches!(self, Way::Routed | Way::Across)
    }
}

/// Station number of the plain node.
pub const PLAIN: u8 = 9;
/// Station number of the host outside.
pub const OUTSIDE: u8 = 200;

/// The lab.
#[derive(Debug)]
pub struct Site {
    way: Way,
    pods: Vec<Pod>,
    plain: PlainNode,
    outside: Namespace,
    router: Option<Namespace>,
    cluster: Cluster,
}

/// Somebody who talks.
#[derive(Debug)]
pub struct Station<'a> {
    /// For messages.
    pub name: String,
    /// Where it lives.
    pub namespace: &'a Namespace,
    /// Where it is reached.
    pub addresses: Vec<IpAddr>,
    /// What else others may see it come from.
    pub aliases: Vec<IpAddr>,
    /// What it is.
    pub kind: Kind,
}

/// What a station is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pod of the node with that number.
    Pod(u8),
    /// A node.
    Node(u8),
    /// The plain node's pod.
    PlainPod,
    /// The plain node.
    PlainNode,
    /// The host outside.
    Outside {
        /// Whether it has routes to pods.
        knows_pods: bool,
    },
    /// That host, where pods are in its own network.
    Neighbour,
}

impl Site {
    /// Everything up and attached: two pods on the first node, one on each of
    /// the others. The nodes filter reverse paths strictly.
    ///
    /// # Errors
    /// When a step fails.
    pub fn start(way: Way, families: Families) -> Result<Self> {
        let third = match way {
            Way::Vxlan | Way::Routed | Way::L2 => 0,
            Way::Across | Way::CrossSubnet => 1,
        };
        let mut cluster = Cluster::prepare_in(&[0, 0, third], families, |config| match way {
            Way::Vxlan => {}
            Way::L2 => lan::share(config),
            Way::Routed | Way::Across => config.mode = "routed".to_owned(),
            Way::CrossSubnet => {
                config.mode = "routed".to_owned();
                config.network = "cross-subnet = true\n".to_owned();
            }
        })?;
        let outside = Namespace::create("outside")?;
        cluster.underlay().plug(&outside, OUTSIDE)?;
        let plain = match way {
            Way::L2 => PlainNode::share(&cluster, PLAIN)?,
            Way::Vxlan => PlainNode::join(&cluster, PLAIN, |_| true)?,
            Way::Routed | Way::Across => PlainNode::join(&cluster, PLAIN, |_| false)?,
            Way::CrossSubnet => PlainNode::join(&cluster, PLAIN, |other| other == 3)?,
        };
        let router = (third != 0).then(|| router(&cluster, way)).transpose()?;
        if router.is_some() {
            for namespace in [plain.namespace(), &outside] {
                behind_router(namespace, &cluster, 1)?;
            }
        }
        if way.is_routed() {
            for number in [1, 2, 3, PLAIN] {
                route_to_pods(&outside, &cluster, number)?;
            }
        }
        for node in cluster.nodes_mut() {
            for interface in ["all", "default", UPLINK] {
                let key = format!("net/ipv4/conf/{interface}/rp_filter");
                node.namespace().sysctl(&key, "1")?;
            }
            node.start_agent()?;
        }
        let mut pods = Vec::new();
        for (node, name) in [(0, "a"), (0, "b"), (1, "c"), (2, "d")] {
            pods.push(Pod::attach(&cluster.nodes()[node], name)?);
        }
        Ok(Self {
            way,
            pods,
            plain,
            outside,
            router,
            cluster,
        })
    }

    /// How packets get from node to node.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// The nodes with agents.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The node with that number.
    #[must_use]
    pub fn node(&self, number: u8) -> &Node {
        &self.cluster.nodes()[usize::from(number) - 1]
    }

    /// The pods: two of the first node, one of the second, one of the third.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The plain node.
    #[must_use]
    pub fn plain(&self) -> &PlainNode {
        &self.plain
    }

    /// The host that is no part of the cluster, and its addresses.
    #[must_use]
    pub fn outside(&self) -> (&Namespace, Vec<IpAddr>) {
        (&self.outside, self.cluster.underlay().addresses(OUTSIDE))
    }

    /// The router before the third node, where there is one.
    #[must_use]
    pub fn router(&self) -> Option<&Namespace> {
        self.router.as_ref()
    }

    /// Everybody who talks.
    ///
    /// # Errors
    /// When a pod has no addresses.
    pub fn stations(&self) -> Result<Vec<Station<'_>>> {
        let mut stations = Vec::new();
        for (pod, number) in self.pods.iter().zip([1, 1, 2, 3]) {
            stations.push(Station {
                name: format!("pod {}", pod.name()),
                namespace: pod.namespace(),
                addresses: pod.addresses("eth0")?,
                aliases: Vec::new(),
                kind: Kind::Pod(number),
            });
        }
        for (number, node) in (1..).zip(self.cluster.nodes()) {
            stations.push(Station {
                name: format!("node {number}"),
                namespace: node.namespace(),
                addresses: self.cluster.addresses(number),
                aliases: Vec::new(),
                kind: Kind::Node(number),
            });
        }
        stations.push(Station {
            name: "plain pod".to_owned(),
            namespace: self.plain.pod(),
            addresses: self.plain.pod_addresses().to_vec(),
            aliases: Vec::new(),
            kind: Kind::PlainPod,
        });
        stations.push(Station {
            name: "plain node".to_owned(),
            namespace: self.plain.namespace(),
            addresses: self.cluster.addresses(PLAIN),
            aliases: match self.way {
                Way::L2 => Vec::new(),
                _ => self.plain.addresses(&self.cluster),
            },
            kind: Kind::PlainNode,
        });
        let (namespace, addresses) = self.outside();
        stations.push(Station {
            name: "outside".to_owned(),
            namespace,
            addresses,
            aliases: Vec::new(),
            kind: match self.way {
                Way::L2 => Kind::Neighbour,
                _ => Kind::Outside {
                    knows_pods: self.way.is_routed(),
                },
            },
        });
        Ok(stations)
    }
}

/// Joins the two links; every node with its other side behind it.
fn router(cluster: &Cluster, way: Way) -> Result<Namespace> {
    let router = Namespace::create("router")?;
    for (underlay, interface) in cluster.underlays().iter().zip([UPLINK, "eth1"]) {
        underlay.plug_as(&router, interface, ROUTER)?;
    }
    router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward\n\
               echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n")?;
    for (number, node) in (1..).zip(cluster.nodes()) {
        let other = usize::from(number != 3);
        behind_router(node.namespace(), cluster, other)?;
        if way == Way::Across {
            pods_behind(&router, &cluster.addresses(number), number)?;
        }
    }
    if way == Way::Across {
        pods_behind(&router, &cluster.addresses(PLAIN), PLAIN)?;
    }
    Ok(router)
}

/// Routes to the pods of station `number` by its addresses.
fn pods_behind(router: &Namespace, addresses: &[IpAddr], number: u8) -> Result<()> {
    for net in pod_cidrs(number) {
        let mut fitting = addresses.iter();
        if let Some(via) = fitting.find(|a| a.is_ipv6() == net.contains(':')) {
            router.ip(&format!("route add {net} via {via}"))?;
        }
    }
    Ok(())
}

/// Routes a station to the link of `subnet` by the router on its own.
fn behind_router(station: &Namespace, cluster: &Cluster, subnet: usize) -> Result<()> {
    let own = &cluster.underlays()[1 - subnet];
    let gateways = own.addresses(ROUTER);
    for (net, via) in cluster.underlays()[subnet].networks().iter().zip(gateways) {
        station.ip(&format!("route add {net} via {via}"))?;
    }
    Ok(())
}
