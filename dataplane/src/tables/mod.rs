//! Flow tables, of which each lane has its own, and the node's connections and
//! narrow paths.

pub mod connection;
#[cfg(not(loom))]
pub mod flow;
mod mix;
#[cfg(not(loom))]
pub mod paths;
mod prefetch;
