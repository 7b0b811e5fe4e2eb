//! Numbers of packets and paces that no clock reaches, and frames that no
//! device takes.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;
use spinlane_tests::{Namespace, root_or_skip, veth};

const MOST: &str = "18446744073709551615";

/// A pcap file of two broadcast frames of 60 bytes, a second apart.
fn recording() -> Vec<u8> {
    let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
    for word in [0u32, 0, 65535, 1] {
        file.extend(word.to_le_bytes());
    }
    for second in [0u32, 1] {
        for word in [second, 0, 60, 60] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0xff; 6]);
        file.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        file.extend([0; 46]);
    }
    file
}

#[test]
fn what_never_ends_is_ended() {
    if !root_or_skip("what_never_ends_is_ended") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("two.pcap");
    std::fs::write(&file, recording()).unwrap();
    let file = file.to_str().unwrap();
    let namespace = Namespace::create("pktgen").unwrap();
    let sent = |arguments: &[&str]| {
        let output = Command::cargo_bin("spinlane-perf")
            .unwrap()
            .args(["pktgen", "--netns", namespace.name(), "--dev", "lo"])
            .args(["--seconds", "0.3", "-o", "json"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let offered: Value = serde_json::from_slice(&output.stdout).unwrap();
        offered["offered_packets"].as_u64().unwrap()
    };
    let replay = |arguments: &[&str]| sent(&[&["--replay", file], arguments].concat());
    // The second packet is due in a second, or never.
    assert_eq!(replay(&["--rounds", MOST]), 1);
    assert_eq!(replay(&["--speed", "1e-300"]), 1);
    assert!(replay(&["--speed", "0", "--rounds", MOST]) > 2);
    let socket = ["--engine", "socket", "--dst", "127.0.0.1"];
    let paced = ["--count", MOST, "--rate", "1"];
    assert!(sent(&[socket, paced].concat()) <= 1);
}

#[test]
fn frames_that_the_far_end_does_not_take_are_named() {
    if !root_or_skip("frames_that_the_far_end_does_not_take_are_named") {
        return;
    }
    let ends = ["left", "right"].map(|name| Namespace::create(name).unwrap());
    // What the ends would say of their own accord counts as sent.
    for end in &ends {
        end.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
            .unwrap();
    }
    veth((&ends[0], "eth0"), (&ends[1], "eth0")).unwrap();
    for (size, warned) in [("1518", false), ("9000", true)] {
        let output = Command::cargo_bin("spinlane-perf")
            .unwrap()
            .args(["pktgen", "--netns", ends[0].name(), "--engine", "afxdp"])
            .args(["--src", "10.0.0.1", "--dst", "10.0.0.2"])
            .args(["--dst-mac", "02:00:00:00:00:0b", "--count", "100"])
            .args(["--size", size])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains("took 0 of 100 packets"), warned, "{said:?}");
    }
}
