//! Whatever the program is given: it ends in an orderly way, with a result or
//! with a CNI error object.

mod stage;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use serde_json::{Map, Value, json};
use spinlane_api::cni::{Request, Response};
use stage::{NETNS, Stage, added, call};

const VERBS: [&str; 7] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "FROB"];

fn stage() -> Stage {
    Stage::answering(|request| {
        Some(match request {
            Request::Add(_) | Request::Address(_) => added(),
            _ => Response::Done,
        })
    })
}

/// What runtimes send, all of it at once. Without `runDir`, which is the test's.
fn full() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "pods",
        "type": "spinlane-cni",
        "segment": "blue",
        "mtu": 1400,
        "superFrames": true,
        "capabilities": {"portMappings": true, "bandwidth": true, "mac": true, "ips": true},
        "runtimeConfig": {
            "mac": "02:00:00:00:00:09",
            "ips": ["10.244.1.9/24", "fd44::9"],
            "portMappings": [{"hostPort": 0, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
            "bandwidth": {"ingressRate": 0, "egressRate": 0},
        },
        "args": {"cni": {"ips": ["10.244.1.9"], "mac": "02:00:00:00:00:09"}},
        "dns": {"nameservers": ["10.96.0.10"], "domain": "a", "search": ["b"], "options": ["c"]},
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]]},
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "sltest", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "0a:58:0a:f4:01:09", "sandbox": NETNS},
            ],
            "ips": [
                {"address": "10.244.1.9/32", "gateway": "10.244.1.1", "interface": 1},
                {"address": "fd44::9/128", "gateway": "fe80::1", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1450}],
            "dns": {},
        },
    })
}

/// Texts that mean something somewhere.
const TELLING: [&str; 13] = [
    "",
    "1.1.0",
    "0.3.1",
    "99999999999.0.0",
    "10.244.1.9",
    "::",
    "fd44::%eth0",
    "02:00:00:00:00:07",
    "ff:ff:ff:ff:ff:ff",
    "dhcp",
    "static",
    "\u{0}",
    "..",
];

/// Texts without a slash: nothing is to be found or made by such a path.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        select(&TELLING[..]).prop_map(str::to_owned),
        "[^/]{0,40}",
        Just("long".repeat(5000)),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..4)
                .prop_map(|pairs| Value::from(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// One change of a document, somewhere in it.
#[derive(Debug, Clone)]
enum Change {
    Replace(Value),
    Remove,
    Repeat,
}

fn change() -> impl Strategy<Value = (Index, Change)> {
    let change = prop_oneof![
        3 => any_json().prop_map(Change::Replace),
        1 => Just(Change::Remove),
        1 => Just(Change::Repeat),
    ];
    (any::<Index>(), change)
}

/// JSON pointers to everything below the top.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| (index.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let place = format!("{at}/{key}");
        places(child, &place, found);
        found.push(place);
    }
}

fn mutated(changes: Vec<(Index, Change)>) -> Value {
    let mut document = full();
    for (index, change) in changes {
        let mut found = Vec::new();
        places(&document, "", &mut found);
        if found.is_empty() {
            break;
        }
        let place = index.get(&found);
        let (parent, key) = place.rsplit_once('/').expect("a slash begins it");
        let key = key.replace("~1", "/").replace("~0", "~");
        match (change, document.pointer_mut(parent)) {
            (Change::Replace(value), _) => *document.pointer_mut(place).expect("found") = value,
            (Change::Repeat, _) => {
                let value = document.pointer_mut(place).expect("found");
                *value = json!([value, value]);
            }
            (Change::Remove, Some(Value::Object(map))) => drop(map.remove(&key)),
            (Change::Remove, Some(Value::Array(list))) => {
                drop(list.remove(key.parse().expect("an index")));
            }
            (Change::Remove, _) => {}
        }
    }
    document
}

/// The document as text in which `runDir` comes first, and where that ends.
fn with_run_dir(stage: &Stage, document: &Value) -> (Vec<u8>, usize) {
    let Some(keys) = document.as_object() else {
        return (document.to_string().into_bytes(), 0);
    };
    let head = format!("{{\"runDir\":{}", json!(stage.run_dir()));
    let mut keys = keys.clone();
    keys.remove("runDir");
    let rest = Value::from(keys).to_string();
    let rest = match &rest[1..] {
        "}" => "}".to_owned(),
        more => format!(",{more}"),
    };
    ((head.clone() + &rest).into_bytes(), head.len())
}

/// Runs the program, and looks at how it ends.
fn orderly(verb: &str, arguments: Option<&str>, input: &[u8]) -> TestCaseResult {
    let mut invocation = call(verb).pod("web");
    if let Some(arguments) = arguments {
        invocation = invocation.env("CNI_ARGS", Some(arguments));
    }
    let output = invocation.run_raw(input);
    let errors = String::from_utf8_lossy(&output.stderr);
    prop_assert!(!errors.contains("panicked"), "{}", errors);
    let told: Result<Value, _> = serde_json::from_slice(&output.stdout);
    match output.status.code() {
        Some(0) => prop_assert!(output.stdout.is_empty() || told.is_ok()),
        Some(1) => {
            let object = told.map_err(|error| TestCaseError::fail(format!("{error}: {errors}")))?;
            let is_whole = object["code"].as_u64().is_some_and(|code| code > 0)
                && object["msg"].as_str().is_some_and(|text| !text.is_empty())
                && object["cniVersion"].is_string();
            prop_assert!(is_whole, "{}", object);
        }
        other => prop_assert!(false, "it ended with {:?}: {}", other, errors),
    }
    Ok(())
}

fn hold<S: Strategy>(strategy: S, test: impl Fn(S::Value) -> TestCaseResult) {
    let config = Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    if let Err(error) = runner.run(&strategy, test) {
        panic!("{error}");
    }
}

#[test]
fn any_json_is_answered() {
    let stage = stage();
    hold((select(&VERBS[..]), any_json()), |(verb, document)| {
        orderly(verb, None, &with_run_dir(&stage, &document).0)
    });
}

#[test]
fn changed_configurations_are_answered() {
    let stage = stage();
    let changes = prop::collection::vec(change(), 1..4);
    // Without delegation most calls get as far as the agent.
    let strategy = (select(&VERBS[..]), changes, any::<bool>());
    hold(strategy, |(verb, changes, is_delegated)| {
        let mut document = mutated(changes);
        if let Some(keys) = document.as_object_mut().filter(|_| !is_delegated) {
            keys.remove("ipam");
        }
        orderly(verb, None, &with_run_dir(&stage, &document).0)
    });
    assert!(!stage.requests().is_empty());
}

#[test]
fn damaged_texts_are_answered() {
    let stage = stage();
    let (whole, begin) = with_run_dir(&stage, &full());
    let damage = (any::<Index>(), any::<u8>(), any::<bool>());
    let damages = prop::collection::vec(damage, 1..4);
    hold((select(&VERBS[..]), damages), |(verb, damages)| {
        let mut text = whole.clone();
        for (index, byte, is_end) in damages {
            let at = begin + index.index(text.len() - begin);
            match is_end {
                true => text.truncate(at.max(begin + 1)),
                false => text[at] = byte,
            }
        }
        orderly(verb, None, &text)
    });
}

#[test]
fn any_arguments_are_answered() {
    let stage = stage();
    let (whole, _) = with_run_dir(&stage, &full());
    let arguments = prop_oneof![
        "[^\u{0}]{0,60}",
        "((IP|MAC|IgnoreUnknown|K8S_POD_NAME|X)=[^;\u{0}]{0,12};){0,5}",
    ];
    hold((select(&VERBS[..]), arguments), |(verb, arguments)| {
        orderly(verb, Some(&arguments), &whole)
    });
}
