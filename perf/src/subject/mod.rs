//! The switches under test, each set up from nothing with the same two pods.
//!
//! A subject has a namespace for the node and one for each pod; the pods'
//! device is `eth0`. While another subject is measured, one is paused (its
//! processes are stopped), so that a polling peer takes no core from it.

mod bridge;
mod forwarder;
mod ovs;
mod spinlane;

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use spinlane_tests::{Namespace, Node, wait_for};

use crate::measure::MeasureError;

pub use bridge::LinuxBridge;
pub use forwarder::Forwarder;
pub use ovs::OpenVSwitch;
pub use spinlane::Spinlane;

/// Core of generators and pinned senders.
pub const SENDER_CORE: usize = 0;
/// Core of a peer's polling thread; Spinlane takes the last one by itself,
/// which is the same where there are two.
pub const LANE_CORE: usize = 1;

/// Which switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Spinlane as shipped.
    Spinlane,
    /// Spinlane with `poll = "busy"`.
    SpinlaneBusy,
    /// The kernel's bridge.
    LinuxBridge,
    /// Open vSwitch's userspace datapath on AF_XDP.
    OvsAfxdp,
    /// A forwarder on the `afxdp` crate, without any switching.
    AfxdpCrate,
}

impl Kind {
    /// The name in tables and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Spinlane => "spinlane",
            Kind::SpinlaneBusy => "spinlane-busy",
            Kind::LinuxBridge => "linux-bridge",
            Kind::OvsAfxdp => "ovs-afxdp",
            Kind::AfxdpCrate => "afxdp-crate",
        }
    }

    /// Sets the subject up, both pods reaching each other.
    ///
    /// # Errors
    /// [`MeasureError::Missing`] when it is not on this machine; others when
    /// a step fails.
    pub fn set_up(self) -> Result<Box<dyn Subject>, MeasureError> {
        let subject: Box<dyn Subject> = match self {
            Kind::Spinlane => Box::new(Spinlane::set_up("adaptive")?),
            Kind::SpinlaneBusy => Box::new(Spinlane::set_up("busy")?),
            Kind::LinuxBridge => Box::new(LinuxBridge::set_up()?),
            Kind::OvsAfxdp => Box::new(OpenVSwitch::set_up()?),
            Kind::AfxdpCrate => Box::new(Forwarder::set_up()?),
        };
        subject.reach()?;
        Ok(subject)
    }
}

/// One end: a namespace whose `eth0` is behind the switch.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// The pod's namespace.
    pub namespace: &'a Namespace,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
}

impl Pod<'_> {
    /// The address of a family.
    #[must_use]
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }
    }
}

/// A switch with two pods on it.
pub trait Subject {
    /// Which.
    fn kind(&self) -> Kind;

    /// The sending and the receiving pod.
    fn pods(&self) -> [Pod<'_>; 2];

    /// The namespace that plays the node.
    fn node(&self) -> &Namespace;

    /// Name of the sending pod's device in the node's namespace.
    fn host_end(&self) -> &str;

    /// Its agent, when it has one that answers `spinlane`'s commands.
    fn agent(&self) -> Option<&Node> {
        None
    }

    /// Processes that do its work; none for the kernel's own.
    fn pids(&self) -> Vec<u32>;

    /// What a reader has to know of the way it was run, in order.
    fn settings(&self) -> &[(String, String)];

    /// Stops its processes until [`Subject::resume`].
    fn pause(&mut self);

    /// Lets its processes go on.
    fn resume(&mut self);

    /// Waits until the pods reach each other, over IPv4 and IPv6.
    ///
    /// # Errors
    /// When they do not.
    fn reach(&self) -> Result<(), MeasureError> {
        let [from, to] = self.pods();
        for address in [to.v4, to.v6] {
            wait_for(
                &format!("a ping through {} to {address}", self.kind().name()),
                Duration::from_secs(6),
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

/// A pod of a peer: a namespace with one half of a veth whose other half,
/// `HOST_END`, is in the node's namespace.
#[derive(Debug)]
struct PeerPod {
    namespace: Namespace,
    v4: IpAddr,
    v6: IpAddr,
}

impl PeerPod {
    /// Addresses 10.99.0.`number` and fd99::`number`.
    fn create(node: &Namespace, host_end: &str, number: u8) -> Result<PeerPod, MeasureError> {
        let namespace = Namespace::create(&format!("pod{number}"))?;
        node.ip(&format!(
            "link add {host_end} type veth peer name eth0 netns {}",
            namespace.name()
        ))?;
        let (v4, v6) = (format!("10.99.0.{number}"), format!("fd99::{number}"));
        namespace.ip(&format!("addr add {v4}/24 dev eth0"))?;
        namespace.ip(&format!("addr add {v6}/64 dev eth0 nodad"))?;
        namespace.ip("link set eth0 up")?;
        node.ip(&format!("link set {host_end} up"))?;
        let parse = |text: String| {
            text.parse().map_err(|_| MeasureError::Unexpected {
                what: "address of a pod".to_owned(),
                detail: text,
            })
        };
        Ok(PeerPod {
            namespace,
            v4: parse(v4)?,
            v6: parse(v6)?,
        })
    }

    fn pod(&self) -> Pod<'_> {
        Pod {
            namespace: &self.namespace,
            v4: self.v4,
            v6: self.v6,
        }
    }
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
