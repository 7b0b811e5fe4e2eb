//! The CNI verbs against a real agent: what they make, check and take away.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use spinlane_tests::cni::Call;
use spinlane_tests::{LabError, Node, NodeConfig, Pod, egress, root_or_skip, traffic};

/// Interfaces in the node's namespace that are pods' host ends.
fn host_ends(node: &Node) -> Result<Vec<String>, LabError> {
    Ok(node
        .interfaces()?
        .into_iter()
        .filter(|name| !name.starts_with("spinlane"))
        .collect())
}

#[test]
fn an_attachment_lives_and_goes() -> Result<(), LabError> {
    if !root_or_skip("an_attachment_lives_and_goes") {
        return Ok(());
    }
    let node = Node::plain("life")?;
    let network = node.network("pods", json!({}));
    Call::new("STATUS", network.clone())
        .invoke(node.namespace())?
        .success("STATUS")?;
    let mut pod = Pod::bare("web")?;
    let result = pod.add(&node, "eth0", &network)?;
    assert_eq!(result["cniVersion"], "1.1.0");
    let inside = &result["interfaces"][1];
    assert_eq!(inside["name"], "eth0");
    assert_eq!(inside["sandbox"], json!(pod.namespace().path()));
    for ip in result["ips"].as_array().expect("addresses") {
        assert_eq!(ip["interface"], 1);
    }
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "{result}");
    assert!(
        result["routes"]
            .as_array()
            .expect("routes")
            .iter()
            .any(|route| route["mtu"].as_u64().is_some_and(|mtu| mtu >= 1280)),
        "the path's MTU is reported: {result}"
    );
    assert_eq!(pod.check(&node, "eth0")?.exit, 0);

    // The same attachment again is refused and leaves the first alone.
    let again = pod
        .call("ADD", "eth0", network.clone())
        .invoke(node.namespace())?;
    assert_ne!(again.exit, 0, "{}", again.output);
    assert!(
        again.code().is_some_and(|code| code > 0),
        "{}",
        again.output
    );
    assert_eq!(pod.check(&node, "eth0")?.exit, 0, "the first still stands");

    let config = pod.config_with_result("eth0")?;
    let first = pod.v4()?;
    pod.del(&node, "eth0")?;
    assert_eq!(node.pods()?.len(), 0);
    assert_eq!(host_ends(&node)?, Vec::<String>::new());
    for _ in 0..2 {
        pod.call("DEL", "eth0", config.clone())
            .invoke(node.namespace())?
            .success("DEL of what is gone")?;
    }
    let gone = pod.call("CHECK", "eth0", config).invoke(node.namespace())?;
    assert_ne!(gone.exit, 0, "CHECK of what is gone");

    pod.add(&node, "eth0", &network)?;
    assert_ne!(pod.v4()?, first, "a released address is not reused at once");
    Ok(())
}

/// Something that an operator or a container does to a pod's interface.
type Change = fn(&Pod) -> Result<(), LabError>;

#[test]
fn check_notices_what_changed() -> Result<(), LabError> {
    if !root_or_skip("check_notices_what_changed") {
        return Ok(());
    }
    let node = Node::plain("check")?;
    let break_it: [(&str, Change); 5] = [
        ("spinlane_lead", |pod| {
            egress::led(pod.namespace(), "eth0")?;
            egress::clear(pod.namespace(), "eth0")
        }),
        ("address", |pod| {
            let address = pod.v4()?;
            pod.namespace()
                .ip(&format!("addr del {address}/32 dev eth0"))
                .map(drop)
        }),
        ("route", |pod| {
            pod.namespace().ip("route del default").map(drop)
        }),
        ("link", |pod| {
            pod.namespace().ip("link set eth0 down").map(drop)
        }),
        ("interface", |pod| {
            pod.namespace().ip("link del eth0").map(drop)
        }),
    ];
    for (what, change) in break_it {
        let mut pod = Pod::attach(&node, what)?;
        assert_eq!(pod.check(&node, "eth0")?.exit, 0);
        change(&pod)?;
        let answer = pod.check(&node, "eth0")?;
        assert_ne!(answer.exit, 0, "{what} is gone and CHECK says nothing");
        let text = answer.output["msg"].as_str().unwrap_or_default();
        assert!(text.contains(what) || what == "link", "{}", answer.output);
        pod.del(&node, "eth0")?;
    }
    assert_eq!(host_ends(&node)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn every_version_is_served() -> Result<(), LabError> {
    if !root_or_skip("every_version_is_served") {
        return Ok(());
    }
    let node = Node::plain("versions")?;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut pod = Pod::bare("v")?;
        let network = node.network("pods", json!({ "cniVersion": version }));
        let result = pod.add(&node, "eth0", &network)?;
        assert_eq!(result["cniVersion"], version);
        if version != "0.3.1" {
            let answer = pod.check(&node, "eth0")?;
            assert_eq!(answer.exit, 0, "{}", answer.output);
        }
        pod.del(&node, "eth0")?;
    }
    Ok(())
}

#[test]
fn a_runtime_may_choose_mac_and_addresses() -> Result<(), LabError> {
    if !root_or_skip("a_runtime_may_choose_mac_and_addresses") {
        return Ok(());
    }
    let node = Node::plain("chosen")?;
    let wish = json!({"runtimeConfig": {
        "mac": "02:00:5e:00:53:10", "ips": ["10.244.1.77", "fd44:0:0:1::77"],
    }});
    let network = node.network("pods", wish);
    let mut chosen = Pod::bare("chosen")?;
    let result = chosen.add(&node, "eth0", &network)?;
    assert_eq!(result["interfaces"][1]["mac"], "02:00:5e:00:53:10");
    let expect: [IpAddr; 2] = [
        "10.244.1.77".parse().expect("an address"),
        "fd44:0:0:1::77".parse().expect("an address"),
    ];
    assert_eq!(chosen.addresses("eth0")?, expect);
    let other = Pod::attach(&node, "other")?;
    for address in expect {
        assert!(traffic::ping(other.namespace(), address, 2)?.all());
    }
    let mut second = Pod::bare("second")?;
    let taken = node.network("pods", json!({"runtimeConfig": {"ips": ["10.244.1.77"]}}));
    assert!(
        second.add(&node, "eth0", &taken).is_err(),
        "the address is taken"
    );
    assert_eq!(node.pods()?.len(), 2, "and nothing of the attempt stays");
    Ok(())
}

#[test]
fn host_ports_and_limits_are_refused_not_forgotten() -> Result<(), LabError> {
    if !root_or_skip("host_ports_and_limits_are_refused_not_forgotten") {
        return Ok(());
    }
    let node = Node::plain("hostport")?;
    let mapped = node.network(
        "pods",
        json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
        ]}}),
    );
    let mut pod = Pod::bare("web")?;
    let answer = pod
        .call("ADD", "eth0", mapped.clone())
        .invoke(node.namespace())?;
    assert_eq!(answer.code(), Some(2), "{}", answer.output);
    assert_eq!(node.pods()?.len(), 0);
    let empty = node.network(
        "pods",
        json!({"runtimeConfig": {"portMappings": [], "bandwidth": {}}}),
    );
    pod.add(&node, "eth0", &empty)?;
    Ok(())
}

#[test]
fn twenty_pods_attach_at_once() -> Result<(), LabError> {
    if !root_or_skip("twenty_pods_attach_at_once") {
        return Ok(());
    }
    let node = Node::plain("crowd")?;
    let network = node.network("pods", json!({}));
    let mut pods = (0..20)
        .map(|number| Pod::bare(&format!("p{number}")))
        .collect::<Result<Vec<_>, _>>()?;
    let results: Vec<Result<Value, LabError>> = std::thread::scope(|scope| {
        let adding: Vec<_> = pods
            .iter_mut()
            .map(|pod| scope.spawn(|| pod.add(&node, "eth0", &network)))
            .collect();
        adding
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    for result in results {
        result?;
    }
    let addresses: HashSet<IpAddr> = pods
        .iter()
        .map(|pod| pod.addresses("eth0"))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(addresses.len(), 40, "every address is one pod's");
    for pod in &pods[1..] {
        let pings = traffic::ping(pods[0].namespace(), pod.v4()?, 1)?;
        assert!(pings.all(), "{}", pings.text);
    }
    std::thread::scope(|scope| {
        let deleting: Vec<_> = pods
            .iter_mut()
            .map(|pod| scope.spawn(|| pod.del(&node, "eth0")))
            .collect();
        deleting
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    assert_eq!(node.pods()?.len(), 0);
    assert_eq!(host_ends(&node)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_pod_has_several_interfaces_in_several_networks() -> Result<(), LabError> {
    if !root_or_skip("a_pod_has_several_interfaces_in_several_networks") {
        return Ok(());
    }
    let mut config = NodeConfig::new("multi");
    config.tables =
        "[[segments]]\nname = \"blue\"\nvni = 100\ncidrs = [\"10.50.0.0/24\"]".to_owned();
    let node = Node::start(&config)?;
    let networks = [
        ("eth0", node.network("pods", json!({}))),
        ("net1", node.network("storage", json!({"mtu": 1400}))),
        ("net2", node.network("blue", json!({"segment": "blue"}))),
    ];
    let mut pods = [Pod::bare("a")?, Pod::bare("b")?];
    for pod in &mut pods {
        for (ifname, network) in &networks {
            pod.add(&node, ifname, network)?;
        }
        for (ifname, _) in &networks {
            let answer = pod.check(&node, ifname)?;
            assert_eq!(answer.exit, 0, "CHECK {ifname}: {}", answer.output);
        }
    }
    assert_eq!(node.pods()?.len(), 6);
    let [a, b] = &mut pods;
    for (ifname, _) in &networks {
        for address in b.addresses(ifname)? {
            let pings = traffic::ping(a.namespace(), address, 2)?;
            assert!(pings.all(), "{ifname} {address}: {}", pings.text);
        }
    }
    // One goes, the others stay.
    a.del(&node, "net1")?;
    for ifname in ["eth0", "net2"] {
        assert_eq!(a.check(&node, ifname)?.exit, 0);
        let pings = traffic::ping(a.namespace(), b.addresses(ifname)?[0], 2)?;
        assert!(pings.all(), "{ifname}: {}", pings.text);
    }
    Ok(())
}

#[test]
fn gc_removes_what_is_not_valid_of_its_own_network() -> Result<(), LabError> {
    if !root_or_skip("gc_removes_what_is_not_valid_of_its_own_network") {
        return Ok(());
    }
    let node = Node::plain("gc")?;
    let kept = Pod::attach(&node, "kept")?;
    let _lost = [Pod::attach(&node, "lost1")?, Pod::attach(&node, "lost2")?];
    let mut foreign = Pod::bare("foreign")?;
    foreign.add(&node, "eth0", &node.network("others", json!({})))?;
    let config = node.network(
        "pods",
        json!({"cni.dev/valid-attachments": [
            {"containerID": kept.container_id(), "ifname": "eth0"}
        ]}),
    );
    Call::new("GC", config)
        .invoke(node.namespace())?
        .success("GC")?;
    assert_eq!(node.pods()?, ["foreign", "kept"]);
    assert_eq!(host_ends(&node)?.len(), 2);
    assert!(traffic::ping(kept.namespace(), foreign.v4()?, 2)?.all());
    Ok(())
}

#[test]
fn a_failed_add_leaves_nothing() -> Result<(), LabError> {
    if !root_or_skip("a_failed_add_leaves_nothing") {
        return Ok(());
    }
    let node = Node::plain("undo")?;
    let network = node.network("pods", json!({}));
    let before = node.settled_frames()?;
    let mut pod = Pod::bare("web")?;
    pod.namespace().ip("link add eth0 type bridge")?;
    for _ in 0..3 {
        let answer = pod
            .call("ADD", "eth0", network.clone())
            .invoke(node.namespace())?;
        assert_ne!(answer.exit, 0);
        assert!(
            answer.output.to_string().contains("eth0"),
            "{}",
            answer.output
        );
    }
    assert_eq!(node.pods()?.len(), 0);
    assert_eq!(host_ends(&node)?, Vec::<String>::new());
    assert_eq!(node.settled_frames()?, before);
    let bridge = pod.namespace().ip("-d link show eth0")?;
    assert!(bridge.contains("bridge"), "what was there stays: {bridge}");
    pod.namespace().ip("link del eth0")?;
    pod.add(&node, "eth0", &network)?;

    let no_such_segment = node.network("pods", json!({"segment": "violet"}));
    let answer = pod
        .call("ADD", "net1", no_such_segment.clone())
        .invoke(node.namespace())?;
    assert_ne!(answer.exit, 0);
    assert!(
        answer.output.to_string().contains("violet"),
        "{}",
        answer.output
    );
    let status = Call::new("STATUS", no_such_segment).invoke(node.namespace())?;
    assert_ne!(status.exit, 0);
    assert_eq!(node.pods()?.len(), 1);
    Ok(())
}

#[test]
fn del_copes_with_what_is_gone() -> Result<(), LabError> {
    if !root_or_skip("del_copes_with_what_is_gone") {
        return Ok(());
    }
    let node = Node::plain("gone")?;
    let before = node.settled_frames()?;
    // The namespace went first.
    let pod = Pod::attach(&node, "a")?;
    let mut call = pod.call("DEL", "eth0", pod.config_with_result("eth0")?);
    drop(pod);
    call.invoke(node.namespace())?
        .success("DEL without the namespace")?;
    call.netns = std::path::PathBuf::new();
    call.invoke(node.namespace())?
        .success("DEL without CNI_NETNS")?;
    // The interface went first, from inside and from outside.
    let mut pod = Pod::attach(&node, "b")?;
    pod.namespace().ip("link del eth0")?;
    pod.del(&node, "eth0")?;
    let mut pod = Pod::attach(&node, "c")?;
    let host_end = host_ends(&node)?;
    assert_eq!(host_end.len(), 1, "{host_end:?}");
    node.namespace().ip(&format!("link del {}", host_end[0]))?;
    pod.del(&node, "eth0")?;
    assert_eq!(node.pods()?.len(), 0);
    assert_eq!(node.settled_frames()?, before);
    // Never heard of.
    let stranger = Pod::bare("stranger")?;
    stranger
        .call("DEL", "eth0", node.network("pods", json!({})))
        .invoke(node.namespace())?
        .success("DEL of a stranger")?;
    Ok(())
}

#[test]
fn deletions_while_no_agent_answers_are_carried_out() -> Result<(), LabError> {
    if !root_or_skip("deletions_while_no_agent_answers_are_carried_out") {
        return Ok(());
    }
    let mut node = Node::plain("later")?;
    let (mut a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    let network = node.network("pods", json!({}));
    node.stop()?;
    let add = Pod::bare("c")?
        .call("ADD", "eth0", network.clone())
        .invoke(node.namespace())?;
    assert_eq!(add.code(), Some(11), "{}", add.output);
    let status = Call::new("STATUS", network).invoke(node.namespace())?;
    assert_eq!(status.code(), Some(50), "{}", status.output);
    assert_eq!(b.check(&node, "eth0")?.code(), Some(11));
    a.del(&node, "eth0")?;
    node.start_agent()?;
    assert_eq!(node.pods()?, ["b"]);
    assert_eq!(host_ends(&node)?.len(), 1);
    let records = node.run_dir().join(spinlane_api::PENDING_DELETIONS_DIR);
    let waiting = std::fs::read_dir(records).map_or(0, Iterator::count);
    assert_eq!(waiting, 0, "a deletion that was done is not kept");
    Ok(())
}
