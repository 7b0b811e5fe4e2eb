//! What is done to a subject, and the one figure that comes of it.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use serde::Serialize;
use spinlane_tests::Namespace;

use crate::cpu::{self, Busy};
use crate::generator::Limit;
use crate::generator::socket::{Datagrams, SocketGenerator};
use crate::generator::xdp::XdpGenerator;
use crate::measure::{MeasureError, io_error};
use crate::packet::{Stream, Template};
use crate::path::Path;
use crate::rr::{RoundTrips, Transport, round_trips};
use crate::sink::Rate;
use crate::sink::tc::TcSink;
use crate::stop::Stop;
use crate::subject::{Kind, Pod, SENDER_CORE, SINK_PORT, Subject};
use crate::tcp::{Bulk, bulk};

const SOURCE_PORT: u16 = 5000;
/// Payload of a small datagram; 60 bytes on an Ethernet wire without FCS.
const SMALL_PAYLOAD_BYTES: usize = 18;

/// A thing to do to a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// 64-byte frames of one flow, from the in-kernel generator.
    Frames64,
    /// 64-byte frames of a thousand flows, from the in-kernel generator.
    Frames64Flows,
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
    /// Nothing: what the switch's processes use.
    Idle,
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A rate.
    Higher,
    /// A time or a cost.
    Lower,
}

/// What a ratio to a peer has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bar {
    /// The ratio.
    pub ratio: f64,
    /// Which side of it passes.
    pub better: Better,
}

impl Bar {
    /// Whether a ratio reaches the bar.
    #[must_use]
    pub fn passes(&self, ratio: f64) -> bool {
        match self.better {
            Better::Higher => ratio >= self.ratio,
            Better::Lower => ratio <= self.ratio,
        }
    }
}

impl Scenario {
    /// Every scenario.
    pub const ALL: [Scenario; 8] = [
        Scenario::Frames64,
        Scenario::Frames64Flows,
        Scenario::UdpSend,
        Scenario::Tcp,
        Scenario::TcpStreams,
        Scenario::UdpRr,
        Scenario::TcpRr,
        Scenario::Idle,
    ];

    /// The name in tables and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Frames64 => "frames64",
            Scenario::Frames64Flows => "frames64-flows",
            Scenario::UdpSend => "udp-send",
            Scenario::Tcp => "tcp",
            Scenario::TcpStreams => "tcp-streams",
            Scenario::UdpRr => "udp-rr",
            Scenario::TcpRr => "tcp-rr",
            Scenario::Idle => "idle",
        }
    }

    /// What it is, for a reader.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Scenario::Frames64 => "64-byte frames, one flow",
            Scenario::Frames64Flows => "64-byte frames, 1000 flows",
            Scenario::UdpSend => "18-byte UDP from a socket",
            Scenario::Tcp => "TCP, one stream",
            Scenario::TcpStreams => "TCP, four streams",
            Scenario::UdpRr => "UDP round trip, p50",
            Scenario::TcpRr => "TCP round trip, p50",
            Scenario::Idle => "idle processes",
        }
    }

    /// Unit of its figure.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Scenario::Frames64 | Scenario::Frames64Flows | Scenario::UdpSend => "packets/s",
            Scenario::Tcp | Scenario::TcpStreams => "bit/s",
            Scenario::UdpRr | Scenario::TcpRr => "us",
            Scenario::Idle => "% of a core",
        }
    }

    /// Which way its figure is good.
    #[must_use]
    pub fn better(self) -> Better {
        match self {
            Scenario::UdpRr | Scenario::TcpRr | Scenario::Idle => Better::Lower,
            _ => Better::Higher,
        }
    }

    /// What Spinlane as shipped has to reach against a peer.
    #[must_use]
    pub fn bar(self, peer: Kind) -> Option<Bar> {
        let ratio = match (self, peer) {
            (Scenario::Frames64, Kind::LinuxBridge) => 1.4,
            (Scenario::Frames64, Kind::OvsAfxdp) => 1.7,
            (Scenario::Tcp, Kind::LinuxBridge) => 0.85,
            (Scenario::Tcp, Kind::OvsAfxdp) => 5.0,
            (Scenario::UdpRr, Kind::LinuxBridge) => 0.6,
            (Scenario::TcpRr, Kind::LinuxBridge) => 0.7,
            _ => return None,
        };
        Some(Bar {
            ratio,
            better: self.better(),
        })
    }

    /// Does it to a subject that is set up and not paused.
    ///
    /// # Errors
    /// When the subject does not carry the traffic, or `stop` ended it.
    pub fn measure(
        self,
        subject: &dyn Subject,
        run: &Run,
        stop: &Stop,
    ) -> Result<Sample, MeasureError> {
        match self {
            Scenario::Frames64 => frames(subject, run, 1, stop),
            Scenario::Frames64Flows => frames(subject, run, 1000, stop),
            Scenario::UdpSend => datagrams(subject, run, stop),
            Scenario::Tcp => streams(subject, run, 1, stop),
            Scenario::TcpStreams => streams(subject, run, 4, stop),
            Scenario::UdpRr => requests(subject, run, Transport::Udp, stop),
            Scenario::TcpRr => requests(subject, run, Transport::Tcp, stop),
            Scenario::Idle => idle(subject, run, stop),
        }
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
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The figure, in the scenario's unit.
    pub value: f64,
    /// What else was seen, by name.
    pub details: BTreeMap<&'static str, f64>,
    /// Share of the time that each core was busy, 0 to 1.
    pub cores_busy: Vec<f64>,
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
            details: details.into_iter().collect(),
            cores_busy: busy.finish().map_err(io_error("reading /proc/stat"))?,
        })
    }
}

/// GRO on at a device for as long as this lives: a veth's far end takes live
/// frames only while it runs NAPI, which GRO (or native XDP) brings.
struct LiveFrames<'a> {
    namespace: &'a Namespace,
    device: String,
    turned_on: bool,
}

impl<'a> LiveFrames<'a> {
    fn allow(namespace: &'a Namespace, device: &str) -> Result<LiveFrames<'a>, MeasureError> {
        let features = namespace.run(&["ethtool", "-k", device])?;
        let is_on = features
            .lines()
            .any(|line| line.trim().starts_with("generic-receive-offload: on"));
        if !is_on {
            namespace.run(&["ethtool", "-K", device, "gro", "on"])?;
        }
        Ok(LiveFrames {
            namespace,
            device: device.to_owned(),
            turned_on: !is_on,
        })
    }
}

impl Drop for LiveFrames<'_> {
    fn drop(&mut self) {
        if self.turned_on {
            let off = ["ethtool", "-K", &self.device, "gro", "off"];
            let _ = self.namespace.run(&off);
        }
    }
}

fn eth0() -> Result<u32, MeasureError> {
    if_nametoindex("eth0").map_err(|errno| io_error("looking for eth0 in a pod")(errno.into()))
}

fn sink(pod: &Pod<'_>) -> Result<TcSink, MeasureError> {
    pod.namespace
        .enter(|| Ok(TcSink::attach(eth0()?, Some(SINK_PORT))?))?
}

fn frames(
    subject: &dyn Subject,
    run: &Run,
    flows: u32,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let [from, to] = subject.pods();
    let _live = LiveFrames::allow(subject.node(), subject.host_end())?;
    let path = Path::resolve(&from, to.address(run.v6))?;
    let template = Template::new(&Stream {
        source_mac: path.source_mac,
        destination_mac: path.next_hop_mac,
        source: from.address(run.v6),
        destination: to.destination(run.v6),
        source_port: SOURCE_PORT,
        destination_port: SINK_PORT,
        size_bytes: 64,
        flows,
    })?;
    sink_counted(&to, run, stop, |over| {
        from.namespace.enter(|| {
            cpu::pin(SENDER_CORE).map_err(io_error("generator"))?;
            let generator = XdpGenerator::new(eth0()?, vec![template])?;
            Ok(generator.run(Limit::default(), over)?.packets)
        })?
    })
}

fn datagrams(subject: &dyn Subject, run: &Run, stop: &Stop) -> Result<Sample, MeasureError> {
    let [from, to] = subject.pods();
    let spec = Datagrams {
        to: (to.destination(run.v6), SINK_PORT).into(),
        source_port: None,
        payload_bytes: SMALL_PAYLOAD_BYTES,
        flows: 1,
        segmentation: false,
    };
    sink_counted(&to, run, stop, |over| {
        from.namespace.enter(|| {
            cpu::pin(SENDER_CORE).map_err(io_error("sender"))?;
            let send = || {
                let generator = SocketGenerator::new(&spec)?;
                generator.run(Limit::default(), over)
            };
            Ok(send().map_err(io_error("sending UDP"))?.packets)
        })?
    })
}

/// Runs a generator until the sink at `to` has been watched for long enough.
fn sink_counted(
    to: &Pod<'_>,
    run: &Run,
    stop: &Stop,
    generate: impl FnOnce(&Stop) -> Result<u64, MeasureError> + Send,
) -> Result<Sample, MeasureError> {
    let sink = sink(to)?;
    let over = Stop::new();
    thread::scope(|scope| {
        let _over = over.on_drop();
        let began = Instant::now();
        let generator = scope.spawn(|| generate(&over));
        if !stop.sleep(run.warm_up) {
            return Err(MeasureError::Interrupted);
        }
        let busy = busy()?;
        let first = (Instant::now(), sink.count()?);
        let whole = stop.sleep(run.duration);
        let rate = Rate::between(first, (Instant::now(), sink.count()?));
        let mut sample = Sample::new(rate.packets_per_second, [], busy)?;
        over.set();
        let sent = generator.join().map_err(|_| MeasureError::Panicked)??;
        let offered = sent as f64 / began.elapsed().as_secs_f64();
        sample.details.insert("offered_per_second", offered);
        match rate.packets {
            _ if !whole => Err(MeasureError::Interrupted),
            0 => Err(MeasureError::Unreachable {
                what: "a frame at the sink",
                seconds: run.duration.as_secs(),
            }),
            _ => Ok(sample),
        }
    })
}

fn streams(
    subject: &dyn Subject,
    run: &Run,
    streams: usize,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let [from, to] = subject.pods();
    let busy = busy()?;
    let what = Bulk {
        streams,
        warm_up: run.warm_up,
        duration: run.duration,
        sender_core: run.socket_core(),
        v6: run.v6,
    };
    let result = bulk(&from, &to, &what, stop)?;
    let details = [
        ("retransmits", result.retransmits as f64),
        ("reordering", result.reordering as f64),
        ("spurious", result.spurious as f64),
    ];
    Sample::new(result.bits_per_second, details, busy)
}

fn requests(
    subject: &dyn Subject,
    run: &Run,
    transport: Transport,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let [from, to] = subject.pods();
    let busy = busy()?;
    let what = RoundTrips {
        transport,
        warm_up: run.warm_up,
        duration: run.duration,
        client_core: run.socket_core(),
        v6: run.v6,
    };
    let result = round_trips(&from, &to, &what, stop)?;
    let details = [
        ("count", result.count as f64),
        ("lost", result.lost as f64),
        ("p90_us", result.p90_us),
        ("p99_us", result.p99_us),
        ("p999_us", result.p999_us),
        ("max_us", result.max_us),
    ];
    Sample::new(result.p50_us, details, busy)
}

fn idle(subject: &dyn Subject, run: &Run, stop: &Stop) -> Result<Sample, MeasureError> {
    let used = || -> Result<f64, MeasureError> {
        subject.pids().into_iter().try_fold(0.0, |sum, pid| {
            let seconds = cpu::process_seconds(pid).map_err(io_error("reading CPU times"))?;
            Ok(sum + seconds)
        })
    };
    // What the resumption and earlier traffic left has to settle first.
    if !stop.sleep(run.warm_up + Duration::from_secs(1)) {
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
    use super::*;

    #[test]
    fn bars_pass_on_their_own_side() {
        let rate = Scenario::Frames64.bar(Kind::LinuxBridge).unwrap();
        assert!(rate.passes(1.4) && rate.passes(2.0) && !rate.passes(1.39));
        let time = Scenario::UdpRr.bar(Kind::LinuxBridge).unwrap();
        assert!(time.passes(0.6) && time.passes(0.3) && !time.passes(0.61));
        assert_eq!(Scenario::Tcp.bar(Kind::SpinlaneBusy), None);
    }
}
