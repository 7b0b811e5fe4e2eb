//! A short comparison with one subject that every machine has.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use assert_cmd::cargo::CommandCargoExt;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use spinlane_tests::{root_or_skip, wait_for};

/// What a flood has no room for in the CPUs' backlogs may be anybody's packets:
/// floods read it, who counts packets writes it.
static QUIET: RwLock<()> = RwLock::new(());

fn flooding() -> RwLockReadGuard<'static, ()> {
    QUIET.read().unwrap_or_else(PoisonError::into_inner)
}

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
    let _flooding = flooding();
    for family in [&[][..], &["-6"][..]] {
        let mut command = perf(&[
            "compare",
            "--subjects",
            "linux-bridge",
            "--scenarios",
            "frames64,frames64-flows,churn,udp-send,tcp,tcp-streams,udp-rr,tcp-rr,udp-rr-load,crr,pods",
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
        assert_eq!(result["schema_version"], 2);
        assert_eq!(result["complete"], true);
        let scenarios = result["scenarios"].as_array().unwrap();
        assert_eq!(scenarios.len(), 11);
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
fn one_switch_is_measured_by_itself() {
    if !root_or_skip("one_switch_is_measured_by_itself") {
        return;
    }
    for (command, figure) in [
        (&["crr"][..], "value"),
        (&["churn"], "value"),
        (&["churn", "--pods"], "value"),
        (&["rr", "--transport", "tcp"], "p99_us"),
        (&["rr", "--load", "2000"], "load_packets_per_second"),
    ] {
        let output = perf(command)
            .args(["--subject", "linux-bridge", "--seconds", "0.2"])
            .args(["--warm-up", "0.1", "-o", "json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(result[figure].as_f64().unwrap() > 1.0, "{result}");
    }
    let output = perf(&["churn", "--subject", "nft-proxy"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("nft-proxy") && error.lines().count() == 1,
        "{error}"
    );
}

#[test]
fn nothing_is_left_out_in_silence() {
    let told = |arguments: &[&str]| {
        let output = perf(&["compare", "--dry-run"])
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let some = [
        "--subjects",
        "linux-bridge,linux-vxlan",
        "--scenarios",
        "tcp,vxlan-encap",
    ];
    let (status, warning) = told(&some);
    assert_eq!(status, Some(0));
    assert!(
        warning.contains("vxlan-encap leaves linux-bridge out"),
        "{warning}"
    );
    assert_eq!(warning.lines().count(), 1, "{warning}");
    let (status, error) = told(&["--subjects", "linux-bridge", "--scenarios", "vxlan-encap"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("none of the scenarios suits"), "{error}");
}

/// A result that is kept with the sources.
fn kept_result() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "json"))
        .unwrap()
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    // Standard output and standard error closed at the other end.
    for closed in ["| true", "2>&1 | true"] {
        let program = perf(&[]).get_program().to_owned();
        let line =
            format!("{{ sleep 0.2; \"$0\" report --readme \"$1\"; echo $? >\"$2\"; }} {closed}");
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("status");
        let result = kept_result();
        let output = Command::new("sh")
            .args(["-c", &line])
            .args([program.as_os_str(), result.as_os_str(), status.as_os_str()])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(told, "");
        assert_eq!(std::fs::read_to_string(&status).unwrap(), "0\n", "{closed}");
    }
}

/// Interrupts a command as a terminal does, every process of it, when it has
/// said `begins` and `ready` returns; what it left.
fn interrupted(command: &mut Command, begins: &str, ready: impl FnOnce(u32)) -> Value {
    let mut child = command
        .args(["-o", "json"])
        .process_group(0)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().contains(begins)), "{begins}");
    ready(pid);
    killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = told.map(Result::unwrap).collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{rest:?}");
    assert!(rest.last().unwrap().contains("until then"), "{rest:?}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["schema_version"], 1, "{result}");
    assert_eq!(result["complete"], false, "{result}");
    assert_eq!(namespaces_of(pid), 0);
    let lab = std::env::temp_dir().join(format!("spinlane-lab-{pid}"));
    assert!(!lab.exists());
    result
}

fn after_two_seconds(_: u32) {
    std::thread::sleep(Duration::from_secs(2));
}

/// What is measured by itself, for longer than anybody waits; interrupted, it
/// leaves what was measured until then.
#[test]
fn ctrl_c_leaves_what_one_switch_gave() {
    if !root_or_skip("ctrl_c_leaves_what_one_switch_gave") {
        return;
    }
    let bridge = ["--subject", "linux-bridge", "--seconds", "600"];
    for (command, figure, begins) in [
        (&["tcp"][..], "bits_per_second", "TCP"),
        (&["rr"], "p50_us", "round trips"),
        (&["crr"], "value", "TCP connections"),
        (&["churn", "--pods"], "add_mean_ms", "pods"),
        (&["udp", "--rate", "1000"], "packets_per_second", "UDP"),
    ] {
        let result = interrupted(perf(command).args(bridge), begins, after_two_seconds);
        let found = result.get(figure).unwrap_or(&result["details"][figure]);
        assert!(found.as_f64().unwrap() > 1.0, "{result}");
    }
}

/// The agent, or the one that is just starting, and the plugin are told to end,
/// too.
#[test]
fn ctrl_c_leaves_what_a_node_gave() {
    if !root_or_skip("ctrl_c_leaves_what_a_node_gave") {
        return;
    }
    let cni = &mut perf(&["cni", "--pods", "1", "--calls", "10000"]);
    let result = interrupted(cni, "measuring call 3", |_| {});
    assert!(result["add"]["count"].as_u64().unwrap() >= 2, "{result}");
    assert_eq!(result["add"]["count"], result["del"]["count"], "{result}");
    let lifecycle = || perf(&["lifecycle", "--pods", "1", "--rounds", "1000"]);
    for as_it_starts in [true, false] {
        // In the third round, as the next agent comes or the last one leaves.
        let begins = "stop and start 3";
        let result = interrupted(&mut lifecycle(), begins, |pid| {
            let first = agents_of(pid);
            wait_for("the next agent", Duration::from_secs(10), || {
                let now = agents_of(pid);
                (!as_it_starts || now.iter().any(|agent| !first.contains(agent))).then_some(())
            })
            .unwrap();
        });
        // A round that this process was late for counts, too, but none by half.
        let rounds = |times: &str| result[times].as_array().unwrap().len();
        assert!(rounds("stop_s") >= 2, "{result}");
        assert_eq!(rounds("stop_s"), rounds("start_s"), "{result}");
    }
}

/// Agents that the process `pid` started.
fn agents_of(pid: u32) -> Vec<String> {
    let children = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(children).unwrap();
    let line = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
    children
        .split_whitespace()
        .filter(|pid| line(pid).is_ok_and(|line| line.contains("spinlane\0agent\0")))
        .map(str::to_owned)
        .collect()
}

#[test]
fn what_does_not_go_together_is_wrong_usage() {
    for (line, word) in [
        ("", "give a command"),
        ("pktgen --dst 10.0.0.1 --gso", "--gso"),
        (
            "pktgen --dst 10.0.0.1 --size 64:1,9000:1 --dst-mac 02:00:00:00:00:01 --dev lo",
            "--size 9000",
        ),
        ("pktgen --dst 10.0.0.1 --dev lo", "give --dst-mac"),
        ("pktgen --dst 10.0.0.1 --rounds 2", "--rounds"),
        ("pktgen --dst 10.0.0.1 --speed 2", "--speed"),
        ("pktgen --dst 10.0.0.1 --vxlan-port 4790", "--vxlan"),
        (
            "pktgen --engine socket --dst 10.0.0.1 --dst-mac 02:00:00:00:00:01",
            "--dst-mac",
        ),
        (
            "pktgen --engine socket --dst 127.0.0.1 --protocol icmp-echo",
            "ICMP",
        ),
        ("pktgen --engine xdp --replay none.pcap", "--engine xdp"),
        ("pktgen --replay none.pcap --dport 7", "--dport"),
        ("sink --socket --port 9-10", "--port"),
        ("micro --only tea", "--only tea"),
    ] {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = perf(&arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {error}");
        assert!(error.starts_with("spinlane-perf: "), "{line}: {error}");
        assert!(error.contains(word), "{line}: {error}");
        assert_eq!(output.stdout, b"", "{line}");
    }
}

/// As somebody who is not root: told so in a line, and what needs no namespaces
/// is done.
#[test]
fn without_root_it_says_so() {
    use std::os::unix::fs::PermissionsExt;

    if !root_or_skip("without_root_it_says_so") {
        return;
    }
    // Where everybody may look.
    let dir = tempfile::tempdir().unwrap();
    let everybody = || std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), everybody()).unwrap();
    let program = dir.path().join("spinlane-perf");
    std::fs::copy(perf(&[]).get_program(), &program).unwrap();
    let call = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .current_dir("/")
            .uid(65534)
            .gid(65534);
        command.output().unwrap()
    };
    let compare = [
        "compare",
        "--subjects",
        "linux-bridge",
        "--scenarios",
        "tcp",
    ];
    for arguments in [&["tcp"][..], &["cni"], &compare] {
        let output = call(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("run it as root"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let micro = [
        "micro",
        "--only",
        "checksum",
        "--rounds",
        "1",
        "--no-instructions",
        "-o",
        "json",
    ];
    let output = call(&micro);
    assert!(output.status.success(), "{output:?}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["schema_version"], 2, "{result}");
    assert!(result["peer"]["missing"].is_string(), "{result}");
    assert!(result["cases"][0]["cycles"]["value"].as_f64() > Some(0.0));
}

#[test]
fn a_comparison_of_nobody_is_no_success() {
    if !root_or_skip("a_comparison_of_nobody_is_no_success") {
        return;
    }
    if cfg!(feature = "afxdp-baseline") {
        return; // it takes part then
    }
    let output = perf(&["compare", "--subjects", "afxdp-crate", "--scenarios", "tcp"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("afxdp-crate is missing"), "{error}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("afxdp-crate: missing"), "{table}");
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

/// A comparison that is interrupted in its first round leaves the scenarios
/// that were measured, says that it is partial, and nothing else.
#[test]
fn ctrl_c_leaves_a_partial_report_and_nothing_else() {
    if !root_or_skip("ctrl_c_leaves_a_partial_report_and_nothing_else") {
        return;
    }
    let _flooding = flooding();
    interrupt(["linux-bridge,linux-routed", "udp-rr,tcp-rr"]);
    // As a burst begins, whose end is another thread's.
    interrupt(["nft-masquerade", "new-udp,new-tcp"]);
}

/// Interrupts a comparison as the second of two scenarios begins.
fn interrupt([subjects, scenarios]: [&str; 2]) {
    let subject = subjects.split(',').next().unwrap();
    let second = scenarios.split(',').nth(1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut child = perf(&[
        "compare",
        "--subjects",
        subjects,
        "--scenarios",
        scenarios,
        "--pairs",
        "2",
        "--seconds",
        "1",
        "--warm-up",
        "0.1",
        "--json",
        &path("partial.json"),
        "--markdown",
        &path("partial.md"),
        "--html",
        &path("partial.html"),
    ])
    .stderr(std::process::Stdio::piped())
    .stdout(std::process::Stdio::null())
    .spawn()
    .unwrap();
    let pid = child.id();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let begins = format!("{second} {subject} 1/2");
    let begun = lines.find(|line| line.as_ref().unwrap().contains(&begins));
    assert!(begun.is_some(), "the second scenario never began");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(rest.last().unwrap().contains("interrupted"), "{rest:?}");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(namespaces_of(pid), 0);
    let result: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("partial.json")).unwrap()).unwrap();
    assert_eq!(result["complete"], false);
    let first = &result["scenarios"][0]["results"][subject]["samples"];
    assert_eq!(first.as_array().unwrap().len(), 1);
    for name in ["partial.md", "partial.html"] {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text.contains("Interrupted: rounds are missing."), "{name}");
    }
}

#[test]
fn a_udp_stream_arrives_whole() {
    if !root_or_skip("a_udp_stream_arrives_whole") {
        return;
    }
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    for family in [&[][..], &["-6"][..]] {
        let mut command = perf(&[
            "udp",
            "--subject",
            "linux-bridge",
            "--rate",
            "2000",
            "--flows",
            "4",
            "--size",
            "84:1,1518:1",
            "--seconds",
            "0.5",
            "-o",
            "json",
        ]);
        let output = command.args(family).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        // Its end may come before the last packets leave, on a busy machine.
        let offered = result["offered_packets"].as_u64().unwrap();
        assert!((1..=1000).contains(&offered), "{result}");
        assert_eq!(result["order"]["received"], offered, "{result}");
        assert_eq!(result["order"]["flows"], 4, "{result}");
        assert_eq!(result["loss_ratio"], 0.0, "{result}");
        assert!(result["jitter_us"].as_f64().unwrap() > 0.0, "{result}");
    }
    let output = perf(&["udp", "--subject", "linux-bridge", "--size", "1519"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("spinlane-perf: --size 1519: "), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

fn rfc2544(trial_seconds: &str) -> Command {
    perf(&[
        "rfc2544",
        "--subject",
        "linux-bridge",
        "--sizes",
        "imix",
        "--flows",
        "1000",
        "--trial-seconds",
        trial_seconds,
        "--trials",
        "1",
        "--latency-trials",
        "1",
        "--width",
        "20",
        "-o",
        "json",
    ])
}

#[test]
fn throughput_is_found_between_its_bounds() {
    if !root_or_skip("throughput_is_found_between_its_bounds") {
        return;
    }
    let _flooding = flooding();
    let dir = tempfile::tempdir().unwrap();
    let [markdown, html] = ["report.md", "report.html"].map(|name| dir.path().join(name));
    let output = rfc2544("0.1")
        .arg("--markdown")
        .arg(&markdown)
        .arg("--html")
        .arg(&html)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    for file in [markdown, html] {
        let text = std::fs::read_to_string(file).unwrap();
        for part in [
            "RFC 2544, linux-bridge",
            "Throughput",
            "Frame loss rate",
            "Method",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["complete"], true);
    let case = &report["cases"][0];
    assert_eq!(case["failure"], Value::Null);
    assert!(!case["loss_curve"].as_array().unwrap().is_empty());
    assert!(case["full_speed"]["received"].as_u64().unwrap() > 0);
    for found in case["throughput"].as_array().unwrap() {
        let (Some(lower), upper) = (found["lower"].as_f64(), found["upper"].as_f64()) else {
            continue; // a busy machine may lose frames at any load
        };
        assert!(upper.is_none_or(|upper| lower < upper), "{found}");
        assert!(found["conditional"].as_f64().unwrap() <= lower, "{found}");
        let points = case["latency"].as_array().unwrap();
        assert_eq!(points.len(), 3);
        let loads: Vec<f64> = points
            .iter()
            .map(|point| point["load"].as_f64().unwrap())
            .collect();
        assert!((loads[2] / loads[0] - 9.0).abs() < 0.01, "{loads:?}");
    }
}

#[test]
fn ctrl_c_leaves_a_partial_report() {
    if !root_or_skip("ctrl_c_leaves_a_partial_report") {
        return;
    }
    let _flooding = flooding();
    let mut child = rfc2544("1")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    // In the middle of the first case.
    let mut progress = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(progress.any(|line| line.unwrap().contains("full speed")));
    let rest = std::thread::spawn(move || progress.for_each(drop));
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    rest.join().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["complete"], false);
    assert_eq!(report["cases"][0]["failure"], "interrupted");
    assert_eq!(namespaces_of(pid), 0);
}
