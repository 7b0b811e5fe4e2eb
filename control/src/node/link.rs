//! A pod's interface: a veth whose far end is made straight inside the pod's
//! namespace, and everything that is set there.
//!
//! The device takes super-frames (its MTU), the routes tell the path's MTU,
//! and no address brings a route of its own that would leak the device's:
//! IPv4 and IPv6 addresses are `noprefixroute`, IPv6 ones `nodad` besides.
//! Order: [`create`] (both ends down) → [`use_pod_queues`] → the port is
//! attached → [`raise_host`] → [`configure_pod`]. With the host's end up first the pod's end has a
//! carrier the moment it goes up, and nothing waits for link events.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use spinlane_dataplane::frame::LONGEST_SUPER_FRAME;
use spinlane_dataplane::types::MacAddr;

use super::endpoint::{Endpoint, PodRoute};
use super::netlink::{Netlink, NetlinkError, Request, get_link};
use super::netns::{self, NetnsError, Sysfs};
use super::offload::{self, OffloadError};
use super::routes;
use super::steering::{self, SteeringError};

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

/// Has the end that is no port use `queues` of the queues that it `has`; runs
/// in its namespace.
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

/// Sets up the pod's end and brings it up; runs on a thread inside the pod's
/// namespace. Returns the endpoint's routes without those that the pod has
/// already by another interface.
pub fn configure_pod(endpoint: &Endpoint) -> Result<Vec<PodRoute>, LinkError> {
    let name = &endpoint.attachment.ifname;
    let mut netlink = Netlink::open()?;
    let link = netlink
        .link(name)?
        .ok_or_else(|| LinkError::Vanished(name.clone()))?;
    for (key, value) in settings(endpoint) {
        netns::set(&key, &value)?;
    }
    set_offloads(name, endpoint.offloads)?;
    // What another interface of the pod reaches already stays there: the
    // first network has the default route and the gateway.
    let taken: HashSet<IpNet> = routes::list(&mut netlink)?
        .into_iter()
        .map(|r| r.to)
        .collect();
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
        batch.push(routes::add_address(name, link.index, ip, len));
    }
    for route in &routes {
        batch.push(routes::add_route(
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
    let held = routes::list(&mut netlink)?;
    let is_held = |route: &&PodRoute| {
        let mut held = held.iter();
        held.any(|h| h.to == route.to && h.oif == Some(link.index) && h.via == route.via)
    };
    let kept = endpoint.routes.iter().filter(is_held);
    let again =
        kept.map(|route| routes::add_route(name, link.index, route, source_of(endpoint, route)));
    netlink.batch(again.collect())?;
    if let Some((key, value)) = ipv6_mtu(endpoint) {
        netns::set(&key, &value)?;
    }
    Ok(())
}

/// The address that packets by a route leave with; IPv6 chooses by itself.
fn source_of(endpoint: &Endpoint, route: &PodRoute) -> Option<IpAddr> {
    endpoint
        .ips()
        .find(|ip| ip.is_ipv4() && matches!(route.to, IpNet::V4(_)))
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
        None => routes::host_prefix_len(address.address),
    }
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

/// Opens the namespace of a stored endpoint.
pub(crate) fn open_netns(endpoint: &Endpoint) -> Result<OwnedFd, NetnsError> {
    netns::open(Path::new(&endpoint.netns_path))
}

/// Runs work in the namespace of a stored endpoint.
pub(crate) fn in_pod<T: Send>(
    endpoint: &Endpoint,
    work: impl FnOnce() -> Result<T, LinkError> + Send,
) -> Result<T, LinkError> {
    let netns = open_netns(endpoint)?;
    netns::run(netns.as_fd(), work)
}
