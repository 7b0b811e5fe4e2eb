//! The network that pods share with the uplink in mode `l2`: how long its
//! prefixes are, who its gateways are, and which addresses are taken there.
//!
//! The kernel is the source: networks that the uplink is in, its default
//! routes by the uplink, the neighbours that it talks to. Configuration comes
//! before it where it names a gateway, and after it where the node itself is
//! not in the pods' network. When the gateway changes, so do the pods' default
//! routes.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Core;
use super::endpoint::{Endpoint, PodRoute, State};
use super::inventory::Inventory;
use super::kernel::Kernel;
use super::link::{LinkError, in_pod};
use super::netlink::Netlink;
use super::routes;
use super::setup::Setup;
use super::store::Change;

/// What is on the uplink's link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnLink {
    /// Its networks: those that the uplink is in, then those that
    /// configuration names.
    pub networks: Vec<IpNet>,
    /// Gateways, at most one a family.
    pub gateways: Vec<IpAddr>,
    /// Addresses of others: no pod can have them.
    pub taken: HashSet<IpAddr>,
    /// Addresses that somebody used lately: a pod may have them by asking, since
    /// it may have used them itself, on another node.
    pub seen: HashSet<IpAddr>,
}

impl OnLink {
    /// As the inventory knows it.
    pub fn of(setup: &Setup, inventory: &Inventory) -> OnLink {
        let surroundings = &inventory.surroundings;
        let kernel = &surroundings.kernel;
        let uplink = surroundings.uplink.map(|uplink| uplink.port.ifindex);
        let own = kernel.routes.iter();
        let own = own.filter(|route| uplink.is_some_and(|index| route.is_network_of(index)));
        let mut networks: Vec<IpNet> = own.map(|route| route.to).collect();
        networks.extend(&setup.network.cluster_cidrs);
        let mut gateways = setup.network.gateways.clone();
        for v6 in [false, true] {
            let is_known = gateways.iter().any(|gateway| gateway.is_ipv6() == v6);
            if let Some(index) = uplink.filter(|_| !is_known) {
                gateways.extend(default_gateway(kernel, index, v6));
            }
        }
        let neighbours = kernel.neighbours.iter();
        let neighbours = neighbours
            .filter(|((index, _), neighbour)| Some(*index) == uplink && !neighbour.is_stale)
            .map(|((_, address), _)| *address);
        let nodes = surroundings.nodes.iter();
        let taken = nodes
            .flat_map(|node| node.addresses.iter().copied())
            .chain(inventory.local.iter().copied())
            .chain(gateways.iter().copied())
            .collect();
        OnLink {
            networks,
            gateways,
            taken,
            seen: neighbours.collect(),
        }
    }

    /// Length of the prefix that an address is on-link with; of a pod range
    /// when no network is known.
    pub fn prefix_len(&self, address: IpAddr, range: u8) -> u8 {
        let mut networks = self.networks.iter();
        networks
            .find(|net| net.contains(&address))
            .map_or(range, IpNet::prefix_len)
    }

    /// The gateway of a family.
    pub fn gateway(&self, v6: bool) -> Option<IpAddr> {
        let mut gateways = self.gateways.iter();
        gateways.find(|gateway| gateway.is_ipv6() == v6).copied()
    }
}

/// Where the kernel's best default route by an interface leads.
fn default_gateway(kernel: &Kernel, ifindex: u32, v6: bool) -> Option<IpAddr> {
    let routes = kernel.routes.iter();
    let routes = routes.filter(|route| {
        route.to.prefix_len() == 0
            && route.to.addr().is_ipv6() == v6
            && route.oif == Some(ifindex)
            && route.via.is_some_and(|via| via.is_ipv6() == v6)
    });
    routes.min_by_key(|route| route.priority)?.via
}

/// The endpoint as it should be with these gateways; `None` when it is so.
/// Gateways that a delegated plugin named stay.
fn redirected(endpoint: &Endpoint, on_link: &OnLink) -> Option<Endpoint> {
    let mut next = endpoint.clone();
    for v6 in [false, true] {
        let Some(gateway) = on_link.gateway(v6) else {
            continue;
        };
        let own = next.addresses.iter_mut();
        let mut has_address = false;
        for address in own.filter(|address| address.address.is_ipv6() == v6) {
            address.gateway = Some(gateway);
            has_address = true;
        }
        if !has_address {
            continue;
        }
        let to = routes::default_net(v6);
        match next.routes.iter_mut().find(|route| route.to == to) {
            Some(route) => route.via = Some(gateway),
            None => next.routes.push(PodRoute {
                to,
                via: Some(gateway),
                mtu: next.mtu,
            }),
        }
    }
    (next != *endpoint).then_some(next)
}

/// Makes the default routes of a pod's interface what the endpoint says; runs
/// in the pod's namespace. Gives the routes that it has by that interface:
/// another one may have the default route.
fn redirect(endpoint: &Endpoint) -> Result<Vec<PodRoute>, LinkError> {
    let name = &endpoint.attachment.ifname;
    let mut netlink = Netlink::open()?;
    let index = netlink
        .link(name)?
        .ok_or_else(|| LinkError::Vanished(name.clone()))?
        .index;
    let held = routes::list(&mut netlink)?;
    let (mut routes, mut batch) = (Vec::new(), Vec::new());
    for route in &endpoint.routes {
        let old: Vec<_> = held.iter().filter(|held| held.to == route.to).collect();
        let is_default = route.to.prefix_len() == 0;
        if is_default && old.iter().any(|old| old.oif != Some(index)) {
            continue;
        }
        routes.push(route.clone());
        if !is_default || matches!(&old[..], [old] if old.is_as(route)) {
            continue;
        }
        // IPv6 knows several routes to one prefix: the old one goes first.
        let old = old.into_iter();
        batch.extend(old.map(|old| routes::delete_route(old).tolerate(&[libc::ESRCH])));
        let source = endpoint
            .ips()
            .find(|ip| ip.is_ipv4() && route.to.addr().is_ipv4());
        batch.push(routes::add_route(name, index, route, source));
    }
    netlink.batch(batch)?;
    Ok(routes)
}

impl Core {
    /// Gives pods of the shared segment the gateway that is in force.
    pub(crate) fn follow_gateways(&self) {
        let setup = self.setup();
        let Some(shared) = setup.shared_segment() else {
            return;
        };
        let name = &setup.segments[shared.index()].name;
        let changed: Vec<Endpoint> = {
            let inventory = self.inventory();
            let on_link = OnLink::of(&setup, &inventory);
            let endpoints = inventory.endpoints.values().map(|live| &live.endpoint);
            let ours = endpoints.filter(|endpoint| {
                endpoint.segment.as_ref() == Some(name)
                    && endpoint.state == State::Attached
                    && !endpoint.delegated
            });
            ours.filter_map(|endpoint| redirected(endpoint, &on_link))
                .collect()
        };
        for endpoint in changed {
            self.follow_gateway(endpoint);
        }
    }

    fn follow_gateway(&self, endpoint: Endpoint) {
        let attachment = endpoint.attachment.clone();
        let _held = self.locks.lock(&attachment);
        let routes = match in_pod(&endpoint, || redirect(&endpoint)) {
            Ok(routes) => routes,
            Err(error) => {
                tracing::error!(
                    interface = endpoint.host_ifname,
                    %error,
                    "cannot give a pod its new gateway"
                );
                return;
            }
        };
        let endpoint = {
            let mut inventory = self.inventory();
            let Some(live) = inventory.endpoints.get_mut(&attachment) else {
                return;
            };
            if live.endpoint.state != State::Attached {
                return;
            }
            live.endpoint.addresses = endpoint.addresses;
            live.endpoint.routes = routes;
            live.endpoint.clone()
        };
        tracing::info!(
            interface = endpoint.host_ifname,
            namespace = endpoint.pod.namespace,
            pod = endpoint.pod.name,
            "the network's gateway changed: the pod's default route follows"
        );
        if let Err(error) = self.store.write(vec![Change::Put(Box::new(endpoint))]) {
            tracing::error!(%error, "a pod's new gateway is not recorded");
        }
    }
}
