//! TCP streams and round trips between sockets in the pods.

use std::thread;

use crate::generator::Limit;
use crate::measure::MeasureError;
use crate::rr::{RoundTrips, Transport, round_trips};
use crate::scenario::frames::{send_datagrams, sink};
use crate::scenario::{Run, Sample, busy};
use crate::sink::Rate;
use crate::stop::Stop;
use crate::subject::{Pod, SINK_PORT, Subject};
use crate::tcp::{Bulk, bulk};

/// Datagrams a second beside round trips under load, alike for every subject
/// and well below what the slowest of them passes.
pub const LOAD_PER_SECOND: u64 = 50_000;

/// Bulk TCP by so many streams.
pub(super) fn streams(
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

/// Round trips by `(transport, whether under load)`.
pub(super) fn requests(
    subject: &dyn Subject,
    run: &Run,
    (transport, load): (Transport, bool),
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
    let (result, carried) = match load {
        false => (round_trips(&from, &to, &what, stop)?, None),
        true => {
            let ask = || round_trips(&from, &to, &what, stop);
            let (result, carried) = under_load([&from, &to], run.v6, LOAD_PER_SECOND, ask)?;
            (result, Some(carried))
        }
    };
    let details = [
        ("count", result.count as f64),
        ("lost", result.lost as f64),
        ("p90_us", result.p90_us),
        ("p99_us", result.p99_us),
        ("p999_us", result.p999_us),
        ("max_us", result.max_us),
    ];
    let mut sample = Sample::new(result.p50_us, details, busy)?;
    if let Some(carried) = carried {
        let name = "load_packets_per_second".to_owned();
        sample.details.insert(name, carried);
    }
    sample.latency = Some(result.histogram);
    Ok(sample)
}

/// Does `body` beside `rate` small datagrams a second, and says how many of
/// them a second arrived.
///
/// # Errors
/// When `body` fails, or the datagrams cannot be sent.
pub fn under_load<T>(
    [from, to]: [&Pod<'_>; 2],
    v6: bool,
    rate: u64,
    body: impl FnOnce() -> Result<T, MeasureError>,
) -> Result<(T, f64), MeasureError> {
    let sink = sink(to, Some(SINK_PORT))?;
    let over = Stop::new();
    let limit = Limit {
        rate: Some(rate),
        ..Limit::default()
    };
    thread::scope(|scope| {
        let _over = over.on_drop();
        let sender = scope.spawn(|| send_datagrams(from, to, v6, limit, &over));
        let first = (std::time::Instant::now(), sink.count()?);
        let result = body()?;
        let rate = Rate::between(first, (std::time::Instant::now(), sink.count()?));
        over.set();
        sender.join().map_err(|_| MeasureError::Panicked)??;
        Ok((result, rate.packets_per_second))
    })
}
