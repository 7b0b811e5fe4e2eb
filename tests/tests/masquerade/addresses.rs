//! Addresses to leave with come and go; ports are taken and given back.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use spinlane_tests::{LabError, Pod, root_or_skip, traffic, wait_for};

use super::outside::{FAR, Outside};

const ADDED: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 31, 0, 50));

#[test]
fn new_connections_follow_the_uplinks_addresses() -> Result<(), LabError> {
    if !root_or_skip("new_connections_follow_the_uplinks_addresses") {
        return Ok(());
    }
    let outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    let node = outside.node().namespace();
    traffic::reach(pod.namespace(), FAR[0])?;
    let seen = || traffic::tcp_seen_from(pod.namespace(), &outside.far, FAR[0]);
    let first = outside.own(FAR[0]);
    assert_eq!(seen()?, first);
    node.ip(&format!("address add {ADDED}/24 dev eth0"))?;
    // One of both, and both ways work.
    wait_for(
        "a transfer with two addresses",
        Duration::from_secs(60),
        || {
            let seen = seen().ok()?;
            (seen == first || seen == ADDED).then_some(())
        },
    )?;
    traffic::tcp_both_ways(pod.namespace(), &outside.far, FAR[0], 1 << 20)?;
    // The first one goes, and the other with it unless the kernel is told to
    // keep it: it is the one's secondary.
    node.sysctl("net/ipv4/conf/eth0/promote_secondaries", "1")?;
    node.ip(&format!("address del {first}/24 dev eth0"))?;
    node.ip("route replace 203.0.113.0/24 via 172.31.0.9")?;
    wait_for("the address that is left", Duration::from_secs(60), || {
        (seen().ok()? == ADDED).then_some(())
    })?;
    traffic::tcp_both_ways(pod.namespace(), &outside.far, FAR[0], 1 << 20)?;
    outside.nothing_leaked()
}

#[test]
fn configured_ranges_see_the_pod() -> Result<(), LabError> {
    if !root_or_skip("configured_ranges_see_the_pod") {
        return Ok(());
    }
    let outside = Outside::start_with(|config| {
        config.network = "masquerade-exclude = [\"203.0.113.0/24\"]\n".to_owned();
    })?;
    let pod = Pod::attach(outside.node(), "web")?;
    outside.far.ip("route add 10.244.0.0/16 via 203.0.113.1")?;
    outside
        .router
        .ip("route add 10.244.0.0/16 via 172.31.0.1")?;
    // Out with its own address; the other family is not in the range. What
    // comes back is the kernel's to route here, so one direction is looked at.
    let _ = traffic::ping(pod.namespace(), FAR[0], 3)?;
    let rules = outside.router.sh("nft list table inet seen")?;
    assert_eq!(rules.matches("packets 0 bytes 0").count(), 1, "{rules}");
    traffic::reach(pod.namespace(), FAR[1])
}

#[test]
fn cleanup_gives_everything_back() -> Result<(), LabError> {
    if !root_or_skip("cleanup_gives_everything_back") {
        return Ok(());
    }
    let mut outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    traffic::reach(pod.namespace(), FAR[0])?;
    let shown = |outside: &Outside| {
        let node = outside.node().namespace();
        let ports = node.sh("cat /proc/sys/net/ipv4/ip_local_reserved_ports")?;
        Ok::<_, LabError>((ports.trim().to_owned(), node.ip("-d link show eth0")?))
    };
    // Others reserved some before: they keep theirs.
    outside.node_mut().stop()?;
    outside
        .node()
        .namespace()
        .sysctl("net/ipv4/ip_local_reserved_ports", "8080,61000-65535")?;
    // A stop keeps the masquerade's packets from the kernel.
    let (_, link) = shown(&outside)?;
    assert!(link.contains("prog/xdp"), "{link}");
    let state = outside.node().state_dir();
    let state = state.to_string_lossy().into_owned();
    let output = outside
        .node()
        .cli_output(&["cleanup", "--state-dir", &state])?;
    assert!(output.status.success(), "{output:?}");
    let (ports, link) = shown(&outside)?;
    assert_eq!(ports, "8080");
    assert!(!link.contains("prog/xdp"), "{link}");
    assert!(!outside.node().run_dir().join("connections").exists());
    assert!(traffic::ping(outside.node().namespace(), FAR[0], 1)?.all());
    Ok(())
}
