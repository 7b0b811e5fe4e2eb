//! Delegated IPAM: who is called when, and what is given back.

mod stage;

use serde_json::{Value, json};
use spinlane_api::cni::{Failure, Request, Response};
use stage::{Stage, added, call};

const POOL: &str = r#"case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}';;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"10.9.0.5/24","gateway":"10.9.0.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.9.0.53"]}}';;
esac"#;

fn pool_config(stage: &Stage, more: Value) -> Value {
    let mut config = stage.config(json!({"ipam": {"type": "pool", "colour": "red"}}));
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    config
}

#[test]
fn add_takes_addresses_and_del_gives_them_back() {
    let stage = Stage::answering(|request| match request {
        Request::Add(_) => Some(added()),
        _ => Some(Response::Done),
    });
    stage.install_ipam("pool", POOL);
    let config = pool_config(&stage, json!({}));
    let path = stage.ipam_path();
    let run = |verb: &str, config: &Value| {
        call(verb)
            .pod("web")
            .env("CNI_PATH", Some(&path))
            .run(config)
    };
    let output = run("ADD", &config);
    assert!(output.status.success(), "{output:?}");
    let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
    assert_eq!(result["dns"]["nameservers"][0], "10.9.0.53");
    let Some(Request::Add(add)) = stage.requests().pop() else {
        panic!("no ADD arrived")
    };
    let delegated = add.delegated.expect("delegated addresses");
    assert_eq!(delegated.plugin, "pool");
    assert_eq!(delegated.addresses[0].prefix_len, 24);
    assert_eq!(
        delegated.routes[0].gw.map(|gw| gw.to_string()).as_deref(),
        Some("10.9.0.1"),
        "a route without a next hop goes to its family's gateway"
    );

    let mut checked = config.clone();
    checked["prevResult"] = result;
    assert!(run("CHECK", &checked).status.success());
    assert!(run("DEL", &config).status.success());
    let mut collected = config.clone();
    collected["cni.dev/valid-attachments"] = json!([]);
    assert!(run("GC", &collected).status.success());
    assert!(run("STATUS", &config).status.success());
    assert_eq!(
        stage.ipam_calls(),
        ["ADD", "CHECK", "DEL", "VERSION", "GC", "VERSION", "STATUS"]
    );
    assert_eq!(
        stage.ipam_input()["ipam"]["colour"],
        "red",
        "the plugin gets the whole configuration"
    );
    assert_eq!(
        stage.requests().last(),
        Some(&Request::Status {
            segment: None,
            delegated: true
        })
    );
}

#[test]
fn a_refused_add_gives_the_addresses_back() {
    let stage = Stage::answering(|_| {
        Some(Response::Failed(Failure {
            code: 101,
            msg: "no".to_owned(),
            details: String::new(),
        }))
    });
    stage.install_ipam("pool", POOL);
    let output = call("ADD")
        .pod("web")
        .env("CNI_PATH", Some(&stage.ipam_path()))
        .run(&pool_config(&stage, json!({})));
    assert!(!output.status.success());
    assert_eq!(stage.ipam_calls(), ["ADD", "DEL"]);
}

#[test]
fn without_an_agent_no_address_is_taken_but_one_is_given_back() {
    let stage = Stage::empty();
    stage.install_ipam("pool", POOL);
    let config = pool_config(&stage, json!({}));
    let path = stage.ipam_path();
    let run = |verb: &str| {
        call(verb)
            .pod("web")
            .env("CNI_PATH", Some(&path))
            .run(&config)
    };
    assert!(!run("ADD").status.success());
    assert!(stage.ipam_calls().is_empty());
    assert!(run("DEL").status.success());
    assert_eq!(stage.ipam_calls(), ["DEL"]);
    assert_eq!(stage.pending().len(), 1);
}

#[test]
fn a_plugins_error_is_passed_on_with_its_code() {
    let stage = Stage::answering(|_| Some(added()));
    for (script, expect, named) in [
        (
            r#"echo '{"code":11,"msg":"pool is locked","details":"wait"}'; exit 1"#,
            11,
            "pool is locked",
        ),
        ("exit 7", 6, "pool"),
        ("echo nonsense", 6, "pool"),
        (r#"echo '{"cniVersion":"1.1.0","ips":[]}'"#, 7, "no address"),
    ] {
        stage.install_ipam("pool", script);
        let output = call("ADD")
            .pod("web")
            .env("CNI_PATH", Some(&stage.ipam_path()))
            .run(&pool_config(&stage, json!({})));
        let object: Value = serde_json::from_slice(&output.stdout).expect("an error object");
        assert_eq!(object["code"], expect, "{script}: {object}");
        assert!(object.to_string().contains(named), "{object}");
    }
    assert!(stage.requests().is_empty());
}

#[test]
fn an_older_plugin_is_asked_in_its_own_version() {
    let stage = Stage::answering(|request| match request {
        Request::Add(_) => Some(added()),
        _ => Some(Response::Done),
    });
    stage.install_ipam(
        "pool",
        r#"case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0;;
esac
case $(cat "$INPUT") in
*'"cniVersion":"1.0.0"'*) ;;
*) echo '{"code":1,"msg":"incompatible CNI versions"}'; exit 1;;
esac
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24"}]}';;
esac"#,
    );
    let path = stage.ipam_path();
    let config = pool_config(&stage, json!({"cni.dev/valid-attachments": []}));
    for verb in ["ADD", "DEL", "GC", "STATUS"] {
        let output = call(verb)
            .pod("web")
            .env("CNI_PATH", Some(&path))
            .run(&config);
        assert!(output.status.success(), "{verb}: {output:?}");
    }
    assert_eq!(
        stage.ipam_calls(),
        [
            "ADD", "VERSION", "ADD", "DEL", "VERSION", "DEL", "VERSION", "VERSION"
        ]
    );
}

#[test]
fn a_nameless_ipam_section_is_none() {
    let stage = Stage::answering(|_| Some(added()));
    for section in [json!({}), json!({"type": ""}), json!(null)] {
        let output = call("ADD")
            .pod("web")
            .run(&stage.config(json!({ "ipam": section })));
        assert!(output.status.success(), "{output:?}");
    }
    for request in stage.requests() {
        let Request::Add(add) = request else {
            panic!("{request:?}")
        };
        assert!(add.delegated.is_none());
    }
}

#[test]
fn a_slow_plugin_does_not_cost_the_agents_patience() {
    let stage = Stage::answering(|_| Some(added()));
    stage.install_ipam("pool", &format!("sleep 1.2\n{POOL}"));
    let output = call("ADD")
        .pod("web")
        .env("CNI_PATH", Some(&stage.ipam_path()))
        .run(&pool_config(&stage, json!({})));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stage.ipam_calls(), ["ADD"]);
    assert_eq!(stage.requests().len(), 1);
}

#[test]
fn a_plugin_that_asks_by_the_interface_finds_it_and_loses_it_last() {
    let stage = Stage::answering(|request| match request {
        Request::Add(_) | Request::Address(_) => Some(added()),
        _ => Some(Response::Done),
    });
    let path = stage.ipam_path();
    let config = pool_config(&stage, json!({"ipam": {"type": "dhcp"}}));
    let run = |verb: &str| {
        call(verb)
            .pod("web")
            .env("CNI_PATH", Some(&path))
            .run(&config)
    };
    stage.install_ipam("dhcp", POOL);
    assert!(run("ADD").status.success());
    let requests = stage.requests();
    let [Request::Add(first), Request::Address(second)] = &requests[..] else {
        panic!("not the interface, then its addresses: {requests:?}");
    };
    assert!(first.addresses_follow && first.delegated.is_none());
    let given = second.delegated.as_ref().expect("delegated addresses");
    assert_eq!(given.addresses[0].address.to_string(), "10.9.0.5");
    assert!(run("DEL").status.success());
    assert_eq!(stage.ipam_calls(), ["ADD", "DEL"]);
    // Without a lease the interface goes again.
    stage.install_ipam("dhcp", "[ $CNI_COMMAND != ADD ] || exit 1");
    let before = stage.requests().len();
    assert!(!run("ADD").status.success());
    let requests = stage.requests();
    assert!(matches!(
        &requests[before..],
        [Request::Add(_), Request::Del(_)]
    ));
}
