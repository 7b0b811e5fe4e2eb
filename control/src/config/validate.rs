//! From the raw file to a [`Config`] that holds by construction: defaults,
//! ranges, and what keys must agree on with each other.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use spinlane_dataplane::types::{MacAddr, is_routable};
use toml::Value;

use super::agreement::{agree, warnings};
use super::document::{Document, nearest};
use super::place::{At, Checked, at};
use super::raw::{RawConfig, RawLanes, RawMetrics, RawNetwork, RawNode, RawSegment, RawSource};
use super::{
    Config, Environment, Interface, Lanes, Metrics, Mode, Mtu, Network, Node, Offloads, PollMode,
    PortRange, SHARED_SEGMENT, SMALLEST_MTU, Segment, Source, Station, StationPlace, Uplink,
    XdpMode, overlap, serves_no_pods,
};

/// Frames of 4 KiB with `lanes.frames = "auto"`: 64 MiB.
const DEFAULT_FRAMES: usize = 16384;
/// What `lanes.frames` may be.
const FRAMES: std::ops::RangeInclusive<i64> = 512..=1 << 20;
/// VNIs have 24 bits (RFC 7348 section 5); 0 is no network.
const VNIS: std::ops::RangeInclusive<i64> = 1..=(1 << 24) - 1;
/// Longest IP packet.
const LARGEST_MTU: i64 = 65535;
/// One lane's index is a byte, and no node gives away so many cores.
const MOST_LANES: usize = 64;
const DEFAULT_MANIFESTS: &str = "/etc/spinlane/manifests";
const DEFAULT_MASQUERADE_PORTS: PortRange = PortRange {
    first: 61000,
    last: 65535,
};

pub(super) fn validate(
    raw: &RawConfig,
    document: &Document<'_>,
    environment: &Environment,
) -> Checked<Config> {
    let network = network(&raw.network, document)?;
    let mode = network.mode;
    let uplink = uplink(&raw.node, document)?;
    let underlay = underlay(&uplink, environment);
    let node = node(&raw.node, uplink, underlay.as_ref(), document, environment)?;
    let config = Config {
        node,
        network,
        lanes: lanes(&raw.lanes, document, environment)?,
        segments: segments(&raw.segments, mode, document)?,
        source: source(&raw.source, document)?,
        metrics: metrics(&raw.metrics, document)?,
        underlay,
        warnings: warnings(raw, document),
    };
    agree(&config, document)?;
    Ok(config)
}

fn node(
    raw: &RawNode,
    uplink: Uplink,
    underlay: Option<&Interface>,
    document: &Document<'_>,
    environment: &Environment,
) -> Checked<Node> {
    let name = raw
        .name
        .clone()
        .or_else(|| environment.node_name.clone())
        .unwrap_or_else(|| environment.host_name.clone());
    let at = at!(document, "node", "name");
    if !is_object_name(&name) {
        return Err(at.complain(format!(
            "{name:?} is no name of a node: write 1 to 253 letters, digits, '-' or '.'"
        )));
    }
    let addresses = match (&raw.address, &raw.addresses) {
        (Some(_), Some(_)) => {
            let at = at!(document, "node", "address");
            return Err(at.complain("give either address or addresses, not both".to_owned()));
        }
        (Some(one), None) => {
            one_a_family(std::slice::from_ref(one), at!(document, "node", "address"))?
        }
        (None, Some(several)) => one_a_family(several, at!(document, "node", "addresses"))?,
        (None, None) => first_of_each_family(underlay),
    };
    let at = at!(document, "node", "pod-cidrs");
    let pod_cidrs = cidrs(raw.pod_cidrs.as_deref(), at)?;
    Ok(Node {
        name,
        addresses,
        names_addresses: raw.address.is_some() || raw.addresses.is_some(),
        uplink,
        pod_cidrs,
    })
}

fn is_object_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_'))
        && name.bytes().any(|c| c.is_ascii_alphanumeric())
}

fn one_a_family(texts: &[String], at: At<'_>) -> Checked<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for text in texts {
        let address = address(text, at)?;
        if let Some(other) = addresses
            .iter()
            .find(|a: &&IpAddr| a.is_ipv4() == address.is_ipv4())
        {
            return Err(at.complain(format!(
                "{other} and {address} are of one family: give at most one address a family"
            )));
        }
        addresses.push(address);
    }
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

fn address(text: &str, at: At<'_>) -> Checked<IpAddr> {
    let address: IpAddr = text.parse().map_err(|_| {
        at.complain(format!(
            "{text:?} is not an IP address: write it as in 172.31.0.1 or fd00::1"
        ))
    })?;
    if !is_routable(address) {
        return Err(at.complain(format!("{address} cannot be a station's address")));
    }
    Ok(address)
}

fn first_of_each_family(underlay: Option<&Interface>) -> Vec<IpAddr> {
    let Some(interface) = underlay else {
        return Vec::new();
    };
    let v4 = interface.addresses.iter().find(|a| a.is_ipv4());
    let v6 = interface.addresses.iter().find(|a| a.is_ipv6());
    v4.into_iter().chain(v6).copied().collect()
}

fn uplink(raw: &RawNode, document: &Document<'_>) -> Checked<Uplink> {
    match raw.uplink.as_deref() {
        None | Some("auto") => Ok(Uplink::Auto),
        Some("none") => Ok(Uplink::None),
        Some(name) if is_interface_name(name) => Ok(Uplink::Named(name.to_owned())),
        Some(name) => Err(at!(document, "node", "uplink").complain(format!(
            "{name:?} is no interface name: write \"auto\", \"none\" or a name of 1 to 15 bytes"
        ))),
    }
}

/// As the kernel's `dev_valid_name`.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|c| c == b'/' || c == b':' || c.is_ascii_whitespace() || c == 0)
}

fn underlay(uplink: &Uplink, environment: &Environment) -> Option<Interface> {
    environment
        .interfaces
        .iter()
        .find(|interface| match uplink {
            Uplink::Auto => interface.default_route,
            Uplink::None => false,
            Uplink::Named(name) => interface.name == *name,
        })
        .cloned()
}

fn network(raw: &RawNetwork, document: &Document<'_>) -> Checked<Network> {
    let mode = match &raw.mode {
        None => Mode::Vxlan,
        Some(text) => choice(
            text,
            &[
                ("vxlan", Mode::Vxlan),
                ("routed", Mode::Routed),
                ("l2", Mode::L2),
            ],
            at!(document, "network", "mode"),
        )?,
    };
    let egress_addresses = raw
        .egress_addresses
        .iter()
        .flatten()
        .map(|text| address(text, at!(document, "network", "egress-addresses")))
        .collect::<Checked<_>>()?;
    let gateways = match (&raw.gateway, &raw.gateways) {
        (Some(_), Some(_)) => {
            let at = at!(document, "network", "gateway");
            return Err(at.complain("give either gateway or gateways, not both".to_owned()));
        }
        (Some(one), None) => one_a_family(
            std::slice::from_ref(one),
            at!(document, "network", "gateway"),
        )?,
        (None, several) => one_a_family(
            several.as_deref().unwrap_or_default(),
            at!(document, "network", "gateways"),
        )?,
    };
    Ok(Network {
        mode,
        cluster_cidrs: cidrs(
            raw.cluster_cidrs.as_deref(),
            at!(document, "network", "cluster-cidrs"),
        )?,
        service_cidrs: cidrs(
            raw.service_cidrs.as_deref(),
            at!(document, "network", "service-cidrs"),
        )?,
        vni: vni(raw.vni, at!(document, "network", "vni"))?.unwrap_or(1),
        vxlan_port: vxlan_port(raw.vxlan_port, at!(document, "network", "vxlan-port"))?,
        mtu: mtu(raw.mtu.as_ref(), at!(document, "network", "mtu"))?,
        masquerade: raw.masquerade.unwrap_or(true),
        masquerade_exclude: cidrs(
            raw.masquerade_exclude.as_deref(),
            at!(document, "network", "masquerade-exclude"),
        )?,
        masquerade_ports: match raw.masquerade_ports.as_deref() {
            None => DEFAULT_MASQUERADE_PORTS,
            Some(text) => port_range(text, at!(document, "network", "masquerade-ports"))?,
        },
        egress_addresses,
        cross_subnet: raw.cross_subnet.unwrap_or(false),
        gateways,
    })
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)], at: At<'_>) -> Checked<T> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<_> = choices
        .iter()
        .map(|(name, _)| format!("{name:?}"))
        .collect();
    let hint = nearest(text, choices.iter().map(|(name, _)| *name))
        .map(|near| format!("; did you mean {near:?}?"))
        .unwrap_or_default();
    Err(at.complain(format!("{text:?} is not one of {}{hint}", names.join(", "))))
}

fn cidrs(texts: Option<&[String]>, at: At<'_>) -> Checked<Vec<IpNet>> {
    let mut nets: Vec<IpNet> = Vec::new();
    for text in texts.unwrap_or_default() {
        let net: IpNet = text.parse().map_err(|_| {
            at.complain(format!(
                "{text:?} is no address range: write it as in 10.244.1.0/24 or fd00:10:244:1::/64"
            ))
        })?;
        if net.addr() != net.network() {
            return Err(at.complain(format!(
                "{text} has bits set behind its prefix: write {}",
                net.trunc()
            )));
        }
        if let Some(other) = nets.iter().find(|other| overlap(other, &net)) {
            return Err(at.complain(format!("{other} and {net} overlap: remove one")));
        }
        nets.push(net);
    }
    Ok(nets)
}

fn vni(raw: Option<i64>, at: At<'_>) -> Checked<Option<u32>> {
    match raw {
        None => Ok(None),
        Some(vni) if VNIS.contains(&vni) => Ok(u32::try_from(vni).ok()),
        Some(vni) => Err(at.complain(format!(
            "{vni} is no VNI: give a number from 1 to {} (24 bits)",
            VNIS.end()
        ))),
    }
}

fn vxlan_port(raw: Option<i64>, at: At<'_>) -> Checked<u16> {
    let port = raw.unwrap_or(4789);
    u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| {
            at.complain(format!(
                "{port} is no UDP port: give a number from 1 to 65535"
            ))
        })
}

fn mtu(raw: Option<&Value>, at: At<'_>) -> Checked<Mtu> {
    let smallest = i64::from(SMALLEST_MTU[0]);
    match raw {
        None => Ok(Mtu::Auto),
        Some(Value::String(text)) if text == "auto" => Ok(Mtu::Auto),
        Some(Value::Integer(bytes)) if (smallest..=LARGEST_MTU).contains(bytes) => {
            Ok(u32::try_from(*bytes).map_or(Mtu::Auto, Mtu::Bytes))
        }
        Some(other) => Err(at.complain(format!(
            "{other} is no MTU: write \"auto\" or a number of bytes from {smallest} to {LARGEST_MTU}"
        ))),
    }
}

fn port_range(text: &str, at: At<'_>) -> Checked<PortRange> {
    let parsed = text.split_once('-').and_then(|(first, last)| {
        Some(PortRange {
            first: first.trim().parse().ok()?,
            last: last.trim().parse().ok()?,
        })
    });
    match parsed {
        Some(range) if range.first >= 1024 && range.first <= range.last => Ok(range),
        _ => Err(at.complain(format!(
            "{text:?} is no range of ports: write FIRST-LAST from 1024 to 65535, as in \"61000-65535\""
        ))),
    }
}

fn lanes(raw: &RawLanes, document: &Document<'_>, environment: &Environment) -> Checked<Lanes> {
    let at = at!(document, "lanes", "poll");
    let poll = match raw.poll.as_deref() {
        None => PollMode::Adaptive,
        Some(text) => choice(
            text,
            &[
                ("adaptive", PollMode::Adaptive),
                ("busy", PollMode::Busy),
                ("interrupt", PollMode::Interrupt),
            ],
            at,
        )?,
    };
    let xdp_mode = match raw.xdp_mode.as_deref() {
        None => XdpMode::Auto,
        Some(text) => choice(
            text,
            &[
                ("auto", XdpMode::Auto),
                ("generic", XdpMode::Generic),
                ("native", XdpMode::Native),
            ],
            at!(document, "lanes", "xdp-mode"),
        )?,
    };
    let offloads = match raw.offloads.as_deref() {
        None => Offloads::Auto,
        Some(text) => choice(
            text,
            &[("auto", Offloads::Auto), ("off", Offloads::Off)],
            at!(document, "lanes", "offloads"),
        )?,
    };
    Ok(Lanes {
        cores: cores(
            raw.cores.as_ref(),
            at!(document, "lanes", "cores"),
            environment,
        )?,
        poll,
        frames: frames(raw.frames.as_ref(), at!(document, "lanes", "frames"))?,
        xdp_mode,
        offloads,
    })
}

fn cores(raw: Option<&Value>, at: At<'_>, environment: &Environment) -> Checked<Vec<usize>> {
    let allowed = &environment.allowed_cores;
    let list = match raw {
        None => return Ok(vec![allowed.last().copied().unwrap_or(0)]),
        Some(Value::String(text)) if text == "auto" => {
            return Ok(vec![allowed.last().copied().unwrap_or(0)]);
        }
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= MOST_LANES => list,
        Some(other) => {
            return Err(at.complain(format!(
                "{other} is no choice of cores: write \"auto\" or a list of 1 to {MOST_LANES} CPU numbers, as in [1, 2]"
            )));
        }
    };
    let mut cores = Vec::new();
    for item in list {
        let core = item
            .as_integer()
            .and_then(|core| usize::try_from(core).ok())
            .ok_or_else(|| {
                at.complain(format!("{item} is no CPU number: write it as in [1, 2]"))
            })?;
        if !allowed.contains(&core) {
            return Err(at.complain(format!(
                "this process may not run on CPU {core}: choose among {}",
                ranges(allowed)
            )));
        }
        if cores.contains(&core) {
            return Err(at.complain(format!(
                "CPU {core} stands twice: lanes do not share a core"
            )));
        }
        cores.push(core);
    }
    Ok(cores)
}

/// `0-3,8` for a sorted list.
fn ranges(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *core => *last = *core,
            _ => parts.push((*core, *core)),
        }
    }
    let parts: Vec<_> = parts
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

fn frames(raw: Option<&Value>, at: At<'_>) -> Checked<usize> {
    match raw {
        None => Ok(DEFAULT_FRAMES),
        Some(Value::String(text)) if text == "auto" => Ok(DEFAULT_FRAMES),
        Some(Value::Integer(frames)) if FRAMES.contains(frames) => {
            Ok(usize::try_from(*frames).unwrap_or(DEFAULT_FRAMES))
        }
        Some(other) => Err(at.complain(format!(
            "{other} is no number of frames: write \"auto\" or a number from {} to {}",
            FRAMES.start(),
            FRAMES.end()
        ))),
    }
}

fn segments(raw: &[RawSegment], mode: Mode, document: &Document<'_>) -> Checked<Vec<Segment>> {
    let mut names = HashSet::new();
    let mut vnis = HashSet::new();
    let mut segments = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let segment = segment(raw, index, mode, document)?;
        if !names.insert(segment.name.clone()) {
            return Err(at!(document, "segments", index, "name").complain(format!(
                "two segments are named {:?}: give each a name of its own",
                segment.name
            )));
        }
        if let Some(vni) = segment.vni.filter(|vni| !vnis.insert(*vni)) {
            return Err(at!(document, "segments", index, "vni").complain(format!(
                "two segments have VNI {vni}: give each one of its own"
            )));
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn segment(
    raw: &RawSegment,
    index: usize,
    mode: Mode,
    document: &Document<'_>,
) -> Checked<Segment> {
    let at = at!(document, "segments", index, "name");
    let name = raw
        .name
        .clone()
        .ok_or_else(|| at.complain("a segment needs a name: write name = \"blue\"".to_owned()))?;
    if !is_object_name(&name) || name.len() > 63 {
        return Err(at.complain(format!(
            "{name:?} is no name of a segment: write 1 to 63 letters, digits, '-' or '.'"
        )));
    }
    let is_shared = mode == Mode::L2 && name == SHARED_SEGMENT;
    for (key, is_set) in [("vni", raw.vni.is_some()), ("cidrs", raw.cidrs.is_some())] {
        if is_shared && is_set {
            return Err(at!(document, "segments", index, key).complain(format!(
                "has no meaning in segment {name:?}, which is the uplink's own network in mode \"l2\": remove it, node.pod-cidrs says which addresses pods get there"
            )));
        }
    }
    let mut stations: Vec<Station> = Vec::new();
    for (entry, raw) in raw.stations.iter().flatten().enumerate() {
        let at = at!(document, "segments", index, "static", entry);
        let station = station(raw, at)?;
        if stations.iter().any(|other| other.mac == station.mac) {
            return Err(at.complain(format!("{} stands twice: remove one", station.mac)));
        }
        stations.push(station);
    }
    let at = at!(document, "segments", index, "cidrs");
    let cidrs = cidrs(raw.cidrs.as_deref(), at)?;
    if let Some(why) = cidrs.iter().find_map(serves_no_pods) {
        return Err(at.complain(why));
    }
    Ok(Segment {
        name,
        vni: vni(raw.vni, at!(document, "segments", index, "vni"))?,
        cidrs,
        // On the node's own network pods are held to what is theirs.
        guard: raw.guard.unwrap_or(is_shared),
        stations,
    })
}

fn station(raw: &super::raw::RawStation, at: At<'_>) -> Checked<Station> {
    let text = raw.mac.as_deref().ok_or_else(|| {
        at.complain(
            "an entry needs a mac: write {mac = \"02:00:00:00:00:01\", port = \"NAME\"}".to_owned(),
        )
    })?;
    let mac = MacAddr::from_str(text).map_err(|e| at.complain(e.to_string()))?;
    if !mac.is_unicast() {
        return Err(at.complain(format!("{mac} is no station's address: a group or zero")));
    }
    let place = match (&raw.port, &raw.vtep) {
        (Some(port), None) if !port.is_empty() => StationPlace::Port(port.clone()),
        (None, Some(vtep)) => StationPlace::Vtep(address(vtep, at)?),
        _ => {
            return Err(at.complain(format!(
                "{mac} needs one place: write either port = \"NAME\" or vtep = \"ADDRESS\""
            )));
        }
    };
    Ok(Station { mac, at: place })
}

fn source(raw: &RawSource, document: &Document<'_>) -> Checked<Source> {
    let path = PathBuf::from(raw.path.as_deref().unwrap_or(DEFAULT_MANIFESTS));
    let kubernetes = match raw.kind.as_deref() {
        None => false,
        Some(text) => choice(
            text,
            &[("kubernetes", true), ("manifests", false)],
            at!(document, "source", "kind"),
        )?,
    };
    let at = at!(document, "source", "path");
    match (kubernetes, raw.path.is_some()) {
        (true, true) => Err(at.complain("kind \"kubernetes\" takes no path: remove it".to_owned())),
        (true, false) => Ok(Source::Kubernetes),
        (false, _) if path.is_absolute() => Ok(Source::Manifests(path)),
        (false, _) => Err(at.complain(format!(
            "{} is relative: write the whole path from /",
            path.display()
        ))),
    }
}

fn metrics(raw: &RawMetrics, document: &Document<'_>) -> Checked<Metrics> {
    let listen = match raw.listen.as_deref() {
        None => Some(Metrics::DEFAULT_LISTEN),
        Some("none") => None,
        Some(text) => Some(text.parse().map_err(|_| {
            at!(document, "metrics", "listen").complain(format!(
                "{text:?} is no address to listen on: write ADDRESS:PORT as in \"127.0.0.1:9465\", or \"none\""
            ))
        })?),
    };
    Ok(Metrics { listen })
}
