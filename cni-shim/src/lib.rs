//! Spinlane's CNI plugin: what a container runtime invokes to attach a pod.
//!
//! The plugin is small because a runtime starts it anew for every call: it
//! reads the environment and the network configuration, runs a delegated IPAM
//! plugin when the configuration names one, hands the request and the pod's
//! namespace to the agent over a unix socket ([`agent`]) and prints the answer
//! as a CNI result. It touches no interface itself.
//!
//! Reading the CNI environment, checking versions and printing results and
//! errors is the business of `rscni-plugin`, which no other crate knows. What
//! it leaves to us is named where we do it: [`input`] (an error object carries
//! the configuration's `cniVersion`, not the plugin's; `"ipam": {}` means
//! none), [`settings`] (our keys, capabilities, the difference between an
//! absent and a null attachment list in GC) and [`ipam`] (delegation).
//!
//! | no agent answers | the plugin says |
//! |---|---|
//! | ADD, CHECK, GC | error 11, try again later |
//! | STATUS | error 50, not available |
//! | DEL | success, once the deletion is on disk ([`pending`]) |
#![forbid(unsafe_code)]

pub mod agent;
pub mod arguments;
pub mod error;
pub mod input;
pub mod ipam;
pub mod pending;
pub mod plugin;
pub mod result;
pub mod settings;

use std::process::ExitCode;

use rscni_plugin::cni::Plugin;
use rscni_plugin::version::SpecVersion;

/// Versions of the CNI specification that are answered.
const VERSIONS: [SpecVersion; 4] = [
    SpecVersion::new(0, 3, 1),
    SpecVersion::new(0, 4, 0),
    SpecVersion::new(1, 0, 0),
    SpecVersion::new(1, 1, 0),
];

/// Answers the call that the environment and standard input describe.
#[must_use]
pub fn run() -> ExitCode {
    let input = match input::Input::take() {
        Ok(input) => input,
        Err(error) => {
            eprintln!("spinlane-cni: cannot read standard input: {error}");
            return ExitCode::FAILURE;
        }
    };
    let plugin = Plugin::new(input.version(), VERSIONS.to_vec()).msg(concat!(
        "spinlane-cni ",
        env!("CARGO_PKG_VERSION"),
        ", the CNI plugin of Spinlane"
    ));
    match plugin.run(&plugin::SpinlaneCni::new(input)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
