//! Ctrl-C during `spinlane demo`: nothing of it stays.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use assert_cmd::cargo::CommandCargoExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spinlane_tests::root_or_skip;

/// The program that users call, from where this one is.
fn spinlane() -> PathBuf {
    let perf = Command::cargo_bin("spinlane-perf").unwrap();
    Path::new(perf.get_program()).with_file_name("spinlane")
}

/// Names below a directory that belong to the lab of a process.
fn of_lab(dir: impl AsRef<Path>, pid: u32) -> BTreeSet<PathBuf> {
    let marks = [format!("sl{pid}-"), format!("spinlane-lab-{pid}")];
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.path());
    names
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            marks.iter().any(|mark| name.starts_with(mark.as_str()))
        })
        .collect()
}

/// Processes of the lab of another one, by their command lines.
fn processes_of(pid: u32) -> Vec<String> {
    let marks = [format!("sl{pid}-"), format!("spinlane-lab-{pid}")];
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines
        .filter(|line| marks.iter().any(|mark| line.contains(mark.as_str())))
        .collect()
}

/// Interrupts the demo when it says something, on either stream.
fn interrupted_at(words: &str) {
    let mut child = Command::new(spinlane())
        .args(["demo", "--seconds", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It becomes the measuring program.
    let pid = child.id();
    let (told, listening) = std::sync::mpsc::channel();
    let streams: [Box<dyn std::io::Read + Send>; 2] = [
        Box::new(child.stdout.take().unwrap()),
        Box::new(child.stderr.take().unwrap()),
    ];
    for stream in streams {
        let told = told.clone();
        std::thread::spawn(move || {
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            // The other end is open until the demo has ended.
            lines.for_each(|line| drop(told.send(line)));
        });
    }
    drop(told);
    let mut said = Vec::new();
    let is_there = listening.iter().any(|line| {
        said.push(line);
        said.last().unwrap().contains(words)
    });
    assert!(is_there, "it never said {words:?}: {said:?}");
    assert!(!of_lab("/run/netns", pid).is_empty());
    assert!(!of_lab(std::env::temp_dir(), pid).is_empty());
    assert!(!processes_of(pid).is_empty());
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    said.extend(listening.iter());
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    nothing_is_left_of(pid);
}

/// Namespaces, files, processes: who watches over the lab has left, too.
fn nothing_is_left_of(pid: u32) {
    assert_eq!(of_lab("/run/netns", pid), BTreeSet::new());
    assert_eq!(of_lab(std::env::temp_dir(), pid), BTreeSet::new());
    assert_eq!(processes_of(pid), Vec::<String>::new());
}

#[test]
fn everything_is_removed_when_it_says_so() {
    if !root_or_skip("everything_is_removed_when_it_says_so") {
        return;
    }
    let mut child = Command::new(spinlane())
        .args(["demo", "--pairs", "1", "--seconds", "0.2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.find(|line| line.as_ref().unwrap().starts_with("Everything is removed"));
    nothing_is_left_of(pid);
    assert!(said.is_some(), "it never said so");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_program_reads_what_it_found() {
    if !root_or_skip("a_program_reads_what_it_found") {
        return;
    }
    let output = Command::new(spinlane())
        .args(["demo", "-o", "json", "--pairs", "1", "--seconds", "0.2"])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let scenarios = found["comparison"]["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), 4, "{found}");
    assert_eq!(found["schema_version"], 1, "{found}");
    assert!(found["ports"].as_array().unwrap().len() >= 3, "{found}");
    assert!(found["status"]["frames"]["total"].is_u64(), "{found}");
    assert!(found["drops"]["spoofed"].is_u64(), "{found}");
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    if !root_or_skip("ctrl_c_leaves_nothing_behind") {
        return;
    }
    // With pods of its own alone, and in the midst of the comparison.
    interrupted_at("attached by spinlane-cni");
    interrupted_at("tcp linux-bridge");
}
