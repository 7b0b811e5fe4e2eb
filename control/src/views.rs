//! What the agent shows of itself, in the documents of [`spinlane_api::view`].
//!
//! [`Views`] is the one door through which the HTTP socket, the metrics and
//! the health endpoints look at the running switch; they know neither the
//! engine nor the node. Its methods may block for some milliseconds (a lane is
//! asked and answers in its next round), so async callers use
//! [`blocking`](crate::api::blocking).

use std::time::{Duration, SystemTime};

use spinlane_api::view;

/// The running switch as others see it.
pub trait Views: Send + Sync + 'static {
    /// `status`
    fn status(&self) -> view::Status;
    /// `ports`
    fn ports(&self) -> Vec<view::Port>;
    /// `flows`
    fn flows(&self) -> Vec<view::Flow>;
    /// `connections`
    fn connections(&self) -> Vec<view::Connection>;
    /// `fdb`
    fn fdb(&self) -> Vec<view::FdbEntry>;
    /// `routes`
    fn routes(&self) -> Vec<view::Route>;
    /// `drops`
    fn drops(&self) -> view::Drops;
    /// Starts to copy packets: of one port of [`Views::ports`] by name, or of
    /// all. `None` when there is no such port (any more).
    fn capture(&self, port: Option<&str>, snaplen: usize) -> Option<Box<dyn Packets>>;
}

/// A running capture; dropping it ends it.
pub trait Packets: Send {
    /// The next packet, or `None` when none came within `timeout`.
    fn next(&mut self, timeout: Duration) -> Option<Packet>;
    /// Packets that were not copied because the reader did not keep up.
    fn lost(&self) -> u64;
    /// Whether the one port that it is of is gone: nothing comes any more.
    fn is_over(&self) -> bool;
}

/// A captured packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When the lane had it.
    pub at: SystemTime,
    /// Name of the port.
    pub port: String,
    /// Came in by the port (from the pod), or went out by it.
    pub inbound: bool,
    /// Length on the port in bytes; `data` may be shorter.
    pub len: usize,
    /// Why it was dropped, when it was.
    pub drop: Option<&'static str>,
    /// The frame from its Ethernet header on.
    pub data: Vec<u8>,
}

/// Longest time that a lane may take between two rounds, asleep or not.
pub const LANE_STALL_S: f64 = 5.0;

/// What is wrong with the agent: parts or lanes of it have ended, or lanes
/// have not gone round for [`LANE_STALL_S`].
pub fn unwell(status: &view::Status) -> Option<String> {
    if !status.ended.is_empty() {
        let parts = status.ended.join(", ");
        return Some(format!("{parts} ended: restart the agent"));
    }
    let those = |is_unwell: fn(&view::Lane) -> bool| -> Vec<usize> {
        let lanes = status.lanes.iter().filter(|lane| is_unwell(lane));
        lanes.map(|lane| lane.id).collect()
    };
    let ended = those(|lane| lane.has_ended);
    if !ended.is_empty() {
        return Some(format!("lanes {ended:?} have ended: restart the agent"));
    }
    let stalled = those(|lane| lane.last_round_age_s > LANE_STALL_S);
    (!stalled.is_empty()).then(|| format!("lanes {stalled:?} have not gone round for 5 s"))
}

/// What is wrong with ports, for an operator.
pub fn port_notices(ports: &[view::Port]) -> Vec<String> {
    let broken = ports.iter().filter_map(|port| {
        let fault = port.fault.as_ref()?;
        let whose = match port.pod.is_empty() {
            true => String::new(),
            false => format!(" of pod {}/{}", port.namespace, port.pod),
        };
        Some(format!(
            "port {}{whose} carries nothing and is tried again: {fault}",
            port.name
        ))
    });
    broken.collect()
}

/// The port that an operator means: the name of its host end, `namespace/pod`,
/// or the pod's name while that is unique.
pub fn find_port<'a>(ports: &'a [view::Port], name: &str) -> Result<&'a view::Port, String> {
    if let Some(port) = ports.iter().find(|port| port.name == name) {
        return Ok(port);
    }
    let matching: Vec<_> = ports
        .iter()
        .filter(|port| !port.pod.is_empty())
        .filter(|port| match name.split_once('/') {
            Some((namespace, pod)) => port.namespace == namespace && port.pod == pod,
            None => port.pod == name,
        })
        .collect();
    match matching[..] {
        [port] => Ok(port),
        [] => Err(format!(
            "no port is named {name:?}: `spinlane ports` lists them"
        )),
        _ => {
            let names: Vec<_> = matching.iter().map(|port| port.name.as_str()).collect();
            Err(format!(
                "{name:?} means several ports: choose one of {}",
                names.join(", ")
            ))
        }
    }
}

#[cfg(test)]
pub(crate) mod fake;
