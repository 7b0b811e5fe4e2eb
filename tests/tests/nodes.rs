//! Pods of several nodes, the nodes themselves, a plain Linux node and its
//! pod, and a host outside: each reaches every other, whatever the way between
//! nodes.

use spinlane_tests::cluster::Families;
use spinlane_tests::cluster::pod_cidrs;
use spinlane_tests::site::{Site, Way};
use spinlane_tests::{Result, root_or_skip, talk, traffic};

/// What kernels say to groups and to themselves on links that come and go, and
/// bursts before a port's ring has grown.
const USUAL: [&str; 4] = [
    "multicast",
    "neighbor_ignored",
    "port_removed",
    "rx_no_frame",
];

fn everybody_talks(way: Way, families: Families) -> Result<()> {
    let site = Site::start(way, families)?;
    talk::every_pair(&site.stations()?)?;
    for node in site.cluster().nodes() {
        let drops = node.drops()?;
        let odd: Vec<_> = drops
            .iter()
            .filter(|(reason, count)| **count > 0 && !USUAL.contains(&reason.as_str()))
            .collect();
        assert!(odd.is_empty(), "{}: {odd:?}", node.namespace().name());
    }
    Ok(())
}

#[test]
fn everybody_talks_through_vxlan() -> Result<()> {
    if !root_or_skip("everybody_talks_through_vxlan") {
        return Ok(());
    }
    everybody_talks(Way::Vxlan, Families::Dual)
}

#[test]
fn everybody_talks_through_vxlan_over_ipv6() -> Result<()> {
    if !root_or_skip("everybody_talks_through_vxlan_over_ipv6") {
        return Ok(());
    }
    everybody_talks(Way::Vxlan, Families::V6)
}

#[test]
fn everybody_talks_where_the_network_routes_pods() -> Result<()> {
    if !root_or_skip("everybody_talks_where_the_network_routes_pods") {
        return Ok(());
    }
    everybody_talks(Way::Routed, Families::Dual)
}

#[test]
fn everybody_talks_across_a_router_that_knows_pods() -> Result<()> {
    if !root_or_skip("everybody_talks_across_a_router_that_knows_pods") {
        return Ok(());
    }
    everybody_talks(Way::Across, Families::Dual)
}

#[test]
fn everybody_talks_across_a_router_that_knows_no_pods() -> Result<()> {
    if !root_or_skip("everybody_talks_across_a_router_that_knows_no_pods") {
        return Ok(());
    }
    everybody_talks(Way::CrossSubnet, Families::Dual)
}

#[test]
fn everybody_talks_in_one_shared_network() -> Result<()> {
    if !root_or_skip("everybody_talks_in_one_shared_network") {
        return Ok(());
    }
    everybody_talks(Way::L2, Families::Dual)
}

/// The host outside has the way to one node's pods by another node, which
/// forwards; the answers take the straight way.
#[test]
fn the_outside_reaches_pods_by_another_node() -> Result<()> {
    if !root_or_skip("the_outside_reaches_pods_by_another_node") {
        return Ok(());
    }
    let site = Site::start(Way::Routed, Families::Dual)?;
    let (outside, own) = site.outside();
    let other = site.node(2).namespace();
    other.sysctl("net/ipv4/ip_forward", "1")?;
    other.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for interface in ["all", "eth0"] {
        let key = format!("net/ipv4/conf/{interface}/send_redirects");
        other.sysctl(&key, "0")?;
    }
    for (net, via) in pod_cidrs(1).iter().zip(site.cluster().addresses(2)) {
        outside.ip(&format!("route replace {net} via {via}"))?;
    }
    let before = traffic::counter(other, "IpForwDatagrams")?;
    let pod = &site.pods()[0];
    for (to, own) in pod.addresses("eth0")?.into_iter().zip(own) {
        traffic::reach(outside, to)?;
        let seen = traffic::tcp_seen_from(outside, pod.namespace(), to)?;
        assert_eq!(seen, own);
        traffic::tcp_both_ways(outside, pod.namespace(), to, 8 << 20)?;
        let whole = traffic::udp_echo(outside, pod.namespace(), to, 5, 1200)?;
        assert_eq!(whole, 5, "{to}");
    }
    let forwarded = traffic::counter(other, "IpForwDatagrams")? - before;
    assert!(forwarded > 100, "{forwarded} went by the other node");
    assert_eq!(site.node(1).drops()?["no_connection"], 0);
    Ok(())
}
