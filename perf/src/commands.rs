//! Commands: from arguments to a printed result.

pub(crate) mod pktgen;
pub(crate) mod rfc2544;
mod single;
pub(crate) mod sink;
mod sockets;
pub(crate) mod udp;

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::unistd::geteuid;
use serde::Serialize;
use spinlane_perf::compare::machine::Machine;
use spinlane_perf::measure::{MeasureError, io_error};
use spinlane_perf::scenario::Run;
use spinlane_perf::sink::Stamps;
use spinlane_perf::stop::Stop;
use spinlane_perf::terminal::{say, warn};
use spinlane_perf::{demo, micro, node, report};

use crate::args::{self, Arguments, Command};
use crate::comparing;
use crate::output::{Format, Output, json, print};

/// Does what the arguments say.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode, MeasureError> {
    let stop = Stop::new();
    arguments.command.check_outputs()?;
    if arguments.command.makes_namespaces() {
        check_root()?;
    }
    match arguments.command {
        Command::Pktgen(arguments) => pktgen::run(&arguments, &stop)?,
        Command::Sink(arguments) => sink::run(&arguments, &stop)?,
        Command::Rfc2544(arguments) => rfc2544::run(&arguments, &stop)?,
        Command::Udp(arguments) => udp::run(&arguments, &stop)?,
        Command::Tcp(arguments) => sockets::tcp(&arguments, &stop)?,
        Command::Rr(arguments) => sockets::rr(&arguments, &stop)?,
        Command::Crr(arguments) => single::crr(&arguments, &stop)?,
        Command::Churn(arguments) => single::churn(&arguments, &stop)?,
        Command::Compare(arguments) => return comparing::compare(&arguments, &stop),
        Command::Baseline(arguments) => return comparing::baseline(&arguments),
        Command::Report(arguments) => comparing::report(&arguments)?,
        Command::Cni(arguments) => {
            warn_of_other_work()?;
            let counts = [arguments.pods, arguments.calls, arguments.parallel].map(usize::from);
            let result = node::cni(counts, &stop)?;
            show_measured(&arguments.output, &result, &result.text(), &stop)?;
        }
        Command::Idle(arguments) => {
            let result = node::idle(arguments.pods.into(), arguments.seconds, &stop)?;
            show_measured(&arguments.output, &result, &result.text(), &stop)?;
        }
        Command::Memory(arguments) => {
            let result = node::memory(arguments.pods.into(), &stop)?;
            show_measured(&arguments.output, &result, &result.text(), &stop)?;
        }
        Command::Lifecycle(arguments) => {
            warn_of_other_work()?;
            let result = node::lifecycle(arguments.pods.into(), arguments.rounds.into(), &stop)?;
            show_measured(&arguments.output, &result, &result.text(), &stop)?;
        }
        Command::Micro(arguments) => return measure_micro(&arguments, &stop),
        Command::Demo(arguments) => {
            // JSON has standard output to itself.
            let talk: demo::Say = match arguments.format {
                Format::Table => say,
                Format::Json => |line| {
                    warn(line);
                    Ok(())
                },
            };
            let found = demo::run(arguments.pairs.into(), arguments.seconds, &stop, talk)?;
            if arguments.format == Format::Json {
                say(&json(&document(&found, None))?)?;
            }
        }
        #[cfg(feature = "afxdp-baseline")]
        Command::Forward { devices } => {
            let [left, right] = &devices[..] else {
                return Err(MeasureError::Unexpected {
                    what: "forward".to_owned(),
                    detail: "give two devices".to_owned(),
                });
            };
            spinlane_perf::forwarder::forward([left, right], &stop)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check_root() -> Result<(), MeasureError> {
    match geteuid().is_root() {
        true => Ok(()),
        false => Err(MeasureError::Unexpected {
            what: "without root".to_owned(),
            detail: "no network namespaces can be made; run it as root".to_owned(),
        }),
    }
}

/// Version of the documents that have none of their own. Fields may be added
/// under the same version.
const SCHEMA_VERSION: u32 = 1;

/// A result as a JSON document.
#[derive(Debug, Serialize)]
struct Document<'r, R> {
    schema_version: u32,
    /// Whether it was measured to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    complete: Option<bool>,
    #[serde(flatten)]
    result: &'r R,
}

fn document<R>(result: &R, complete: Option<bool>) -> Document<'_, R> {
    Document {
        schema_version: SCHEMA_VERSION,
        complete,
        result,
    }
}

/// Prints a result in a document of its own.
pub(crate) fn show(
    output: &Output,
    result: &impl Serialize,
    text: &str,
) -> Result<(), MeasureError> {
    print(output, &document(result, None), text)
}

/// Prints what was measured, marked as partial when `stop` ended it early.
pub(crate) fn show_measured(
    output: &Output,
    result: &impl Serialize,
    text: &str,
    stop: &Stop,
) -> Result<(), MeasureError> {
    let complete = !stop.is_set();
    print(output, &document(result, Some(complete)), text)?;
    match complete {
        true => Ok(()),
        false => Err(MeasureError::Partial),
    }
}

/// Says so when the machine has other work, which calls then wait for.
fn warn_of_other_work() -> Result<(), MeasureError> {
    let machine = Machine::look()?;
    let warning = report::busy_elsewhere(&machine, "calls take longer than they need to");
    if let Some(warning) = warning {
        warn(&warning);
    }
    Ok(())
}

/// Moves the calling thread into a namespace given by name or path.
fn enter(netns: Option<&Path>) -> Result<(), MeasureError> {
    let Some(netns) = netns else {
        return Ok(());
    };
    let path = if netns.components().count() == 1 {
        Path::new("/run/netns").join(netns)
    } else {
        netns.to_owned()
    };
    let what = format!("--netns: entering {}", path.display());
    let file = fs::File::open(&path).map_err(io_error(what.clone()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .map_err(io_error(what))
}

fn device(name: &str) -> Result<u32, MeasureError> {
    if_nametoindex(name)
        .map_err(io::Error::from)
        .map_err(io_error(format!("--dev {name}")))
}

/// What stamps said, in lines that begin with a line break.
fn stamps_text(stamps: &Stamps) -> String {
    let order = &stamps.order;
    let mut text = String::new();
    if order.flows > 0 {
        text.push_str(&format!(
            "\n{} of {} flows; lost {} ({:.4} %), twice {}, out of order {} ({:.4} %)",
            order.received,
            order.flows,
            order.lost,
            order.loss_ratio() * 100.0,
            order.duplicates,
            order.reordered,
            order.reordered_ratio() * 100.0,
        ));
        if order.reordered > 0 {
            text.push_str(&format!(", by {} at most", order.largest_distance));
        }
    }
    if let Some(latency) = stamps.latency {
        text.push_str(&format!(
            "\nlatency p50 {:.1} µs, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, least {:.1}, most {:.1}",
            latency.p50_us,
            latency.p90_us,
            latency.p99_us,
            latency.p999_us,
            latency.min_us,
            latency.max_us,
        ));
    }
    for (count, what) in [
        (stamps.unstamped, "had no stamp"),
        (stamps.in_super_frames, "came in super-frames"),
        (
            stamps.untracked,
            "were of more flows, or segments of one super-frame, than are tracked",
        ),
        (order.too_late, "came too late to tell whether again"),
    ] {
        if count > 0 {
            text.push_str(&format!("\n{count} packets {what}"));
        }
    }
    text
}

pub(crate) fn run_of(measured: &args::Measured) -> Run {
    Run {
        warm_up: measured.warm_up,
        duration: measured.seconds,
        v6: measured.v6,
        pin_sockets: measured.pin_sockets,
    }
}

fn measure_micro(arguments: &args::Micro, stop: &Stop) -> Result<ExitCode, MeasureError> {
    if let Some(name) = &arguments.single {
        say(&micro::single(name)?.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        warn("spinlane-perf: built without optimization, so these figures mean nothing");
    }
    let plan = micro::Plan {
        only: arguments.only.clone(),
        rounds: arguments.rounds.into(),
        with_peer: !arguments.no_peer,
        with_instructions: !arguments.no_instructions,
    };
    let result = micro::run(&plan, stop)?;
    print(&arguments.output, &result, &result.text())?;
    if !result.is_complete() {
        return Err(MeasureError::Partial);
    }
    match arguments.enforce && result.misses_a_bar() {
        true => Ok(ExitCode::FAILURE),
        false => Ok(ExitCode::SUCCESS),
    }
}
