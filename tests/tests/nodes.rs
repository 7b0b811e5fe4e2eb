//! Pods of several nodes, and the nodes themselves, reach each other.

use std::net::IpAddr;
use std::time::Duration;

use spinlane_tests::cluster::{Families, PlainNode};
use spinlane_tests::{Cluster, LabError, Namespace, Node, Pod, root_or_skip, traffic, wait_for};

const KILOBYTE: usize = 1 << 10;

/// Something with addresses.
struct Station<'a> {
    name: &'a str,
    namespace: &'a Namespace,
    addresses: Vec<IpAddr>,
}

impl<'a> Station<'a> {
    fn pod(pod: &'a Pod) -> Result<Self, LabError> {
        Ok(Self {
            name: pod.name(),
            namespace: pod.namespace(),
            addresses: pod.addresses("eth0")?,
        })
    }

    fn node(cluster: &Cluster, number: u8, namespace: &'a Namespace) -> Self {
        Self {
            name: namespace.name(),
            namespace,
            addresses: cluster.underlay().addresses(number),
        }
    }
}

/// Ping, TCP and UDP between every two of them, over every address of the
/// target that the source has a family for, with the source's own address
/// seen at the other end.
fn every_pair_talks(stations: &[Station<'_>]) -> Result<(), LabError> {
    for from in stations {
        for to in stations {
            if from.name == to.name {
                continue;
            }
            for &address in &to.addresses {
                let own = from.addresses.iter();
                let own: Vec<_> = own.filter(|a| a.is_ipv4() == address.is_ipv4()).collect();
                if own.is_empty() {
                    continue;
                }
                let pair = format!("{} to {} ({address})", from.name, to.name);
                wait_for(&format!("ping {pair}"), Duration::from_secs(3), || {
                    let pings = traffic::ping(from.namespace, address, 1);
                    pings.ok().filter(traffic::Pings::all)
                })?;
                let seen = traffic::tcp_seen_from(from.namespace, to.namespace, address)?;
                assert!(own.contains(&&seen), "{pair}: came from {seen}");
                traffic::tcp_both_ways(from.namespace, to.namespace, address, 300 * KILOBYTE)?;
                for size in [18, 1400] {
                    let whole = traffic::udp_echo(from.namespace, to.namespace, address, 3, size)?;
                    assert_eq!(whole, 3, "{pair}: UDP of {size} bytes");
                }
            }
        }
    }
    Ok(())
}

/// Pods on every node, pods and nodes as stations.
fn pods_of(cluster: &Cluster) -> Result<Vec<Pod>, LabError> {
    let attach = |(index, node): (usize, &Node)| Pod::attach(node, &format!("pod{index}"));
    cluster.nodes().iter().enumerate().map(attach).collect()
}

fn all<'a>(cluster: &'a Cluster, pods: &'a [Pod]) -> Result<Vec<Station<'a>>, LabError> {
    let mut stations: Vec<_> = pods.iter().map(Station::pod).collect::<Result<_, _>>()?;
    for (index, node) in cluster.nodes().iter().enumerate() {
        let number = u8::try_from(index + 1).expect("few nodes");
        stations.push(Station::node(cluster, number, node.namespace()));
    }
    Ok(stations)
}

fn strict_rp_filter(cluster: &Cluster) -> Result<(), LabError> {
    for node in cluster.nodes() {
        let interfaces = ["all", "default", "eth0"];
        for interface in interfaces {
            node.namespace()
                .sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1")?;
        }
    }
    Ok(())
}

fn no_drops_but(cluster: &Cluster, fine: &[&str]) -> Result<(), LabError> {
    for node in cluster.nodes() {
        let drops = node.drops()?;
        let odd: Vec<_> = drops
            .iter()
            .filter(|(reason, count)| **count > 0 && !fine.contains(&reason.as_str()))
            .collect();
        assert!(odd.is_empty(), "{}: {odd:?}", node.namespace().name());
    }
    Ok(())
}

#[test]
fn vxlan_joins_pods_and_nodes_and_a_plain_linux_node() -> Result<(), LabError> {
    if !root_or_skip("vxlan_joins_pods_and_nodes_and_a_plain_linux_node") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::Dual, |_| {})?;
    strict_rp_filter(&cluster)?;
    for node in cluster.nodes_mut() {
        node.start_agent()?;
    }
    let plain = PlainNode::join(&cluster, 9)?;
    let pods = pods_of(&cluster)?;
    let mut stations = all(&cluster, &pods)?;
    stations.push(Station {
        name: "plain pod",
        namespace: plain.pod(),
        addresses: plain.pod_addresses().to_vec(),
    });
    every_pair_talks(&stations)?;
    // What the kernels say to groups and to themselves on links that come and
    // go, and bursts before a port's ring has grown.
    let fine = [
        "multicast",
        "neighbor_ignored",
        "port_removed",
        "rx_no_frame",
    ];
    no_drops_but(&cluster, &fine)
}

#[test]
fn vxlan_runs_over_ipv6() -> Result<(), LabError> {
    if !root_or_skip("vxlan_runs_over_ipv6") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V6, |_| {})?;
    let pods = pods_of(&cluster)?;
    every_pair_talks(&all(&cluster, &pods)?)
}

#[test]
fn routed_mode_needs_no_tunnel() -> Result<(), LabError> {
    if !root_or_skip("routed_mode_needs_no_tunnel") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::Dual, |config| {
        config.mode = "routed".to_owned();
    })?;
    strict_rp_filter(&cluster)?;
    for node in cluster.nodes_mut() {
        node.start_agent()?;
    }
    let pods = pods_of(&cluster)?;
    every_pair_talks(&all(&cluster, &pods)?)
}

#[test]
fn pods_reach_a_host_on_the_link_with_their_nodes_address() -> Result<(), LabError> {
    if !root_or_skip("pods_reach_a_host_on_the_link_with_their_nodes_address") {
        return Ok(());
    }
    let cluster = Cluster::start(1, Families::Dual, |_| {})?;
    let outside = Namespace::create("outside")?;
    cluster.underlay().plug(&outside, 200)?;
    let pods = pods_of(&cluster)?;
    let own = cluster.underlay().addresses(1);
    for (address, own) in cluster.underlay().addresses(200).into_iter().zip(own) {
        wait_for(&format!("ping {address}"), Duration::from_secs(5), || {
            let pings = traffic::ping(pods[0].namespace(), address, 1);
            pings.ok().filter(traffic::Pings::all)
        })?;
        let seen = traffic::tcp_seen_from(pods[0].namespace(), &outside, address)?;
        assert_eq!(seen, own, "masqueraded");
        traffic::tcp_both_ways(pods[0].namespace(), &outside, address, 300 * KILOBYTE)?;
        let whole = traffic::udp_echo(pods[0].namespace(), &outside, address, 5, 1200)?;
        assert_eq!(whole, 5);
    }
    Ok(())
}
