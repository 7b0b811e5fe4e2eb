//! Settings that change how packets are carried, each as a whole: pods reach
//! each other and their node, whatever is chosen.

use std::net::IpAddr;

use spinlane_tests::cluster::{Families, UPLINK};
use spinlane_tests::{Cluster, Namespace, Node, NodeConfig, Pod, Result, root_or_skip, traffic};

const MEGABYTE: usize = 1 << 20;

fn talk(from: &Namespace, to: &Namespace, addresses: &[IpAddr]) -> Result<()> {
    for &address in addresses {
        traffic::reach(from, address)?;
        traffic::tcp_both_ways(from, to, address, 2 * MEGABYTE)?;
        assert_eq!(traffic::udp_echo(from, to, address, 10, 1200)?, 10);
    }
    Ok(())
}

#[test]
fn every_way_to_wait_and_to_attach_carries_packets() -> Result<()> {
    if !root_or_skip("every_way_to_wait_and_to_attach_carries_packets") {
        return Ok(());
    }
    for (poll, lanes, mode) in [
        ("busy", "", "generic"),
        ("interrupt", "", "generic"),
        ("adaptive", "xdp-mode = \"generic\"", "generic"),
        ("adaptive", "xdp-mode = \"native\"", "native"),
        (
            "interrupt",
            "xdp-mode = \"native\"\noffloads = \"off\"",
            "native",
        ),
    ] {
        let mut config = NodeConfig::new("settings");
        config.poll = poll.to_owned();
        config.lanes = lanes.to_owned();
        let node = Node::start(&config)?;
        let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
        let there = b.addresses("eth0")?;
        talk(a.namespace(), b.namespace(), &there)?;
        talk(node.namespace(), b.namespace(), &there)?;
        let ports = node.cli(&["ports"])?;
        let of_pods = ports.as_array().into_iter().flatten();
        for port in of_pods.filter(|port| port["kind"] == "pod") {
            assert_eq!(port["xdp_mode"], mode, "{poll}, {lanes:?}");
        }
        assert_eq!(node.status()?.poll, poll);
        node.settled_frames()?;
    }
    Ok(())
}

#[test]
fn a_wide_underlay_and_other_numbers_of_the_overlay_carry_packets() -> Result<()> {
    if !root_or_skip("a_wide_underlay_and_other_numbers_of_the_overlay_carry_packets") {
        return Ok(());
    }
    for (mode, overhead) in [("vxlan", 50), ("routed", 0)] {
        let mut cluster = Cluster::prepare(2, Families::Dual, |config| {
            config.mode = mode.to_owned();
            config.network = "vni = 4097\nvxlan-port = 8472\n".to_owned();
        })?;
        let link = cluster.underlay().namespace();
        link.sh("ip link set p1 mtu 9000; ip link set p2 mtu 9000; ip link set br0 mtu 9000")?;
        for node in cluster.nodes_mut() {
            node.namespace()
                .ip(&format!("link set {UPLINK} mtu 9000"))?;
            node.start_agent()?;
        }
        let [one, two] = cluster.nodes() else {
            unreachable!("two nodes");
        };
        let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
        talk(a.namespace(), b.namespace(), &b.addresses("eth0")?)?;
        // Several frames of memory for a packet, and not a byte more than fits.
        for (size, fits) in [(9000 - overhead - 28, true), (9000 - overhead - 27, false)] {
            let size = size.to_string();
            let options = ["-M", "do", "-s", &size];
            let ping = if fits {
                traffic::ping_with
            } else {
                traffic::ping_in_vain
            };
            let pings = ping(a.namespace(), b.v4()?, 2, &options)?;
            assert_eq!(pings.all(), fits, "{mode}, {size}: {}", pings.text);
        }
        for node in cluster.nodes() {
            node.settled_frames()?;
        }
    }
    Ok(())
}
