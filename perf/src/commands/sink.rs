//! `spinlane-perf sink`.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use spinlane_perf::measure::{MeasureError, io_error};
use spinlane_perf::packet::{PortRange, Protocol};
use spinlane_perf::progress::Timed;
use spinlane_perf::report;
use spinlane_perf::sink::socket::SocketSink;
use spinlane_perf::sink::tracking::TrackingSink;
use spinlane_perf::sink::{Count, Filter, Hook, Rate, Stamps};
use spinlane_perf::stop::Stop;
use spinlane_perf::terminal::say;

use super::{device, enter, show};
use crate::args::seconds;
use crate::output::Output;

/// `sink`.
#[derive(Debug, Args)]
pub(crate) struct Sink {
    /// Network namespace, a name or a path; the caller's without
    #[arg(long, value_name = "NAME")]
    netns: Option<PathBuf>,
    /// Device whose tc ingress counts
    #[arg(long, default_value = "eth0")]
    dev: String,
    /// Count by an XDP program on the device instead
    #[arg(long, conflicts_with = "socket")]
    xdp: bool,
    /// Count at an ordinary UDP socket instead
    #[arg(long, conflicts_with_all = ["protocol", "vxlan_port"])]
    socket: bool,
    /// What the packets carry
    #[arg(long, value_enum, default_value = "udp")]
    protocol: Protocol,
    /// Destination port or range; a socket takes one
    #[arg(long, value_name = "PORT[-PORT]", default_value = "9")]
    port: PortRange,
    /// The packets are inside VXLAN to this UDP port
    #[arg(long, value_name = "PORT")]
    vxlan_port: Option<u16>,
    /// How many packets were sent: what is missing of them is lost, also
    /// before the first and after the last
    #[arg(long, value_name = "N")]
    expect: Option<u64>,
    /// How long; until Ctrl-C without
    #[arg(long, value_parser = seconds, value_name = "S")]
    seconds: Option<Duration>,
    /// How often to print
    #[arg(long, value_parser = seconds, value_name = "S", default_value = "1")]
    interval: Duration,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What a sink saw in all.
#[derive(Debug, Serialize)]
struct Seen {
    #[serde(flatten)]
    rate: Rate,
    #[serde(flatten)]
    stamps: Stamps,
    loss_ratio: f64,
    reordered_ratio: f64,
    /// Interarrival jitter (RFC 3550), which a socket measures.
    #[serde(skip_serializing_if = "Option::is_none")]
    jitter_us: Option<f64>,
}

/// Either place to count.
enum Place {
    Kernel(Box<TrackingSink>),
    Socket(Arc<SocketSink>),
}

impl Place {
    fn count(&self) -> Result<Count, MeasureError> {
        match self {
            Place::Kernel(sink) => Ok(sink.count()?),
            Place::Socket(sink) => Ok(sink.count()),
        }
    }

    fn stamps(&self) -> Result<(Stamps, Option<f64>), MeasureError> {
        match self {
            Place::Kernel(sink) => Ok((sink.stamps()?, None)),
            Place::Socket(sink) => Ok((sink.stamps(), sink.jitter_us())),
        }
    }
}

/// Counts until the end, and says what was seen.
pub(crate) fn run(arguments: &Sink, stop: &Stop) -> Result<(), MeasureError> {
    enter(arguments.netns.as_deref())?;
    let over = Stop::new();
    let _over = over.on_drop();
    let place = if arguments.socket {
        Place::Socket(listen(arguments.port, &over)?)
    } else {
        let hook = if arguments.xdp { Hook::Xdp } else { Hook::Tc };
        let filter = Filter {
            protocol: arguments.protocol,
            ports: Some(arguments.port),
            tunnel_port: arguments.vxlan_port,
        };
        let ifindex = device(&arguments.dev)?;
        Place::Kernel(Box::new(TrackingSink::attach(ifindex, hook, &filter)?))
    };
    // Text has its lines.
    let silent = arguments.seconds.filter(|_| arguments.output.is_json());
    let timed = Timed::start("counting", silent.unwrap_or_default());
    let rate = watch(arguments, stop, &place)?;
    drop(timed);
    let (mut stamps, jitter_us) = place.stamps()?;
    if let Some(expected) = arguments.expect {
        stamps.order.lost = expected.saturating_sub(stamps.order.received);
    }
    let seen = Seen {
        rate,
        loss_ratio: stamps.order.loss_ratio(),
        reordered_ratio: stamps.order.reordered_ratio(),
        stamps,
        jitter_us,
    };
    show(&arguments.output, &seen, &seen.text())
}

fn listen(ports: PortRange, over: &Stop) -> Result<Arc<SocketSink>, MeasureError> {
    if ports.count() > 1 {
        return Err(MeasureError::Usage {
            what: format!("--port {ports}"),
            detail: "a socket takes one port; leave out --socket to count a range".to_owned(),
        });
    }
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, ports.first()));
    let sink = Arc::new(SocketSink::bind(address).map_err(io_error("sink"))?);
    let running = (sink.clone(), over.clone());
    thread::spawn(move || running.0.run(&running.1));
    Ok(sink)
}

/// How often the counters are looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Prints what is counted every interval; returns the rate in all, from the
/// first packet to the last.
fn watch(arguments: &Sink, stop: &Stop, place: &Place) -> Result<Rate, MeasureError> {
    let began = Instant::now();
    let text = !arguments.output.is_json();
    if text {
        say("counting")?;
    }
    let mut before = (began, place.count()?);
    let (mut printed, mut first, mut last) = (before, before, before);
    loop {
        let over = |limit| began.elapsed() >= limit;
        let whole = stop.sleep(LOOK) && !arguments.seconds.is_some_and(over);
        let now = (Instant::now(), place.count()?);
        if now.1.packets > before.1.packets {
            if before.1.packets == 0 {
                first = before;
            }
            last = now;
        }
        before = now;
        if text && (!whole || now.0.duration_since(printed.0) >= arguments.interval) {
            say(&format!("+ {}", line(&Rate::between(printed, now))))?;
            printed = now;
        }
        if !whole {
            return Ok(Rate::between(first, last));
        }
    }
}

fn line(rate: &Rate) -> String {
    format!(
        "{} packets, {}, {}",
        rate.packets,
        report::quantity(rate.packets_per_second, "packets/s"),
        report::quantity(rate.bytes_per_second * 8.0, "bit/s"),
    )
}

impl Seen {
    fn text(&self) -> String {
        let mut text = format!("total {}", line(&self.rate));
        text.push_str(&super::stamps_text(&self.stamps));
        if let Some(jitter) = self.jitter_us {
            text.push_str(&format!("\njitter {jitter:.1} µs (RFC 3550)"));
        }
        text
    }
}
