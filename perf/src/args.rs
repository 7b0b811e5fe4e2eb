//! Arguments of the command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use spinlane_perf::measure::MeasureError;
use spinlane_perf::rr::Transport;
use spinlane_perf::subject::Kind;

use crate::commands::pktgen::Pktgen;
use crate::commands::rfc2544::Rfc2544;
use crate::commands::sink::Sink;
use crate::commands::udp::Udp;
use crate::comparing;
use crate::output::{Format, Output};

/// Packet generator, measurements and side-by-side comparisons.
#[derive(Debug, Parser)]
#[command(name = "spinlane-perf", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send packets from a pod; what arrives, a sink has to count
    Pktgen(Pktgen),
    /// Count packets that arrive in a pod, and drop them
    Sink(Sink),
    /// Throughput, latency and frame loss rate of one switch, after RFC 2544
    Rfc2544(Rfc2544),
    /// A UDP stream through one switch: loss, jitter, order
    Udp(Udp),
    /// Bulk TCP through one switch
    Tcp(Tcp),
    /// Round trips through one switch, idle or beside a load
    Rr(Rr),
    /// TCP connections a second through one switch: connect, ask, be answered, close
    Crr(Crr),
    /// New flows a second through one switch, or pods added and removed
    Churn(Churn),
    /// Switches side by side, in interleaved rounds
    Compare(comparing::Compare),
    /// What changed from one result of `compare --json` to another, beyond noise
    Baseline(comparing::BaselineFiles),
    /// Show a result of `compare --json` again, or write its reports
    Report(comparing::Report),
    /// How long the CNI plugin takes to attach and detach pods
    Cni(Cni),
    /// What an agent with idle pods costs
    Idle(Idle),
    /// What memory an agent and its pods take, the kernel's share included
    Memory(Memory),
    /// How fast an agent with many pods stops and starts
    Lifecycle(Lifecycle),
    /// Cycles per packet of the packet logic by itself, beside Open vSwitch on DPDK
    Micro(Micro),
    /// The switch in a minute: pods, pings, TCP and small packets beside a Linux bridge
    Demo(Demo),
    /// Join two devices by a forwarder on the `afxdp` crate
    #[cfg(feature = "afxdp-baseline")]
    #[command(hide = true)]
    Forward {
        /// The devices
        devices: Vec<String>,
    },
}

impl Command {
    /// Whether its result can be written where it is to go.
    pub(crate) fn check_outputs(&self) -> Result<(), MeasureError> {
        match self {
            Command::Pktgen(pktgen) => pktgen.output.check(),
            Command::Sink(sink) => sink.output.check(),
            Command::Rfc2544(rfc2544) if rfc2544.dry_run => Ok(()),
            Command::Rfc2544(rfc2544) => {
                rfc2544.output.check()?;
                rfc2544.reports.check()
            }
            Command::Udp(udp) => udp.output.check(),
            Command::Tcp(tcp) => tcp.output.check(),
            Command::Rr(rr) => rr.output.check(),
            Command::Crr(crr) => crr.output.check(),
            Command::Churn(churn) => churn.output.check(),
            Command::Compare(compare) if compare.dry_run => Ok(()),
            Command::Compare(compare) => {
                compare.output.check()?;
                compare.files.check()
            }
            Command::Baseline(baseline) => baseline.output.check(),
            Command::Report(report) => report.files.check(),
            Command::Cni(cni) => cni.output.check(),
            Command::Idle(idle) => idle.output.check(),
            Command::Memory(memory) => memory.output.check(),
            Command::Lifecycle(lifecycle) => lifecycle.output.check(),
            Command::Micro(micro) => micro.output.check(),
            Command::Demo(_) => Ok(()),
            #[cfg(feature = "afxdp-baseline")]
            Command::Forward { .. } => Ok(()),
        }
    }

    /// Whether switches, or a node, are made for it.
    pub(crate) fn makes_namespaces(&self) -> bool {
        match self {
            Command::Compare(compare) => !compare.dry_run,
            Command::Rfc2544(rfc2544) => !rfc2544.dry_run,
            Command::Pktgen(_)
            | Command::Sink(_)
            | Command::Baseline(_)
            | Command::Report(_)
            | Command::Micro(_) => false,
            #[cfg(feature = "afxdp-baseline")]
            Command::Forward { .. } => false,
            Command::Udp(_)
            | Command::Tcp(_)
            | Command::Rr(_)
            | Command::Crr(_)
            | Command::Churn(_)
            | Command::Cni(_)
            | Command::Idle(_)
            | Command::Memory(_)
            | Command::Lifecycle(_)
            | Command::Demo(_) => true,
        }
    }
}

/// A time in seconds, as `2` or `0.5`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.001..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("{text:?} is no time between 0.001 and 86400 seconds"))
}

/// What every measurement of one or more switches takes.
#[derive(Debug, Args)]
pub(crate) struct Measured {
    /// Seconds of one measurement
    #[arg(long, value_parser = seconds, value_name = "S", default_value = "2")]
    pub(crate) seconds: Duration,
    /// Seconds before it that do not count
    #[arg(long, value_parser = seconds, value_name = "S", default_value = "0.4")]
    pub(crate) warm_up: Duration,
    /// IPv6 instead of IPv4
    #[arg(short = '6', long = "ipv6")]
    pub(crate) v6: bool,
    /// Bind TCP senders and asking sides to core 0 too
    #[arg(long)]
    pub(crate) pin_sockets: bool,
}

/// `tcp`.
#[derive(Debug, Args)]
pub(crate) struct Tcp {
    /// The switch
    #[arg(long, value_enum, default_value = "spinlane")]
    pub(crate) subject: Kind,
    /// Streams side by side
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) streams: u16,
    #[command(flatten)]
    pub(crate) measured: Measured,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `rr`.
#[derive(Debug, Args)]
pub(crate) struct Rr {
    /// The switch
    #[arg(long, value_enum, default_value = "spinlane")]
    pub(crate) subject: Kind,
    /// What carries the requests
    #[arg(long, value_enum, default_value = "udp")]
    pub(crate) transport: Transport,
    /// Small datagrams a second beside them, from another socket
    #[arg(long, value_name = "PPS", num_args = 0..=1, default_missing_value = "50000",
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) load: Option<u64>,
    #[command(flatten)]
    pub(crate) measured: Measured,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `crr`.
#[derive(Debug, Args)]
pub(crate) struct Crr {
    /// The switch
    #[arg(long, value_enum, default_value = "spinlane")]
    pub(crate) subject: Kind,
    #[command(flatten)]
    pub(crate) measured: Measured,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `churn`.
#[derive(Debug, Args)]
pub(crate) struct Churn {
    /// The switch
    #[arg(long, value_enum, default_value = "spinlane")]
    pub(crate) subject: Kind,
    /// Pods added and removed by its CNI plugin instead of flows
    #[arg(long)]
    pub(crate) pods: bool,
    #[command(flatten)]
    pub(crate) measured: Measured,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `cni`.
#[derive(Debug, Args)]
pub(crate) struct Cni {
    /// Pods to attach before the measured calls
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=240))]
    pub(crate) pods: u16,
    /// Measured ADD and DEL pairs
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) calls: u16,
    /// Pods that are attached and detached at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) parallel: u16,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `idle`.
#[derive(Debug, Args)]
pub(crate) struct Idle {
    /// Idle pods
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=240))]
    pub(crate) pods: u16,
    /// How long to watch
    #[arg(long, value_parser = seconds, value_name = "S", default_value = "10")]
    pub(crate) seconds: Duration,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `memory`.
#[derive(Debug, Args)]
pub(crate) struct Memory {
    /// Pods to attach
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=240))]
    pub(crate) pods: u16,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `lifecycle`.
#[derive(Debug, Args)]
pub(crate) struct Lifecycle {
    /// Attached pods
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u16).range(0..=240))]
    pub(crate) pods: u16,
    /// Stops and starts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `micro`.
#[derive(Debug, Args)]
pub(crate) struct Micro {
    /// Cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) only: String,
    /// Samples of each case; from thirteen on a few may be disturbed without
    /// being in the interval
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,
    /// Leave Open vSwitch out
    #[arg(long)]
    pub(crate) no_peer: bool,
    /// Do not count instructions
    #[arg(long)]
    pub(crate) no_instructions: bool,
    /// Run this one case, and print how many packets that was
    #[arg(long, value_name = "CASE", hide = true)]
    pub(crate) single: Option<String>,
    /// Fail when a bar is missed
    #[arg(long)]
    pub(crate) enforce: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) pairs: u16,
    /// Seconds of one measurement
    #[arg(long, value_parser = seconds, value_name = "S", default_value = "1.5")]
    pub(crate) seconds: Duration,
    /// What standard output gets; the rest goes to standard error
    #[arg(
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        value_enum,
        default_value = "table"
    )]
    pub(crate) format: Format,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use spinlane_perf::scenario::Scenario;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn compare_takes_lists() {
        let arguments = parse(
            "spinlane-perf compare --subjects linux-bridge,ovs-afxdp --scenarios tcp,udp-rr \
             --pairs 9 --seconds 0.5 -6",
        )
        .unwrap();
        let Command::Compare(compare) = arguments.command else {
            panic!("no compare")
        };
        assert_eq!(compare.subjects, [Kind::LinuxBridge, Kind::OvsAfxdp]);
        assert_eq!(compare.scenarios, [Scenario::Tcp, Scenario::UdpRr]);
        assert_eq!(compare.pairs, 9);
        assert_eq!(compare.measured.seconds, Duration::from_millis(500));
        assert!(compare.measured.v6 && !compare.enforce);
    }

    #[test]
    fn compare_without_names_is_the_standard_one() {
        let Command::Compare(compare) = parse("spinlane-perf compare").unwrap().command else {
            panic!("no compare")
        };
        assert!(compare.subjects.is_empty() && compare.scenarios.is_empty());
        assert_eq!((compare.pairs, compare.services), (9, 1000));
    }

    #[test]
    fn every_command_looks_where_its_result_goes() {
        for line in [
            "pktgen --dst 10.0.0.1 --json",
            "sink --json",
            "rfc2544 --json",
            "rfc2544 --markdown",
            "rfc2544 --html",
            "udp --json",
            "tcp --json",
            "rr --json",
            "crr --json",
            "churn --json",
            "compare --json",
            "compare --markdown",
            "compare --html",
            "compare --results",
            "baseline a.json b.json --json",
            "report a.json --markdown",
            "report a.json --html",
            "report a.json --results",
            "cni --json",
            "idle --json",
            "memory --json",
            "lifecycle --json",
            "micro --json",
        ] {
            let command = |to: &str| {
                parse(&format!("spinlane-perf {line} {to}"))
                    .unwrap()
                    .command
            };
            let error = command("/dev/null/a").check_outputs().unwrap_err();
            assert!(error.to_string().contains("/dev/null/a"), "{line}: {error}");
        }
        for dry in ["compare --dry-run", "rfc2544 --dry-run"] {
            let arguments = parse(&format!("spinlane-perf {dry} --json /dev/null/a")).unwrap();
            assert!(arguments.command.check_outputs().is_ok(), "{dry}");
        }
    }

    #[test]
    fn refuses_what_cannot_be() {
        for line in [
            "spinlane-perf",
            "spinlane-perf compare --pairs 0",
            "spinlane-perf compare --seconds -1",
            "spinlane-perf compare --seconds nan",
            "spinlane-perf compare --subjects cisco",
            "spinlane-perf compare --services 0",
            "spinlane-perf baseline one.json",
            "spinlane-perf pktgen",
            "spinlane-perf pktgen --dst 10.0.0.1 --size 63",
            "spinlane-perf pktgen --dst 10.0.0.1 --rate 0",
            "spinlane-perf pktgen --dst 10.0.0.1 --vxlan 1",
            "spinlane-perf pktgen --replay a.pcap --dst 10.0.0.1",
            "spinlane-perf sink --xdp --socket",
            "spinlane-perf pktgen --engine socket --dst nowhere",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("spinlane-perf pktgen --engine socket --dst 10.0.0.1 --gso").is_ok());
    }
}
