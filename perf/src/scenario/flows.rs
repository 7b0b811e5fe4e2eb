//! Connections opened by generated packets: a burst of flows, each with one
//! packet and none seen before, which a sink outside counts once each.
//!
//! A table of connections is finite and keeps what never was answered for
//! half a minute, so subjects forget their connections before a burst
//! ([`Subject::forget_connections`]), and it ends when [`BURST`] have come
//! through. Who drops packets gets more of them, until as many connections
//! are open as with one who holds the sender up.

use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::cpu;
use crate::generator::live::{LiveFrames, device_index};
use crate::generator::xdp::{MAX_LIVE_FRAME_BYTES, XdpGenerator};
use crate::measure::{MeasureError, io_error};
use crate::packet::{FCS_BYTES, PortRange, Protocol, Sizes, Template, Traffic};
use crate::scenario::{Run, Sample, busy, frames};
use crate::sink::Filter;
use crate::sink::distinct::{Burst, FlowSink};
use crate::stop::Stop;
use crate::subject::{SENDER_CORE, Subject};

/// Source ports, each used towards each of the destination ports: fewer than
/// the default range of ports that Spinlane leaves with.
const SOURCE_PORTS: u32 = 2000;
const DESTINATION_PORTS: u32 = 1000;
/// Flows that come through: fewer than the kernel's table holds by default
/// (2¹⁸), and than Spinlane's does of one pod (2¹⁷).
pub const BURST: u64 = 120_000;
/// A burst takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the sink is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// What a burst and what comes before it take, about.
pub(super) const TAKES: Duration = Duration::from_millis(700);

/// Flows a second that came through.
pub(super) fn of(
    subject: &dyn Subject,
    run: &Run,
    protocol: Protocol,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let mut traffic = Traffic {
        protocol,
        source_ports: PortRange::from(20_000, SOURCE_PORTS),
        destination_ports: PortRange::from(1024, DESTINATION_PORTS),
        flows: SOURCE_PORTS * DESTINATION_PORTS,
        stamps: true,
        ..frames::traffic(subject, run, 64)?
    };
    traffic.sizes = Sizes::one(traffic.least_bytes().max(64) + FCS_BYTES);
    let template = Template::new(&traffic, MAX_LIVE_FRAME_BYTES)?;
    let filter = Filter {
        protocol,
        ports: Some(traffic.destination_ports),
        tunnel_port: None,
    };
    let [from, to] = subject.pods();
    let sink = to
        .namespace
        .enter(|| Ok::<_, MeasureError>(FlowSink::attach(device_index("eth0")?, &filter)?))??;
    let _live = LiveFrames::allow(subject.entrance())?;
    let busy = busy()?;
    let generator = from.namespace.enter(|| {
        XdpGenerator::new(device_index("eth0")?, &template).map_err(MeasureError::from)
    })??;
    let frames = generator.burst(traffic.flows)?;
    let (offered, burst) = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            from.namespace.enter(|| {
                cpu::pin(SENDER_CORE).map_err(io_error("generator"))?;
                frames.run()
            })?
        });
        let watched = watch(&sink, &sending, stop);
        frames.end()?;
        let offered = sending.join().map_err(|_| MeasureError::Panicked)??;
        Ok::<_, MeasureError>((offered, watched?))
    })?;
    if stop.is_set() {
        return Err(MeasureError::Interrupted);
    }
    if burst.flows < 2 {
        return Err(MeasureError::Unreachable {
            what: "a new flow at the sink",
            seconds: 1,
        });
    }
    let details = [
        ("flows", burst.flows as f64),
        ("offered", offered as f64),
        ("seconds", burst.seconds),
    ];
    Sample::new(burst.rate(), details, busy)
}

/// The burst up to the moment when enough has come, or nothing comes any more.
fn watch(
    sink: &FlowSink,
    sending: &ScopedJoinHandle<'_, Result<u64, MeasureError>>,
    stop: &Stop,
) -> Result<Burst, MeasureError> {
    let began = Instant::now();
    loop {
        let burst = sink.burst()?;
        let is_over = burst.flows >= BURST || sending.is_finished() || began.elapsed() > PATIENCE;
        if is_over || !stop.sleep(LOOK) {
            return Ok(burst);
        }
    }
}
