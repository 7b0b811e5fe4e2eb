//! What a runtime, or whoever wrote its configuration, may get wrong: the
//! plugin answers with the specification's code, names what is wrong, and
//! leaves nothing behind.

use std::path::PathBuf;

use serde_json::{Value, json};
use spinlane_tests::cni::Call;
use spinlane_tests::{LabError, Node, Pod, program, root_or_skip};

/// A change of a good call.
type Mistake = fn(&mut Call);

/// Code and a word of the error object.
const MISTAKES: [(&str, Mistake, u64, &str); 17] = [
    (
        "a version of later",
        |c| c.config["cniVersion"] = json!("2.0.0"),
        1,
        "2.0.0",
    ),
    (
        "a version of once",
        |c| c.config["cniVersion"] = json!("0.2.0"),
        1,
        "0.2.0",
    ),
    (
        "no network name",
        |c| c.config["name"] = json!(""),
        7,
        "network name",
    ),
    (
        "a name that is a path",
        |c| c.config["name"] = json!("a/b"),
        7,
        "a/b",
    ),
    (
        "a relative runDir",
        |c| c.config["runDir"] = json!("run"),
        7,
        "runDir",
    ),
    (
        "an MTU in words",
        |c| c.config["mtu"] = json!("1400"),
        7,
        "mtu",
    ),
    (
        "an MTU too small",
        |c| c.config["mtu"] = json!(500),
        7,
        "500",
    ),
    (
        "superFrames in words",
        |c| c.config["superFrames"] = json!("no"),
        7,
        "superFrames",
    ),
    (
        "a segment that is none",
        |c| c.config["segment"] = json!("violet"),
        7,
        "violet",
    ),
    (
        "no container",
        |c| c.container_id.clear(),
        4,
        "CNI_CONTAINERID",
    ),
    (
        "a container that is a path",
        |c| c.container_id = "../x".to_owned(),
        4,
        "../x",
    ),
    ("no interface", |c| c.ifname.clear(), 4, "CNI_IFNAME"),
    (
        "an interface too long",
        |c| c.ifname = "e".repeat(16),
        4,
        "eeee",
    ),
    ("no namespace", |c| c.netns = PathBuf::new(), 4, "CNI_NETNS"),
    (
        "a namespace that is gone",
        |c| c.netns = "/run/netns/nowhere".into(),
        3,
        "nowhere",
    ),
    (
        "a namespace that is none",
        |c| c.netns = "/etc/passwd".into(),
        4,
        "/etc/passwd",
    ),
    (
        "the host's namespace",
        |c| c.netns = "/proc/self/ns/net".into(),
        4,
        "host",
    ),
];

#[test]
fn mistakes_are_named_and_leave_nothing() -> Result<(), LabError> {
    if !root_or_skip("mistakes_are_named_and_leave_nothing") {
        return Ok(());
    }
    let node = Node::plain("wrong")?;
    let pod = Pod::bare("web")?;
    let good = pod.call(
        "ADD",
        "eth0",
        node.network("pods", json!({"unknown": {"key": 1}})),
    );
    let before = node.interfaces()?;
    for (what, mistake, code, named) in MISTAKES {
        let mut call = good.clone();
        mistake(&mut call);
        let answer = call.invoke(node.namespace())?;
        assert_eq!(answer.exit, 1, "{what}: {}", answer.output);
        assert_eq!(answer.code(), Some(code), "{what}: {}", answer.output);
        let text = answer.output.to_string();
        assert!(text.contains(named), "{what}: {text}");
        assert!(answer.output["msg"].is_string(), "{what}: {text}");
    }
    assert_eq!(node.interfaces()?, before);
    assert_eq!(node.status()?.endpoints, 0);
    // Keys that nobody knows are for others.
    good.invoke(node.namespace())?.success("ADD")?;
    Ok(())
}

#[test]
fn what_is_no_configuration_is_refused() -> Result<(), LabError> {
    if !root_or_skip("what_is_no_configuration_is_refused") {
        return Ok(());
    }
    let node = Node::plain("garbage")?;
    let plugin = program("spinlane-cni")?.display().to_string();
    for input in ["", "{", "[]", "\"pods\""] {
        let script = format!(
            "printf '{input}' | env CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 \
             CNI_NETNS=/run/netns/nowhere {plugin} || true"
        );
        let text = node.namespace().sh(&script)?;
        let answer: Value = serde_json::from_str(&text)
            .map_err(|error| LabError::unexpected(input, format!("{error} in {text:?}")))?;
        assert_eq!(answer["code"], 6, "{input:?}: {answer}");
    }
    Ok(())
}
