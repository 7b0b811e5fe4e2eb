//! The data path of the Spinlane switch.
//!
//! A *lane* is a pinned thread that polls one AF_XDP queue of every *port*
//! (the host end of a pod's veth, the host port, later the uplink). One round
//! of a lane takes packets from a port, decides them in one call of the
//! pipeline, and hands them on: `rx → parse → flow lookup → (miss: classify)
//! → apply → tx → reclaim`.
//!
//! Dependencies point one way: `types ← wire ← tables ← pipeline ← lane` and
//! `xsk ← port ← lane`. There is no tokio and no serde here, and no
//! allocation, lock, log or system clock per packet.
#![deny(unsafe_code)]

pub mod counters;
pub mod drops;
pub mod engine;
pub mod event;
pub mod frame;
mod lane;
pub mod pipeline;
mod port;
pub mod snapshot;
pub mod tables;
pub mod types;
pub mod umem;
pub mod wire;
mod xsk;
