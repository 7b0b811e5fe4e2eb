//! What happens on the link between nodes: nodes come and go, neighbours
//! move, gateways change, packets are lost.

use std::time::Duration;

use serde_json::json;
use spinlane_tests::capture::Recording;
use spinlane_tests::cluster::{Families, UPLINK};
use spinlane_tests::{Cluster, LabError, Namespace, Pod, capture, root_or_skip, traffic, wait_for};

const MEGABYTE: usize = 1 << 20;

fn two_pods(cluster: &Cluster) -> Result<(Pod, Pod), LabError> {
    let [one, two, ..] = cluster.nodes() else {
        unreachable!("two nodes at least");
    };
    Ok((Pod::attach(one, "a")?, Pod::attach(two, "b")?))
}

fn reach(from: &Pod, to: &Pod, when: &str) -> Result<(), LabError> {
    traffic::reach(from.namespace(), to.v4()?).map_err(|error| {
        let what = format!("{} to {} {when}", from.name(), to.name());
        LabError::unexpected(what, error.to_string())
    })
}

#[test]
fn nodes_come_and_go_while_traffic_flows() -> Result<(), LabError> {
    if !root_or_skip("nodes_come_and_go_while_traffic_flows") {
        return Ok(());
    }
    let cluster = Cluster::start(3, Families::V4, |_| {})?;
    let (a, b) = two_pods(&cluster)?;
    let c = Pod::attach(&cluster.nodes()[2], "c")?;
    reach(&a, &b, "at first")?;
    let address = b.v4()?;
    std::thread::scope(|scope| {
        let flowing = scope
            .spawn(|| traffic::tcp_both_ways(a.namespace(), b.namespace(), address, 48 * MEGABYTE));
        for round in 0..4 {
            cluster.withdraw(3)?;
            wait_for(
                "a node that left is unreachable",
                Duration::from_secs(5),
                || {
                    let to = c.v4().ok()?;
                    let pings = traffic::ping_with(a.namespace(), to, 1, &["-W", "1"]).ok()?;
                    pings.text.contains("Unreachable").then_some(())
                },
            )?;
            cluster.announce(3, None)?;
            reach(&a, &c, &format!("in round {round}"))?;
        }
        flowing.join().expect("the transfer does not panic")
    })?;
    let routes = cluster.nodes()[0].cli(&["routes"])?;
    let row = routes
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["prefix"] == "10.244.3.0/24"))
        .expect("the route to the third node");
    assert_eq!(row["via"], "vtep");
    assert_eq!(row["vtep"], "172.31.0.3");
    Ok(())
}

#[test]
fn a_broken_manifest_changes_nothing() -> Result<(), LabError> {
    if !root_or_skip("a_broken_manifest_changes_nothing") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V4, |_| {})?;
    let (a, b) = two_pods(&cluster)?;
    reach(&a, &b, "at first")?;
    let one = &cluster.nodes()[0];
    let path = one.manifests_dir().join("node-2.yaml");
    let good = std::fs::read_to_string(&path).expect("the lab wrote it");
    std::fs::write(&path, good.replace("podCIDRs:", "podCIDRs: [")).expect("writable");
    wait_for("the complaint", Duration::from_secs(3), || {
        let log = one.log_tail(200);
        let mut lines = log.lines().filter(|line| line.contains("node-2.yaml:"));
        lines
            .find(|line| line.contains("last good content"))
            .map(drop)
    })?;
    assert!(traffic::ping(a.namespace(), b.v4()?, 2)?.all());
    std::fs::write(&path, good).expect("writable");
    wait_for("the recovery", Duration::from_secs(3), || {
        one.log_tail(200).contains("in force again").then_some(())
    })?;
    assert!(traffic::ping(a.namespace(), b.v4()?, 2)?.all());
    Ok(())
}

#[test]
fn neighbours_are_resolved_and_followed() -> Result<(), LabError> {
    if !root_or_skip("neighbours_are_resolved_and_followed") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V4, |_| {})?;
    let (a, b) = two_pods(&cluster)?;
    reach(&a, &b, "at first")?;
    let [one, two] = [0, 1].map(|n| cluster.nodes()[n].namespace());
    for _ in 0..3 {
        one.ip("neigh flush dev eth0")?;
        two.ip("neigh flush dev eth0")?;
        let pings = traffic::ping(a.namespace(), b.v4()?, 3)?;
        assert!(
            pings.all(),
            "packets wait while it is resolved: {}",
            pings.text
        );
    }
    // Another machine takes over the address: it says so.
    two.sysctl("net/ipv4/conf/eth0/arp_notify", "1")?;
    two.ip("link set eth0 address 02:00:00:00:12:34")?;
    reach(&a, &b, "after its node's MAC address changed")?;
    reach(&b, &a, "after its own node's MAC address changed")?;
    one.ip("link set eth0 down")?;
    one.ip("link set eth0 up")?;
    reach(&a, &b, "after the uplink was down")
}

/// A router on the link, which forwards between stations.
fn router(cluster: &Cluster, number: u8) -> Result<Namespace, LabError> {
    let router = Namespace::create("router")?;
    cluster.underlay().plug(&router, number)?;
    router.sysctl("net.ipv4.ip_forward", "1")?;
    router.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
    router.sysctl("net.ipv4.conf.eth0.send_redirects", "0")?;
    router.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    router.sysctl("net.ipv4.conf.eth0.rp_filter", "0")?;
    Ok(router)
}

#[test]
fn gateways_change_and_there_may_be_several() -> Result<(), LabError> {
    if !root_or_skip("gateways_change_and_there_may_be_several") {
        return Ok(());
    }
    for mode in ["vxlan", "routed"] {
        let cluster = Cluster::start(2, Families::V4, |config| config.mode = mode.to_owned())?;
        let (a, b) = two_pods(&cluster)?;
        let (first, second) = (router(&cluster, 254)?, router(&cluster, 253)?);
        let one = cluster.nodes()[0].namespace();
        if mode == "routed" {
            // Routers know where pods are, as the nodes' network has to.
            for router in [&first, &second] {
                router.ip("route add 10.244.2.0/24 via 172.31.0.2")?;
            }
        }
        let forwarded = |router: &Namespace| traffic::counter(router, "IpForwDatagrams");
        one.ip("route add 172.31.0.2/32 via 172.31.0.254")?;
        reach(&a, &b, "by the first gateway")?;
        wait_for(
            "packets at the first gateway",
            Duration::from_secs(3),
            || {
                let _ = traffic::ping(a.namespace(), b.v4().ok()?, 1);
                (forwarded(&first).ok()? > 0).then_some(())
            },
        )?;
        one.ip("route replace 172.31.0.2/32 via 172.31.0.253")?;
        wait_for(
            "packets at the second gateway",
            Duration::from_secs(3),
            || {
                let _ = traffic::ping(a.namespace(), b.v4().ok()?, 1);
                (forwarded(&second).ok()? > 0).then_some(())
            },
        )?;
        drop(first);
        assert!(traffic::ping(a.namespace(), b.v4()?, 3)?.all());
        one.ip("route replace 172.31.0.2/32 nexthop via 172.31.0.253 nexthop via 172.31.0.2")?;
        reach(&a, &b, "with two next hops")?;
    }
    Ok(())
}

#[test]
fn a_shorter_path_is_told_to_pods() -> Result<(), LabError> {
    if !root_or_skip("a_shorter_path_is_told_to_pods") {
        return Ok(());
    }
    for (families, overhead) in [(Families::V4, 50), (Families::V6, 70)] {
        let cluster = Cluster::start(2, families, |_| {})?;
        // An MTU that somebody chose for the pod stays: it has to be told.
        let [one, two] = cluster.nodes() else {
            unreachable!("two nodes");
        };
        let mut a = Pod::bare("a")?;
        let network = one.network("pods", json!({ "mtu": 1500 - overhead }));
        a.add(one, "eth0", &network)?;
        let b = Pod::attach(two, "b")?;
        reach(&a, &b, "at first")?;
        let full = format!("{}", 1500 - overhead - 28);
        let pings = traffic::ping_with(a.namespace(), b.v4()?, 1, &["-M", "do", "-s", &full])?;
        assert!(pings.all(), "the longest packet: {}", pings.text);
        // A link has one MTU: what is too long for it vanishes.
        for node in cluster.nodes() {
            node.namespace().ip("link set eth0 mtu 1400")?;
        }
        let told = format!("mtu = {}", 1400 - overhead);
        wait_for(
            &format!("{told} over {families:?}"),
            Duration::from_secs(5),
            || {
                let options = ["-W", "1", "-M", "do", "-s", full.as_str()];
                let pings = traffic::ping_with(a.namespace(), b.v4().ok()?, 1, &options).ok()?;
                pings.text.contains(&told).then_some(())
            },
        )?;
        traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, MEGABYTE)?;
        let path = a
            .namespace()
            .run(&["tracepath", "-n", &b.v4()?.to_string()])?;
        let end = format!("pmtu {}", 1400 - overhead);
        assert!(path.contains(&end) && path.contains("reached"), "{path}");
    }
    Ok(())
}

#[test]
fn loss_on_the_link_leaves_tcp_whole_and_captures_clean() -> Result<(), LabError> {
    if !root_or_skip("loss_on_the_link_leaves_tcp_whole_and_captures_clean") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V4, |_| {})?;
    let (a, b) = two_pods(&cluster)?;
    reach(&a, &b, "at first")?;
    // A wire has no super-frames: what leaves together is cut by the kernel.
    let link = cluster.underlay().namespace();
    for port in ["p1", "p2"] {
        link.run(&[
            "ethtool",
            "-K",
            port,
            "tx",
            "off",
            "tx-udp-segmentation",
            "off",
        ])?;
    }
    let file = cluster.nodes()[0].run_dir().join("link.pcap");
    let recording = Recording::start((link, "p2"), &["-Q", "out", "-c", "4000"], "", &file)?;
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, 2 * MEGABYTE)?;
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v6()?, 2 * MEGABYTE)?;
    recording.stop()?;
    assert!(capture::count(&file, "vxlan && tcp")? > 1000);
    let odd = "_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 \
               || udp.checksum.status == 0 || udp.length.bad || ip.len > 1500";
    assert_eq!(capture::count(&file, odd)?, 0, "tshark complains");
    // From here on a loss is one packet's, not a whole run's.
    for node in cluster.nodes() {
        let features = ["ethtool", "-K", UPLINK, "tx-udp-segmentation", "off"];
        node.namespace().run(&features)?;
    }
    link.sh("nft add table bridge lab\n\
         nft 'add chain bridge lab forward { type filter hook forward priority 0; }'\n\
         nft 'add rule bridge lab forward numgen random mod 100 < 1 counter drop'\n")?;
    for address in [b.v4()?, b.v6()?] {
        traffic::tcp_both_ways(a.namespace(), b.namespace(), address, 4 * MEGABYTE)?;
    }
    let rules = link.run(&["nft", "list", "table", "bridge", "lab"])?;
    assert!(!rules.contains("packets 0 "), "nothing was lost: {rules}");
    Ok(())
}

/// Node objects of a large cluster, whose pods' ranges are in none of the
/// configured ones.
fn many_nodes(count: u16) -> String {
    let node = |number: u16| {
        let [high, low] = number.to_be_bytes();
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: m{number}\n\
             spec:\n  podCIDRs:\n  - 10.{}.{low}.0/24\n  - fd45:0:0:{number:x}::/64\n\
             status:\n  addresses:\n  - address: 172.30.{high}.{low}\n    type: InternalIP\n",
            100 + high
        )
    };
    (0..count).map(node).collect()
}

#[test]
fn the_node_has_ways_to_the_pods_of_a_thousand_nodes() -> Result<(), LabError> {
    if !root_or_skip("the_node_has_ways_to_the_pods_of_a_thousand_nodes") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V4, |_| {})?;
    let (a, b) = two_pods(&cluster)?;
    reach(&a, &b, "at first")?;
    let one = &cluster.nodes()[0];
    let path = one.manifests_dir().join("many.yaml");
    for count in [1000u16, 999, 0] {
        std::fs::write(&path, many_nodes(count)).map_err(LabError::io("write the manifests"))?;
        for (family, far) in [("-4", "10.1"), ("-6", "fd45:")] {
            let what = format!("{count} routes to {far}");
            wait_for(&what, Duration::from_secs(15), || {
                let text = one
                    .namespace()
                    .ip(&format!("{family} route show proto 158"));
                let text = text.ok()?;
                let routes = text.lines().filter(|route| route.starts_with(far));
                (routes.count() == usize::from(count)).then_some(())
            })?;
        }
        reach(&a, &b, "beside many nodes")?;
        traffic::reach(one.namespace(), b.v4()?)?;
    }
    assert_eq!(one.status()?.notices, [""; 0]);
    Ok(())
}
