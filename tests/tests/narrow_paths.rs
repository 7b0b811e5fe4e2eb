//! Links between nodes that lose, disorder, or carry shorter packets than
//! nodes think.
//!
//! ```text
//! pod a ── node 1 ── router ──(MTU 1400)── router ── node 2 ── pod b
//! ```

use std::net::IpAddr;

use spinlane_tests::cluster::{Families, ROUTER, UPLINK, pod_cidrs};
use spinlane_tests::{
    Cluster, LabError, Namespace, PATIENCE, Pod, Result, lan, probe, relay, root_or_skip, traffic,
    veth, wait_for,
};

const MEGABYTE: usize = 1 << 20;

/// Longest packet between the routers.
const NARROW: u32 = 1400;

/// Two nodes, each in a network of its own, and the routers between them.
struct Narrow {
    cluster: Cluster,
    _routers: [Namespace; 2],
    pods: [Pod; 2],
}

impl Narrow {
    /// With pods' ranges known to the routers, or nodes that tunnel.
    fn start(mode: &str, families: Families) -> Result<Narrow> {
        let mut cluster = Cluster::prepare_in(&[0, 1], families, |config| {
            config.mode = mode.to_owned();
        })?;
        let routers = [Namespace::create("router")?, Namespace::create("router")?];
        veth((&routers[0], "narrow"), (&routers[1], "narrow"))?;
        for (subnet, router) in routers.iter().enumerate() {
            cluster.underlays()[subnet].plug(router, ROUTER)?;
            router.sh(&format!(
                "ip link set narrow mtu {NARROW}\n\
                 ip address add 192.0.2.{subnet}/31 dev narrow\n\
                 ip address add 2001:db8::{subnet}/127 dev narrow nodad\n\
                 echo 1 > /proc/sys/net/ipv4/ip_forward\n\
                 echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n"
            ))?;
        }
        for (subnet, router) in routers.iter().enumerate() {
            let (own, other) = (subnet as u8 + 1, 2 - subnet as u8);
            let node = cluster.nodes()[subnet].namespace();
            let there = &cluster.underlays()[1 - subnet];
            let gateways = cluster.underlays()[subnet].addresses(ROUTER);
            for (net, gateway) in there.networks().iter().zip(gateways) {
                node.ip(&format!("route add {net} via {gateway}"))?;
                router.ip(&format!("route add {net} via {}", across(net, 1 - subnet)))?;
            }
            for net in pod_cidrs(other) {
                router.ip(&format!("route add {net} via {}", across(&net, 1 - subnet)))?;
            }
            for via in cluster.addresses(own) {
                let [v4, v6] = pod_cidrs(own);
                let net = if via.is_ipv4() { v4 } else { v6 };
                router.ip(&format!("route add {net} via {via}"))?;
            }
        }
        for node in cluster.nodes_mut() {
            node.start_agent()?;
        }
        let [one, two] = cluster.nodes() else {
            unreachable!("two nodes");
        };
        let pods = [Pod::attach(one, "a")?, Pod::attach(two, "b")?];
        Ok(Narrow {
            cluster,
            _routers: routers,
            pods,
        })
    }
}

/// The router's side of the narrow link, of the family of `net`.
fn across(net: &str, number: usize) -> String {
    match net.contains(':') {
        true => format!("2001:db8::{number}"),
        false => format!("192.0.2.{number}"),
    }
}

fn reach(from: &Pod, to: IpAddr) -> Result<()> {
    wait_for(&format!("a way to {to}"), PATIENCE, || {
        let pings = traffic::ping(from.namespace(), to, 1);
        pings.ok().filter(traffic::Pings::all)
    })
    .map(drop)
}

/// What is longer than the path is refused with the MTU that passes, and what
/// may be cut arrives.
fn path_is_told(from: &Pod, to: IpAddr, (full, mtu): (u32, u32)) -> Result<()> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let longest = |mtu: u32| (mtu - headers).to_string();
    let too_long = longest(full);
    wait_for(&format!("the MTU {mtu} to {to}"), PATIENCE, || {
        let options = ["-M", "do", "-s", &too_long];
        let pings = traffic::ping_with(from.namespace(), to, 1, &options).ok()?;
        let told = ["mtu = ", "mtu=", "mtu: "].map(|words| format!("{words}{mtu}"));
        told.iter()
            .any(|words| pings.text.contains(words))
            .then_some(())
    })?;
    let options = ["-M", "do", "-s", &longest(mtu)];
    let pings = traffic::ping_with(from.namespace(), to, 2, &options)?;
    assert!(pings.all(), "the longest that passes: {}", pings.text);
    for size in [full - headers, 4000] {
        // The answer's sender may have to be told first.
        let size = size.to_string();
        wait_for(&format!("{size} bytes to {to} in pieces"), PATIENCE, || {
            let options = ["-M", "dont", "-s", &size];
            let pings = traffic::ping_with(from.namespace(), to, 1, &options);
            pings.ok().filter(traffic::Pings::all)
        })?;
    }
    let path = probe::tracepath(from.namespace(), to)?;
    assert!(path.is_reached && path.mtu == mtu, "{path:?}");
    Ok(())
}

#[test]
fn a_narrow_link_on_the_way_is_told_to_pods() -> Result<()> {
    if !root_or_skip("a_narrow_link_on_the_way_is_told_to_pods") {
        return Ok(());
    }
    let cases = [
        ("vxlan", Families::V4, 50),
        ("vxlan", Families::V6, 70),
        ("routed", Families::Dual, 0),
    ];
    for (mode, families, overhead) in cases {
        let narrow = Narrow::start(mode, families)?;
        let [a, b] = &narrow.pods;
        for to in [b.v4()?, b.v6()?] {
            let what = |error: LabError| {
                LabError::unexpected(
                    format!("{mode} over {families:?} to {to}"),
                    error.to_string(),
                )
            };
            reach(a, to).map_err(what)?;
            // TCP first: what its packets find out is for it to obey.
            traffic::tcp_both_ways(a.namespace(), b.namespace(), to, 2 * MEGABYTE).map_err(what)?;
            path_is_told(a, to, (1500 - overhead, NARROW - overhead)).map_err(what)?;
            traffic::tcp_both_ways(a.namespace(), b.namespace(), to, MEGABYTE).map_err(what)?;
            traffic::udp_echo(a.namespace(), b.namespace(), to, 1, 3000)?;
            let whole = traffic::udp_echo(a.namespace(), b.namespace(), to, 5, 3000)?;
            assert_eq!(whole, 5, "{mode} to {to}");
        }
        for node in narrow.cluster.nodes() {
            node.settled_frames()?;
        }
    }
    Ok(())
}

#[test]
fn fragments_from_outside_reach_pods() -> Result<()> {
    if !root_or_skip("fragments_from_outside_reach_pods") {
        return Ok(());
    }
    let cluster = Cluster::start(1, Families::Dual, |_| {})?;
    let outside = Namespace::create("outside")?;
    cluster.underlay().plug(&outside, 200)?;
    let pod = Pod::attach(&cluster.nodes()[0], "a")?;
    for to in cluster.underlay().addresses(200) {
        reach(&pod, to)?;
        for size in [2000, 9000, 40_000] {
            // Outside, somebody may have to hear of the pod's MTU first.
            traffic::udp_echo(pod.namespace(), &outside, to, 1, size)?;
            let whole = traffic::udp_echo(pod.namespace(), &outside, to, 5, size)?;
            assert_eq!(whole, 5, "{size} bytes to {to} and back");
        }
    }
    Ok(())
}

#[test]
fn tcp_arrives_whole_when_packets_overtake_each_other_and_get_lost() -> Result<()> {
    if !root_or_skip("tcp_arrives_whole_when_packets_overtake_each_other_and_get_lost") {
        return Ok(());
    }
    for mode in ["vxlan", "routed", "l2"] {
        let mut cluster = Cluster::prepare(2, Families::Dual, |config| match mode {
            "l2" => lan::share(config),
            mode => config.mode = mode.to_owned(),
        })?;
        for node in cluster.nodes_mut() {
            node.namespace().cut_before_the_wire(UPLINK)?;
            node.start_agent()?;
        }
        let [one, two] = cluster.nodes() else {
            unreachable!("two nodes");
        };
        let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
        let outside = Namespace::create("outside")?;
        cluster.underlay().plug(&outside, 200)?;
        outside.run(&["ethtool", "-K", UPLINK, "tx", "off"])?;
        reach(&a, b.v4()?)?;
        let link = cluster.underlay().namespace();
        let _cable = relay::disorder(link, "p2", 7)?;
        reach(&a, b.v4()?)?;
        // Nothing overtakes where a busy machine sends a packet at a time.
        let what = format!("{mode}: packets out of order at both pods");
        wait_for(&what, PATIENCE, || {
            let outcome = (|| -> Result<[u64; 2]> {
                for to in [b.v4()?, b.v6()?] {
                    traffic::tcp_both_ways(a.namespace(), b.namespace(), to, MEGABYTE)?;
                }
                let to = cluster.underlay().addresses(200)[0];
                traffic::tcp_both_ways(b.namespace(), &outside, to, MEGABYTE)?;
                let [a, b] =
                    [&a, &b].map(|pod| traffic::counter(pod.namespace(), "TcpExtTCPOFOQueue"));
                Ok([a?, b?])
            })();
            match outcome {
                Ok(counts) => counts.iter().all(|count| *count > 5).then_some(Ok(())),
                Err(error) => Some(Err(error)),
            }
        })??;
        link.sh("nft add table bridge lab\n\
             nft 'add chain bridge lab forward { type filter hook forward priority 0; }'\n\
             nft 'add rule bridge lab forward numgen random mod 100 < 1 counter drop'\n")?;
        for to in [b.v4()?, b.v6()?] {
            traffic::tcp_both_ways(a.namespace(), b.namespace(), to, MEGABYTE / 2)?;
        }
        let rules = link.run(&["nft", "list", "table", "bridge", "lab"])?;
        assert!(!rules.contains("packets 0 "), "nothing was lost: {rules}");
    }
    Ok(())
}
