//! The outside begins: a host that routes the pods' range through the node
//! talks to a pod by its own address, and the pod answers with it.

use std::io::ErrorKind;
use std::time::Duration;

use spinlane_tests::cluster::pod_cidrs;
use spinlane_tests::{LabError, Pod, root_or_skip, traffic, wait_for};

use super::outside::{FAR, Outside, refused};
use super::restart::{listen, through_restarts};

/// The lab in a mode, its router and the host behind it knowing the way to
/// the pods. In mode `vxlan` the node's kernel forwards what comes.
fn start(mode: &str) -> Result<Outside, LabError> {
    let outside = Outside::start_with(|config| config.mode = mode.to_owned())?;
    let node = outside.node().namespace();
    node.sysctl("net/ipv4/ip_forward", "1")?;
    node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let ways = [("172.31.0.1", "203.0.113.1"), ("fd31::1", "2001:db8:7::1")];
    for (net, (node, router)) in pod_cidrs(1).iter().zip(ways) {
        outside.router.ip(&format!("route add {net} via {node}"))?;
        outside.far.ip(&format!("route add {net} via {router}"))?;
    }
    Ok(outside)
}

fn outside_begins(mode: &str) -> Result<(), LabError> {
    let outside = start(mode)?;
    let pod = Pod::attach(outside.node(), "web")?;
    for (to, own) in pod.addresses("eth0")?.into_iter().zip(FAR) {
        traffic::reach(&outside.far, to)?;
        let seen = traffic::tcp_seen_from(&outside.far, pod.namespace(), to)?;
        assert_eq!(seen, own);
        traffic::tcp_both_ways(&outside.far, pod.namespace(), to, 2 << 20)?;
        assert_eq!(
            refused(&outside.far, to)?,
            ErrorKind::ConnectionRefused,
            "{to}"
        );
        // The longer ones in fragments, once both ends know how narrow the
        // path is.
        for size in [18, 1200, 1400, 5000] {
            let what = format!("datagrams of {size} bytes to {to}");
            wait_for(&what, Duration::from_secs(60), || {
                let whole = traffic::udp_echo(&outside.far, pod.namespace(), to, 5, size);
                whole.ok().filter(|whole| *whole == 5)
            })?;
        }
        let what = format!("tracepath to {to}");
        wait_for(&what, Duration::from_secs(60), || {
            let line = format!("LC_ALL=C tracepath -n {to} || true");
            let text = outside.far.sh(&line).ok()?;
            (text.contains("pmtu 1300") && text.contains("reached")).then_some(())
        })?;
        // The pod's own connections hide it as ever.
        let seen = traffic::tcp_seen_from(pod.namespace(), &outside.far, own)?;
        assert_eq!(seen, outside.own(own));
    }
    let rows = outside.node().cli(&["connections"])?;
    let rows = rows.as_array().expect("a list");
    for to in pod.addresses("eth0")? {
        let its: Vec<_> = rows
            .iter()
            .filter(|row| row["dst"] == to.to_string())
            .collect();
        assert!(
            its.iter()
                .any(|row| row["proto"] == "tcp" && row["state"] == "time-wait"),
            "{rows:?}"
        );
        assert!(its.iter().all(|row| row["snat"].is_null()), "{rows:?}");
    }
    assert_eq!(outside.node().drops()?["no_connection"], 0);
    Ok(())
}

#[test]
fn the_outside_begins_where_pods_are_routed() -> Result<(), LabError> {
    if !root_or_skip("the_outside_begins_where_pods_are_routed") {
        return Ok(());
    }
    outside_begins("routed")
}

#[test]
fn the_outside_begins_through_the_nodes_kernel() -> Result<(), LabError> {
    if !root_or_skip("the_outside_begins_through_the_nodes_kernel") {
        return Ok(());
    }
    outside_begins("vxlan")
}

#[test]
fn connections_from_outside_outlive_the_agent() -> Result<(), LabError> {
    if !root_or_skip("connections_from_outside_outlive_the_agent") {
        return Ok(());
    }
    let mut outside = start("routed")?;
    let pod = Pod::attach(outside.node(), "web")?;
    let addresses = pod.addresses("eth0")?;
    let inside = pod.namespace();
    for &to in &addresses {
        traffic::reach(&outside.far, to)?;
    }
    let listeners = [listen(inside, addresses[0])?, listen(inside, addresses[1])?];
    let node = &mut outside.cluster.nodes_mut()[0];
    through_restarts(node, &listeners, &outside.far)?;
    // Nothing that the pod said was taken for a beginning.
    let rows = outside.node().cli(&["connections"])?;
    let rows = rows.as_array().expect("a list");
    assert!(rows.iter().all(|row| row["snat"].is_null()), "{rows:?}");
    assert!(rows.iter().any(|row| row["proto"] == "tcp"), "{rows:?}");
    assert_eq!(outside.node().drops()?["no_connection"], 0);
    Ok(())
}
