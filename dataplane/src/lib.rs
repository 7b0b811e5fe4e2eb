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
//!
//! `--cfg loom` leaves what threads share, for the tests named `loom_`.
#![deny(unsafe_code)]
#![cfg_attr(loom, allow(dead_code))] // what it leaves out used the rest

#[cfg(not(loom))]
pub mod bench;
pub mod counters;
pub mod drops;
#[cfg(not(loom))]
pub mod engine;
#[cfg(not(loom))]
pub mod event;
pub mod frame;
#[cfg(not(loom))]
mod group_socket;
#[cfg(not(loom))]
mod lane;
#[cfg(not(loom))]
mod mapped_bytes;
#[cfg(not(loom))]
mod mapped_words;
#[cfg(not(loom))]
mod monotonic;
#[cfg(not(loom))]
mod packet_socket;
#[cfg(not(loom))]
pub mod pipeline;
#[cfg(not(loom))]
mod port;
#[cfg(not(loom))]
mod raw_socket;
#[cfg(not(loom))]
pub mod snapshot;
#[cfg(not(loom))]
mod stream_socket;
mod sync;
pub mod tables;
#[cfg(not(loom))]
mod tcx;
pub mod types;
pub mod umem;
#[cfg(not(loom))]
mod uplink;
#[cfg(not(loom))]
mod uplink_way;
pub mod wire;
#[cfg(not(loom))]
mod xdp_link;
mod xsk;
