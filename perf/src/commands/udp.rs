//! `spinlane-perf udp`.

use std::time::Duration;

use clap::Args;
use spinlane_perf::measure::MeasureError;
use spinlane_perf::packet::Sizes;
use spinlane_perf::progress::Timed;
use spinlane_perf::report;
use spinlane_perf::sink::Stamps;
use spinlane_perf::stop::Stop;
use spinlane_perf::subject::{Kind, SENDER_CORE, SERVICES};
use spinlane_perf::udp::{UdpResult, UdpStream, udp};

use super::{show_measured, stamps_text};
use crate::args::seconds;
use crate::output::Output;

/// `udp`.
#[derive(Debug, Args)]
pub(crate) struct Udp {
    /// The switch
    #[arg(long, value_enum, default_value = "spinlane")]
    subject: Kind,
    /// Bytes of a frame, the 4 of its check sequence counted: one size, imix
    /// or a mix such as 64:3,1400:1
    #[arg(long, value_name = "SIZES", default_value = "512")]
    size: Sizes,
    /// Datagrams a second; as fast as it goes without
    #[arg(long, value_name = "PPS", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Sockets that send, each from a port of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=900))]
    flows: u32,
    /// How long
    #[arg(long, value_parser = seconds, value_name = "S", default_value = "2")]
    seconds: Duration,
    /// Let the kernel cut many datagrams from one send
    #[arg(long)]
    gso: bool,
    /// Bind the sender to core 0
    #[arg(long)]
    pin_sockets: bool,
    /// IPv6 instead of IPv4
    #[arg(short = '6', long = "ipv6")]
    v6: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Sends, and says what arrived.
pub(crate) fn run(arguments: &Udp, stop: &Stop) -> Result<(), MeasureError> {
    let subject = arguments.subject.set_up(SERVICES)?;
    let [from, to] = subject.pods();
    let stream = UdpStream {
        sizes: arguments.size.clone(),
        flows: arguments.flows,
        rate: arguments.rate,
        duration: arguments.seconds,
        segmentation: arguments.gso,
        sender_core: arguments.pin_sockets.then_some(SENDER_CORE),
        v6: arguments.v6,
    };
    let timed = Timed::start("UDP", stream.duration);
    let result = udp(&from, &to, &stream, stop)?;
    drop(timed);
    let text = text(arguments.subject.name(), &result);
    show_measured(&arguments.output, &result, &text, stop)
}

fn text(subject: &str, result: &UdpResult) -> String {
    let stamps = Stamps {
        order: result.order,
        latency: result.latency,
        ..Stamps::default()
    };
    let jitter = result.jitter_us.map_or(String::new(), |us| {
        format!("; jitter {us:.1} µs (RFC 3550)")
    });
    format!(
        "{subject}: {}, {}{jitter}{}",
        report::quantity(result.packets_per_second, "packets/s"),
        report::quantity(result.bits_per_second, "bit/s"),
        stamps_text(&stamps),
    )
}
