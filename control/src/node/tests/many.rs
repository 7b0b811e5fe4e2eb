//! A cluster of many nodes.

use super::super::endpoint::PodRoute;
use super::super::host_routes;
use super::*;

#[test]
fn the_kernel_takes_routes_to_thousands_of_nodes() {
    in_fresh_netns("the_kernel_takes_routes_to_thousands_of_nodes", || {
        const COUNT: u16 = 3000;
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap().index;
        let route = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let to = match number % 2 {
                0 => format!("10.{high}.{low}.0/24"),
                _ => format!("fd44:0:0:{number:x}::/64"),
            };
            PodRoute {
                to: to.parse().unwrap(),
                via: None,
                mtu: 1450,
            }
        };
        let set = |number| routes::add_host_route(lo, &route(number), None);
        netlink.batch((0..COUNT).map(set).collect()).unwrap();
        // The first of several refusals is told, and the others are done.
        let wrong = |number| match number {
            77 | 2077 => routes::add_host_route(9999, &route(COUNT + number), None),
            number => set(number),
        };
        let refused = netlink.batch((0..COUNT).map(wrong).collect()).unwrap_err();
        assert_eq!(refused.errno(), Some(libc::ENODEV), "{refused}");
        // 3077, an odd number, in hexadecimal.
        let first = refused.to_string().contains("fd44:0:0:c05::/64");
        assert!(first, "{refused}");
        let held = routes::list(&mut netlink).unwrap();
        let ours = held.iter().filter(|route| route.is_ours).count();
        assert_eq!(ours, usize::from(COUNT));
        assert_eq!(
            host_routes::remove_all(&mut netlink).unwrap(),
            usize::from(COUNT)
        );
    });
}

#[test]
fn news_of_thousands_of_routes_are_all_heard() {
    in_fresh_netns("news_of_thousands_of_routes_are_all_heard", || {
        const COUNT: u16 = 2000;
        // RTNLGRP_IPV4_ROUTE
        let mut news = Netlink::subscribe(&[7]).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap().index;
        let set = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let route = PodRoute {
                to: format!("10.{high}.{low}.0/24").parse().unwrap(),
                via: None,
                mtu: 1450,
            };
            routes::add_host_route(lo, &route, None)
        };
        netlink.batch((0..COUNT).map(set).collect()).unwrap();
        let mut heard = 0;
        while heard < usize::from(COUNT) {
            heard += news.listen().unwrap().messages.len();
        }
        assert_eq!(heard, usize::from(COUNT));
    });
}

/// `ip` in the calling thread's namespace.
fn ip(arguments: &str) {
    let mut command = std::process::Command::new("ip");
    let output = command.args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

#[test]
fn connections_leave_with_addresses_that_the_kernel_would_take() {
    const NAME: &str = "connections_leave_with_addresses_that_the_kernel_would_take";
    in_fresh_netns(NAME, || {
        for address in [
            "192.0.2.1/24",
            "192.0.2.2/24",
            "192.0.2.3/24 preferred_lft 0",
            "198.51.100.1/24 scope link",
            "2001:db8::1/64 nodad",
            "2001:db8::2/64 nodad preferred_lft 0",
        ] {
            ip(&format!("address add dev lo {address}"));
        }
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap().index;
        let found = netlink.source_addresses().unwrap();
        let found = found
            .iter()
            .filter(|(index, at)| *index == lo && !at.is_loopback());
        let found: Vec<_> = found.map(|(_, address)| address.to_string()).collect();
        assert_eq!(found, ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    });
}

#[test]
fn a_group_of_next_hops_that_loses_one_is_news() {
    in_fresh_netns("a_group_of_next_hops_that_loses_one_is_news", || {
        ip("nexthop add id 1 dev lo");
        ip("nexthop add id 2 dev lo");
        ip("nexthop add id 10 group 1/2");
        // RTNLGRP_IPV4_ROUTE, RTNLGRP_NEXTHOP
        let mut news = Netlink::subscribe(&[7, 32]).unwrap();
        ip("nexthop delete id 1");
        let heard = news.listen().unwrap();
        assert!(heard.next_hops);
        assert_eq!(heard.messages, []);
    });
}
