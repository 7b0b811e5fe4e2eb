//! Instructions per packet: by the machine's counter, else by callgrind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use spinlane_tests::Process;

use super::counters::Instructions;
use super::work::{Bench, Case};
use crate::measure::{MeasureError, io_error};

/// Where Debian has it.
const VALGRIND: &str = "/usr/bin/valgrind";
/// The function that callgrind looks into.
const MEASURED: &str = "*micro::work::Bench>::round*";
const MEASURED_LEGACY: &str = "*micro::work::Bench::round*";
/// Calls under callgrind, which is some fifty times slower than the processor.
const ROUNDS: u32 = 200;
/// How long one case may take there.
const LIMIT: Duration = Duration::from_secs(60);

/// Who counts instructions on this machine.
#[derive(Debug)]
pub(super) enum Counter {
    Hardware,
    Callgrind,
    Nobody(String),
}

impl Counter {
    pub(super) fn find() -> Counter {
        let refused = match Instructions::open() {
            Ok(_) => return Counter::Hardware,
            Err(error) => error,
        };
        match Path::new(VALGRIND).is_file() {
            true => Counter::Callgrind,
            false => Counter::Nobody(format!(
                "no hardware counter ({refused}) and no {VALGRIND}; install valgrind"
            )),
        }
    }

    /// How the figures came about, for the reader.
    pub(super) fn method(&self) -> String {
        match self {
            Counter::Hardware => "hardware counter".to_owned(),
            Counter::Callgrind => "callgrind; this machine has no hardware counter".to_owned(),
            Counter::Nobody(reason) => format!("missing: {reason}"),
        }
    }

    /// Instructions for each unit of a case.
    pub(super) fn count(&self, case: Case) -> Result<Option<f64>, MeasureError> {
        match self {
            Counter::Hardware => by_hardware(case).map(Some),
            Counter::Callgrind => by_callgrind(case).map(Some),
            Counter::Nobody(_) => Ok(None),
        }
    }
}

fn by_hardware(case: Case) -> Result<f64, MeasureError> {
    let failed = || io_error("counting instructions");
    let mut bench = Bench::set_up(case)?;
    let mut counter = Instructions::open().map_err(failed())?;
    let (mut counted, known) = (0, bench.units());
    for _ in 0..ROUNDS {
        bench.refresh()?;
        let before = counter.read().map_err(failed())?;
        bench.round()?;
        counted += counter.read().map_err(failed())? - before;
    }
    Ok(counted as f64 / (bench.units() - known) as f64)
}

/// Runs the case in a copy of this program under callgrind.
fn by_callgrind(case: Case) -> Result<f64, MeasureError> {
    let program = std::env::current_exe().map_err(io_error("looking for this program"))?;
    let mut command = Command::new(VALGRIND);
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--collect-atstart=no")
        .arg(format!("--toggle-collect={MEASURED}"))
        .arg(format!("--toggle-collect={MEASURED_LEGACY}"))
        .arg(program)
        .args(["micro", "--single", &case.name()]);
    let output = Process::spawn(command)?.wait(LIMIT)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let units: Option<f64> = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
    match (collected(&said), units) {
        (Some(instructions), Some(units)) if instructions > 0.0 => Ok(instructions / units),
        _ => Err(MeasureError::Unexpected {
            what: format!("callgrind on {}", case.name()),
            detail: said.lines().last().unwrap_or("it said nothing").to_owned(),
        }),
    }
}

/// What callgrind's last words say: `==1== Collected : 123`.
fn collected(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// The copy's part: runs a case, and says how many units that was.
pub(super) fn single(case: Case) -> Result<u64, MeasureError> {
    let mut bench = Bench::set_up(case)?;
    bench.run(ROUNDS)?;
    Ok(bench.units())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrinds_last_words_are_understood() {
        let said = "==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n";
        assert_eq!(collected(said), Some(1_234_567.0));
        assert_eq!(collected("==7== Collected : 0\n"), Some(0.0));
        assert_eq!(collected("valgrind: no such tool"), None);
    }
}
