//! What can go wrong while measuring.

use std::io;

use spinlane_tests::LabError;

use crate::bpf::BpfError;
use crate::packet::PacketError;

/// A measurement that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// Namespaces, agents or programs.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A program in the kernel.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Frames that cannot be.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// A file or socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried on which object.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nothing came through.
    #[error("{what} did not come within {seconds} s: the switch does not carry it")]
    Unreachable {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// A subject that cannot run here.
    #[error("{name} is missing: {reason}")]
    Missing {
        /// The subject.
        name: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// An answer that was not understood.
    #[error("{what}: {detail}")]
    Unexpected {
        /// What was looked at.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Arguments that do not go together.
    #[error("{what}: {detail}")]
    Usage {
        /// The argument.
        what: String,
        /// Why it cannot be so, and what to do.
        detail: String,
    },
    /// A thread of ours panicked.
    #[error("a measuring thread panicked; its message is above")]
    Panicked,
    /// Nobody reads the result.
    #[error("standard output was closed")]
    Unread,
    /// Ctrl-C, before there was a result.
    #[error("interrupted")]
    Interrupted,
    /// Ctrl-C; the result up to then was given out.
    #[error("interrupted; the result is partial")]
    Partial,
}

/// A maker of [`MeasureError::Io`] for `map_err`.
pub fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> MeasureError {
    let what = what.into();
    move |source| MeasureError::Io { what, source }
}
