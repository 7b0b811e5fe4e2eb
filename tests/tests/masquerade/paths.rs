//! What is longer than the path takes, and what the path says.

use std::time::Duration;

use spinlane_tests::{LabError, Namespace, Pod, root_or_skip, traffic, wait_for};

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
