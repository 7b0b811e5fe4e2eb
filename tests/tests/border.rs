//! What crosses the border between the overlay and the link, and what must
//! not: outer packets that no node would send, marks of congestion, nodes that
//! have one family each.

use std::collections::BTreeMap;

use spinlane_tests::capture::Recording;
use spinlane_tests::cluster::{Families, UPLINK, pod_cidrs};
use spinlane_tests::{
    Cluster, LabError, Namespace, Node, PATIENCE, Pod, Result, capture, root_or_skip, scapy,
    traffic, wait_for,
};

/// The station that sends what nobody should.
const WIRE: u8 = 200;

/// How often each packet is sent.
const EACH: u32 = 3;

/// Outer packets that must not pass, and the reason that each must be counted
/// under.
const REFUSED: &[(&str, &str)] = &[
    ("wrong_vni", "outer(came(inner()), vni=4711)"),
    ("bad_vxlan", "outer(came(inner()), flags=0)"),
    ("unknown_vtep", "outer(came(inner()), src=stranger)"),
    ("bad_outer_length", "outer(came(inner()), len=200)"),
    ("bad_outer_length", "outer(came(inner()), len=20)"),
    ("bad_inner_length", "outer(Raw(b'short'))"),
    (
        "bad_length",
        "outer(came(IP(src=far, dst=pod, len=1200) / UDP(dport=7777)))",
    ),
    (
        "wrong_mac",
        "outer(Ether(src=far_mac, dst='02:00:5e:00:53:99') / inner())",
    ),
    ("spoofed", "outer(came(inner(src='10.244.3.7')))"),
    ("spoofed", "outer(came(inner(src='10.244.1.77')))"),
    ("spoofed", "outer(came(inner6(src='fd44:0:0:3::7')))"),
    ("split_horizon", "outer(came(inner(dst='10.244.3.7')))"),
    ("split_horizon", "outer(came(inner6(dst='fd44:0:0:3::7')))"),
    ("no_endpoint", "outer(came(inner(dst='10.244.1.200')))"),
];

/// What arrives by the mark outside and the one inside: RFC 6040, figure 4.
/// Nothing is a drop.
const MARKS: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(1), Some(2), Some(3)],
    [Some(0), Some(1), Some(1), Some(3)],
    [Some(0), Some(1), Some(2), Some(3)],
    [None, Some(3), Some(3), Some(3)],
];

/// DSCP of inner packets, as a byte of the IP header; that of outer ones is
/// another.
const INNER_CLASS: u8 = 0xb8;

/// A node with a pod, one that is announced only, and the station on the link
/// that speaks in its name.
struct Border {
    cluster: Cluster,
    wire: Namespace,
    pod: Pod,
}

impl Border {
    fn start(families: Families) -> Result<Border> {
        let cluster = Cluster::start(1, families, |_| {})?;
        for other in [2, 3] {
            let annotation = format!("spinlane.io/vtep-mac: {}", vtep_mac(other));
            cluster.announce(other, Some(&annotation))?;
        }
        cluster.announce(1, Some(&format!("spinlane.io/vtep-mac: {}", vtep_mac(1))))?;
        let wire = Namespace::create("wire")?;
        cluster.underlay().plug(&wire, WIRE)?;
        // Whoever answers must find the others, who are only announced.
        for other in [2, 3] {
            for address in cluster.underlay().addresses(other) {
                let len = if address.is_ipv6() { 128 } else { 32 };
                let nodad = if address.is_ipv6() { "nodad" } else { "" };
                wire.ip(&format!("address add {address}/{len} dev {UPLINK} {nodad}"))?;
            }
        }
        let node = &cluster.nodes()[0];
        let pod = Pod::attach(node, "a")?;
        wait_for("the announced nodes", PATIENCE, || {
            let routes = node.cli(&["routes"]).ok()?;
            let known = |number: u8| {
                let [net, _] = pod_cidrs(number);
                let mut rows = routes.as_array()?.iter();
                rows.find(|row| row["prefix"] == net.as_str() && row["via"] == "vtep")
            };
            known(2).and(known(3)).map(drop)
        })?;
        Ok(Border { cluster, wire, pod })
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes()[0]
    }

    /// Sends frames that the expressions make: `outer(frame)` wraps one as the
    /// second node does, `came(packet)` gives a packet its inner MAC addresses,
    /// `inner()` and `inner6()` are datagrams to the pod.
    fn send(&self, packets: &[(String, u32)]) -> Result<()> {
        let [one, two, stranger] = [1, 2, WIRE].map(|n| self.cluster.underlay().addresses(n)[0]);
        let mac = self
            .node()
            .namespace()
            .run(&["cat", "/sys/class/net/eth0/address"])?;
        let ip = if one.is_ipv6() {
            "IPv6(src=src, dst=node, tc=tos)"
        } else {
            "IP(src=src, dst=node, tos=tos, id=77)"
        };
        let prelude = format!(
            "from scapy.layers.vxlan import VXLAN\n\
             node, two, stranger = '{one}', '{two}', '{stranger}'\n\
             pod, pod6, far, far6 = '{}', '{}', '10.244.2.7', 'fd44:0:0:2::7'\n\
             own_mac, far_mac = '{}', '{}'\n\
             def outer(frame, src=two, vni=1, flags=8, tos=0, **udp):\n\
             \x20   return Ether(dst='{}') / {ip} / UDP(sport=50000, dport=4789, **udp) \\\n\
             \x20       / VXLAN(vni=vni, flags=flags) / frame\n\
             def came(packet):\n\
             \x20   return Ether(src=far_mac, dst=own_mac) / packet\n\
             def inner(src=far, dst=pod, tos=0, sport=7):\n\
             \x20   return IP(src=src, dst=dst, tos=tos) / UDP(sport=sport, dport=7777) / b'hello'\n\
             def inner6(src=far6, dst=pod6, tos=0, sport=7):\n\
             \x20   return IPv6(src=src, dst=dst, tc=tos) / UDP(sport=sport, dport=7777) / b'hello'\n",
            self.pod.v4()?,
            self.pod.v6()?,
            vtep_mac(1),
            vtep_mac(2),
            mac.trim(),
        );
        scapy::send(&self.wire, UPLINK, &prelude, packets)
    }

    /// Waits until that many more packets than `before` are counted under each
    /// of the reasons.
    fn counted(
        &self,
        before: &BTreeMap<String, u64>,
        expected: &BTreeMap<&str, u64>,
    ) -> Result<()> {
        let mut moved = BTreeMap::new();
        wait_for("every packet to be counted", PATIENCE, || {
            let after = self.node().drops().ok()?;
            let differs = |reason: &&str| after[*reason] - before[*reason];
            moved = expected.keys().map(|r| (*r, differs(r))).collect();
            (moved == *expected).then_some(())
        })
        .map_err(|error| {
            LabError::unexpected(error.to_string(), format!("{moved:?}, not {expected:?}"))
        })
    }
}

fn vtep_mac(number: u8) -> String {
    format!("0a:58:00:00:77:{number:02x}")
}

#[test]
fn outer_packets_that_must_not_pass_are_counted_by_reason() -> Result<()> {
    if !root_or_skip("outer_packets_that_must_not_pass_are_counted_by_reason") {
        return Ok(());
    }
    for families in [Families::V4, Families::V6] {
        let border = Border::start(families)?;
        let heard = border.node().run_dir().join("pod.pcap");
        let pod = (border.pod.namespace(), "eth0");
        let recording = Recording::start(pod, &[], "udp port 7777", &heard)?;
        let before = border.node().drops()?;
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for (reason, _) in REFUSED {
            *expected.entry(reason).or_default() += u64::from(EACH);
        }
        let refused = REFUSED.iter().map(|(_, packet)| packet.to_string());
        // What is right goes last: once it is there, so is the rest.
        let right = ["inner()", "inner6()"].map(|packet| format!("outer(came({packet}))"));
        let packets: Vec<_> = refused.chain(right).map(|packet| (packet, EACH)).collect();
        border.send(&packets)?;
        border.counted(&before, &expected)?;
        recording.stop()?;
        for family in ["ip", "ipv6"] {
            // Those that came together may arrive so.
            let rows = capture::fields(&heard, family, &["udp.length"])?;
            let lengths = rows.iter().filter_map(|row| row[0].parse().ok());
            let bytes: u32 = lengths.map(|length: u32| length - 8).sum();
            assert_eq!(bytes, 5 * EACH, "{family} over {families:?}: {rows:?}");
        }
        border.node().settled_frames()?;
    }
    Ok(())
}

#[test]
fn marks_of_congestion_arrive_as_the_standard_says() -> Result<()> {
    if !root_or_skip("marks_of_congestion_arrive_as_the_standard_says") {
        return Ok(());
    }
    for families in [Families::V4, Families::V6] {
        let border = Border::start(families)?;
        let file = border.node().run_dir().join("marks.pcap");
        let pod = (border.pod.namespace(), "eth0");
        let recording = Recording::start(pod, &[], "udp port 7777", &file)?;
        let before = border.node().drops()?;
        let mut packets = Vec::new();
        let mut expected = Vec::new();
        for (outside, row) in (0u8..).zip(MARKS) {
            for (inside, arrives) in (0u8..).zip(row) {
                let tos = INNER_CLASS | inside;
                let sport = 1000 + 10 * u32::from(outside) + u32::from(inside);
                for packet in ["inner", "inner6"] {
                    let packet = format!("{packet}(tos={tos}, sport={sport})");
                    packets.push((format!("outer(came({packet}), tos={})", 0x28 | outside), 1));
                }
                if let Some(mark) = arrives {
                    expected.push((sport, INNER_CLASS | mark));
                }
            }
        }
        border.send(&packets)?;
        border.counted(&before, &BTreeMap::from([("ecn_not_capable", 2)]))?;
        recording.stop()?;
        for (filter, field) in [("ip", "ip.dsfield"), ("ipv6", "ipv6.tclass")] {
            let rows = capture::fields(&file, filter, &["udp.srcport", field])?;
            let mut arrived = Vec::new();
            for row in rows {
                let class = row[1].rsplit_once("0x").map(|(_, digits)| digits);
                let class = class.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                arrived.push((row[0].parse().ok(), class));
            }
            arrived.sort_unstable();
            let expected: Vec<_> = expected
                .iter()
                .map(|(port, class)| (Some(*port), Some(u32::from(*class))))
                .collect();
            assert_eq!(arrived, expected, "{filter} over {families:?}");
        }
    }
    Ok(())
}

/// Takes the addresses of one family from a node, and from what others know
/// of it.
fn one_family(cluster: &Cluster, number: u8, is_v6: bool) -> Result<()> {
    let own = cluster.underlay().addresses(number);
    let other = own.iter().find(|a| a.is_ipv6() != is_v6);
    let other = other.expect("both families").to_string();
    let node = &cluster.nodes()[usize::from(number) - 1];
    let len = if is_v6 { 24 } else { 64 };
    let delete = format!("address delete {other}/{len} dev {UPLINK}");
    node.namespace().ip(&delete)?;
    for node in cluster.nodes() {
        let path = node.manifests_dir().join(format!("node-{number}.yaml"));
        let failed = || LabError::io(format!("rewrite {}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(failed())?;
        let line = format!("  - address: \"{other}\"\n    type: InternalIP\n");
        assert!(text.contains(&line), "{text}");
        std::fs::write(&path, text.replace(&line, "")).map_err(failed())?;
    }
    Ok(())
}

/// The first node has both families, the second IPv4 and the third IPv6: pods
/// of both families talk wherever nodes have a family in common.
#[test]
fn nodes_of_one_family_and_of_both_share_an_overlay() -> Result<()> {
    if !root_or_skip("nodes_of_one_family_and_of_both_share_an_overlay") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(3, Families::Dual, |config| {
        config.addresses = Vec::new();
    })?;
    one_family(&cluster, 2, false)?;
    one_family(&cluster, 3, true)?;
    for node in cluster.nodes_mut() {
        node.start_agent()?;
    }
    let [one, two, three] = cluster.nodes() else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (
        Pod::attach(one, "a")?,
        Pod::attach(two, "b")?,
        Pod::attach(three, "c")?,
    );
    for other in [&b, &c] {
        for (from, to) in [(&a, other), (other, &a)] {
            for address in [to.v4()?, to.v6()?] {
                let (from, to) = (from.namespace(), to.namespace());
                traffic::reach(from, address)?;
                traffic::tcp_both_ways(from, to, address, 1 << 20)?;
                traffic::udp_echo(from, to, address, 1, 5000)?;
                assert_eq!(traffic::udp_echo(from, to, address, 3, 5000)?, 3);
            }
        }
    }
    // Those without one in common are told so at once.
    let pings = traffic::ping_in_vain(b.namespace(), c.v4()?, 1, &[])?;
    assert!(pings.text.contains("Unreachable"), "{}", pings.text);
    wait_for("a notice", PATIENCE, || {
        let notices = two.status().ok()?.notices;
        let mut notices = notices.iter();
        notices.find(|notice| notice.contains("n3")).map(drop)
    })
}

/// The kernel's word that a network is out of reach holds for pods, too.
#[test]
fn what_the_kernel_refuses_is_refused_to_pods() -> Result<()> {
    if !root_or_skip("what_the_kernel_refuses_is_refused_to_pods") {
        return Ok(());
    }
    let cluster = Cluster::start(1, Families::Dual, |_| {})?;
    let node = &cluster.nodes()[0];
    let outside = Namespace::create("outside")?;
    cluster.underlay().plug(&outside, WIRE)?;
    outside.sh("ip address add 203.0.113.7/32 dev lo\n\
                ip address add 2001:db8:7::7/128 dev lo nodad\n")?;
    let pod = Pod::attach(node, "a")?;
    let cases = [
        ("203.0.113.7", format!("172.31.0.{WIRE}"), "203.0.113.0/24"),
        (
            "2001:db8:7::7",
            format!("fd31::{WIRE:x}"),
            "2001:db8:7::/64",
        ),
    ];
    for (to, via, net) in cases {
        let to = to.parse().expect("an address");
        node.namespace()
            .ip(&format!("route add default via {via}"))?;
        traffic::reach(pod.namespace(), to)?;
        let forbidden = match net.contains(':') {
            true => "Administratively prohibited",
            false => "Packet filtered",
        };
        for (kind, told) in [
            ("unreachable", "nreachable"),
            ("throw", "nreachable"),
            ("prohibit", forbidden),
            // Nobody is told anything.
            ("blackhole", " 0 received, 100% packet loss"),
        ] {
            node.namespace().ip(&format!("route add {kind} {net}"))?;
            wait_for(&format!("{kind} {net}"), PATIENCE, || {
                let pings = traffic::ping_in_vain(pod.namespace(), to, 1, &["-W", "1"]).ok()?;
                pings.text.contains(told).then_some(())
            })?;
            node.namespace().ip(&format!("route delete {kind} {net}"))?;
            traffic::reach(pod.namespace(), to)?;
        }
    }
    Ok(())
}
