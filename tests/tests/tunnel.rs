//! Datagrams of the overlay travel together as far as devices let them, and
//! come apart as they were sent.

use spinlane_api::view::PortKind;
use spinlane_tests::capture::Recording;
use spinlane_tests::cluster::{Families, UPLINK, Underlay};
use spinlane_tests::{
    Cluster, LabError, Namespace, Node, PATIENCE, Pod, Result, capture, root_or_skip, traffic,
    wait_for,
};

const BYTES: usize = 4 << 20;
/// A machine that stands still for a while makes senders impatient.
const ATTEMPTS: usize = 6;

/// Packets that the uplink's port received and sent.
fn uplink_packets(node: &Node) -> Result<(u64, u64)> {
    let ports = node.ports()?;
    let uplink = ports.iter().find(|port| port.kind == PortKind::Uplink);
    let uplink = uplink.ok_or_else(|| LabError::unexpected("ports", "no uplink"))?;
    Ok((uplink.rx_packets, uplink.tx_packets))
}

/// Sends from one pod to the other's addresses and back; how many packets
/// `to` received and how many datagrams `from` had sent.
fn transfer(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<(u64, u64)> {
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let (_, sent) = uplink_packets(one)?;
    let (received, _) = uplink_packets(two)?;
    for address in [to.v4()?, to.v6()?] {
        traffic::tcp_both_ways(from.namespace(), to.namespace(), address, BYTES)?;
    }
    let datagrams = uplink_packets(one)?.1 - sent;
    let packets = uplink_packets(two)?.0 - received;
    // Both transfers' data, in datagrams that fit 1500 bytes.
    assert!(datagrams > 2 * BYTES as u64 / 1448, "{datagrams}");
    Ok((packets, datagrams))
}

fn two_pods(cluster: &Cluster) -> Result<(Pod, Pod)> {
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let pods = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    traffic::reach(pods.0.namespace(), pods.1.v4()?)?;
    Ok(pods)
}

/// Has interfaces of a namespace cut what leaves by them.
fn cutting(namespace: &Namespace, interfaces: &[&str]) -> Result<()> {
    for interface in interfaces {
        namespace.sh(&format!(
            "ethtool -K {interface} tso off gso off tx-udp-segmentation off \
             tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off"
        ))?;
    }
    Ok(())
}

/// Waits until the agent takes the uplink for one that cuts, or does not.
fn follows(node: &Node, cuts: bool) -> Result<()> {
    let wanted = format!("cuts_datagrams={cuts}");
    wait_for(&wanted, PATIENCE, || {
        let log = node.log_tail(100);
        let mut attached = log.lines().filter(|line| line.contains("attached uplink="));
        attached.next_back()?.contains(&wanted).then_some(())
    })
}

#[test]
fn datagrams_travel_together_where_nothing_cuts_them() -> Result<()> {
    if !root_or_skip("datagrams_travel_together_where_nothing_cuts_them") {
        return Ok(());
    }
    for families in [Families::V4, Families::V6] {
        let cluster = Cluster::start(2, families, |_| {})?;
        let (a, b) = two_pods(&cluster)?;
        let (packets, datagrams) = transfer(&cluster, &a, &b)?;
        assert!(packets * 4 < datagrams, "{packets} of {datagrams}");
    }
    Ok(())
}

#[test]
fn a_device_that_does_not_cut_gets_single_datagrams() -> Result<()> {
    if !root_or_skip("a_device_that_does_not_cut_gets_single_datagrams") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::V4, |_| {})?;
    for node in cluster.nodes_mut() {
        cutting(node.namespace(), &[UPLINK])?;
        // What leaves is finished then, and can be checked.
        let plain = ["ethtool", "-K", UPLINK, "tx", "off"];
        node.namespace().run(&plain)?;
        node.start_agent()?;
    }
    let (a, b) = two_pods(&cluster)?;
    let link = cluster.underlay().namespace();
    let file = cluster.nodes()[0].run_dir().join("link.pcap");
    let port = Underlay::port(1);
    let recording = Recording::start((link, &port), &["-Q", "in", "-c", "4000"], "", &file)?;
    let (packets, datagrams) = transfer(&cluster, &a, &b)?;
    recording.stop()?;
    assert!(packets * 10 > datagrams * 9, "{packets} of {datagrams}");
    assert!(capture::count(&file, "vxlan && tcp")? > 1000);
    let odd = "_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 \
               || udp.checksum.status == 0 || udp.length.bad || ip.len > 1500";
    assert_eq!(capture::count(&file, odd)?, 0, "tshark complains");
    Ok(())
}

#[test]
fn a_queue_before_the_device_keeps_flows_in_order() -> Result<()> {
    if !root_or_skip("a_queue_before_the_device_keeps_flows_in_order") {
        return Ok(());
    }
    for families in [Families::V4, Families::V6] {
        let mut cluster = Cluster::prepare(2, families, |_| {})?;
        for node in cluster.nodes_mut() {
            cutting(node.namespace(), &[UPLINK])?;
            // It holds packets back and loses none.
            node.namespace().sh(&format!(
                "tc qdisc replace dev {UPLINK} root tbf rate 100mbit burst 128kb limit 64mb"
            ))?;
            node.start_agent()?;
        }
        let (a, b) = two_pods(&cluster)?;
        for pod in [&a, &b] {
            // What waits is never so old that its sender takes it for lost.
            pod.namespace()
                .sh("sysctl -qw net.ipv4.tcp_wmem='4096 65536 1048576'")?;
            pod.namespace().is_patient()?;
        }
        let sent_again = || -> Result<u64> {
            let counts = [&a, &b].map(|pod| traffic::counter(pod.namespace(), "TcpRetransSegs"));
            counts.into_iter().sum()
        };
        let are_held = || -> Result<bool> {
            let mut held = true;
            for node in cluster.nodes() {
                let queue = ["tc", "-s", "qdisc", "show", "dev", UPLINK];
                held &= !node.namespace().run(&queue)?.contains("overlimits 0 ");
            }
            Ok(held)
        };
        // Packets that come slower than the queue lets them go say nothing, either.
        let (mut again, mut is_seen) = (Vec::new(), false);
        while !is_seen {
            assert!(
                again.len() < ATTEMPTS,
                "sent again or not held back: {again:?}"
            );
            let before = sent_again()?;
            transfer(&cluster, &a, &b)?;
            again.push(sent_again()? - before);
            is_seen = again.last() == Some(&0) && are_held()?;
        }
        for pod in [&a, &b] {
            let disorder = traffic::counter(pod.namespace(), "TcpExtTCPOFOQueue")?;
            assert_eq!(disorder, 0, "packets out of order");
        }
    }
    Ok(())
}

#[test]
fn a_device_that_stops_cutting_is_no_harm() -> Result<()> {
    if !root_or_skip("a_device_that_stops_cutting_is_no_harm") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V4, |_| {})?;
    let (a, b) = two_pods(&cluster)?;
    let (packets, datagrams) = transfer(&cluster, &a, &b)?;
    assert!(packets * 4 < datagrams, "{packets} of {datagrams}");
    let node = &cluster.nodes()[0];
    let one = node.namespace();
    cutting(one, &[UPLINK])?;
    // What leaves is finished then, and can be checked.
    one.run(&["ethtool", "-K", UPLINK, "tx", "off"])?;
    follows(node, false)?;
    let link = cluster.underlay().namespace();
    let file = cluster.nodes()[0].run_dir().join("link.pcap");
    let port = Underlay::port(1);
    let recording = Recording::start((link, &port), &["-Q", "in", "-c", "4000"], "", &file)?;
    transfer(&cluster, &a, &b)?;
    recording.stop()?;
    assert!(capture::count(&file, "vxlan && tcp")? > 1000);
    assert_eq!(capture::count(&file, "ip.len > 1500")?, 0);
    let odd = capture::fields(&file, capture::ODD, &["_ws.col.Info"])?;
    assert_eq!(odd, [[""; 0]; 0]);
    // And the device does again once it may.
    one.sh(&format!("ethtool -K {UPLINK} tx on tx-udp-segmentation on"))?;
    follows(node, true)?;
    let (packets, datagrams) = transfer(&cluster, &a, &b)?;
    assert!(packets * 4 < datagrams, "{packets} of {datagrams}");
    Ok(())
}

#[test]
fn a_device_that_begins_to_cut_is_no_harm() -> Result<()> {
    if !root_or_skip("a_device_that_begins_to_cut_is_no_harm") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::V6, |_| {})?;
    for node in cluster.nodes_mut() {
        cutting(node.namespace(), &[UPLINK])?;
        node.start_agent()?;
    }
    let (a, b) = two_pods(&cluster)?;
    transfer(&cluster, &a, &b)?;
    let one = &cluster.nodes()[0];
    let features = "tso on gso on tx-udp-segmentation on tx-udp_tnl-segmentation on";
    one.namespace()
        .sh(&format!("ethtool -K {UPLINK} {features}"))?;
    follows(one, true)?;
    let (packets, datagrams) = transfer(&cluster, &a, &b)?;
    assert!(packets * 4 < datagrams, "{packets} of {datagrams}");
    Ok(())
}
