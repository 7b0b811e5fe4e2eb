//! What is done to a subject, and the figures that come of it.

mod bar;
mod connections;
mod flows;
mod frames;
mod pods;
mod sockets;
mod tunnel;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cpu::{self, Busy};
use crate::measure::{MeasureError, io_error};
use crate::packet::Protocol;
use crate::rr::Transport;
use crate::stop::Stop;
use crate::subject::{Kind, SENDER_CORE, Subject, Topology};

pub use bar::Bar;
pub use flows::BURST;
pub use sockets::{LOAD_PER_SECOND, under_load};

/// A thing to do to a subject.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// 64-byte frames of one flow, from the in-kernel generator.
    Frames64,
    /// 512-byte frames of one flow, from the in-kernel generator.
    Frames512,
    /// 1400-byte frames of one flow, from the in-kernel generator.
    Frames1400,
    /// 64-byte frames of a thousand flows, from the in-kernel generator.
    Frames64Flows,
    /// 64-byte frames of ten thousand flows, from the in-kernel generator.
    Frames64TenThousandFlows,
    /// 64-byte frames of fifty thousand flows, from the in-kernel generator.
    Frames64FiftyThousandFlows,
    /// 64-byte frames, each of a new flow.
    Churn,
    /// 18-byte datagrams from one socket (`sendmmsg`).
    UdpSend,
    /// One TCP stream.
    Tcp,
    /// Four TCP streams.
    TcpStreams,
    /// 16-byte requests over UDP.
    UdpRr,
    /// 16-byte requests over TCP.
    TcpRr,
    /// `udp-rr` beside a paced stream of small datagrams.
    UdpRrLoad,
    /// `tcp-rr` beside a paced stream of small datagrams.
    TcpRrLoad,
    /// TCP connections, one request and one response each.
    Crr,
    /// 64-byte frames of one flow into the tunnel; its far end counts.
    VxlanEncap,
    /// 64-byte frames of one flow in the tunnel, from its far end to a pod.
    VxlanDecap,
    /// A burst of UDP flows, one packet each, that a masquerading switch opens
    /// connections for.
    NewUdp,
    /// The same of TCP SYN.
    NewTcp,
    /// Pods added and removed by the subject's CNI plugin.
    Pods,
    /// Nothing: what the switch's processes use.
    Idle,
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A rate.
    Higher,
    /// A time or a cost.
    Lower,
}

/// One of the figures that a scenario gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// [`VALUE`], or the name of a detail.
    pub name: &'static str,
    /// What it is, for a reader.
    pub title: &'static str,
    /// Unit.
    pub unit: &'static str,
    /// Which way it is good.
    pub better: Better,
}

/// Name of a scenario's main figure.
pub const VALUE: &str = "value";
/// Name of the detail that says what came through for a second of one core's
/// time, every core's time counted.
pub const PER_CPU_SECOND: &str = "per_cpu_second";

impl Scenario {
    /// The name in tables and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Frames64 => "frames64",
            Scenario::Frames512 => "frames512",
            Scenario::Frames1400 => "frames1400",
            Scenario::Frames64Flows => "frames64-flows",
            Scenario::Frames64TenThousandFlows => "frames64-ten-thousand-flows",
            Scenario::Frames64FiftyThousandFlows => "frames64-fifty-thousand-flows",
            Scenario::Churn => "churn",
            Scenario::UdpSend => "udp-send",
            Scenario::Tcp => "tcp",
            Scenario::TcpStreams => "tcp-streams",
            Scenario::UdpRr => "udp-rr",
            Scenario::TcpRr => "tcp-rr",
            Scenario::UdpRrLoad => "udp-rr-load",
            Scenario::TcpRrLoad => "tcp-rr-load",
            Scenario::Crr => "crr",
            Scenario::VxlanEncap => "vxlan-encap",
            Scenario::VxlanDecap => "vxlan-decap",
            Scenario::NewUdp => "new-udp",
            Scenario::NewTcp => "new-tcp",
            Scenario::Pods => "pods",
            Scenario::Idle => "idle",
        }
    }

    /// What it is, for a reader.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Scenario::Frames64 => "64-byte frames, one flow",
            Scenario::Frames512 => "512-byte frames, one flow",
            Scenario::Frames1400 => "1400-byte frames, one flow",
            Scenario::Frames64Flows => "64-byte frames, 1000 flows",
            Scenario::Frames64TenThousandFlows => "64-byte frames, 10 000 flows",
            Scenario::Frames64FiftyThousandFlows => "64-byte frames, 50 000 flows",
            Scenario::Churn => "64-byte frames, each a new flow",
            Scenario::UdpSend => "18-byte UDP from a socket",
            Scenario::Tcp => "TCP, one stream",
            Scenario::TcpStreams => "TCP, four streams",
            Scenario::UdpRr => "UDP round trip, p50",
            Scenario::TcpRr => "TCP round trip, p50",
            Scenario::UdpRrLoad => "UDP round trip under load, p50",
            Scenario::TcpRrLoad => "TCP round trip under load, p50",
            Scenario::Crr => "TCP connections",
            Scenario::VxlanEncap => "VXLAN encapsulation, 64-byte frames",
            Scenario::VxlanDecap => "VXLAN decapsulation, 64-byte frames",
            Scenario::NewUdp => "new connections, UDP",
            Scenario::NewTcp => "new connections, TCP SYN",
            Scenario::Pods => "pods added and removed",
            Scenario::Idle => "idle processes",
        }
    }

    /// Unit of its main figure.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Scenario::Tcp | Scenario::TcpStreams => "bit/s",
            Scenario::UdpRr | Scenario::TcpRr | Scenario::UdpRrLoad | Scenario::TcpRrLoad => "us",
            Scenario::Crr | Scenario::NewUdp | Scenario::NewTcp => "connections/s",
            Scenario::Pods => "pods/s",
            Scenario::Idle => "% of a core",
            _ => "packets/s",
        }
    }

    /// Which way its main figure is good.
    #[must_use]
    pub fn better(self) -> Better {
        match self.unit() {
            "us" | "% of a core" => Better::Lower,
            _ => Better::Higher,
        }
    }

    /// Its figures that are compared, the main one first.
    #[must_use]
    pub fn figures(self) -> Vec<Figure> {
        let main = Figure {
            name: VALUE,
            title: self.title(),
            unit: self.unit(),
            better: self.better(),
        };
        let second = |name, title, unit, better| Figure {
            name,
            title,
            unit,
            better,
        };
        let (higher, lower) = (Better::Higher, Better::Lower);
        let more = match self {
            Scenario::UdpRr => second("p99_us", "UDP round trip, p99", "us", lower),
            Scenario::TcpRr => second("p99_us", "TCP round trip, p99", "us", lower),
            Scenario::UdpRrLoad => second("p99_us", "UDP round trip under load, p99", "us", lower),
            Scenario::TcpRrLoad => second("p99_us", "TCP round trip under load, p99", "us", lower),
            Scenario::Frames64 => second(
                PER_CPU_SECOND,
                "64-byte frames per CPU-second",
                "packets/CPU-s",
                higher,
            ),
            Scenario::Tcp => second(
                PER_CPU_SECOND,
                "TCP, one stream, per CPU-second",
                "bit/CPU-s",
                higher,
            ),
            _ => return vec![main],
        };
        vec![main, more]
    }

    /// Whether it can be done to a subject at all.
    #[must_use]
    pub fn suits(self, kind: Kind) -> bool {
        match self {
            // A service leads only what is sent to its own ports.
            Scenario::Churn => kind.topology() != Topology::Service,
            Scenario::VxlanEncap | Scenario::VxlanDecap => kind.topology() == Topology::TwoNodes,
            Scenario::NewUdp | Scenario::NewTcp => kind.topology() == Topology::Outside,
            Scenario::Pods => kind.has_plugin(),
            _ => true,
        }
    }

    /// Whether it counts how fast a table of connections fills, so that a
    /// subject which has one has to forget earlier ones first.
    #[must_use]
    pub fn fills_connections(self) -> bool {
        matches!(self, Scenario::NewUdp | Scenario::NewTcp)
    }

    /// How long it takes, about, to do it to a subject.
    #[must_use]
    pub fn takes(self, run: &Run) -> Duration {
        match self {
            Scenario::NewUdp | Scenario::NewTcp => flows::TAKES,
            Scenario::Pods => run.duration,
            Scenario::Idle => IDLE_SETTLE + run.warm_up + run.duration,
            _ => run.warm_up + run.duration,
        }
    }

    /// Does it to a subject that is set up and not paused, until `stop` at the
    /// longest.
    ///
    /// # Errors
    /// When the subject does not carry the traffic, or `stop` ended it before
    /// there was a figure.
    pub fn measure(
        self,
        subject: &dyn Subject,
        run: &Run,
        stop: &Stop,
    ) -> Result<Sample, MeasureError> {
        let frames = |size_bytes, flows| frames::of(subject, run, (size_bytes, flows), stop);
        let requests = |transport, load| sockets::requests(subject, run, (transport, load), stop);
        let mut sample = match self {
            Scenario::Frames64 => frames(64, 1)?,
            Scenario::Frames512 => frames(512, 1)?,
            Scenario::Frames1400 => frames(1400, 1)?,
            Scenario::Frames64Flows => frames(64, 1000)?,
            Scenario::Frames64TenThousandFlows => frames(64, 10_000)?,
            Scenario::Frames64FiftyThousandFlows => frames(64, 50_000)?,
            Scenario::Churn => frames::new_flows(subject, run, stop)?,
            Scenario::UdpSend => frames::datagrams(subject, run, stop)?,
            Scenario::Tcp => sockets::streams(subject, run, 1, stop)?,
            Scenario::TcpStreams => sockets::streams(subject, run, 4, stop)?,
            Scenario::UdpRr => requests(Transport::Udp, false)?,
            Scenario::TcpRr => requests(Transport::Tcp, false)?,
            Scenario::UdpRrLoad => requests(Transport::Udp, true)?,
            Scenario::TcpRrLoad => requests(Transport::Tcp, true)?,
            Scenario::Crr => connections::of(subject, run, stop)?,
            Scenario::VxlanEncap => tunnel::into(subject, run, stop)?,
            Scenario::VxlanDecap => tunnel::out_of(subject, run, stop)?,
            Scenario::NewUdp => flows::of(subject, run, Protocol::Udp, stop)?,
            Scenario::NewTcp => flows::of(subject, run, Protocol::TcpSyn, stop)?,
            Scenario::Pods => pods::of(subject, run, stop)?,
            Scenario::Idle => idle(subject, run, stop)?,
        };
        let busy: f64 = sample.cores_busy.iter().sum();
        // A burst is shorter than the time that cores are watched for.
        let is_burst = matches!(self, Scenario::NewUdp | Scenario::NewTcp);
        if self.better() == Better::Higher && busy > 0.0 && !is_burst {
            let rate = sample.value / busy;
            sample.details.insert(PER_CPU_SECOND.to_owned(), rate);
        }
        Ok(sample)
    }
}

/// How a scenario is run, alike for every subject.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Left out at the start.
    pub warm_up: Duration,
    /// Measured after it.
    pub duration: Duration,
    /// Use IPv6.
    pub v6: bool,
    /// Bind TCP senders and asking sides to [`SENDER_CORE`] too; without, the
    /// scheduler places them, as it does in pods.
    pub pin_sockets: bool,
}

impl Run {
    fn socket_core(&self) -> Option<usize> {
        self.pin_sockets.then_some(SENDER_CORE)
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The main figure, in the scenario's unit.
    pub value: f64,
    /// What else was seen, by name.
    pub details: BTreeMap<String, f64>,
    /// Share of the time that each core was busy, 0 to 1: user, system,
    /// interrupts and softirqs.
    pub cores_busy: Vec<f64>,
    /// Round trip times in nanoseconds, where the scenario has them.
    #[serde(skip)]
    pub latency: Option<Histogram<u64>>,
}

fn busy() -> Result<Busy, MeasureError> {
    Busy::start().map_err(io_error("reading /proc/stat"))
}

impl Sample {
    fn new(
        value: f64,
        details: impl IntoIterator<Item = (&'static str, f64)>,
        busy: Busy,
    ) -> Result<Sample, MeasureError> {
        Ok(Sample {
            value,
            details: details
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            cores_busy: busy.finish().map_err(io_error("reading /proc/stat"))?,
            latency: None,
        })
    }

    /// One of the figures, by its name.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<f64> {
        match name {
            VALUE => Some(self.value),
            _ => self.details.get(name).copied(),
        }
    }
}

/// What resumption and earlier traffic left settles in this time.
const IDLE_SETTLE: Duration = Duration::from_secs(1);

fn idle(subject: &dyn Subject, run: &Run, stop: &Stop) -> Result<Sample, MeasureError> {
    let used = || -> Result<f64, MeasureError> {
        subject.pids().into_iter().try_fold(0.0, |sum, pid| {
            let seconds = cpu::process_seconds(pid).map_err(io_error("reading CPU times"))?;
            Ok(sum + seconds)
        })
    };
    if !stop.sleep(run.warm_up + IDLE_SETTLE) {
        return Err(MeasureError::Interrupted);
    }
    let busy = busy()?;
    let (began, first) = (Instant::now(), used()?);
    if !stop.sleep(run.duration) {
        return Err(MeasureError::Interrupted);
    }
    let share = (used()? - first) / began.elapsed().as_secs_f64();
    Sample::new(share * 100.0, [], busy)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// A node does not forget between connections, so `crr` does not either.
    #[test]
    fn only_bursts_begin_with_an_empty_table() {
        let fill = Scenario::value_variants().iter();
        let fill: Vec<_> = fill.filter(|s| s.fills_connections()).collect();
        assert_eq!(fill, [&Scenario::NewUdp, &Scenario::NewTcp]);
    }

    #[test]
    fn names_are_those_of_the_command_line_and_of_documents() {
        for scenario in Scenario::value_variants() {
            let value = scenario.to_possible_value().unwrap();
            assert_eq!(value.get_name(), scenario.name());
            assert_eq!(serde_json::to_value(scenario).unwrap(), scenario.name());
        }
    }
}
