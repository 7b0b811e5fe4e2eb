//! Open vSwitch's DPDK datapath on a port without a wire (`net_null`), as a
//! measure of what a batch function may cost.
//!
//! The port makes packets of 64 zero bytes as fast as they are taken, and one
//! flow sends them back out of it. Its figure is of all cycles of the polling
//! thread, and so holds taking a buffer and giving it back; on the other hand
//! the packets have no IP header, so none is checked or changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use spinlane_tests::{Namespace, Process, lab_dir, wait_for};

use crate::measure::{MeasureError, io_error};
use crate::stop::Stop;

/// The subject's name.
pub(super) const NAME: &str = "ovs-dpdk";

/// By its own path: the plain name belongs to the build without DPDK.
const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Plain pages, no devices, nothing left in /run.
const EAL: &str = "--no-huge --legacy-mem -m 512 --no-shconf --no-telemetry --no-pci";
/// Times that a sample is tried.
const TRIES: u32 = 5;
/// After standing still, the first iteration counts the time that it stood.
const SETTLE: Duration = Duration::from_millis(50);
const START: Duration = Duration::from_secs(20);

/// A running `ovs-vswitchd` with one port and one flow.
#[derive(Debug)]
pub(super) struct OvsDpdk {
    switch: Process,
    _database: Process,
    node: Namespace,
    dir: PathBuf,
    /// What a reader has to know.
    pub(super) settings: Vec<(String, String)>,
}

impl OvsDpdk {
    /// Makes it from nothing, its polling thread on `core`; it stands still.
    pub(super) fn set_up(core: usize) -> Result<OvsDpdk, MeasureError> {
        check_installed()?;
        let node = Namespace::create("dpdk")?;
        let dir = lab_dir()?.join(node.name());
        fs::create_dir_all(&dir).map_err(io_error(format!("create {}", dir.display())))?;
        let database = start_database(&node, &dir)?;
        vsctl(
            &node,
            &dir,
            &[
                "--no-wait",
                "set",
                "Open_vSwitch",
                ".",
                "other_config:dpdk-init=true",
                &format!("other_config:pmd-cpu-mask={:#x}", 1u64 << core),
                &format!("other_config:dpdk-extra=\"{EAL}\""),
            ],
        )?;
        let mut command = command(&node, &dir, SWITCH);
        command
            .arg(format!("--unixctl={}", dir.join("ctl").display()))
            .arg(format!("unix:{}", dir.join("db.sock").display()));
        let switch = Process::spawn(command)?;
        let mut ovs = OvsDpdk {
            switch,
            _database: database,
            node,
            dir,
            settings: Vec::new(),
        };
        ovs.connect()?;
        let version = vsctl(&ovs.node, &ovs.dir, &["--version"])?;
        let version = version.lines().next().unwrap_or_default();
        ovs.settings = [
            ("version", version.rsplit(' ').next().unwrap_or_default()),
            ("port", "net_null, 64 bytes, sent back out of it"),
            ("flows", "1"),
            ("memory", EAL),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        ovs.switch.signal(Signal::SIGSTOP);
        Ok(ovs)
    }

    /// The bridge, its port and its flow.
    fn connect(&mut self) -> Result<(), MeasureError> {
        let ctl = self.dir.join("ctl");
        wait_for("ovs-vswitchd's control socket", START, || {
            (ctl.exists() || !self.switch.is_running()).then_some(())
        })?;
        if !self.switch.is_running() {
            return Err(missing(
                "it ended at its start; is librte-mempool-ring there?",
            ));
        }
        let bridge = "add-br br0 -- set bridge br0 datapath_type=netdev fail-mode=secure \
                      -- add-port br0 p1 -- set interface p1 type=dpdk \
                      options:dpdk-devargs=net_null0";
        let words: Vec<&str> = bridge.split_whitespace().collect();
        vsctl(&self.node, &self.dir, &words)?;
        let error = vsctl(&self.node, &self.dir, &["get", "interface", "p1", "error"])?;
        if error.trim() != "[]" {
            let error = error.trim();
            return Err(missing(&format!(
                "it refused a net_null port: {error}; install librte-net-null and \
                 librte-mempool-ring"
            )));
        }
        let mut flow = command(&self.node, &self.dir, "ovs-ofctl");
        flow.args(["add-flow", "br0", "in_port=p1,actions=in_port"]);
        run(flow).map(drop)
    }

    /// Cycles per packet over `time`; it stands still before and after. Going on
    /// after a pause it may first have other things to do than packets, so a
    /// time without any is not the end.
    pub(super) fn sample(&mut self, time: Duration, stop: &Stop) -> Result<f64, MeasureError> {
        self.switch.signal(Signal::SIGCONT);
        let mut tries = 1;
        let sample = loop {
            match self.look(time, stop) {
                Err(MeasureError::Unexpected { .. }) if tries < TRIES => tries += 1,
                result => break result,
            }
        };
        self.switch.signal(Signal::SIGSTOP);
        sample
    }

    fn look(&self, time: Duration, stop: &Stop) -> Result<f64, MeasureError> {
        thread::sleep(SETTLE);
        self.control("dpif-netdev/pmd-stats-clear")?;
        if !stop.sleep(time) {
            return Err(MeasureError::Interrupted);
        }
        cycles(&self.control("dpif-netdev/pmd-stats-show")?)
    }

    fn control(&self, what: &str) -> Result<String, MeasureError> {
        let mut appctl = command(&self.node, &self.dir, "ovs-appctl");
        appctl.arg("-t").arg(self.dir.join("ctl")).arg(what);
        run(appctl)
    }
}

impl Drop for OvsDpdk {
    fn drop(&mut self) {
        // The processes end by themselves; what is left is the directory.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The polling thread's `avg cycles per packet`.
fn cycles(shown: &str) -> Result<f64, MeasureError> {
    shown
        .lines()
        .find_map(|line| line.trim().strip_prefix("avg cycles per packet:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| MeasureError::Unexpected {
            what: "ovs-appctl dpif-netdev/pmd-stats-show".to_owned(),
            detail: "no line \"avg cycles per packet\": it took no packets".to_owned(),
        })
}

fn check_installed() -> Result<(), MeasureError> {
    match Path::new(SWITCH).is_file() && Path::new(SCHEMA).is_file() {
        true => Ok(()),
        false => Err(missing(
            "install openvswitch-switch-dpdk, librte-net-null23 and librte-mempool-ring23",
        )),
    }
}

fn missing(reason: &str) -> MeasureError {
    MeasureError::Missing {
        name: NAME,
        reason: reason.to_owned(),
    }
}

/// A command inside, with every default path in our directory.
fn command(node: &Namespace, dir: &Path, program: &str) -> Command {
    let mut command = node.command(program);
    for variable in [
        "OVS_RUNDIR",
        "OVS_LOGDIR",
        "OVS_DBDIR",
        "OVS_SYSCONFDIR",
        "RUNTIME_DIRECTORY",
    ] {
        command.env(variable, dir);
    }
    command
}

fn run(command: Command) -> Result<String, MeasureError> {
    let line = format!("{command:?}");
    let output = Process::spawn(command)?.wait(START)?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(MeasureError::Unexpected {
            what: line,
            detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

fn start_database(node: &Namespace, dir: &Path) -> Result<Process, MeasureError> {
    let (file, socket) = (dir.join("conf.db"), dir.join("db.sock"));
    let mut create = command(node, dir, "ovsdb-tool");
    create.arg("create").arg(&file).arg(SCHEMA);
    run(create)?;
    let mut server = command(node, dir, "ovsdb-server");
    server
        .arg(format!("--remote=punix:{}", socket.display()))
        .arg(&file);
    let server = Process::spawn(server)?;
    wait_for("ovsdb-server's socket", START, || {
        socket.exists().then_some(())
    })?;
    vsctl(node, dir, &["--no-wait", "init"])?;
    Ok(server)
}

fn vsctl(node: &Namespace, dir: &Path, arguments: &[&str]) -> Result<String, MeasureError> {
    let mut vsctl = command(node, dir, "ovs-vsctl");
    vsctl
        .arg("--timeout=15")
        .arg(format!("--db=unix:{}", dir.join("db.sock").display()))
        .args(arguments);
    run(vsctl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polling_threads_figure_is_found() {
        let shown = "pmd thread numa_id 0 core_id 1:\n  packets received: 64\n  \
                     avg cycles per packet: 93.65 (6010328366/64181856)\n  \
                     avg processing cycles per packet: 90.00 (6010328366/64181856)\n\
                     main thread:\n  packets received: 0\n";
        assert_eq!(cycles(shown).unwrap(), 93.65);
        assert!(cycles("main thread:\n  packets received: 0\n").is_err());
    }
}
