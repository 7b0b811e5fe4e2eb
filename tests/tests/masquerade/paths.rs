//! What is longer than the path takes, and what the path says.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use spinlane_tests::{LabError, Namespace, PATIENCE, Pod, root_or_skip, traffic, wait_for};

use super::outside::{FAR, Outside};

#[test]
fn datagrams_in_fragments_go_both_ways() -> Result<(), LabError> {
    if !root_or_skip("datagrams_in_fragments_go_both_ways") {
        return Ok(());
    }
    let outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    for to in FAR {
        traffic::reach(pod.namespace(), to)?;
        for size in [1400, 3000, 9000] {
            // The first ones find out how narrow the path is, where nobody on
            // it cuts (IPv6).
            wait_for(
                &format!("datagrams of {size} bytes to {to}"),
                Duration::from_secs(60),
                || {
                    let whole = traffic::udp_echo(pod.namespace(), &outside.far, to, 5, size);
                    whole.ok().filter(|whole| *whole == 5)
                },
            )?;
        }
        let options = ["-s", "5000"];
        wait_for("long pings", Duration::from_secs(60), || {
            let pings = traffic::ping_with(pod.namespace(), to, 3, &options);
            pings.ok().filter(traffic::Pings::all)
        })?;
    }
    outside.nothing_leaked()
}

/// What `traceroute` and `tracepath` print, by whom they name.
fn hops(from: &Namespace, line: &str, to: std::net::IpAddr) -> Result<String, LabError> {
    from.sh(&format!("LC_ALL=C {line} {to} || true"))
}

#[test]
fn the_path_and_its_mtu_are_seen_through_masquerade() -> Result<(), LabError> {
    if !root_or_skip("the_path_and_its_mtu_are_seen_through_masquerade") {
        return Ok(());
    }
    let outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    let routers = ["172.31.0.9", "fd31::9"];
    for (to, router) in FAR.into_iter().zip(routers) {
        traffic::reach(pod.namespace(), to)?;
        // By datagrams, echoes and TCP: the gateway, the router, the end.
        for kind in ["-U -p 33434", "-I", "-T -p 9"] {
            let line = format!("traceroute -n -q 1 -w 5 -m 6 {kind}");
            wait_for(&format!("{line} {to}"), Duration::from_secs(60), || {
                let text = hops(pod.namespace(), &line, to).ok()?;
                let seen = text.lines().skip(1);
                let seen: Vec<_> = seen.filter_map(|l| l.split_whitespace().nth(1)).collect();
                let end = to.to_string();
                let is_whole = seen.len() == 3 && seen[1] == router && seen[2] == end;
                is_whole.then_some(())
            })?;
        }
        wait_for(
            &format!("tracepath to {to}"),
            Duration::from_secs(60),
            || {
                let text = hops(pod.namespace(), "tracepath -n", to).ok()?;
                (text.contains("pmtu 1300") && text.contains("reached")).then_some(())
            },
        )?;
        traffic::tcp_both_ways(pod.namespace(), &outside.far, to, 1 << 20)?;
    }
    outside.nothing_leaked()
}

/// What came for a pod and cannot go on is answered from the address that it
/// was sent to, as Linux' masquerade does it, and never from a pod's.
#[test]
fn the_outside_is_answered_from_the_nodes_address() -> Result<(), LabError> {
    if !root_or_skip("the_outside_is_answered_from_the_nodes_address") {
        return Ok(());
    }
    let outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    for to in FAR {
        traffic::reach(pod.namespace(), to)?;
        let failed = || LabError::io("talk from the pod to the host outside");
        let server = outside.far.enter(|| UdpSocket::bind((to, 0)))?;
        let server = server.map_err(failed())?;
        let port = server.local_addr().map_err(failed())?.port();
        let any = match to {
            IpAddr::V4(_) => "0.0.0.0:0",
            IpAddr::V6(_) => "[::]:0",
        };
        let client = pod.namespace().enter(|| UdpSocket::bind(any))?;
        let client = client.map_err(failed())?;
        client.send_to(b"?", (to, port)).map_err(failed())?;
        server.set_read_timeout(Some(PATIENCE)).map_err(failed())?;
        let (_, seen) = server.recv_from(&mut [0; 8]).map_err(failed())?;
        assert_eq!(seen.ip(), outside.own(to));
        // The port is traceroute's now. The router is the first hop.
        drop(server);
        let outer = seen.port();
        let line = format!("traceroute -n -q 1 -w 5 -f 2 -m 2 -U --sport={port} -p {outer}");
        let own = outside.own(to).to_string();
        wait_for(&format!("{line} {own}"), PATIENCE, || {
            let text = hops(&outside.far, &line, seen.ip()).ok()?;
            let hop = text.lines().nth(1)?.split_whitespace().nth(1)?;
            (hop == own).then_some(())
        })?;
        let drops = outside.node().drops()?;
        assert!(drops["ttl_exceeded"] > 0, "the switch answered: {drops:?}");
    }
    outside.nothing_leaked()
}
