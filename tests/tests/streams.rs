//! Bulk TCP of pods: the way past generic XDP and its super-frames of more than
//! 64 KiB, whatever becomes of the program that leads there, of the agent and
//! of the pods.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use spinlane_tests::capture::Recording;
use spinlane_tests::order::Watched;
use spinlane_tests::{
    LabError, Namespace, Node, NodeConfig, Pod, Result, egress, probe, root_or_skip, traffic,
    wait_for,
};

const MEGABYTE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(5);
const IPERF_PORT: u16 = 5201;

/// Whether `b` gets longer packets from `a` than IPv4's length field can say,
/// at least once in several transfers: how much TCP sends at once follows the
/// speed.
fn are_longest_seen(node: &Node, a: &Namespace, b: &Pod) -> Result<bool> {
    let file = node.ipam_dir().join("longest.pcap");
    let _ = std::fs::remove_file(&file);
    let options = ["-Q", "in", "-s", "96"];
    let filter = "tcp and greater 65550";
    let recording = Recording::start((b.namespace(), "eth0"), &options, filter, &file)?;
    let is_seen = || file.metadata().is_ok_and(|meta| meta.len() > 24);
    for _ in 0..20 {
        traffic::tcp_both_ways(a, b.namespace(), b.v4()?, 32 * MEGABYTE)?;
        if is_seen() {
            break;
        }
    }
    recording.stop()?;
    Ok(is_seen())
}

/// What leaves a pod at once is more than IPv4's length field can say, and
/// comes out whole at the next pod, in segments where that is wanted.
#[test]
fn tcp_crosses_in_frames_of_more_than_64_kib() -> Result<()> {
    if !root_or_skip("tcp_crosses_in_frames_of_more_than_64_kib") {
        return Ok(());
    }
    let node = Node::plain("longest")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    let mut plain = Pod::bare("plain")?;
    let network = node.network("pods", json!({"superFrames": false}));
    plain.add(&node, "eth0", &network)?;
    egress::led(a.namespace(), "eth0")?;
    assert!(are_longest_seen(&node, a.namespace(), &b)?);
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v6()?, 8 * MEGABYTE)?;
    for address in [plain.v4()?, plain.v6()?] {
        traffic::tcp_both_ways(a.namespace(), plain.namespace(), address, 8 * MEGABYTE)?;
    }
    let dropped = node.drops()?;
    for reason in ["broken_chain", "bad_length", "oversize"] {
        assert_eq!(dropped.get(reason), Some(&0), "{reason}");
    }
    Ok(())
}

/// Names of the programs at a pod's egress hook.
fn names(pod: &Pod) -> Result<Vec<String>> {
    let programs = egress::programs(pod.namespace(), "eth0")?;
    Ok(programs.into_iter().map(|program| program.name).collect())
}

#[test]
fn exactly_one_program_leads_a_pods_streams() -> Result<()> {
    if !root_or_skip("exactly_one_program_leads_a_pods_streams") {
        return Ok(());
    }
    let mut node = Node::plain("leads")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    let first = egress::led(a.namespace(), "eth0")?;
    assert_eq!(names(&a)?, ["spinlane_lead"]);
    // The next agent leaves the program there, and has one of its own for new
    // pods.
    node.restart()?;
    assert_eq!(egress::programs(a.namespace(), "eth0")?, first);
    let young = Pod::attach(&node, "young")?;
    let others = egress::led(young.namespace(), "eth0")?;
    assert_eq!(names(&young)?, ["spinlane_lead"]);
    assert_ne!(others, first);
    // Of two only one is left: they would pass each packet to and fro.
    egress::add(a.namespace(), "eth0", &others[0])?;
    assert_eq!(names(&a)?, ["spinlane_lead", "spinlane_lead"]);
    node.restart()?;
    assert_eq!(names(&a)?.len(), 1);
    assert!(are_longest_seen(&node, a.namespace(), &b)?);
    Ok(())
}

#[test]
fn streams_go_on_without_the_program_and_get_it_back() -> Result<()> {
    if !root_or_skip("streams_go_on_without_the_program_and_get_it_back") {
        return Ok(());
    }
    let mut node = Node::plain("unled")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    egress::led(a.namespace(), "eth0")?;
    // Taken away: what is too long for XDP is lost and sent again in smaller
    // pieces.
    egress::clear(a.namespace(), "eth0")?;
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, 32 * MEGABYTE)?;
    // As a version made pods that had neither program nor long super-frames.
    a.namespace().ip("link set eth0 gso_max_size 65000")?;
    assert!(!are_longest_seen(&node, a.namespace(), &b)?);
    node.restart()?;
    assert_eq!(names(&a)?, ["spinlane_lead"]);
    assert!(are_longest_seen(&node, a.namespace(), &b)?);
    Ok(())
}

/// Calls about one attachment follow each other closely: what ADD leaves for
/// after its answer neither hinders DEL nor outlives it.
#[test]
fn a_pod_may_go_as_soon_as_it_came() -> Result<()> {
    if !root_or_skip("a_pod_may_go_as_soon_as_it_came") {
        return Ok(());
    }
    let node = Node::plain("brief")?;
    let network = node.network("pods", json!({}));
    let mut pod = Pod::bare("brief")?;
    for _ in 0..10 {
        pod.add(&node, "eth0", &network)?;
        pod.del(&node, "eth0")?;
        assert_eq!(node.pods()?, [""; 0]);
        assert!(pod.namespace().ip("link show eth0").is_err());
    }
    pod.add(&node, "eth0", &network)?;
    assert_eq!(pod.check(&node, "eth0")?.exit, 0);
    egress::led(pod.namespace(), "eth0")?;
    assert_eq!(pod.check(&node, "eth0")?.exit, 0);
    pod.del(&node, "eth0")?;
    node.settled_frames()?;
    Ok(())
}

/// Packets of pods that the node lost, by reason. What the kernel itself says
/// on a link is nobody's loss.
fn lost(node: &Node) -> Result<BTreeMap<String, u64>> {
    let quiet = ["multicast", "neighbor_ignored", "port_removed"];
    let mut drops = node.drops()?;
    drops.retain(|reason, count| *count > 0 && !quiet.contains(&&**reason));
    Ok(drops.into_iter().collect())
}

/// A connection changes its way with its first long packet. What came by the
/// one way before is on the same lane then, or the lanes would overtake each
/// other.
#[test]
fn streams_keep_their_order_on_two_lanes() -> Result<()> {
    if !root_or_skip("streams_keep_their_order_on_two_lanes") {
        return Ok(());
    }
    let mut config = NodeConfig::new("streams");
    config.cores = "[0, 1]".to_owned();
    let node = Node::start(&config)?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    for pod in [&a, &b] {
        egress::led(pod.namespace(), "eth0")?;
    }
    let counter = |pod: &Pod, name| traffic::counter(pod.namespace(), name);
    let many_connections = |address| -> Result<u64> {
        let before = counter(&b, "TcpExtTCPOFOQueue")?;
        for _ in 0..6 {
            let options = ["-n", "8M", "-P", "16"];
            probe::iperf3(a.namespace(), b.namespace(), address, &options)?;
        }
        Ok(counter(&b, "TcpExtTCPOFOQueue")? - before)
    };
    for address in [b.v4()?, b.v6()?] {
        let is_in_order = (0..5).find_map(|_| {
            let before = lost(&node);
            let dir = node.ipam_dir();
            let watched = Watched::start(a.namespace(), b.namespace(), IPERF_PORT, &dir);
            let disorder = many_connections(address);
            // Behind what is lost the rest comes out of order, too.
            let is_whole = before.ok()? == lost(&node).ok()?;
            match watched.and_then(Watched::overtaken) {
                Ok(None) => is_whole.then_some(disorder),
                Ok(Some(overtaken)) => Some(disorder.map(|disorder| match is_whole {
                    true => disorder + overtaken as u64,
                    false => overtaken as u64,
                })),
                Err(error) => Some(Err(error)),
            }
        });
        let disorder = is_in_order.unwrap_or_else(|| {
            Err(LabError::unexpected(
                "streams",
                format!("some were not seen in each round: {:?}", lost(&node)),
            ))
        })?;
        assert_eq!(disorder, 0, "packets out of order at {address}");
    }
    let (sent, again) = (counter(&a, "TcpOutSegs")?, counter(&a, "TcpRetransSegs")?);
    assert!(
        again * 50 < sent,
        "{again} of {sent} segments were sent again"
    );
    let lanes = node.status()?.lanes;
    let both = lanes.iter().all(|lane| lane.rx_packets > 1000);
    assert!(both, "one lane did it all: {lanes:?}");
    Ok(())
}

/// Open descriptors of the agent.
fn descriptors(node: &Node) -> Result<Vec<PathBuf>> {
    let pid = node.agent_pid().unwrap_or_default();
    let dir = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&dir).map_err(LabError::io(format!("read {dir}")))?;
    Ok(entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect())
}

#[test]
fn a_pod_that_goes_in_mid_stream_leaves_nothing_behind() -> Result<()> {
    if !root_or_skip("a_pod_that_goes_in_mid_stream_leaves_nothing_behind") {
        return Ok(());
    }
    let mut config = NodeConfig::new("midstream");
    config.cores = "[0, 1]".to_owned();
    let node = Node::start(&config)?;
    let a = Pod::attach(&node, "a")?;
    let mut before = None;
    for round in 0..6 {
        let mut b = Pod::attach(&node, &format!("b{round}"))?;
        egress::led(b.namespace(), "eth0")?;
        let (sends, takes) = match round % 2 {
            0 => (&a, &b),
            _ => (&b, &a),
        };
        let to = takes.v4()?.to_string();
        let server = probe::iperf3_server(takes.namespace(), takes.v4()?)?;
        let client = sends
            .namespace()
            .spawn(&["iperf3", "-t", "30", "-P", "4", "-c", &to])?;
        let past = || -> Option<()> {
            let sent = traffic::counter(sends.namespace(), "TcpOutSegs").ok()?;
            (sent > 5000).then_some(())
        };
        wait_for("the stream to flow", PATIENCE, past)?;
        b.del(&node, "eth0")?;
        drop((server, client));
        node.settled_frames()?;
        // The first round loads what is loaded once.
        let before = *before.get_or_insert(descriptors(&node)?.len());
        // Somebody else's question may be under way.
        let are_few = || (descriptors(&node).ok()?.len() <= before).then_some(());
        wait_for("descriptors to be closed", PATIENCE, are_few).map_err(|error| {
            LabError::unexpected(error.to_string(), format!("{:?}", descriptors(&node)))
        })?;
    }
    Ok(())
}
