//! Frames and datagrams that a sink counts.

use std::thread;
use std::time::Instant;

use nix::net::if_::if_nametoindex;
use spinlane_tests::Namespace;

use crate::cpu;
use crate::generator::Limit;
use crate::generator::socket::{Datagrams, SocketGenerator};
use crate::generator::xdp::XdpGenerator;
use crate::measure::{MeasureError, io_error};
use crate::packet::{Stream, Template};
use crate::path::Path;
use crate::scenario::{Run, Sample, busy};
use crate::sink::Rate;
use crate::sink::tc::TcSink;
use crate::stop::Stop;
use crate::subject::{Pod, SENDER_CORE, SINK_PORT, Subject};

const SOURCE_PORT: u16 = 5000;
/// Payload of a small datagram; 60 bytes on an Ethernet wire without FCS.
pub(super) const SMALL_PAYLOAD_BYTES: usize = 18;
/// Flows of one destination port, and destination ports, of [`new_flows`]:
/// 3.2 million, more than any subject passes in a second and keeps in a table.
const FLOWS_OF_A_PORT: u32 = 50_000;
const PORTS: u16 = 64;

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

/// A sink at a pod's device for UDP to `port`, or to any.
pub(super) fn sink(pod: &Pod<'_>, port: Option<u16>) -> Result<TcSink, MeasureError> {
    pod.namespace.enter(|| Ok(TcSink::attach(eth0()?, port)?))?
}

/// Frames of `(size_bytes, flows)` from the in-kernel generator.
pub(super) fn of(
    subject: &dyn Subject,
    run: &Run,
    (size_bytes, flows): (usize, u32),
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let stream = stream(subject, run, size_bytes, flows)?;
    let templates = vec![Template::new(&stream)?];
    generated(subject, run, (templates, Some(SINK_PORT)), stop)
}

/// Frames, each of a flow that was not seen for millions of frames.
pub(super) fn new_flows(
    subject: &dyn Subject,
    run: &Run,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let stream = stream(subject, run, 64, FLOWS_OF_A_PORT)?;
    let templates = (0..PORTS)
        .map(|port| {
            Template::new(&Stream {
                destination_port: 1024 + port,
                ..stream
            })
        })
        .collect::<Result<_, _>>()?;
    generated(subject, run, (templates, None), stop)
}

fn stream(
    subject: &dyn Subject,
    run: &Run,
    size_bytes: usize,
    flows: u32,
) -> Result<Stream, MeasureError> {
    let [from, to] = subject.pods();
    let path = Path::resolve(&from, to.address(run.v6))?;
    Ok(Stream {
        source_mac: path.source_mac,
        destination_mac: path.next_hop_mac,
        source: from.address(run.v6),
        destination: to.destination(run.v6),
        source_port: SOURCE_PORT,
        destination_port: SINK_PORT,
        size_bytes,
        flows,
    })
}

fn generated(
    subject: &dyn Subject,
    run: &Run,
    (templates, port): (Vec<Template>, Option<u16>),
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let [from, to] = subject.pods();
    let _live = LiveFrames::allow(subject.node(), subject.host_end())?;
    sink_counted(sink(&to, port)?, run, stop, |over| {
        from.namespace.enter(|| {
            cpu::pin(SENDER_CORE).map_err(io_error("generator"))?;
            let generator = XdpGenerator::new(eth0()?, templates)?;
            Ok(generator.run(Limit::default(), over)?.packets)
        })?
    })
}

/// Small datagrams from one socket.
pub(super) fn datagrams(
    subject: &dyn Subject,
    run: &Run,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let [from, to] = subject.pods();
    sink_counted(sink(&to, Some(SINK_PORT))?, run, stop, |over| {
        send_datagrams(&from, &to, run.v6, Limit::default(), over)
    })
}

/// Sends small datagrams to the sink's port, as long as `limit` and `over`
/// let it; how many it offered.
pub(super) fn send_datagrams(
    from: &Pod<'_>,
    to: &Pod<'_>,
    v6: bool,
    limit: Limit,
    over: &Stop,
) -> Result<u64, MeasureError> {
    let spec = Datagrams {
        to: (to.destination(v6), SINK_PORT).into(),
        source_port: None,
        payload_bytes: SMALL_PAYLOAD_BYTES,
        flows: 1,
        segmentation: false,
    };
    from.namespace.enter(|| {
        cpu::pin(SENDER_CORE).map_err(io_error("sender"))?;
        let send = || SocketGenerator::new(&spec)?.run(limit, over);
        Ok(send().map_err(io_error("sending UDP"))?.packets)
    })?
}

/// Runs a generator until the sink has been watched for long enough.
fn sink_counted(
    sink: TcSink,
    run: &Run,
    stop: &Stop,
    generate: impl FnOnce(&Stop) -> Result<u64, MeasureError> + Send,
) -> Result<Sample, MeasureError> {
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
        sample
            .details
            .insert("offered_per_second".to_owned(), offered);
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
