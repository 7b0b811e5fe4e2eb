//! The `spinlane` binary.
fn main() {}
