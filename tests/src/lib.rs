//! The lab: network namespaces, agents and pods for tests and measurements.
//!
//! A test makes a [`Node`] (a namespace in which a real agent runs), attaches
//! [`Pod`]s to it by invoking the real CNI plugin as a container runtime
//! would, and sends [`traffic`] between them. Everything lives in namespaces
//! that the lab makes, and everything goes away with the values that stand
//! for it: by `Drop` when a test ends or panics, and by a watcher
//! process when the whole program is killed.
//!
//! Programs come from the directory of the test executable (`target/debug`
//! or `target/release`), or from `SPINLANE_BIN_DIR`.
#![forbid(unsafe_code)]

pub mod capture;
pub mod cluster;
pub mod cni;
pub mod egress;
mod error;
pub mod lan;
mod namespace;
mod node;
pub mod order;
pub mod plain;
mod pod;
pub mod probe;
mod process;
mod programs;
pub mod relay;
pub mod scapy;
pub mod site;
pub mod talk;
pub mod traffic;
mod watch;

pub use cluster::Cluster;
pub use error::{LabError, Result};
pub use namespace::{Namespace, veth};
pub use node::{Node, NodeConfig};
pub use plain::PlainNode;
pub use pod::{Attached, Pod};
pub use process::Process;
pub use programs::{lab_dir, program};
pub use site::Site;
pub use watch::finish;

use std::io::Write;
use std::time::{Duration, Instant};

/// Whether a test that needs root may run. Without root it says so loudly on
/// standard error, past the test harness's capture, and answers `false`.
///
/// # Panics
/// When the environment says `CI=true` and the process is not root: there a
/// skipped test is a failure.
#[must_use]
pub fn root_or_skip(test_name: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test_name} needs root, and CI=true forbids skipping it"
    );
    let line = format!("\n!!! SKIPPED {test_name}: it needs root (network namespaces)\n");
    // Not eprintln!: the harness would swallow the line of a passing test.
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

/// How long whatever is bound to come may take at least, on a machine that
/// does much else: nothing fails because it is slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Calls `probe` every few milliseconds until it answers `Some`.
///
/// # Errors
/// [`LabError::Timeout`] naming `what` when `timeout`, and [`PATIENCE`], have
/// passed.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let timeout = timeout.max(PATIENCE);
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(LabError::Timeout {
                what: what.to_owned(),
                seconds: timeout.as_secs_f64(),
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
