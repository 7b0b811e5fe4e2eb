//! What the node needs of the data path. The engine is the one
//! implementation that carries packets; tests of the node bring their own.

use std::os::fd::BorrowedFd;

use spinlane_dataplane::engine::Traffic;
use spinlane_dataplane::event::Event;
use spinlane_dataplane::snapshot::Snapshot;
use spinlane_dataplane::types::PortId;

use super::bound::{Binding, BoundHost, Offer};

/// An interface that becomes the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayOut<'a> {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: &'a str,
    /// What it has in use.
    pub offer: Offer,
    /// Descriptors of each of its receive rings; 0 where it has none.
    pub receive_ring: u32,
    /// A veth: what it carries may lack checksums and be longer than its MTU.
    pub is_veth: bool,
    /// Pods and uplink share a segment.
    pub is_bridged: bool,
    /// The port by which the node takes part in that segment.
    pub host: Option<BoundHost>,
}

/// The data path did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SwitchError {
    /// Frames or another bounded resource ran out.
    #[error("{0}")]
    Exhausted(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// A data path. Every method may be called from any thread.
pub trait Switch: Send + Sync + 'static {
    /// Queues that a veth for it needs, in each direction.
    fn veth_queues(&self) -> u32;
    /// Binds an interface, which is still down.
    fn attach(&self, id: PortId, ifindex: u32, name: &str) -> Result<Binding, SwitchError>;
    /// Binds the uplink, which the kernel goes on using; binds it anew when it
    /// is there.
    fn attach_uplink(&self, id: PortId, way_out: WayOut<'_>) -> Result<Binding, SwitchError>;
    /// Lets go of a port; returns when its frames are home. Fine when there
    /// is no such port.
    fn detach(&self, id: PortId) -> Result<(), SwitchError>;
    /// Has a pod's interface, in the calling thread's network namespace, lead
    /// its bulk TCP to the port's other way in, which takes longer super-frames.
    /// Mends what is not so any more.
    fn lead_streams(&self, name: &str, ifindex: u32) -> Result<(), SwitchError>;
    /// Whether such an interface still does.
    fn leads_streams(&self, name: &str, ifindex: u32) -> Result<bool, SwitchError>;
    /// Puts a snapshot in force.
    fn publish(&self, snapshot: Snapshot);
    /// Ends what an earlier process knew of pods that the snapshot in force
    /// does not have.
    fn settle(&self);
    /// What ports and lanes have done so far.
    fn traffic(&self) -> Traffic;
    /// Packets from a port that were lost so far.
    fn drops(&self, id: PortId) -> u64;
    /// Readable when events wait.
    fn event_fd(&self) -> BorrowedFd<'_>;
    /// Takes the events that wait.
    fn drain_events(&self, out: &mut Vec<Event>);
}
