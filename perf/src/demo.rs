//! The switch in a minute, for somebody who sees it for the first time.
//!
//! A node in a namespace runs the real agent; two pods are attached by the
//! real plugin, as a container runtime would; they ping each other; then TCP
//! and small packets run through the switch and, in turns, through a Linux
//! bridge. Everything is gone afterwards, also after Ctrl-C.

use std::path::PathBuf;
use std::time::Duration;

use comfy_table::Cell;
use serde::Serialize;
use spinlane_api::view::{Drops, Port, PortKind, Status};
use spinlane_tests::{Node, wait_for};

use crate::compare::{Comparison, Field, Outcome, Plan};
use crate::measure::MeasureError;
use crate::progress::Progress;
use crate::report::{figure, other_work, quantity, table};
use crate::scenario::{Better, Run, Scenario};
use crate::stop::Stop;
use crate::subject::{Kind, SERVICES, Spinlane, Subject, ping};

const SCENARIOS: [Scenario; 4] = [
    Scenario::Tcp,
    Scenario::Frames64,
    Scenario::UdpSend,
    Scenario::UdpRr,
];
const WARM_UP: Duration = Duration::from_millis(300);

/// What the demo found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The measurements.
    comparison: Comparison,
    /// What the switch itself counted.
    #[serde(flatten)]
    counters: Option<Counters>,
}

/// What the switch counted, as `spinlane` shows it.
#[derive(Debug, Serialize)]
struct Counters {
    status: Status,
    ports: Vec<Port>,
    drops: Drops,
}

/// Who listens to what the demo says.
pub type Say = fn(&str) -> Result<(), MeasureError>;

/// Runs the demo and says what it does and finds.
///
/// # Errors
/// When a step fails, or on Ctrl-C; everything is removed then, too.
pub fn run(pairs: usize, duration: Duration, stop: &Stop, say: Say) -> Result<Found, MeasureError> {
    say("Spinlane: a node, two pods and a Linux bridge beside it, all in namespaces of")?;
    say("their own. Nothing of it touches this machine's network.\n")?;
    let found = show(pairs, duration, stop, say)?;
    // Every value that stood for a namespace or a process is gone by now; the
    // lab's own directory and watcher are not.
    spinlane_tests::finish();
    match &left_behind()[..] {
        [] => say("\nEverything is removed: no namespaces, no processes, no files.")?,
        left => say(&format!("\nStill there: {}", left.join(", ")))?,
    }
    Ok(found)
}

fn show(pairs: usize, duration: Duration, stop: &Stop, say: Say) -> Result<Found, MeasureError> {
    let check = || match stop.is_set() {
        true => Err(MeasureError::Interrupted),
        false => Ok(()),
    };
    let spinlane = Spinlane::set_up(Kind::Spinlane)?;
    introduce(&spinlane, say)?;
    check()?;
    let [from, to] = spinlane.pods();
    for (family, address) in [("IPv4", to.v4), ("IPv6", to.v6)] {
        let answer = wait_for("an answer to a ping", Duration::from_secs(5), || {
            ping(from.namespace, address).ok()
        })?;
        say(&format!(
            "  ping {family}   {address} answers{}",
            round_trip(&answer)
        ))?;
    }
    check()?;
    let bridge = Kind::LinuxBridge.set_up(SERVICES)?;
    say("  beside it   a Linux bridge with two pods, GSO on, MTU 1500\n")?;
    let plan = Plan {
        entries: Plan::crossed(&[Kind::Spinlane, Kind::LinuxBridge], &SCENARIOS),
        pairs,
        services: SERVICES,
        run: Run {
            warm_up: WARM_UP,
            duration,
            v6: false,
            pin_sockets: false,
        },
    };
    let mut field = Field::of(vec![Box::new(spinlane), bridge]);
    let progress = Progress::start(plan.measurements());
    let comparison = field.run(&plan, &progress, stop)?;
    drop(progress);
    check()?;
    say(&comparison_table(&comparison))?;
    say(&format!(
        "Medians of {pairs} rounds of {:.1} s each, taken in turns; a sink in the receiving pod\n\
         counts the packets, the receiver the bytes.\n",
        duration.as_secs_f64()
    ))?;
    if let Some(warning) = other_work(&comparison) {
        say(&format!("{warning}\n"))?;
    }
    let agent = field.resume(Kind::Spinlane).and_then(Subject::agent);
    let counters = agent.map(Counters::of).transpose()?;
    if let Some(counters) = &counters {
        counters.say(say)?;
    }
    Ok(Found {
        comparison,
        counters,
    })
}

/// The node and its pods, a line each.
fn introduce(spinlane: &Spinlane, say: Say) -> Result<(), MeasureError> {
    if let Some(agent) = spinlane.agent() {
        let status = agent.status()?;
        say(&format!(
            "  node        agent {} ready after {} ms, {}",
            status.version,
            agent.ready_after().as_millis(),
            lanes(&status)
        ))?;
    }
    for (number, (pod, took)) in spinlane
        .pods()
        .iter()
        .zip(spinlane.attach_times())
        .enumerate()
    {
        say(&format!(
            "  pod {}       {} and {}, attached by spinlane-cni in {} ms",
            number + 1,
            pod.v4,
            pod.v6,
            took.as_millis()
        ))?;
    }
    Ok(())
}

fn lanes(status: &Status) -> String {
    let cores: Vec<String> = status.lanes.iter().map(|l| l.core.to_string()).collect();
    let (lanes, cores_word) = match cores.len() {
        1 => ("one lane".to_owned(), "core"),
        n => (format!("{n} lanes"), "cores"),
    };
    format!(
        "{lanes} on {cores_word} {}, {}",
        cores.join(", "),
        status.poll
    )
}

/// `, 0.045 ms` from what ping printed.
fn round_trip(answer: &str) -> String {
    answer
        .split("time=")
        .nth(1)
        .and_then(|rest| rest.lines().next())
        .map_or_else(String::new, |time| format!(" in {}", time.trim()))
}

fn comparison_table(comparison: &Comparison) -> String {
    let mut table = table(["pod to pod", "spinlane", "linux-bridge", ""].map(Cell::new));
    for outcome in &comparison.scenarios {
        let median = |kind: Kind| {
            let result = outcome.results.get(kind.name());
            figure(
                result
                    .and_then(|result| result.median)
                    .map_or("failed".to_owned(), |m| quantity(m.value, &outcome.unit)),
            )
        };
        table.add_row(vec![
            Cell::new(outcome.scenario.title()),
            median(Kind::Spinlane),
            median(Kind::LinuxBridge),
            Cell::new(verdict(outcome)),
        ]);
    }
    table.to_string()
}

/// `1.42 × the bridge's rate`.
fn verdict(outcome: &Outcome) -> String {
    let what = match outcome.better {
        Better::Higher => "rate",
        Better::Lower => "time",
    };
    outcome
        .verdicts
        .first()
        .map_or_else(String::new, |verdict| {
            format!("{:.2} × the bridge's {what}", verdict.median.value)
        })
}

impl Counters {
    /// What the switch itself says it did.
    fn of(agent: &Node) -> Result<Counters, MeasureError> {
        Ok(Counters {
            status: agent.status()?,
            ports: agent.ports()?,
            drops: agent.drops()?,
        })
    }

    fn say(&self, say: Say) -> Result<(), MeasureError> {
        let Counters { status, drops, .. } = self;
        let mut ports = table(["port", "of", "received", "sent", "dropped"].map(Cell::new));
        for port in &self.ports {
            ports.add_row(vec![
                Cell::new(&port.name),
                Cell::new(owner(port)),
                figure(format!("{} packets", grouped(port.rx_packets))),
                figure(format!("{} packets", grouped(port.tx_packets))),
                figure(grouped(port.drops)),
            ]);
        }
        say(&format!(
            "What the switch counted (`spinlane ports`, `status`, `drops`):\n{ports}"
        ))?;
        say(&format!(
            "frames: {} of {} free, {} in use",
            grouped(status.frames.free),
            grouped(status.frames.total),
            grouped(status.frames.in_use)
        ))?;
        let happened: Vec<String> = drops
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(reason, count)| format!("{reason} {}", grouped(*count)))
            .collect();
        match happened[..] {
            [] => say(&format!(
                "drops: none, of {} reasons that it counts",
                drops.len()
            ))?,
            _ => say(&format!("drops: {}", happened.join(", ")))?,
        }
        Ok(())
    }
}

fn owner(port: &Port) -> String {
    match port.kind {
        PortKind::Pod => format!("pod {}/{}", port.namespace, port.pod),
        PortKind::Uplink => "the uplink".to_owned(),
        PortKind::Host => "the node itself".to_owned(),
    }
}

/// `12 345 678`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Namespaces and files of this process that still have a name.
fn left_behind() -> Vec<String> {
    let pid = std::process::id();
    let places = [
        (PathBuf::from("/run/netns"), format!("sl{pid}-")),
        (std::env::temp_dir(), format!("spinlane-lab-{pid}")),
    ];
    let mut left = Vec::new();
    for (dir, prefix) in places {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        left.extend(
            entries
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
                .map(|entry| entry.path().display().to_string()),
        );
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1 000"),
            (12_345_678, "12 345 678"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn the_round_trip_is_read_from_ping() {
        let answer = "64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.045 ms\n\n--- 10";
        assert_eq!(round_trip(answer), " in 0.045 ms");
        assert_eq!(round_trip("nothing"), "");
    }
}
