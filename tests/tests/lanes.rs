//! Several lanes: flows spread over them, and pods outlive a change of their
//! number.

use std::collections::BTreeMap;

use spinlane_tests::{LabError, Node, NodeConfig, Pod, root_or_skip, traffic};

const FLOWS: u32 = 48;
const DATAGRAMS: u32 = 10;
const KILOBYTE: usize = 1 << 10;

/// A node with one lane on each of these CPUs.
fn configured(cores: &str) -> NodeConfig {
    let mut config = NodeConfig::new("lanes");
    config.cores = cores.to_owned();
    config
}

/// Packets that each lane has received.
fn received(node: &Node) -> Result<Vec<u64>, LabError> {
    let lanes = node.status()?.lanes;
    Ok(lanes.iter().map(|lane| lane.rx_packets).collect())
}

/// Many short flows between two pods; none of them loses anything.
fn many_flows(a: &Pod, b: &Pod) -> Result<(), LabError> {
    equal_flows(a, b)?;
    let (from, to) = (a.namespace(), b.namespace());
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| traffic::tcp_both_ways(from, to, b.v4()?, 512 * KILOBYTE)))
            .collect();
        for stream in streams {
            stream.join().expect("no stream panics")?;
        }
        Ok(())
    })
}

/// Many flows of as many datagrams each.
fn equal_flows(a: &Pod, b: &Pod) -> Result<(), LabError> {
    let (from, to) = (a.namespace(), b.namespace());
    for flow in 0..FLOWS {
        let address = if flow % 2 == 0 { b.v4()? } else { b.v6()? };
        let whole = traffic::udp_echo(from, to, address, DATAGRAMS, 1000)?;
        assert_eq!(whole, DATAGRAMS, "datagrams of flow {flow}");
    }
    Ok(())
}

#[test]
fn two_lanes_share_many_flows_and_lose_nothing() -> Result<(), LabError> {
    if !root_or_skip("two_lanes_share_many_flows_and_lose_nothing") {
        return Ok(());
    }
    let node = Node::start(&configured("[0, 1]"))?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    assert!(traffic::ping(a.namespace(), b.v4()?, 2)?.all());
    let (frames, drops) = (node.settled_frames()?, node.drops()?);
    let before = received(&node)?;
    equal_flows(&a, &b)?;
    let after = received(&node)?;
    let each: Vec<u64> = after
        .iter()
        .zip(before)
        .map(|(now, was)| now - was)
        .collect();
    let all: u64 = each.iter().sum();
    assert!(all >= u64::from(FLOWS * DATAGRAMS * 2), "{each:?}");
    // A flow stays with its lane, so shares are as even as hashes are.
    let smallest = each.iter().min().copied().unwrap_or_default();
    assert!(smallest * 6 >= all, "{each:?} of {all}");
    many_flows(&a, &b)?;
    // What the kernel itself says on a link is nobody's loss; what a burst of
    // streams finds no frame for is sent again.
    let quiet = ["multicast", "neighbor_ignored", "rx_no_frame"];
    for (reason, count) in node.drops()? {
        let is_same = drops.get(&reason) == Some(&count);
        assert!(
            is_same || quiet.contains(&reason.as_str()),
            "{reason}: {count}"
        );
    }
    assert_eq!(node.settled_frames()?, frames);
    Ok(())
}

/// Generic mode delivers an interface's first two transmit queues together:
/// with both in use, one of two lanes has two thirds of the flows.
#[test]
fn flows_of_pods_and_of_the_node_spread_evenly() -> Result<(), LabError> {
    if !root_or_skip("flows_of_pods_and_of_the_node_spread_evenly") {
        return Ok(());
    }
    const MANY: u32 = 400;
    let node = Node::start(&configured("[0, 1]"))?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    // By port and key: a slow machine's first flows are forgotten before its
    // last ones begin.
    let mut seen: BTreeMap<(String, String), u64> = BTreeMap::new();
    for from in [a.namespace(), node.namespace()] {
        for number in 1..=MANY {
            assert_eq!(traffic::udp_echo(from, b.namespace(), b.v4()?, 1, 100)?, 1);
            if number % 50 != 0 {
                continue;
            }
            for flow in node.cli(&["flows"])?.as_array().into_iter().flatten() {
                let port = flow["in_port"].as_str().unwrap_or_default().to_owned();
                if let Some(lane) = flow["lane"].as_u64() {
                    seen.insert((port, flow["key"].to_string()), lane);
                }
            }
        }
    }
    for port in node.ports()?.iter().filter(|port| port.pod != "b") {
        let its = seen.iter().filter(|((of, _), _)| *of == port.name);
        let lanes: Vec<_> = its.map(|(_, lane)| *lane).collect();
        let first = lanes.iter().filter(|lane| **lane == 0).count();
        let all = lanes.len();
        assert!(all >= MANY as usize, "{all} flows from {}", port.name);
        let share = first as f64 / all as f64;
        assert!((0.4..0.6).contains(&share), "{}: {share}", port.name);
    }
    Ok(())
}

#[test]
fn pods_outlive_another_number_of_lanes() -> Result<(), LabError> {
    if !root_or_skip("pods_outlive_another_number_of_lanes") {
        return Ok(());
    }
    let mut node = Node::start(&configured("[0]"))?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    many_flows(&a, &b)?;
    for (cores, lanes) in [("[0, 1]", 2), ("[1]", 1), ("[1, 0]", 2)] {
        node.stop()?;
        node.configure(&configured(cores))?;
        node.start_agent()?;
        assert_eq!(node.status()?.lanes.len(), lanes);
        for port in node.ports()? {
            assert_eq!(port.lanes.len(), lanes, "{}", port.name);
        }
        for pod in [&a, &b] {
            assert_eq!(pod.check(&node, "eth0")?.code(), None);
        }
        many_flows(&a, &b)?;
        assert!(traffic::ping(node.namespace(), a.v4()?, 2)?.all());
        let young = Pod::attach(&node, "young")?;
        many_flows(&young, &b)?;
    }
    Ok(())
}
