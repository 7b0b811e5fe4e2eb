//! The generators and the sinks against each other, over one veth.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use spinlane_perf::generator::socket::{Datagrams, SocketGenerator};
use spinlane_perf::generator::xdp::XdpGenerator;
use spinlane_perf::generator::{Limit, Sent};
use spinlane_perf::packet::{Mac, Stream, Template};
use spinlane_perf::sink::tc::TcSink;
use spinlane_perf::stop::Stop;
use spinlane_tests::{Namespace, Process, root_or_skip, veth, wait_for};

const SOURCE: Mac = Mac([2, 0, 0, 0, 0, 0x0a]);
const DESTINATION: Mac = Mac([2, 0, 0, 0, 0, 0x0b]);

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

fn sink(end: &Namespace, port: Option<u16>) -> TcSink {
    end.enter(|| TcSink::attach(if_nametoindex("eth0").unwrap(), port).unwrap())
        .unwrap()
}

fn stream(source: &str, destination: &str, flows: u32) -> Stream {
    Stream {
        source_mac: SOURCE,
        destination_mac: DESTINATION,
        source: source.parse::<IpAddr>().unwrap(),
        destination: destination.parse::<IpAddr>().unwrap(),
        source_port: 5000,
        destination_port: 9,
        size_bytes: 64,
        flows,
    }
}

fn generate(end: &Namespace, templates: Vec<Template>, limit: Limit) -> Sent {
    end.enter(|| {
        let generator = XdpGenerator::new(if_nametoindex("eth0").unwrap(), templates).unwrap();
        generator.run(limit, &Stop::new()).unwrap()
    })
    .unwrap()
}

#[test]
fn live_frames_reach_the_sink() {
    if !root_or_skip("live_frames_reach_the_sink") {
        return;
    }
    let (left, right) = two_ends();
    for (source, destination) in [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")] {
        let counted = sink(&right, Some(9));
        let other = Template::new(&Stream {
            destination_port: 10,
            ..stream(source, destination, 1)
        })
        .unwrap();
        let template = Template::new(&stream(source, destination, 100)).unwrap();
        let limit = |count| Limit {
            count: Some(count),
            rate: Some(20_000),
            duration: None,
        };
        assert_eq!(generate(&left, vec![template], limit(1000)).packets, 1000);
        generate(&left, vec![other], limit(100));
        wait_for("1000 counted frames", Duration::from_secs(2), || {
            (counted.count().unwrap().packets >= 1000).then_some(())
        })
        .unwrap();
        let count = counted.count().unwrap();
        assert_eq!(count.packets, 1000, "{source}: only port 9 counts");
        assert_eq!(count.bytes, 64_000, "{source}");
    }
}

#[test]
fn flows_differ_and_their_checksums_hold() {
    if !root_or_skip("flows_differ_and_their_checksums_hold") {
        return;
    }
    let (left, right) = two_ends();
    let capture: Process = right
        .spawn(&[
            "tcpdump", "-i", "eth0", "-nvv", "-c", "30", "udp", "port", "9",
        ])
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    for (source, destination) in [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")] {
        let limit = Limit {
            count: Some(15),
            ..Limit::default()
        };
        let template = Template::new(&stream(source, destination, 5)).unwrap();
        generate(&left, vec![template], limit);
    }
    let output = capture.wait(Duration::from_secs(10)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.matches("[udp sum ok]").count(), 30, "{text}");
    for port in 5000..5005 {
        for source in ["10.9.0.1", "fd09::1"] {
            let from = format!("{source}.{port} >");
            assert_eq!(text.matches(&from).count(), 3, "{from}: {text}");
        }
    }
}

#[test]
fn datagrams_count_as_segments() {
    if !root_or_skip("datagrams_count_as_segments") {
        return;
    }
    let (left, right) = two_ends();
    for segmentation in [false, true] {
        let counted = sink(&right, Some(9));
        let sent = left
            .enter(|| {
                let generator = SocketGenerator::new(&Datagrams {
                    to: "10.9.0.2:9".parse().unwrap(),
                    source_port: None,
                    payload_bytes: 100,
                    flows: 1,
                    segmentation,
                })
                .unwrap();
                let limit = Limit {
                    count: Some(640),
                    ..Limit::default()
                };
                generator.run(limit, &Stop::new()).unwrap()
            })
            .unwrap();
        assert_eq!(sent.packets, 640);
        wait_for("640 counted datagrams", Duration::from_secs(2), || {
            (counted.count().unwrap().packets == 640).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}, {segmentation}: {:?}", counted.count()));
    }
}
