//! The agent's process: what starts in which order, and how it ends.
//!
//! Configuration → preflight → run directory's lock → engine (lanes) → node
//! (store, ports, the plugin's socket) → HTTP socket and metrics → `ready` on
//! standard output. SIGTERM or SIGINT ends it: the node first, so that no
//! attachment is left half done, then the lanes. Interfaces, addresses and the
//! store stay.

mod live;
mod process;
mod run_dir;

use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spinlane_dataplane::engine::{Engine, EngineError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::api;
use crate::check::capabilities;
use crate::config::{Config, ConfigError, Source};
use crate::metrics::{self, MetricsServer};
use crate::node::{Node, Setup, StartError};
use crate::source;
use live::Live;
use process::Cpus;
pub use run_dir::{RunDir, RunDirError};

/// When the process leaves although something has not ended: SIGTERM to exit
/// takes 2 s at most.
const STOP_PATIENCE: Duration = Duration::from_millis(1800);

/// Where the agent finds and keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentOptions {
    /// Configuration file.
    pub config: PathBuf,
    /// Sockets and the lock.
    pub run_dir: PathBuf,
    /// What outlives the agent.
    pub state_dir: PathBuf,
}

/// Why the agent did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What the process may do.
    #[error("the agent needs {0}: run it as root, or grant the capabilities")]
    Capabilities(String),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The lanes.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The node.
    #[error(transparent)]
    Node(#[from] StartError),
    /// The source of the cluster's objects.
    #[error(transparent)]
    Source(#[from] source::SourceError),
    /// The metrics' address or a collector.
    #[error(transparent)]
    Metrics(#[from] metrics::MetricsError),
    /// Anything that the process needs of the system.
    #[error("cannot {what}: {source}")]
    Process {
        /// What was tried, on which object.
        what: String,
        /// Its answer.
        source: io::Error,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> AgentError {
    let what = what.into();
    move |source| AgentError::Process { what, source }
}

/// Runs the agent until a signal ends it.
pub fn run(options: &AgentOptions) -> Result<(), AgentError> {
    process::log_to_stderr();
    let config = Config::load(&options.config)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let missing = capabilities::missing();
    if !missing.is_empty() {
        return Err(AgentError::Capabilities(missing.join(", ")));
    }
    let lock = RunDir::lock(&options.run_dir)?;
    RunDir::make(&options.state_dir)?;
    process::raise_open_files();
    let cpus = Cpus::with_lanes(&config.lanes().cores);
    cpus.keep_off_lanes();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(failed("start the control threads"))?;
    let ended = runtime.block_on(supervise(config, options.clone(), cpus));
    // What still runs in threads of its own (a start that a signal overtook, a
    // scrape) does not hold the process back.
    runtime.shutdown_background();
    drop(lock);
    ended
}

/// The signals that end the agent.
struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    fn listen() -> Result<Ending, AgentError> {
        let listen = |kind| signal(kind).map_err(failed("wait for signals"));
        Ok(Ending {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn comes(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    }
}

async fn supervise(config: Config, options: AgentOptions, cpus: Cpus) -> Result<(), AgentError> {
    let mut ending = Ending::listen()?;
    let started = Instant::now();
    let start = tokio::task::spawn_blocking({
        let options = options.clone();
        move || start(config, &options, &cpus, started)
    });
    let running = tokio::select! {
        running = start => running.map_err(|e| AgentError::Process {
            what: "start the switch".to_owned(),
            source: io::Error::other(e),
        })??,
        () = ending.comes() => return Ok(()),
    };
    let (stop, stopped) = watch::channel(false);
    let served = serve(&running, &options, stopped).await;
    if let Err(error) = served {
        running.stop().await;
        return Err(error);
    }
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "pods can attach");
    announce();
    ending.comes().await;
    // Nobody to tell when all servers ended by themselves.
    let _ = stop.send(true);
    running.stop().await;
    // Who comes now learns at once that nobody is here.
    let _ = std::fs::remove_file(options.run_dir.join(spinlane_api::API_SOCKET));
    Ok(())
}

/// Everything that runs, in the order in which it started.
struct Running {
    live: Arc<Live>,
    metrics: Option<MetricsServer>,
}

fn start(
    config: Config,
    options: &AgentOptions,
    cpus: &Cpus,
    started: Instant,
) -> Result<Running, AgentError> {
    let setup = Setup::new(&config, &options.run_dir, &options.state_dir);
    let source = match config.source() {
        Source::Manifests(dir) => {
            let start = |all| source::Watch::start(dir, all, cpus.left());
            Some(cpus.before_lanes(start)?)
        }
        Source::Kubernetes => None,
    };
    let engine = Arc::new(Engine::start(live::engine_config(
        config.lanes(),
        &options.run_dir,
    ))?);
    let lanes = Arc::new(live::Lanes::new(Arc::clone(&engine)));
    let node = Node::start(setup, source, lanes)?;
    let collectors = node.metrics().clone();
    let live = Arc::new(Live::new(&config, engine, node, started));
    let metrics = match config.metrics().listen {
        None => None,
        Some(address) => Some(MetricsServer::new(address, live.clone(), &collectors)?),
    };
    Ok(Running { live, metrics })
}

async fn serve(
    running: &Running,
    options: &AgentOptions,
    stopped: watch::Receiver<bool>,
) -> Result<(), AgentError> {
    let path = options.run_dir.join(spinlane_api::API_SOCKET);
    let listener =
        api::server::bind(&path).map_err(failed(format!("listen on {}", path.display())))?;
    let serving = api::server::serve(listener, running.live.clone(), until(stopped.clone()));
    watch_over("the HTTP socket", serving);
    if let Some(metrics) = &running.metrics {
        watch_over("the metrics", metrics.serve(until(stopped))?);
    }
    Ok(())
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the agent with it.
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn watch_over(what: &'static str, serving: impl Future<Output = io::Result<()>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "{what} stopped being served");
        }
    });
}

fn announce() {
    let mut stdout = io::stdout();
    let said = writeln!(stdout, "ready").and_then(|()| stdout.flush());
    if let Err(error) = said {
        // Pods attach all the same.
        tracing::warn!(%error, "nobody listens on standard output");
    }
}

impl Running {
    /// Stops the node and the lanes, or gives up on what does not end in time:
    /// the kernel closes what is left with the process.
    async fn stop(self) {
        let live = self.live;
        let stopping = tokio::task::spawn_blocking(move || live.stop());
        match tokio::time::timeout(STOP_PATIENCE, stopping).await {
            Ok(Ok(())) => tracing::info!("stopped"),
            Ok(Err(error)) => tracing::error!(%error, "the stop failed"),
            Err(_) => tracing::error!("the stop took too long: leaving as it is"),
        }
    }
}
