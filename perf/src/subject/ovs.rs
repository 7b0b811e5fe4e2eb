//! Open vSwitch's userspace datapath with AF_XDP ports and one polling
//! thread, in a namespace with a database of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use spinlane_tests::{Namespace, Process, lab_dir, wait_for};

use crate::measure::{MeasureError, io_error};
use crate::subject::{Kind, LANE_CORE, PeerPod, Pod, Subject, setting};

const HOST_ENDS: [&str; 2] = ["p1", "p2"];
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// An `ovs-vswitchd` with two pods.
#[derive(Debug)]
pub struct OpenVSwitch {
    switch: Process,
    _database: Process,
    pods: [PeerPod; 2],
    node: Namespace,
    settings: Vec<(String, String)>,
}

impl OpenVSwitch {
    /// Makes it from nothing.
    ///
    /// # Errors
    /// [`MeasureError::Missing`] without the programs; others when a step
    /// fails.
    pub fn set_up() -> Result<OpenVSwitch, MeasureError> {
        check_installed()?;
        let node = Namespace::create("ovs")?;
        let dir = lab_dir()?.join(node.name());
        fs::create_dir_all(&dir).map_err(io_error(format!("create {}", dir.display())))?;
        let control = Control { node: &node, dir };
        let database = control.start_database()?;
        let switch = control.start_switch()?;
        let pods = [
            PeerPod::create(&node, HOST_ENDS[0], 1)?,
            PeerPod::create(&node, HOST_ENDS[1], 2)?,
        ];
        for pod in &pods {
            // An AF_XDP port passes on what it reads, so a checksum that the
            // pod left to its device would never be made.
            pod.namespace.run(&["ethtool", "-K", "eth0", "tx", "off"])?;
        }
        control.vsctl(&[
            "add-br",
            "br0",
            "--",
            "set",
            "bridge",
            "br0",
            "datapath_type=netdev",
        ])?;
        for end in HOST_ENDS {
            control.vsctl(&[
                "add-port",
                "br0",
                end,
                "--",
                "set",
                "interface",
                end,
                "type=afxdp",
            ])?;
            let error = control.vsctl(&["get", "interface", end, "error"])?;
            if error.trim() != "[]" {
                return Err(MeasureError::Missing {
                    name: "ovs-afxdp",
                    reason: format!(
                        "ovs-vswitchd refused an AF_XDP port: {}; use a build with AF_XDP",
                        error.trim()
                    ),
                });
            }
        }
        let settings = vec![
            setting("version", control.version()?),
            setting("XDP mode", control.xdp_mode()?),
            setting("polling thread", format!("core {LANE_CORE}, never sleeps")),
            setting("route MTU", "1500"),
            setting("pod TX checksum, GSO", "off"),
        ];
        Ok(OpenVSwitch {
            switch,
            _database: database,
            pods,
            node,
            settings,
        })
    }
}

impl Subject for OpenVSwitch {
    fn kind(&self) -> Kind {
        Kind::OvsAfxdp
    }

    fn pods(&self) -> [Pod<'_>; 2] {
        [self.pods[0].pod(), self.pods[1].pod()]
    }

    fn node(&self) -> &Namespace {
        &self.node
    }

    fn host_end(&self) -> &str {
        HOST_ENDS[0]
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.switch.id()]
    }

    fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    fn pause(&mut self) {
        self.switch.signal(Signal::SIGSTOP);
    }

    fn resume(&mut self) {
        self.switch.signal(Signal::SIGCONT);
    }
}

fn check_installed() -> Result<(), MeasureError> {
    for program in ["ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl"] {
        let found = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).is_file());
        if !found {
            return Err(MeasureError::Missing {
                name: "ovs-afxdp",
                reason: format!("no {program}; install openvswitch-switch"),
            });
        }
    }
    Ok(())
}

/// The programs of one database in one namespace.
struct Control<'a> {
    node: &'a Namespace,
    dir: PathBuf,
}

impl Control<'_> {
    fn socket(&self) -> PathBuf {
        self.dir.join("db.sock")
    }

    /// A command inside, with every default path in our directory.
    fn command(&self, program: &str) -> Command {
        let mut command = self.node.command(program);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, &self.dir);
        }
        command
    }

    fn start_database(&self) -> Result<Process, MeasureError> {
        let file = self.dir.join("conf.db");
        let made = Process::spawn({
            let mut command = self.command("ovsdb-tool");
            command.arg("create").arg(&file).arg(SCHEMA);
            command
        })?
        .wait(Duration::from_secs(10))?;
        if !made.status.success() {
            return Err(MeasureError::Unexpected {
                what: "ovsdb-tool create".to_owned(),
                detail: String::from_utf8_lossy(&made.stderr).trim().to_owned(),
            });
        }
        let mut command = self.command("ovsdb-server");
        command
            .arg(format!("--remote=punix:{}", self.socket().display()))
            .arg(&file);
        let server = Process::spawn(command)?;
        wait_for("ovsdb-server's socket", Duration::from_secs(10), || {
            self.socket().exists().then_some(())
        })?;
        self.vsctl(&["--no-wait", "init"])?;
        let mask = format!("other_config:pmd-cpu-mask={:#x}", 1u32 << LANE_CORE);
        self.vsctl(&["--no-wait", "set", "Open_vSwitch", ".", &mask])?;
        Ok(server)
    }

    fn start_switch(&self) -> Result<Process, MeasureError> {
        let mut command = self.command("ovs-vswitchd");
        command.arg(format!("unix:{}", self.socket().display()));
        Ok(Process::spawn(command)?)
    }

    /// Runs `ovs-vsctl` and returns what it prints.
    fn vsctl(&self, arguments: &[&str]) -> Result<String, MeasureError> {
        let database = format!("--db=unix:{}", self.socket().display());
        let mut all = vec!["ovs-vsctl", "--timeout=15", &database];
        all.extend(arguments);
        Ok(self.node.run(&all)?)
    }

    fn version(&self) -> Result<String, MeasureError> {
        let text = self.vsctl(&["--version"])?;
        let first = text.lines().next().unwrap_or_default();
        Ok(first.rsplit(' ').next().unwrap_or_default().to_owned())
    }

    /// How the kernel says that the ports' programs are attached.
    fn xdp_mode(&self) -> Result<&'static str, MeasureError> {
        let link = self.node.ip(&format!("link show {}", HOST_ENDS[0]))?;
        Ok(
            match link.split_whitespace().find(|w| w.starts_with("xdp")) {
                Some("xdp") => "native",
                Some("xdpgeneric") => "generic",
                _ => "none",
            },
        )
    }
}
