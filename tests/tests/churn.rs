//! Pods come and go while traffic flows, and every frame is accounted for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spinlane_tests::{LabError, Node, NodeConfig, Pod, Result, root_or_skip, traffic};

/// How soon an agent with many pods leaves.
const LEAVES_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn frames_come_home_whatever_happens() -> Result<()> {
    if !root_or_skip("frames_come_home_whatever_happens") {
        return Ok(());
    }
    for cores in ["\"auto\"", "[0, 1]"] {
        let mut config = NodeConfig::new("churn");
        config.cores = cores.to_owned();
        let node = Node::start(&config)?;
        churn(&node).map_err(|error| {
            LabError::unexpected(format!("with cores = {cores}"), error.to_string())
        })?;
    }
    Ok(())
}

fn churn(node: &Node) -> Result<()> {
    let empty = node.settled_frames()?;
    let (a, b) = (Pod::attach(node, "a")?, Pod::attach(node, "b")?);
    let steady = node.settled_frames()?;
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| -> Result<u32> {
        let streaming = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, 8 << 20)?;
                traffic::tcp_both_ways(b.namespace(), a.namespace(), a.v6()?, 8 << 20)?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let outcome = come_and_go(node, &a);
        done.store(true, Ordering::Relaxed);
        let rounds = streaming.join().expect("no panic")?;
        outcome?;
        Ok(rounds)
    })?;
    assert!(rounds > 0);
    let after = node.settled_frames()?;
    assert_eq!(after, steady, "frames after the churn");
    for mut pod in [a, b] {
        pod.del(node, "eth0")?;
    }
    assert_eq!(node.settled_frames()?, empty, "frames with no pod left");
    Ok(())
}

/// Fifteen pods that are attached, flooded and taken away in every way there
/// is, while frames for them are under way.
fn come_and_go(node: &Node, neighbour: &Pod) -> Result<()> {
    for number in 0..15 {
        let mut pod = Pod::attach(node, &format!("guest{number}"))?;
        let address = pod.v4()?;
        let mut flood = traffic::flood(neighbour.namespace(), address)?;
        std::thread::sleep(Duration::from_millis(60));
        assert!(flood.is_running());
        match number % 3 {
            0 => pod.del(node, "eth0")?,
            1 => {
                pod.namespace().ip("link del eth0")?;
                std::thread::sleep(Duration::from_millis(20));
                pod.del(node, "eth0")?;
            }
            _ => {
                let call = pod.call("DEL", "eth0", pod.config_with_result("eth0")?);
                drop(pod);
                call.invoke(node.namespace())?.success("DEL")?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_agent_with_many_pods_leaves_soon_and_comes_back() -> Result<()> {
    if !root_or_skip("an_agent_with_many_pods_leaves_soon_and_comes_back") {
        return Ok(());
    }
    let mut config = NodeConfig::new("many");
    config.cores = "[0, 1]".to_owned();
    let mut node = Node::start(&config)?;
    let pods = (0..60)
        .map(|number| Pod::attach(&node, &format!("p{number}")))
        .collect::<Result<Vec<_>>>()?;
    assert!(traffic::ping(pods[0].namespace(), pods[59].v4()?, 2)?.all());
    // What else the machine does may delay a departure, but not every one.
    let mut times = Vec::new();
    while times.iter().all(|time| *time > LEAVES_WITHIN) {
        assert!(times.len() < 5, "leaving took {times:?}");
        let (status, took) = node.stop()?;
        assert!(status.success(), "{status}");
        times.push(took);
        node.start_agent()?;
    }
    for pod in [&pods[0], &pods[30], &pods[59]] {
        assert_eq!(pod.check(&node, "eth0")?.exit, 0);
        let pings = traffic::ping(pods[7].namespace(), pod.v4()?, 2)?;
        assert!(pings.received > 0, "{}", pings.text);
    }
    node.settled_frames()?;
    Ok(())
}

#[test]
fn a_second_signal_or_a_repeated_stop_is_harmless() -> Result<()> {
    if !root_or_skip("a_second_signal_or_a_repeated_stop_is_harmless") {
        return Ok(());
    }
    let mut node = Node::plain("twice")?;
    let _pod = Pod::attach(&node, "a")?;
    let pid = node.agent_pid().expect("an agent");
    let term = || {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )
    };
    let _ = term();
    let _ = term();
    let (status, _) = node.stop()?;
    assert!(status.success(), "{status}");
    Ok(())
}
