//! What is known of other nodes and of the ways to them, the uplink first.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::beyond::inputs::Inputs;
use super::bound::{BoundHost, BoundUplink};
use super::kernel::Kernel;
use super::setup::Setup;
use crate::source;

/// What is known of other nodes and of the ways to them.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The cluster's nodes.
    pub nodes: Arc<Vec<Arc<source::Node>>>,
    /// The kernel's tables.
    pub kernel: Arc<Kernel>,
    /// The uplink.
    pub uplink: Option<BoundUplink>,
    /// Longest packets that the underlay told of, and until when they hold.
    pub path_mtus: HashMap<IpAddr, (u32, Instant)>,
    /// How the uplink is.
    pub state: UplinkState,
    /// Counts changes.
    pub version: u64,
}

/// How the uplink is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UplinkState {
    /// The configuration wants none.
    #[default]
    Unwanted,
    /// It carries packets.
    Up,
    /// There is no such interface, or no default route.
    Missing,
    /// Somebody took it down.
    Down,
    /// What it is plugged into is down.
    NoCarrier,
    /// It cannot be attached, and why.
    Refused(String),
}

impl UplinkState {
    /// One word for status.
    pub fn name(&self) -> &'static str {
        match self {
            UplinkState::Unwanted => "none",
            UplinkState::Up => "up",
            UplinkState::Missing => "missing",
            UplinkState::Down => "down",
            UplinkState::NoCarrier => "no-carrier",
            UplinkState::Refused(_) => "refused",
        }
    }

    /// What it means and what to do; nothing for one that is as it should be.
    pub fn notice(&self, name: &str) -> Option<String> {
        let wait = "traffic with other nodes waits and goes on by itself";
        Some(match self {
            UplinkState::Unwanted | UplinkState::Up => return None,
            UplinkState::Missing if name == "auto" => {
                format!(
                    "there is no default route, so no uplink: add one or name node.uplink; {wait}"
                )
            }
            UplinkState::Missing => {
                format!("the uplink {name} does not exist: make it or correct node.uplink; {wait}")
            }
            UplinkState::Down => format!("the uplink {name} is down: bring it up; {wait}"),
            UplinkState::NoCarrier => {
                format!(
                    "the uplink {name} has no carrier: look at its cable, switch or peer; {wait}"
                )
            }
            UplinkState::Refused(why) => format!("{why}; trying again"),
        })
    }
}

/// What the tables follow from, taken out of the lock.
pub struct View {
    nodes: Arc<Vec<Arc<source::Node>>>,
    kernel: Arc<Kernel>,
    uplink: Option<BoundUplink>,
    host: Option<BoundHost>,
    path_mtus: HashMap<IpAddr, u32>,
}

impl Surroundings {
    /// All of it at this moment.
    pub fn view(&self, host: Option<BoundHost>) -> View {
        let mtus = self.path_mtus.iter().map(|(to, (mtu, _))| (*to, *mtu));
        View {
            nodes: Arc::clone(&self.nodes),
            kernel: Arc::clone(&self.kernel),
            uplink: self.uplink,
            host,
            path_mtus: mtus.collect(),
        }
    }
}

impl View {
    /// As the planner takes it.
    pub fn inputs<'a>(&'a self, setup: &'a Setup) -> Inputs<'a> {
        Inputs {
            setup,
            nodes: &self.nodes,
            kernel: &self.kernel,
            uplink: self.uplink,
            host: self.host.map(|host| (host.port.id, host.ifindex)),
            path_mtus: &self.path_mtus,
        }
    }
}
