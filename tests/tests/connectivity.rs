//! Pods of one node and the node itself reach each other, whole and unchanged.

use std::collections::BTreeSet;
use std::net::IpAddr;

use spinlane_tests::{LabError, Node, NodeConfig, Pod, root_or_skip, traffic};

const MEGABYTE: usize = 1 << 20;

#[test]
fn pods_ping_each_other_over_both_families() -> Result<(), LabError> {
    if !root_or_skip("pods_ping_each_other_over_both_families") {
        return Ok(());
    }
    let node = Node::plain("ping")?;
    let pods = [
        Pod::attach(&node, "a")?,
        Pod::attach(&node, "b")?,
        Pod::attach(&node, "c")?,
    ];
    for from in &pods {
        for to in &pods {
            for address in [to.v4()?, to.v6()?] {
                let pings = traffic::ping(from.namespace(), address, 2)?;
                assert!(
                    pings.all(),
                    "{} to {}: {}",
                    from.name(),
                    to.name(),
                    pings.text
                );
            }
        }
    }
    let ports = node.ports()?;
    for pod in &pods {
        let port = ports.iter().find(|port| port.pod == pod.name());
        assert!(
            port.is_some_and(|port| port.rx_packets > 0 && port.tx_packets > 0),
            "the packets of {} must have crossed the switch: {port:?}",
            pod.name()
        );
    }
    Ok(())
}

#[test]
fn big_pings_are_fragmented_and_arrive() -> Result<(), LabError> {
    if !root_or_skip("big_pings_are_fragmented_and_arrive") {
        return Ok(());
    }
    let node = Node::plain("fragments")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    for address in [b.v4()?, b.v6()?] {
        for size in ["1400", "1600", "8000", "60000"] {
            // One after the other: three at once are more fragments than an
            // idle port has room for while its lane waits for its CPU.
            for _ in 0..3 {
                let pings = traffic::ping_with(a.namespace(), address, 1, &["-s", size])?;
                assert!(pings.all(), "{size} bytes to {address}: {}", pings.text);
            }
        }
    }
    Ok(())
}

#[test]
fn tcp_carries_every_byte_both_ways() -> Result<(), LabError> {
    if !root_or_skip("tcp_carries_every_byte_both_ways") {
        return Ok(());
    }
    let node = Node::plain("tcp")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    for address in [b.v4()?, b.v6()?] {
        traffic::tcp_both_ways(a.namespace(), b.namespace(), address, 24 * MEGABYTE)?;
        for bytes in [1, 1449, 1451, 65_537] {
            traffic::tcp_both_ways(a.namespace(), b.namespace(), address, bytes)?;
        }
    }
    let seen = traffic::tcp_seen_from(a.namespace(), b.namespace(), b.v4()?)?;
    assert_eq!(seen, a.v4()?, "no translation between pods");
    Ok(())
}

#[test]
fn super_frames_cross_whole() -> Result<(), LabError> {
    if !root_or_skip("super_frames_cross_whole") {
        return Ok(());
    }
    let node = Node::plain("super")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    let before = node.status()?;
    let bytes = 16 * MEGABYTE;
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, bytes)?;
    let after = node.status()?;
    let packets: u64 = after.lanes.iter().map(|lane| lane.rx_packets).sum::<u64>()
        - before.lanes.iter().map(|lane| lane.rx_packets).sum::<u64>();
    let segments = (2 * bytes / 1400) as u64;
    assert!(
        packets < segments * 3 / 4,
        "{packets} packets for {segments} segments' worth of data: no super-frames"
    );
    let sent = traffic::counter(a.namespace(), "TcpOutSegs")?;
    let again = traffic::counter(a.namespace(), "TcpRetransSegs")?;
    assert!(
        again * 100 <= sent,
        "{again} of {sent} segments were sent again without loss; drops: {:?}",
        node.drops()?
    );
    Ok(())
}

#[test]
fn datagrams_keep_their_borders() -> Result<(), LabError> {
    if !root_or_skip("datagrams_keep_their_borders") {
        return Ok(());
    }
    let node = Node::plain("udp")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    for address in [b.v4()?, b.v6()?] {
        for size in [1, 18, 1200, 1422, 1473, 4000, 30_000] {
            let whole = traffic::udp_echo(a.namespace(), b.namespace(), address, 20, size)?;
            assert_eq!(whole, 20, "{size} bytes to {address}");
        }
    }
    Ok(())
}

#[test]
fn the_node_and_its_pods_reach_each_other_untranslated() -> Result<(), LabError> {
    if !root_or_skip("the_node_and_its_pods_reach_each_other_untranslated") {
        return Ok(());
    }
    let mut node = Node::prepare(&NodeConfig::new("host"))?;
    for scope in ["all", "default"] {
        node.namespace()
            .sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "1")?;
    }
    node.start_agent()?;
    let pod = Pod::attach(&node, "web")?;
    let own: [IpAddr; 2] = [
        "172.31.0.1".parse().expect("an address"),
        "fd31::1".parse().expect("an address"),
    ];
    for (of_node, of_pod) in own.into_iter().zip([pod.v4()?, pod.v6()?]) {
        let down = traffic::ping(node.namespace(), of_pod, 3)?;
        assert!(down.all(), "node to pod: {}", down.text);
        let up = traffic::ping(pod.namespace(), of_node, 3)?;
        assert!(up.all(), "pod to node: {}", up.text);
        // What a kubelet's probe does, and what an API client in a pod does.
        let seen = traffic::tcp_seen_from(node.namespace(), pod.namespace(), of_pod)?;
        assert_eq!(seen, of_node, "the pod sees the node's own address");
        let seen = traffic::tcp_seen_from(pod.namespace(), node.namespace(), of_node)?;
        assert_eq!(seen, of_pod, "the node sees the pod's own address");
        traffic::tcp_both_ways(node.namespace(), pod.namespace(), of_pod, 4 * MEGABYTE)?;
        traffic::tcp_both_ways(pod.namespace(), node.namespace(), of_node, 4 * MEGABYTE)?;
        let whole = traffic::udp_echo(node.namespace(), pod.namespace(), of_pod, 10, 1200)?;
        assert_eq!(whole, 10);
    }
    Ok(())
}

#[test]
fn pods_keep_their_addresses_over_a_restart_of_the_agent() -> Result<(), LabError> {
    if !root_or_skip("pods_keep_their_addresses_over_a_restart_of_the_agent") {
        return Ok(());
    }
    let mut node = Node::plain("restart")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    let addresses = |node: &Node| -> Result<BTreeSet<Vec<String>>, LabError> {
        Ok(node
            .ports()?
            .into_iter()
            .map(|port| port.addresses)
            .collect())
    };
    let before = addresses(&node)?;
    for crash in [false, true] {
        if crash {
            node.kill9();
            node.start_agent()?;
        } else {
            let (status, _) = node.stop()?;
            assert!(status.success(), "SIGTERM ended with {status}");
            node.start_agent()?;
        }
        assert_eq!(before, addresses(&node)?);
        for address in [b.v4()?, b.v6()?] {
            traffic::reach(a.namespace(), address)?;
            traffic::tcp_both_ways(a.namespace(), b.namespace(), address, MEGABYTE)?;
        }
        assert_eq!(b.check(&node, "eth0")?.exit, 0, "CHECK after the restart");
    }
    Ok(())
}
