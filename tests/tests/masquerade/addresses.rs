//! Addresses to leave with come and go; ports are taken and given back.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use spinlane_tests::{LabError, PATIENCE, Pod, root_or_skip, traffic, wait_for};

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

/// What a node leaves by that has two addresses to leave with, neither of them
/// its own.
const EGRESS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 31, 0, 61)),
    IpAddr::V4(Ipv4Addr::new(172, 31, 0, 62)),
];

/// Such a node, with so many ports at each address.
fn two_ways_out(ports: &str) -> Result<Outside, LabError> {
    let mut outside = Outside::prepare(|config| {
        let addresses = EGRESS.map(|address| address.to_string());
        config.network =
            format!("masquerade-ports = {ports:?}\negress-addresses = {addresses:?}\n");
    })?;
    for address in EGRESS {
        let command = format!("address add {address}/32 dev eth0");
        outside.node().namespace().ip(&command)?;
    }
    outside.node_mut().start_agent()?;
    Ok(outside)
}

#[test]
fn pods_spread_over_several_addresses_and_keep_theirs() -> Result<(), LabError> {
    if !root_or_skip("pods_spread_over_several_addresses_and_keep_theirs") {
        return Ok(());
    }
    /// That all of so many pods get one address, by chance, is not to be
    /// expected.
    const MOST_PODS: usize = 24;
    let outside = two_ways_out("61000-65535")?;
    let mut pods = Vec::new();
    let mut seen = HashSet::new();
    while seen.len() < EGRESS.len() && pods.len() < MOST_PODS {
        let pod = Pod::attach(outside.node(), &format!("web-{}", pods.len()))?;
        traffic::reach(pod.namespace(), FAR[0])?;
        let from = || traffic::tcp_seen_from(pod.namespace(), &outside.far, FAR[0]);
        let first = from()?;
        assert!(EGRESS.contains(&first), "{first}");
        for _ in 0..3 {
            assert_eq!(from()?, first, "another of the same pod");
        }
        seen.insert(first);
        pods.push(pod);
    }
    assert_eq!(seen.len(), EGRESS.len(), "{} pods", pods.len());
    for pod in &pods {
        traffic::tcp_both_ways(pod.namespace(), &outside.far, FAR[0], 1 << 20)?;
    }
    outside.nothing_leaked()
}

#[test]
fn an_address_whose_ports_are_taken_is_followed_by_the_next() -> Result<(), LabError> {
    if !root_or_skip("an_address_whose_ports_are_taken_is_followed_by_the_next") {
        return Ok(());
    }
    const PORTS: usize = 4;
    let outside = two_ways_out("61000-61003")?;
    let pod = Pod::attach(outside.node(), "web")?;
    traffic::tcp_seen_from(pod.namespace(), &outside.far, FAR[0])?;
    let listener = outside
        .far
        .enter(|| TcpListener::bind((FAR[0], 0)))?
        .map_err(LabError::io("listen outside"))?;
    let target = listener
        .local_addr()
        .map_err(LabError::io("read the listener's address"))?;
    let connect = |patience| {
        let connected = || TcpStream::connect_timeout(&target, patience);
        pod.namespace().enter(connected)
    };
    let mut held = Vec::new();
    let mut peers = HashSet::new();
    for number in 0..PORTS * EGRESS.len() {
        let stream = connect(PATIENCE)?;
        held.push(stream.map_err(LabError::io(format!("connection {number}")))?);
        let accepted = listener.accept();
        let (_, peer) = accepted.map_err(LabError::io(format!("connection {number}")))?;
        peers.insert(peer);
    }
    for address in EGRESS {
        let of_it = peers.iter().filter(|peer| peer.ip() == address);
        assert_eq!(of_it.count(), PORTS, "{address}: {peers:?}");
    }
    let beyond = connect(Duration::from_millis(500))?;
    assert!(beyond.is_err(), "no port is left");
    let drops = outside.node().drops()?;
    assert!(drops["no_masquerade_port"] > 0, "{drops:?}");
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
