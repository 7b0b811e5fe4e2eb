//! What commands print for people.

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table};
use spinlane_api::view;

use crate::check::{Report, State};

/// Columns of text where no terminal says how many there are.
const PIPE_WIDTH: u16 = 120;

/// A table without lines: a bold head, columns two spaces apart.
fn table<const N: usize>(head: [Column; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(head.map(|column| {
            Cell::new(column.name())
                .add_attribute(Attribute::Bold)
                .set_alignment(column.alignment())
        }));
    if !table.is_tty() {
        table.set_width(PIPE_WIDTH);
    }
    for (index, column) in head.into_iter().enumerate() {
        if let Some(c) = table.column_mut(index) {
            c.set_cell_alignment(column.alignment());
            c.set_padding((0, 2));
        }
    }
    table
}

#[derive(Clone, Copy)]
enum Column {
    Text(&'static str),
    Number(&'static str),
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Column::Text(name) | Column::Number(name) => name,
        }
    }

    fn alignment(self) -> CellAlignment {
        match self {
            Column::Text(_) => CellAlignment::Left,
            Column::Number(_) => CellAlignment::Right,
        }
    }
}

use Column::{Number, Text};

fn lines(table: &Table) -> String {
    let text: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    text.join("\n")
}

pub(super) fn status(status: &view::Status) -> String {
    let ready = if status.ready { "ready" } else { "not ready" };
    let frames = &status.frames;
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10} {value}\n"));
    line("node", format!("{}, {}", status.node, ready));
    line(
        "version",
        format!("{}, up {}", status.version, duration(status.uptime_s)),
    );
    line("network", status.mode.clone());
    if let Some(uplink) = &status.uplink {
        let addresses = uplink.addresses.join(", ");
        let of = format!("{}, {}, MTU {}", uplink.name, uplink.state, uplink.mtu);
        line("uplink", format!("{of}, {addresses}"));
    }
    if let Some(source) = &status.source {
        let objects = source.objects.iter();
        let objects: Vec<_> = objects
            .map(|(kind, n)| format!("{} {kind}", count(*n)))
            .collect();
        line(
            "objects",
            format!("{} in {}", objects.join(", "), source.path),
        );
    }
    line("endpoints", count(status.endpoints as u64));
    if status.connections > 0 {
        let of = format!(
            "{} of {}, {} begun outside",
            count(status.connections),
            count(status.connection_limit),
            count(status.connections_from_outside)
        );
        line("followed", of);
    }
    line(
        "snapshot",
        format!("generation {}", status.snapshot_generation),
    );
    line(
        "frames",
        format!(
            "{} free of {}, {} in use",
            count(frames.free),
            count(frames.total),
            count(frames.in_use)
        ),
    );
    line("poll", status.poll.clone());
    let mut lanes = table([
        Number("LANE"),
        Number("CORE"),
        Number("BUSY"),
        Number("RX PACKETS"),
        Number("TX PACKETS"),
        Number("FLOWS"),
        Number("HITS"),
        Number("MISSES"),
    ]);
    for lane in &status.lanes {
        lanes.add_row([
            lane.id.to_string(),
            lane.core.to_string(),
            match lane.has_ended {
                true => "ended".to_owned(),
                false => format!("{:.1} %", lane.busy_ratio * 100.0),
            },
            count(lane.rx_packets),
            count(lane.tx_packets),
            count(lane.flow_entries),
            count(lane.flow_hits),
            count(lane.flow_misses),
        ]);
    }
    let notices = status.notices.iter();
    let notices: String = notices.map(|notice| format!("! {notice}\n")).collect();
    let gap = if notices.is_empty() { "" } else { "\n" };
    format!("{text}{gap}{notices}\n{}", lines(&lanes))
}

pub(super) fn ports(ports: &[view::Port]) -> String {
    if ports.is_empty() {
        return "No port is attached; the container runtime attaches pods by spinlane-cni."
            .to_owned();
    }
    let mut rows = table([
        Text("PORT"),
        Text("KIND"),
        Text("POD"),
        Text("ADDRESSES"),
        Text("XDP"),
        Number("RX PACKETS"),
        Number("TX PACKETS"),
        Number("DROPS"),
    ]);
    for port in ports {
        let zero_copy = if port.zero_copy { ", zero copy" } else { "" };
        let mut addresses = port.addresses.clone();
        addresses.extend(port.segment.iter().map(|name| format!("segment {name}")));
        rows.add_row([
            port.name.clone(),
            kind(port.kind).to_owned(),
            pod(port),
            addresses.join("\n"),
            match &port.fault {
                Some(fault) => format!("down: {fault}"),
                None => format!("{}{zero_copy}", xdp_mode(port.xdp_mode)),
            },
            count(port.rx_packets),
            count(port.tx_packets),
            count(port.drops),
        ]);
    }
    lines(&rows)
}

fn pod(port: &view::Port) -> String {
    match (port.namespace.as_str(), port.pod.as_str()) {
        ("", "") if port.container_id.is_empty() => "-".to_owned(),
        // A container without a pod's name: as much of its id as runtimes show.
        ("", "") => port.container_id.chars().take(13).collect(),
        ("", pod) => pod.to_owned(),
        (namespace, pod) => format!("{namespace}/{pod}"),
    }
}

pub(super) fn kind(kind: view::PortKind) -> &'static str {
    match kind {
        view::PortKind::Pod => "pod",
        view::PortKind::Uplink => "uplink",
        view::PortKind::Host => "host",
    }
}

fn xdp_mode(mode: view::XdpMode) -> &'static str {
    match mode {
        view::XdpMode::Native => "native",
        view::XdpMode::Generic => "generic",
    }
}

pub(super) fn flows(flows: &[view::Flow]) -> String {
    if flows.is_empty() {
        return "No flow is remembered; lanes learn them from packets.".to_owned();
    }
    let mut rows = table([
        Number("LANE"),
        Text("PROTO"),
        Text("SOURCE"),
        Text("DESTINATION"),
        Text("IN"),
        Text("OUT"),
        Text("ACTIONS"),
        Number("PACKETS"),
        Number("IDLE"),
    ]);
    for flow in flows {
        rows.add_row([
            flow.lane.to_string(),
            flow.key.proto.clone(),
            socket(&flow.key.src, flow.key.sport, &flow.key.proto),
            socket(&flow.key.dst, flow.key.dport, &flow.key.proto),
            flow.in_port.clone(),
            flow.out.clone(),
            flow.actions.join(", "),
            count(flow.packets),
            duration(flow.idle_s),
        ]);
    }
    lines(&rows)
}

fn socket(address: &str, port: u16, proto: &str) -> String {
    match (proto, address.contains(':')) {
        ("tcp" | "udp" | "sctp", true) => format!("[{address}]:{port}"),
        ("tcp" | "udp" | "sctp", false) => format!("{address}:{port}"),
        _ => address.to_owned(),
    }
}

pub(super) fn connections(connections: &[view::Connection]) -> String {
    if connections.is_empty() {
        return "No connection is followed; masquerade makes some, and so do calls from outside."
            .to_owned();
    }
    let mut rows = table([
        Text("PROTO"),
        Text("FROM"),
        Text("TO"),
        Text("AS"),
        Text("STATE"),
        Number("PACKETS"),
        Number("IDLE"),
    ]);
    for connection in connections {
        rows.add_row([
            connection.proto.clone(),
            socket(&connection.src, connection.sport, &connection.proto),
            connection
                .backend
                .clone()
                .unwrap_or_else(|| socket(&connection.dst, connection.dport, &connection.proto)),
            connection.snat.clone().unwrap_or_else(|| "-".to_owned()),
            connection.state.clone(),
            count(connection.packets),
            duration(connection.idle_s),
        ]);
    }
    lines(&rows)
}

pub(super) fn fdb(entries: &[view::FdbEntry]) -> String {
    if entries.is_empty() {
        return "No station is known; segments learn them from packets.".to_owned();
    }
    let mut rows = table([
        Text("SEGMENT"),
        Text("MAC"),
        Text("BEHIND"),
        Text("HOW"),
        Number("AGE"),
    ]);
    for entry in entries {
        let behind = match (&entry.port, &entry.vtep) {
            (Some(port), _) => format!("port {port}"),
            (None, Some(vtep)) => format!("vtep {vtep}"),
            (None, None) => "-".to_owned(),
        };
        let (how, age) = match (entry.is_static, entry.is_held) {
            (true, false) => ("static", "-".to_owned()),
            (true, true) => ("static, held", "-".to_owned()),
            (false, true) => ("held", duration(entry.age_s)),
            (false, false) => ("learned", duration(entry.age_s)),
        };
        rows.add_row([
            entry.segment.clone(),
            entry.mac.clone(),
            behind,
            how.to_owned(),
            age,
        ]);
    }
    lines(&rows)
}

pub(super) fn routes(routes: &[view::Route]) -> String {
    let mut rows = table([
        Text("PREFIX"),
        Text("VIA"),
        Text("PORT"),
        Text("NEXT HOP"),
        Text("MAC"),
        Number("MTU"),
    ]);
    for route in routes {
        let none = || "-".to_owned();
        let next_hop = match (&route.vtep, &route.gateway) {
            (Some(vtep), Some(gateway)) if vtep != gateway => format!("{vtep} by {gateway}"),
            (Some(address), _) | (None, Some(address)) => address.clone(),
            (None, None) => none(),
        };
        let via = match route.via {
            view::RouteVia::Local => "local",
            view::RouteVia::Vtep => "vtep",
            view::RouteVia::Gateway => "gateway",
            view::RouteVia::Host => "host",
            view::RouteVia::Unreachable => "unreachable",
            view::RouteVia::Prohibited => "prohibited",
            view::RouteVia::Blackhole => "blackhole",
        };
        let mac = match (&route.mac, &route.gateway) {
            (None, Some(_)) => "unresolved".to_owned(),
            (mac, _) => mac.clone().unwrap_or_else(none),
        };
        rows.add_row([
            route.prefix.clone(),
            via.to_owned(),
            route.port.clone().unwrap_or_else(none),
            next_hop,
            mac,
            route.mtu.map_or_else(none, |mtu| mtu.to_string()),
        ]);
    }
    lines(&rows)
}

pub(super) fn drops(drops: &view::Drops) -> String {
    let mut counted: Vec<_> = drops.iter().filter(|(_, packets)| **packets > 0).collect();
    if counted.is_empty() {
        return format!("No packet was dropped for any of {} reasons.", drops.len());
    }
    counted.sort_by_key(|(name, packets)| (std::cmp::Reverse(**packets), name.to_owned()));
    let mut rows = table([Text("REASON"), Number("PACKETS")]);
    for (reason, packets) in &counted {
        rows.add_row([reason.to_string(), count(**packets)]);
    }
    let others = drops.len() - counted.len();
    format!("{}\n\n{others} other reasons are at 0.", lines(&rows))
}

pub(super) fn version(version: &view::Version) -> String {
    match &version.agent {
        Some(agent) => format!("spinlane {}\nagent    {agent}", version.version),
        None => format!("spinlane {}\nno agent answers", version.version),
    }
}

pub(super) fn check(report: &Report) -> String {
    let mut rows = table([Text("CHECK"), Text("STATE"), Text("WHAT IT MEANS")]);
    for item in &report.items {
        let state = match item.state {
            State::Ok => "ok",
            State::Degraded => "degraded",
            State::Missing => "MISSING",
        };
        rows.add_row([item.name.as_str(), state, item.detail.as_str()]);
    }
    let verdict = match report.ok {
        true => "Spinlane can run here.",
        false => "Spinlane cannot run here: what is MISSING is essential.",
    };
    format!("{}\n\n{verdict}", lines(&rows))
}

pub(super) fn cleanup(removed: &[String]) -> String {
    if removed.is_empty() {
        return "Nothing of Spinlane was here.".to_owned();
    }
    let lines: Vec<_> = removed
        .iter()
        .map(|what| format!("removed {what}"))
        .collect();
    lines.join("\n")
}

/// Digits in groups of three.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as people say them: `0.4s`, `12s`, `5m 3s`, `2h 5m`, `3d 4h`.
fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{minutes}m {}s", whole % 60),
        3600..86400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}
