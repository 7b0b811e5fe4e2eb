//! Tables that belong to one lane.

pub mod flow;
mod prefetch;
