//! `spinlane-perf rfc2544`.

use std::time::Duration;

use clap::Args;
use spinlane_perf::measure::MeasureError;
use spinlane_perf::packet::Sizes;
use spinlane_perf::progress::Progress;
use spinlane_perf::rfc2544::{self, Plan, page, report};
use spinlane_perf::stop::Stop;
use spinlane_perf::subject::{Kind, SERVICES};
use spinlane_perf::terminal::say;

use crate::args::seconds;
use crate::output::{Output, Reports, print};

/// `rfc2544`.
#[derive(Debug, Args)]
pub(crate) struct Rfc2544 {
    /// The switch
    #[arg(long, value_enum, default_value = "spinlane")]
    subject: Kind,
    /// Bytes of a frame with its check sequence, one or several, or imix.
    /// Over IPv6 the smallest is 84, which holds the headers and a stamp
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = size,
          default_value = "64,128,256,512,1024,1280,1518,imix")]
    sizes: Vec<Sizes>,
    /// Numbers of flows
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,1000,100000",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: Vec<u32>,
    /// Seconds of a full trial; 60 is the RFC's
    #[arg(long, value_parser = seconds, value_name = "S", default_value = "1")]
    trial_seconds: Duration,
    /// Full trials that decide about a load
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    trials: u32,
    /// Trials of each latency; 20 is the RFC's
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    latency_trials: u32,
    /// Width of the throughput's interval, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, value_parser = percent)]
    width: f64,
    /// Loss of the partial drop rate, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.5, value_parser = percent)]
    partial_loss: f64,
    /// Leave out the frame loss rate curve
    #[arg(long)]
    no_loss_curve: bool,
    /// IPv6 instead of IPv4
    #[arg(short = '6', long = "ipv6")]
    v6: bool,
    /// Only say how long it takes
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) reports: Reports,
}

/// Commas part sizes here, so a mix of one's own has no place.
fn size(text: &str) -> Result<Sizes, String> {
    text.parse()
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|percent| (0.01..=50.0).contains(percent))
        .ok_or_else(|| format!("{text:?} is no percentage between 0.01 and 50"))
}

/// The RFC's smallest frames hold no IPv6 with a stamp.
fn with_room_for_v6(sizes: &Sizes) -> Sizes {
    if *sizes == Sizes::one(64) {
        Sizes::one(84)
    } else if *sizes == Sizes::imix() {
        Sizes::spread(&[(84, 7), (594, 4), (1518, 1)])
    } else {
        sizes.clone()
    }
}

/// Measures, and prints what came of it, also when it was interrupted.
pub(crate) fn run(arguments: &Rfc2544, stop: &Stop) -> Result<(), MeasureError> {
    let sizes = if arguments.v6 {
        arguments.sizes.iter().map(with_room_for_v6).collect()
    } else {
        arguments.sizes.clone()
    };
    let plan = Plan {
        sizes,
        flows: arguments.flows.clone(),
        v6: arguments.v6,
        trial_seconds: arguments.trial_seconds.as_secs_f64(),
        trials: arguments.trials,
        width: arguments.width / 100.0,
        partial_loss: arguments.partial_loss / 100.0,
        latency_trials: arguments.latency_trials,
        loss_curve: !arguments.no_loss_curve,
    };
    if arguments.dry_run {
        return say(&report::plan(&plan));
    }
    let progress = Progress::expecting(plan.steps(), plan.estimate());
    progress.says(&format!("setting {} up", arguments.subject.name()));
    let subject = arguments.subject.set_up(SERVICES)?;
    let result = rfc2544::run(subject.as_ref(), &plan, &progress, stop)?;
    drop(progress);
    let reports = &arguments.reports;
    let written = reports.write(|| report::markdown(&result), || page::page(&result));
    print(&arguments.output, &result, &report::text(&result))?;
    written?;
    if stop.is_set() {
        return Err(MeasureError::Partial);
    }
    match result.cases.iter().find_map(|case| case.failure.as_ref()) {
        Some(failure) => Err(MeasureError::Unexpected {
            what: "rfc2544 is not complete".to_owned(),
            detail: failure.clone(),
        }),
        None => Ok(()),
    }
}
