//! Commands: from arguments to a printed result.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use serde::Serialize;
use spinlane_perf::generator::Limit;
use spinlane_perf::generator::socket::{Datagrams, SocketGenerator};
use spinlane_perf::generator::xdp::XdpGenerator;
use spinlane_perf::measure::{MeasureError, io_error};
use spinlane_perf::packet::{Stream, Template};
use spinlane_perf::rr::{RoundTrips, round_trips};
use spinlane_perf::scenario::Run;
use spinlane_perf::sink::socket::SocketSink;
use spinlane_perf::sink::tc::TcSink;
use spinlane_perf::sink::{Count, Rate};
use spinlane_perf::stop::Stop;
use spinlane_perf::subject::{SENDER_CORE, SERVICES};
use spinlane_perf::tcp::{Bulk, bulk};
use spinlane_perf::{cpu, demo, micro, node, report};

use crate::args::{self, Arguments, Command, Engine, Output};
use crate::comparing;

/// Does what the arguments say.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode, MeasureError> {
    let stop = Stop::new();
    match arguments.command {
        Command::Pktgen(arguments) => pktgen(&arguments, &stop)?,
        Command::Sink(arguments) => sink(&arguments, &stop)?,
        Command::Tcp(arguments) => tcp(&arguments, &stop)?,
        Command::Rr(arguments) => rr(&arguments, &stop)?,
        Command::Compare(arguments) => return comparing::compare(&arguments, &stop),
        Command::Baseline(arguments) => return comparing::baseline(&arguments),
        Command::Report(arguments) => comparing::report(&arguments)?,
        Command::Cni(arguments) => {
            let result = node::cni(arguments.pods.into(), arguments.calls.into(), &stop)?;
            print(&arguments.output, &result, &result.text())?;
        }
        Command::Idle(arguments) => {
            let result = node::idle(arguments.pods.into(), arguments.seconds, &stop)?;
            print(&arguments.output, &result, &result.text())?;
        }
        Command::Memory(arguments) => {
            let result = node::memory(arguments.pods.into(), &stop)?;
            print(&arguments.output, &result, &result.text())?;
        }
        Command::Lifecycle(arguments) => {
            let result = node::lifecycle(arguments.pods.into(), arguments.rounds.into(), &stop)?;
            print(&arguments.output, &result, &result.text())?;
        }
        Command::Micro(arguments) => return measure_micro(&arguments, &stop),
        Command::Demo(arguments) => {
            demo::run(arguments.pairs.into(), arguments.seconds, &stop)?;
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

/// Prints a result, as JSON too where that was asked for.
pub(crate) fn print(
    output: &Output,
    result: &impl Serialize,
    text: &str,
) -> Result<(), MeasureError> {
    let json = || {
        serde_json::to_string_pretty(result).map_err(|error| MeasureError::Unexpected {
            what: "writing the result as JSON".to_owned(),
            detail: error.to_string(),
        })
    };
    match &output.json {
        Some(path) if path == Path::new("-") => println!("{}", json()?),
        Some(path) => {
            fs::write(path, json()? + "\n")
                .map_err(io_error(format!("writing {}", path.display())))?;
            println!("{text}");
        }
        None => println!("{text}"),
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
    let what = format!("entering the network namespace {}", path.display());
    let file = fs::File::open(&path).map_err(io_error(what.clone()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .map_err(io_error(what))
}

fn device(name: &str) -> Result<u32, MeasureError> {
    if_nametoindex(name)
        .map_err(io::Error::from)
        .map_err(io_error(format!("looking for the device {name}")))
}

fn pktgen(arguments: &args::Pktgen, stop: &Stop) -> Result<(), MeasureError> {
    enter(arguments.netns.as_deref())?;
    if let Some(core) = arguments.core {
        cpu::pin(core).map_err(io_error("pktgen"))?;
    }
    let limit = Limit {
        duration: arguments.seconds,
        count: arguments.count,
        rate: arguments.rate,
    };
    let sent = match arguments.engine {
        Engine::Xdp => {
            let generator = XdpGenerator::new(device(&arguments.dev)?, templates(arguments)?)?;
            generator.run(limit, stop)?
        }
        Engine::Socket => {
            let spec = Datagrams {
                to: SocketAddr::new(arguments.dst, arguments.dport),
                source_port: arguments.sport,
                payload_bytes: arguments.size,
                flows: arguments.flows,
                segmentation: arguments.gso,
            };
            let generator = SocketGenerator::new(&spec).map_err(io_error("opening sockets"))?;
            generator
                .run(limit, stop)
                .map_err(io_error(format!("sending to {}", spec.to)))?
        }
    };
    println!(
        "offered {} packets in {:.2} s, {}",
        sent.packets,
        sent.seconds,
        report::quantity(sent.packets as f64 / sent.seconds, "packets/s")
    );
    Ok(())
}

/// One template a source address.
fn templates(arguments: &args::Pktgen) -> Result<Vec<Template>, MeasureError> {
    let (Some(source_mac), Some(destination_mac), Some(first)) =
        (arguments.src_mac, arguments.dst_mac, arguments.src)
    else {
        return Err(MeasureError::Unexpected {
            what: "pktgen --engine xdp".to_owned(),
            detail: "give --src-mac, --dst-mac and --src".to_owned(),
        });
    };
    (0..arguments.sources)
        .map(|number| {
            let source = match first {
                IpAddr::V4(address) => {
                    Ipv4Addr::from_bits(address.to_bits().wrapping_add(number.into())).into()
                }
                IpAddr::V6(address) => {
                    Ipv6Addr::from_bits(address.to_bits().wrapping_add(number.into())).into()
                }
            };
            Ok(Template::new(&Stream {
                source_mac,
                destination_mac,
                source,
                destination: arguments.dst,
                source_port: arguments.sport.unwrap_or(5000),
                destination_port: arguments.dport,
                size_bytes: arguments.size,
                flows: arguments.flows.into(),
            })?)
        })
        .collect()
}

fn sink(arguments: &args::Sink, stop: &Stop) -> Result<(), MeasureError> {
    enter(arguments.netns.as_deref())?;
    if !arguments.socket {
        let sink = TcSink::attach(device(&arguments.dev)?, Some(arguments.port))?;
        return watch(arguments, stop, || Ok(sink.count()?));
    }
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, arguments.port));
    let sink = Arc::new(SocketSink::bind(address).map_err(io_error("sink"))?);
    let over = Stop::new();
    let _over = over.on_drop();
    let running = (sink.clone(), over.clone());
    thread::spawn(move || running.0.run(&running.1));
    watch(arguments, stop, || Ok(sink.count()))
}

/// Prints what a sink counts, every interval and in all.
fn watch(
    arguments: &args::Sink,
    stop: &Stop,
    count: impl Fn() -> Result<Count, MeasureError>,
) -> Result<(), MeasureError> {
    let line = |what: &str, rate: &Rate| {
        println!(
            "{what} {} packets, {}, {}",
            rate.packets,
            report::quantity(rate.packets_per_second, "packets/s"),
            report::quantity(rate.bytes_per_second * 8.0, "bit/s"),
        );
    };
    let first = (Instant::now(), count()?);
    let mut last = first;
    loop {
        let left = arguments.seconds.map_or(Duration::MAX, |limit| {
            limit.saturating_sub(first.0.elapsed())
        });
        let whole = stop.sleep(arguments.interval.min(left));
        let now = (Instant::now(), count()?);
        let enough = arguments
            .seconds
            .is_some_and(|limit| first.0.elapsed() >= limit);
        line("+", &Rate::between(last, now));
        if !whole || enough {
            line("total", &Rate::between(first, now));
            return Ok(());
        }
        last = now;
    }
}

fn tcp(arguments: &args::Tcp, stop: &Stop) -> Result<(), MeasureError> {
    let subject = arguments.subject.set_up(SERVICES)?;
    let [from, to] = subject.pods();
    let run = run_of(&arguments.measured);
    let result = bulk(
        &from,
        &to,
        &Bulk {
            streams: arguments.streams.into(),
            warm_up: run.warm_up,
            duration: run.duration,
            sender_core: run.pin_sockets.then_some(SENDER_CORE),
            v6: run.v6,
        },
        stop,
    )?;
    let text = format!(
        "{}: {}, {} segments sent again ({} without need), {} reorderings seen",
        arguments.subject.name(),
        report::quantity(result.bits_per_second, "bit/s"),
        result.retransmits,
        result.spurious,
        result.reordering,
    );
    print(&arguments.output, &result, &text)
}

fn rr(arguments: &args::Rr, stop: &Stop) -> Result<(), MeasureError> {
    let subject = arguments.subject.set_up(SERVICES)?;
    let [from, to] = subject.pods();
    let run = run_of(&arguments.measured);
    let result = round_trips(
        &from,
        &to,
        &RoundTrips {
            transport: arguments.transport,
            warm_up: run.warm_up,
            duration: run.duration,
            client_core: run.pin_sockets.then_some(SENDER_CORE),
            v6: run.v6,
        },
        stop,
    )?;
    let text = format!(
        "{}: {} round trips, {} lost; p50 {:.1} µs, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, most {:.1}",
        arguments.subject.name(),
        result.count,
        result.lost,
        result.p50_us,
        result.p90_us,
        result.p99_us,
        result.p999_us,
        result.max_us,
    );
    print(&arguments.output, &result, &text)
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
        println!("{}", micro::single(name)?);
        return Ok(ExitCode::SUCCESS);
    }
    let plan = micro::Plan {
        only: arguments.only.clone(),
        rounds: arguments.rounds.into(),
        with_peer: !arguments.no_peer,
        with_instructions: !arguments.no_instructions,
    };
    let result = micro::run(&plan, stop)?;
    print(&arguments.output, &result, &result.text())?;
    match arguments.enforce && result.misses_a_bar() {
        true => Ok(ExitCode::FAILURE),
        false => Ok(ExitCode::SUCCESS),
    }
}
