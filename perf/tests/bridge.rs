//! A short comparison with one subject that every machine has.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use assert_cmd::cargo::CommandCargoExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use spinlane_tests::{root_or_skip, wait_for};

/// Namespaces of the process `pid` that have a name.
fn namespaces_of(pid: u32) -> usize {
    let prefix = format!("sl{pid}-");
    std::fs::read_dir("/run/netns").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .count()
    })
}

fn perf(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("spinlane-perf").unwrap();
    command.args(arguments);
    command
}

#[test]
fn every_scenario_gives_a_figure() {
    if !root_or_skip("every_scenario_gives_a_figure") {
        return;
    }
    for family in [&[][..], &["-6"][..]] {
        let mut command = perf(&[
            "compare",
            "--subjects",
            "linux-bridge",
            "--scenarios",
            "frames64,frames64-flows,udp-send,tcp,tcp-streams,udp-rr,tcp-rr",
            "--pairs",
            "1",
            "--seconds",
            "0.2",
            "--warm-up",
            "0.1",
            "--json",
            "-",
        ]);
        let child = command
            .args(family)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["schema_version"], 1);
        let scenarios = result["scenarios"].as_array().unwrap();
        assert_eq!(scenarios.len(), 7);
        for scenario in scenarios {
            let figure = &scenario["results"]["linux-bridge"];
            assert_eq!(figure["failure"], Value::Null, "{scenario}");
            assert!(
                figure["median"]["value"].as_f64().unwrap() > 1.0,
                "{scenario}"
            );
        }
        assert_eq!(namespaces_of(pid), 0);
    }
}

#[test]
fn ctrl_c_removes_everything() {
    if !root_or_skip("ctrl_c_removes_everything") {
        return;
    }
    let mut child = perf(&["tcp", "--subject", "linux-bridge", "--seconds", "60"])
        .spawn()
        .unwrap();
    let pid = child.id();
    wait_for("three namespaces", Duration::from_secs(10), || {
        (namespaces_of(pid) == 3).then_some(())
    })
    .unwrap();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(namespaces_of(pid), 0);
}
