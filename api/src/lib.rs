//! Types that cross Spinlane's two unix sockets.
//!
//! [`cni`] is what the CNI plugin and the agent say to each other over
//! `RUN_DIR/cni.sock`; [`view`] is what the agent shows over the HTTP socket
//! `RUN_DIR/api.sock` and what `spinlane -o json` prints. Both sides of each
//! socket take their types from here, so a field has one spelling.
#![forbid(unsafe_code)]

pub mod cni;
pub mod view;

/// Name of the agent's HTTP socket inside its run directory (mode 0600).
pub const API_SOCKET: &str = "api.sock";

/// Name of the socket inside the run directory on which the CNI plugin hands
/// over requests and network-namespace descriptors (mode 0600).
pub const CNI_SOCKET: &str = "cni.sock";

/// File inside the run directory that connections lie in, for the next agent
/// to go on with; of interest to agents of the same build alone.
pub const CONNECTIONS_FILE: &str = "connections";

/// Directory inside the run directory where the plugin records the deletions
/// that it took while no agent answered; one JSON [`cni::Attachment`] a file.
pub const PENDING_DELETIONS_DIR: &str = "pending-deletions";
