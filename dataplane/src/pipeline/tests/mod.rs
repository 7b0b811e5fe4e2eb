//! The packet logic in memory: packets built by etherparse go in, verdicts
//! and rewritten frames come out.

mod apart;
mod coalesce;
mod datagrams;
mod fragments;
mod gather;
mod masquerade;
mod narrow;
mod overlay;
mod plain;
mod portions;
mod segments;
mod shared;
mod super_frames;
mod vectors;
