//! Subjects × scenarios, interleaved: A B C, A B C, … so that whatever
//! disturbs the machine disturbs all alike. A round is all scenarios once. [`plan`] says who does what,
//! [`field`] runs it, [`document`] is what comes out, [`verdict`] judges it,
//! [`baseline`] holds two of them against each other.

pub mod baseline;
pub mod document;
pub mod field;
pub mod machine;
pub mod plan;
pub mod verdict;

pub use document::{Comparison, Outcome, SubjectResult};
pub use field::Field;
pub use plan::Plan;
