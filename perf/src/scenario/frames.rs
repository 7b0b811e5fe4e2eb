//! Frames and datagrams that a sink counts.

use std::thread;
use std::time::{Duration, Instant};

use spinlane_tests::Namespace;

use crate::cpu;
use crate::generator::Limit;
use crate::generator::live::{LiveFrames, device_index};
use crate::generator::socket::{SocketGenerator, SocketOptions};
use crate::generator::xdp::{MAX_LIVE_FRAME_BYTES, XdpGenerator};
use crate::measure::{MeasureError, io_error};
use crate::packet::{FCS_BYTES, Mac, PortRange, Sizes, Template, Traffic};
use crate::path::Path;
use crate::scenario::{Run, Sample, busy};
use crate::sink::Rate;
use crate::sink::tc::TcSink;
use crate::stop::Stop;
use crate::subject::{Pod, SENDER_CORE, SINK_PORT, Subject};

pub(super) const SOURCE_PORT: u16 = 5000;
/// Payload of a small datagram; 60 bytes on an Ethernet wire without FCS.
pub(super) const SMALL_PAYLOAD_BYTES: usize = 18;
/// Flows of one destination port, and destination ports, of [`new_flows`]:
/// 3.2 million, more than any subject passes in a second and keeps in a table.
const FLOWS_OF_A_PORT: u32 = 50_000;
const PORTS: u32 = 64;
/// How long the first packet may take to the sink, and how often it is looked
/// for.
const FIRST_PACKET: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

/// A sink at a pod's device for UDP to `port`, or to any.
pub(super) fn sink(pod: &Pod<'_>, port: Option<u16>) -> Result<TcSink, MeasureError> {
    pod.namespace
        .enter(|| Ok(TcSink::attach(device_index("eth0")?, port)?))?
}

/// Frames of `(size_bytes, flows)` from the in-kernel generator.
pub(super) fn of(
    subject: &dyn Subject,
    run: &Run,
    (size_bytes, flows): (usize, u32),
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let mut traffic = traffic(subject, run, size_bytes)?;
    traffic.flows = flows;
    traffic.source_ports = PortRange::from(SOURCE_PORT, flows);
    generated(subject, run, (&traffic, Some(SINK_PORT)), stop)
}

/// Frames, each of a flow that was not seen for millions of frames.
pub(super) fn new_flows(
    subject: &dyn Subject,
    run: &Run,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let mut traffic = traffic(subject, run, 64)?;
    traffic.source_ports = PortRange::from(SOURCE_PORT, FLOWS_OF_A_PORT);
    traffic.destination_ports = PortRange::from(1024, PORTS);
    traffic.flows = FLOWS_OF_A_PORT * PORTS;
    generated(subject, run, (&traffic, None), stop)
}

/// Frames of `device_bytes` without the frame check sequence, of one flow.
pub(super) fn traffic(
    subject: &dyn Subject,
    run: &Run,
    device_bytes: usize,
) -> Result<Traffic, MeasureError> {
    let [from, to] = subject.pods();
    let path = Path::resolve(&from, to.pinged(run.v6))?;
    Ok(Traffic::udp(
        [path.source_mac, path.next_hop_mac],
        [from.address(run.v6), to.destination(run.v6)],
        [SOURCE_PORT, SINK_PORT],
        Sizes::one(device_bytes + FCS_BYTES),
    ))
}

fn generated(
    subject: &dyn Subject,
    run: &Run,
    (traffic, port): (&Traffic, Option<u16>),
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let [from, to] = subject.pods();
    let _live = LiveFrames::allow(subject.entrance())?;
    let out_of = (from.namespace, "eth0");
    live_frames(out_of, traffic, sink(&to, port)?, run, stop)
}

/// Frames out of a device, whose far end takes live frames, to a sink.
pub(super) fn live_frames(
    (namespace, device): (&Namespace, &str),
    traffic: &Traffic,
    sink: TcSink,
    run: &Run,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let template = Template::new(traffic, MAX_LIVE_FRAME_BYTES)?;
    sink_counted(sink, run, stop, |over| {
        namespace.enter(|| {
            cpu::pin(SENDER_CORE).map_err(io_error("generator"))?;
            let generator = XdpGenerator::new(device_index(device)?, &template)?;
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
    let macs = [Mac([0; 6]); 2]; // the pod's stack has its own
    let addresses = [from.address(v6), to.destination(v6)];
    let headers = if v6 { 62 } else { 42 };
    let sizes = Sizes::one(headers + SMALL_PAYLOAD_BYTES + FCS_BYTES);
    let traffic = Traffic::udp(macs, addresses, [SOURCE_PORT, SINK_PORT], sizes);
    let template = Template::new(&traffic, MAX_LIVE_FRAME_BYTES)?;
    let options = SocketOptions {
        any_source: true,
        any_port: true,
        segmentation: false,
    };
    from.namespace.enter(|| {
        cpu::pin(SENDER_CORE).map_err(io_error("sender"))?;
        let mut generator = SocketGenerator::new(&template, options)?;
        Ok(generator.run(limit, over)?.packets)
    })?
}

/// Runs a generator until the sink has been watched for long enough; the
/// warm-up begins when the first packet is there.
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
        while sink.count()?.packets == 0 {
            if generator.is_finished() || began.elapsed() > FIRST_PACKET {
                break;
            }
            if !stop.sleep(LOOK) {
                return Err(MeasureError::Interrupted);
            }
        }
        if !stop.sleep(run.warm_up) {
            return Err(MeasureError::Interrupted);
        }
        let busy = busy()?;
        let first = (Instant::now(), sink.count()?);
        let is_idle = || sink.count().is_ok_and(|now| now.packets == first.1.packets);
        let whole = stop.watch(run.duration, is_idle);
        let rate = Rate::between(first, (Instant::now(), sink.count()?));
        let mut sample = Sample::new(rate.packets_per_second, [], busy)?;
        over.set();
        let sent = generator.join().map_err(|_| MeasureError::Panicked)??;
        let offered = sent as f64 / began.elapsed().as_secs_f64();
        sample
            .details
            .insert("offered_per_second".to_owned(), offered);
        match rate.packets {
            0 if !whole => Err(MeasureError::Interrupted),
            0 => Err(MeasureError::Unreachable {
                what: "a frame at the sink",
                seconds: began.elapsed().as_secs(),
            }),
            _ => Ok(sample),
        }
    })
}
