//! The command line: arguments, what each command asks, and how it ends.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage, 3 no agent answers. Every
//! error is one line on standard error.

mod capture;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spinlane_api::view;

use crate::agent::{self, AgentOptions};
use crate::api::client::{Client, ClientError};
use crate::check;
use crate::node;

/// Where the agent keeps its sockets.
pub const DEFAULT_RUN_DIR: &str = "/run/spinlane";
/// The variable that says so, too.
const RUN_DIR_VARIABLE: &str = "SPINLANE_RUN_DIR";
/// Where the agent keeps what outlives it.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/spinlane";
/// Where the agent's configuration is.
pub const DEFAULT_CONFIG: &str = "/etc/spinlane/spinlane.toml";

#[derive(Debug, Parser)]
#[command(
    name = "spinlane",
    version,
    about = "Spinlane: a poll-mode userspace switch for Kubernetes nodes",
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 no agent answers.",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Run directory of the agent
    #[arg(long, value_name = "DIR", global = true, env = RUN_DIR_VARIABLE, default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs; a stable schema
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the switch on this node
    Agent(AgentArguments),
    /// Show the agent, its lanes and its frames
    Status,
    /// Show the ports and what went through them
    Ports,
    /// Show the flows that the lanes remember
    Flows,
    /// Show the connections that the node follows
    Connections,
    /// Show the stations of the layer-2 segments
    Fdb,
    /// Show where packets go: pods, other nodes, gateways, the host
    Routes,
    /// Show why packets were dropped, and how many
    Drops,
    /// Write packets, dropped ones too, as pcapng
    Capture(capture::CaptureArguments),
    /// Show what this machine has for each feature, and what is missing
    Check(CheckArguments),
    /// Remove everything that the agent ever made on this node
    Cleanup(CleanupArguments),
    /// Show what the switch does, in namespaces of its own, beside a Linux bridge
    Demo(DemoArguments),
    /// Show the version of this program and of the agent
    Version,
}

#[derive(Debug, Args)]
struct AgentArguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Directory of what outlives the agent
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
}

#[derive(Debug, Args)]
struct CheckArguments {
    /// Configuration file to check with the uplink that it names; the usual
    /// one when that exists
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CleanupArguments {
    /// Directory of what outlives the agent
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// Passed on to `spinlane-perf demo`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// What `cleanup` did.
#[derive(Debug, Serialize)]
struct Removed {
    removed: Vec<String>,
}

/// A command that did not do what it should.
#[derive(Debug)]
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    fn failed(message: impl Into<String>) -> Failure {
        Failure {
            status: 1,
            message: message.into(),
        }
    }

    fn usage(message: impl Into<String>) -> Failure {
        Failure {
            status: 2,
            message: message.into(),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let status = match error {
            ClientError::NoAgent { .. } => 3,
            ClientError::Forbidden(_) | ClientError::Refused(_) | ClientError::Broken { .. } => 1,
        };
        Failure {
            status,
            message: error.to_string(),
        }
    }
}

type Done = Result<ExitCode, Failure>;

/// Reads the command line. A variable that is empty is as good as none.
fn arguments(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let mut command = Arguments::command();
    if std::env::var_os(RUN_DIR_VARIABLE).is_some_and(|dir| dir.is_empty()) {
        command = command.mut_arg("run_dir", |arg| arg.env(Resettable::Reset));
    }
    let matches = command.try_get_matches_from_mut(words)?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = match arguments(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    match run(arguments) {
        Ok(status) => status,
        Err(failure) => {
            complain(&failure.message);
            ExitCode::from(failure.status)
        }
    }
}

fn complain(message: &str) {
    let line = message.trim_end().replace('\n', "; ");
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "spinlane: {line}");
}

/// clap's answer: help as it is, mistakes on one line.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            complain(&one_line(&error.to_string()));
            ExitCode::from(2)
        }
    }
}

/// The message and the tip of clap's report, without the usage below.
fn one_line(report: &str) -> String {
    let said = report.split("\n\nUsage:").next().unwrap_or(report);
    let words: Vec<_> = said.split_whitespace().collect();
    let said = words.join(" ");
    let said = said.trim_start_matches("error: ");
    let said = said.split(" For more information").next().unwrap_or(said);
    format!("{said}; see `spinlane --help`")
}

fn run(arguments: Arguments) -> Done {
    let common = arguments.common;
    match arguments.command {
        Command::Agent(agent) => run_agent(agent, common),
        Command::Status => show(&common, "status", table::status),
        Command::Ports => show(&common, "ports", |ports: &Vec<view::Port>| {
            table::ports(ports)
        }),
        Command::Flows => show(&common, "flows", |flows: &Vec<view::Flow>| {
            table::flows(flows)
        }),
        Command::Connections => show(&common, "connections", |all: &Vec<view::Connection>| {
            table::connections(all)
        }),
        Command::Routes => show(&common, "routes", |routes: &Vec<view::Route>| {
            table::routes(routes)
        }),
        Command::Fdb => show(&common, "fdb", |fdb: &Vec<view::FdbEntry>| table::fdb(fdb)),
        Command::Drops => show(&common, "drops", table::drops),
        Command::Capture(capture) => {
            asking(async { capture::run(&capture, &Client::new(&common.run_dir)).await })
        }
        Command::Check(check) => run_check(&check, &common),
        Command::Cleanup(cleanup) => run_cleanup(&cleanup, &common),
        Command::Demo(demo) => run_demo(&demo, common.output),
        Command::Version => run_version(&common),
    }
}

fn run_agent(arguments: AgentArguments, common: Common) -> Done {
    let options = AgentOptions {
        config: arguments.config,
        run_dir: common.run_dir,
        state_dir: arguments.state_dir,
    };
    agent::run(&options).map_err(|e| Failure::failed(e.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a conversation with the agent to its end.
fn asking<T>(conversation: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start a runtime: {e}")))?
        .block_on(conversation)
}

fn show<T: DeserializeOwned + Serialize>(
    common: &Common,
    document: &str,
    table: impl Fn(&T) -> String,
) -> Done {
    let client = Client::new(&common.run_dir);
    let view: T = asking(async { Ok(client.get(document).await?) })?;
    print(common.output, &view, table)
}

fn print<T: Serialize>(output: Output, view: &T, table: impl Fn(&T) -> String) -> Done {
    let text = match output {
        Output::Table => table(view),
        Output::Json => serde_json::to_string_pretty(view)
            .map_err(|e| Failure::failed(format!("cannot print JSON: {e}")))?,
    };
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(format!(
            "cannot write to standard output: {e}"
        ))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn run_check(arguments: &CheckArguments, common: &Common) -> Done {
    let usual = Path::new(DEFAULT_CONFIG);
    let named = arguments.config.as_deref();
    let report = check::run(named.or_else(|| usual.exists().then_some(usual)));
    print(common.output, &report, table::check)?;
    Ok(match report.ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn run_cleanup(arguments: &CleanupArguments, common: &Common) -> Done {
    let lock = agent::RunDir::lock(&common.run_dir).map_err(|e| Failure::failed(e.to_string()))?;
    let removed = node::cleanup::cleanup(&common.run_dir, &arguments.state_dir);
    // A refusal leaves nothing behind, either.
    lock.remove();
    let removed = removed.map_err(|e| Failure::failed(e.to_string()))?;
    print(common.output, &Removed { removed }, |done| {
        table::cleanup(&done.removed)
    })
}

/// The demo belongs to the measuring program, which is installed beside.
fn run_demo(arguments: &DemoArguments, output: Output) -> Done {
    const PROGRAM: &str = "spinlane-perf";
    let beside = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name(PROGRAM))
        .filter(|path| path.exists());
    let program = beside.unwrap_or_else(|| PathBuf::from(PROGRAM));
    let format: &[&str] = match output {
        Output::Table => &[],
        Output::Json => &["--output", "json"],
    };
    let error = Process::new(&program)
        .arg("demo")
        .args(format)
        .args(&arguments.rest)
        .exec();
    Err(Failure::failed(format!(
        "cannot start {}: {error}; install it beside spinlane",
        program.display()
    )))
}

fn run_version(common: &Common) -> Done {
    let client = Client::new(&common.run_dir);
    let agent: Option<view::Version> = asking(async { Ok(client.get("version").await.ok()) })?;
    let version = view::Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent: agent.and_then(|answer| answer.agent),
    };
    print(common.output, &version, table::version)
}
