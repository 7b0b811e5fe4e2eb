//! Routes and addresses of interfaces: what the kernel holds, and the requests
//! that change it.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::endpoint::PodRoute;
use super::netlink::{Netlink, NetlinkError, Request};

/// 32 or 128.
pub const fn host_prefix_len(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The kernel holds longer MTU of routes for this one, in bytes
/// (`ip_metrics_convert`, net/ipv4/metrics.c).
const LONGEST_MTU: u32 = 65535 - 15;

/// Marks the host's routes to pods (`ip route show proto 158`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(158);

/// Whether a route is one of the host's to pods.
pub fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == PROTOCOL
}

/// A route that the kernel holds in its main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRoute {
    /// Destination.
    pub to: IpNet,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// Outgoing interface.
    pub oif: Option<u32>,
    /// Path MTU.
    pub mtu: Option<u32>,
    /// The address that packets leave with.
    pub source: Option<IpAddr>,
    /// The lower the better, among routes to the same destination.
    pub priority: u32,
    /// Every next hop that works, when there are several.
    pub hops: Vec<Hop>,
    /// Made by [`add_host_route`].
    pub is_ours: bool,
}

/// One next hop of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The gateway; none where the destination itself is the neighbour.
    pub via: Option<IpAddr>,
    /// Outgoing interface.
    pub oif: u32,
    /// Its share beside the others'.
    pub weight: u32,
}

impl KernelRoute {
    /// Whether the kernel holds `route` so.
    pub fn is_as(&self, route: &PodRoute) -> bool {
        self.to == route.to && self.via == route.via && self.mtu == Some(route.mtu.min(LONGEST_MTU))
    }

    /// Whether it leads to a network that the interface is in: its stations are
    /// neighbours there.
    pub fn is_network_of(&self, ifindex: u32) -> bool {
        let is_link_local = matches!(self.to, IpNet::V6(net) if net.addr().is_unicast_link_local());
        self.oif == Some(ifindex)
            && self.via.is_none()
            && !self.is_ours
            && !is_link_local
            && (1..host_prefix_len(self.to.addr())).contains(&self.to.prefix_len())
    }
}

/// A network of the main table that the kernel refuses to send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Destination.
    pub to: IpNet,
    /// The lower the better, among routes to the same destination.
    pub priority: u32,
    /// What senders are told.
    pub how: How,
}

/// How the kernel refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// That there is no route (`unreachable`; `throw`, after which no other
    /// table is looked at here).
    Unreachable,
    /// That it is forbidden (`prohibit`).
    Prohibited,
    /// Nothing (`blackhole`).
    Blackhole,
}

/// Unicast routes of the main table, both families.
pub fn list(netlink: &mut Netlink) -> Result<Vec<KernelRoute>, NetlinkError> {
    Ok(list_with_refused(netlink)?.0)
}

/// As [`list`], and the networks of that table that are refused.
pub fn list_with_refused(
    netlink: &mut Netlink,
) -> Result<(Vec<KernelRoute>, Vec<Refused>), NetlinkError> {
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let answers = netlink.dump("list the routes", RouteNetlinkMessage::GetRoute(request))?;
        for answer in &answers {
            let RouteNetlinkMessage::NewRoute(message) = answer else {
                continue;
            };
            if message.header.table != RouteHeader::RT_TABLE_MAIN {
                continue;
            }
            let how = match message.header.kind {
                RouteType::Unicast => {
                    found.extend(kernel_route(message));
                    continue;
                }
                RouteType::Unreachable | RouteType::Throw => How::Unreachable,
                RouteType::Prohibit => How::Prohibited,
                RouteType::BlackHole => How::Blackhole,
                _ => continue,
            };
            refused.extend(kernel_route(message).map(|route| Refused {
                to: route.to,
                priority: route.priority,
                how,
            }));
        }
    }
    Ok((found, refused))
}

fn kernel_route(message: &RouteMessage) -> Option<KernelRoute> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let (mut destination, mut via, mut oif, mut mtu) = (unspecified, None, None, None);
    let (mut priority, mut source, mut hops) = (0, None, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => destination = ip_of(a)?,
            RouteAttribute::Gateway(a) => via = ip_of(a),
            RouteAttribute::Via(RouteVia::Inet6(a)) => via = Some(IpAddr::V6(*a)),
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::PrefSource(a) => source = ip_of(a),
            RouteAttribute::Priority(number) => priority = *number,
            RouteAttribute::MultiPath(list) => hops = list.iter().filter_map(hop).collect(),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|m| match m {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(KernelRoute {
        to: IpNet::new(destination, header.destination_prefix_length).ok()?,
        via: via.or_else(|| hops.first().and_then(|hop| hop.via)),
        oif: oif.or_else(|| hops.first().map(|hop| hop.oif)),
        mtu,
        source,
        priority,
        hops,
        is_ours: is_ours(message),
    })
}

/// One next hop of several, unless the kernel does not use it.
fn hop(hop: &RouteNextHop) -> Option<Hop> {
    let unused = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    let via = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(a) => ip_of(a),
        RouteAttribute::Via(RouteVia::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    });
    (!hop.flags.intersects(unused)).then_some(Hop {
        via,
        oif: hop.interface_index,
        weight: u32::from(hop.hops) + 1,
    })
}

fn ip_of(address: &netlink_packet_route::route::RouteAddress) -> Option<IpAddr> {
    use netlink_packet_route::route::RouteAddress;
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

/// `ip address add`, without a route that would follow from it.
pub fn add_address(name: &str, index: u32, address: IpAddr, len: u8) -> Request {
    Request::replace(
        format!("set address {address}/{len} on {name}"),
        RouteNetlinkMessage::NewAddress(address_message(index, address, len)),
    )
}

fn address_message(index: u32, address: IpAddr, len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = len;
    message.header.scope = AddressScope::Universe;
    let mut flags = AddressFlags::Noprefixroute;
    message.attributes.push(AddressAttribute::Address(address));
    message.header.family = match address {
        IpAddr::V4(_) => {
            message.attributes.push(AddressAttribute::Local(address));
            AddressFamily::Inet
        }
        IpAddr::V6(_) => {
            flags |= AddressFlags::Nodad;
            message.header.flags = AddressHeaderFlags::Nodad;
            AddressFamily::Inet6
        }
    };
    message.attributes.push(AddressAttribute::Flags(flags));
    message
}

/// `ip address delete`
pub fn delete_address(name: &str, index: u32, address: IpAddr, len: u8) -> Request {
    let mut message = address_message(index, address, len);
    message.header.flags = AddressHeaderFlags::empty();
    Request::plain(
        format!("remove address {address}/{len} from {name}"),
        RouteNetlinkMessage::DelAddress(message),
    )
    .tolerate(&[libc::EADDRNOTAVAIL])
}

/// `ip route replace` of a pod's route; a next hop is taken as on-link.
pub fn add_route(name: &str, index: u32, route: &PodRoute, source: Option<IpAddr>) -> Request {
    let message = route_message(index, route, source);
    Request::replace(
        format!("set route {} on {name}", route.to),
        RouteNetlinkMessage::NewRoute(message),
    )
}

/// As [`add_route`], for a route of the host that is found again as ours.
pub fn add_host_route(index: u32, route: &PodRoute, source: Option<IpAddr>) -> Request {
    let mut message = route_message(index, route, source);
    message.header.protocol = PROTOCOL;
    Request::replace(
        format!("set the host's route to {}", route.to),
        RouteNetlinkMessage::NewRoute(message),
    )
}

/// `ip route delete`
pub fn delete_route(route: &KernelRoute) -> Request {
    let mut message = RouteMessage::default();
    message.header = route_header(&route.to, RouteScope::NoWhere);
    let destination = RouteAttribute::Destination(route.to.network().into());
    message.attributes.push(destination);
    message
        .attributes
        .extend(route.oif.map(RouteAttribute::Oif));
    let via = route.via.map(|via| RouteAttribute::Gateway(via.into()));
    message.attributes.extend(via);
    // Another route may differ in these alone.
    let priority = RouteAttribute::Priority(route.priority);
    message.attributes.push(priority);
    if route.is_ours {
        message.header.protocol = PROTOCOL;
    }
    Request::plain(
        format!("remove the host's route to {}", route.to),
        RouteNetlinkMessage::DelRoute(message),
    )
}

/// What the main table has of a route to `to`.
fn route_header(to: &IpNet, scope: RouteScope) -> RouteHeader {
    RouteHeader {
        address_family: match to {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: to.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        scope,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    }
}

fn route_message(index: u32, route: &PodRoute, source: Option<IpAddr>) -> RouteMessage {
    let scope = match (route.via, &route.to) {
        (None, IpNet::V4(_)) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        protocol: RouteProtocol::Static,
        ..route_header(&route.to, scope)
    };
    if route.to.prefix_len() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(route.to.network().into()));
    }
    if let Some(via) = route.via {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(via.into()));
    }
    if let Some(source) = source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    message
        .attributes
        .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    message
}

/// The default route's destination.
pub(crate) fn default_net(v6: bool) -> IpNet {
    if v6 {
        IpNet::V6(ipnet::Ipv6Net::default())
    } else {
        IpNet::V4(ipnet::Ipv4Net::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_held_with_its_next_hop_and_mtu_as_far_as_the_kernel_goes() {
        let to: IpNet = "10.244.0.0/16".parse().unwrap();
        let via: Option<IpAddr> = Some("10.244.1.1".parse().unwrap());
        let held = |via, mtu| KernelRoute {
            to,
            via,
            oif: Some(3),
            mtu,
            source: None,
            priority: 0,
            hops: vec![],
            is_ours: true,
        };
        let cases = [
            (held(via, Some(1450)), 1450, true),
            (held(via, Some(1450)), 1500, false),
            (held(via, None), 1450, false),
            (held(None, Some(1450)), 1450, false),
            (held(via, Some(65520)), 65520, true),
            (held(via, Some(65520)), 65521, true),
            (held(via, Some(65520)), 65535, true),
            (held(via, Some(1450)), 65535, false),
        ];
        for (held, mtu, expect) in cases {
            let wanted = PodRoute { to, via, mtu };
            assert_eq!(held.is_as(&wanted), expect, "{held:?} {wanted:?}");
        }
    }
}
