//! Pods of several nodes, the nodes themselves, a plain Linux node and its
//! pod, and a host outside: each reaches every other, whatever the way between
//! nodes.

use spinlane_tests::cluster::Families;
use spinlane_tests::site::{Site, Way};
use spinlane_tests::{Result, root_or_skip, talk};

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
