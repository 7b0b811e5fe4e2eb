//! Measuring a packet switch side by side with its peers.
//!
//! From the bottom up: frames ([`packet`]), what sends them ([`generator`]),
//! what counts them ([`sink`]), streams ([`tcp`]) and round trips ([`rr`]);
//! then the switches under test ([`subject`]), what is done to them
//! ([`scenario`]), the interleaved runs ([`compare`]) with their statistics
//! ([`stats`]) and report ([`report`]). [`node`] measures what has no peer,
//! [`micro`] the packet logic by itself, [`demo`] shows it all in a minute.
//!
//! Absolute figures depend on the machine and on what else it does; verdicts
//! are medians of ratios between runs that follow one another directly.
#![deny(unsafe_code)]

pub mod bpf;
pub mod clock;
pub mod compare;
pub mod cpu;
pub mod demo;
#[cfg(feature = "afxdp-baseline")]
pub mod forwarder;
pub mod generator;
pub mod measure;
pub mod micro;
pub mod node;
pub mod packet;
pub mod path;
pub mod progress;
pub mod report;
pub mod rfc2544;
pub mod rr;
pub mod scenario;
pub mod sink;
pub mod stats;
pub mod stop;
pub mod subject;
pub mod tcp;
pub mod terminal;
pub mod udp;
mod xsk;
