//! The switches under test, each set up from nothing with the same two pods.
//!
//! A subject has a namespace for the node and one for each pod; the pods'
//! device is `eth0`. While another subject is measured, one is paused (its
//! processes are stopped), so that a polling peer takes no core from it.

mod bridge;
mod forwarder;
mod forwarding;
mod kind;
mod masquerade;
mod ovs;
mod peer;
mod proxy;
mod redirect;
mod routed;
mod spinlane;
mod testpmd;
mod veth;

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spinlane_tests::{Namespace, Node, wait_for};

use crate::measure::MeasureError;
use crate::subject::peer::Peer;

pub use kind::{Kind, Topology};
pub use spinlane::Spinlane;

/// Core of generators and pinned senders.
pub const SENDER_CORE: usize = 0;
/// Core of a peer's polling thread; Spinlane takes the last one by itself,
/// which is the same where there are two.
pub const LANE_CORE: usize = 1;

/// UDP port that sinks count.
pub const SINK_PORT: u16 = 9;
/// Port of bulk TCP.
pub const BULK_PORT: u16 = 5201;
/// Port of round trips, TCP and UDP.
pub const ROUND_TRIP_PORT: u16 = 5202;
/// Port of short connections.
pub const CONNECTION_PORT: u16 = 5203;

/// How long a tunnel between busy polling threads may take to its first ping.
const REACH_TIMEOUT: Duration = Duration::from_secs(15);

/// How many services a proxy has unless told otherwise.
pub const SERVICES: usize = 1000;

/// One end: a namespace whose `eth0` is behind the switch.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// The pod's namespace.
    pub namespace: &'a Namespace,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
    /// Where its clients ask for it, when not at its own addresses.
    pub service: Option<ServiceAddress>,
}

/// Addresses that are not the pod's own: something translates them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceAddress {
    /// The IPv4 address.
    pub v4: IpAddr,
    /// The IPv6 address.
    pub v6: IpAddr,
    /// Whether pings to it are answered too.
    pub answers_pings: bool,
}

impl Pod<'_> {
    /// The address of a family.
    #[must_use]
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }
    }

    /// Where its clients send to: the service in front of it, or its own
    /// address.
    #[must_use]
    pub fn destination(&self, v6: bool) -> IpAddr {
        match self.service {
            Some(service) if v6 => service.v6,
            Some(service) => service.v4,
            None => self.address(v6),
        }
    }

    /// Where it answers a ping.
    #[must_use]
    pub fn pinged(&self, v6: bool) -> IpAddr {
        match self.service {
            Some(service) if service.answers_pings => self.destination(v6),
            _ => self.address(v6),
        }
    }
}

/// The link between two nodes, seen from outside of them.
#[derive(Debug, Clone)]
pub struct Wire<'a> {
    /// The first node.
    pub node: &'a Namespace,
    /// The link's namespace.
    pub namespace: &'a Namespace,
    /// Far end of the first node's uplink.
    pub port: String,
    /// Processes of the second node's switch; none for the kernel's own.
    pub far_pids: Vec<u32>,
}

/// Sends a signal to processes that the caller owns.
pub(crate) fn signal(pids: &[u32], signal: Signal) {
    for pid in pids {
        let _ = kill(Pid::from_raw(pid.cast_signed()), signal); // it may have ended
    }
}

/// A switch with two pods on it.
pub trait Subject {
    /// Which.
    fn kind(&self) -> Kind;

    /// The sending and the receiving pod.
    fn pods(&self) -> [Pod<'_>; 2];

    /// The other end of the sending pod's device: a namespace, and the name
    /// there.
    fn entrance(&self) -> (&Namespace, &str);

    /// Its agent, when it has one that answers `spinlane`'s commands.
    fn agent(&self) -> Option<&Node> {
        None
    }

    /// What joins its two nodes, where it has two.
    fn wire(&self) -> Option<Wire<'_>> {
        None
    }

    /// Processes that do its work; none for the kernel's own.
    fn pids(&self) -> Vec<u32>;

    /// What a reader has to know of the way it was run, in order.
    fn settings(&self) -> &[(String, String)];

    /// Forgets the connections that it follows, as if just set up; who is outside
    /// forgets them, too.
    ///
    /// # Errors
    /// When a step fails.
    fn forget_connections(&mut self) -> Result<(), MeasureError> {
        Ok(())
    }

    /// Stops its processes until [`Subject::resume`].
    fn pause(&mut self);

    /// Lets its processes go on.
    fn resume(&mut self);

    /// Adds a pod by the subject's CNI plugin and removes it again: how long
    /// each call took, process start included.
    ///
    /// # Errors
    /// When a call fails, or there is no plugin ([`Kind::has_plugin`]).
    fn cycle_pod(&self) -> Result<[Duration; 2], MeasureError> {
        Err(MeasureError::Missing {
            name: self.kind().name(),
            reason: "no CNI plugin for it is at hand".to_owned(),
        })
    }

    /// Waits until the pods reach each other, over IPv4 and IPv6.
    ///
    /// # Errors
    /// When they do not.
    fn reach(&self) -> Result<(), MeasureError> {
        let [from, to] = self.pods();
        for address in [false, true].map(|v6| to.pinged(v6)) {
            wait_for(
                &format!("a ping through {} to {address}", self.kind().name()),
                REACH_TIMEOUT,
                || ping(from.namespace, address).ok(),
            )?;
        }
        Ok(())
    }
}

/// One echo request, answered within a second.
///
/// # Errors
/// When no answer comes.
pub fn ping(from: &Namespace, to: IpAddr) -> Result<String, MeasureError> {
    Ok(from.run(&["ping", "-n", "-c", "1", "-W", "1", &to.to_string()])?)
}

/// Whether a device feature is on, as `ethtool -k` says.
fn feature(namespace: &Namespace, device: &str, name: &str) -> Result<bool, MeasureError> {
    let text = namespace.run(&["ethtool", "-k", device])?;
    Ok(text.lines().any(|line| {
        line.trim()
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(':'))
            .is_some_and(|state| state.trim().starts_with("on"))
    }))
}

fn setting(name: &str, value: impl Into<String>) -> (String, String) {
    (name.to_owned(), value.into())
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// What a kernel's own datapath leaves to say.
fn kernel_settings(peer: &Peer, mtu: u16) -> Result<Vec<(String, String)>, MeasureError> {
    let pod = &peer.pods[0].namespace;
    let state = |name| feature(pod, "eth0", name).map(on_off);
    Ok(vec![
        setting("route MTU", mtu.to_string()),
        setting("pod GSO", state("generic-segmentation-offload")?),
        setting("pod TX checksum", state("tx-checksumming")?),
    ])
}

/// How the kernel says that a device's XDP program is attached.
fn xdp_mode(namespace: &Namespace, device: &str) -> Result<&'static str, MeasureError> {
    let link = namespace.ip(&format!("link show {device}"))?;
    Ok(
        match link.split_whitespace().find(|word| word.starts_with("xdp")) {
            Some("xdp") => "native",
            Some("xdpgeneric") => "generic",
            _ => "none",
        },
    )
}

/// Checks that a subject's programs are installed.
fn needs(kind: Kind, programs: &[&str], package: &str) -> Result<(), MeasureError> {
    let is_there = |program: &str| {
        ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).is_file())
    };
    match programs.iter().find(|program| !is_there(program)) {
        None => Ok(()),
        Some(program) => Err(MeasureError::Missing {
            name: kind.name(),
            reason: format!("no {program}; install {package}"),
        }),
    }
}

/// Version of an installed Debian package.
fn package_version(package: &str) -> String {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", package])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        _ => "unknown".to_owned(),
    }
}
