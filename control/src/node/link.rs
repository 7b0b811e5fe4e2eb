//! A pod's interface: a veth whose far end is made straight inside the pod's
//! namespace, and everything that is set there.
//!
//! The device takes super-frames (its MTU), the routes tell the path's MTU,
//! and no address brings a route of its own that would leak the device's:
//! IPv4 and IPv6 addresses are `noprefixroute`, IPv6 ones `nodad` besides.
//! Order: [`create`] (both ends down) → the port is attached → [`raise_host`]
//! → [`configure_pod`]. With the host's end up first the pod's end has a
//! carrier the moment it goes up, and nothing waits for link events.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use spinlane_dataplane::frame::LONGEST_SUPER_FRAME;
use spinlane_dataplane::types::MacAddr;

use super::endpoint::{Endpoint, PodRoute};
use super::netlink::{Netlink, NetlinkError, Request, get_link};
use super::netns::{self, NetnsError, Sysfs};
use super::offload::{self, OffloadError};
use super::steering::{self, SteeringError};

/// Longest MTU of a veth that a frame of 64 KiB passes.
pub const SUPER_FRAME_MTU: u32 = 65535;

/// Why a pod's interface was not made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel refused a step.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The namespace or one of its settings.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The offloads.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// The receive work of an end.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// The pod has an interface of that name.
    #[error(
        "the pod already has an interface {0}: choose another CNI_IFNAME or delete the attachment that made it"
    )]
    NameTaken(String),
    /// The peer is down, or the kernel does not get to it.
    #[error("interface {0} was brought up and is not operational: is its other end down?")]
    NoCarrier(String),
    /// An interface vanished between two steps.
    #[error("interface {0} vanished while it was being set up")]
    Vanished(String),
}

/// Queues that a pod's veth is made with at most, unless more are in use.
const MOST_SPARE_QUEUES: u32 = 9;

/// How long an interface may take to be operational.
const OPERATIONAL_PATIENCE: Duration = Duration::from_secs(3);

/// What [`create`] makes.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// Name of the host's end.
    pub host: &'a str,
    /// Alias of the host's end.
    pub alias: &'a str,
    /// Name of the pod's end.
    pub pod: &'a str,
    /// MAC of the pod's end.
    pub mac: MacAddr,
    /// MTU of both devices.
    pub mtu: u32,
    /// Queues of both directions at both ends.
    pub queues: u32,
    /// Of those, how many are in use; the others are for more lanes after a
    /// restart.
    pub used_queues: u32,
}

/// Queues that a pod's veth is made with when `used` of them are needed now:
/// an interface cannot get more later. As many as lanes are possible, up to a
/// bound, because each costs memory and an entry in sysfs.
pub fn queues_with_room(used: u32) -> u32 {
    // One more than lanes, as generic mode wants.
    let lanes = steering::highest_cpu() as u32 + 1;
    (lanes + 1).min(MOST_SPARE_QUEUES).max(used)
}

/// Has the pod's end use `queues` of the queues that it `has`; runs in the
/// pod's namespace.
pub fn use_pod_queues(name: &str, has: u32, queues: u32) -> Result<(), LinkError> {
    if has != 1 {
        offload::use_queues(name, queues)?;
    }
    if queues > 1 {
        steering::spare_first_queue(&Sysfs::open()?, name, queues)?;
    }
    Ok(())
}

/// Makes the pair, both ends down: the host's end in the calling thread's
/// namespace, the pod's end in `netns`. Returns the index of the host's end.
pub fn create(
    netlink: &mut Netlink,
    veth: Veth<'_>,
    netns: BorrowedFd<'_>,
) -> Result<u32, LinkError> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(veth.pod.to_owned()),
        LinkAttribute::Address(veth.mac.0.to_vec()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::NumTxQueues(veth.queues),
        LinkAttribute::NumRxQueues(veth.queues),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut pair = LinkMessage::default();
    pair.attributes = vec![
        LinkAttribute::IfName(veth.host.to_owned()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::NumTxQueues(veth.queues),
        LinkAttribute::NumRxQueues(veth.queues),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let what = format!("make veth {} with {} in the pod", veth.host, veth.pod);
    let answers = netlink
        .batch(vec![
            Request::create(what, RouteNetlinkMessage::NewLink(pair)),
            describe_host(veth.host, veth.alias),
            Request::plain(format!("find interface {}", veth.host), get_link(veth.host)),
        ])
        .map_err(|error| match error.errno() {
            Some(libc::EEXIST) => LinkError::NameTaken(veth.pod.to_owned()),
            _ => LinkError::Netlink(error),
        })?;
    let index = answers
        .iter()
        .find_map(super::netlink::Link::from_message)
        .map(|link| link.index)
        .ok_or_else(|| LinkError::Vanished(veth.host.to_owned()))?;
    if veth.queues != veth.used_queues {
        offload::use_queues(veth.host, veth.used_queues)?;
    }
    Ok(index)
}

/// The host's end speaks no protocol of its own: no ARP, no IPv6 address.
fn describe_host(name: &str, alias: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Noarp;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::IfAlias(alias.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
    ];
    Request::plain(
        format!("describe interface {name}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Brings the host's end up; IPv6 stays out of it.
pub fn raise_host(netlink: &mut Netlink, name: &str, index: u32) -> Result<(), LinkError> {
    if netns::has_ipv6(name) {
        netns::set(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
    }
    netlink.request(set_up(name, index))?;
    Ok(())
}

/// `ip link set NAME up`.
pub fn set_up(name: &str, index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request::plain(
        format!("bring interface {name} up"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// `ip link set NAME mtu MTU`.
pub fn set_mtu(name: &str, index: u32, mtu: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    Request::plain(
        format!("set the MTU of {name} to {mtu}"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Sets up the pod's end, which is to use `queues` of its queues, and brings it
/// up; runs on a thread inside the pod's namespace. Returns the endpoint's
/// routes without those that the pod has already by another interface.
pub fn configure_pod(endpoint: &Endpoint, queues: u32) -> Result<Vec<PodRoute>, LinkError> {
    let name = &endpoint.attachment.ifname;
    let mut netlink = Netlink::open()?;
    let link = netlink
        .link(name)?
        .ok_or_else(|| LinkError::Vanished(name.clone()))?;
    for (key, value) in settings(endpoint) {
        netns::set(&key, &value)?;
    }
    set_offloads(name, endpoint.offloads)?;
    use_pod_queues(name, link.rx_queues, queues)?;
    // What another interface of the pod reaches already stays there: the
    // first network has the default route and the gateway.
    let taken: HashSet<IpNet> = routes(&mut netlink)?.into_iter().map(|r| r.to).collect();
    let routes: Vec<PodRoute> = endpoint
        .routes
        .iter()
        .filter(|route| !taken.contains(&route.to))
        .cloned()
        .collect();
    let mut batch = Vec::new();
    if link.mtu != endpoint.device_mtu {
        batch.push(set_mtu(name, link.index, endpoint.device_mtu));
    }
    batch.push(set_up(name, link.index));
    for address in &endpoint.addresses {
        let (ip, len) = (address.address, kernel_prefix_len(endpoint, address));
        batch.push(add_address(name, link.index, ip, len));
    }
    for route in &routes {
        batch.push(add_route(
            name,
            link.index,
            route,
            source_of(endpoint, route),
        ));
    }
    netlink.batch(batch)?;
    wait_operational(&mut netlink, name)?;
    if let Some((key, value)) = ipv6_mtu(endpoint) {
        netns::set(&key, &value)?;
    }
    Ok(routes)
}

/// Lets IPv4's TCP send super-frames of up to `bytes` by an interface
/// (`IFLA_GSO_IPV4_MAX_SIZE`, Linux 6.3).
pub fn set_super_frame_len(name: &str, index: u32, bytes: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::GsoIpv4MaxSize(bytes)];
    Request::plain(
        format!("let {name} take super-frames of {bytes} bytes"),
        RouteNetlinkMessage::SetLink(message),
    )
}

/// The longest that generic XDP takes, and what an interface begins with
/// (`GSO_LEGACY_MAX_SIZE`, include/linux/netdevice.h).
const USUAL_SUPER_FRAME_LEN: u32 = 65_536;

/// Has `lead` lead the TCP of a pod's interface past XDP, and only then lets it
/// send super-frames that no other way takes; runs inside the pod's namespace.
pub fn lengthen_super_frames<E: From<LinkError>>(
    name: &str,
    lead: impl FnOnce(u32) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error: NetlinkError| E::from(LinkError::from(error));
    let mut netlink = Netlink::open().map_err(failed)?;
    let link = netlink.link(name).map_err(failed)?;
    let link = link.ok_or_else(|| E::from(LinkError::Vanished(name.to_owned())))?;
    let led = lead(link.index);
    let bytes = match &led {
        Ok(()) => LONGEST_SUPER_FRAME as u32,
        Err(_) => USUAL_SUPER_FRAME_LEN,
    };
    let set = netlink.request(set_super_frame_len(name, link.index, bytes));
    // Of two failures the first says more.
    led?;
    set.map(drop).map_err(failed)
}

/// Gives a pod's interface and its routes the endpoint's MTU; runs inside the
/// pod's namespace. Routes that the pod took away stay away.
pub fn set_pod_mtu(endpoint: &Endpoint) -> Result<(), LinkError> {
    let name = &endpoint.attachment.ifname;
    let mut netlink = Netlink::open()?;
    let link = netlink
        .link(name)?
        .ok_or_else(|| LinkError::Vanished(name.clone()))?;
    if link.mtu != endpoint.device_mtu {
        netlink.request(set_mtu(name, link.index, endpoint.device_mtu))?;
    }
    let held = routes(&mut netlink)?;
    let is_held = |route: &&PodRoute| {
        let mut held = held.iter();
        held.any(|h| h.to == route.to && h.oif == Some(link.index) && h.via == route.via)
    };
    let kept = endpoint.routes.iter().filter(is_held);
    let again = kept.map(|route| add_route(name, link.index, route, source_of(endpoint, route)));
    netlink.batch(again.collect())?;
    if let Some((key, value)) = ipv6_mtu(endpoint) {
        netns::set(&key, &value)?;
    }
    Ok(())
}

/// The address that packets by a route leave with; IPv6 chooses by itself.
fn source_of(endpoint: &Endpoint, route: &PodRoute) -> Option<IpAddr> {
    endpoint.ips().find(|ip| ip.is_ipv4() && !is_v6(&route.to))
}

/// Waits until every protocol has heard that the interface is up: only then
/// IPv6 takes its link-local address, and forgets the MTU that it was set to
/// before. The kernel tells them from a work queue, within a millisecond.
pub fn wait_operational(netlink: &mut Netlink, name: &str) -> Result<(), LinkError> {
    let deadline = Instant::now() + OPERATIONAL_PATIENCE;
    loop {
        let link = netlink
            .link(name)?
            .ok_or_else(|| LinkError::Vanished(name.to_owned()))?;
        if link.operational {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(LinkError::NoCarrier(name.to_owned()));
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Length that an address has in the kernel: a host's on the routed network,
/// the segment's inside a segment.
fn kernel_prefix_len(endpoint: &Endpoint, address: &spinlane_api::cni::Address) -> u8 {
    match endpoint.segment {
        Some(_) => address.prefix_len,
        None => host_prefix_len(address.address),
    }
}

/// 32 or 128.
pub const fn host_prefix_len(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

/// The pod's settings that stand before the interface goes up, below
/// `/proc/sys/net`.
pub fn settings(endpoint: &Endpoint) -> Vec<(String, String)> {
    let name = &endpoint.attachment.ifname;
    let mut settings = Vec::new();
    if netns::has_ipv6(name) && !endpoint.is_self_configured {
        let mut set = |key: &str, value: &str| {
            settings.push((format!("ipv6/conf/{name}/{key}"), value.to_owned()));
        };
        if endpoint.ips().any(|ip| ip.is_ipv6()) {
            set("disable_ipv6", "0");
        }
        set("accept_dad", "0");
        set("accept_ra", "0");
    }
    settings
}

/// The IPv6 MTU of the pod's interface, for packets without a route of ours
/// (link-local, multicast).
pub fn ipv6_mtu(endpoint: &Endpoint) -> Option<(String, String)> {
    let name = &endpoint.attachment.ifname;
    (netns::has_ipv6(name) && endpoint.mtu >= 1280)
        .then(|| (format!("ipv6/conf/{name}/mtu"), endpoint.mtu.to_string()))
}

/// Sets the features of an interface in the calling thread's namespace.
pub fn set_offloads(name: &str, keep: bool) -> Result<(), OffloadError> {
    if keep {
        return offload::set(name, offload::NEEDED, offload::UNSUITED);
    }
    let off: Vec<&str> = [
        offload::TCP_SEGMENTATION,
        &["tx-checksum-ip-generic", "tx-scatter-gather"],
        offload::UNSUITED,
    ]
    .concat();
    offload::set(name, &[], &off)
}

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
    /// Every next hop that works, when there are several: gateway and
    /// interface.
    pub hops: Vec<(Option<IpAddr>, u32)>,
    /// Made by [`add_host_route`].
    pub is_ours: bool,
}

impl KernelRoute {
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

/// Unicast routes of the main table, both families.
pub fn routes(netlink: &mut Netlink) -> Result<Vec<KernelRoute>, NetlinkError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let answers = netlink.dump("list the routes", RouteNetlinkMessage::GetRoute(request))?;
        found.extend(answers.iter().filter_map(kernel_route));
    }
    Ok(found)
}

fn kernel_route(message: &RouteNetlinkMessage) -> Option<KernelRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
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
        via: via.or_else(|| hops.first().and_then(|(via, _)| *via)),
        oif: oif.or_else(|| hops.first().map(|(_, oif)| *oif)),
        mtu,
        source,
        priority,
        hops,
        is_ours: is_ours(message),
    })
}

/// One next hop of several, unless the kernel does not use it.
fn hop(hop: &RouteNextHop) -> Option<(Option<IpAddr>, u32)> {
    let unused = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    let via = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(a) => ip_of(a),
        RouteAttribute::Via(RouteVia::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    });
    (!hop.flags.intersects(unused)).then_some((via, hop.interface_index))
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
