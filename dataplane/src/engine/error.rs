//! Why the engine or a port could not be had.

use std::io;

use crate::port::{PortSpec, ProgramError};
use crate::types::PortId;
use crate::umem::UmemError;

/// The engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No lane, or more than one machine word of them.
    #[error("{0} lanes are not possible: name 1 to 63 CPUs in lanes.cores")]
    Lanes(usize),
    /// The frame memory could not be had.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// A lane's thread or its descriptors could not be made.
    #[error("cannot start lane {lane}: {source}")]
    Lane {
        /// Which lane.
        lane: usize,
        /// The system's answer.
        source: io::Error,
    },
}

/// A port could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The number is in use or out of range.
    #[error("port {0:?} is attached already or out of range")]
    Id(PortId),
    /// Too few free frames for another port.
    #[error(
        "port {port}: {free} free frames are too few for another port, which needs {needed}: raise lanes.frames"
    )]
    Frames {
        /// Name of the port.
        port: String,
        /// Free frames.
        free: u64,
        /// What the port needs.
        needed: u64,
    },
    /// The kernel refused the socket.
    #[error("port {port}: cannot bind an AF_XDP socket to queue {queue}: {source}")]
    Bind {
        /// Name of the port.
        port: String,
        /// The queue.
        queue: u32,
        /// Its answer.
        source: io::Error,
    },
    /// The XDP program could not be put in place.
    #[error("port {port}: {source}")]
    Program {
        /// Name of the port.
        port: String,
        /// What went wrong.
        source: Box<ProgramError>,
    },
    /// No packet socket for group frames.
    #[error("uplink {port}: cannot open a packet socket for its group frames: {source}")]
    Groups {
        /// Name of the uplink.
        port: String,
        /// The system's answer.
        source: io::Error,
    },
    /// No packet sockets for pods' TCP.
    #[error("port {port}: cannot open packet sockets for TCP: {source}")]
    Streams {
        /// Name of the port.
        port: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A lane would have no queue to send by.
    #[error(
        "uplink {port}: {queues} queues are too few for {lanes} lanes: name fewer CPUs in lanes.cores, or give the interface more queues (ethtool -L)"
    )]
    Queues {
        /// Name of the uplink.
        port: String,
        /// Queues that it has.
        queues: usize,
        /// Lanes that need one.
        lanes: usize,
    },
    /// A lane did not answer, or the engine has stopped.
    #[error("port {0}: a lane does not answer, or the switch is stopping")]
    Lane(String),
}

impl PortError {
    /// Whether somebody else has the queue, for the moment or for good.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, PortError::Bind { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }

    pub(crate) fn program(port: &PortSpec, source: ProgramError) -> PortError {
        PortError::Program {
            port: port.name.clone(),
            source: Box::new(source),
        }
    }
}
