//! The switch as the pods' gateway: what it answers, and what it refuses.

use std::collections::BTreeMap;

use spinlane_tests::{LabError, Node, PATIENCE, Pod, root_or_skip, scapy, traffic, wait_for};

#[test]
fn the_gateway_answers_pings() -> Result<(), LabError> {
    if !root_or_skip("the_gateway_answers_pings") {
        return Ok(());
    }
    let node = Node::plain("gateway")?;
    let pod = Pod::attach(&node, "a")?;
    let inside = pod.namespace();
    for address in ["10.244.1.1", "fd44:0:0:1::1"] {
        let address = address.parse().expect("an address");
        for size in ["16", "1400"] {
            let pings = traffic::ping_with(pod.namespace(), address, 2, &["-s", size])?;
            assert!(pings.all(), "{size} bytes: {}", pings.text);
        }
    }
    // Whole, in several frames, and in pieces.
    for address in ["10.244.1.1", "fd44:0:0:1::1"] {
        let address = address.parse().expect("an address");
        for mtu in ["65535", "9000", "1500"] {
            inside.ip(&format!("link set eth0 mtu {mtu}"))?;
            // One after the other: many fragments each.
            for size in ["8000", "65507"].repeat(2) {
                let pings = traffic::ping_with(inside, address, 1, &["-s", size])?;
                assert!(pings.all(), "{size} bytes by {mtu}: {}", pings.text);
            }
        }
    }
    for _ in 0..2 {
        let ping = ["ping", "-n", "-c", "1", "-W", "10", "fe80::1%eth0"];
        let link_local = inside.run(&ping)?;
        assert!(link_local.contains(" 0% packet loss"), "{link_local}");
    }
    let neighbours = pod.namespace().ip("neigh show")?;
    assert!(
        neighbours.contains("10.244.1.1 dev eth0 lladdr"),
        "{neighbours}"
    );
    Ok(())
}

#[test]
fn a_packet_that_ran_out_of_hops_is_answered_for() -> Result<(), LabError> {
    if !root_or_skip("a_packet_that_ran_out_of_hops_is_answered_for") {
        return Ok(());
    }
    let node = Node::plain("hops")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    for (address, gateway, words) in [
        (b.v4()?, "10.244.1.1", "Time to live exceeded"),
        (b.v6()?, "", "Hop limit"),
    ] {
        let pings = traffic::ping_in_vain(a.namespace(), address, 2, &["-t", "1"])?;
        assert_eq!(pings.received, 0, "{}", pings.text);
        assert!(
            pings.text.contains(words) && pings.text.contains(gateway),
            "{}",
            pings.text
        );
    }
    assert!(node.drops()?["ttl_exceeded"] >= 4, "{:?}", node.drops()?);
    Ok(())
}

#[test]
fn nobodys_address_is_unreachable_at_once() -> Result<(), LabError> {
    if !root_or_skip("nobodys_address_is_unreachable_at_once") {
        return Ok(());
    }
    let node = Node::plain("nobody")?;
    let pod = Pod::attach(&node, "a")?;
    for address in [
        "10.244.1.250",
        "fd44:0:0:1::dead",
        "203.0.113.9",
        "2001:db8::9",
    ] {
        let address = address.parse().expect("an address");
        let pings = traffic::ping_in_vain(pod.namespace(), address, 2, &[])?;
        assert_eq!(pings.received, 0);
        assert!(
            pings.text.to_lowercase().contains("unreachable") || pings.text.contains("No route"),
            "{address}: {}",
            pings.text
        );
    }
    let drops = node.drops()?;
    assert!(
        drops["no_endpoint"] >= 2 && drops["no_route"] >= 2,
        "{drops:?}"
    );
    Ok(())
}

/// Frames that must not pass, the reason that each must be counted under, and
/// how to make them (`ok` is an echo request that would pass, `ok6` likewise).
const REFUSED: &[(&str, &str)] = &[
    (
        "runt",
        "Ether(src=mac, dst=gw, type=0x0800) / Raw(b'\\x45\\x00')",
    ),
    (
        "bad_checksum",
        "ether / IP(src=me, dst=peer, chksum=0x1234) / ICMP()",
    ),
    (
        "bad_header",
        "ether / IP(src=me, dst=peer, version=5) / ICMP()",
    ),
    ("bad_header", "ether / IP(src=me, dst=peer, ihl=4) / ICMP()"),
    (
        "bad_length",
        "ether / IP(src=me, dst=peer, len=1400) / ICMP()",
    ),
    (
        "bad_length",
        "ether / IPv6(src=me6, dst=peer6, plen=1400) / ICMPv6EchoRequest()",
    ),
    (
        "bad_options",
        "ether / IP(src=me, dst=peer, options=[IPOption_LSRR(routers=['10.244.1.1'])]) / ICMP()",
    ),
    (
        "bad_fragment",
        "ether / IP(src=me, dst=peer, frag=8191) / Raw(b'x' * 64)",
    ),
    (
        "bad_extension",
        "ether / IPv6(src=me6, dst=peer6, nh=0) / Raw(b'\\x3a\\xff' + b'\\x00' * 14)",
    ),
    ("martian", "ether / IP(src=me, dst='127.0.0.1') / ICMP()"),
    (
        "martian",
        "ether / IPv6(src=me6, dst='::1') / ICMPv6EchoRequest()",
    ),
    ("self_addressed", "ether / IP(src=me, dst=me) / ICMP()"),
    (
        "spoofed",
        "ether / IP(src='10.244.1.77', dst=peer) / ICMP()",
    ),
    (
        "spoofed",
        "ether / IPv6(src='fd44:0:0:1::77', dst=peer6) / ICMPv6EchoRequest()",
    ),
    (
        "spoofed_mac",
        "Ether(src='02:00:5e:00:53:77', dst=gw) / IP(src=me, dst=peer) / ICMP()",
    ),
    (
        "spoofed_neighbor",
        "Ether(src=mac, dst='ff:ff:ff:ff:ff:ff') / ARP(op=2, hwsrc=mac, psrc=peer, hwdst=mac, pdst=peer)",
    ),
    (
        "wrong_mac",
        "Ether(src=mac, dst='02:00:5e:00:53:99') / IP(src=me, dst=peer) / ICMP()",
    ),
    (
        "unknown_ethertype",
        "Ether(src=mac, dst=gw, type=0x88b5) / Raw(b'x' * 46)",
    ),
    (
        "multicast",
        "Ether(src=mac, dst='01:00:5e:00:00:05') / IP(src=me, dst='224.0.0.5') / UDP()",
    ),
];

#[test]
fn odd_packets_are_dropped_by_their_own_reason() -> Result<(), LabError> {
    if !root_or_skip("odd_packets_are_dropped_by_their_own_reason") {
        return Ok(());
    }
    const EACH: u32 = 5;
    let node = Node::plain("odd")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    assert!(traffic::ping(a.namespace(), b.v4()?, 1)?.all());
    let prelude = format!(
        "mac = get_if_hwaddr('eth0')\n\
         gw = open('/proc/net/arp').read().split('10.244.1.1 ')[1].split()[2]\n\
         me, peer, me6, peer6 = '{}', '{}', '{}', '{}'\n\
         ether = Ether(src=mac, dst=gw)",
        a.v4()?,
        b.v4()?,
        a.v6()?,
        b.v6()?
    );
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, _) in REFUSED {
        *expected.entry(reason).or_default() += u64::from(EACH);
    }
    let before = node.drops()?;
    let packets: Vec<(String, u32)> = REFUSED
        .iter()
        .map(|(_, expression)| ((*expression).to_owned(), EACH))
        .collect();
    scapy::send(a.namespace(), "eth0", &prelude, &packets)?;
    let mut missing = Vec::new();
    let counted = wait_for("every packet to be counted", PATIENCE, || {
        let after = node.drops().ok()?;
        let moved = |reason: &str| after[reason] - before[reason];
        missing = expected
            .iter()
            .filter(|&(reason, &count)| moved(reason) < count)
            .map(|(reason, count)| format!("{reason}: {} instead of {count}", moved(reason)))
            .collect();
        missing.is_empty().then_some(())
    });
    assert!(
        counted.is_ok(),
        "{missing:?}; all drops: {:?}",
        node.drops()?
    );
    // And none of it hurt.
    for address in [b.v4()?, b.v6()?] {
        assert!(traffic::ping(a.namespace(), address, 2)?.all());
    }
    node.settled_frames()?;
    Ok(())
}

#[test]
fn the_gateway_never_claims_a_pods_own_address() -> Result<(), LabError> {
    if !root_or_skip("the_gateway_never_claims_a_pods_own_address") {
        return Ok(());
    }
    let node = Node::plain("claims")?;
    let pod = Pod::attach(&node, "a")?;
    // Duplicate address detection as arping and the kernel do it: a probe from
    // nobody, a question about oneself, and a neighbour solicitation from ::.
    let script = format!(
        "import logging; logging.getLogger('scapy.runtime').setLevel(logging.ERROR)\n\
         from scapy.all import *\n\
         conf.verb = 0\n\
         mac, me, me6 = get_if_hwaddr('eth0'), '{}', '{}'\n\
         every = Ether(src=mac, dst='ff:ff:ff:ff:ff:ff')\n\
         ask = [every / ARP(hwsrc=mac, psrc='0.0.0.0', pdst=me),\n\
                every / ARP(hwsrc=mac, psrc=me, pdst=me)]\n\
         n = sum(len(srp(p, iface='eth0', timeout=0.5, nofilter=1)[0]) for p in ask)\n\
         ns = in6_getnsma(inet_pton(socket.AF_INET6, me6))\n\
         group = inet_ntop(socket.AF_INET6, ns)\n\
         dad = Ether(src=mac, dst=in6_getnsmac(ns)) / IPv6(src='::', dst=group) / ICMPv6ND_NS(tgt=me6)\n\
         n += len(srp(dad, iface='eth0', timeout=0.5, nofilter=1)[0])\n\
         gw = srp(every / ARP(hwsrc=mac, psrc=me, pdst='10.244.1.1'), iface='eth0', timeout=60)[0]\n\
         print(n, len(gw))",
        pod.v4()?,
        pod.v6()?
    );
    let answers = pod.namespace().run(&["/usr/bin/python3", "-c", &script])?;
    assert_eq!(
        answers.trim(),
        "0 1",
        "answers to probes for the pod's own address, and to one for the gateway's"
    );
    Ok(())
}

#[test]
fn a_pod_that_wants_the_gateways_address_is_told_that_it_is_taken() -> Result<(), LabError> {
    if !root_or_skip("a_pod_that_wants_the_gateways_address_is_told_that_it_is_taken") {
        return Ok(());
    }
    let node = Node::plain("taken")?;
    let pod = Pod::attach(&node, "a")?;
    let inside = pod.namespace();
    // A probe (RFC 5227, section 2.1.1), which Linux leaves to its tools.
    let script = "import logging; logging.getLogger('scapy.runtime').setLevel(logging.ERROR)\n\
         from scapy.all import *\n\
         conf.verb = 0\n\
         mac, gw = get_if_hwaddr('eth0'), '10.244.1.1'\n\
         probe = Ether(src=mac, dst='ff:ff:ff:ff:ff:ff') / ARP(hwsrc=mac, psrc='0.0.0.0', pdst=gw)\n\
         for _, said in srp(probe, iface='eth0', timeout=60, nofilter=1)[0]:\n\
         \x20   print(said[ARP].op, said[ARP].psrc, said[ARP].pdst, said.dst == mac)";
    let answer = inside.run(&["/usr/bin/python3", "-c", script])?;
    assert_eq!(answer.trim(), "2 10.244.1.1 0.0.0.0 True");
    // What the kernel finds out by itself, where it is asked to.
    inside.sysctl("net/ipv6/conf/eth0/accept_dad", "1")?;
    for address in ["fd44:0:0:1::1/64", "fe80::1/64"] {
        inside.ip(&format!("-6 address add {address} dev eth0"))?;
        wait_for(&format!("{address} to be refused"), PATIENCE, || {
            let shown = inside.ip("-6 address show dev eth0 dadfailed").ok()?;
            shown.contains(&format!("{address} ")).then_some(())
        })?;
    }
    // Its own are its own.
    let own = pod.v6()?.to_string();
    let shown = inside.ip("-6 address show dev eth0 dadfailed")?;
    assert!(!shown.contains(&own), "{shown}");
    traffic::reach(inside, "10.244.1.1".parse().expect("an address"))
}
