//! A node: a namespace in which a real agent runs.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::process::{self, wait_child};
use crate::programs::{lab_dir, program};
use crate::{PATIENCE, wait_for};

/// What goes into a node's `spinlane.toml`.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Node name, also part of the namespace's.
    pub name: String,
    /// Node addresses; with none, the agent finds them out.
    pub addresses: Vec<String>,
    /// Pod CIDRs of the node.
    pub pod_cidrs: Vec<String>,
    /// Pod CIDRs of the cluster.
    pub cluster_cidrs: Vec<String>,
    /// `uplink`.
    pub uplink: String,
    /// `[network] mode`.
    pub mode: String,
    /// More lines of the `[network]` table, as TOML.
    pub network: String,
    /// `[lanes] poll`.
    pub poll: String,
    /// `[lanes] cores`, as TOML.
    pub cores: String,
    /// More lines of the `[lanes]` table, as TOML.
    pub lanes: String,
    /// More tables, as TOML (`[[segments]]`…).
    pub tables: String,
}

impl NodeConfig {
    /// A dual-stack node without an uplink, one adaptive lane.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            addresses: vec!["172.31.0.1".to_owned(), "fd31::1".to_owned()],
            pod_cidrs: vec!["10.244.1.0/24".to_owned(), "fd44:0:0:1::/64".to_owned()],
            cluster_cidrs: vec!["10.244.0.0/16".to_owned(), "fd44::/48".to_owned()],
            uplink: "none".to_owned(),
            mode: "vxlan".to_owned(),
            network: String::new(),
            poll: "adaptive".to_owned(),
            cores: "\"auto\"".to_owned(),
            lanes: String::new(),
            tables: String::new(),
        }
    }

    /// The file's text.
    fn text(&self, manifests: &Path) -> String {
        let list = |items: &[String]| json!(items).to_string();
        format!(
            "[node]\nname = {name}\n{addresses}uplink = {uplink}\n\
             pod-cidrs = {pods}\n\
             [network]\nmode = {mode}\ncluster-cidrs = {cluster}\n{network}\n\
             [lanes]\ncores = {cores}\npoll = {poll}\n{lanes}\n\
             [source]\nkind = \"manifests\"\npath = {manifests}\n\
             [metrics]\nlisten = \"127.0.0.1:9465\"\n{tables}\n",
            name = json!(self.name),
            addresses = match self.addresses[..] {
                [] => String::new(),
                _ => format!("addresses = {}\n", list(&self.addresses)),
            },
            pods = list(&self.pod_cidrs),
            cluster = list(&self.cluster_cidrs),
            uplink = json!(self.uplink),
            mode = json!(self.mode),
            network = self.network,
            cores = self.cores,
            poll = json!(self.poll),
            lanes = self.lanes,
            manifests = json!(manifests),
            tables = self.tables,
        )
    }
}

/// A namespace, its directories and the agent that runs in it.
#[derive(Debug)]
pub struct Node {
    agent: Mutex<Option<Child>>,
    ready_after: Duration,
    dir: PathBuf,
    namespace: Namespace,
}

impl Node {
    /// Makes the namespace and starts an agent with `config`.
    ///
    /// # Errors
    /// When a step fails or the agent does not print `ready` in time.
    pub fn start(config: &NodeConfig) -> Result<Self> {
        let mut node = Self::prepare(config)?;
        node.start_agent()?;
        Ok(node)
    }

    /// A node as [`Node::start`] makes it, its agent not yet started.
    ///
    /// # Errors
    /// When the namespace or its directory cannot be made.
    pub fn prepare(config: &NodeConfig) -> Result<Self> {
        let namespace = Namespace::create(&config.name)?;
        let dir = lab_dir()?.join(namespace.name());
        let node = Self {
            agent: Mutex::new(None),
            ready_after: Duration::ZERO,
            dir,
            namespace,
        };
        for part in [
            node.manifests_dir(),
            node.run_dir(),
            node.state_dir(),
            node.ipam_dir(),
        ] {
            std::fs::create_dir_all(&part)
                .map_err(LabError::io(format!("create {}", part.display())))?;
        }
        node.configure(config)?;
        Ok(node)
    }

    /// A node with the configuration of [`NodeConfig::new`].
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn plain(name: &str) -> Result<Self> {
        Self::start(&NodeConfig::new(name))
    }

    /// Writes the configuration file; a running agent does not look at it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, config: &NodeConfig) -> Result<()> {
        let path = self.config_path();
        std::fs::write(&path, config.text(&self.manifests_dir()))
            .map_err(LabError::io(format!("write {}", path.display())))
    }

    /// Starts the agent and waits for `ready`.
    ///
    /// # Errors
    /// When it cannot be started, ends early or is not ready in time; the end
    /// of its log is in the message.
    pub fn start_agent(&mut self) -> Result<()> {
        let started = Instant::now();
        self.launch()?;
        self.ready_after = started.elapsed();
        Ok(())
    }

    fn launch(&self) -> Result<()> {
        let mut child = self.spawn_agent()?;
        let ready = ready_line(&mut child);
        *self.agent() = Some(child);
        match ready {
            Ok(()) => Ok(()),
            Err(detail) => {
                self.kill();
                Err(LabError::unexpected(
                    format!("agent of node {}", self.namespace.name()),
                    format!("{detail}; its log ends:\n{}", self.log_tail(30)),
                ))
            }
        }
    }

    /// Time from the last start of the agent to its `ready` line.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The agent's process id, while one runs.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent().as_ref().map(Child::id)
    }

    /// SIGTERM, and wait; how the agent left and how long it took.
    ///
    /// # Errors
    /// When no agent runs or it does not leave (it is killed then).
    pub fn stop(&mut self) -> Result<(ExitStatus, Duration)> {
        self.terminate()
    }

    fn terminate(&self) -> Result<(ExitStatus, Duration)> {
        let child = self.agent().take();
        let mut child = child.ok_or_else(|| {
            LabError::unexpected(
                format!("stop the agent of {}", self.namespace.name()),
                "none runs",
            )
        })?;
        let began = Instant::now();
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        let status = wait_child(&mut child, PATIENCE)?;
        Ok((status, began.elapsed()))
    }

    /// SIGKILL, and wait. Nothing happens when no agent runs.
    pub fn kill9(&mut self) {
        self.kill();
    }

    fn kill(&self) {
        if let Some(mut child) = self.agent().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGKILL without waiting, while others talk to the agent; follow it by
    /// [`Node::kill9`].
    pub fn shoot(&self) {
        if let Some(pid) = self.agent_pid() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    /// [`Node::stop`], then [`Node::start_agent`].
    ///
    /// # Errors
    /// As the two.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_agent()
    }

    /// Has the agent leave, by SIGKILL or as asked, and starts it again, while
    /// others look at the node.
    ///
    /// # Errors
    /// When it does not leave well or does not come back.
    pub fn bounce(&self, is_crash: bool) -> Result<()> {
        match is_crash {
            true => self.kill(),
            false => {
                let (status, _) = self.terminate()?;
                if !status.success() {
                    let what = format!("SIGTERM to the agent of {}", self.namespace.name());
                    return Err(LabError::unexpected(what, status.to_string()));
                }
            }
        }
        self.launch()
    }

    fn agent(&self) -> MutexGuard<'_, Option<Child>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `spinlane ARGS… --run-dir DIR -o json` on the node and parses what
    /// it prints.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn cli(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let line = format!("spinlane {}", all.join(" "));
        let output = self.cli_output(&all)?;
        let text = process::success(&line, &output)?;
        serde_json::from_str(&text)
            .map_err(|error| LabError::unexpected(line, format!("{error} in {text:?}")))
    }

    /// Runs `spinlane ARGS… --run-dir DIR` on the node; whatever it answers.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn cli_output(&self, arguments: &[&str]) -> Result<Output> {
        self.namespace
            .command(program("spinlane")?)
            .args(arguments)
            .arg("--run-dir")
            .arg(self.run_dir())
            .stdin(Stdio::null())
            .output()
            .map_err(LabError::io(format!(
                "start `spinlane {}`",
                arguments.join(" ")
            )))
    }

    /// The drop counters (`spinlane drops`).
    ///
    /// # Errors
    /// As [`Node::cli`].
    pub fn drops(&self) -> Result<spinlane_api::view::Drops> {
        decoded("spinlane drops", self.cli(&["drops"])?)
    }

    /// The agent's state (`spinlane status`).
    ///
    /// # Errors
    /// As [`Node::cli`].
    pub fn status(&self) -> Result<spinlane_api::view::Status> {
        decoded("spinlane status", self.cli(&["status"])?)
    }

    /// The ports (`spinlane ports`).
    ///
    /// # Errors
    /// As [`Node::cli`].
    pub fn ports(&self) -> Result<Vec<spinlane_api::view::Port>> {
        decoded("spinlane ports", self.cli(&["ports"])?)
    }

    /// Names of the pods that have ports, in alphabetical order.
    ///
    /// # Errors
    /// As [`Node::cli`].
    pub fn pods(&self) -> Result<Vec<String>> {
        let ports = self.ports()?.into_iter();
        let pods = ports.filter(|port| port.kind == spinlane_api::view::PortKind::Pod);
        let mut names: Vec<String> = pods.map(|port| port.pod).collect();
        names.sort();
        Ok(names)
    }

    /// The frames once nothing moves: waits until every one of them is free
    /// or with the kernel to be filled.
    ///
    /// # Errors
    /// When some stay in use, or the agent does not answer.
    pub fn settled_frames(&self) -> Result<spinlane_api::view::Frames> {
        let mut last = None;
        wait_for("frames to come home", PATIENCE, || {
            last = self.status().ok().map(|status| status.frames);
            last.filter(|frames| frames.in_use == 0 && frames.free == frames.total)
        })
        .map_err(|error| {
            LabError::unexpected(
                format!("frames of {}", self.namespace.name()),
                format!("{error}: {last:?}"),
            )
        })
    }

    /// Interfaces in the node's namespace but loopback, by name.
    ///
    /// # Errors
    /// When iproute2 cannot be run.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let text = self.namespace.run(&["ip", "-json", "link", "show"])?;
        let links: Vec<Value> = decoded(
            "ip -json link show",
            serde_json::from_str(&text)
                .map_err(|error| LabError::unexpected("ip -json link show", error.to_string()))?,
        )?;
        Ok(links
            .iter()
            .filter_map(|link| link["ifname"].as_str())
            .filter(|name| *name != "lo")
            .map(str::to_owned)
            .collect())
    }

    /// A network configuration for this node's agent, as a runtime would pass
    /// it; `more` is merged over it.
    #[must_use]
    pub fn network(&self, name: &str, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": name,
            "type": "spinlane-cni",
            "runDir": self.run_dir(),
        });
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        config
    }

    /// The namespace that plays the node.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The agent's run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The agent's state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The directory that the agent reads manifests from.
    #[must_use]
    pub fn manifests_dir(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// A directory for a delegated IPAM plugin's files.
    #[must_use]
    pub fn ipam_dir(&self) -> PathBuf {
        self.dir.join("ipam")
    }

    /// The agent's configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("spinlane.toml")
    }

    /// The last `lines` lines of the agent's standard error, over all starts.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    fn spawn_agent(&self) -> Result<Child> {
        let path = self.log_path();
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(LabError::io(format!("open {}", path.display())))?;
        let _ = writeln!(log, "--- agent starts");
        self.namespace
            .command(program("spinlane")?)
            .arg("agent")
            .arg("--config")
            .arg(self.config_path())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--state-dir")
            .arg(self.state_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(LabError::io("start `spinlane agent`"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut stderr = std::io::stderr();
            let _ = writeln!(
                stderr,
                "--- log of the agent of {} ends:\n{}\n---",
                self.namespace.name(),
                self.log_tail(25)
            );
        }
        self.kill9();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Waits for the line `ready`; keeps reading afterwards so that the agent
/// never meets a closed or full pipe.
fn ready_line(child: &mut Child) -> std::result::Result<(), String> {
    let stdout = child.stdout.take().ok_or("it has no standard output")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { return };
            if line == "ready" {
                let _ = sender.send(());
            }
        }
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(()) => Ok(()),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!(
            "it did not print `ready` within {} s",
            PATIENCE.as_secs()
        )),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(match child.wait() {
            Ok(status) => format!("it ended before `ready` with {status}"),
            Err(error) => format!("it closed its standard output: {error}"),
        }),
    }
}

fn decoded<T: for<'de> serde::Deserialize<'de>>(what: &str, value: Value) -> Result<T> {
    let text = value.to_string();
    serde_json::from_value(value)
        .map_err(|error| LabError::unexpected(what, format!("{error} in {text}")))
}
