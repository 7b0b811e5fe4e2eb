//! Addresses from the reference `host-local` plugin instead of the agent.

use std::path::Path;

use serde_json::{Value, json};
use spinlane_tests::cni::Call;
use spinlane_tests::{LabError, Node, Pod, root_or_skip, traffic};

fn network(node: &Node, version: &str) -> Value {
    node.network(
        "delegated",
        json!({
            "cniVersion": version,
            "ipam": {
                "type": "host-local",
                "dataDir": node.ipam_dir(),
                "ranges": [
                    [{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.100"}],
                    [{"subnet": "fd44:0:0:1::/64", "rangeStart": "fd44:0:0:1::100"}],
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }),
    )
}

/// Files of the leases that `host-local` holds.
fn leases(node: &Node) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(node.ipam_dir().join("delegated")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !name.starts_with("last_reserved") && name != "lock")
        .collect();
    names.sort();
    names
}

#[test]
fn host_local_gives_the_addresses() -> Result<(), LabError> {
    if !root_or_skip("host_local_gives_the_addresses") {
        return Ok(());
    }
    assert!(
        Path::new("/usr/lib/cni/host-local").exists(),
        "install containernetworking-plugins"
    );
    let node = Node::plain("delegated")?;
    for version in ["1.1.0", "1.0.0", "0.4.0"] {
        let network = network(&node, version);
        let mut pods = [Pod::bare("a")?, Pod::bare("b")?];
        for pod in &mut pods {
            pod.add(&node, "eth0", &network)?;
            let answer = pod.check(&node, "eth0")?;
            assert_eq!(answer.exit, 0, "{version}: {}", answer.output);
        }
        assert_eq!(leases(&node).len(), 4, "{:?}", leases(&node));
        let [a, b] = &mut pods;
        assert!(a.v4()?.to_string().starts_with("10.244.1.1"), "{}", a.v4()?);
        for address in [b.v4()?, b.v6()?] {
            let pings = traffic::ping(a.namespace(), address, 2)?;
            assert!(pings.all(), "{version} {address}: {}", pings.text);
            traffic::tcp_both_ways(a.namespace(), b.namespace(), address, 1 << 20)?;
        }
        for pod in [a, b] {
            pod.del(&node, "eth0")?;
        }
        assert_eq!(leases(&node), Vec::<String>::new(), "{version}");
    }
    Ok(())
}

#[test]
fn leases_are_given_back_when_the_agent_refuses_or_is_gone() -> Result<(), LabError> {
    if !root_or_skip("leases_are_given_back_when_the_agent_refuses_or_is_gone") {
        return Ok(());
    }
    let mut node = Node::plain("returned")?;
    let config = network(&node, "1.1.0");
    let mut pod = Pod::bare("a")?;
    pod.namespace().ip("link add eth0 type bridge")?;
    let refused = pod
        .call("ADD", "eth0", config.clone())
        .invoke(node.namespace())?;
    assert_ne!(refused.exit, 0);
    assert_eq!(leases(&node), Vec::<String>::new());
    pod.namespace().ip("link del eth0")?;
    pod.add(&node, "eth0", &config)?;
    assert_eq!(leases(&node).len(), 2);

    Call::new("STATUS", config.clone())
        .invoke(node.namespace())?
        .success("STATUS")?;
    let mut collect = config.clone();
    collect["cni.dev/valid-attachments"] = json!([]);
    node.stop()?;
    assert_eq!(
        Call::new("GC", collect.clone())
            .invoke(node.namespace())?
            .code(),
        Some(11)
    );
    pod.del(&node, "eth0")?;
    assert_eq!(leases(&node), Vec::<String>::new());
    node.start_agent()?;
    Call::new("GC", collect)
        .invoke(node.namespace())?
        .success("GC")?;
    Ok(())
}
