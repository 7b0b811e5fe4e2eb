//! What lanes tell control, over a bounded queue for each lane.

use std::net::IpAddr;

use crate::snapshot::Location;
use crate::types::{MacAddr, NextHopId, PortId, SegmentId};

/// Something that a lane saw and control should act on. Losing one is
/// harmless: the next packet of its kind says it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A station of a segment sent from this port: new there, moved there, or
    /// due for a refresh of its age.
    Station {
        /// The segment.
        segment: SegmentId,
        /// Its MAC address.
        mac: MacAddr,
        /// Where it is now.
        at: Location,
    },
    /// A packet waits for this neighbour's MAC address: the kernel is to
    /// resolve it.
    NeighborMissing {
        /// The neighbour.
        next_hop: NextHopId,
    },
    /// A packet goes to this station of a network that the uplink is in, and
    /// the snapshot has no neighbour for it.
    StationWanted {
        /// Its address.
        address: IpAddr,
    },
    /// The underlay says that packets to this address are too long.
    PathMtu {
        /// The destination of the outer packet that it quotes.
        destination: IpAddr,
        /// Longest IP packet that passes, in bytes.
        mtu: u32,
    },
    /// The pod behind this port, or the node's kernel, answered
    /// fragmentation-needed (or packet too big) to a super-frame that the
    /// switch delivered: it forwards or translates for others and needs
    /// segments.
    Forwarder {
        /// Its port.
        port: PortId,
        /// The MTU that it quoted, in bytes.
        mtu: u32,
        /// Where the quoted super-frame was going.
        destination: IpAddr,
    },
}
