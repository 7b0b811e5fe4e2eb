//! What the data path holds of the node: interfaces, and how it is bound to
//! them.

use spinlane_dataplane::types::{MacAddr, PortId};

/// How a port is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// XDP in the driver, not in the stack.
    pub native: bool,
    /// Frames are not copied.
    pub zero_copy: bool,
    /// Lanes that hold a queue of it.
    pub lanes: usize,
}

/// A port that the data path holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundPort {
    /// Its id.
    pub id: PortId,
    /// Index of the host's end.
    pub ifindex: u32,
    /// How it is bound.
    pub binding: Binding,
}

/// The host's port and its two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundHost {
    /// The switch's side.
    pub port: BoundPort,
    /// MAC of the host's side.
    pub mac: MacAddr,
    /// Index of the host's side.
    pub ifindex: u32,
}

/// The node's way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundUplink {
    /// Its port.
    pub port: BoundPort,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The other end is another namespace of this machine.
    pub is_veth: bool,
    /// What its sockets were made for.
    pub offer: Offer,
}

/// What an uplink's device has at a moment, whatever it could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Receive queues; each has a socket.
    pub queues: u32,
    /// Cuts UDP datagrams that it is handed together.
    pub cuts_datagrams: bool,
    /// It cuts TCP super-frames of both families.
    pub cuts_segments: bool,
}

impl BoundUplink {
    /// Whether frames come from it with checksums that nobody completed, and
    /// longer than its MTU. A driver's own program sees them as they came by
    /// the wire. Programs in the stack see what the kernel made of them: on a
    /// bridge, a VLAN or a bond several segments put together, on a virtual
    /// machine's device what its host left to be summed up.
    pub fn has_partial_checksums(&self) -> bool {
        self.is_veth || !self.port.binding.native
    }
}
