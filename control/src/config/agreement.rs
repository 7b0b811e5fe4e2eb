//! What keys of different tables must agree on, and which keys change nothing
//! in this version.

use super::document::{Document, Step};
use super::place::{At, Checked, at};
use super::raw::RawConfig;
use super::validate::{SMALLEST_MTU, overlap};
use super::{Config, Mode};

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
    agree_on_gateway(config, document)?;
    agree_on_mtu(config, document)
}

fn agree_on_gateway(config: &Config, document: &Document<'_>) -> Checked<()> {
    let (node, network) = (&config.node, &config.network);
    let Some(gateway) = network.gateway.filter(|_| network.mode == Mode::L2) else {
        return Ok(());
    };
    let mut ranges = node
        .pod_cidrs
        .iter()
        .chain(&network.cluster_cidrs)
        .peekable();
    if ranges.peek().is_some() && !ranges.any(|range| range.contains(&gateway)) {
        return Err(at!(document, "network", "gateway").complain(format!(
            "{gateway} is neither in node.pod-cidrs nor in network.cluster-cidrs: pods could not reach it on their link"
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
const NOT_IN_FORCE: &[&[&str]] = &[&["network", "service-cidrs"], &["network", "gateway"]];

pub(super) fn warnings(raw: &RawConfig, document: &Document<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |what: &str| {
        warnings.push(format!(
            "{what} is accepted but not yet in force in this version"
        ));
    };
    if raw.network.mode.as_deref() == Some("l2") {
        warn("network.mode = \"l2\" (pods of this node are routed)");
    }
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
    warnings
}
