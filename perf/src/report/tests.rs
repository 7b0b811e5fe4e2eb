use std::collections::BTreeMap;

use super::*;
use crate::compare::baseline::Baseline;
use crate::compare::document::{Outcome, SCHEMA_VERSION, SubjectResult};
use crate::compare::machine::Machine;
use crate::scenario::{PER_CPU_SECOND, Sample, Scenario};
use crate::subject::Kind;

#[test]
fn quantities_are_short() {
    for (value, unit, expect) in [
        (512_345.0, "packets/s", "512 k pps"),
        (1_260_000.0, "packets/s", "1.26 M pps"),
        (12_345_678_901.0, "bit/s", "12.3 Gbit/s"),
        (950.0, "bit/s", "950 bit/s"),
        (28.04, "us", "28.0 µs"),
        (1.5, "% of a core", "1.50 %"),
        (8_412.0, "connections/s", "8.41 k connections/s"),
        (420_000.0, "packets/CPU-s", "420 k packets/CPU-s"),
        (0.0, "segments", "0"),
    ] {
        assert_eq!(
            quantity(value, unit).replace(" G", "G"),
            expect.replace(" G", "G"),
            "{value}"
        );
    }
}

fn samples(values: [f64; 7], details: impl Fn(f64) -> Vec<(&'static str, f64)>) -> SubjectResult {
    SubjectResult {
        samples: values
            .into_iter()
            .map(|value| Sample {
                value,
                details: details(value)
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
                cores_busy: vec![0.5, 1.0],
                latency: None,
            })
            .collect(),
        ..SubjectResult::default()
    }
}

fn outcome(scenario: Scenario, ours: SubjectResult, bridge: SubjectResult) -> Outcome {
    let mut outcome = Outcome {
        scenario,
        unit: scenario.unit().to_owned(),
        better: scenario.better(),
        results: BTreeMap::from([
            (Kind::Spinlane.name().to_owned(), ours),
            (Kind::LinuxBridge.name().to_owned(), bridge),
        ]),
        verdicts: Vec::new(),
    };
    outcome.judge(&[Kind::Spinlane, Kind::LinuxBridge]);
    outcome
}

/// A run of three scenarios in which Spinlane's frame rate is `factor` of
/// the bridge's.
fn run(factor: f64) -> Comparison {
    let bridge = [500e3, 510e3, 490e3, 505e3, 495e3, 500e3, 502e3];
    let per_cpu = |value: f64| vec![(PER_CPU_SECOND, value / 1.5)];
    let round_trip = |value: f64| vec![("p99_us", value * 2.0)];
    let mut udp = outcome(
        Scenario::UdpRr,
        samples([6.0, 6.1, 6.2, 6.0, 6.1, 6.0, 6.1], round_trip),
        samples([13.0, 13.1, 13.2, 13.0, 13.1, 13.0, 13.1], round_trip),
    );
    for (name, times) in [
        ("spinlane", [5.0, 6.0, 12.0]),
        ("linux-bridge", [11.0, 13.0, 30.0]),
    ] {
        let latency = [0.0, 0.5, 0.999].into_iter().zip(times).collect();
        udp.results.get_mut(name).unwrap().latency_us = latency;
    }
    Comparison {
        schema_version: SCHEMA_VERSION,
        started_at_s: 1_795_238_400,
        took_s: 61.5,
        complete: true,
        commit: "0123456789ab".to_owned(),
        machine: Machine {
            kernel: "6.18.0".to_owned(),
            cpu: "Processor <&>".to_owned(),
            cores: 2,
            memory_bytes: 24 << 30,
            other_work: 0.0,
        },
        pairs: 7,
        seconds: 2.0,
        warm_up_seconds: 0.4,
        v6: false,
        sender_core: 0,
        lane_core: 1,
        sockets_pinned: false,
        method: vec!["Subjects take turns.".to_owned()],
        subjects: [
            ("spinlane", None),
            ("linux-bridge", None),
            (
                "ovs-afxdp",
                Some("no ovs-vsctl; install openvswitch-switch"),
            ),
        ]
        .map(|(name, missing)| Participant {
            name: name.to_owned(),
            missing: missing.map(str::to_owned),
            settings: vec![("route MTU".to_owned(), "1500".to_owned())],
        })
        .to_vec(),
        micro: None,
        scenarios: vec![
            outcome(
                Scenario::Frames64,
                samples(bridge.map(|value| value * factor), per_cpu),
                samples(bridge, per_cpu),
            ),
            outcome(
                Scenario::Frames512,
                samples(bridge.map(|value| value * 0.9), per_cpu),
                samples(bridge, per_cpu),
            ),
            udp,
        ],
    }
}

#[test]
fn the_markdown_is_as_kept() {
    insta::assert_snapshot!(markdown::comparison(&run(1.7)));
}

#[test]
fn the_readmes_table_is_as_kept() {
    insta::assert_snapshot!(markdown::readme(&run(1.3)));
}

#[test]
fn the_terminals_tables_are_as_kept() {
    insta::assert_snapshot!(text::comparison(&run(1.7)));
}

#[test]
fn the_page_is_as_kept() {
    let page = html::page(&run(1.7));
    // The style is a file of its own.
    let (before, rest) = page.split_once("<style>").unwrap();
    let (_, after) = rest.split_once("</style>").unwrap();
    insta::assert_snapshot!(format!("{before}{after}"));
}

#[test]
fn the_page_needs_nothing_else() {
    let page = html::page(&run(1.7));
    for outside in ["http:", "https:", "src=", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("Processor &lt;&amp;&gt;"));
    assert!(!page.contains("Processor <&>"));
}

#[test]
fn a_document_is_read_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.json");
    let written = run(1.7);
    std::fs::write(&path, serde_json::to_string(&written).unwrap()).unwrap();
    let read = Comparison::read(&path).unwrap();
    assert_eq!(html::page(&read), html::page(&written));
    for (text, complaint) in [
        ("{\"schema_version\": 1}", "schema version 1"),
        ("{}", "no schema_version"),
        ("nonsense", "no JSON"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Comparison::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(complaint) && error.contains("run.json"),
            "{error}"
        );
    }
}

#[test]
fn a_baseline_says_what_became_worse() {
    let same = Baseline::of(&run(1.7), &run(1.7));
    assert!(!same.is_worse());
    assert!(same.lines.iter().all(|line| line.agrees));
    assert!(!Baseline::of(&run(1.3), &run(1.7)).is_worse());
    let mut slower = run(1.3);
    slower.machine.kernel = "6.19.0".to_owned();
    slower.scenarios.remove(1);
    let worse = Baseline::of(&run(1.7), &slower);
    assert!(worse.is_worse());
    insta::assert_snapshot!(text::baseline(&worse));
}
