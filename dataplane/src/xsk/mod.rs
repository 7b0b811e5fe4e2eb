//! AF_XDP sockets by plain system calls.
//!
//! The kernel boundary of the data path: [`ring`] maps and moves the cursors
//! of one ring, [`socket`] opens, configures and binds one socket, [`queue`]
//! makes the four rings of a socket move frames. Layouts and constants:
//! include/uapi/linux/if_xdp.h; behaviour: net/xdp/xsk.c (Linux 6.18).
#![allow(unsafe_code)] // system calls and memory shared with the kernel

#[cfg(not(loom))]
pub(crate) mod queue;
pub(crate) mod ring;
#[cfg(not(loom))]
pub(crate) mod socket;
