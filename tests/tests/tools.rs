//! What people look at networks with shows the truth: traceroute, tracepath,
//! iperf3, and captures on the link between nodes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use spinlane_tests::capture::{ODD, Recording, TCP_COMPLAINTS};
use spinlane_tests::cluster::{Families, ROUTER, UPLINK, Underlay};
use spinlane_tests::site::{Kind, Site, Station, Way};
use spinlane_tests::{LabError, Namespace, Result, capture, probe, root_or_skip};

/// A machine that does much else loses something now and then.
const ATTEMPTS: u32 = 12;
/// DSCP "expedited forwarding", as a byte of the IP header.
const CLASS: u32 = 0xb8;

fn gateway(node: u8, is_v6: bool) -> String {
    match is_v6 {
        true => format!("fd44:0:0:{node}::1"),
        false => format!("10.244.{node}.1"),
    }
}

fn is_tunnelled(way: Way, node: u8) -> bool {
    way == Way::Vxlan || way == Way::CrossSubnet && node == 3
}

/// Who answers on the way from the first node, or a pod of it, and the longest
/// packet that passes.
fn expected(site: &Site, from: Kind, to: Kind, target: IpAddr) -> probe::Path {
    let (way, is_v6) = (site.way(), target.is_ipv6());
    let (node, is_to_pod) = match to {
        Kind::Pod(node) => (node, true),
        Kind::Node(node) => (node, false),
        _ => (0, false),
    };
    let is_tunnelled = node != 0 && is_tunnelled(way, node);
    let mut hops = Vec::new();
    if matches!(from, Kind::Pod(_)) || is_tunnelled && is_to_pod {
        hops.push(gateway(1, is_v6));
    }
    let side = |number: u8| {
        let addresses = site.cluster().addresses(number);
        let mut fitting = addresses.into_iter().filter(|a| a.is_ipv6() == is_v6);
        fitting.next().map(|address| address.to_string())
    };
    if node == 3 && way == Way::Across {
        hops.extend(side(ROUTER));
    }
    if is_tunnelled {
        hops.push(gateway(node, is_v6));
    } else if is_to_pod && node != 1 {
        // To what comes by the uplink as it is, a node answers itself.
        hops.extend(side(node));
    }
    hops.push(target.to_string());
    let overhead = match site.cluster().addresses(1)[0] {
        IpAddr::V4(_) => 50,
        IpAddr::V6(_) => 70,
    };
    // Pods of a node that is in the overlay at all have its MTU.
    let is_shorter = is_tunnelled || way == Way::Vxlan;
    probe::Path {
        hops,
        mtu: if is_shorter { 1500 - overhead } else { 1500 },
        is_reached: true,
    }
}

fn hops_are_shown(site: &Site, stations: &[Station<'_>]) -> Result<()> {
    let named = |name: &str| stations.iter().find(|s| s.name == name).expect(name);
    let targets = [
        ("pod a", "pod c"),
        ("pod a", "pod d"),
        ("pod a", "node 2"),
        ("pod a", "node 3"),
        ("pod a", "outside"),
        ("node 1", "pod c"),
        ("node 1", "pod d"),
    ];
    for (from, to) in targets {
        let (from, to) = (named(from), named(to));
        let own = from.addresses.iter();
        let families: Vec<bool> = own.map(IpAddr::is_ipv6).collect();
        for &address in &to.addresses {
            if !families.contains(&address.is_ipv6()) {
                continue;
            }
            let pair = format!("{} to {} ({address})", from.name, to.name);
            let expected = expected(site, from.kind, to.kind, address);
            let options: &[&str] = if address.is_ipv6() { &["-I"] } else { &[] };
            let hops = probe::traceroute(from.namespace, address, options)?;
            assert_eq!(hops, expected.hops, "{pair}, traceroute {options:?}");
            let path = probe::tracepath(from.namespace, address)?;
            assert_eq!(path, expected, "{pair}, tracepath");
        }
    }
    Ok(())
}

/// Streams at a rate that loses nothing, both ways, then datagrams; the
/// capture of it on the first node's link.
fn streams(site: &Site, from: &Namespace, to: &Namespace, address: IpAddr) -> Result<()> {
    let link = site.cluster().underlay().namespace();
    // A machine that stands still for a while makes senders impatient, and
    // that is nobody's fault.
    let class = CLASS.to_string();
    let mut complaints = String::new();
    for _ in 0..ATTEMPTS {
        let file = site.node(1).run_dir().join("link.pcap");
        let _ = std::fs::remove_file(&file);
        let recording = Recording::start((link, &Underlay::port(1)), &["-s", "2000"], "", &file)?;
        let mut few = false;
        let tcp = ["-S", &class, "-t", "1", "-P", "3", "-b", "5M"];
        for options in [&tcp[..], &[&tcp[..], &["-R"]].concat()] {
            let report = probe::iperf3(from, to, address, options)?;
            let bytes = report["end"]["sum_received"]["bytes"].as_u64();
            few |= bytes < Some(1 << 20);
        }
        let udp = ["-u", "-S", &class, "-t", "1", "-b", "5M", "-l", "1300"];
        let report = probe::iperf3(from, to, address, &udp)?;
        let sum = &report["end"]["sum"];
        few |= sum["packets"].as_u64() < Some(201);
        let missed = recording.stop()?;
        if missed > 0 || few {
            complaints = format!("tcpdump missed {missed} packets; too few were sent: {few}");
            continue;
        }
        assert_eq!(
            capture::fields(&file, ODD, &["_ws.col.Info"])?,
            [[""; 0]; 0]
        );
        assert!(capture::count(&file, "tcp")? > 1000);
        assert!(capture::count(&file, "udp.length > 1300")? > 200);
        outer_headers(site, &file)?;
        let odd = capture::fields(&file, TCP_COMPLAINTS, &["frame.number", "_ws.col.Info"])?;
        let lost = sum["lost_packets"].as_u64();
        if odd.is_empty() && lost == Some(0) {
            return Ok(());
        }
        let few: Vec<_> = odd.iter().take(9).collect();
        complaints = format!("{lost:?} datagrams lost, TCP: {few:?}");
    }
    let what = format!("{ATTEMPTS} runs to {address}, one of them without loss");
    Err(LabError::unexpected(what, complaints))
}

/// Outer headers of all tunnelled packets in a capture.
fn outer_headers(site: &Site, file: &Path) -> Result<()> {
    let names = [
        "ip.ttl",
        "ip.dsfield",
        "ipv6.hlim",
        "ipv6.tclass",
        "ip.flags.df",
        "udp.srcport",
        "udp.dstport",
        "tcp.srcport",
        "tcp.dstport",
    ];
    let is_outer_v6 = site.cluster().addresses(1)[0].is_ipv6();
    let is_behind_router = site.router().is_some();
    let mut classified = 0;
    let mut ports: HashMap<[String; 2], String> = HashMap::new();
    for row in capture::fields(file, "vxlan && tcp", &names)? {
        let all = |at: usize| row[at].split(',').filter(|value| !value.is_empty());
        let first = |at: usize| all(at).next().unwrap_or_default().to_owned();
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        // The outer one comes first where both are of one family; a router on
        // the way takes a hop.
        let hops = first(if is_outer_v6 { 2 } else { 0 });
        assert!(hops == "64" || is_behind_router && hops == "63", "{row:?}");
        let classes: Vec<_> = all(1).chain(all(3)).filter_map(number).collect();
        assert!(
            classes.len() == 2 && classes[0] == classes[1],
            "outer and inner: {row:?}"
        );
        classified += u32::from(classes[0] == CLASS | 2);
        if !is_outer_v6 {
            assert_eq!(first(4), "1", "outer packets are not fragmented: {row:?}");
        }
        assert_eq!(first(6), "4789", "{row:?}");
        assert!(number(&first(5)) >= Some(49152), "{row:?}");
        let known = ports
            .entry([first(7), first(8)])
            .or_insert_with(|| first(5));
        assert_eq!(
            *known,
            first(5),
            "one source port for a connection: {row:?}"
        );
    }
    assert!(
        ports.is_empty() || classified > 500,
        "{classified} with class and mark"
    );
    Ok(())
}

fn tools_show_the_truth(way: Way, families: Families) -> Result<()> {
    let site = Site::start(way, families)?;
    let stations = site.stations()?;
    hops_are_shown(&site, &stations)?;
    let pods = site.pods();
    for pod in pods {
        // Explicit congestion notification, and no impatience.
        pod.namespace().sh("echo 1 > /proc/sys/net/ipv4/tcp_ecn\n\
                            echo 0 > /proc/sys/net/ipv4/tcp_early_retrans\n")?;
    }
    // Packets are looked at as a device without offloads sends them.
    for node in site.cluster().nodes() {
        let features = "tso off gso off tx-udp-segmentation off \
                        tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";
        node.namespace()
            .sh(&format!("ethtool -K {UPLINK} {features}"))?;
    }
    let (outside, addresses) = site.outside();
    // Its packets are looked at before a device would finish them.
    outside.run(&["ethtool", "-K", UPLINK, "tx", "off"])?;
    let (a, c, d) = (pods[0].namespace(), &pods[2], &pods[3]);
    streams(&site, a, c.namespace(), c.v4()?)?;
    streams(&site, a, d.namespace(), d.v6()?)?;
    streams(&site, a, outside, addresses[addresses.len() - 1])
}

#[test]
fn tools_show_vxlan_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_vxlan_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::Vxlan, Families::Dual)
}

#[test]
fn tools_show_vxlan_over_ipv6_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_vxlan_over_ipv6_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::Vxlan, Families::V6)
}

#[test]
fn tools_show_a_routed_network_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_a_routed_network_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::Across, Families::Dual)
}

#[test]
fn tools_show_a_mixed_network_as_it_is() -> Result<()> {
    if !root_or_skip("tools_show_a_mixed_network_as_it_is") {
        return Ok(());
    }
    tools_show_the_truth(Way::CrossSubnet, Families::Dual)
}
