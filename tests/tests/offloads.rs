//! Right checksums and sizes for every receiver, whatever it has switched on.

use serde_json::json;
use spinlane_tests::capture::Recording;
use spinlane_tests::{
    LabError, Namespace, Node, Pod, Result, capture, egress, probe, root_or_skip, traffic,
};

const MEGABYTE: usize = 1 << 20;

/// TCP segments that a namespace sent, and those of them it sent again.
fn segments(namespace: &Namespace) -> Result<(u64, u64)> {
    let sent = traffic::counter(namespace, "TcpOutSegs")?;
    Ok((sent, traffic::counter(namespace, "TcpRetransSegs")?))
}

/// Where what a receiver cannot take is sent to it all the same, little but
/// retransmissions gets through.
fn assert_few_again(what: &str, before: (u64, u64), after: (u64, u64)) {
    let (sent, again) = (after.0 - before.0, after.1 - before.1);
    assert!(
        again * 10 < sent,
        "{what}: {again} of {sent} segments were sent again"
    );
}

#[test]
fn a_pod_without_offloads_talks_to_one_with_them() -> Result<()> {
    if !root_or_skip("a_pod_without_offloads_talks_to_one_with_them") {
        return Ok(());
    }
    let node = Node::plain("offloads")?;
    let (plain, offloading) = (Pod::attach(&node, "plain")?, Pod::attach(&node, "on")?);
    plain
        .namespace()
        .sh("ethtool -K eth0 tx off rx off sg off tso off gso off gro off")?;
    for (from, to) in [(&plain, &offloading), (&offloading, &plain)] {
        for address in [to.v4()?, to.v6()?] {
            traffic::tcp_both_ways(from.namespace(), to.namespace(), address, 4 * MEGABYTE)?;
            let whole = traffic::udp_echo(from.namespace(), to.namespace(), address, 10, 3000)?;
            assert_eq!(whole, 10, "{} to {address}", from.name());
        }
    }
    Ok(())
}

#[test]
fn tcp_crosses_a_tunnel_between_two_pods() -> Result<()> {
    if !root_or_skip("tcp_crosses_a_tunnel_between_two_pods") {
        return Ok(());
    }
    let node = Node::plain("tunnel")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    let kinds = [
        (
            "vxlan 4789",
            "type vxlan id 7 dstport 4789 remote REMOTE local LOCAL",
        ),
        (
            "vxlan 4790",
            "type vxlan id 8 dstport 4790 remote REMOTE local LOCAL",
        ),
        (
            "vxlan with checksum",
            "type vxlan id 9 dstport 4791 udpcsum remote REMOTE local LOCAL",
        ),
        ("geneve", "type geneve id 7 remote REMOTE"),
        ("gre", "type gretap remote REMOTE local LOCAL"),
        ("ipip", "type ipip remote REMOTE local LOCAL"),
    ];
    for (number, (kind, options)) in kinds.into_iter().enumerate() {
        let mut made = true;
        for (pod, other, host) in [(&a, &b, 1), (&b, &a, 2)] {
            let options = options
                .replace("REMOTE", &other.v4()?.to_string())
                .replace("LOCAL", &pod.v4()?.to_string());
            // What the path leaves after the longest of the headers.
            let add = format!("link add tun{number} mtu 1350 {options}");
            match pod.namespace().ip(&add) {
                // Not every kernel has every kind.
                Err(error) if error.to_string().contains("Unknown device type") => {
                    assert!(!kind.starts_with("vxlan"), "{kind}: {error}");
                    made = false;
                    break;
                }
                other => other.map(drop)?,
            }
            pod.namespace().ip(&format!("link set tun{number} up"))?;
            pod.namespace().ip(&format!(
                "addr add 192.168.{number}.{host}/24 dev tun{number}"
            ))?;
        }
        if !made {
            eprintln!("this kernel has no {kind} devices");
            continue;
        }
        let far = format!("192.168.{number}.2").parse().expect("an address");
        let pings = traffic::ping(a.namespace(), far, 2)?;
        assert!(pings.all(), "{kind}: {}", pings.text);
        let before = [segments(a.namespace())?, segments(b.namespace())?];
        traffic::tcp_both_ways(a.namespace(), b.namespace(), far, 4 * MEGABYTE)
            .map_err(|error| LabError::unexpected(kind, error.to_string()))?;
        for (pod, before) in [&a, &b].into_iter().zip(before) {
            let after = segments(pod.namespace())?;
            assert_few_again(&format!("{kind}, {}", pod.name()), before, after);
        }
    }
    Ok(())
}

/// A namespace behind the pod, as a container or virtual machine inside it.
fn behind(pod: &Pod) -> Result<Namespace> {
    let inner = Namespace::create("inner")?;
    pod.namespace().ip(&format!(
        "link add in0 type veth peer name eth0 netns {}",
        inner.name()
    ))?;
    pod.namespace().ip("addr add 192.168.77.1/24 dev in0")?;
    pod.namespace().ip("link set in0 up")?;
    inner.ip("addr add 192.168.77.2/24 dev eth0")?;
    inner.ip("link set eth0 up")?;
    inner.ip("route add default via 192.168.77.1")?;
    pod.namespace().sysctl("net.ipv4.ip_forward", "1")?;
    pod.namespace().sh("nft add table ip nat; \
         nft add chain ip nat post '{ type nat hook postrouting priority 100; }'; \
         nft add rule ip nat post oifname eth0 masquerade")?;
    Ok(inner)
}

#[test]
fn a_pod_that_forwards_for_others_is_detected() -> Result<()> {
    if !root_or_skip("a_pod_that_forwards_for_others_is_detected") {
        return Ok(());
    }
    let node = Node::plain("forwarding")?;
    let (router, server) = (Pod::attach(&node, "router")?, Pod::attach(&node, "server")?);
    let inner = behind(&router)?;
    let before = segments(server.namespace())?;
    for _ in 0..3 {
        traffic::tcp_both_ways(&inner, server.namespace(), server.v4()?, 8 * MEGABYTE)?;
    }
    let after = segments(server.namespace())?;
    assert_few_again("towards the forwarding pod", before, after);
    let port = node.ports()?.into_iter().find(|port| port.pod == "router");
    assert!(
        port.as_ref().is_some_and(|port| !port.super_frames),
        "the pod was not switched over: {port:?}"
    );
    let server_port = node.ports()?.into_iter().find(|port| port.pod == "server");
    assert!(server_port.is_some_and(|port| port.super_frames));
    // What comes to it in super-frames it passes on in super-frames.
    egress::led(server.namespace(), "eth0")?;
    let before = traffic::received(&inner)?;
    let options = ["-R", "-t", "2"];
    probe::iperf3(&inner, server.namespace(), server.v4()?, &options)?;
    let after = traffic::received(&inner)?;
    let (bytes, packets) = (after.0 - before.0, after.1 - before.1);
    assert!(
        bytes / packets > 3 * 1500,
        "behind the forwarding pod {bytes} bytes came in {packets} packets"
    );
    // The pod's own traffic is none the worse.
    traffic::tcp_both_ways(
        router.namespace(),
        server.namespace(),
        server.v4()?,
        MEGABYTE,
    )?;
    Ok(())
}

#[test]
fn a_network_may_do_without_super_frames() -> Result<()> {
    if !root_or_skip("a_network_may_do_without_super_frames") {
        return Ok(());
    }
    let node = Node::plain("segments-only")?;
    let mut plain = Pod::bare("plain")?;
    let network = node.network("pods", json!({"superFrames": false, "mtu": 1400}));
    plain.add(&node, "eth0", &network)?;
    let peer = Pod::attach(&node, "peer")?;
    let file = node.ipam_dir().join("received.pcap");
    let inside = (plain.namespace(), "eth0");
    let recording = Recording::start(inside, &["-Q", "in", "-s", "128"], "tcp", &file)?;
    for address in [plain.v4()?, plain.v6()?] {
        traffic::tcp_both_ways(peer.namespace(), plain.namespace(), address, 4 * MEGABYTE)?;
    }
    recording.stop()?;
    let lengths = capture::fields(&file, "tcp", &["frame.len"])?;
    let longest = lengths
        .iter()
        .filter_map(|row| row.first()?.parse::<u32>().ok())
        .max();
    assert!(lengths.len() > 1000, "{} packets", lengths.len());
    assert!(
        longest.is_some_and(|longest| longest <= 1414),
        "longest frame that the pod got: {longest:?}"
    );
    Ok(())
}

#[test]
fn a_pod_without_checksum_checks_is_not_sent_broken_ones() -> Result<()> {
    if !root_or_skip("a_pod_without_checksum_checks_is_not_sent_broken_ones") {
        return Ok(());
    }
    let node = Node::plain("checksums")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    a.namespace().sh("ethtool -K eth0 tx off tso off gso off")?;
    let file = node.ipam_dir().join("whole.pcap");
    let inside = (b.namespace(), "eth0");
    let recording = Recording::start(inside, &["-Q", "in"], "tcp or udp", &file)?;
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, 200_000)?;
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v6()?, 200_000)?;
    recording.stop()?;
    assert!(capture::count(&file, "tcp")? > 100);
    assert_eq!(
        capture::count(&file, "tcp.checksum.status == \"Bad\"")?,
        0,
        "what was complete when it left must be right when it arrives"
    );
    Ok(())
}
