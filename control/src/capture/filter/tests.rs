use std::time::SystemTime;

use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn packet(data: Vec<u8>) -> Packet {
    Packet {
        at: SystemTime::UNIX_EPOCH,
        port: "sl1".to_owned(),
        inbound: true,
        len: data.len(),
        drop: None,
        data,
    }
}

const MACS: &str = "0a580af40103 0a580af40102";

/// 10.244.1.2:40000 → 10.244.1.3:80, TCP SYN.
fn tcp() -> Packet {
    packet(hex(&format!(
        "{MACS} 0800 45000028 00000000 40060000 0af40102 0af40103 9c400050 00000000 00000000 50020000 00000000"
    )))
}

/// fd00::2:5353 → fd00::3:53, UDP behind a hop-by-hop header.
fn udp6() -> Packet {
    packet(hex(&format!(
        "{MACS} 86dd 60000000 0010 00 40 fd000000000000000000000000000002 fd000000000000000000000000000003 \
         11000104 00000000 14e90035 0008 0000"
    )))
}

/// Who has 10.244.1.1, tagged VLAN 7.
fn arp() -> Packet {
    packet(hex(
        "ffffffffffff 0a580af40102 8100 0007 0806 0001 0800 0604 0001 0a580af40102 0af40102 000000000000 0af40101",
    ))
}

/// A later fragment of UDP 10.244.1.2 → 10.244.1.3, dropped.
fn fragment() -> Packet {
    let mut packet = packet(hex(&format!(
        "{MACS} 0800 4500001c 000000b9 40110000 0af40102 0af40103 00500050 00000000"
    )));
    packet.drop = Some("bad_fragment");
    packet.inbound = false;
    packet
}

#[test]
fn expressions_match_what_they_say() {
    let all = [
        ("tcp", tcp()),
        ("udp6", udp6()),
        ("arp", arp()),
        ("fragment", fragment()),
    ];
    let cases: &[(&str, &[&str])] = &[
        ("ip", &["tcp", "fragment"]),
        ("ip6", &["udp6"]),
        ("arp", &["arp"]),
        ("tcp", &["tcp"]),
        ("udp", &["udp6", "fragment"]),
        ("icmp", &[]),
        ("host 10.244.1.2", &["tcp", "arp", "fragment"]),
        ("10.244.1.3", &["tcp", "fragment"]),
        ("src 10.244.1.2", &["tcp", "arp", "fragment"]),
        ("dst host 10.244.1.2", &[]),
        ("src or dst host 10.244.1.1", &["arp"]),
        ("src and dst net 10.244.1.2/31", &["tcp", "fragment"]),
        ("ip host 10.244.1.2", &["tcp", "fragment"]),
        ("arp host 10.244.1.2", &["arp"]),
        ("host fd00::2", &["udp6"]),
        ("net 10.0.0.0/8", &["tcp", "arp", "fragment"]),
        ("dst net 10.244.1.0 mask 255.255.255.254", &["arp"]),
        ("net fd00::/64", &["udp6"]),
        ("port 80", &["tcp"]),
        ("port http", &["tcp"]),
        ("udp port 80", &[]),
        ("tcp dst port 80", &["tcp"]),
        ("src port 80", &[]),
        ("port 80 or 53", &["tcp", "udp6"]),
        ("udp src port 53 or dst port 53", &["udp6"]),
        ("portrange 50-79", &["udp6"]),
        ("portrange 40000-40000", &["tcp"]),
        ("ip proto 6", &["tcp"]),
        ("ip6 proto \\udp", &["udp6"]),
        ("proto udp", &["udp6", "fragment"]),
        (
            "ether host 0a:58:0a:f4:01:02",
            &["tcp", "udp6", "arp", "fragment"],
        ),
        ("ether dst 0a:58:0a:f4:01:02", &[]),
        ("ether src 0a:58:0a:f4:01:02 and ip6", &["udp6"]),
        ("ether proto 0x0806", &["arp"]),
        ("ether proto arp", &["arp"]),
        ("broadcast", &["arp"]),
        ("ether broadcast or ether multicast", &["arp"]),
        ("ip multicast", &[]),
        ("vlan", &["arp"]),
        ("vlan 7", &["arp"]),
        ("vlan 8", &[]),
        ("vlan and arp", &["arp"]),
        ("less 42", &["fragment"]),
        ("greater 62", &["udp6"]),
        ("inbound", &["tcp", "udp6", "arp"]),
        ("outbound", &["fragment"]),
        ("dropped", &["fragment"]),
        ("dropped bad_fragment", &["fragment"]),
        ("dropped spoofed", &[]),
        ("not dropped", &["tcp", "udp6", "arp"]),
        ("! tcp and !udp", &["arp"]),
        ("not (tcp or arp)", &["udp6", "fragment"]),
        // Equal precedence, from the left: (arp or tcp) and port 80.
        ("arp or tcp and port 80", &["tcp"]),
        ("arp or (tcp and port 80)", &["tcp", "arp"]),
        ("tcp && port 80 || arp", &["tcp", "arp"]),
    ];
    for (text, expected) in cases {
        let filter = Filter::parse(text).unwrap_or_else(|e| panic!("{e}"));
        let matching: Vec<_> = all
            .iter()
            .filter(|(_, packet)| filter.matches(packet))
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(matching, *expected, "{text}");
    }
}

/// tcpdump's own answers, for packets and expressions that mean the same to
/// both.
#[test]
fn tcpdump_agrees() {
    use pcap_file::pcap::{PcapPacket, PcapWriter};
    let plain_udp6 = packet(hex(&format!(
        "{MACS} 86dd 60000000 0008 11 40 fd000000000000000000000000000002 fd000000000000000000000000000003 \
         14e90035 0008 0000"
    )));
    let untagged_arp = packet(hex(
        "ffffffffffff 0a580af40102 0806 0001 0800 0604 0001 0a580af40102 0af40102 000000000000 0af40101",
    ));
    let packets = [tcp(), plain_udp6, untagged_arp, fragment()];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.pcap");
    let mut writer = PcapWriter::new(std::fs::File::create(&path).unwrap()).unwrap();
    for (second, packet) in (1..).zip(&packets) {
        let time = std::time::Duration::from_secs(second);
        let len = u32::try_from(packet.data.len()).unwrap();
        writer
            .write_packet(&PcapPacket::new(time, len, &packet.data))
            .unwrap();
    }
    drop(writer);
    for expression in [
        "ip",
        "ip6",
        "arp",
        "tcp",
        "udp",
        "host 10.244.1.2",
        "src 10.244.1.2",
        "dst host 10.244.1.2",
        "src or dst host 10.244.1.1",
        "src and dst net 10.244.1.2/31",
        "ip host 10.244.1.2",
        "arp host 10.244.1.2",
        "host fd00::2",
        "net 10.0.0.0/8",
        "dst net 10.244.1.0 mask 255.255.255.254",
        "net fd00::/64",
        "port 80",
        "udp port 80",
        "tcp dst port 80",
        "src port 80",
        "port 80 or 53",
        "udp src port 53 or dst port 53",
        "portrange 50-79",
        "portrange 40000-40000",
        "ip proto 6",
        "ip6 proto \\udp",
        "ether host 0a:58:0a:f4:01:02",
        "ether src 0a:58:0a:f4:01:02 and ip6",
        "ether proto 0x0806",
        "ether broadcast or ether multicast",
        "less 42",
        "greater 62",
        "! tcp and !udp",
        "not (tcp or arp)",
        "arp or tcp and port 80",
        "arp or (tcp and port 80)",
        "tcp && port 80 || arp",
        "not port 80",
        "ip and not host 10.244.1.9 and (port 80 or udp)",
    ] {
        let output = std::process::Command::new("tcpdump")
            .args(["-tt", "-n", "-r", path.to_str().unwrap(), expression])
            .output();
        let Ok(output) = output else {
            assert!(std::env::var_os("CI").is_none(), "tcpdump is missing");
            eprintln!("SKIPPED: tcpdump is not installed");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let theirs: Vec<usize> = text
            .lines()
            .filter_map(|l| l.split('.').next()?.parse().ok())
            .collect();
        let filter = Filter::parse(expression).unwrap();
        let ours: Vec<usize> = (1..)
            .zip(&packets)
            .filter(|(_, packet)| filter.matches(packet))
            .map(|(second, _)| second)
            .collect();
        assert_eq!(
            ours,
            theirs,
            "{expression}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn errors_show_the_word_and_what_fits() {
    let cases = [
        (
            "",
            "it ends where a condition was expected, as in \"host 10.244.1.2\"",
        ),
        ("host", "it ends where an address was expected"),
        (
            "host web",
            "\"web\" where an address was expected, as in \"host 10.244.1.2\"",
        ),
        (
            "prot 80",
            "\"prot\" is no condition: write one as in \"host 10.244.1.2\", \"tcp port 80\" or \"dropped\"",
        ),
        (
            "port 65536",
            "\"65536\" where a port from 0 to 65535 was expected",
        ),
        (
            "portrange 9-5",
            "\"9-5\" where a range of ports was expected, as in \"portrange 8000-8080\"",
        ),
        (
            "net 10.0.0.0/33",
            "\"10.0.0.0/33\" where a prefix was expected, as in \"net 10.244.1.0/24\"",
        ),
        ("icmp port 5", "ports go with tcp, udp or sctp"),
        (
            "ether port 5",
            "\"ether\" goes with host, proto, src or dst",
        ),
        (
            "tcp and",
            "it ends where a condition was expected, as in \"host 10.244.1.2\"",
        ),
        ("(tcp", "a parenthesis is not closed"),
        ("tcp)", "a closing parenthesis without an opening one"),
        (
            "tcp udp",
            "\"udp\" where \"and\", \"or\" or the end was expected",
        ),
        (
            "dropped nonsense",
            "\"nonsense\" where \"and\", \"or\" or the end was expected",
        ),
        (
            "vlan 4096",
            "VLAN 4096 where one from 0 to 4095 was expected",
        ),
        ("less x", "\"x\" where a length in bytes was expected"),
        ("tcp broadcast", "\"broadcast\" goes with ether, ip or ip6"),
        ("tcp proto 6", "\"proto\" goes with ether, ip or ip6"),
    ];
    for (text, expected) in cases {
        let error = Filter::parse(text).unwrap_err().to_string();
        assert_eq!(error, format!("filter {text:?}: {expected}"));
    }
    let deep = "(".repeat(100_000);
    let error = Filter::parse(&deep).unwrap_err().to_string();
    assert!(error.ends_with("more than 64 parentheses and negations are open"));
    assert!(Filter::parse(&format!("{}tcp{}", "(".repeat(60), ")".repeat(60))).is_ok());
}

proptest! {
    #[test]
    fn any_text_is_a_filter_or_an_error(text in any::<String>()) {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn any_words_are_a_filter_or_an_error(words in proptest::collection::vec(
        proptest::sample::select(vec![
            "ip", "ip6", "ether", "tcp", "src", "dst", "or", "and", "not", "host", "net", "mask",
            "port", "portrange", "proto", "vlan", "dropped", "less", "(", ")", "!", "&&", "||",
            "80", "1-2", "10.0.0.1", "10.0.0.0/8", "fd00::1", "02:00:00:00:00:01", "é", "&", "|",
        ]), 0..10)) {
        if let Ok(filter) = Filter::parse(&words.join(" ")) {
            filter.matches(&tcp());
        }
    }

    #[test]
    fn any_bytes_are_looked_at(data in proptest::collection::vec(any::<u8>(), 0..100), cut in 0usize..80) {
        let filter = Filter::parse("port 80 or host fd00::2 or vlan 7").unwrap();
        filter.matches(&packet(data));
        for mut whole in [tcp(), udp6(), arp(), fragment()] {
            whole.data.truncate(cut);
            filter.matches(&whole);
        }
    }
}
