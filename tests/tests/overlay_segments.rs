//! A layer-2 segment whose stations are on several nodes: frames cross in
//! VXLAN, and a Linux bridge with a vxlan device is one more member.

use std::net::IpAddr;

use serde_json::{Value, json};
use spinlane_tests::cluster::{Families, UPLINK};
use spinlane_tests::{Cluster, LabError, Namespace, Node, Pod, root_or_skip, traffic, veth};

/// The station number of the node that is plain Linux.
const PLAIN: u8 = 9;

/// Two nodes with segment `blue`, whose addresses its pods bring themselves.
fn cluster() -> Result<Cluster, LabError> {
    Cluster::start(2, Families::Dual, |config| {
        config.tables =
            "[[segments]]\nname = \"blue\"\nvni = 100\ncidrs = []\nguard = false\n".to_owned();
    })
}

/// A pod in the segment as station `number`: `10.50.0.N` and `fd50::N`.
fn member(node: &Node, name: &str, number: u8) -> Result<Pod, LabError> {
    let mut pod = Pod::bare(name)?;
    let network = node.network("blue", json!({ "segment": "blue" }));
    pod.add(node, "eth0", &network)?;
    address(pod.namespace(), number)?;
    Ok(pod)
}

fn address(station: &Namespace, number: u8) -> Result<(), LabError> {
    for address in [
        format!("10.50.0.{number}/24"),
        format!("fd50::{number:x}/64 nodad"),
    ] {
        station.ip(&format!("address add {address} dev eth0"))?;
    }
    Ok(())
}

fn addresses(number: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 50, 0, number]),
        IpAddr::from([0xfd50, 0, 0, 0, 0, 0, 0, u16::from(number)]),
    ]
}

/// A node without an agent: its bridge has a vxlan device for a port, which
/// floods to both nodes and learns from what comes.
fn plain_node(cluster: &Cluster) -> Result<(Namespace, Namespace), LabError> {
    let (node, pod) = (Namespace::create("plain")?, Namespace::create("plainpod")?);
    cluster.underlay().plug(&node, PLAIN)?;
    veth((&node, "pod0"), (&pod, "eth0"))?;
    let own = cluster.underlay().addresses(PLAIN)[0];
    node.ip("link add br0 type bridge forward_delay 0")?;
    node.ip(&format!(
        "link add vx0 type vxlan id 100 dstport 4789 local {own} dev {UPLINK}"
    ))?;
    for port in ["vx0", "pod0"] {
        node.ip(&format!("link set {port} master br0 up"))?;
    }
    node.ip("link set br0 up")?;
    for number in [1, 2] {
        let to = cluster.underlay().addresses(number)[0];
        node.run(&[
            "bridge",
            "fdb",
            "append",
            "00:00:00:00:00:00",
            "dev",
            "vx0",
            "dst",
            &to.to_string(),
        ])?;
    }
    pod.ip("link set eth0 mtu 1450")?;
    address(&pod, PLAIN)?;
    cluster.announce(PLAIN, None)?;
    Ok((node, pod))
}

fn mac_of(station: &Namespace) -> Result<String, LabError> {
    let mac = station.run(&["cat", "/sys/class/net/eth0/address"])?;
    Ok(mac.trim().to_owned())
}

/// What the node's table says of a station.
fn entry(node: &Node, mac: &str) -> Result<Value, LabError> {
    let fdb = node.cli(&["fdb"])?;
    let entries = fdb.as_array().into_iter().flatten();
    let found = entries.into_iter().find(|entry| entry["mac"] == mac);
    Ok(found.cloned().unwrap_or_default())
}

#[test]
fn a_segment_spans_nodes_and_a_linux_bridge() -> Result<(), LabError> {
    if !root_or_skip("a_segment_spans_nodes_and_a_linux_bridge") {
        return Ok(());
    }
    let cluster = cluster()?;
    let [first, second] = cluster.nodes() else {
        panic!("two nodes were asked for");
    };
    let (_plain, outsider) = plain_node(&cluster)?;
    let (a, b) = (member(first, "a", 1)?, member(second, "b", 2)?);
    let stations = [(1, a.namespace()), (2, b.namespace()), (PLAIN, &outsider)];
    for (_, from) in stations {
        for (number, to) in stations {
            if from.name() == to.name() {
                continue;
            }
            for address in addresses(number) {
                traffic::reach(from, address)?;
                traffic::tcp_both_ways(from, to, address, 300 << 10)?;
                for size in [18, 1400] {
                    let whole = traffic::udp_echo(from, to, address, 3, size)?;
                    assert_eq!(whole, 3, "{} bytes to {address}", size);
                }
            }
        }
    }
    // Each node knows who is behind which end.
    let behind = [
        (first, b.namespace(), 2),
        (first, &outsider, PLAIN),
        (second, a.namespace(), 1),
    ];
    for (node, station, number) in behind {
        let mac = mac_of(station)?;
        let entry = entry(node, &mac)?;
        let end = cluster.underlay().addresses(number)[0].to_string();
        assert_eq!(entry["vtep"], json!(end), "{mac} on {entry}");
        assert_eq!(entry["segment"], "blue");
    }
    Ok(())
}

/// Where only segments go through the overlay, their pods know how much of a
/// packet its headers take.
#[test]
fn pods_of_a_segment_know_its_mtu_where_others_are_routed() -> Result<(), LabError> {
    if !root_or_skip("pods_of_a_segment_know_its_mtu_where_others_are_routed") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::Dual, |config| {
        config.mode = "routed".to_owned();
        config.tables =
            "[[segments]]\nname = \"blue\"\nvni = 100\ncidrs = [\"10.50.0.0/24\"]\n".to_owned();
    })?;
    let mut pods = Vec::new();
    for (node, number) in cluster.nodes().iter().zip(11..) {
        let mut pod = Pod::bare("blue")?;
        let address = format!("10.50.0.{number}");
        let more = json!({ "segment": "blue", "runtimeConfig": { "ips": [address] } });
        pod.add(node, "eth0", &node.network("blue", more))?;
        pods.push(pod);
    }
    let [a, b] = &pods[..] else {
        unreachable!("two pods");
    };
    for (from, to) in [(a, b), (b, a)] {
        let (from, to, address) = (from.namespace(), to.namespace(), to.v4()?);
        traffic::reach(from, address)?;
        for size in [1400, 1423, 1472, 5000] {
            let whole = traffic::udp_echo(from, to, address, 3, size)?;
            assert_eq!(whole, 3, "{size} bytes to {address}");
        }
        traffic::tcp_both_ways(from, to, address, 1 << 20)?;
    }
    for node in cluster.nodes() {
        assert_eq!(node.drops()?["oversize"], 0);
    }
    Ok(())
}

#[test]
fn a_station_that_changes_nodes_is_found_there() -> Result<(), LabError> {
    if !root_or_skip("a_station_that_changes_nodes_is_found_there") {
        return Ok(());
    }
    let cluster = cluster()?;
    let [first, second] = cluster.nodes() else {
        panic!("two nodes were asked for");
    };
    let (a, c) = (member(first, "a", 1)?, member(first, "c", 3)?);
    let mut b = member(second, "b", 2)?;
    let mac = mac_of(b.namespace())?;
    for from in [&a, &c] {
        traffic::reach(from.namespace(), addresses(2)[0])?;
    }
    // The same MAC and address start anew beside the ones that know it there.
    b.del(second, "eth0")?;
    let mut moved = Pod::bare("moved")?;
    let network = first.network("blue", json!({ "segment": "blue" }));
    moved.add(first, "eth0", &network)?;
    moved.namespace().sh(&format!(
        "ip link set eth0 down && ip link set eth0 address {mac} up"
    ))?;
    address(moved.namespace(), 2)?;
    // As a station that moves does: it says where it is now.
    moved
        .namespace()
        .sh("ping -c 1 -W 2 10.50.0.3 >/dev/null || true")?;
    for from in [&a, &c] {
        traffic::reach(from.namespace(), addresses(2)[0])?;
    }
    let entry = entry(first, &mac)?;
    assert!(entry["port"].is_string(), "{mac} is here now: {entry}");
    Ok(())
}
