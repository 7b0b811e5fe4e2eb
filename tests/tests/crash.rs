//! The agent is killed at any instant; its next start repairs what it left.

use std::time::Duration;

use serde_json::{Value, json};
use spinlane_tests::{LabError, Node, PATIENCE, Pod, root_or_skip, traffic, wait_for};

/// Networks that give every victim the same address: if one is not given back,
/// the next victim does not get it.
fn one_address(node: &Node) -> Value {
    node.network(
        "pods",
        json!({"runtimeConfig": {"ips": ["10.244.1.77", "fd44:0:0:1::77"]}}),
    )
}

/// The node holds exactly these pods: ports, host ends and reachability.
fn holds(node: &Node, pods: &[&Pod], when: &str) -> Result<(), LabError> {
    let mut names: Vec<String> = pods.iter().map(|pod| pod.name().to_owned()).collect();
    names.sort();
    assert_eq!(node.pods()?, names, "{when}: ports");
    let host_ends = node
        .interfaces()?
        .into_iter()
        .filter(|name| !name.starts_with("spinlane"))
        .count();
    assert_eq!(
        host_ends,
        pods.len(),
        "{when}: interfaces {:?}",
        node.interfaces()?
    );
    for pod in pods {
        let answer = pod.check(node, "eth0")?;
        assert_eq!(
            answer.exit,
            0,
            "{when}: CHECK {}: {}",
            pod.name(),
            answer.output
        );
    }
    if let [first, rest @ ..] = pods {
        for pod in rest {
            let pings = traffic::ping(first.namespace(), pod.v4()?, 2)?;
            assert!(pings.received > 0, "{when}: {}", pings.text);
        }
    }
    Ok(())
}

/// Steps of [`instants`], dense where the work is done; a slow machine needs
/// more to get behind it.
const STEPS: usize = 24;

/// Instants after the start of a call, without end.
fn instants() -> impl Iterator<Item = Duration> {
    (0_u64..).map(|step| Duration::from_micros(step * step * 120))
}

#[test]
fn killed_during_add() -> Result<(), LabError> {
    if !root_or_skip("killed_during_add") {
        return Ok(());
    }
    let mut node = Node::plain("addcrash")?;
    let steady = Pod::attach(&node, "steady")?;
    let network = one_address(&node);
    let (mut survived, mut refused) = (0, 0);
    for (step, instant) in instants().enumerate() {
        if step >= STEPS && survived > 0 {
            break;
        }
        let when = format!("killed {instant:?} after the start of ADD");
        let mut pod = Pod::bare("victim")?;
        let call = pod.call("ADD", "eth0", network.clone());
        let answer = std::thread::scope(|scope| {
            let adding = scope.spawn(|| call.invoke(node.namespace()));
            std::thread::sleep(instant);
            node.shoot();
            adding.join().expect("no panic")
        })?;
        node.kill9();
        let added = answer.exit == 0;
        if added {
            survived += 1;
            pod.remember(answer, "eth0", &network)?;
        } else {
            refused += 1;
            assert_eq!(answer.code(), Some(11), "{when}: {}", answer.output);
        }
        node.start_agent()?;
        if added {
            holds(&node, &[&steady, &pod], &when)?;
            pod.del(&node, "eth0")?;
        } else {
            // A runtime that got no result deletes, and may try again.
            pod.call("DEL", "eth0", network.clone())
                .invoke(node.namespace())?
                .success(&when)?;
            holds(&node, &[&steady], &when)?;
            pod.add(&node, "eth0", &network)
                .map_err(|error| LabError::unexpected(when.clone(), error.to_string()))?;
            holds(&node, &[&steady, &pod], &when)?;
            pod.del(&node, "eth0")?;
        }
        holds(&node, &[&steady], &when)?;
    }
    assert!(refused > 0, "no instant was early enough");
    node.settled_frames()?;
    Ok(())
}

#[test]
fn killed_during_del() -> Result<(), LabError> {
    if !root_or_skip("killed_during_del") {
        return Ok(());
    }
    let mut node = Node::plain("delcrash")?;
    let steady = Pod::attach(&node, "steady")?;
    let network = one_address(&node);
    for instant in instants().take(STEPS).step_by(2) {
        let when = format!("killed {instant:?} after the start of DEL");
        let mut pod = Pod::bare("victim")?;
        pod.add(&node, "eth0", &network)?;
        let call = pod.call("DEL", "eth0", pod.config_with_result("eth0")?);
        let answer = std::thread::scope(|scope| {
            let deleting = scope.spawn(|| call.invoke(node.namespace()));
            std::thread::sleep(instant);
            node.shoot();
            deleting.join().expect("no panic")
        })?;
        node.kill9();
        answer.success(&when)?;
        node.start_agent()?;
        holds(&node, &[&steady], &when)?;
    }
    Ok(())
}

#[test]
fn pods_that_vanished_while_the_agent_was_down_are_forgotten() -> Result<(), LabError> {
    if !root_or_skip("pods_that_vanished_while_the_agent_was_down_are_forgotten") {
        return Ok(());
    }
    let mut node = Node::plain("vanished")?;
    let steady = Pod::attach(&node, "steady")?;
    let network = one_address(&node);
    for _ in 0..4 {
        let mut lost = [Pod::bare("lost1")?, Pod::attach(&node, "lost2")?];
        lost[0].add(&node, "eth0", &network)?;
        node.kill9();
        drop(lost);
        wait_for("the lost pods' ends to go", PATIENCE, || {
            let interfaces = node.interfaces().ok()?;
            let ends = interfaces.iter().filter(|name| name.starts_with("sl"));
            // The steady pod's.
            (ends.count() == 1).then_some(())
        })?;
        node.start_agent()?;
        holds(&node, &[&steady], "after pods vanished")?;
    }
    Ok(())
}
