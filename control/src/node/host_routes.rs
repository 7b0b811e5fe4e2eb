//! The kernel's routes to pods: through the host port, or straight to another
//! node where the network between nodes carries pods' packets as they are.
//!
//! They carry a protocol number of their own, by which they are found again:
//! what is not wanted any more goes, whoever took one away sees it come back.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::neighbour::NeighbourState;

use super::endpoint::{Endpoint, PodRoute};
use super::host_port::HOST_SIDE;
use super::kernel::neighbour_request;
use super::netlink::{Netlink, NetlinkError, Request};
use super::routes::{self, KernelRoute};
use super::setup::GATEWAY_LINK_LOCAL;
use super::{Core, ipam};
use crate::config::Mode;

/// A route that the kernel should have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostRoute {
    route: PodRoute,
    oif: u32,
    /// What the kernel's own packets leave with.
    source: Option<IpAddr>,
}

impl HostRoute {
    fn is(&self, kernel: &KernelRoute) -> bool {
        kernel.is_as(&self.route) && kernel.oif == Some(self.oif) && kernel.source == self.source
    }
}

impl Core {
    /// Makes the kernel's routes to pods what they should be.
    pub(crate) fn sync_host_routes(&self) -> Result<(), NetlinkError> {
        let Some(host) = self.inventory().host else {
            return Ok(());
        };
        let ipv6 = super::netns::has_ipv6(HOST_SIDE);
        let wanted = self.host_routes(host.ifindex, ipv6);
        let mut netlink = Netlink::open()?;
        let mut held = routes::list(&mut netlink)?;
        held.retain(|route| route.is_ours || route.oif == Some(host.ifindex));
        let nets: HashSet<IpNet> = wanted.iter().map(|wanted| wanted.route.to).collect();
        let mut by_net: HashMap<IpNet, Vec<&KernelRoute>> = HashMap::with_capacity(held.len());
        for held in &held {
            by_net.entry(held.to).or_default().push(held);
        }
        let mut batch: Vec<Request> = held
            .iter()
            .filter(|held| held.is_ours && !nets.contains(&held.to))
            .map(|stale| routes::delete_route(stale).tolerate(&[libc::ESRCH]))
            .collect();
        for wanted in &wanted {
            let old = by_net.get(&wanted.route.to).map_or(&[][..], Vec::as_slice);
            if old.iter().any(|held| wanted.is(held) && held.is_ours) {
                continue;
            }
            // IPv6 knows several routes to one prefix: the old one goes first.
            batch.extend(
                old.iter()
                    .map(|old| routes::delete_route(old).tolerate(&[libc::ESRCH])),
            );
            if wanted.oif == host.ifindex {
                batch.extend(wanted.route.via.map(|via| {
                    let (at, mac) = ((wanted.oif, via), self.setup().gateway_mac());
                    let state = NeighbourState::Permanent;
                    neighbour_request("set the neighbour", at, state, Some(mac))
                }));
            }
            batch.push(routes::add_host_route(
                wanted.oif,
                &wanted.route,
                wanted.source,
            ));
        }
        netlink.batch(batch)?;
        Ok(())
    }

    /// Routes to pods of this node, of the cluster, and of nodes in none of
    /// the cluster's ranges. In mode `l2` the kernel has pods on the uplink's
    /// own link.
    fn host_routes(&self, host: u32, ipv6: bool) -> Vec<HostRoute> {
        let setup = self.setup();
        if setup.network.mode == Mode::L2 {
            return Vec::new();
        }
        let tables = self.tables();
        let (uplink, strangers) = {
            let inventory = self.inventory();
            let surroundings = &inventory.surroundings;
            let live = inventory.endpoints.values().map(|live| &live.endpoint);
            let strangers: Vec<IpAddr> = live.flat_map(|pod| setup.outside(pod)).collect();
            (surroundings.uplink, strangers)
        };
        let mut routes: Vec<HostRoute> = Vec::new();
        let mut known: HashSet<IpNet> = HashSet::new();
        let mut add = |net: &IpNet, via: IpAddr, oif: u32| {
            let to = net.trunc();
            if (ipv6 || matches!(to, IpNet::V4(_))) && known.insert(to) {
                let (via, mtu) = (Some(via), setup.path_mtu);
                let route = PodRoute { to, via, mtu };
                let mut own = setup.addresses.iter();
                let source = own.find(|a| a.is_ipv6() == matches!(to, IpNet::V6(_)));
                routes.push(HostRoute {
                    route,
                    oif,
                    source: source.copied(),
                });
            }
        };
        let gateway = |net: &IpNet| self.gateway_to(net);
        for own in &setup.pod_cidrs {
            add(own, gateway(own), host);
        }
        for stranger in strangers {
            let alone = IpNet::from(stranger);
            add(&alone, gateway(&alone), host);
        }
        if let Some(uplink) = uplink {
            for (net, via) in tables.direct.iter() {
                add(net, *via, uplink.port.ifindex);
            }
        }
        for wide in &setup.network.cluster_cidrs {
            add(wide, gateway(wide), host);
        }
        for net in tables.pods.iter() {
            let cluster = &setup.network.cluster_cidrs;
            if !cluster.iter().any(|wide| wide.contains(net)) {
                add(net, gateway(net), host);
            }
        }
        routes
    }

    /// Brings the route to a pod whose addresses lie in no range of this node
    /// in line with whether it is there.
    pub(crate) fn route_stranger(&self, endpoint: &Endpoint) {
        if self.setup().outside(endpoint).next().is_some()
            && let Err(error) = self.sync_host_routes()
        {
            tracing::warn!(container = endpoint.attachment.container_id, %error, "the node does not reach a pod");
        }
    }

    /// The switch as the kernel's next hop.
    fn gateway_to(&self, net: &IpNet) -> IpAddr {
        match net {
            IpNet::V4(_) => {
                let own = self.setup().gateway(false);
                own.unwrap_or_else(|| ipam::first_address(net))
            }
            IpNet::V6(_) => GATEWAY_LINK_LOCAL.into(),
        }
    }
}

/// Removes every route that carries our protocol number.
pub fn remove_all(netlink: &mut Netlink) -> Result<usize, NetlinkError> {
    let mut ours = routes::list(netlink)?;
    ours.retain(|route| route.is_ours);
    let requests = ours.iter().map(routes::delete_route);
    let requests = requests.map(|r| r.tolerate(&[libc::ESRCH, libc::ENODEV]));
    netlink.batch(requests.collect())?;
    Ok(ours.len())
}
