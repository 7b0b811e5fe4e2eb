//! The way out, checked against the configuration: the device and what its
//! driver offers, queues, rings, MTU, the kernel's settings, ports and routes
//! that others hold. Everything is read; nothing is tried on an interface
//! that the node lives by.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{Item, State, item, shared};
use crate::config::{Config, Mode, Mtu, SMALLEST_MTU, Uplink};
use crate::node::device::{Rings, XdpFeatures, rings, xdp_features};
use crate::node::kernel::Kernel;
use crate::node::netlink::{Link, Netlink, NetlinkError};
use crate::node::netns::{self, Sysfs};
use crate::node::routes::KernelRoute;
use crate::node::uplink::wanted_uplink;

/// Fewer receive descriptors than this lose bursts.
const SMALL_RING: u32 = 512;
/// Interfaces of the agent's own.
const OWN: [&str; 2] = ["spinlane0", "spinlane1"];

/// What this machine has.
#[derive(Debug, Default)]
struct Facts {
    link: Option<Link>,
    addresses: usize,
    /// Receive queues in use.
    queues: u32,
    /// None where the kernel does not tell.
    xdp: Option<XdpFeatures>,
    /// None for a device without rings.
    rings: Option<Rings>,
    /// Routes with the name of their interface; the agent's are left out.
    routes: Vec<(KernelRoute, String)>,
    ip_forward: String,
    rp_filter: String,
    /// Local ports of the node's sockets, with their protocol.
    ports: BTreeSet<(u16, &'static str)>,
    /// Names of vxlan devices.
    overlays: Vec<String>,
}

/// Everything about the way out that this configuration names.
pub(super) fn run(config: &Config) -> Vec<Item> {
    match gather(config) {
        Ok(facts) => items(config, &facts),
        Err(error) => vec![item("uplink", State::Missing, error.to_string())],
    }
}

fn gather(config: &Config) -> Result<Facts, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let kernel = Kernel::read(&mut netlink)?;
    let link = wanted_uplink(&config.node().uplink, &kernel, None).cloned();
    let index = link.as_ref().map(|link| link.index);
    let name_of = |route: &KernelRoute| kernel.link(route.oif?).map(|link| link.name.clone());
    let routes = kernel.routes.iter();
    let routes = routes.filter_map(|route| Some((route.clone(), name_of(route)?)));
    let named = link.as_ref().map(|link| link.name.as_str());
    let sysfs = Sysfs::open().ok();
    let held = kernel.addresses.iter();
    let vxlan = kernel.links.iter().filter(|link| link.is_vxlan);
    Ok(Facts {
        addresses: held
            .filter(|(at, address)| Some(*at) == index && crate::config::is_global(*address))
            .count(),
        queues: named
            .and_then(|name| sysfs.as_ref()?.receive_queues(name))
            .or(link.as_ref().map(|link| link.rx_queues))
            .unwrap_or(0),
        xdp: index.and_then(|index| xdp_features(index).ok()),
        rings: named.and_then(|name| rings(name).ok()),
        routes: routes.filter(|(_, at)| !OWN.contains(&&**at)).collect(),
        ip_forward: netns::get("ipv4/ip_forward").unwrap_or_default(),
        rp_filter: netns::get("ipv4/conf/all/rp_filter").unwrap_or_default(),
        ports: ["tcp", "tcp6", "udp", "udp6"]
            .into_iter()
            .flat_map(|table| {
                let text = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
                let protocol = table.trim_end_matches('6');
                let ports = local_ports(&text.unwrap_or_default());
                ports.into_iter().map(move |port| (port, protocol))
            })
            .collect(),
        overlays: vxlan.map(|link| link.name.clone()).collect(),
        link,
    })
}

/// Local ports in the format of `/proc/net/tcp`: the second column is
/// `ADDRESS:PORT` in hexadecimal.
fn local_ports(table: &str) -> BTreeSet<u16> {
    let rows = table.lines().skip(1);
    rows.filter_map(|row| {
        let local = row.split_whitespace().nth(1)?;
        let (_, port) = local.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
    .collect()
}

fn items(config: &Config, facts: &Facts) -> Vec<Item> {
    let mut items = Vec::new();
    if config.node().uplink == Uplink::None {
        items.push(item("uplink", State::Ok, "none is wanted"));
    } else {
        items.push(device(config, facts));
        if let Some(link) = &facts.link {
            items.push(driver(link, facts));
            items.push(queues(config, link, facts));
            items.extend(facts.rings.map(|rings| ring_sizes(link, rings)));
        }
        items.push(mtu(config, facts));
        items.extend(shared::items(config, facts.link.as_ref(), &facts.routes));
        items.extend(overlay(config, facts));
        items.extend(masquerade(config, facts));
    }
    items.push(forwarding(config, facts));
    items.push(reverse_path(facts));
    items.push(routes(config, facts));
    items
}

fn device(config: &Config, facts: &Facts) -> Item {
    let wanted = config.node().uplink.name();
    let Some(link) = &facts.link else {
        let what = match config.node().uplink {
            Uplink::Auto => "there is no default route: add one, or name node.uplink".to_owned(),
            _ => format!("there is no interface {wanted}: make it, or correct node.uplink"),
        };
        return item(
            "uplink",
            State::Degraded,
            format!("{what}; pods of this node reach each other"),
        );
    };
    let name = &link.name;
    let names_address = config.node().names_addresses;
    let (state, detail) = match (link.up, link.has_carrier, facts.addresses) {
        (false, _, _) => (
            State::Degraded,
            format!("{name} is down: ip link set {name} up"),
        ),
        (_, false, _) => (
            State::Degraded,
            format!("{name} has no carrier: look at its cable, switch or peer"),
        ),
        (_, _, 0) if config.network().mode != Mode::L2 && !names_address => (
            State::Degraded,
            format!("{name} has no address: give it one, or write node.address"),
        ),
        _ => (State::Ok, format!("{name} is up; the node keeps using it")),
    };
    item("uplink", state, detail)
}

fn driver(link: &Link, facts: &Facts) -> Item {
    let name = "uplink's driver";
    let Some(xdp) = facts.xdp else {
        let detail = "this kernel does not say what the driver offers (Linux 6.3 began to): native mode is tried, then generic";
        return item(name, State::Degraded, detail);
    };
    let buffers = match xdp.multi_buffer {
        true => "packets in several buffers",
        false => "packets in one buffer: an MTU beyond about 3500 needs generic mode",
    };
    match (link.is_veth, xdp.native, xdp.zero_copy) {
        (true, ..) => item(name, State::Ok, "a veth: generic mode"),
        (_, false, _) => item(
            name,
            State::Degraded,
            "no XDP in the driver: generic mode, which is slower; use a NIC whose driver has it",
        ),
        (_, true, zero_copy) => {
            let copies = match zero_copy {
                true => "without copies",
                false => "frames are copied",
            };
            item(name, State::Ok, format!("native mode, {copies}; {buffers}"))
        }
    }
}

fn queues(config: &Config, link: &Link, facts: &Facts) -> Item {
    let (queues, lanes) = (facts.queues as usize, config.lanes().cores.len());
    let text = format!("{queues} receive queues for {lanes} lanes");
    let name = &link.name;
    match queues < lanes {
        true => item(
            "uplink's queues",
            State::Missing,
            format!(
                "{text}: name fewer CPUs in lanes.cores, or ethtool -L {name} combined {lanes}"
            ),
        ),
        false => item("uplink's queues", State::Ok, text),
    }
}

fn ring_sizes(link: &Link, rings: Rings) -> Item {
    let Rings {
        rx,
        rx_max,
        tx,
        tx_max,
    } = rings;
    let text = format!("receive {rx} of {rx_max}, transmit {tx} of {tx_max} descriptors");
    match rx < SMALL_RING && rx < rx_max {
        true => item(
            "uplink's rings",
            State::Degraded,
            format!(
                "{text}: bursts are lost; ethtool -G {} rx {}",
                link.name,
                rx_max.min(4096)
            ),
        ),
        false => item("uplink's rings", State::Ok, text),
    }
}

fn mtu(config: &Config, facts: &Facts) -> Item {
    let (network, node) = (config.network(), config.node());
    let device = facts.link.as_ref().map(|link| link.mtu);
    let path = network.path_mtu(device, &node.addresses);
    let has_v6 = node.pod_cidrs.iter().chain(&network.cluster_cidrs);
    let has_v6 = has_v6.into_iter().any(|range| range.addr().is_ipv6());
    let smallest = SMALLEST_MTU[usize::from(has_v6)];
    let mode = network.mode.name();
    if let (Mtu::Bytes(wanted), Some(device)) = (network.mtu, device)
        && wanted > device
    {
        let detail = format!(
            "network.mtu = {wanted}, and the device carries {device}: packets are lost; raise the device's, or write \"auto\""
        );
        return item("MTU", State::Degraded, detail);
    }
    match path < smallest {
        true => item(
            "MTU",
            State::Degraded,
            format!(
                "mode {mode} leaves {path} bytes for pods, fewer than {smallest}: raise the device's"
            ),
        ),
        false => item(
            "MTU",
            State::Ok,
            format!("mode {mode} leaves {path} bytes for packets of pods"),
        ),
    }
}

/// Somebody else's tunnels by the same port.
fn overlay(config: &Config, facts: &Facts) -> Option<Item> {
    let network = config.network();
    let has_overlay = match network.mode {
        Mode::Vxlan => true,
        Mode::Routed => network.cross_subnet,
        Mode::L2 => false,
    };
    let port = network.vxlan_port;
    let is_taken = facts.ports.contains(&(port, "udp"));
    has_overlay.then(|| match is_taken {
        true => item(
            "VXLAN port",
            State::Degraded,
            format!(
                "UDP port {port} is in use{}: the switch takes its packets; remove the other overlay or choose another network.vxlan-port",
                match facts.overlays[..] {
                    [] => String::new(),
                    _ => format!(" (by {})", facts.overlays.join(", ")),
                }
            ),
        ),
        false => item("VXLAN port", State::Ok, format!("UDP port {port} is free")),
    })
}

fn masquerade(config: &Config, facts: &Facts) -> Option<Item> {
    let network = config.network();
    if !network.masquerade || network.mode == Mode::L2 {
        return None;
    }
    let range: RangeInclusive<u16> = network.masquerade_ports.first..=network.masquerade_ports.last;
    let name = "masquerade's ports";
    let text = format!("{}-{}", range.start(), range.end());
    let taken = facts.ports.iter().filter(|(port, _)| range.contains(port));
    let taken: Vec<_> = taken
        .map(|(port, protocol)| format!("{port}/{protocol}"))
        .collect();
    Some(match taken.is_empty() {
        true => item(
            name,
            State::Ok,
            format!("{text}, kept from the node's own connections"),
        ),
        false => item(
            name,
            State::Degraded,
            format!(
                "{text} hold ports of the node's own sockets, whose packets the switch takes: {}; move those, or choose another network.masquerade-ports",
                taken.join(", ")
            ),
        ),
    })
}

/// The switch forwards by the uplink itself; what leaves by other interfaces
/// is the kernel's to forward.
fn forwarding(config: &Config, facts: &Facts) -> Item {
    if config.network().mode == Mode::L2 {
        let detail = "not needed: pods have their network's own gateway";
        return item("forwarding", State::Ok, detail);
    }
    let uplink = facts.link.as_ref().map(|link| link.name.as_str());
    let others: BTreeSet<&str> = facts
        .routes
        .iter()
        .map(|(_, by)| by.as_str())
        .filter(|by| Some(*by) != uplink && *by != "lo")
        .collect();
    let others: Vec<&str> = others.into_iter().collect();
    match (facts.ip_forward.as_str(), others.is_empty()) {
        ("0", false) => item(
            "forwarding",
            State::Degraded,
            format!(
                "off: pods reach nothing behind {}; set net.ipv4.ip_forward = 1 (and net.ipv6.conf.all.forwarding)",
                others.join(", ")
            ),
        ),
        ("0", true) => item(
            "forwarding",
            State::Ok,
            "off, and not needed: the switch forwards",
        ),
        _ => item("forwarding", State::Ok, "on"),
    }
}

fn reverse_path(facts: &Facts) -> Item {
    let detail = match facts.rp_filter.as_str() {
        "1" => "strict: pods' packets come from where the routes to them lead",
        "2" => "loose",
        _ => "off",
    };
    item("rp_filter", State::Ok, detail)
}

/// Routes of others into ranges of pods.
fn routes(config: &Config, facts: &Facts) -> Item {
    let (node, network) = (config.node(), config.network());
    let ranges: Vec<IpNet> = match network.mode {
        // Pods share the link's own range.
        Mode::L2 => Vec::new(),
        Mode::Vxlan | Mode::Routed => node
            .pod_cidrs
            .iter()
            .chain(&network.cluster_cidrs)
            .copied()
            .collect(),
    };
    let is_inside = |net: &IpNet| ranges.iter().any(|range| range.contains(net));
    let foreign = facts
        .routes
        .iter()
        .filter(|(route, _)| is_inside(&route.to));
    let foreign: Vec<String> = foreign
        .map(|(route, by)| format!("{} dev {by}", route.to))
        .collect();
    match foreign.is_empty() {
        true => item("routes to pods", State::Ok, "nobody else has any"),
        false => item(
            "routes to pods",
            State::Degraded,
            format!(
                "others lead into ranges of pods: {}; remove what another network left (ip route delete …), or choose other ranges",
                foreign.join(", ")
            ),
        ),
    }
}

#[cfg(test)]
mod tests;
