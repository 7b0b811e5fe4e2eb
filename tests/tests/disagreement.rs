//! Nodes that see each other differently: objects that say less than a node
//! has, ranges that nobody configured or that cannot be, routes that lead one
//! way here and another there.

use spinlane_tests::cluster::{Families, ROUTER, UPLINK};
use spinlane_tests::{
    Cluster, LabError, Namespace, PATIENCE, Pod, Result, root_or_skip, traffic, veth, wait_for,
};

/// Both pods reach each other over both families, and see who it is.
fn see_each_other(a: &Pod, b: &Pod) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        let own = from.addresses("eth0")?;
        for (address, own) in to.addresses("eth0")?.into_iter().zip(own) {
            let (from, to) = (from.namespace(), to.namespace());
            traffic::reach(from, address)?;
            traffic::tcp_both_ways(from, to, address, 1 << 20)?;
            assert_eq!(traffic::tcp_seen_from(from, to, address)?, own);
            assert_eq!(traffic::udp_echo(from, to, address, 3, 1200)?, 3);
        }
    }
    Ok(())
}

/// Changes the object of node `number` for every agent.
fn rewrite(cluster: &Cluster, number: u8, from: &str, to: &str) -> Result<()> {
    for node in cluster.nodes() {
        let path = node.manifests_dir().join(format!("node-{number}.yaml"));
        let failed = || LabError::io(format!("rewrite {}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(failed())?;
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).map_err(failed())?;
    }
    Ok(())
}

/// Nodes hold addresses of both families and are known by IPv6 alone, as in a
/// cluster of one family on hosts of both.
#[test]
fn an_address_that_no_object_names_is_no_end_of_the_overlay() -> Result<()> {
    if !root_or_skip("an_address_that_no_object_names_is_no_end_of_the_overlay") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::Dual, |config| {
        config.addresses = Vec::new();
    })?;
    for number in [1, 2] {
        let line = format!("  - address: \"172.31.0.{number}\"\n    type: InternalIP\n");
        rewrite(&cluster, number, &line, "")?;
    }
    for node in cluster.nodes_mut() {
        node.start_agent()?;
    }
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    see_each_other(&Pod::attach(one, "a")?, &Pod::attach(two, "b")?)?;
    for node in [one, two] {
        let drops = node.drops()?;
        assert_eq!(drops["unknown_vtep"], 0, "{drops:?}");
        assert_eq!(drops["wrong_mac"], 0, "{drops:?}");
    }
    Ok(())
}

/// Nobody wrote the cluster's ranges: pods of other nodes are pods all the
/// same, and see each other's own addresses.
#[test]
fn pods_are_known_by_their_nodes_where_the_clusters_ranges_are_not() -> Result<()> {
    if !root_or_skip("pods_are_known_by_their_nodes_where_the_clusters_ranges_are_not") {
        return Ok(());
    }
    for mode in ["routed", "vxlan"] {
        let cluster = Cluster::start(2, Families::Dual, |config| {
            config.mode = mode.to_owned();
            config.cluster_cidrs = Vec::new();
        })?;
        let [one, two] = cluster.nodes() else {
            unreachable!("two nodes");
        };
        see_each_other(&Pod::attach(one, "a")?, &Pod::attach(two, "b")?)?;
        for node in [one, two] {
            let connections = node.cli(&["connections"])?;
            let rows = connections.as_array().expect("a list").iter();
            let changed: Vec<_> = rows.filter(|row| !row["snat"].is_null()).collect();
            assert!(changed.is_empty(), "{mode}: {changed:?}");
        }
    }
    Ok(())
}

/// An object with a range that holds the node's own address must not take the
/// node off its network, nor pods from the outside.
#[test]
fn a_range_that_cannot_be_cuts_nobody_off() -> Result<()> {
    if !root_or_skip("a_range_that_cannot_be_cuts_nobody_off") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V4, |config| {
        config.cluster_cidrs = Vec::new();
    })?;
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let router = Namespace::create("router")?;
    cluster.underlay().plug(&router, ROUTER)?;
    let far = "203.0.113.9".parse().expect("an address");
    router.ip(&format!("address add {far}/32 dev lo"))?;
    one.namespace()
        .ip(&format!("route add default via 172.31.0.{ROUTER}"))?;
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    traffic::reach(a.namespace(), far)?;
    traffic::reach(a.namespace(), b.v4()?)?;
    let routes = one.namespace().ip("route show proto kernel")?;
    for (wrong, range) in [
        ("0.0.0.0/0", "10.244.2.0/24"),
        ("172.31.0.0/24", "0.0.0.0/0"),
    ] {
        rewrite(&cluster, 2, range, wrong)?;
        wait_for(&format!("a notice of {wrong}"), PATIENCE, || {
            let notices = one.status().ok()?.notices;
            let its = |notice: &String| notice.contains("n2") && notice.contains("own address");
            notices.iter().any(its).then_some(())
        })?;
        for node in cluster.addresses(2) {
            assert!(traffic::ping(one.namespace(), node, 2)?.all(), "{wrong}");
        }
        assert!(traffic::ping(a.namespace(), far, 2)?.all(), "{wrong}");
        assert_eq!(one.namespace().ip("route show proto kernel")?, routes);
    }
    rewrite(&cluster, 2, "172.31.0.0/24", "10.244.2.0/24")?;
    traffic::reach(a.namespace(), b.v4()?)
}

/// The first node has a route to the second by a router, and tunnels; the
/// second sees a neighbour, and answers it straight.
#[test]
fn one_node_tunnels_to_another_that_does_not() -> Result<()> {
    if !root_or_skip("one_node_tunnels_to_another_that_does_not") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::Dual, |config| {
        config.mode = "routed".to_owned();
        config.network = "cross-subnet = true\n".to_owned();
    })?;
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let router = Namespace::create("router")?;
    cluster.underlay().plug(&router, ROUTER)?;
    for forwarding in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        router.sysctl(forwarding, "1")?;
    }
    // It knows better than to send them on the way that they came.
    router.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
    router.sysctl("net/ipv4/conf/eth0/send_redirects", "0")?;
    let by = cluster.underlay().addresses(ROUTER);
    for (to, by) in cluster.addresses(2).iter().zip(by) {
        one.namespace()
            .ip(&format!("route add {to} via {by} dev {UPLINK}"))?;
    }
    wait_for("the first node to tunnel", PATIENCE, || {
        let routes = one.cli(&["routes"]).ok()?;
        let mut rows = routes.as_array()?.iter();
        let row = rows.find(|row| row["prefix"] == "10.244.2.0/24")?;
        (row["via"] == "vtep").then_some(())
    })?;
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    see_each_other(&a, &b)?;
    for to in b.addresses("eth0")? {
        traffic::reach(one.namespace(), to)?;
        traffic::tcp_both_ways(one.namespace(), b.namespace(), to, 1 << 20)?;
    }
    assert_eq!(two.drops()?["spoofed"], 0);
    assert_eq!(two.drops()?["unknown_vtep"], 0);
    Ok(())
}

/// The kernel's way to everywhere is not the uplink: pods are not hidden there,
/// which somebody should know.
#[test]
fn a_way_out_beside_the_uplink_is_told() -> Result<()> {
    if !root_or_skip("a_way_out_beside_the_uplink_is_told") {
        return Ok(());
    }
    let cluster = Cluster::start(1, Families::V4, |_| {})?;
    let node = &cluster.nodes()[0];
    let is_told = |status: &spinlane_api::view::Status| {
        let mut notices = status.notices.iter();
        notices.any(|notice| notice.contains("default route") && notice.contains(UPLINK))
    };
    let other = Namespace::create("other")?;
    veth((node.namespace(), "eth1"), (&other, "eth0"))?;
    node.namespace()
        .sh("ip address add 192.0.2.1/24 dev eth1\n\
         ip route add default via 192.0.2.2 dev eth1\n")?;
    wait_for("a notice of the other way", PATIENCE, || {
        node.status().ok().filter(&is_told)
    })?;
    let by_uplink = format!("route replace default via 172.31.0.{ROUTER} dev {UPLINK}");
    node.namespace().ip(&by_uplink)?;
    wait_for("no notice any more", PATIENCE, || {
        node.status().ok().filter(|status| !is_told(status))
    })?;
    Ok(())
}
