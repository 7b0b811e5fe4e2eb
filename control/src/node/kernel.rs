//! What the kernel knows of the networks that this node is in: links,
//! addresses, routes and neighbours, read as one. Pure but for
//! [`Kernel::read`] and [`resolve`].

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use spinlane_dataplane::types::MacAddr;

use super::endpoint::fnv1a;
use super::netlink::{Link, Netlink, NetlinkError, Request};
use super::routes::{self, KernelRoute, Refused};

/// A neighbour that the kernel has resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address.
    pub mac: MacAddr,
    /// The kernel has not heard of it for a while, and asks only when it is
    /// used.
    pub is_stale: bool,
}

/// The kernel's tables at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Links.
    pub links: Vec<Link>,
    /// Addresses with their interface.
    pub addresses: Vec<(u32, IpAddr)>,
    /// Those that new connections may leave with.
    pub sources: Vec<(u32, IpAddr)>,
    /// Unicast routes of the main table.
    pub routes: Vec<KernelRoute>,
    /// Networks of the main table that it refuses to send to.
    pub refused: Vec<Refused>,
    /// Resolved neighbours by interface and address.
    pub neighbours: HashMap<(u32, IpAddr), Neighbour>,
}

/// How the kernel would send to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Outgoing interface.
    pub oif: u32,
    /// The neighbour: a gateway, or the destination itself.
    pub next: IpAddr,
    /// Whether `next` is the destination itself.
    pub is_on_link: bool,
    /// Longest packet by what the route says.
    pub mtu: Option<u32>,
}

impl Kernel {
    /// Reads everything.
    pub fn read(netlink: &mut Netlink) -> Result<Kernel, NetlinkError> {
        let (mut routes, refused) = routes::list_with_refused(netlink)?;
        // They follow from the rest.
        routes.retain(|route| !route.is_ours);
        Ok(Kernel {
            links: netlink.links()?,
            addresses: netlink
                .addresses()?
                .into_iter()
                .map(|a| (a.0, a.1))
                .collect(),
            sources: netlink.source_addresses()?,
            routes,
            refused,
            neighbours: neighbours(netlink)?,
        })
    }

    /// The link of that index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The link of that name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The interface that the best default route leaves by.
    pub fn default_route(&self) -> Option<&Link> {
        let routes = self.routes.iter().filter(|r| r.to.prefix_len() == 0);
        // IPv4 first: most underlays are.
        let best = routes.min_by_key(|r| (r.to.addr().is_ipv6(), r.priority))?;
        self.link(best.oif?)
    }

    /// The way to a destination: longest prefix, then lowest priority. None
    /// where a route says so.
    pub fn way(&self, destination: IpAddr) -> Option<Way> {
        let covering = self.routes.iter().filter(|r| r.to.contains(&destination));
        let rank = |to: &IpNet, priority: u32| (to.prefix_len(), Reverse(priority));
        let best = covering
            .filter(|route| self.is_usable(route))
            .max_by_key(|r| rank(&r.to, r.priority))?;
        let refused = self.refused.iter().filter(|r| r.to.contains(&destination));
        let refused = refused.map(|r| rank(&r.to, r.priority)).max();
        if refused.is_some_and(|refused| refused > rank(&best.to, best.priority)) {
            return None;
        }
        self.way_by(best, destination)
    }

    /// Whether the kernel sends by a route: an interface of it is up.
    pub fn is_usable(&self, route: &KernelRoute) -> bool {
        route.oif.is_some_and(|oif| self.is_up(oif)) || route.hops.iter().any(|h| self.is_up(h.oif))
    }

    /// The way to a destination by a route to it; among several next hops one
    /// by the destination's hash and their weights, so that destinations spread
    /// and each keeps its own.
    pub fn way_by(&self, route: &KernelRoute, destination: IpAddr) -> Option<Way> {
        let ways = self.ways_by(route, destination);
        let total: u64 = ways.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let hash = match destination {
            IpAddr::V4(v4) => fnv1a(&[&v4.octets()]),
            IpAddr::V6(v6) => fnv1a(&[&v6.octets()]),
        };
        let mut left = hash.checked_rem(total)?;
        let chosen = ways.into_iter().find(|(_, weight)| {
            let next = left.checked_sub(u64::from(*weight));
            left = next.unwrap_or(left);
            next.is_none()
        });
        chosen.map(|(way, _)| way)
    }

    /// Every way to a destination by a route to it, each with its weight.
    pub fn ways_by(&self, route: &KernelRoute, destination: IpAddr) -> Vec<(Way, u32)> {
        let way = |via: Option<IpAddr>, oif| Way {
            oif,
            next: via.unwrap_or(destination),
            is_on_link: via.is_none(),
            mtu: route.mtu.filter(|mtu| *mtu > 0),
        };
        let hops = route.hops.iter().filter(|hop| self.is_up(hop.oif));
        let several: Vec<_> = hops
            .map(|hop| (way(hop.via, hop.oif), hop.weight))
            .collect();
        match several.is_empty() {
            true => Vec::from_iter(route.oif.map(|oif| (way(route.via, oif), 1))),
            false => several,
        }
    }

    fn is_up(&self, link: u32) -> bool {
        self.link(link).is_some_and(|link| link.up)
    }
}

fn neighbours(netlink: &mut Netlink) -> Result<HashMap<(u32, IpAddr), Neighbour>, NetlinkError> {
    let answers = netlink.dump(
        "list the neighbours",
        RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
    )?;
    Ok(answers.iter().filter_map(neighbour).collect())
}

fn neighbour(message: &RouteNetlinkMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let is_stale = match message.header.state {
        NeighbourState::Stale => true,
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent => false,
        _ => return None,
    };
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => {
                address = Some(IpAddr::V4(*a));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                address = Some(IpAddr::V6(*a));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(MacAddr);
            }
            _ => {}
        }
    }
    let mac = mac.filter(|mac| mac.is_unicast())?;
    Some((
        (message.header.ifindex, address?),
        Neighbour { mac, is_stale },
    ))
}

/// A request that says something of one neighbour.
pub fn neighbour_request(
    what: &str,
    (ifindex, address): (u32, IpAddr),
    state: NeighbourState,
    mac: Option<MacAddr>,
) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    message.header.state = state;
    message.header.kind = RouteType::Unspec;
    let destination = match address {
        IpAddr::V4(v4) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(v4)
        }
        IpAddr::V6(v6) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(v6)
        }
    };
    message.attributes = vec![NeighbourAttribute::Destination(destination)];
    if let Some(mac) = mac {
        let bytes = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
        message.attributes.push(bytes);
    } else {
        message.header.flags = NeighbourFlags::Use;
    }
    Request::replace(
        format!("{what} {address}"),
        RouteNetlinkMessage::NewNeighbour(message),
    )
}

/// Asks the kernel to find out a neighbour's MAC address, or whether the one
/// it has still holds: as if it had a packet for it.
pub fn resolve(ifindex: u32, address: IpAddr) -> Request {
    let state = NeighbourState::None;
    neighbour_request("resolve the neighbour", (ifindex, address), state, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::routes::{Hop, How};
    use crate::node::samples;

    fn link(index: u32, name: &str, up: bool) -> Link {
        Link {
            name: name.into(),
            up,
            operational: up,
            has_carrier: up,
            is_veth: true,
            ..samples::link(index)
        }
    }

    fn route(to: &str, via: Option<&str>, oif: u32, priority: u32) -> KernelRoute {
        KernelRoute {
            priority,
            ..samples::route(to, via, oif)
        }
    }

    fn hop(via: &str, oif: u32, weight: u32) -> Hop {
        Hop {
            via: Some(via.parse().unwrap()),
            oif,
            weight,
        }
    }

    #[test]
    fn the_way_is_the_kernels() {
        let several = KernelRoute {
            hops: vec![
                hop("192.0.2.1", 2, 3),
                hop("192.0.2.2", 2, 1),
                hop("192.0.2.3", 4, 9),
            ],
            ..route("10.9.0.0/16", None, 2, 0)
        };
        let kernel = Kernel {
            links: vec![
                link(2, "eth0", true),
                link(3, "eth1", true),
                link(4, "eth2", false),
            ],
            routes: vec![
                route("0.0.0.0/0", Some("192.0.2.254"), 2, 100),
                route("0.0.0.0/0", Some("198.51.100.1"), 3, 50),
                route("192.0.2.0/24", None, 2, 0),
                route("10.8.0.0/16", Some("192.0.2.9"), 4, 0),
                several,
            ],
            ..Kernel::default()
        };
        let way = |to: &str| kernel.way(to.parse().unwrap()).unwrap();
        assert_eq!(way("192.0.2.7").next.to_string(), "192.0.2.7");
        assert!(way("192.0.2.7").is_on_link);
        assert_eq!(
            way("8.8.8.8").next.to_string(),
            "198.51.100.1",
            "the better default route"
        );
        assert_eq!(way("10.8.0.1").oif, 3, "not by a link that is down");
        let by = |next: &str| {
            let ways = (0..=255).map(|n| way(&format!("10.9.0.{n}")).next.to_string());
            ways.filter(|way| way == next).count()
        };
        let (first, second) = (by("192.0.2.1"), by("192.0.2.2"));
        assert_eq!(first + second, 256, "none by a link that is down");
        assert!((160..224).contains(&first), "{first}, {second}");
        assert!(kernel.way("2001:db8::1".parse().unwrap()).is_none());
        let refused = |to: &str, priority| Kernel {
            refused: vec![Refused {
                to: to.parse().unwrap(),
                priority,
                how: How::Unreachable,
            }],
            ..kernel.clone()
        };
        let is_refused = |kernel: Kernel, to: &str| kernel.way(to.parse().unwrap()).is_none();
        assert!(is_refused(refused("8.0.0.0/8", 0), "8.8.8.8"));
        assert!(is_refused(refused("0.0.0.0/0", 10), "8.8.8.8"));
        assert!(!is_refused(refused("0.0.0.0/0", 60), "8.8.8.8"));
        assert!(!is_refused(refused("192.0.0.0/8", 0), "192.0.2.7"));
        assert_eq!(kernel.default_route().unwrap().name, "eth1");
    }
}
