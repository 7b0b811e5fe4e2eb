//! The lab itself, without a switch: namespaces, transfers and cleaning up.

use std::net::IpAddr;
use std::time::Duration;

use spinlane_tests::{LabError, Namespace, root_or_skip, traffic, veth, wait_for};

fn addressed_pair() -> Result<(Namespace, Namespace), LabError> {
    let left = Namespace::create("left")?;
    let right = Namespace::create("right")?;
    veth((&left, "eth0"), (&right, "eth0"))?;
    for (namespace, host) in [(&left, 1), (&right, 2)] {
        namespace.ip(&format!("addr add 192.0.2.{host}/24 dev eth0"))?;
        namespace.ip(&format!("addr add 2001:db8::{host}/64 dev eth0 nodad"))?;
    }
    Ok((left, right))
}

#[test]
fn traffic_is_carried_and_compared() -> Result<(), LabError> {
    if !root_or_skip("traffic_is_carried_and_compared") {
        return Ok(());
    }
    let (left, right) = addressed_pair()?;
    for address in ["192.0.2.2", "2001:db8::2"] {
        let address: IpAddr = address.parse().unwrap();
        assert!(traffic::ping(&left, address, 2)?.all());
        traffic::tcp_both_ways(&left, &right, address, 300_001)?;
        assert_eq!(traffic::udp_echo(&left, &right, address, 10, 1000)?, 10);
    }
    let nobody: IpAddr = "192.0.2.77".parse().unwrap();
    let pings = traffic::ping_in_vain(&left, nobody, 1, &[])?;
    assert_eq!((pings.sent, pings.received), (1, 0));
    Ok(())
}

#[test]
fn dropping_a_namespace_ends_what_runs_in_it() -> Result<(), LabError> {
    if !root_or_skip("dropping_a_namespace_ends_what_runs_in_it") {
        return Ok(());
    }
    let namespace = Namespace::create("short")?;
    let path = namespace.path();
    let mut sleeper = namespace.spawn(&["sleep", "600"])?;
    wait_for("the sleeper to be inside", Duration::from_secs(2), || {
        namespace
            .run(&["cat", &format!("/proc/{}/comm", sleeper.id())])
            .ok()
            .filter(|comm| comm.trim() == "sleep")
    })?;
    drop(namespace);
    wait_for("the sleeper to end", Duration::from_secs(2), || {
        (!sleeper.is_running()).then_some(())
    })?;
    assert!(!path.exists());
    Ok(())
}

#[test]
fn a_command_that_fails_says_so() -> Result<(), LabError> {
    if !root_or_skip("a_command_that_fails_says_so") {
        return Ok(());
    }
    let namespace = Namespace::create("failing")?;
    let error = namespace.sh("echo to-stderr >&2; exit 3").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("to-stderr") && text.contains('3'), "{text}");
    Ok(())
}
