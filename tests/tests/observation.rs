//! What an operator sees: command line, captures, metrics, cleanup.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use spinlane_tests::cluster::Families;
use spinlane_tests::{
    Cluster, LabError, Namespace, Node, NodeConfig, Pod, Process, Result, capture, probe, program,
    root_or_skip, traffic, wait_for,
};

fn http(node: &Node, path: &str) -> Result<String> {
    probe::http_get(node.namespace(), "127.0.0.1:9465", path)
}

#[test]
fn the_documents_have_what_people_rely_on() -> Result<()> {
    if !root_or_skip("the_documents_have_what_people_rely_on") {
        return Ok(());
    }
    let node = Node::plain("documents")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    assert!(traffic::ping(a.namespace(), b.v4()?, 3)?.all());
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, 1 << 20)?;

    let status = node.cli(&["status"])?;
    for key in [
        "version",
        "node",
        "mode",
        "ready",
        "uptime_s",
        "snapshot_generation",
        "lanes",
        "frames",
    ] {
        assert!(status.get(key).is_some(), "status has no {key}: {status}");
    }
    assert_eq!(status["ready"], true);
    assert_eq!(status["node"], "documents");

    let ports = node.cli(&["ports"])?;
    let of = |name: &str| {
        ports
            .as_array()
            .and_then(|ports| ports.iter().find(|port| port["pod"] == name))
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(of("a")["kind"], "pod");
    assert_eq!(of("a")["container_id"], a.container_id());
    assert_eq!(of("a")["addresses"][0], a.v4()?.to_string());
    assert!(
        ports
            .as_array()
            .is_some_and(|ports| { ports.iter().any(|port| port["kind"] == "host") })
    );

    let flows = node.cli(&["flows"])?;
    let tcp = flows.as_array().and_then(|flows| {
        flows.iter().find(|flow| {
            flow["key"]["proto"] == "tcp"
                && flow["key"]["dst"] == b.v4().ok().map(|a| a.to_string()).unwrap_or_default()
        })
    });
    assert!(
        tcp.is_some_and(|flow| flow["packets"].as_u64() > Some(0)
            && flow["out"] == of("b")["name"]
            && flow["in_port"] == of("a")["name"]),
        "{flows}"
    );
    let drops = node.drops()?;
    assert!(drops.len() > 20, "every reason, also at 0: {drops:?}");

    let table = node.cli_output(&["ports"])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(&b.v4()?.to_string()), "{table}");
    Ok(())
}

/// Fields that scripts read, by document; dots lead into objects, rows are
/// looked at one by one.
const RELIED_ON: [(&str, &str); 6] = [
    (
        "status",
        "version node mode ready uptime_s snapshot_generation lanes.id lanes.core \
         lanes.busy_ratio lanes.rx_packets lanes.tx_packets frames.total frames.free frames.in_use",
    ),
    (
        "ports",
        "name kind namespace pod container_id addresses mac ifindex xdp_mode zero_copy lanes \
         rx_packets rx_bytes tx_packets tx_bytes drops",
    ),
    (
        "flows",
        "lane in_port key.src key.dst key.proto key.sport key.dport actions out packets bytes idle_s",
    ),
    ("fdb", "segment mac age_s static"),
    ("routes", "prefix via"),
    (
        "connections",
        "proto src sport dst dport state backend snat idle_s packets",
    ),
];

/// Whether a document, each of its rows, has the field.
fn has(document: &Value, path: &str) -> bool {
    match document {
        Value::Array(rows) => !rows.is_empty() && rows.iter().all(|row| has(row, path)),
        _ => match path.split_once('.') {
            Some((head, rest)) => document.get(head).is_some_and(|inner| has(inner, rest)),
            None => document.get(path).is_some(),
        },
    }
}

#[test]
fn every_field_that_scripts_read_is_there() -> Result<()> {
    if !root_or_skip("every_field_that_scripts_read_is_there") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::Dual, |config| {
        config.tables =
            "[[segments]]\nname = \"blue\"\nvni = 100\ncidrs = [\"10.50.0.0/24\"]".to_owned();
    })?;
    let outside = Namespace::create("outside")?;
    cluster.underlay().plug(&outside, 200)?;
    let node = &cluster.nodes()[0];
    let mut pod = Pod::attach(node, "a")?;
    let blue = node.network("blue", json!({"segment": "blue"}));
    pod.add(node, "net1", &blue)?;
    let remote = Pod::attach(&cluster.nodes()[1], "b")?;
    traffic::reach(pod.namespace(), remote.v4()?)?;
    let to = cluster.underlay().addresses(200)[0];
    traffic::reach(pod.namespace(), to)?;
    for (command, fields) in RELIED_ON {
        let document = node.cli(&[command])?;
        for field in fields.split_whitespace() {
            assert!(
                has(&document, field),
                "{command} has no {field}: {document}"
            );
        }
    }
    // Words that stand for something.
    let words = |command: &str, field: &str| -> Result<BTreeSet<String>> {
        let rows = node.cli(&[command])?;
        let rows = rows.as_array().into_iter().flatten();
        let words = rows.filter_map(|row| row[field].as_str().map(str::to_owned));
        Ok(words.collect())
    };
    let known = |list: &str| list.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(words("ports", "kind")?, known("host pod uplink"));
    assert_eq!(words("ports", "xdp_mode")?, known("generic"));
    let via = words("routes", "via")?;
    assert!(
        via.is_superset(&known("gateway host local vtep")),
        "{via:?}"
    );
    let drops = node.cli(&["drops"])?;
    let counts = drops.as_object().expect("reasons");
    assert!(counts.values().all(Value::is_u64), "{drops}");
    Ok(())
}

#[test]
fn captures_open_in_tshark() -> Result<()> {
    if !root_or_skip("captures_open_in_tshark") {
        return Ok(());
    }
    let node = Node::plain("capture")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    let port = node
        .ports()?
        .into_iter()
        .find(|port| port.pod == "a")
        .map(|port| port.name)
        .expect("a port");
    let file = node.ipam_dir().join("capture.pcapng");
    let mut command = node.namespace().command(program("spinlane")?);
    command
        .args(["capture", "--port", &port, "--filter", "icmp"])
        .args(["--count", "8", "--write"])
        .arg(&file)
        .arg("--run-dir")
        .arg(node.run_dir());
    let capturing = Process::spawn(command)?;
    wait_for("the capture to begin", Duration::from_secs(5), || {
        file.metadata().ok().filter(|meta| meta.len() > 0).map(drop)
    })?;
    // As many packets as are captured, and no more.
    traffic::ping_in_vain(a.namespace(), b.v4()?, 3, &[])?;
    // Dropped, with its reason.
    let nobody = "10.244.1.250".parse().expect("an address");
    traffic::ping_in_vain(a.namespace(), nobody, 2, &[])?;
    let output = capturing.wait(Duration::from_secs(10))?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let echoes = capture::count(&file, &format!("icmp && ip.addr == {}", b.v4()?))?;
    assert!(echoes >= 4, "{echoes} echo packets");
    let comments = capture::fields(&file, "frame.comment", &["frame.comment"])?;
    assert!(
        comments.iter().any(|row| row[0].contains("no_endpoint")),
        "{comments:?}"
    );
    Ok(())
}

#[test]
fn a_capture_ends_with_its_port() -> Result<()> {
    if !root_or_skip("a_capture_ends_with_its_port") {
        return Ok(());
    }
    let node = Node::plain("short")?;
    let (mut a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    let file = node.ipam_dir().join("capture.pcapng");
    let mut command = node.namespace().command(program("spinlane")?);
    command
        .args(["capture", "--port", "default/a", "--write"])
        .arg(&file)
        .arg("--run-dir")
        .arg(node.run_dir());
    let capturing = Process::spawn(command)?;
    wait_for("the capture to begin", Duration::from_secs(5), || {
        file.metadata().ok().filter(|meta| meta.len() > 0).map(drop)
    })?;
    assert!(traffic::ping(a.namespace(), b.v4()?, 1)?.all());
    a.del(&node, "eth0")?;
    // The next pod may well have the port's number; nothing of it is shown.
    let next = Pod::attach(&node, "c")?;
    assert!(traffic::ping(next.namespace(), b.v4()?, 3)?.all());
    let output = capturing.wait(Duration::from_secs(10))?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let of_next = format!("ip.addr == {}", next.v4()?);
    assert_eq!(capture::count(&file, &of_next)?, 0);
    assert_ne!(capture::count(&file, "icmp")?, 0);
    Ok(())
}

#[test]
fn metrics_and_health_are_served() -> Result<()> {
    if !root_or_skip("metrics_and_health_are_served") {
        return Ok(());
    }
    let node = Node::plain("metrics")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    assert!(traffic::ping(a.namespace(), b.v4()?, 2)?.all());
    let metrics = http(&node, "/metrics")?;
    for name in [
        "spinlane_port_rx_packets_total{",
        "spinlane_drops_total{reason=\"spoofed\"}",
        "spinlane_lane_busy_ratio{",
        "spinlane_cni_request_duration_seconds",
    ] {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
    for path in ["/healthz", "/readyz"] {
        let answer = http(&node, path)?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    Ok(())
}

#[test]
fn the_command_line_fails_in_one_line_with_its_status() -> Result<()> {
    if !root_or_skip("the_command_line_fails_in_one_line_with_its_status") {
        return Ok(());
    }
    let node = Node::prepare(&NodeConfig::new("commands"))?;
    for command in ["status", "ports", "flows", "fdb", "drops"] {
        let output = node.cli_output(&[command])?;
        assert_eq!(output.status.code(), Some(3), "{command} without an agent");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(error.trim().lines().count(), 1, "{error}");
        assert!(
            error.contains(&node.run_dir().display().to_string()),
            "{error}"
        );
        assert!(output.stdout.is_empty());
    }
    for wrong in [&["frobnicate"][..], &["status", "--colour"], &["capture"]] {
        let output = node.cli_output(wrong)?;
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    Ok(())
}

#[test]
fn a_wrong_configuration_names_the_key() -> Result<()> {
    if !root_or_skip("a_wrong_configuration_names_the_key") {
        return Ok(());
    }
    for (tables, named) in [
        ("[lains]\n", "lains"),
        (
            "[[segments]]\nname = \"blue\"\nvni = 100\ncidr = [\"10.50.0.0/24\"]",
            "cidrs",
        ),
        (
            "[[segments]]\nname = \"blue\"\nvni = 99999999\ncidrs = []",
            "vni",
        ),
    ] {
        let mut config = NodeConfig::new("wrong");
        config.tables = tables.to_owned();
        let error = match Node::start(&config) {
            Ok(_) => panic!("the agent took {tables:?}"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("before `ready`"), "{error}");
        assert!(error.contains(named), "{error}");
    }
    Ok(())
}

#[test]
fn cleanup_removes_everything_and_nothing_else() -> Result<()> {
    if !root_or_skip("cleanup_removes_everything_and_nothing_else") {
        return Ok(());
    }
    let mut node = Node::prepare(&NodeConfig::new("cleanup"))?;
    node.namespace().ip("link add keep0 type bridge")?;
    node.namespace().ip("addr add 192.0.2.1/24 dev keep0")?;
    node.namespace().ip("link set keep0 up")?;
    let look = |node: &Node| -> Result<Vec<String>> {
        Ok(vec![
            node.interfaces()?.join(" "),
            node.namespace().ip("route show table all type unicast")?,
            node.namespace().ip("-6 route show table main")?,
            node.namespace().ip("rule show")?,
            node.namespace()
                .run(&["sysctl", "-n", "net.ipv4.ip_local_reserved_ports"])?,
        ])
    };
    let before = look(&node)?;
    node.start_agent()?;
    let pod = Pod::attach(&node, "a")?;
    assert!(traffic::ping(node.namespace(), pod.v4()?, 1)?.all());
    // With other directories it is the same node all the same.
    let elsewhere = node.ipam_dir().join("elsewhere");
    let refused = node
        .namespace()
        .command(program("spinlane")?)
        .arg("cleanup")
        .arg("--run-dir")
        .arg(&elsewhere)
        .arg("--state-dir")
        .arg(&elsewhere)
        .output()
        .map_err(LabError::io("start `spinlane cleanup`"))?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("runs in this network namespace"), "{why}");
    assert!(!elsewhere.exists());
    assert!(traffic::ping(node.namespace(), pod.v4()?, 1)?.all());
    node.stop()?;
    assert_ne!(
        look(&node)?,
        before,
        "the agent's work stays when it leaves"
    );
    let output = node
        .namespace()
        .command(program("spinlane")?)
        .arg("cleanup")
        .arg("--run-dir")
        .arg(node.run_dir())
        .arg("--state-dir")
        .arg(node.state_dir())
        .output()
        .map_err(LabError::io("start `spinlane cleanup`"))?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(look(&node)?, before);
    node.start_agent()?;
    assert_eq!(node.status()?.endpoints, 0);
    Ok(())
}

/// What `spinlane check` says of a node and its configuration.
fn checked(node: &Node) -> Result<Value> {
    let config = node.config_path();
    node.cli(&["check", "--config", &config.to_string_lossy()])
}

/// State and detail of a named item.
fn item(report: &Value, name: &str) -> Result<(String, String)> {
    let items = report["items"].as_array().cloned().unwrap_or_default();
    let item = items.iter().find(|item| item["name"] == name);
    let item = item.ok_or_else(|| LabError::unexpected(name, report.to_string()))?;
    let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), text("detail")))
}

#[test]
fn check_looks_at_the_uplink_that_the_configuration_names() -> Result<()> {
    if !root_or_skip("check_looks_at_the_uplink_that_the_configuration_names") {
        return Ok(());
    }
    // Before an agent runs, and while one does.
    let mut cluster = Cluster::prepare(1, Families::V4, |_| {})?;
    for is_running in [false, true] {
        if is_running {
            cluster.nodes_mut()[0].start_agent()?;
        }
        let report = checked(&cluster.nodes()[0])?;
        for name in [
            "uplink",
            "uplink's driver",
            "uplink's queues",
            "MTU",
            "routes to pods",
        ] {
            let (state, detail) = item(&report, name)?;
            assert_eq!(state, "ok", "{name}: {detail}");
        }
        assert!(item(&report, "MTU")?.1.contains("leaves 1450 bytes"));
        // Tried in earnest, one after the other.
        for name in [
            "AF_XDP, generic mode",
            "AF_XDP, native mode",
            "programs at tc",
        ] {
            let (state, detail) = item(&report, name)?;
            assert_eq!(state, "ok", "{name}: {detail}");
        }
    }
    let node = &cluster.nodes()[0];
    node.namespace().sh(
        "ip link add flannel.1 type vxlan id 1 dstport 4789 dev eth0\n\
         ip link set flannel.1 up\n\
         ip link add cni0 type bridge\n\
         ip address add 10.244.1.1/24 dev cni0\n\
         ip link set cni0 up\n",
    )?;
    let report = checked(node)?;
    let (state, detail) = item(&report, "VXLAN port")?;
    assert_eq!(state, "degraded", "{detail}");
    assert!(detail.contains("flannel.1"), "{detail}");
    let (state, detail) = item(&report, "routes to pods")?;
    assert_eq!(state, "degraded", "{detail}");
    assert!(detail.contains("10.244.1.0/24 dev cni0"), "{detail}");
    node.namespace().ip("link set eth0 down")?;
    let (state, detail) = item(&checked(node)?, "uplink")?;
    assert_eq!(state, "degraded", "{detail}");
    Ok(())
}
