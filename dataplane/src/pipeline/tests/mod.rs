//! The packet logic in memory: packets built by etherparse go in, verdicts
//! and rewritten frames come out.

mod plain;
mod world;
