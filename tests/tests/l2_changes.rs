//! Mode `l2` when something changes: stations move, the network has a loop,
//! its gateway is another one, the agent leaves and comes back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use spinlane_tests::lan::{HOST, Lan, OUTSIDE, ROUTER};
use spinlane_tests::{LabError, Namespace, Node, Pod, root_or_skip, traffic, wait_for};

const SOON: Duration = Duration::from_secs(15);

fn reaches(from: &Namespace, address: IpAddr) -> Result<(), LabError> {
    wait_for(&format!("{} to {address}", from.name()), SOON, || {
        let pings = traffic::ping(from, address, 1);
        pings.ok().filter(traffic::Pings::all)
    })
    .map(drop)
}

/// The forwarding database's entry of a station.
fn entry(node: &Node, mac: &str) -> Option<Value> {
    let fdb = node.cli(&["fdb"]).ok()?;
    let mut entries = fdb.as_array()?.iter();
    entries.find(|entry| entry["mac"] == mac).cloned()
}

/// Waits until a node has a station behind that port.
fn is_behind(node: &Node, mac: &str, port: &str) -> Result<(), LabError> {
    wait_for(&format!("{mac} behind {port}"), SOON, || {
        entry(node, mac).filter(|entry| entry["port"] == port)
    })
    .map(drop)
}

const SHARED_RANGE: [&str; 2] = ["172.31.0.32/27", "fd31::1:0/112"];

#[test]
fn a_pod_takes_its_addresses_to_another_node() -> Result<(), LabError> {
    if !root_or_skip("a_pod_takes_its_addresses_to_another_node") {
        return Ok(());
    }
    let lan = Lan::start(2, |config| {
        config.pod_cidrs = SHARED_RANGE.map(str::to_owned).to_vec();
    })?;
    let [one, two] = lan.nodes() else {
        unreachable!("two nodes");
    };
    let mac = "0a:58:ac:1f:00:28";
    let wish = json!({"runtimeConfig": {"mac": mac, "ips": ["172.31.0.40", "fd31::1:40"]}});
    let mut pod = Pod::bare("mover")?;
    pod.add(one, "eth0", &one.network("pods", wish.clone()))?;
    let addresses = pod.addresses("eth0")?;
    let mut neighbour = Pod::bare("neighbour")?;
    neighbour.add(
        two,
        "eth0",
        &two.network(
            "pods",
            json!({"runtimeConfig": {"ips": ["172.31.0.41", "fd31::1:41"]}}),
        ),
    )?;
    let watchers = [
        lan.host(),
        neighbour.namespace(),
        one.namespace(),
        two.namespace(),
    ];
    for from in watchers {
        for &address in &addresses {
            reaches(from, address)?;
        }
    }
    is_behind(two, mac, "eth0")?;
    assert_eq!(
        entry(one, mac).map(|entry| entry["static"].clone()),
        Some(json!(true))
    );
    pod.del(one, "eth0")?;
    pod.add(two, "eth0", &two.network("pods", wish))?;
    // It said so itself: nobody has to time out.
    is_behind(one, mac, "eth0")?;
    for from in watchers {
        for &address in &addresses {
            reaches(from, address)?;
            traffic::tcp_both_ways(from, pod.namespace(), address, 300 << 10)?;
        }
    }
    Ok(())
}

/// Shows a second MAC and IPv4 address behind an interface of a namespace.
fn show(namespace: &Namespace, mac: &str, address: &str) -> Result<(), LabError> {
    namespace.ip(&format!(
        "link add station link eth0 address {mac} type macvlan mode bridge"
    ))?;
    namespace.ip(&format!("address add {address}/24 dev station"))?;
    namespace.ip("link set station up").map(drop)
}

/// Sends a broadcast as that station.
fn speak(namespace: &Namespace) -> Result<(), LabError> {
    let all = "172.31.0.255".parse().expect("an address");
    traffic::ping_with(namespace, all, 1, &["-b", "-I", "station", "-W", "0.05"]).map(drop)
}

const OPEN: &str = "
[[segments]]
name = \"l2\"
guard = false
static = [{mac = \"02:00:5e:00:53:07\", port = \"eth0\"}]
";

#[test]
fn a_station_that_moves_to_and_fro_is_held_and_told_of() -> Result<(), LabError> {
    if !root_or_skip("a_station_that_moves_to_and_fro_is_held_and_told_of") {
        return Ok(());
    }
    let lan = Lan::start(1, |config| config.tables = OPEN.to_owned())?;
    let node = &lan.nodes()[0];
    let (pod, other) = (Pod::attach(node, "a")?, Pod::attach(node, "b")?);
    let fixed = entry(node, "02:00:5e:00:53:07").expect("the static station");
    assert_eq!(
        (&fixed["port"], &fixed["static"]),
        (&json!("eth0"), &json!(true))
    );
    let mac = "02:00:5e:00:53:01";
    show(pod.namespace(), mac, "172.31.0.77")?;
    show(lan.host(), mac, "172.31.0.78")?;
    // As a loop would show it: behind the pod, behind the uplink, and so on.
    let held = wait_for("the station to be held", SOON * 2, || {
        for namespace in [pod.namespace(), lan.host()] {
            speak(namespace).ok()?;
        }
        entry(node, mac).filter(|entry| entry["held"] == true)
    })?;
    let status = node.status()?;
    assert_eq!(status.stations.held, 1, "{:?}", status.stations);
    let notice = status.notices.iter().find(|notice| notice.contains(mac));
    assert!(
        notice.is_some_and(|n| n.contains("loop")),
        "{:?}",
        status.notices
    );
    assert!(
        node.log_tail(20).contains("moves to and fro"),
        "{}",
        node.log_tail(20)
    );
    // It stays where it is, and what comes from elsewhere is dropped.
    for namespace in [pod.namespace(), lan.host()] {
        speak(namespace)?;
    }
    assert_eq!(
        entry(node, mac).map(|e| e["port"].clone()),
        Some(held["port"].clone())
    );
    wait_for("the drops", SOON, || {
        node.drops().ok().filter(|drops| drops["station_held"] > 0)
    })?;
    // Others do not suffer.
    for address in other.addresses("eth0")? {
        reaches(pod.namespace(), address)?;
        reaches(lan.host(), address)?;
    }
    Ok(())
}

#[test]
fn a_pods_address_used_on_the_wire_is_told_of_and_harmless() -> Result<(), LabError> {
    if !root_or_skip("a_pods_address_used_on_the_wire_is_told_of_and_harmless") {
        return Ok(());
    }
    let lan = Lan::start(1, |_| {})?;
    let node = &lan.nodes()[0];
    let (pod, other) = (Pod::attach(node, "a")?, Pod::attach(node, "b")?);
    let mac = pod
        .namespace()
        .run(&["cat", "/sys/class/net/eth0/address"])?;
    let mac = mac.trim();
    show(lan.host(), mac, "172.31.0.79")?;
    wait_for("the notice", SOON * 2, || {
        speak(lan.host()).ok()?;
        std::thread::sleep(Duration::from_millis(500));
        let status = node.status().ok()?;
        status.notices.iter().any(|n| n.contains(mac)).then_some(())
    })?;
    let now = entry(node, mac).expect("the pod's own station");
    assert_eq!((&now["static"], &now["held"]), (&json!(true), &json!(true)));
    for address in pod.addresses("eth0")? {
        reaches(node.namespace(), address)?;
        reaches(other.namespace(), address)?;
    }
    Ok(())
}

fn default_routes(pod: &Pod) -> Result<String, LabError> {
    let v4 = pod.namespace().ip("route show default")?;
    let v6 = pod.namespace().ip("-6 route show default")?;
    Ok(format!("{v4}{v6}"))
}

#[test]
fn pods_follow_the_networks_gateway() -> Result<(), LabError> {
    if !root_or_skip("pods_follow_the_networks_gateway") {
        return Ok(());
    }
    let mut lan = Lan::start(1, |_| {})?;
    let pod = Pod::attach(&lan.nodes()[0], "a")?;
    let routes = default_routes(&pod)?;
    for gateway in [
        format!("via 172.31.0.{ROUTER} "),
        format!("via fd31::{ROUTER:x} "),
    ] {
        assert!(routes.contains(&gateway), "{routes}");
    }
    // The plain host leads there too, by the old router.
    for forwarding in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        lan.host().sysctl(forwarding, "1")?;
    }
    let node = lan.nodes()[0].namespace();
    node.ip(&format!("route replace default via 172.31.0.{HOST}"))?;
    node.ip(&format!("-6 route del default via fd31::{ROUTER:x}"))?;
    node.ip(&format!("-6 route add default via fd31::{HOST:x}"))?;
    let wanted = [
        format!("via 172.31.0.{HOST} "),
        format!("via fd31::{HOST:x} "),
    ];
    let has_moved = |pod: &Pod| {
        let routes = default_routes(pod).ok()?;
        let right = wanted.iter().all(|gateway| routes.contains(gateway));
        (right && routes.lines().count() == 2).then_some(())
    };
    wait_for("the new gateway", SOON, || has_moved(&pod))?;
    let routes = default_routes(&pod)?;
    assert!(routes.contains("mtu 1500"), "{routes}");
    for outside in OUTSIDE {
        reaches(pod.namespace(), outside.parse().expect("an address"))?;
    }
    // CHECK expects what is there now, and so does the next start.
    let answer = pod.check(&lan.nodes()[0], "eth0")?;
    assert_eq!(answer.exit, 0, "{}", answer.output);
    let node = &mut lan.nodes_mut()[0];
    node.stop()?;
    node.namespace()
        .ip(&format!("route replace default via 172.31.0.{ROUTER}"))?;
    node.start_agent()?;
    wait_for("the gateway of before", SOON, || {
        let routes = default_routes(&pod).ok()?;
        routes
            .contains(&format!("via 172.31.0.{ROUTER} "))
            .then_some(())
    })?;
    let late = Pod::attach(&lan.nodes()[0], "b")?;
    let routes = default_routes(&late)?;
    assert!(routes.contains(&wanted[1]), "{routes}");
    Ok(())
}

/// What the kernel says of the uplink, without counters.
fn uplink(node: &Node) -> Result<String, LabError> {
    let shown = node.namespace().ip("-d -o link show eth0")?;
    Ok(shown
        .split(" numtxqueues")
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// Waits until nothing of ours is on the uplink.
fn is_as_before(node: &Node, before: &str) -> Result<(), LabError> {
    let same = wait_for("the uplink as it was", SOON, || {
        uplink(node).ok().filter(|now| now == before)
    });
    assert!(same.is_ok(), "{before} is now {}", uplink(node)?);
    Ok(())
}

#[test]
fn pods_outlive_the_agent_and_the_node_is_never_cut_off() -> Result<(), LabError> {
    if !root_or_skip("pods_outlive_the_agent_and_the_node_is_never_cut_off") {
        return Ok(());
    }
    let mut lan = Lan::prepare(1, |_| {})?;
    let before = uplink(&lan.nodes()[0])?;
    let addresses = lan.addresses(1);
    // From before the start until after the last end.
    let pings: Vec<_> = addresses
        .iter()
        .map(|address| {
            let address = address.to_string();
            lan.host().spawn(&["ping", "-n", "-i", "0.02", &address])
        })
        .collect::<Result<_, _>>()?;
    lan.nodes_mut()[0].start_agent()?;
    let held = uplink(&lan.nodes()[0])?;
    assert!(
        held.contains("promiscuity 1") && held.contains("xdp"),
        "{held}"
    );
    let mut pod = Pod::attach(&lan.nodes()[0], "a")?;
    let own = pod.addresses("eth0")?;
    for round in 0..3 {
        for &address in &own {
            reaches(lan.host(), address)?;
            reaches(lan.nodes()[0].namespace(), address)?;
        }
        for &address in &addresses {
            reaches(pod.namespace(), address)?;
        }
        let node = &mut lan.nodes_mut()[0];
        match round {
            0 => node.restart()?,
            1 => {
                node.kill9();
                wait_for("the kernel to undo it", SOON, || {
                    uplink(node)
                        .ok()
                        .filter(|now| now.contains("promiscuity 0"))
                })?;
                for &address in &addresses {
                    reaches(lan.host(), address)?;
                }
                let node = &mut lan.nodes_mut()[0];
                node.start_agent()?;
            }
            _ => {
                node.namespace().ip("link del spinlane0")?;
                wait_for("the host port", SOON, || {
                    node.interfaces()
                        .ok()?
                        .contains(&"spinlane0".to_owned())
                        .then_some(())
                })?;
                reaches(node.namespace(), own[0])?;
            }
        }
    }
    let answer = pod.check(&lan.nodes()[0], "eth0")?;
    assert_eq!(answer.exit, 0, "{}", answer.output);
    pod.del(&lan.nodes()[0], "eth0")?;
    let node = &mut lan.nodes_mut()[0];
    node.stop()?;
    is_as_before(node, &before)?;
    let state = node.state_dir().display().to_string();
    let cleaned = node.cli_output(&["cleanup", "--state-dir", &state])?;
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(node.interfaces()?, ["eth0"]);
    // Some more are answered after the last change.
    for &address in &addresses {
        reaches(lan.host(), address)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    for ping in pings {
        let output = ping.interrupt(SOON)?;
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(unanswered(&text), [0; 0], "{text}");
    }
    Ok(())
}

/// How many requests may be under way when `ping` is ended: half a second's.
const UNDER_WAY: u32 = 25;

/// Numbers of the requests that `ping` got no answer to, but for those that
/// were under way when it was ended.
fn unanswered(text: &str) -> Vec<u32> {
    let answers = text.lines().filter(|line| line.contains("bytes from"));
    let number = |line: &str| {
        line.split("icmp_seq=")
            .nth(1)?
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    let answered: BTreeSet<u32> = answers.filter_map(number).collect();
    let sent = text.split(" packets transmitted").next();
    let sent = sent.and_then(|head| head.rsplit('\n').next()?.parse().ok());
    let sent: u32 = sent.expect("a summary");
    let last = answered.last().copied().unwrap_or_default();
    let due = last.max(sent.saturating_sub(UNDER_WAY));
    let missing = (1..=due).filter(|number| !answered.contains(number));
    missing.collect()
}
