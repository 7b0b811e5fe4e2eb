//! What people look at networks with shows the truth: traceroute, tracepath,
//! iperf3, and captures on the link between nodes.

mod hops;
mod streams;

use spinlane_tests::cluster::{Families, UPLINK};
use spinlane_tests::site::{Site, Way};
use spinlane_tests::{Result, root_or_skip};

fn tools_show_the_truth(way: Way, families: Families) -> Result<()> {
    let site = Site::start(way, families)?;
    let stations = site.stations()?;
    hops::are_shown(&site, &stations)?;
    streams::between_every_pair(&stations)?;
    let pods = site.pods();
    for pod in pods {
        // Explicit congestion notification.
        pod.namespace().sh("echo 1 > /proc/sys/net/ipv4/tcp_ecn")?;
        pod.namespace().is_patient()?;
    }
    // Packets are looked at as a device without offloads sends them.
    for node in site.cluster().nodes() {
        node.namespace().cut_before_the_wire(UPLINK)?;
    }
    let (outside, addresses) = site.outside();
    outside.is_patient()?;
    // Its packets are looked at before a device would finish them.
    outside.run(&["ethtool", "-K", UPLINK, "tx", "off"])?;
    let (a, c, d) = (pods[0].namespace(), &pods[2], &pods[3]);
    streams::look_right(&site, a, c.namespace(), c.v4()?)?;
    streams::look_right(&site, a, d.namespace(), d.v6()?)?;
    streams::look_right(&site, a, outside, addresses[addresses.len() - 1])
}

#[test]
fn tools_show_vxlan_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_vxlan_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::Vxlan, Families::Dual)
}

#[test]
fn tools_show_vxlan_over_ipv6_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_vxlan_over_ipv6_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::Vxlan, Families::V6)
}

#[test]
fn tools_show_a_routed_network_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_a_routed_network_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::Across, Families::Dual)
}

#[test]
fn tools_show_a_mixed_network_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_a_mixed_network_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::CrossSubnet, Families::Dual)
}

#[test]
fn tools_show_a_network_of_one_link_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_a_network_of_one_link_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::Routed, Families::Dual)
}

#[test]
fn tools_show_a_shared_network_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_a_shared_network_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::L2, Families::Dual)
}
