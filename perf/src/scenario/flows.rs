//! Connections opened by generated packets: a burst of flows, each with one
//! packet and none seen before, which a sink outside counts once each.
//!
//! A table of connections is finite and keeps what never was answered for
//! half a minute, so a burst is no larger than what the kernel's table holds by
//! default, and subjects forget their connections before it
//! ([`Subject::forget_connections`]).

use std::thread;
use std::time::{Duration, Instant};

use crate::cpu;
use crate::generator::Limit;
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
const DESTINATION_PORTS: u32 = 120;
/// Flows of a burst.
pub const BURST: u32 = SOURCE_PORTS * DESTINATION_PORTS;
/// What a burst and what comes before it take, about.
pub(super) const TAKES: Duration = Duration::from_millis(1000);
/// No frame for so long is the end of a burst.
const SILENCE: Duration = Duration::from_millis(60);

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
        flows: BURST,
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
    let limit = Limit {
        count: Some(BURST.into()),
        ..Limit::default()
    };
    let busy = busy()?;
    from.namespace.enter(|| {
        cpu::pin(SENDER_CORE).map_err(io_error("generator"))?;
        XdpGenerator::new(device_index("eth0")?, &template)?.run(limit, stop)
    })??;
    let burst = end_of(&sink)?;
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
        ("offered", f64::from(BURST)),
        ("seconds", burst.seconds),
    ];
    Sample::new(burst.rate(), details, busy)
}

/// Waits until nothing comes any more.
fn end_of(sink: &FlowSink) -> Result<Burst, MeasureError> {
    let (mut burst, mut changed) = (sink.burst()?, Instant::now());
    while burst.flows < BURST.into() && changed.elapsed() < SILENCE {
        thread::sleep(Duration::from_millis(5));
        let now = sink.burst()?;
        if now != burst {
            (burst, changed) = (now, Instant::now());
        }
    }
    Ok(burst)
}
