//! Who answers on the way from everybody to everybody, and the longest packet
//! that passes.

use std::net::IpAddr;

use spinlane_tests::cluster::ROUTER;
use spinlane_tests::site::{Kind, OUTSIDE, PLAIN, Site, Station, Way};
use spinlane_tests::talk::Pair;
use spinlane_tests::{LabError, Result, probe, talk};

/// A machine that stands still for a while looks like one that does not answer.
const ATTEMPTS: u32 = 3;

/// traceroute and tracepath between every two stations that can talk.
pub(crate) fn are_shown(site: &Site, stations: &[Station<'_>]) -> Result<()> {
    // Linux answers a few a second otherwise.
    for linux in [Some(site.plain().namespace()), site.router()] {
        let unlimited = "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit\n\
                         echo 0 > /proc/sys/net/ipv6/icmp/ratelimit\n";
        linux.map(|linux| linux.sh(unlimited)).transpose()?;
    }
    let mut failures = Vec::new();
    for pair in talk::pairs(stations) {
        let expected = expected(site, &pair);
        let (from, to) = (pair.from.namespace, pair.address);
        let options: &[&str] = if to.is_ipv6() { &["-I"] } else { &[] };
        let mut differs = String::new();
        let is_shown = (0..ATTEMPTS).any(|_| {
            let hops = probe::traceroute(from, to, options);
            let path = probe::tracepath(from, to);
            differs = format!("{pair}: {hops:?} and {path:?}, not {expected:?}");
            hops.is_ok_and(|hops| hops == expected.hops) && path.is_ok_and(|path| path == expected)
        });
        if !is_shown {
            failures.push(differs);
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(LabError::unexpected("paths", failures.join("\n"))),
    }
}

/// The number of the station that one is, or is a pod of.
fn number(kind: Kind) -> u8 {
    match kind {
        Kind::Pod(node) | Kind::Node(node) => node,
        Kind::PlainPod | Kind::PlainNode => PLAIN,
        Kind::Outside { .. } | Kind::Neighbour => OUTSIDE,
    }
}

fn is_pod(kind: Kind) -> bool {
    matches!(kind, Kind::Pod(_) | Kind::PlainPod)
}

/// Whether packets between two go through the overlay: what pods and nodes say
/// to each other, not what nodes say to nodes.
fn is_tunnelled(way: Way, from: Kind, to: Kind) -> bool {
    let (one, other) = (number(from), number(to));
    let is_between = one != other && ![one, other].contains(&OUTSIDE);
    let is_far = match way {
        Way::Vxlan => true,
        Way::CrossSubnet => (one == 3) != (other == 3),
        Way::Routed | Way::Across | Way::L2 => false,
    };
    is_between && is_far && (is_pod(from) || is_pod(to))
}

/// The first address of a station's pods: the switch's, or Linux' own.
fn gateway(number: u8, is_v6: bool) -> String {
    match is_v6 {
        true => format!("fd44:0:0:{number}::1"),
        false => format!("10.244.{number}.1"),
    }
}

/// What Linux answers with by its end of the overlay.
fn overlay_end(number: u8, is_v6: bool) -> String {
    match is_v6 {
        true => format!("fd44:0:0:{number}::"),
        false => format!("10.244.{number}.0"),
    }
}

fn expected(site: &Site, pair: &Pair<'_>) -> probe::Path {
    let (from, to, is_v6) = (pair.from.kind, pair.to.kind, pair.address.is_ipv6());
    let mut hops = match site.way() {
        Way::L2 => Vec::new(),
        _ => between(site, from, to, is_v6),
    };
    hops.push(pair.address.to_string());
    probe::Path {
        hops,
        mtu: mtu(site, from, to),
        is_reached: true,
    }
}

fn between(site: &Site, from: Kind, to: Kind, is_v6: bool) -> Vec<String> {
    let (one, other) = (number(from), number(to));
    let is_tunnelled = is_tunnelled(site.way(), from, to);
    let is_local = one == other && is_pod(to);
    let mut hops = Vec::new();
    if is_pod(from) || from == Kind::Node(one) && (is_tunnelled || is_local) {
        hops.push(gateway(one, is_v6));
    }
    if one == other {
        return hops;
    }
    let side = |underlay: u8, number: u8| {
        let addresses = site.cluster().underlay_of(underlay).addresses(number);
        let mut fitting = addresses.into_iter().filter(|a| a.is_ipv6() == is_v6);
        fitting.next().map(|address| address.to_string())
    };
    match to {
        // Over IPv4, Linux answers a node by the address that it has towards it.
        Kind::PlainPod if is_tunnelled && (is_pod(from) || is_v6) => {
            hops.push(overlay_end(other, is_v6));
        }
        Kind::PlainPod if is_tunnelled => hops.extend(side(other, other)),
        Kind::PlainNode if is_tunnelled => {}
        _ if is_tunnelled => hops.push(gateway(other, is_v6)),
        _ => {
            if site.router().is_some() && (one == 3) != (other == 3) {
                hops.extend(side(one, ROUTER));
            }
            // To what comes by the uplink as it is, a node answers itself.
            hops.extend(side(other, other).filter(|_| is_pod(to)));
        }
    }
    hops
}

fn mtu(site: &Site, from: Kind, to: Kind) -> u32 {
    let overhead = match site.cluster().addresses(1)[0] {
        IpAddr::V4(_) => 50,
        IpAddr::V6(_) => 70,
    };
    let has_pod = is_pod(from) || is_pod(to);
    let has_plain_pod = [from, to].contains(&Kind::PlainPod);
    let is_shorter = match site.way() {
        // Pods of a node that tunnels to all have the overlay's MTU.
        Way::Vxlan => has_pod,
        Way::CrossSubnet => has_plain_pod || is_tunnelled(site.way(), from, to),
        Way::Routed | Way::Across | Way::L2 => false,
    };
    1500 - if is_shorter { overhead } else { 0 }
}
