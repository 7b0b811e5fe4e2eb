//! An uplink on top of another device, as nodes often have it: here a bridge.
//! What it hands up was put together by the kernel, in pieces longer than a
//! packet and with checksums that nobody completed.

use std::time::Duration;

use spinlane_tests::cluster::{Families, UPLINK};
use spinlane_tests::plain::{BRIDGE, bridge};
use spinlane_tests::{
    Cluster, LabError, Namespace, Pod, lab_dir, lan, root_or_skip, traffic, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(15);
const MEGABYTE: usize = 1 << 20;
const OUTSIDE: u8 = 200;

fn talk(from: &Namespace, to: &Namespace, address: std::net::IpAddr) -> Result<(), LabError> {
    wait_for(&format!("ping of {address}"), PATIENCE, || {
        let pings = traffic::ping(from, address, 1);
        pings.ok().filter(traffic::Pings::all)
    })?;
    assert_eq!(traffic::udp_echo(from, to, address, 10, 1200)?, 10);
    traffic::tcp_both_ways(from, to, address, 4 * MEGABYTE)
}

#[test]
fn pods_talk_through_a_bridge() -> Result<(), LabError> {
    if !root_or_skip("pods_talk_through_a_bridge") {
        return Ok(());
    }
    for mode in ["routed", "vxlan"] {
        let mut cluster = Cluster::prepare(2, Families::Dual, |config| {
            config.uplink = BRIDGE.to_owned();
            config.mode = mode.to_owned();
        })?;
        let outside = Namespace::create("outside")?;
        cluster.underlay().plug(&outside, OUTSIDE)?;
        for node in cluster.nodes_mut() {
            bridge(node.namespace())?;
            node.start_agent()?;
        }
        let [one, two] = cluster.nodes() else {
            unreachable!("two nodes");
        };
        let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
        for address in b.addresses("eth0")? {
            talk(a.namespace(), b.namespace(), address)?;
        }
        for address in cluster.underlay().addresses(OUTSIDE) {
            talk(a.namespace(), &outside, address)?;
        }
        for address in cluster.underlay().addresses(2) {
            talk(one.namespace(), two.namespace(), address)?;
        }
    }
    Ok(())
}

#[test]
fn an_uplink_that_somebody_else_holds_is_taken_when_it_is_free() -> Result<(), LabError> {
    if !root_or_skip("an_uplink_that_somebody_else_holds_is_taken_when_it_is_free") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::V4, |_| {})?;
    // Any program of another network does.
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../dataplane/bpf/port.bpf.o");
    let one = cluster.nodes()[0].namespace();
    one.ip(&format!(
        "link set dev {UPLINK} xdpgeneric obj {program} sec xdp.frags"
    ))?;
    for node in cluster.nodes_mut() {
        node.start_agent()?;
    }
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let state = |state: &str| {
        wait_for(&format!("the uplink to be {state}"), PATIENCE, || {
            let status = one.status().ok()?;
            (status.uplink?.state == state).then_some(status.notices)
        })
    };
    let notices = state("refused")?;
    let told = |n: &String| n.contains("cannot attach the uplink eth0") && n.contains("trying");
    assert!(notices.iter().any(told), "{notices:?}");
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    one.namespace()
        .ip(&format!("link set dev {UPLINK} xdpgeneric off"))?;
    // Other nodes are in reach as soon as routes by it are in force.
    wait_for("nothing to be told of", PATIENCE, || {
        state("up").ok()?.is_empty().then_some(())
    })?;
    talk(a.namespace(), b.namespace(), b.v4()?)
}

/// What `udhcpc` runs with a lease.
const LEASE: &str = "#!/bin/sh
case $1 in bound|renew) ip address replace $ip/$mask dev $interface;; esac
";

/// The node's own DHCP client goes on by an uplink that is taken, and pods leave
/// with the address that it gets.
#[test]
fn a_node_gets_its_address_by_a_taken_uplink() -> Result<(), LabError> {
    if !root_or_skip("a_node_gets_its_address_by_a_taken_uplink") {
        return Ok(());
    }
    let script = lab_dir()?.join("node-lease.sh");
    std::fs::write(&script, LEASE).map_err(LabError::io("write the script"))?;
    let script = script.display().to_string();
    for mode in ["vxlan", "routed", "l2"] {
        let mut cluster = Cluster::prepare(1, Families::Dual, |config| match mode {
            "l2" => lan::share(config),
            mode => {
                config.mode = mode.to_owned();
                config.addresses = Vec::new();
            }
        })?;
        let server = Namespace::create("server")?;
        server.run(&["chmod", "+x", &script])?;
        cluster.underlay().plug(&server, OUTSIDE)?;
        let leases = lab_dir()?.join(format!("{}.leases", server.name()));
        let _serving = server.spawn(&[
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--user=root",
            "--pid-file=",
            "--interface=eth0",
            "--no-ping",
            "--dhcp-range=172.31.0.210,172.31.0.210,255.255.255.0,2m",
            &format!("--dhcp-leasefile={}", leases.display()),
        ])?;
        cluster.nodes_mut()[0].start_agent()?;
        let node = &cluster.nodes()[0];
        let pod = Pod::attach(node, "a")?;
        let own = node.namespace();
        let to = cluster.underlay().addresses(OUTSIDE)[0];
        talk(pod.namespace(), &server, to)?;
        let ask = [
            "udhcpc", "-i", UPLINK, "-f", "-n", "-q", "-t", "20", "-T", "1",
        ];
        own.run(&[&ask[..], &["-s", &script]].concat())?;
        let leased = "172.31.0.210".parse().expect("an address");
        talk(&server, own, leased)?;
        if mode == "l2" {
            talk(pod.namespace(), own, leased)?;
            continue;
        }
        own.sysctl("net/ipv4/conf/eth0/promote_secondaries", "1")?;
        own.ip(&format!("address del 172.31.0.1/24 dev {UPLINK}"))?;
        wait_for("the leased address to be seen outside", PATIENCE, || {
            let seen = traffic::tcp_seen_from(pod.namespace(), &server, to);
            seen.ok().filter(|seen| *seen == leased)
        })?;
        talk(pod.namespace(), &server, to)?;
    }
    Ok(())
}
