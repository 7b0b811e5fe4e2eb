//! The lab of these tests.
//!
//! ```text
//! pod ── node ──(link)── router ──(MTU 1300)── far
//! ```

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use spinlane_tests::cluster::Families;
use spinlane_tests::{Cluster, LabError, Namespace, Node, NodeConfig, PATIENCE, veth};

/// Addresses of the host behind the router.
pub(crate) const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 2)),
];

/// A node with two pods, the router, and the host behind it.
pub(crate) struct Outside {
    pub(crate) cluster: Cluster,
    pub(crate) router: Namespace,
    pub(crate) far: Namespace,
}

impl Outside {
    pub(crate) fn start(ports: &str) -> Result<Outside, LabError> {
        Outside::start_with(|config| {
            config.network = format!("masquerade-ports = {ports:?}\n");
        })
    }

    /// `change` has the last word on the node's configuration.
    pub(crate) fn start_with(change: impl Fn(&mut NodeConfig)) -> Result<Outside, LabError> {
        let mut outside = Outside::prepare(change)?;
        outside.node_mut().start_agent()?;
        Ok(outside)
    }

    /// As [`Outside::start_with`], the agent not yet started.
    pub(crate) fn prepare(change: impl Fn(&mut NodeConfig)) -> Result<Outside, LabError> {
        let cluster = Cluster::prepare(1, Families::Dual, change)?;
        let (router, far) = (Namespace::create("router")?, Namespace::create("far")?);
        cluster.underlay().plug(&router, 9)?;
        veth((&router, "far0"), (&far, "eth0"))?;
        for (namespace, device, host) in [(&router, "far0", 1), (&far, "eth0", 2)] {
            namespace.ip(&format!("link set {device} mtu 1300"))?;
            namespace.ip(&format!("address add 203.0.113.{host}/24 dev {device}"))?;
            namespace.ip(&format!(
                "address add 2001:db8:7::{host}/64 dev {device} nodad"
            ))?;
        }
        // What pods' addresses would need to come back is not there.
        far.ip("route add 172.31.0.0/24 via 203.0.113.1")?;
        far.ip("-6 route add fd31::/64 via 2001:db8:7::1")?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        router.sh("nft add table inet seen && nft add chain inet seen pods \
             '{ type filter hook prerouting priority 0; }' && \
             nft add rule inet seen pods ip saddr 10.244.0.0/16 counter && \
             nft add rule inet seen pods ip6 saddr fd44::/16 counter")?;
        let node = &cluster.nodes()[0];
        node.namespace()
            .ip("route add 203.0.113.0/24 via 172.31.0.9")?;
        node.namespace()
            .ip("-6 route add 2001:db8:7::/64 via fd31::9")?;
        Ok(Outside {
            cluster,
            router,
            far,
        })
    }

    pub(crate) fn node(&self) -> &Node {
        &self.cluster.nodes()[0]
    }

    pub(crate) fn node_mut(&mut self) -> &mut Node {
        &mut self.cluster.nodes_mut()[0]
    }

    /// The node's own address of the family.
    pub(crate) fn own(&self, like: IpAddr) -> IpAddr {
        let addresses = self.cluster.underlay().addresses(1);
        let mut fitting = addresses.into_iter();
        fitting
            .find(|a| a.is_ipv4() == like.is_ipv4())
            .expect("both families")
    }

    /// Nobody outside saw a pod's address.
    pub(crate) fn nothing_leaked(&self) -> Result<(), LabError> {
        let rules = self.router.sh("nft list table inet seen")?;
        assert_eq!(rules.matches("packets 0 bytes 0").count(), 2, "{rules}");
        Ok(())
    }
}

/// What a connected datagram socket hears of a port where nobody listens.
pub(crate) fn refused(from: &Namespace, to: IpAddr) -> Result<ErrorKind, LabError> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let ask = || -> std::io::Result<ErrorKind> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((to, 9))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"anybody?")?;
        let answer = socket.recv(&mut [0; 16]);
        Ok(answer.map_or_else(|e| e.kind(), |_| ErrorKind::Other))
    };
    from.enter(ask)?.map_err(LabError::io("ask a closed port"))
}
