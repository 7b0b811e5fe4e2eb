//! Which of the pods' packets leave with this node's address, and with which.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use spinlane_dataplane::snapshot::{Masquerade, RouteTable, RouteTarget};

use super::beyond::inputs::{Inputs, prefix};
use super::routes::default_net;
use super::setup::Setup;
use crate::config::{Mode, Uplink};

/// Whether pods leave with this node's address at all: not in mode `l2`,
/// where theirs are the subnet's own.
pub(super) fn is_wanted(setup: &Setup) -> bool {
    setup.network.masquerade
        && setup.network.mode != Mode::L2
        && !matches!(setup.uplink, Uplink::None)
}

/// Masquerade for the snapshot, where other nodes' pods are in these ranges.
pub(super) fn masquerade(inputs: &Inputs<'_>, others: &BTreeSet<IpNet>) -> Masquerade {
    let setup = inputs.setup;
    let network = &setup.network;
    let ports = network.masquerade_ports.first..=network.masquerade_ports.last;
    let mut masquerade = Masquerade {
        ports,
        ..Masquerade::default()
    };
    if !is_wanted(setup) {
        return masquerade;
    }
    masquerade.is_on = true;
    // Other nodes' pods may lie outside the cluster's ranges.
    let pods = setup.pod_cidrs.iter().chain(others);
    let keep = pods
        .chain(&network.cluster_cidrs)
        .chain(&network.service_cidrs)
        .chain(&network.masquerade_exclude);
    // Many nodes' ranges make few: neighbours are one, and the cluster's cover
    // theirs.
    let keep = IpNet::aggregate(&keep.map(IpNet::trunc).collect());
    masquerade.excluded = keep.into_iter().map(prefix).collect();
    masquerade.nodes = inputs
        .nodes
        .iter()
        .flat_map(|node| node.addresses.iter().copied())
        .chain(setup.addresses.iter().copied())
        .collect();
    for address in exits(inputs) {
        match address {
            IpAddr::V4(v4) => masquerade.egress_v4.push(v4),
            IpAddr::V6(v6) => masquerade.egress_v6.push(v6),
        }
    }
    masquerade
}

/// That pods leave with their own addresses, where the way to everywhere is
/// not by the uplink.
pub(super) fn notice(setup: &Setup, routes: &RouteTable) -> Option<String> {
    let leaves = |pods: &IpNet| {
        let anywhere = prefix(default_net(matches!(pods, IpNet::V6(_))));
        matches!(routes.get(anywhere), Some(RouteTarget::Host(_)))
    };
    let is_seen = is_wanted(setup) && setup.pod_cidrs.iter().any(leaves);
    is_seen.then(|| {
        let uplink = setup.uplink.name();
        format!(
            "the default route is not by the uplink {uplink}: what pods send there goes through the node's kernel and keeps their addresses; correct node.uplink or the route, or have the kernel translate it"
        )
    })
}

/// The configured addresses, else the uplink's own that are good everywhere;
/// unique local ones (RFC 4193) only where there are no others.
fn exits(inputs: &Inputs<'_>) -> Vec<IpAddr> {
    let configured = &inputs.setup.network.egress_addresses;
    if !configured.is_empty() {
        return configured.clone();
    }
    let Some(uplink) = inputs.uplink else {
        return Vec::new();
    };
    let held = inputs.kernel.sources.iter();
    let held = held.filter(|(index, _)| *index == uplink.port.ifindex);
    let held = held.map(|(_, address)| *address);
    let mut exits: Vec<IpAddr> = held.filter(|address| is_global(*address)).collect();
    let is_wide = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if !v6.is_unique_local());
    if exits.iter().any(is_wide) {
        exits.retain(|address| address.is_ipv4() || is_wide(address));
    }
    exits
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
    }
}
