//! What has no peer: what an agent and its pods cost a node.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::json;
use spinlane_tests::{Namespace, Node, NodeConfig, Pod};

use crate::cpu;
use crate::measure::{MeasureError, io_error};
use crate::progress::{Progress, Timed};
use crate::stop::Stop;

/// Time for what attaching left behind to settle.
const SETTLE: Duration = Duration::from_secs(2);
/// Seconds below which the kernel's clock ticks say nothing of idleness.
const SHORTEST_LOOK: f64 = 1.0;

fn start_node() -> Result<Node, MeasureError> {
    Ok(Node::start(&NodeConfig::new("perf"))?)
}

/// Attaches `count` pods.
fn attach(
    node: &Node,
    pods: Vec<Pod>,
    progress: &Progress,
    stop: &Stop,
) -> Result<Vec<Pod>, MeasureError> {
    let network = node.network("pods", json!({}));
    pods.into_iter()
        .map(|mut pod| {
            if stop.is_set() {
                return Err(MeasureError::Interrupted);
            }
            progress.says(&format!("attaching {}", pod.name()));
            pod.add(node, "eth0", &network)?;
            progress.step();
            Ok(pod)
        })
        .collect()
}

/// Pods that are not attached to anything.
fn bare_pods(count: usize, stop: &Stop) -> Result<Vec<Pod>, MeasureError> {
    (0..count)
        .map(|number| {
            if stop.is_set() {
                return Err(MeasureError::Interrupted);
            }
            Ok(Pod::bare(&format!("pod{number}"))?)
        })
        .collect()
}

fn agent_pid(node: &Node) -> Result<u32, MeasureError> {
    node.agent_pid().ok_or_else(|| MeasureError::Unexpected {
        what: "the agent".to_owned(),
        detail: "it does not run".to_owned(),
    })
}

/// Times of CNI calls in milliseconds, process start included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CallTimes {
    /// How many calls.
    pub count: u64,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl CallTimes {
    fn of(times: &[Duration]) -> Result<CallTimes, MeasureError> {
        let bad = |error: String| MeasureError::Unexpected {
            what: "recording call times".to_owned(),
            detail: error,
        };
        let mut histogram = Histogram::<u64>::new(3).map_err(|error| bad(error.to_string()))?;
        for time in times {
            histogram
                .record(time.as_micros() as u64)
                .map_err(|error| bad(error.to_string()))?;
        }
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(CallTimes {
            count: histogram.len(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: at(1.0),
        })
    }

    fn text(&self) -> String {
        format!(
            "p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms of {}",
            self.p50_ms, self.p99_ms, self.max_ms, self.count
        )
    }
}

/// What the plugin's calls take.
#[derive(Debug, Clone, Serialize)]
pub struct CniResult {
    /// Pods attached while the calls were measured.
    pub pods: usize,
    /// Calls at the same time.
    pub parallel: usize,
    /// ADD.
    pub add: CallTimes,
    /// DEL.
    pub del: CallTimes,
}

impl CniResult {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "with {} pods attached, {} at a time\nADD {} (bar: p50 < 50 ms, p99 < 150 ms)\nDEL {}",
            self.pods,
            self.parallel,
            self.add.text(),
            self.del.text()
        )
    }
}

/// Times ADD and DEL pairs on a node: so many pods that are attached, so many
/// pairs, so many of them at the same time; until `stop` at the longest.
///
/// # Errors
/// When a call fails, or `stop` came before the first pair was done.
pub fn cni([pods, calls, parallel]: [usize; 3], stop: &Stop) -> Result<CniResult, MeasureError> {
    let node = start_node()?;
    let progress = Progress::start((pods + calls) as u64);
    let _pods = attach(&node, bare_pods(pods, stop)?, &progress, stop)?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<[Duration; 2]>, MeasureError> {
        let mut times = Vec::new();
        loop {
            // Relaxed: it numbers calls, and publishes nothing.
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= calls {
                return Ok(times);
            }
            if stop.is_set() {
                return Ok(times);
            }
            progress.says(&format!("measuring call {}", number + 1));
            match cycle_pod(&node, &format!("measured{number}")) {
                // A terminal's Ctrl-C also ends the plugin.
                Err(_) if stop.is_set() => {}
                cycled => times.push(cycled?),
            }
            progress.step();
        }
    };
    let times = thread::scope(|scope| {
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(work)).collect();
        let mut times = Vec::new();
        for worker in workers {
            times.extend(worker.join().map_err(|_| MeasureError::Panicked)??);
        }
        Ok::<_, MeasureError>(times)
    })?;
    if times.is_empty() {
        return Err(MeasureError::Interrupted);
    }
    let of = |which: usize| times.iter().map(|pair| pair[which]).collect::<Vec<_>>();
    Ok(CniResult {
        pods,
        parallel,
        add: CallTimes::of(&of(0))?,
        del: CallTimes::of(&of(1))?,
    })
}

/// Adds a pod by the real plugin and removes it: how long each took, process
/// start included.
pub(crate) fn cycle_pod(node: &Node, name: &str) -> Result<[Duration; 2], MeasureError> {
    let network = node.network("pods", json!({}));
    let mut pod = Pod::bare(name)?;
    let answer = pod
        .call("ADD", "eth0", network.clone())
        .invoke(node.namespace())?;
    let adding = answer.elapsed;
    pod.remember(answer, "eth0", &network)?;
    let config = pod.config_with_result("eth0")?;
    let answer = pod.call("DEL", "eth0", config).invoke(node.namespace())?;
    let removing = answer.elapsed;
    answer.success("DEL of a pod")?;
    Ok([adding, removing])
}

/// What an idle agent uses.
#[derive(Debug, Clone, Serialize)]
pub struct IdleResult {
    /// Attached, silent pods.
    pub pods: usize,
    /// Seconds that it was watched.
    pub seconds: f64,
    /// Share of one core, in percent.
    pub core_percent: f64,
}

impl IdleResult {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        // The kernel counts in hundredths of a second.
        let least = 1.0 / self.seconds;
        let share = match self.core_percent {
            used if used < least => format!("less than {least:.2} %"),
            used => format!("{used:.2} %"),
        };
        format!(
            "agent with {} idle pods: {share} of a core over {:.0} s (bar: < 2 %)",
            self.pods, self.seconds
        )
    }
}

/// Watches an agent whose pods are silent, until `stop` at the longest.
///
/// # Errors
/// When a pod cannot be attached, or `stop` came before a second was watched.
pub fn idle(pods: usize, duration: Duration, stop: &Stop) -> Result<IdleResult, MeasureError> {
    let node = start_node()?;
    let progress = Progress::start(pods as u64);
    let _pods = attach(&node, bare_pods(pods, stop)?, &progress, stop)?;
    drop(progress);
    let _timed = Timed::start("watching", SETTLE * 2 + duration);
    let pid = agent_pid(&node)?;
    let used = || cpu::process_seconds(pid).map_err(io_error("reading CPU times"));
    if !stop.sleep(SETTLE * 2) {
        return Err(MeasureError::Interrupted);
    }
    let (began, first) = (Instant::now(), used()?);
    let whole = stop.sleep(duration);
    let seconds = began.elapsed().as_secs_f64();
    if !whole && seconds < SHORTEST_LOOK {
        return Err(MeasureError::Interrupted);
    }
    Ok(IdleResult {
        pods,
        seconds,
        core_percent: (used()? - first) / seconds * 100.0,
    })
}

/// What memory an agent and its pods take.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryResult {
    /// Attached pods.
    pub pods: usize,
    /// By how much `MemFree` fell, in bytes.
    pub free_bytes: i64,
    /// By how much `MemAvailable` fell, in bytes.
    pub available_bytes: i64,
    /// Resident memory of the agent alone, in bytes.
    pub agent_rss_bytes: i64,
}

impl MemoryResult {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
        format!(
            "agent and kernel for {} pods: MemFree fell by {:.0} MiB, MemAvailable by {:.0} MiB \
             (bar: < 600 MiB for 100); the agent's resident memory is {:.0} MiB",
            self.pods,
            mib(self.free_bytes),
            mib(self.available_bytes),
            mib(self.agent_rss_bytes)
        )
    }
}

/// A line of `/proc/meminfo` or `/proc/PID/status`, in bytes.
fn kib_line(text: &str, name: &str) -> Option<i64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: i64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

fn read_kib(path: &str, names: [&str; 2]) -> Result<[i64; 2], MeasureError> {
    let text = fs::read_to_string(path).map_err(io_error(format!("reading {path}")))?;
    let line = |name| {
        kib_line(&text, name).ok_or_else(|| MeasureError::Unexpected {
            what: path.to_owned(),
            detail: format!("it has no line {name}"),
        })
    };
    Ok([line(names[0])?, line(names[1])?])
}

/// Compares the machine's memory before the agent and with `pods` pods. The
/// pods' namespaces exist already before, since any network has those.
///
/// # Errors
/// When a pod cannot be attached, or on Ctrl-C.
pub fn memory(pods: usize, stop: &Stop) -> Result<MemoryResult, MeasureError> {
    let names = ["MemFree", "MemAvailable"];
    let bare = bare_pods(pods, stop)?;
    // The programs' own pages come into the cache before the first look.
    drop(start_node()?);
    if !stop.sleep(SETTLE) {
        return Err(MeasureError::Interrupted);
    }
    let before = read_kib("/proc/meminfo", names)?;
    let node = start_node()?;
    let progress = Progress::start(pods as u64);
    let attached = attach(&node, bare, &progress, stop)?;
    if !stop.sleep(SETTLE) {
        return Err(MeasureError::Interrupted);
    }
    let after = read_kib("/proc/meminfo", names)?;
    let status = format!("/proc/{}/status", agent_pid(&node)?);
    let [rss, _] = read_kib(&status, ["VmRSS", "VmSize"])?;
    Ok(MemoryResult {
        pods: attached.len(),
        free_bytes: before[0] - after[0],
        available_bytes: before[1] - after[1],
        agent_rss_bytes: rss,
    })
}

/// How fast an agent leaves and comes.
#[derive(Debug, Clone, Serialize)]
pub struct LifecycleResult {
    /// Attached pods.
    pub pods: usize,
    /// SIGTERM to exit, in seconds.
    pub stop_s: Vec<f64>,
    /// Start to `ready`, in seconds.
    pub start_s: Vec<f64>,
}

impl LifecycleResult {
    /// For people; the worst of the rounds counts.
    #[must_use]
    pub fn text(&self) -> String {
        let worst = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
        format!(
            "agent with {} pods, longest of {}: SIGTERM to exit {:.2} s (bar: 2 s), \
             start to ready {:.2} s (bar: 5 s)",
            self.pods,
            self.stop_s.len(),
            worst(&self.stop_s),
            worst(&self.start_s)
        )
    }
}

/// Stops and starts an agent with `pods` pods, until `stop` at the longest.
///
/// # Errors
/// When the agent does not leave or come, or `stop` came before both were done once.
pub fn lifecycle(pods: usize, rounds: usize, stop: &Stop) -> Result<LifecycleResult, MeasureError> {
    let mut node = start_node()?;
    let progress = Progress::start((pods + rounds) as u64);
    let attached = attach(&node, bare_pods(pods, stop)?, &progress, stop)?;
    let (mut stop_s, mut start_s) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        if stop.is_set() {
            break;
        }
        progress.says(&format!("stop and start {round}"));
        let times = stop_and_start(&mut node);
        // A terminal's Ctrl-C also ends the agent: such a round is not whole.
        if stop.is_set() {
            break;
        }
        let [stopping, starting] = times?;
        stop_s.push(stopping.as_secs_f64());
        start_s.push(starting.as_secs_f64());
        progress.step();
    }
    if start_s.is_empty() {
        return Err(MeasureError::Interrupted);
    }
    if let [first, .., last] = &attached[..]
        && !stop.is_set()
    {
        still_reach(first.namespace(), last)?;
    }
    Ok(LifecycleResult {
        pods,
        stop_s,
        start_s,
    })
}

/// How long the agent took to leave, and the next one to come.
fn stop_and_start(node: &mut Node) -> Result<[Duration; 2], MeasureError> {
    let (status, stopping) = node.stop()?;
    if !status.success() {
        return Err(MeasureError::Unexpected {
            what: "the agent after SIGTERM".to_owned(),
            detail: format!("it ended with {status}"),
        });
    }
    node.start_agent()?;
    Ok([stopping, node.ready_after()])
}

/// A restart that lost the pods would be fast and worthless.
fn still_reach(from: &Namespace, to: &Pod) -> Result<(), MeasureError> {
    let address = to.v4()?;
    spinlane_tests::wait_for(
        "a ping between pods after the restarts",
        Duration::from_secs(3),
        || crate::subject::ping(from, address).ok(),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_in_kib() {
        let text =
            "MemTotal:       24683824 kB\nMemFree:        1000 kB\nHugePages_Total:       0\n";
        assert_eq!(kib_line(text, "MemFree"), Some(1_024_000));
        assert_eq!(kib_line(text, "Mem"), None);
        assert_eq!(kib_line(text, "HugePages_Total"), None);
    }

    #[test]
    fn idle_says_what_it_cannot_see() {
        let text = |core_percent| {
            IdleResult {
                pods: 20,
                seconds: 10.0,
                core_percent,
            }
            .text()
        };
        assert!(text(0.0).contains("less than 0.10 %"), "{}", text(0.0));
        assert!(text(1.5).contains(" 1.50 %"), "{}", text(1.5));
    }

    #[test]
    fn call_times_are_percentiles() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let result = CallTimes::of(&times).unwrap();
        assert_eq!(result.count, 100);
        assert!((result.p50_ms - 50.0).abs() < 0.1, "{result:?}");
        assert!((result.p99_ms - 99.0).abs() < 0.1, "{result:?}");
        assert!((result.max_ms - 100.0).abs() < 0.1, "{result:?}");
    }
}
