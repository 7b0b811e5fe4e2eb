//! Cores: pinning a thread to one, and how busy they were.

use std::fs;
use std::io;
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Clock ticks of `/proc`, fixed by the kernel's user interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// Binds the calling thread to one core.
///
/// # Errors
/// When there is no such core.
pub fn pin(core: usize) -> io::Result<()> {
    let named =
        |errno: nix::Error| io::Error::other(format!("pinning a thread to core {core}: {errno}"));
    let mut set = CpuSet::new();
    set.set(core).map_err(named)?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(named)
}

/// Busy ticks of every core since boot.
fn busy_ticks() -> io::Result<Vec<u64>> {
    Ok(parse_busy_ticks(&fs::read_to_string("/proc/stat")?))
}

fn parse_busy_ticks(stat: &str) -> Vec<u64> {
    stat.lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .map(|line| {
            // user nice system idle iowait irq softirq; what follows is not ours.
            line.split_whitespace()
                .skip(1)
                .take(7)
                .enumerate()
                .filter(|(column, _)| !matches!(column, 3 | 4))
                .filter_map(|(_, ticks)| ticks.parse::<u64>().ok())
                .sum()
        })
        .collect()
}

/// Steps of the loop that [`step_ns`] times, and how often.
const STEPS: u32 = 100_000;
const TRIES: u32 = 6;

/// Nanoseconds of one step of arithmetic on a core that nothing else of ours
/// uses: some 0.7 at its best, more when a neighbour that the machine does not
/// show has a part of it (the other thread of a virtual machine's core).
///
/// # Errors
/// When there is no such core.
pub fn step_ns(core: usize) -> io::Result<f64> {
    std::thread::scope(|scope| {
        let timed = scope.spawn(|| {
            pin(core)?;
            // The shortest, since other processes only make it longer.
            let shortest = (0..TRIES).map(|_| {
                let began = Instant::now();
                let sum = (0..STEPS).fold(1u64, |sum, step| {
                    std::hint::black_box(sum.wrapping_mul(3) + u64::from(step))
                });
                std::hint::black_box(sum);
                began.elapsed()
            });
            let shortest = shortest.min().unwrap_or_default();
            Ok(shortest.as_nanos() as f64 / f64::from(STEPS))
        });
        let joined = timed.join();
        joined.unwrap_or_else(|_| Err(io::Error::other("timing a core panicked")))
    })
}

/// Measures how busy the cores are from its start to [`Busy::finish`].
#[derive(Debug)]
pub struct Busy {
    began: Instant,
    ticks: Vec<u64>,
}

impl Busy {
    /// Starts to measure.
    ///
    /// # Errors
    /// When `/proc/stat` cannot be read.
    pub fn start() -> io::Result<Busy> {
        Ok(Busy {
            ticks: busy_ticks()?,
            began: Instant::now(),
        })
    }

    /// Share of the time that each core was busy, 0 to 1.
    ///
    /// # Errors
    /// When `/proc/stat` cannot be read.
    pub fn finish(self) -> io::Result<Vec<f64>> {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-3);
        Ok(busy_ticks()?
            .iter()
            .zip(&self.ticks)
            .map(|(now, then)| {
                let used = now.saturating_sub(*then) as f64 / TICKS_PER_SECOND;
                (used / seconds).min(1.0)
            })
            .collect())
    }
}

/// Seconds of CPU that a process has used, in user and kernel mode.
///
/// # Errors
/// When there is no such process.
pub fn process_seconds(pid: u32) -> io::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("reading {path}: {error}")))?;
    parse_process_ticks(&text)
        .map(|ticks| ticks as f64 / TICKS_PER_SECOND)
        .ok_or_else(|| io::Error::other(format!("{path}: no CPU times in {text:?}")))
}

fn parse_process_ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything, so count from its end:
    // state is field 3, utime 14, stime 15.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc_stat() {
        let text = "cpu  9 9 9 9 9 9 9 9 9 9\n\
                    cpu0 1 2 4 1000 2000 8 16 32 5 6\n\
                    cpu1 10 0 0 500 0 0 0 0 0 0\nintr 5\n";
        assert_eq!(parse_busy_ticks(text), [31, 10]);
    }

    #[test]
    fn reads_a_process_with_an_odd_name() {
        let text = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 300 45 0 0";
        assert_eq!(parse_process_ticks(text), Some(345));
        assert_eq!(parse_process_ticks("nonsense"), None);
    }

    #[test]
    fn a_step_takes_a_moment() {
        let ns = step_ns(0).unwrap();
        assert!((0.05..100.0).contains(&ns), "{ns}");
        assert!(step_ns(CpuSet::count()).is_err(), "no such core");
    }

    #[test]
    fn a_busy_thread_is_seen() {
        let before = process_seconds(std::process::id()).unwrap();
        let began = Instant::now();
        while began.elapsed().as_millis() < 200 {
            std::hint::spin_loop();
        }
        let after = process_seconds(std::process::id()).unwrap();
        assert!(after > before, "{before} {after}");
    }
}
