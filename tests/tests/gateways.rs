//! Gateways to the outside: known by their link-local address alone, and
//! several that share what leaves.

use std::net::IpAddr;

use spinlane_tests::cluster::{Families, ROUTER, UPLINK};
use spinlane_tests::{
    Cluster, LabError, Namespace, PATIENCE, Pod, Result, root_or_skip, traffic, veth, wait_for,
};

/// What stands far away: addresses of both families, the last number each.
const FAR: std::ops::RangeInclusive<u8> = 1..=16;

/// One node on a link with two routers, each of which is a way to `far`.
struct TwoWays {
    cluster: Cluster,
    routers: [Namespace; 2],
    far: Namespace,
}

impl TwoWays {
    /// The routers' link-local addresses.
    const LOCAL: [&str; 2] = ["fe80::a", "fe80::c"];

    fn start() -> Result<TwoWays> {
        let cluster = Cluster::start(1, Families::Dual, |_| {})?;
        let far = Namespace::create("far")?;
        for number in FAR {
            far.sh(&format!(
                "ip address add 198.51.100.{number}/32 dev lo\n\
                 ip address add 2001:db8:9::{number:x}/128 dev lo nodad\n"
            ))?;
        }
        let routers = [Namespace::create("router")?, Namespace::create("router")?];
        for (number, router) in (0u8..).zip(&routers) {
            cluster.underlay().plug(router, ROUTER - number)?;
            let name = format!("eth{number}");
            veth((router, "far0"), (&far, &name))?;
            router.sh(&format!(
                "ip address add 203.0.113.{gateway}/31 dev far0\n\
                 ip address add 2001:db8:7::{gateway}/127 dev far0 nodad\n\
                 ip address add fe80::{gateway:x}/64 dev eth0 nodad\n\
                 echo 1 > /proc/sys/net/ipv4/ip_forward\n\
                 echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n\
                 ip route add 198.51.100.0/24 via 203.0.113.{own}\n\
                 ip -6 route add 2001:db8:9::/64 via 2001:db8:7::{own}\n\
                 nft 'add table inet seen; \
                      add chain inet seen out {{ type filter hook forward priority 0; }}; \
                      add rule inet seen out ip daddr 198.51.100.0/24 counter; \
                      add rule inet seen out ip6 daddr 2001:db8:9::/64 counter'\n",
                gateway = 10 + 2 * number,
                own = 11 + 2 * number,
            ))?;
            // It answers by the last router, whoever asked.
            far.sh(&format!(
                "ip address add 203.0.113.{own}/31 dev {name}\n\
                 ip address add 2001:db8:7::{own}/127 dev {name} nodad\n\
                 echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter\n\
                 echo 0 > /proc/sys/net/ipv4/conf/{name}/rp_filter\n\
                 ip route replace 172.31.0.0/24 via 203.0.113.{gateway}\n\
                 ip -6 route replace fd31::/64 via 2001:db8:7::{gateway}\n",
                gateway = 10 + 2 * number,
                own = 11 + 2 * number,
            ))?;
        }
        Ok(TwoWays {
            cluster,
            routers,
            far,
        })
    }

    /// Addresses of `far`.
    fn destinations(number: u8) -> [IpAddr; 2] {
        [
            format!("198.51.100.{number}"),
            format!("2001:db8:9::{number:x}"),
        ]
        .map(|address| address.parse().expect("an address"))
    }

    /// Sets the node's default routes.
    fn default_by(&self, hops: &str) -> Result<()> {
        let node = self.cluster.nodes()[0].namespace();
        for family in ["-4", "-6"] {
            // IPv6 knows several routes to one prefix.
            let route = format!("ip {family} route flush default; ip {family} route add default");
            let hops = match family {
                "-4" => hops.replace("via", "via inet6"),
                _ => hops.to_owned(),
            };
            node.sh(&format!("{route} {hops}"))?;
        }
        Ok(())
    }
}

/// IPv4 and IPv6 packets that a router passed on to `far`.
fn passed(router: &Namespace) -> Result<[u64; 2]> {
    let text = router.run(&["nft", "list", "table", "inet", "seen"])?;
    let mut counts = text.split("counter packets ").skip(1);
    let mut next = || counts.next()?.split(' ').next()?.parse().ok();
    match (next(), next()) {
        (Some(v4), Some(v6)) => Ok([v4, v6]),
        _ => Err(LabError::unexpected("nft's counters", text)),
    }
}

/// A pod reaches the outside by a router of which the node knows the
/// link-local address alone, as router advertisements tell it, over both
/// families; and by another one once the node does.
#[test]
fn gateways_may_have_link_local_addresses_alone() -> Result<()> {
    if !root_or_skip("gateways_may_have_link_local_addresses_alone") {
        return Ok(());
    }
    let ways = TwoWays::start()?;
    let pod = Pod::attach(&ways.cluster.nodes()[0], "a")?;
    let addresses = TwoWays::destinations(7);
    for (router, gateway) in ways.routers.iter().zip(TwoWays::LOCAL) {
        ways.default_by(&format!("via {gateway} dev {UPLINK}"))?;
        wait_for(&format!("the way by {gateway}"), PATIENCE, || {
            let before = passed(router).ok()?;
            for to in addresses {
                let pings = traffic::ping_with(pod.namespace(), to, 1, &["-W", "1"]);
                pings.ok().filter(traffic::Pings::all)?;
            }
            let after = passed(router).ok()?;
            (0..2).all(|n| after[n] > before[n]).then_some(())
        })?;
        for to in addresses {
            traffic::tcp_both_ways(pod.namespace(), &ways.far, to, 1 << 20)?;
            assert_eq!(
                traffic::udp_echo(pod.namespace(), &ways.far, to, 3, 1200)?,
                3
            );
        }
    }
    Ok(())
}

/// Destinations are spread over the gateways of one route, by weight, and each
/// keeps to its own.
#[test]
fn gateways_of_one_route_share_what_leaves() -> Result<()> {
    if !root_or_skip("gateways_of_one_route_share_what_leaves") {
        return Ok(());
    }
    let ways = TwoWays::start()?;
    let node = &ways.cluster.nodes()[0];
    let pod = Pod::attach(node, "a")?;
    let both = |weights: [u8; 2]| {
        let hops = TwoWays::LOCAL.iter().zip(weights);
        let hops =
            hops.map(|(via, weight)| format!("nexthop via {via} dev {UPLINK} weight {weight} "));
        hops.collect::<String>()
    };
    for (weights, at_least) in [([1, 1], [3, 3]), ([15, 1], [10, 0])] {
        // What is waited for is not what was there before.
        ways.default_by(&format!("via {} dev {UPLINK}", TwoWays::LOCAL[0]))?;
        wait_for("one gateway", PATIENCE, || {
            let routes = node.cli(&["routes"]).ok()?.to_string();
            (routes.contains("fe80::a") && !routes.contains("fe80::c")).then_some(())
        })?;
        ways.default_by(&both(weights))?;
        wait_for("two gateways", PATIENCE, || {
            let routes = node.cli(&["routes"]).ok()?;
            let rows = routes.as_array()?.iter();
            let defaults =
                rows.filter(|row| row["prefix"] == "0.0.0.0/0" || row["prefix"] == "::/0");
            let mut gateways: Vec<_> = defaults.filter_map(|row| row["gateway"].as_str()).collect();
            gateways.sort_unstable();
            (gateways == ["fe80::a", "fe80::a", "fe80::c", "fe80::c"]).then_some(())
        })?;
        for family in [0, 1] {
            let mut shares = [0; 2];
            for number in FAR {
                let to = TwoWays::destinations(number)[family];
                traffic::reach(pod.namespace(), to)?;
                let both = || -> Result<Vec<u64>> {
                    let routers = ways.routers.iter();
                    routers.map(|router| Ok(passed(router)?[family])).collect()
                };
                let before = both()?;
                assert!(traffic::ping(pod.namespace(), to, 2)?.all(), "{to}");
                traffic::tcp_both_ways(pod.namespace(), &ways.far, to, 1 << 16)?;
                let all: Vec<_> = both()?.iter().zip(before).map(|(n, b)| n - b).collect();
                let by = all.iter().position(|passed| *passed > 0).expect("a way");
                assert_eq!(all[1 - by], 0, "{to}: {all:?} by the two gateways");
                shares[by] += 1;
            }
            assert!(
                shares[0] >= at_least[0] && shares[1] >= at_least[1],
                "{weights:?}: {shares:?}"
            );
        }
    }
    Ok(())
}

/// Routes that refer to a group of next hops (`ip nexthop`, as routing daemons
/// set them) do not change when one of the group goes: nobody is sent there.
#[test]
fn a_gateway_that_leaves_its_group_is_left() -> Result<()> {
    if !root_or_skip("a_gateway_that_leaves_its_group_is_left") {
        return Ok(());
    }
    let ways = TwoWays::start()?;
    let node = &ways.cluster.nodes()[0];
    node.namespace().sh(&format!(
        "ip nexthop add id 1 via {} dev {UPLINK}\n\
         ip nexthop add id 2 via {} dev {UPLINK}\n\
         ip nexthop add id 10 group 1/2\n\
         ip -6 route replace 2001:db8:9::/64 nhid 10\n\
         ip route replace 198.51.100.0/24 nhid 10\n",
        TwoWays::LOCAL[0],
        TwoWays::LOCAL[1]
    ))?;
    let gateways = |expect: &[&str]| {
        wait_for(&format!("the gateways {expect:?}"), PATIENCE, || {
            let routes = node.cli(&["routes"]).ok()?;
            let to_far = |row: &&serde_json::Value| {
                row["prefix"] == "198.51.100.0/24" || row["prefix"] == "2001:db8:9::/64"
            };
            let rows = routes.as_array()?.iter().filter(to_far);
            let mut found: Vec<_> = rows.filter_map(|row| row["gateway"].as_str()).collect();
            found.sort_unstable();
            (found == expect).then_some(())
        })
    };
    let pod = Pod::attach(node, "a")?;
    let all = || FAR.flat_map(TwoWays::destinations);
    gateways(&["fe80::a", "fe80::a", "fe80::c", "fe80::c"])?;
    all().try_for_each(|to| traffic::reach(pod.namespace(), to))?;
    node.namespace().ip("nexthop del id 1")?;
    gateways(&["fe80::c", "fe80::c"])?;
    let before = passed(&ways.routers[0])?;
    all().try_for_each(|to| traffic::reach(pod.namespace(), to))?;
    assert_eq!(passed(&ways.routers[0])?, before, "by the one that left");
    Ok(())
}
