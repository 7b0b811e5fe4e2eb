//! `spinlane-perf crr` and `churn`: one of `compare`'s scenarios, once, on one
//! switch.

use serde::Serialize;
use spinlane_perf::measure::MeasureError;
use spinlane_perf::progress::Timed;
use spinlane_perf::report;
use spinlane_perf::scenario::{PER_CPU_SECOND, Sample, Scenario};
use spinlane_perf::stop::Stop;
use spinlane_perf::subject::{Kind, SERVICES};

use super::{run_of, show_measured};
use crate::args::{self, Measured};
use crate::output::Output;

/// What came of it; this is the JSON document.
#[derive(Debug, Serialize)]
struct Single {
    subject: &'static str,
    scenario: Scenario,
    unit: &'static str,
    #[serde(flatten)]
    sample: Sample,
}

/// Connections a second.
pub(super) fn crr(arguments: &args::Crr, stop: &Stop) -> Result<(), MeasureError> {
    measure(
        (arguments.subject, Scenario::Crr),
        &arguments.measured,
        &arguments.output,
        stop,
    )
}

/// New flows, or pods, a second.
pub(super) fn churn(arguments: &args::Churn, stop: &Stop) -> Result<(), MeasureError> {
    let scenario = match arguments.pods {
        true => Scenario::Pods,
        false => Scenario::Churn,
    };
    let (measured, output) = (&arguments.measured, &arguments.output);
    measure((arguments.subject, scenario), measured, output, stop)
}

fn measure(
    (kind, scenario): (Kind, Scenario),
    measured: &Measured,
    output: &Output,
    stop: &Stop,
) -> Result<(), MeasureError> {
    if !scenario.suits(kind) {
        return Err(MeasureError::Usage {
            what: format!("--subject {}", kind.name()),
            detail: format!("{} cannot be measured there", scenario.name()),
        });
    }
    let subject = kind.set_up(SERVICES)?;
    let run = run_of(measured);
    let timed = Timed::start(scenario.title(), scenario.takes(&run));
    let result = Single {
        subject: kind.name(),
        scenario,
        unit: scenario.unit(),
        sample: scenario.measure(subject.as_ref(), &run, stop)?,
    };
    drop(timed);
    show_measured(output, &result, &result.text(), stop)
}

impl Single {
    fn text(&self) -> String {
        let sample = &self.sample;
        let detail = |name| sample.details.get(name).copied();
        let mut text = format!(
            "{}: {}: {}",
            self.subject,
            self.scenario.title(),
            report::quantity(sample.value, self.unit)
        );
        for (name, what) in [("add_mean_ms", "ADD"), ("del_mean_ms", "DEL")] {
            if let Some(mean) = detail(name) {
                text.push_str(&format!("; {what} {mean:.1} ms in the mean"));
            }
        }
        if let Some(rate) = detail(PER_CPU_SECOND) {
            let rate = report::quantity(rate, self.unit);
            text.push_str(&format!("; {rate} for a CPU-second"));
        }
        let busy: Vec<String> = sample
            .cores_busy
            .iter()
            .map(|share| format!("{:.0}", share * 100.0))
            .collect();
        text + &format!("; cores {} % busy", busy.join(" + "))
    }
}
