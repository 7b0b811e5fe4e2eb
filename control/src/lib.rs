//! The control side of Spinlane: everything of the agent that is not the
//! packet path, and the operator's command line.
//!
//! [`config`] turns `spinlane.toml` into a validated value. [`node`] owns what
//! the node has (endpoints, addresses, links, the store) and plans the
//! snapshot that the lanes read. [`source`] keeps the cluster's objects.
#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod capture;
pub mod check;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod node;
pub mod source;
pub mod views;
