//! Every subject set up from nothing, traffic through it, and nothing left.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use nix::net::if_::if_nametoindex;
use spinlane_perf::measure::MeasureError;
use spinlane_perf::packet::Protocol;
use spinlane_perf::path::Path;
use spinlane_perf::scenario::{Run, Scenario};
use spinlane_perf::sink::tracking::TrackingSink;
use spinlane_perf::sink::{Filter, Hook};
use spinlane_perf::stop::Stop;
use spinlane_perf::subject::{Kind, Subject, Topology};
use spinlane_tests::{root_or_skip, wait_for};

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

/// Whose turn it is: what a flood has no room for in the CPUs' backlogs may be
/// anybody's packets.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn pods_reach_each_other_through_every_subject() {
    if !root_or_skip("pods_reach_each_other_through_every_subject") {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
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

/// How often frames are sent for all of them to come.
const RUNS: u32 = 10;

/// Frames that a port of the switch had no room for.
fn dropped(subject: &dyn Subject) -> u64 {
    let drops = subject.agent().unwrap().drops().unwrap();
    drops["rx_no_frame"] + drops["rx_ring_full"]
}

/// By AF_XDP out of a pod's own device, with the program's own command: every
/// frame reaches the other pod, and is told apart though the switch may have put
/// several together. What is longer than the pod's route takes is told of.
#[test]
fn frames_of_a_pods_own_queue_cross_the_switch() {
    if !root_or_skip("frames_of_a_pods_own_queue_cross_the_switch") {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let subject = Kind::Spinlane.set_up(0).unwrap();
    let [from, to] = subject.pods();
    let filter = Filter {
        protocol: Protocol::Udp,
        ports: Some("9".parse().unwrap()),
        tunnel_port: None,
    };
    for v6 in [false, true] {
        let path = Path::resolve(&from, to.address(v6)).unwrap();
        let next_hop = path.next_hop_mac.to_string();
        let address = to.address(v6).to_string();
        let send = |size: &str| {
            from.namespace
                .command(env!("CARGO_BIN_EXE_spinlane-perf"))
                .args(["pktgen", "--engine", "afxdp", "--count", "1000"])
                .args(["--rate", "2000", "--size", size])
                .args(["--dst", &address, "--dst-mac", &next_hop])
                .output()
                .unwrap()
        };
        // While its lane waits for a CPU a port has room for no more than some.
        // What it lost for that it tells, and once in a while it loses nothing.
        let is_whole = (0..RUNS).any(|_| {
            let sink = to.namespace.enter(|| {
                TrackingSink::attach(if_nametoindex("eth0").unwrap(), Hook::Tc, &filter).unwrap()
            });
            let sink = sink.unwrap();
            let before = dropped(subject.as_ref());
            let output = send("100");
            assert!(output.status.success(), "{output:?}");
            assert_eq!(output.stderr, b"", "{output:?}");
            let _ = wait_for("the frames", Duration::from_secs(3), || {
                let told = dropped(subject.as_ref()) - before;
                (sink.count().unwrap().packets + told >= 1000).then_some(())
            });
            let order = sink.stamps().unwrap().order;
            let told = dropped(subject.as_ref()) - before;
            assert!(order.received + told >= 1000, "{order:?}, {told} told");
            let odd = (order.flows, order.duplicates, order.reordered);
            assert_eq!(odd, (1, 0, 0), "{order:?}");
            (order.received, order.lost) == (1000, 0)
        });
        assert!(is_whole, "some were lost in each of {RUNS} runs");
        let told = String::from_utf8(send("1600").stderr).unwrap();
        assert!(told.contains("takes 1500"), "{told}");
        assert!(told.contains("--size 1518 fits"), "{told}");
    }
}
