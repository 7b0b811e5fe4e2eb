//! One trial: frames at a load for a time, and what of them arrived.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cpu;
use crate::generator::live::device_index;
use crate::generator::xdp::{MAX_LIVE_FRAME_BYTES, XdpGenerator};
use crate::generator::{Limit, Sent};
use crate::measure::{MeasureError, io_error};
use crate::packet::{ETHERNET_BYTES, PortRange, Protocol, Sizes, Template, Traffic};
use crate::path::Path;
use crate::sink::latency::Latency;
use crate::sink::tc::TcSink;
use crate::sink::tracking::TrackingSink;
use crate::sink::{Filter, Hook};
use crate::stop::Stop;
use crate::subject::{SENDER_CORE, SINK_PORT, Subject};

const SOURCE_PORT: u16 = 10_000;
/// Source ports of one destination port.
const PORTS: u32 = 50_000;
/// Residual frames are waited for this long at most (RFC 2544, 23).
const RESIDUE: Duration = Duration::from_secs(2);
/// Nothing more comes when nothing came for this long.
const SILENCE: Duration = Duration::from_millis(60);
/// How late a frame may be and still be made up for by a burst.
const SLACK: Duration = Duration::from_millis(1);
/// What the generator's calls may take beside the frames.
const CALLS: Duration = Duration::from_millis(500);
/// A generator that was late for more than this share did not offer the load.
const MAX_LATE_RATIO: f64 = 0.05;

/// Where trials are made: the frames and the ends of one subject.
pub(super) struct Bench<'a> {
    pub(super) subject: &'a dyn Subject,
    template: Template,
    filter: Filter,
    stop: &'a Stop,
}

/// What a trial gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// Intended packets a second; 0 for as fast as it goes.
    pub load: f64,
    /// Packets that the generator sent.
    pub sent: u64,
    /// Packets that the sink counted.
    pub received: u64,
    /// Seconds that the sending took.
    pub seconds: f64,
    /// Of these, seconds in which other work had the generator's core.
    pub preempted_seconds: f64,
    /// Share of the sent that did not arrive; also of the intended, when the
    /// generator did not keep up.
    pub loss_ratio: f64,
}

impl Outcome {
    /// Packets a second that the generator sent.
    pub(super) fn offered_per_second(&self) -> f64 {
        self.sent as f64 / self.seconds.max(1e-9)
    }

    /// Packets a second that arrived.
    pub(super) fn forwarded_per_second(&self) -> f64 {
        self.received as f64 / self.seconds.max(1e-9)
    }
}

impl<'a> Bench<'a> {
    /// For frames of `sizes` in `flows` flows.
    pub(super) fn new(
        subject: &'a dyn Subject,
        v6: bool,
        (sizes, flows): (&Sizes, u32),
        stop: &'a Stop,
    ) -> Result<Bench<'a>, MeasureError> {
        let [from, to] = subject.pods();
        let path = Path::resolve(&from, to.pinged(v6))?;
        if to.service.is_some() && flows > PORTS {
            return Err(MeasureError::Unexpected {
                what: format!("{flows} flows through {}", subject.kind().name()),
                detail: format!("its service has one port, which {PORTS} flows reach"),
            });
        }
        let longest = sizes.largest() - ETHERNET_BYTES;
        if longest as u64 > path.mtu {
            return Err(MeasureError::Unexpected {
                what: format!(
                    "packets of {longest} bytes through {}",
                    subject.kind().name()
                ),
                detail: format!("its route takes {} at most", path.mtu),
            });
        }
        let destination_ports = PortRange::from(SINK_PORT, flows.div_ceil(PORTS));
        let traffic = Traffic {
            flows,
            source_ports: PortRange::from(SOURCE_PORT, flows.min(PORTS)),
            destination_ports,
            stamps: true,
            ..Traffic::udp(
                [path.source_mac, path.next_hop_mac],
                [from.address(v6), to.destination(v6)],
                [SOURCE_PORT, SINK_PORT],
                sizes.clone(),
            )
        };
        Ok(Bench {
            subject,
            template: Template::new(&traffic, MAX_LIVE_FRAME_BYTES)?,
            filter: Filter {
                protocol: Protocol::Udp,
                ports: Some(destination_ports),
                tunnel_port: None,
            },
            stop,
        })
    }

    /// Frames at `load` packets a second, or as fast as it goes at 0.
    pub(super) fn run(&self, load: f64, seconds: f64) -> Result<Outcome, MeasureError> {
        let [_, to] = self.subject.pods();
        let filter = &self.filter;
        let sink = to.namespace.enter(|| {
            Ok::<_, MeasureError>(TcSink::attach_for(device_index("eth0")?, filter)?)
        })??;
        let sent = self.send(load, seconds)?;
        let received = self.settle(sent.packets, || Ok(sink.count()?.packets))?;
        Ok(outcome(load, seconds, sent, received))
    }

    /// The same, with each frame's delay.
    pub(super) fn run_with_latency(
        &self,
        load: f64,
        seconds: f64,
    ) -> Result<(Outcome, Option<Latency>), MeasureError> {
        let [_, to] = self.subject.pods();
        let filter = &self.filter;
        let sink = to.namespace.enter(|| {
            Ok::<_, MeasureError>(TrackingSink::attach(
                device_index("eth0")?,
                Hook::Tc,
                filter,
            )?)
        })??;
        let sent = self.send(load, seconds)?;
        let received = self.settle(sent.packets, || Ok(sink.count()?.packets))?;
        let latency = sink.stamps()?.latency;
        Ok((outcome(load, seconds, sent, received), latency))
    }

    fn send(&self, load: f64, seconds: f64) -> Result<Sent, MeasureError> {
        let [from, _] = self.subject.pods();
        let rate = (load > 0.0).then_some(load.max(1.0) as u64);
        let time = Duration::from_secs_f64(seconds);
        // A paced trial ends with its last frame, however late that is.
        let limit = Limit {
            rate,
            count: rate.map(|rate| ((rate as f64 * seconds) as u64).max(1)),
            duration: Some(if rate.is_some() {
                3 * time + CALLS
            } else {
                time
            }),
            slack: SLACK,
        };
        let (template, stop) = (&self.template, self.stop);
        let sent = from.namespace.enter(|| {
            cpu::pin(SENDER_CORE).map_err(io_error("generator"))?;
            let generator = XdpGenerator::new(device_index("eth0")?, template)?;
            generator.run(limit, stop)
        })??;
        if self.stop.is_set() {
            return Err(MeasureError::Interrupted);
        }
        Ok(sent)
    }

    /// Waits for residual frames.
    fn settle(
        &self,
        sent: u64,
        count: impl Fn() -> Result<u64, MeasureError>,
    ) -> Result<u64, MeasureError> {
        let began = Instant::now();
        let (mut received, mut changed) = (count()?, Instant::now());
        while received < sent && changed.elapsed() < SILENCE && began.elapsed() < RESIDUE {
            thread::sleep(Duration::from_millis(5));
            let now = count()?;
            if now != received {
                (received, changed) = (now, Instant::now());
            }
        }
        Ok(received)
    }
}

fn outcome(load: f64, seconds: f64, sent: Sent, received: u64) -> Outcome {
    let lost = 1.0 - received as f64 / (sent.packets as f64).max(1.0);
    // When other work had the core, frames paused; that is no limit.
    let late = sent.late_seconds - sent.preempted_seconds;
    let late = late / (seconds + late);
    let loss_ratio = if load > 0.0 && late > MAX_LATE_RATIO {
        lost.max(late)
    } else {
        lost.max(0.0)
    };
    Outcome {
        load,
        sent: sent.packets,
        received,
        seconds: sent.seconds,
        preempted_seconds: sent.preempted_seconds,
        loss_ratio,
    }
}
