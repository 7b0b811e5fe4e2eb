//! Every subject set up from nothing, traffic through it, and nothing left.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use spinlane_perf::measure::MeasureError;
use spinlane_perf::scenario::{Run, Scenario};
use spinlane_perf::stop::Stop;
use spinlane_perf::subject::{Kind, Subject, Topology};
use spinlane_tests::root_or_skip;

const RUN: Run = Run {
    warm_up: Duration::from_millis(50),
    duration: Duration::from_millis(150),
    v6: false,
    pin_sockets: false,
};

/// Opt-in, or in need of a package that only comparisons have; in CI
/// (`.ci/packages bench`) that has to be there.
fn may_be_missing(kind: Kind) -> bool {
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let more = [Kind::TestpmdAfxdp, Kind::NftMasquerade];
    kind == Kind::AfxdpCrate || (more.contains(&kind) && !in_ci)
}

#[test]
fn pods_reach_each_other_through_every_subject() {
    if !root_or_skip("pods_reach_each_other_through_every_subject") {
        return;
    }
    for kind in Kind::value_variants() {
        // Setting up ends with a ping each way over IPv4 and IPv6.
        let mut subject = match kind.set_up(20) {
            Ok(subject) => subject,
            Err(MeasureError::Missing { reason, .. }) => {
                assert!(may_be_missing(*kind), "{}: {reason}", kind.name());
                let line = format!("\n!!! SKIPPED {}: {reason}\n", kind.name());
                // Past the harness, which would swallow it.
                let _ = std::io::stderr().write_all(line.as_bytes());
                continue;
            }
            Err(error) => panic!("{}: {error}", kind.name()),
        };
        // A service's address is on no device: what answers there was
        // translated.
        for v6 in [false, true] {
            let [_, to] = subject.pods();
            let translated = [Topology::Service, Topology::Forwarded];
            let is_service = translated.contains(&kind.topology());
            assert_eq!(to.destination(v6) != to.address(v6), is_service);
            for scenario in [Scenario::UdpRr, Scenario::TcpRr, Scenario::Tcp] {
                let run = Run { v6, ..RUN };
                let sample = scenario
                    .measure(subject.as_ref(), &run, &Stop::new())
                    .unwrap_or_else(|error| panic!("{} {}: {error}", kind.name(), scenario.name()));
                assert!(sample.value > 0.0, "{} {}", kind.name(), scenario.name());
            }
        }
        let generated = [
            Scenario::Frames64,
            Scenario::VxlanEncap,
            Scenario::VxlanDecap,
            Scenario::NewUdp,
            Scenario::NewTcp,
        ];
        for scenario in generated.into_iter().filter(|s| s.suits(*kind)) {
            for v6 in [false, true] {
                let run = Run { v6, ..RUN };
                subject.forget_connections().unwrap();
                subject.reach().unwrap();
                scenario
                    .measure(subject.as_ref(), &run, &Stop::new())
                    .unwrap_or_else(|error| panic!("{} {}: {error}", kind.name(), scenario.name()));
            }
        }
        subject.pause();
        subject.resume();
        subject.reach().unwrap();
        if kind.topology() == Topology::Outside {
            connections_are_forgotten_at_both_ends(subject.as_mut());
        }
    }
}

/// A host outside remembers for a minute what it closed first; not any more when
/// the switch has forgotten it.
fn connections_are_forgotten_at_both_ends(subject: &mut dyn Subject) {
    let over = |subject: &dyn Subject| {
        let [_, host] = subject.pods();
        let list = ["ss", "-Htan", "state", "time-wait"];
        host.namespace.run(&list).unwrap().lines().count()
    };
    let crr = Scenario::Crr.measure(subject, &RUN, &Stop::new());
    assert!(crr.unwrap().value > 0.0);
    assert!(over(subject) > 0);
    subject.forget_connections().unwrap();
    assert_eq!(over(subject), 0);
}
