//! Open vSwitch's userspace datapath with AF_XDP ports and one polling
//! thread, in a namespace with a database of its own; on one node, or on two
//! with its own VXLAN tunnel between them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use spinlane_tests::cluster::UPLINK;
use spinlane_tests::{Namespace, Process, lab_dir, wait_for};

use crate::measure::{MeasureError, io_error};
use crate::subject::peer::{Peer, TUNNELLED_MTU, UPLINK_SETTING};
use crate::subject::veth::Addressing;
use crate::subject::{Kind, LANE_CORE, SENDER_CORE, needs, setting, xdp_mode};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const PROGRAMS: [&str; 4] = ["ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl"];

/// An `ovs-vswitchd` with two pods.
pub(super) fn set_up() -> Result<Peer, MeasureError> {
    needs(Kind::OvsAfxdp, &PROGRAMS, "openvswitch-switch")?;
    let mut peer = Peer::on_one_node(Kind::OvsAfxdp, Addressing::Segment)?;
    let (switch, [database, daemon]) = start(&peer.nodes[0], LANE_CORE)?;
    peer.attending.push(database);
    peer.forwarding.push(daemon);
    switch.add_bridge("br0")?;
    for pod in &peer.pods {
        pod.complete_checksums()?;
        switch.add_afxdp_port("br0", &pod.host_end)?;
    }
    let polling = format!("core {LANE_CORE}, never sleeps");
    peer.settings = settings(&switch, &peer.pods[0].host_end, polling, 1500)?;
    Ok(peer)
}

/// An `ovs-vswitchd` with one pod on each of two nodes, and VXLAN between
/// them.
pub(super) fn set_up_vxlan() -> Result<Peer, MeasureError> {
    needs(Kind::OvsAfxdpVxlan, &PROGRAMS, "openvswitch-switch")?;
    let mut peer = Peer::on_two_nodes(Kind::OvsAfxdpVxlan)?;
    // Two threads that never sleep cannot share a core, so the receiving
    // node's has the generator's.
    for (index, core) in [LANE_CORE, SENDER_CORE].into_iter().enumerate() {
        let node = &peer.nodes[index];
        let (switch, [database, daemon]) = start(node, core)?;
        peer.attending.push(database);
        peer.forwarding.push(daemon);
        let (own, other) = (index + 1, 2 - index);
        switch.add_bridge("br0")?;
        switch.add_bridge("br-underlay")?;
        node.run(&["ethtool", "-K", UPLINK, "tx", "off"])?;
        node.ip(&format!("addr flush dev {UPLINK}"))?;
        switch.add_afxdp_port("br-underlay", UPLINK)?;
        node.ip(&format!("addr add 172.31.0.{own}/24 dev br-underlay"))?;
        node.ip("link set br-underlay up")?;
        peer.pods[index].complete_checksums()?;
        switch.add_afxdp_port("br0", &peer.pods[index].host_end)?;
        switch.add_tunnel("br0", &format!("172.31.0.{other}"))?;
        if index == 1 {
            let polling = format!(
                "core {LANE_CORE} for the sender's node, {SENDER_CORE} for the receiver's, never sleep"
            );
            peer.settings = settings(&switch, "p2", polling, TUNNELLED_MTU)?;
            peer.settings.push(UPLINK_SETTING.map(str::to_owned).into());
        }
    }
    Ok(peer)
}

/// Starts a database and a switch in `node`, which polls on `core`.
fn start(node: &Namespace, core: usize) -> Result<(Control<'_>, [Process; 2]), MeasureError> {
    let dir = lab_dir()?.join(node.name());
    fs::create_dir_all(&dir).map_err(io_error(format!("create {}", dir.display())))?;
    let control = Control { node, dir };
    let processes = [control.start_database(core)?, control.start_switch()?];
    Ok((control, processes))
}

fn settings(
    switch: &Control<'_>,
    host_end: &str,
    polling: String,
    mtu: u16,
) -> Result<Vec<(String, String)>, MeasureError> {
    Ok(vec![
        setting("version", switch.version()?),
        setting("XDP mode", xdp_mode(switch.node, host_end)?),
        setting("polling thread", polling),
        setting("route MTU", mtu.to_string()),
        setting("pod TX checksum, GSO", "off"),
    ])
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

    fn start_database(&self, core: usize) -> Result<Process, MeasureError> {
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
        let mask = format!("other_config:pmd-cpu-mask={:#x}", 1u64 << core);
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

    fn add_bridge(&self, name: &str) -> Result<(), MeasureError> {
        let kind = "datapath_type=netdev";
        self.vsctl(&["add-br", name, "--", "set", "bridge", name, kind])?;
        Ok(())
    }

    fn add_port(&self, bridge: &str, port: &str, options: &[&str]) -> Result<(), MeasureError> {
        let mut arguments = vec!["add-port", bridge, port, "--", "set", "interface", port];
        arguments.extend(options);
        self.vsctl(&arguments)?;
        Ok(())
    }

    fn add_afxdp_port(&self, bridge: &str, device: &str) -> Result<(), MeasureError> {
        self.add_port(bridge, device, &["type=afxdp"])?;
        let error = self.vsctl(&["get", "interface", device, "error"])?;
        if error.trim() == "[]" {
            return Ok(());
        }
        Err(MeasureError::Missing {
            name: Kind::OvsAfxdp.name(),
            reason: format!(
                "ovs-vswitchd refused an AF_XDP port: {}; use a build with AF_XDP",
                error.trim()
            ),
        })
    }

    fn add_tunnel(&self, bridge: &str, remote: &str) -> Result<(), MeasureError> {
        let remote = format!("options:remote_ip={remote}");
        self.add_port(bridge, "vxlan1", &["type=vxlan", &remote, "options:key=1"])
    }

    fn version(&self) -> Result<String, MeasureError> {
        let text = self.vsctl(&["--version"])?;
        let first = text.lines().next().unwrap_or_default();
        Ok(first.rsplit(' ').next().unwrap_or_default().to_owned())
    }
}
