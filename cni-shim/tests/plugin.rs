//! The program as a runtime runs it, against an agent that the test plays.

mod stage;

use serde_json::{Value, json};
use spinlane_api::cni::{AddResult, Failure, Request, Response, code};
use stage::{Stage, added, call};

/// Error code and text of an answer that must be a CNI error object.
fn error_of(output: &std::process::Output) -> (u64, String) {
    assert!(!output.status.success(), "it should have failed");
    let object: Value = serde_json::from_slice(&output.stdout).expect("an error object");
    let text = format!("{} {}", object["msg"], object["details"]);
    assert!(object["cniVersion"].is_string(), "{object}");
    (object["code"].as_u64().expect("a code"), text)
}

fn result_of(output: &std::process::Output) -> Value {
    assert!(
        output.status.success(),
        "{} {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[test]
fn version_lists_what_is_spoken_and_echoes() {
    let output = call("VERSION").run(&json!({"cniVersion": "0.4.0"}));
    assert_eq!(
        result_of(&output),
        json!({"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
    );
}

#[test]
fn add_hands_over_the_namespace_and_prints_the_result() {
    let stage = Stage::answering(|_| Some(added()));
    let config = stage.config(json!({
        "segment": "blue", "mtu": 1400, "superFrames": false,
        "runtimeConfig": {"mac": "02:00:00:00:00:09", "ips": ["10.244.1.9"]},
        "dns": {"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"]},
    }));
    let output = call("ADD").pod("web").run(&config);
    let result = result_of(&output);
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["interfaces"][1]["sandbox"], stage::NETNS);
    assert_eq!(result["ips"][0]["interface"], 1);
    assert_eq!(result["ips"][0]["address"], "10.244.1.9/32");
    assert_eq!(result["dns"]["nameservers"][0], "10.96.0.10");
    let (request, netns) = stage.only_request();
    assert_eq!(
        netns,
        std::fs::metadata(stage::NETNS)
            .map(|meta| std::os::unix::fs::MetadataExt::ino(&meta))
            .ok(),
        "the descriptor must be the one of CNI_NETNS"
    );
    let Request::Add(add) = request else {
        panic!("{request:?}")
    };
    assert_eq!(add.attachment.network, "pods");
    assert_eq!(add.attachment.container_id, "c1");
    assert_eq!(add.attachment.ifname, "eth0");
    assert_eq!(
        (add.pod.namespace.as_str(), add.pod.name.as_str()),
        ("shop", "web")
    );
    assert_eq!(add.segment.as_deref(), Some("blue"));
    assert_eq!((add.mtu, add.super_frames), (Some(1400), Some(false)));
    assert_eq!(add.mac.as_deref(), Some("02:00:00:00:00:09"));
    assert_eq!(add.ips, ["10.244.1.9"]);
    assert!(add.delegated.is_none());
}

#[test]
fn every_version_gets_its_own_layout() {
    let stage = Stage::answering(|_| Some(added()));
    for (version, family) in [
        ("0.3.1", Some("4")),
        ("0.4.0", Some("4")),
        ("1.0.0", None),
        ("1.1.0", None),
    ] {
        let config = stage.config(json!({"cniVersion": version}));
        let result = result_of(&call("ADD").pod("web").run(&config));
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"].as_str(), family, "{version}");
        if family.is_some() {
            assert!(result["dns"].is_object(), "the old layout always has dns");
        }
    }
}

#[test]
fn verbs_younger_than_the_version_are_refused() {
    let stage = Stage::answering(|_| Some(Response::Done));
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "0.4.0")] {
        let config = stage.config(json!({"cniVersion": version}));
        let output = call(verb).pod("web").run(&config);
        assert_eq!(error_of(&output).0, u64::from(code::INCOMPATIBLE_VERSION));
        let object: Value = serde_json::from_slice(&output.stdout).expect("an error object");
        assert_eq!(
            object["cniVersion"], version,
            "the configuration's is echoed"
        );
    }
    for version in [json!("0.2.0"), json!("2.0.0"), json!(null)] {
        let output = call("ADD")
            .pod("web")
            .run(&stage.config(json!({"cniVersion": version})));
        assert_eq!(error_of(&output).0, u64::from(code::INCOMPATIBLE_VERSION));
    }
    assert!(stage.requests().is_empty());
}

#[test]
fn an_impossible_environment_is_code_4_by_name() {
    let stage = Stage::answering(|_| Some(added()));
    let config = stage.config(json!({}));
    for (variable, value, named) in [
        ("CNI_CONTAINERID", None, "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", Some(""), "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", Some("../../etc"), "containerID"),
        ("CNI_NETNS", None, "CNI_NETNS"),
        ("CNI_NETNS", Some("/etc/hostname"), "CNI_NETNS"),
        ("CNI_NETNS", Some("/proc/self/ns/net"), "host's own"),
        ("CNI_IFNAME", None, "CNI_IFNAME"),
        ("CNI_IFNAME", Some(""), "CNI_IFNAME"),
        ("CNI_IFNAME", Some("sixteen-letters-"), "interface name"),
        ("CNI_IFNAME", Some("a/b"), "interface name"),
        ("CNI_IFNAME", Some("a:b"), "interface name"),
        ("CNI_IFNAME", Some("a b"), "interface name"),
        ("CNI_IFNAME", Some("."), "interface name"),
        ("CNI_IFNAME", Some(".."), "interface name"),
        ("CNI_ARGS", Some("COLOUR"), "CNI_ARGS"),
        ("CNI_ARGS", Some("COLOUR=red"), "CNI_ARGS"),
        ("CNI_COMMAND", Some("FROB"), "FROB"),
    ] {
        let output = call("ADD").pod("web").env(variable, value).run(&config);
        let (number, text) = error_of(&output);
        assert_eq!(number, 4, "{variable}={value:?}: {text}");
        assert!(text.contains(named), "{variable}={value:?}: {text}");
    }
    assert!(stage.requests().is_empty(), "nothing may reach the agent");
}

#[test]
fn an_impossible_configuration_is_refused() {
    let stage = Stage::answering(|_| Some(added()));
    for (more, expect, named) in [
        (json!({"name": ""}), 7, "name"),
        (json!({"name": "a/b"}), 7, "a/b"),
        (json!({"mtu": 9}), 7, "mtu"),
        (json!({"superFrames": 1}), 7, "superFrames"),
        (
            json!({"ipam": {"type": "no-such-plugin"}}),
            7,
            "no-such-plugin",
        ),
        (json!({"ipam": {"type": "../../bin/sh"}}), 7, "ipam.type"),
        (json!({"ipam": 5}), 6, ""),
        (json!({"cniVersion": 5}), 6, ""),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}}),
            2,
            "portMappings",
        ),
        (
            json!({"runtimeConfig": {"bandwidth": {"egressRate": 1}}}),
            2,
            "bandwidth",
        ),
        (
            json!({"runtimeConfig": {"ips": ["nonsense"]}}),
            7,
            "nonsense",
        ),
    ] {
        let output = call("ADD").pod("web").run(&stage.config(more.clone()));
        let (number, text) = error_of(&output);
        assert_eq!(number, expect, "{more}: {text}");
        assert!(text.contains(named), "{more}: {text}");
    }
    for raw in ["", "null", "[]", "{", "\u{0}", "{\"name\":\"pods\"}"] {
        let (number, text) = error_of(&call("ADD").pod("web").run_raw(raw.as_bytes()));
        assert!(number == 6 || number == 7, "{raw:?}: {number} {text}");
    }
    assert!(stage.requests().is_empty(), "nothing may reach the agent");
}

#[test]
fn the_agents_refusal_is_printed_as_it_is() {
    let stage = Stage::answering(|_| {
        Some(Response::Failed(Failure {
            code: code::EXHAUSTED,
            msg: "no address left in 10.244.1.0/24".to_owned(),
            details: "delete pods or widen pod-cidrs".to_owned(),
        }))
    });
    let output = call("ADD").pod("web").run(&stage.config(json!({})));
    let object: Value = serde_json::from_slice(&output.stdout).expect("an error object");
    assert_eq!(
        object,
        json!({
            "cniVersion": "1.1.0",
            "code": 100,
            "msg": "no address left in 10.244.1.0/24",
            "details": "delete pods or widen pod-cidrs",
        })
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stage.requests().len(), 1, "it has undone itself");
}

#[test]
fn without_an_agent_each_verb_says_its_own() {
    let stage = Stage::empty();
    let config = stage.config(json!({"cni.dev/valid-attachments": [], "prevResult": {}}));
    for (verb, expect) in [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
        let (number, text) = error_of(&call(verb).pod("web").run(&config));
        assert_eq!(number, expect, "{verb}: {text}");
        assert!(text.contains("cni.sock"), "{text}");
    }
    assert!(stage.pending().is_empty());
    for _ in 0..2 {
        result_of(&call("DEL").pod("web").env("CNI_NETNS", None).run(&config));
        assert_eq!(
            stage.pending(),
            [json!({"network": "pods", "container_id": "c1", "ifname": "eth0"})]
        );
    }
}

#[test]
fn del_needs_no_namespace_and_ignores_what_only_add_minds() {
    let stage = Stage::answering(|_| Some(Response::Done));
    let config = stage.config(json!({
        "mtu": 9,
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]},
        "prevResult": {"cniVersion": "1.1.0", "interfaces": [], "ips": []},
    }));
    for netns in [
        None,
        Some(""),
        Some("/var/run/netns/gone"),
        Some(stage::NETNS),
    ] {
        let output = call("DEL")
            .pod("web")
            .env("CNI_NETNS", netns)
            .env("CNI_ARGS", Some("COLOUR"))
            .run(&config);
        result_of(&output);
        assert!(output.stdout.is_empty(), "DEL prints nothing");
    }
    assert_eq!(stage.requests().len(), 4);
    assert!(stage.pending().is_empty());
}

#[test]
fn an_agent_that_dies_during_del_gets_it_later() {
    let stage = Stage::answering(|_| None);
    result_of(&call("DEL").pod("web").run(&stage.config(json!({}))));
    assert_eq!(stage.pending().len(), 1);
}

#[test]
fn a_busy_agent_is_asked_to_delete_until_it_does() {
    let calls = std::sync::atomic::AtomicU32::new(0);
    let stage = Stage::answering(move |_| {
        let busy = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
        Some(if busy {
            Response::Failed(Failure {
                code: code::TRY_AGAIN,
                msg: "the agent is busy".to_owned(),
                details: String::new(),
            })
        } else {
            Response::Done
        })
    });
    result_of(&call("DEL").pod("web").run(&stage.config(json!({}))));
    assert_eq!(stage.requests().len(), 3);
    assert!(stage.pending().is_empty());
}

#[test]
fn an_agent_that_dies_during_add_is_told_to_undo() {
    let stage = Stage::answering(|request| match request {
        Request::Add(_) => None,
        _ => Some(Response::Done),
    });
    let (number, _) = error_of(&call("ADD").pod("web").run(&stage.config(json!({}))));
    assert_eq!(number, 11);
    assert!(matches!(
        stage.requests()[..],
        [Request::Add(_), Request::Del(_)]
    ));
    assert!(stage.pending().is_empty());

    let stage = Stage::answering(|_| None);
    error_of(&call("ADD").pod("web").run(&stage.config(json!({}))));
    assert_eq!(
        stage.pending().len(),
        1,
        "it will be told at its next start"
    );
}

#[test]
fn a_new_add_takes_an_old_deletion_back() {
    let stage = Stage::empty();
    let config = stage.config(json!({}));
    result_of(&call("DEL").pod("web").run(&config));
    assert_eq!(stage.pending().len(), 1);
    let stage = stage.answer(|_| Some(added()));
    result_of(&call("ADD").pod("web").run(&config));
    assert!(stage.pending().is_empty());
}

#[test]
fn nonsense_of_the_agent_is_an_error_and_undone() {
    let stage = Stage::answering(|request| match request {
        Request::Add(_) => Some(Response::Added(AddResult {
            routes: vec![spinlane_api::cni::Route {
                dst: "everywhere".to_owned(),
                gw: None,
                mtu: None,
            }],
            ..AddResult::default()
        })),
        _ => Some(Response::Done),
    });
    let (number, text) = error_of(&call("ADD").pod("web").run(&stage.config(json!({}))));
    assert!(
        number == 7 && text.contains("everywhere"),
        "{number} {text}"
    );
    assert!(matches!(
        stage.requests()[..],
        [Request::Add(_), Request::Del(_)]
    ));
}

#[test]
fn a_chain_is_merged() {
    let stage = Stage::answering(|_| Some(added()));
    let config = stage.config(json!({"prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lo", "sandbox": stage::NETNS}],
        "ips": [{"interface": 0, "address": "127.0.0.1/8"}],
    }}));
    let result = result_of(&call("ADD").pod("web").run(&config));
    let names: Vec<_> = result["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|interface| interface["name"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(names, ["lo", "sltest", "eth0"]);
    assert_eq!(result["ips"][1]["interface"], 2);
}

#[test]
fn check_compares_what_belongs_to_the_interface() {
    let stage = Stage::answering(|request| match request {
        Request::Check(_) => Some(Response::Done),
        _ => Some(added()),
    });
    let mut config = stage.config(json!({"cniVersion": "0.4.0"}));
    let (number, text) = error_of(&call("CHECK").pod("web").run(&config));
    assert!(number == 7 && text.contains("prevResult"), "{text}");
    config["prevResult"] = result_of(&call("ADD").pod("web").run(&config));
    result_of(&call("CHECK").pod("web").run(&config));
    let Some(Request::Check(check)) = stage.requests().pop() else {
        panic!("no CHECK arrived")
    };
    assert_eq!(check.mac.as_deref(), Some("0a:58:0a:f4:01:09"));
    assert_eq!(check.addresses.len(), 2);
    assert_eq!(check.addresses[0].address.to_string(), "10.244.1.9");
    let (number, _) = error_of(
        &call("CHECK")
            .pod("web")
            .env("CNI_NETNS", Some("/var/run/netns/gone"))
            .run(&config),
    );
    assert_eq!(number, u64::from(code::UNKNOWN_CONTAINER));
}

#[test]
fn gc_names_its_network_and_never_guesses() {
    let stage = Stage::answering(|_| Some(Response::Done));
    let (number, text) = error_of(&call("GC").run(&stage.config(json!({}))));
    assert!(number == 7 && text.contains("valid-attachments"), "{text}");
    assert!(stage.requests().is_empty());
    let config = stage.config(json!({
        "cni.dev/valid-attachments": [{"containerID": "c7", "ifname": "net1"}],
    }));
    result_of(&call("GC").run(&config));
    let Some(Request::Gc { network, keep }) = stage.requests().pop() else {
        panic!("no GC arrived")
    };
    assert_eq!((network.as_str(), keep.len()), ("pods", 1));
    assert_eq!(
        (keep[0].container_id.as_str(), keep[0].ifname.as_str()),
        ("c7", "net1")
    );
}

#[test]
fn status_says_which_segment_and_who_gives_addresses() {
    let stage = Stage::answering(|_| Some(Response::Done));
    result_of(&call("STATUS").run(&stage.config(json!({"segment": "blue"}))));
    assert_eq!(
        stage.requests().pop(),
        Some(Request::Status {
            segment: Some("blue".to_owned()),
            delegated: false
        })
    );
    let (number, _) =
        error_of(&call("STATUS").run(&stage.config(json!({"ipam": {"type": "no-such-plugin"}}))));
    assert_eq!(number, 50);
}

#[test]
fn a_recorded_pod_life_is_served() {
    let stage = Stage::answering(|request| match request {
        Request::Add(_) => Some(added()),
        _ => Some(Response::Done),
    });
    let calls: Vec<Value> =
        serde_json::from_str(include_str!("data/pod-lifecycle.json")).expect("recorded calls");
    for recorded in &calls {
        let mut config = recorded["stdin"].clone();
        config["type"] = json!("spinlane-cni");
        config["runDir"] = json!(stage.run_dir());
        // The recorded pool is delegated; its files must not leave the stage.
        config["ipam"]["dataDir"] = json!(stage.run_dir());
        let mut invocation = call("").env("CNI_PATH", Some(&stage.ipam_path()));
        for (name, value) in recorded["env"].as_object().into_iter().flatten() {
            if name != "CNI_NETNS" && name != "CNI_PATH" {
                invocation = invocation.env(name, value.as_str());
            }
        }
        if !recorded["env"]["CNI_NETNS"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            invocation = invocation.env("CNI_NETNS", Some(stage::NETNS));
        }
        stage.install_ipam(
            "host-local",
            r#"case $CNI_COMMAND in
               ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"10.244.1.12/24","gateway":"10.244.1.1"}]}';;
               esac"#,
        );
        let output = invocation.run(&config);
        assert_eq!(
            output.status.code().map(i64::from),
            recorded["exit"].as_i64(),
            "{} {}",
            recorded["env"]["CNI_COMMAND"],
            String::from_utf8_lossy(&output.stdout)
        );
    }
    assert!(matches!(
        stage.requests()[..],
        [Request::Add(_), Request::Status { .. }, Request::Del(_)]
    ));
    let Some(Request::Add(add)) = stage.requests().into_iter().next() else {
        panic!("no ADD arrived")
    };
    assert_eq!(
        (add.pod.namespace.as_str(), add.pod.name.as_str()),
        ("default", "t1")
    );
    assert_eq!(
        add.delegated.expect("delegated addresses").addresses.len(),
        1
    );
}
