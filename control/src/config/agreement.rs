//! What keys of different tables must agree on, and which keys change nothing
//! in this version.

use std::net::IpAddr;

use super::document::{Document, Step};
use super::place::{At, Checked, at};
use super::raw::RawConfig;
use super::{Config, Mode, SMALLEST_MTU, Uplink, overlap};

/// What keys of different tables must agree on.
pub(super) fn agree(config: &Config, document: &Document<'_>) -> Checked<()> {
    let (node, network) = (&config.node, &config.network);
    let pods = at!(document, "node", "pod-cidrs");
    for cidr in &node.pod_cidrs {
        if let Some(why) = network.refuses_pods(cidr, &node.addresses) {
            return Err(pods.complain(why));
        }
    }
    let at = at!(document, "network", "service-cidrs");
    for service in &network.service_cidrs {
        if let Some(cluster) = network.cluster_cidrs.iter().find(|c| overlap(c, service)) {
            return Err(at.complain(format!(
                "{service} and network.cluster-cidrs {cluster} overlap: give services a range of their own"
            )));
        }
    }
    let at = at!(document, "network", "cross-subnet");
    if network.cross_subnet && network.mode != Mode::Routed {
        return Err(at.complain(format!(
            "has no meaning in mode {:?}: set network.mode = \"routed\"",
            network.mode.name()
        )));
    }
    agree_on_ports(config, document)?;
    agree_on_vnis(config, document)?;
    agree_on_shared_segment(config, document)?;
    agree_on_mtu(config, document)
}

/// What comes to the overlay's port is the overlay's.
fn agree_on_ports(config: &Config, document: &Document<'_>) -> Checked<()> {
    let network = &config.network;
    let mut segments = config.segments.iter();
    let has_overlay = network.overlay_vni().is_some() || segments.any(|s| s.vni.is_some());
    let ports = network.masquerade_ports;
    if !has_overlay || !network.masquerade || !ports.contains(network.vxlan_port) {
        return Ok(());
    }
    Err(
        at!(document, "network", "masquerade-ports").complain(format!(
            "network.vxlan-port {} is among them: choose a range without it",
            network.vxlan_port
        )),
    )
}

/// A VNI says which network a packet of the overlay is of.
fn agree_on_vnis(config: &Config, document: &Document<'_>) -> Checked<()> {
    let Some(routed) = config.network.overlay_vni() else {
        return Ok(());
    };
    let mut segments = config.segments.iter();
    match segments.position(|segment| segment.vni == Some(routed)) {
        None => Ok(()),
        Some(index) => Err(at!(document, "segments", index, "vni").complain(format!(
            "{routed} is network.vni, the pod network's own: give one of them another"
        ))),
    }
}

/// What mode `l2` needs: an uplink, and pods and gateways in its networks.
fn agree_on_shared_segment(config: &Config, document: &Document<'_>) -> Checked<()> {
    let (node, network) = (&config.node, &config.network);
    if network.mode != Mode::L2 {
        return Ok(());
    }
    if node.uplink == Uplink::None {
        return Err(at!(document, "node", "uplink").complain(
            "mode \"l2\" joins pods to the uplink's network: name an interface".to_owned(),
        ));
    }
    // An uplink that is not there yet may have any network.
    let Some(uplink) = &config.underlay else {
        return Ok(());
    };
    let networks = &uplink.networks;
    let strange = node.pod_cidrs.iter();
    let mut strange = strange.filter_map(|range| network.is_beyond_link(range, networks));
    if let Some(why) = strange.next() {
        return Err(at!(document, "node", "pod-cidrs").complain(why));
    }
    let ranges: Vec<_> = node
        .pod_cidrs
        .iter()
        .chain(&network.cluster_cidrs)
        .chain(&uplink.networks)
        .collect();
    let is_on_link = |gateway: &IpAddr| match gateway {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => true,
        _ => ranges.is_empty() || ranges.iter().any(|range| range.contains(gateway)),
    };
    let key = match at!(document, "network", "gateway").is_set() {
        true => "gateway",
        false => "gateways",
    };
    if let Some(gateway) = network.gateways.iter().find(|g| !is_on_link(g)) {
        return Err(at!(document, "network", key).complain(format!(
            "{gateway} is in no network of {}, nor in node.pod-cidrs or network.cluster-cidrs: pods could not reach it on their link",
            uplink.name
        )));
    }
    if let Some(own) = network.gateways.iter().find(|g| node.addresses.contains(g)) {
        return Err(at!(document, "network", key).complain(format!(
            "{own} is the node's own address: name the router of {}'s network",
            uplink.name
        )));
    }
    Ok(())
}

fn agree_on_mtu(config: &Config, document: &Document<'_>) -> Checked<()> {
    let at = at!(document, "network", "mtu");
    let v6 = config.node.pod_cidrs.iter().any(|c| c.addr().is_ipv6());
    let smallest = SMALLEST_MTU[usize::from(v6)];
    let (path, overhead) = (
        config.path_mtu(),
        config.network.overhead(&config.node.addresses),
    );
    if path < smallest {
        let family = if v6 { "IPv6" } else { "IPv4" };
        return Err(at.complain(format!(
            "leaves {path} bytes for {family} packets of pods, fewer than {smallest}: give at least {}",
            smallest + overhead
        )));
    }
    Ok(())
}

/// Keys that are read, checked, and change nothing in this version.
const NOT_IN_FORCE: &[&[&str]] = &[&["network", "service-cidrs"]];

pub(super) fn warnings(raw: &RawConfig, document: &Document<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |what: &str| {
        warnings.push(format!(
            "{what} is accepted but not yet in force in this version"
        ));
    };
    if raw.source.kind.as_deref() == Some("kubernetes") {
        warn("source.kind = \"kubernetes\"");
    }
    for path in NOT_IN_FORCE {
        let steps: Vec<_> = path.iter().map(|key| Step::Key(key)).collect();
        let at = At {
            document,
            path: &steps,
        };
        if at.is_set() {
            warn(&at.name());
        }
    }
    let mode = raw.network.mode.as_deref().unwrap_or("vxlan");
    for key in ["gateway", "gateways"] {
        let at = at!(document, "network", key);
        if mode != "l2" && at.is_set() {
            warnings.push(format!("{} changes nothing in mode {mode:?}", at.name()));
        }
    }
    warnings
}
