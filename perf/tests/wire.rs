//! The generators and the sinks against each other, over one veth, with
//! tshark and scapy as judges of what is on the wire.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use spinlane_perf::generator::afxdp::AfXdpGenerator;
use spinlane_perf::generator::replay::Recording;
use spinlane_perf::generator::socket::{SocketGenerator, SocketOptions};
use spinlane_perf::generator::xdp::{MAX_LIVE_FRAME_BYTES, XdpGenerator};
use spinlane_perf::generator::{Limit, Sent};
use spinlane_perf::packet::{MAX_FRAME_BYTES, Mac, Protocol, Sizes, Template, Traffic, Tunnel};
use spinlane_perf::sink::distinct::FlowSink;
use spinlane_perf::sink::socket::SocketSink;
use spinlane_perf::sink::tc::TcSink;
use spinlane_perf::sink::tracking::TrackingSink;
use spinlane_perf::sink::{Filter, Hook};
use spinlane_perf::stop::Stop;
use spinlane_tests::{Namespace, capture, root_or_skip, veth, wait_for};

const SOURCE: Mac = Mac([2, 0, 0, 0, 0, 0x0a]);
const DESTINATION: Mac = Mac([2, 0, 0, 0, 0, 0x0b]);
const UDP_TO_9: Filter = Filter {
    protocol: Protocol::Udp,
    ports: None,
    tunnel_port: None,
};

/// Two namespaces on one wire, with addresses of both families.
fn two_ends() -> (Namespace, Namespace) {
    let left = Namespace::create("left").unwrap();
    let right = Namespace::create("right").unwrap();
    veth((&left, "eth0"), (&right, "eth0")).unwrap();
    for (end, mac, last) in [(&left, SOURCE, 1), (&right, DESTINATION, 2)] {
        end.ip(&format!("link set eth0 address {mac}")).unwrap();
        end.ip(&format!("addr add 10.9.0.{last}/24 dev eth0"))
            .unwrap();
        end.ip(&format!("addr add fd09::{last}/64 dev eth0 nodad"))
            .unwrap();
    }
    // Without NAPI at the far end live frames go nowhere.
    right.run(&["ethtool", "-K", "eth0", "gro", "on"]).unwrap();
    (left, right)
}

fn traffic(v6: bool) -> Traffic {
    let [source, destination] = if v6 {
        ["fd09::1", "fd09::2"]
    } else {
        ["10.9.0.1", "10.9.0.2"]
    };
    let addresses = [source.parse().unwrap(), destination.parse().unwrap()];
    Traffic {
        stamps: true,
        ..Traffic::udp([SOURCE, DESTINATION], addresses, [5000, 9], Sizes::one(84))
    }
}

fn count(packets: u64) -> Limit {
    Limit {
        count: Some(packets),
        ..Limit::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Engine {
    Xdp,
    AfXdp,
}

fn generate(end: &Namespace, engine: Engine, traffic: &Traffic, limit: Limit) -> Sent {
    end.enter(|| {
        let ifindex = if_nametoindex("eth0").unwrap();
        match engine {
            Engine::Xdp => {
                let template = Template::new(traffic, MAX_LIVE_FRAME_BYTES).unwrap();
                let generator = XdpGenerator::new(ifindex, &template).unwrap();
                generator.run(limit, &Stop::new()).unwrap()
            }
            Engine::AfXdp => {
                let template = Template::new(traffic, MAX_FRAME_BYTES).unwrap();
                let mut generator = AfXdpGenerator::new(ifindex).unwrap();
                generator.run(&template, limit, &Stop::new()).unwrap()
            }
        }
    })
    .unwrap()
}

fn tracking(end: &Namespace, hook: Hook, filter: &Filter) -> TrackingSink {
    end.enter(|| TrackingSink::attach(if_nametoindex("eth0").unwrap(), hook, filter).unwrap())
        .unwrap()
}

/// A capture of `packets` UDP, TCP or echo packets at an end.
fn record(end: &Namespace, file: &Path, packets: u64) -> capture::Recording {
    // Neighbour discovery and membership reports are not ours.
    let ours = "udp or tcp or icmp[0] == 8 or (icmp6 and ip6[40] == 128)";
    let options = ["-Q", "in", "-c", &packets.to_string()];
    capture::Recording::start((end, "eth0"), &options, ours, file).unwrap()
}

fn expect(counted: u64, mut count: impl FnMut() -> u64) {
    let _ = wait_for("the packets", Duration::from_secs(3), || {
        (count() >= counted).then_some(())
    });
    assert_eq!(count(), counted);
}

#[test]
fn a_burst_may_end_before_it_runs() {
    if !root_or_skip("a_burst_may_end_before_it_runs") {
        return;
    }
    let (left, _right) = two_ends();
    let template = Template::new(&traffic(false), MAX_LIVE_FRAME_BYTES).unwrap();
    let sent = left.enter(|| {
        let generator = XdpGenerator::new(if_nametoindex("eth0").unwrap(), &template).unwrap();
        let [ended, whole] = [true, false].map(|is_ended| {
            let burst = generator.burst(100_000).unwrap();
            if is_ended {
                burst.end().unwrap();
            }
            burst.run().unwrap()
        });
        [ended, whole]
    });
    assert_eq!(sent.unwrap(), [0, 100_000]);
}

#[test]
fn flows_count_once_each() {
    if !root_or_skip("flows_count_once_each") {
        return;
    }
    let (left, right) = two_ends();
    for protocol in [Protocol::Udp, Protocol::TcpSyn] {
        let filter = Filter {
            protocol,
            ..UDP_TO_9
        };
        let sink = right
            .enter(|| FlowSink::attach(if_nametoindex("eth0").unwrap(), &filter).unwrap())
            .unwrap();
        let mut traffic = traffic(false);
        traffic.protocol = protocol;
        traffic.source_ports = "5000-5999".parse().unwrap();
        traffic.flows = 1000;
        // 700 flows, then all of them more than twice.
        generate(&left, Engine::Xdp, &traffic, count(700));
        expect(700, || sink.burst().unwrap().flows);
        let first = sink.burst().unwrap();
        generate(&left, Engine::Xdp, &traffic, count(2500));
        expect(1000, || sink.burst().unwrap().flows);
        let whole = sink.burst().unwrap();
        assert!(first.seconds > 0.0 && whole.seconds > first.seconds);
        assert!((whole.rate() * whole.seconds - 999.0).abs() < 1e-6);
        // What carries no stamp is of no flow.
        traffic.stamps = false;
        generate(&left, Engine::Xdp, &traffic, count(100));
        assert_eq!(sink.burst().unwrap(), whole);
    }
}

#[test]
fn only_what_the_filter_takes_counts() {
    if !root_or_skip("only_what_the_filter_takes_counts") {
        return;
    }
    let (left, right) = two_ends();
    for v6 in [false, true] {
        let sink = right
            .enter(|| TcSink::attach(if_nametoindex("eth0").unwrap(), Some(9)).unwrap())
            .unwrap();
        let mut traffic = traffic(v6);
        traffic.source_ports = "5000-5099".parse().unwrap();
        traffic.flows = 100;
        assert_eq!(
            generate(&left, Engine::Xdp, &traffic, count(1000)).packets,
            1000
        );
        traffic.destination_ports = "10".parse().unwrap();
        generate(&left, Engine::Xdp, &traffic, count(100));
        expect(1000, || sink.count().unwrap().packets);
        assert_eq!(
            sink.count().unwrap().bytes,
            80_000,
            "without check sequence"
        );
    }
}

/// Fields that tshark reads of every packet, by family.
fn fields(file: &Path, v6: bool, protocol: Protocol) -> Vec<Vec<String>> {
    let addresses = if v6 {
        ["ipv6.src", "ipv6.dst"]
    } else {
        ["ip.src", "ip.dst"]
    };
    let transport = match (protocol, v6) {
        (Protocol::Udp, _) => ["udp.srcport", "udp.dstport", "udp.checksum.status"],
        (Protocol::TcpSyn, _) => ["tcp.srcport", "tcp.dstport", "tcp.checksum.status"],
        (Protocol::IcmpEcho, false) => ["icmp.ident", "icmp.type", "icmp.checksum.status"],
        (Protocol::IcmpEcho, true) => [
            "icmpv6.echo.identifier",
            "icmpv6.type",
            "icmpv6.checksum.status",
        ],
    };
    let mut names = vec!["frame.len"];
    names.extend(addresses);
    names.extend(transport);
    names.push("ip.checksum.status");
    capture::fields(file, "", &names).unwrap()
}

#[test]
fn tshark_finds_every_field_in_its_range_and_every_sum_right() {
    if !root_or_skip("tshark_finds_every_field_in_its_range_and_every_sum_right") {
        return;
    }
    let (left, right) = two_ends();
    let directory = tempfile::tempdir().unwrap();
    for engine in [Engine::Xdp, Engine::AfXdp] {
        for v6 in [false, true] {
            for protocol in [Protocol::Udp, Protocol::TcpSyn, Protocol::IcmpEcho] {
                let name = format!("{engine:?} {v6} {protocol:?}");
                let file = directory.path().join(&name);
                let mut traffic = traffic(v6);
                traffic.protocol = protocol;
                let ranges = if v6 {
                    ["fd09::fffe-fd09::1:1", "fd09::1:10-fd09::1:12"]
                } else {
                    ["10.9.0.254-10.9.1.1", "10.9.0.2-10.9.0.4"]
                };
                traffic.source = ranges[0].parse().unwrap();
                traffic.destination = ranges[1].parse().unwrap();
                traffic.source_ports = "65531-65535".parse().unwrap();
                traffic.destination_ports = "9-10".parse().unwrap();
                traffic.sizes = "128:2,1021:1".parse().unwrap();
                traffic.flows = u32::try_from(traffic.room()).unwrap();
                let packets = u64::from(traffic.flows) * 3;
                let recording = record(&right, &file, packets);
                let paced = Limit {
                    rate: Some(20_000),
                    ..count(packets)
                };
                generate(&left, engine, &traffic, paced);
                recording.finish().unwrap();
                let rows = fields(&file, v6, protocol);
                assert_eq!(rows.len() as u64, packets, "{name}");
                // Destination ports do not tell echo requests apart.
                let tuples: HashSet<_> = rows.iter().map(|row| row[1..5].to_vec()).collect();
                assert_eq!(tuples.len() as u32, traffic.flows, "{name}");
                for row in &rows {
                    assert_eq!(row[5], "1", "{name}: transport checksum of {row:?}");
                    assert!(v6 || row[6] == "1", "{name}: header checksum of {row:?}");
                }
                let small = rows.iter().filter(|row| row[0] == "124").count();
                let large = rows.iter().filter(|row| row[0] == "1017").count();
                assert_eq!(
                    (small * 3, large * 3),
                    (rows.len() * 2, rows.len()),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn a_mix_arrives_in_its_shares() {
    if !root_or_skip("a_mix_arrives_in_its_shares") {
        return;
    }
    let (left, right) = two_ends();
    let directory = tempfile::tempdir().unwrap();
    for engine in [Engine::Xdp, Engine::AfXdp] {
        let file = directory.path().join(format!("{engine:?}"));
        let mut traffic = traffic(false);
        traffic.sizes = Sizes::imix();
        traffic.source_ports = "5000-5006".parse().unwrap();
        traffic.flows = 7;
        let recording = record(&right, &file, 840);
        generate(&left, engine, &traffic, count(840));
        recording.finish().unwrap();
        let mut sizes: HashMap<String, u32> = HashMap::new();
        for row in capture::fields(&file, "udp.checksum.status == 1", &["frame.len"]).unwrap() {
            *sizes.entry(row[0].clone()).or_default() += 1;
        }
        let of = |size: &str| sizes.get(size).copied().unwrap_or(0);
        assert_eq!(
            (of("60"), of("590"), of("1514")),
            (490, 280, 70),
            "{sizes:?}"
        );
    }
}

#[test]
fn tshark_decodes_the_tunnel() {
    if !root_or_skip("tshark_decodes_the_tunnel") {
        return;
    }
    let (left, right) = two_ends();
    let directory = tempfile::tempdir().unwrap();
    for (engine, outer_v6, inner_v6) in [
        (Engine::Xdp, false, false),
        (Engine::Xdp, true, false),
        (Engine::AfXdp, false, true),
    ] {
        let name = format!("{engine:?} {outer_v6} {inner_v6}");
        let file = directory.path().join(&name);
        let outer = traffic(outer_v6);
        let mut traffic = traffic(inner_v6);
        traffic.tunnel = Some(Tunnel {
            source_mac: SOURCE,
            destination_mac: DESTINATION,
            source: outer.source.first(),
            destination: outer.destination.first(),
            vni: 0x00ab_cdef,
            port: 4789,
        });
        traffic.source_mac = Mac([6; 6]);
        traffic.source_ports = "5000-5004".parse().unwrap();
        traffic.flows = 5;
        traffic.sizes = Sizes::one(200);
        let filter = Filter {
            tunnel_port: Some(4789),
            ..UDP_TO_9
        };
        let recording = record(&right, &file, 50);
        generate(&left, engine, &traffic, count(50));
        recording.finish().unwrap();
        let names = ["vxlan.vni", "eth.src", "udp.srcport", "udp.checksum.status"];
        let rows = capture::fields(&file, "vxlan and frame.len == 196", &names).unwrap();
        assert_eq!(rows.len(), 50, "{name}");
        for (number, row) in rows.iter().enumerate() {
            let flow = number % 5;
            let ports = format!("{},{}", 49152 + flow, 5000 + flow);
            assert_eq!(row[0], "11259375", "{name}");
            assert_eq!(row[1], format!("{SOURCE},06:06:06:06:06:06"), "{name}");
            assert_eq!(row[2], ports, "{name}");
            // Outer 3 (no checksum, which is allowed), inner 1 (right).
            assert!(row[3].ends_with(",1"), "{name}: {row:?}");
        }
        let sink = tracking(&right, Hook::Tc, &filter);
        generate(&left, engine, &traffic, count(500));
        expect(500, || sink.stamps().unwrap().order.received);
        assert_eq!(sink.stamps().unwrap().order.flows, 5, "{name}");
    }
}

/// Writes stamped packets by scapy: a tuple (flow, number) each.
fn scapy_stamped(file: &Path, packets: &[(u32, u32)]) {
    let script = format!(
        "import struct\nfrom scapy.all import *\n\
         frames = [Ether(src='{SOURCE}', dst='{DESTINATION}')/IP(src='10.9.0.1', dst='10.9.0.2')\
         /UDP(sport=5000 + flow, dport=9)/Raw(struct.pack('>HIIQ', 0x534c, flow, number, 1))\
         for flow, number in {packets:?}]\n\
         for number, frame in enumerate(frames): frame.time = 1000 + number * 0.0005\n\
         wrpcap('{}', frames)\n",
        file.display()
    );
    let output = std::process::Command::new("/usr/bin/python3")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A thousand packets of each of two flows with known faults: every 33rd lost,
/// 20 sent twice, 10 swapped with their neighbour, one 100 behind.
fn faulty() -> Vec<(u32, u32)> {
    let mut packets: Vec<(u32, u32)> = Vec::new();
    for number in 0..1000 {
        if number % 33 == 1 && number < 990 {
            continue;
        }
        packets.push((0, number));
        packets.push((1, number));
        if number % 50 == 2 {
            packets.push((1, number));
        }
    }
    for swap in 0..10 {
        let at = packets
            .iter()
            .position(|packet| *packet == (0, 100 * swap + 70))
            .unwrap();
        let next = packets[at..]
            .iter()
            .position(|packet| *packet == (0, 100 * swap + 71))
            .unwrap();
        packets.swap(at, at + next);
    }
    let at = packets
        .iter()
        .position(|packet| *packet == (1, 700))
        .unwrap();
    let late = packets.remove(at);
    let at = packets
        .iter()
        .position(|packet| *packet == (1, 800))
        .unwrap();
    packets.insert(at + 1, late);
    packets
}

#[test]
fn sinks_count_known_faults_exactly() {
    if !root_or_skip("sinks_count_known_faults_exactly") {
        return;
    }
    let (left, right) = two_ends();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("faulty.pcap");
    scapy_stamped(&file, &faulty());
    let recording = Recording::read(&file).unwrap();
    let other = directory.path().join("faulty.pcapng");
    let converted = std::process::Command::new("editcap")
        .args(["-F", "pcapng"])
        .args([&file, &other])
        .status()
        .unwrap();
    assert!(converted.success());
    assert_eq!(Recording::read(&other).unwrap(), recording);
    let packets = recording.packets().len() as u64;
    let replay = |speed| {
        let began = Instant::now();
        let sent = left
            .enter(|| {
                let ifindex = if_nametoindex("eth0").unwrap();
                let mut generator = wait_for("the queue", Duration::from_secs(2), || {
                    AfXdpGenerator::new(ifindex).ok()
                })
                .unwrap();
                let stop = Stop::new();
                generator
                    .replay(&recording, speed, 1, (Limit::default(), &stop))
                    .unwrap()
            })
            .unwrap();
        assert_eq!(sent.packets, packets);
        began.elapsed()
    };
    let stop = Stop::new();
    let _stop = stop.on_drop();
    for place in ["tc", "xdp", "socket"] {
        let mut kernel = None;
        let mut socket = None;
        match place {
            "tc" => kernel = Some(tracking(&right, Hook::Tc, &UDP_TO_9)),
            "xdp" => kernel = Some(tracking(&right, Hook::Xdp, &UDP_TO_9)),
            _ => {
                let sink = right
                    .enter(|| SocketSink::bind("0.0.0.0:9".parse().unwrap()).unwrap())
                    .unwrap();
                let sink = std::sync::Arc::new(sink);
                let running = (sink.clone(), stop.clone());
                std::thread::spawn(move || running.0.run(&running.1));
                socket = Some(sink);
            }
        }
        // At its own pace the recording takes a second; tenfold, a tenth.
        let took = replay(if place == "socket" {
            Some(1.0)
        } else {
            Some(10.0)
        });
        let own = Duration::from_micros(500) * packets as u32;
        assert!(place != "socket" || took >= own, "{took:?} for {own:?}");
        let order = || match (&kernel, &socket) {
            (Some(sink), _) => sink.stamps().unwrap().order,
            (_, Some(sink)) => sink.stamps().order,
            _ => unreachable!(),
        };
        expect(packets, || order().received + order().duplicates);
        let order = order();
        assert_eq!(order.flows, 2, "{place}: {order:?}");
        assert_eq!(order.lost, 60, "{place}: {order:?}");
        assert_eq!(order.duplicates, 20, "{place}: {order:?}");
        assert_eq!(order.reordered, 11, "{place}: {order:?}");
        assert_eq!(order.largest_distance, 100, "{place}: {order:?}");
        assert_eq!(order.too_late, 0, "{place}: {order:?}");
    }
}

#[test]
fn a_filter_that_drops_every_tenth_is_seen_as_that_loss() {
    if !root_or_skip("a_filter_that_drops_every_tenth_is_seen_as_that_loss") {
        return;
    }
    let (left, right) = two_ends();
    right
        .sh(
            "nft add table ip t; nft add chain ip t in '{ type filter hook input priority 0; }'; \
             nft add rule ip t in udp dport 9 numgen inc mod 10 == 5 drop",
        )
        .unwrap();
    let sink = right
        .enter(|| SocketSink::bind("0.0.0.0:9".parse().unwrap()).unwrap())
        .unwrap();
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let _stop = stop.on_drop();
        scope.spawn(|| sink.run(&stop));
        let sent = left
            .enter(|| {
                let template = Template::new(&traffic(false), 1518).unwrap();
                let options = SocketOptions::default();
                let mut generator = SocketGenerator::new(&template, options).unwrap();
                let limit = Limit {
                    rate: Some(10_000),
                    ..count(5000)
                };
                generator.run(limit, &Stop::new()).unwrap()
            })
            .unwrap();
        assert_eq!(sent.packets, 5000);
        expect(4500, || sink.count().packets);
    });
    let stamps = sink.stamps();
    assert_eq!(stamps.order.lost, 500, "{stamps:?}");
    assert_eq!(stamps.order.reordered, 0, "{stamps:?}");
    assert_eq!(stamps.latency.unwrap().count, 4500);
    assert!(sink.jitter_us().is_some());
}

#[test]
fn datagrams_count_as_segments() {
    if !root_or_skip("datagrams_count_as_segments") {
        return;
    }
    let (left, right) = two_ends();
    for segmentation in [false, true] {
        let sink = tracking(&right, Hook::Tc, &UDP_TO_9);
        let sent = left
            .enter(|| {
                let mut traffic = traffic(false);
                traffic.sizes = Sizes::one(146);
                let template = Template::new(&traffic, 1518).unwrap();
                let options = SocketOptions {
                    segmentation,
                    ..SocketOptions::default()
                };
                let mut generator = SocketGenerator::new(&template, options).unwrap();
                generator.run(count(650), &Stop::new()).unwrap()
            })
            .unwrap();
        assert_eq!(sent.packets, 650);
        expect(650, || sink.count().unwrap().packets);
        let stamps = sink.stamps().unwrap();
        let whole = (stamps.order.received, stamps.in_super_frames);
        // 64 segments a send, ten sends, and one of ten segments.
        let expected = (650, if segmentation { 650 } else { 0 });
        assert_eq!(whole, expected, "segmentation {segmentation}");
        assert_eq!((stamps.order.lost, stamps.unstamped), (0, 0), "{stamps:?}");
        assert_eq!(stamps.latency.unwrap().count, 650);
    }
}

#[test]
fn jumbo_frames_leave_whole() {
    if !root_or_skip("jumbo_frames_leave_whole") {
        return;
    }
    let (left, right) = two_ends();
    for end in [&left, &right] {
        end.ip("link set eth0 mtu 9000").unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jumbo");
    let mut traffic = traffic(false);
    traffic.sizes = Sizes::one(9018);
    let recording = record(&right, &file, 20);
    generate(&left, Engine::AfXdp, &traffic, count(20));
    recording.finish().unwrap();
    let good = "udp.checksum.status == 1 and frame.len == 9014";
    assert_eq!(capture::count(&file, good).unwrap(), 20);
}

#[test]
fn paced_frames_keep_their_rate() {
    if !root_or_skip("paced_frames_keep_their_rate") {
        return;
    }
    let (left, right) = two_ends();
    for engine in [Engine::Xdp, Engine::AfXdp] {
        let sink = tracking(&right, Hook::Tc, &UDP_TO_9);
        let limit = Limit {
            rate: Some(10_000),
            ..count(10_000)
        };
        let began = Instant::now();
        let sent = generate(&left, engine, &traffic(false), limit);
        assert_eq!(sent.packets, 10_000, "{engine:?} {sent:?}");
        // A late wake-up makes up for itself, and nothing may come early.
        assert!(began.elapsed() >= Duration::from_millis(990), "{engine:?}");
        expect(sent.packets, || sink.count().unwrap().packets);
    }
}

#[test]
fn frames_that_the_device_did_not_take_are_told_of() {
    if !root_or_skip("frames_that_the_device_did_not_take_are_told_of") {
        return;
    }
    let (left, right) = two_ends();
    // Nothing but the generator sends.
    left.run(&["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"])
        .unwrap();
    for gro in ["off", "on"] {
        right.run(&["ethtool", "-K", "eth0", "gro", gro]).unwrap();
        let output = left
            .command(env!("CARGO_BIN_EXE_spinlane-perf"))
            .args(["pktgen", "--dst", "10.9.0.2", "--dst-mac"])
            .args([DESTINATION.to_string().as_str(), "--count", "1000"])
            .args(["-o", "json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["offered_packets"], 1000);
        let taken = document["device_packets"].as_u64().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        let is_told =
            complaint.contains("eth0 took 0 of 1000") && complaint.contains("--engine afxdp");
        match gro {
            "off" => assert!(taken == 0 && is_told, "{taken}: {complaint}"),
            _ => assert!(taken >= 1000 && !is_told, "{taken}: {complaint}"),
        }
    }
}
