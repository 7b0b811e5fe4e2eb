//! Pods added and removed, one after another, by the subject's CNI plugin as
//! a container runtime calls it. The pods' namespaces are made outside of the
//! time that counts.

use std::time::{Duration, Instant};

use crate::measure::MeasureError;
use crate::scenario::{Run, Sample, busy};
use crate::stop::Stop;
use crate::subject::Subject;

/// Pods a second, each added and removed.
pub(super) fn of(subject: &dyn Subject, run: &Run, stop: &Stop) -> Result<Sample, MeasureError> {
    let busy = busy()?;
    let began = Instant::now();
    let (mut adding, mut removing) = (Duration::ZERO, Duration::ZERO);
    let mut count = 0u32;
    while began.elapsed() < run.duration || count == 0 {
        if stop.is_set() && count == 0 {
            return Err(MeasureError::Interrupted);
        }
        if stop.is_set() {
            break;
        }
        let [added, removed] = match subject.cycle_pod() {
            // A terminal's Ctrl-C also ends the plugin.
            Err(_) if stop.is_set() => continue,
            cycled => cycled?,
        };
        adding += added;
        removing += removed;
        count += 1;
    }
    let mean_ms = |time: Duration| time.as_secs_f64() * 1000.0 / f64::from(count);
    let rate = f64::from(count) / (adding + removing).as_secs_f64();
    let details = [
        ("add_mean_ms", mean_ms(adding)),
        ("del_mean_ms", mean_ms(removing)),
    ];
    Sample::new(rate, details, busy)
}
