//! `spinlane-perf tcp` and `rr`: sockets in two pods of one switch.

use serde::Serialize;
use spinlane_perf::measure::MeasureError;
use spinlane_perf::progress::Timed;
use spinlane_perf::report;
use spinlane_perf::rr::{RoundTripResult, RoundTrips, round_trips};
use spinlane_perf::scenario::under_load;
use spinlane_perf::stop::Stop;
use spinlane_perf::subject::{SENDER_CORE, SERVICES};
use spinlane_perf::tcp::{Bulk, bulk};

use super::{run_of, show_measured};
use crate::args;

/// Bulk TCP.
pub(super) fn tcp(arguments: &args::Tcp, stop: &Stop) -> Result<(), MeasureError> {
    let subject = arguments.subject.set_up(SERVICES)?;
    let [from, to] = subject.pods();
    let run = run_of(&arguments.measured);
    let timed = Timed::start("TCP", run.warm_up + run.duration);
    let result = bulk(
        &from,
        &to,
        &Bulk {
            streams: arguments.streams.into(),
            warm_up: run.warm_up,
            duration: run.duration,
            sender_core: run.pin_sockets.then_some(SENDER_CORE),
            v6: run.v6,
        },
        stop,
    )?;
    drop(timed);
    let text = format!(
        "{}: {}, {} segments sent again ({} without need), {} reorderings seen",
        arguments.subject.name(),
        report::quantity(result.bits_per_second, "bit/s"),
        result.retransmits,
        result.spurious,
        result.reordering,
    );
    show_measured(&arguments.output, &result, &text, stop)
}

/// What `rr` gives.
#[derive(Debug, Serialize)]
struct Answered {
    #[serde(flatten)]
    result: RoundTripResult,
    /// Datagrams a second that arrived beside them.
    #[serde(skip_serializing_if = "Option::is_none")]
    load_packets_per_second: Option<f64>,
}

/// Round trips, maybe beside a load.
pub(super) fn rr(arguments: &args::Rr, stop: &Stop) -> Result<(), MeasureError> {
    let subject = arguments.subject.set_up(SERVICES)?;
    let [from, to] = subject.pods();
    let run = run_of(&arguments.measured);
    let timed = Timed::start("round trips", run.warm_up + run.duration);
    let trips = RoundTrips {
        transport: arguments.transport,
        warm_up: run.warm_up,
        duration: run.duration,
        client_core: run.pin_sockets.then_some(SENDER_CORE),
        v6: run.v6,
    };
    let ask = || round_trips(&from, &to, &trips, stop);
    let answered = match arguments.load {
        None => Answered {
            result: ask()?,
            load_packets_per_second: None,
        },
        Some(rate) => {
            let (result, carried) = under_load([&from, &to], run.v6, rate, ask)?;
            Answered {
                result,
                load_packets_per_second: Some(carried),
            }
        }
    };
    drop(timed);
    let result = &answered.result;
    let mut text = format!(
        "{}: {} round trips, {} lost; p50 {:.1} µs, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, most {:.1}",
        arguments.subject.name(),
        result.count,
        result.lost,
        result.p50_us,
        result.p90_us,
        result.p99_us,
        result.p999_us,
        result.max_us,
    );
    if let Some(carried) = answered.load_packets_per_second {
        let carried = report::quantity(carried, "packets/s");
        text.push_str(&format!("; beside them {carried} arrived"));
    }
    show_measured(&arguments.output, &answered, &text, stop)
}
