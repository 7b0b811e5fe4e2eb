//! What an operator does to a node while its agent runs: the Node object comes
//! late or changes, the uplink gets another MTU or address, goes down, is
//! deleted and made again.

use std::time::Duration;

use serde_json::{Value, json};
use spinlane_tests::cluster::{Families, UPLINK};
use spinlane_tests::{Cluster, LabError, Namespace, Node, Pod, root_or_skip, traffic, wait_for};

const PATIENCE: Duration = Duration::from_secs(15);
const MEGABYTE: usize = 1 << 20;

fn reach(from: &Namespace, to: &Pod, when: &str) -> Result<(), LabError> {
    for address in to.addresses("eth0")? {
        wait_for(&format!("ping of {address} {when}"), PATIENCE, || {
            let pings = traffic::ping(from, address, 1);
            pings.ok().filter(traffic::Pings::all)
        })?;
    }
    Ok(())
}

/// Waits until one of the agent's notices holds every word.
fn notice(node: &Node, words: &[&str]) -> Result<String, LabError> {
    wait_for(&format!("a notice of {words:?}"), PATIENCE, || {
        let notices = node.status().ok()?.notices;
        let told = |notice: &String| words.iter().all(|word| notice.contains(word));
        notices.into_iter().find(told)
    })
}

fn no_notice(node: &Node) -> Result<(), LabError> {
    wait_for("no notice", PATIENCE, || {
        node.status().ok().filter(|s| s.notices.is_empty())
    })
    .map(drop)
}

/// Waits until status says that of the uplink.
fn uplink(node: &Node, state: &str) -> Result<(), LabError> {
    wait_for(&format!("the uplink to be {state}"), PATIENCE, || {
        node.status().ok()?.uplink.filter(|u| u.state == state)
    })
    .map(drop)
}

#[test]
fn a_late_node_object_brings_the_ranges_and_a_changed_one_keeps_pods() -> Result<(), LabError> {
    if !root_or_skip("a_late_node_object_brings_the_ranges_and_a_changed_one_keeps_pods") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::Dual, |_| {})?;
    cluster.withdraw(1)?;
    for node in cluster.nodes_mut() {
        node.start_agent()?;
    }
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    notice(one, &["no pod ranges", "Node n1"])?;
    // The runtime tries again later (code 11 of the specification).
    let early = Pod::bare("early")?;
    let refused = early.call("ADD", "eth0", one.network("pods", json!({})));
    let refused = refused.invoke(one.namespace())?;
    assert_eq!(refused.code(), Some(11), "{}", refused.output);
    assert!(refused.output.to_string().contains("Node n1"));
    cluster.announce(1, None)?;
    no_notice(one)?;
    let old = Pod::attach(one, "old")?;
    let remote = Pod::attach(two, "remote")?;
    assert_eq!(old.v4()?.to_string(), "10.244.1.2");
    reach(old.namespace(), &remote, "after the Node object came")?;
    reach(one.namespace(), &old, "from its node")?;

    cluster.announce_ranges(1, ["10.244.77.0/24", "fd44:0:0:77::/64"])?;
    let kept = notice(one, &["keep addresses", "default/old (10.244.1.2)"])?;
    assert!(
        kept.starts_with("2 pods") || kept.contains("fd44:0:0:1::2"),
        "{kept}"
    );
    let mut new = Pod::attach(one, "new")?;
    assert_eq!(new.v4()?.to_string(), "10.244.77.2");
    reach(new.namespace(), &remote, "from the new range")?;
    reach(remote.namespace(), &new, "into the new range")?;
    reach(old.namespace(), &new, "from the old range to the new one")?;
    reach(new.namespace(), &old, "from the new range to the old one")?;
    reach(one.namespace(), &old, "from the node to the old range")?;
    assert_eq!(old.check(one, "eth0")?.code(), None);
    // The agent that comes next finds one range and pods of another.
    cluster.nodes_mut()[0].restart()?;
    let [one, ..] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    notice(one, &["keep addresses", "default/old (10.244.1.2)"])?;
    reach(old.namespace(), &new, "from the old range after a restart")?;
    reach(one.namespace(), &old, "to the old range after a restart")?;
    reach(
        remote.namespace(),
        &new,
        "into the new range after a restart",
    )?;
    new.del(one, "eth0")?;
    let mut old = old;
    old.del(one, "eth0")?;
    no_notice(one)?;

    // What the files say and is not in force.
    let manifests = one.manifests_dir();
    let failed = |what: &str| LabError::io(format!("{what} in {}", manifests.display()));
    let more = manifests.join("more");
    std::fs::create_dir(&more).map_err(failed("make a directory"))?;
    notice(one, &["more is a directory"])?;
    std::fs::remove_dir(&more).map_err(failed("remove a directory"))?;
    let again = manifests.join("zz.yaml");
    let text = "{apiVersion: v1, kind: Node, metadata: {name: n1}}";
    std::fs::write(&again, text).map_err(failed("write a file"))?;
    notice(one, &["Node n1 stands 2 times", "zz.yaml"])?;
    std::fs::remove_file(&again).map_err(failed("remove a file"))?;
    no_notice(one)
}

/// MTUs of the routes in a namespace, and the route's text where it has none.
fn route_mtus(namespace: &Namespace) -> Result<Vec<String>, LabError> {
    let all = [
        namespace.ip("-4 route show")?,
        namespace.ip("-6 route show")?,
    ];
    let routes = all.iter().flat_map(|text| text.lines());
    let ours = routes.filter(|l| l.contains("eth0") && !l.contains("proto kernel"));
    let mtus = ours.map(|line| {
        let mtu = line.split(" mtu ").nth(1).and_then(|m| m.split(' ').next());
        mtu.unwrap_or(line).to_owned()
    });
    Ok(mtus.collect())
}

#[test]
fn pods_follow_the_uplinks_mtu() -> Result<(), LabError> {
    if !root_or_skip("pods_follow_the_uplinks_mtu") {
        return Ok(());
    }
    for lanes in ["", "offloads = \"off\""] {
        let cluster = Cluster::start(2, Families::V4, |config| config.lanes = lanes.to_owned())?;
        mtu_goes_down_and_up(cluster)?;
    }
    Ok(())
}

fn mtu_goes_down_and_up(mut cluster: Cluster) -> Result<(), LabError> {
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    reach(a.namespace(), &b, "at first")?;
    for mtu in [1400u32, 1500, 1450] {
        for node in cluster.nodes() {
            let command = format!("link set {UPLINK} mtu {mtu}");
            node.namespace().ip(&command)?;
        }
        let path = (mtu - 50).to_string();
        for (node, pod) in cluster.nodes().iter().zip([&a, &b]) {
            wait_for(&format!("routes of MTU {path}"), PATIENCE, || {
                let mtus = route_mtus(pod.namespace()).ok()?;
                (mtus.len() == 4 && mtus.iter().all(|m| *m == path)).then_some(())
            })?;
            assert_eq!(pod.check(node, "eth0")?.code(), None);
            // The node's own routes follow after those of all pods.
            let with = format!("mtu {path} ");
            wait_for(
                &format!("the node's routes of MTU {path}"),
                PATIENCE,
                || {
                    let host = node.namespace().ip("route show dev spinlane0").ok()?;
                    let is_all = !host.is_empty() && host.lines().all(|l| l.contains(&with));
                    is_all.then_some(())
                },
            )?;
            wait_for(&format!("a port of MTU {path}"), PATIENCE, || {
                let ports = node.ports().ok()?;
                let port = ports.iter().find(|p| !p.pod.is_empty())?;
                (port.mtu.to_string() == path).then_some(())
            })?;
        }
        let young = Pod::attach(&cluster.nodes()[0], "young")?;
        assert!(route_mtus(young.namespace())?.iter().all(|m| *m == path));
        // As long as the path carries, and not a byte longer.
        let (fits, is_too_long) = (mtu - 50 - 28, mtu - 50 - 27);
        let options = |size: u32| {
            [
                "-M".to_owned(),
                "do".to_owned(),
                "-s".to_owned(),
                size.to_string(),
            ]
        };
        for (size, fits) in [(fits, true), (is_too_long, false)] {
            let options = options(size);
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let ping = if fits {
                traffic::ping_with
            } else {
                traffic::ping_in_vain
            };
            let pings = ping(a.namespace(), b.v4()?, 1, &options)?;
            assert_eq!(pings.all(), fits, "{size} bytes: {}", pings.text);
        }
        for address in b.addresses("eth0")? {
            traffic::tcp_both_ways(a.namespace(), b.namespace(), address, MEGABYTE)?;
        }
    }
    // Also what changed while no agent looked.
    cluster.nodes_mut()[0].stop()?;
    let one = cluster.nodes()[0].namespace();
    one.ip(&format!("link set {UPLINK} mtu 1430"))?;
    cluster.nodes_mut()[0].start_agent()?;
    assert!(route_mtus(a.namespace())?.iter().all(|m| m == "1380"));
    Ok(())
}

/// The node's own traffic, which never depends on the switch.
fn node_reaches_node(cluster: &Cluster, when: &str) -> Result<(), LabError> {
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    for address in cluster.underlay().addresses(2) {
        wait_for(&format!("{address} {when}"), PATIENCE, || {
            let pings = traffic::ping(one.namespace(), address, 1);
            pings.ok().filter(traffic::Pings::all)
        })?;
        let (client, server) = (one.namespace(), two.namespace());
        traffic::tcp_both_ways(client, server, address, MEGABYTE)?;
    }
    Ok(())
}

#[test]
fn an_uplink_goes_and_comes_back() -> Result<(), LabError> {
    if !root_or_skip("an_uplink_goes_and_comes_back") {
        return Ok(());
    }
    // With a name, and by the default route; the node's addresses found out,
    // and written down.
    for (name, names_addresses) in [(UPLINK, false), ("auto", false), (UPLINK, true)] {
        let cluster = Cluster::prepare(2, Families::Dual, |config| {
            config.uplink = name.to_owned();
            if !names_addresses {
                config.addresses = Vec::new();
            }
        });
        let mut cluster = cluster?;
        let gateway = |node: &Node| node.namespace().ip("route add default via 172.31.0.254");
        for node in cluster.nodes_mut() {
            gateway(node)?;
            node.start_agent()?;
        }
        let (a, b) = (
            Pod::attach(&cluster.nodes()[0], "a")?,
            Pod::attach(&cluster.nodes()[1], "b")?,
        );
        let one = &cluster.nodes()[0];
        let all_well = |when: &str| -> Result<(), LabError> {
            uplink(one, "up")?;
            no_notice(one)?;
            node_reaches_node(&cluster, when)?;
            reach(a.namespace(), &b, when)?;
            reach(b.namespace(), &a, when)?;
            reach(one.namespace(), &b, when)
        };
        all_well("at first")?;

        one.namespace().ip(&format!("link set {UPLINK} down"))?;
        uplink(one, "down")?;
        notice(one, &["uplink", "is down"])?;
        reach(one.namespace(), &a, "while the uplink is down")?;
        one.namespace().ip(&format!("link set {UPLINK} up"))?;
        one.namespace().sh(&format!(
            "ip -6 address replace fd31::1/64 dev {UPLINK} nodad; ip route replace default via 172.31.0.254"
        ))?;
        all_well("after it was down")?;

        cluster.underlay().namespace().ip("link set p1 down")?;
        uplink(one, "no-carrier")?;
        cluster.underlay().namespace().ip("link set p1 up")?;
        all_well("after the cable was pulled")?;

        one.namespace().ip(&format!("link delete {UPLINK}"))?;
        uplink(one, "missing")?;
        notice(one, &["uplink"])?;
        reach(one.namespace(), &a, "without an uplink")?;
        cluster.underlay().plug(one.namespace(), 1)?;
        gateway(one)?;
        all_well("after the uplink was made anew")?;
    }
    Ok(())
}

#[test]
fn a_node_gets_another_address() -> Result<(), LabError> {
    if !root_or_skip("a_node_gets_another_address") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::Dual, |config| config.addresses = Vec::new())?;
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    reach(a.namespace(), &b, "at first")?;
    one.namespace().sh(&format!(
        "ip address delete 172.31.0.1/24 dev {UPLINK}; ip address add 172.31.0.101/24 dev {UPLINK}"
    ))?;
    let has_new = |node: &Node| {
        let addresses = node.status().ok()?.uplink?.addresses;
        (addresses == ["172.31.0.101", "fd31::1"]).then_some(())
    };
    wait_for("the new address", PATIENCE, || has_new(one))?;
    // What everybody else is told.
    for node in cluster.nodes() {
        let path = node.manifests_dir().join("node-1.yaml");
        let text = std::fs::read_to_string(&path).expect("the lab wrote it");
        let text = text.replace("\"172.31.0.1\"", "\"172.31.0.101\"");
        std::fs::write(&path, text).expect("writable");
    }
    reach(a.namespace(), &b, "with the new address")?;
    reach(b.namespace(), &a, "back to the new address")?;
    reach(two.namespace(), &a, "from the other node")?;
    reach(one.namespace(), &b, "from the node itself")?;
    wait_for("the host's routes to follow", PATIENCE, || {
        let routes = one.namespace().ip("-j -4 route show dev spinlane0").ok()?;
        let routes: Value = serde_json::from_str(&routes).expect("iproute2 prints JSON");
        let mut sources = routes.as_array()?.iter().map(|route| &route["prefsrc"]);
        let has_some = sources.len() > 0;
        (has_some && sources.all(|source| source == "172.31.0.101")).then_some(())
    })?;
    wait_for("nothing to be left behind", PATIENCE, || {
        let held = one.namespace().ip("-4 address show dev spinlane0").ok()?;
        (!held.contains("inet ")).then_some(())
    })
}

#[test]
fn an_uplink_gets_more_queues() -> Result<(), LabError> {
    if !root_or_skip("an_uplink_gets_more_queues") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::V4, |_| {})?;
    // A device with room for four, of which one is in use.
    let (one, link) = (
        cluster.nodes()[0].namespace(),
        cluster.underlay().namespace(),
    );
    let queues = "numrxqueues 4 numtxqueues 4";
    one.ip(&format!("link delete {UPLINK}"))?;
    one.ip(&format!(
        "link add {UPLINK} {queues} type veth peer name p1 netns {} {queues}",
        link.name()
    ))?;
    link.ip("link set p1 master br0 up")?;
    one.ip(&format!("link set {UPLINK} up"))?;
    one.ip(&format!("address add 172.31.0.1/24 dev {UPLINK}"))?;
    one.run(&["ethtool", "-L", UPLINK, "rx", "1", "tx", "1"])?;
    for node in cluster.nodes_mut() {
        node.start_agent()?;
    }
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    reach(a.namespace(), &b, "by one queue")?;
    for count in [2, 4] {
        let namespace = one.namespace();
        let queues = count.to_string();
        namespace.run(&["ethtool", "-L", UPLINK, "rx", &queues, "tx", &queues])?;
        wait_for(&format!("{count} queues"), PATIENCE, || {
            let ports = one.ports().ok()?;
            let uplink = ports.into_iter().find(|port| port.name == UPLINK)?;
            (uplink.queues == count).then_some(())
        })?;
        reach(b.namespace(), &a, "once it is taken again")?;
        // Whichever queue the peer's packets come by.
        for _ in 0..8 {
            assert_eq!(
                traffic::udp_echo(b.namespace(), a.namespace(), a.v4()?, 5, 1000)?,
                5
            );
        }
        traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, MEGABYTE)?;
    }
    Ok(())
}
