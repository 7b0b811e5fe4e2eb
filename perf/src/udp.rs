//! A UDP stream between two pods, as applications have it: sockets at both
//! ends, every datagram numbered and timed.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cpu;
use crate::generator::socket::{SocketGenerator, SocketOptions};
use crate::generator::{Limit, Sent};
use crate::measure::{MeasureError, io_error};
use crate::packet::{ETHERNET_BYTES, FCS_BYTES, Mac, PortRange, Sizes, Template, Traffic};
use crate::path::Path;
use crate::sink::flow::Order;
use crate::sink::latency::Latency;
use crate::sink::socket::SocketSink;
use crate::stop::Stop;
use crate::subject::{Pod, SINK_PORT};

const SOURCE_PORT: u16 = 5000;
/// The last datagrams are waited for this long at most.
const RESIDUE: Duration = Duration::from_secs(2);
/// Nothing more comes when nothing came for this long.
const SILENCE: Duration = Duration::from_millis(200);

/// What to send.
#[derive(Debug, Clone, PartialEq)]
pub struct UdpStream {
    /// Frame sizes, with the check sequence.
    pub sizes: Sizes,
    /// Sockets, each with a source port.
    pub flows: u32,
    /// Datagrams a second; as fast as it goes without.
    pub rate: Option<u64>,
    /// How long.
    pub duration: Duration,
    /// Let the kernel cut many datagrams from one send.
    pub segmentation: bool,
    /// Core that the sender is bound to; the scheduler's choice without.
    pub sender_core: Option<usize>,
    /// IPv6 instead of IPv4.
    pub v6: bool,
}

/// What the receiver saw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UdpResult {
    /// Datagrams that the sender handed to its kernel.
    pub offered_packets: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Datagrams a second that the receiver read.
    pub packets_per_second: f64,
    /// Bits of payload a second that the receiver read.
    pub bits_per_second: f64,
    /// Share of the offered that the receiver did not read.
    pub loss_ratio: f64,
    /// Duplicates and order; `lost` counts all that are missing.
    pub order: Order,
    /// The largest interarrival jitter of a flow (RFC 3550).
    pub jitter_us: Option<f64>,
    /// One-way delays from socket to socket.
    pub latency: Option<Latency>,
}

/// Runs the stream from `from` to `to`.
///
/// # Errors
/// When sizes do not fit the path, nothing arrives, or `stop` ended it early.
pub fn udp(
    from: &Pod<'_>,
    to: &Pod<'_>,
    run: &UdpStream,
    stop: &Stop,
) -> Result<UdpResult, MeasureError> {
    let path = Path::resolve(from, to.address(run.v6))?;
    let largest = path.mtu as usize + ETHERNET_BYTES + FCS_BYTES;
    let traffic = Traffic {
        flows: run.flows,
        source_ports: PortRange::from(SOURCE_PORT, run.flows),
        stamps: true,
        ..Traffic::udp(
            [Mac([0; 6]); 2], // the pod's stack has its own
            [from.address(run.v6), to.destination(run.v6)],
            [SOURCE_PORT, SINK_PORT],
            run.sizes.clone(),
        )
    };
    let template = Template::new(&traffic, largest)?;
    let sink = to
        .namespace
        .enter(|| SocketSink::bind((to.address(run.v6), SINK_PORT).into()))?
        .map_err(io_error("listening for UDP in the receiving pod"))?;
    let over = Stop::new();
    thread::scope(|scope| {
        let _over = over.on_drop();
        let receiver = scope.spawn(|| sink.run(&over));
        let sent = send(from, run, &template, stop)?;
        settle(&sink, sent.packets);
        over.set();
        receiver
            .join()
            .map_err(|_| MeasureError::Panicked)?
            .map_err(io_error("receiving UDP"))?;
        if stop.is_set() && sink.count().packets == 0 {
            return Err(MeasureError::Interrupted);
        }
        result(&sink, sent)
    })
}

fn send(
    from: &Pod<'_>,
    run: &UdpStream,
    template: &Template,
    stop: &Stop,
) -> Result<Sent, MeasureError> {
    let options = SocketOptions {
        any_source: true,
        any_port: true,
        segmentation: run.segmentation,
    };
    let limit = Limit {
        duration: Some(run.duration),
        rate: run.rate,
        ..Limit::default()
    };
    from.namespace.enter(|| {
        if let Some(core) = run.sender_core {
            cpu::pin(core).map_err(io_error("sender"))?;
        }
        SocketGenerator::new(template, options)?.run(limit, stop)
    })?
}

fn settle(sink: &SocketSink, sent: u64) {
    let began = Instant::now();
    let (mut received, mut changed) = (sink.count().packets, Instant::now());
    while received < sent && changed.elapsed() < SILENCE && began.elapsed() < RESIDUE {
        thread::sleep(Duration::from_millis(5));
        let now = sink.count().packets;
        if now != received {
            (received, changed) = (now, Instant::now());
        }
    }
}

fn result(sink: &SocketSink, sent: Sent) -> Result<UdpResult, MeasureError> {
    let count = sink.count();
    if count.packets == 0 {
        return Err(MeasureError::Unreachable {
            what: "a datagram in the receiving pod",
            seconds: sent.seconds.ceil() as u64,
        });
    }
    let stamps = sink.stamps();
    let mut order = stamps.order;
    order.lost = sent.packets.saturating_sub(order.received);
    let seconds = sent.seconds.max(1e-9);
    Ok(UdpResult {
        offered_packets: sent.packets,
        seconds: sent.seconds,
        packets_per_second: order.received as f64 / seconds,
        bits_per_second: count.bytes as f64 * 8.0 / seconds,
        loss_ratio: order.loss_ratio(),
        order,
        jitter_us: sink.jitter_us(),
        latency: stamps.latency,
    })
}
