//! The running switch: the engine as the node uses it ([`Lanes`]), and both
//! together as others see them ([`Live`]).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use spinlane_api::{CONNECTIONS_FILE, view};
use spinlane_dataplane::drops::DropReason;
use spinlane_dataplane::engine::{
    Attached, Capture, CaptureSpec, CapturedPacket, Direction, Engine, EngineConfig, HostSide,
    PollMode, PortError, PortSpec, Traffic, UplinkSpec, XdpChoice, XdpMode,
};
use spinlane_dataplane::event::Event;
use spinlane_dataplane::pipeline::{FlowRecord, protocol_name};
use spinlane_dataplane::snapshot::Snapshot;
use spinlane_dataplane::tables::connection::{ConnectionRecord, End};
use spinlane_dataplane::types::PortId;

use crate::config::{self, Config};
use crate::node::Node;
use crate::node::bound::Binding;
use crate::node::host_port::HOST_SIDE;
use crate::node::switch::{Switch, SwitchError, WayOut};
use crate::views::{Packet, Packets, Views, port_notices};

/// The engine that a configuration asks for.
pub(super) fn engine_config(lanes: &config::Lanes, run_dir: &Path) -> EngineConfig {
    EngineConfig {
        cores: lanes.cores.clone(),
        poll: match lanes.poll {
            config::PollMode::Adaptive => PollMode::Adaptive,
            config::PollMode::Busy => PollMode::Busy,
            config::PollMode::Interrupt => PollMode::Interrupt,
        },
        frames: lanes.frames,
        xdp: match lanes.xdp_mode {
            config::XdpMode::Auto => XdpChoice::Auto,
            config::XdpMode::Generic => XdpChoice::Generic,
            config::XdpMode::Native => XdpChoice::Native,
        },
        connections: Some(run_dir.join(CONNECTIONS_FILE)),
    }
}

/// The engine as the node's data path.
pub(super) struct Lanes {
    engine: Arc<Engine>,
}

impl Lanes {
    pub(super) fn new(engine: Arc<Engine>) -> Lanes {
        Lanes { engine }
    }
}

impl Switch for Lanes {
    fn veth_queues(&self) -> u32 {
        self.engine.veth_queues()
    }

    fn attach(&self, id: PortId, ifindex: u32, name: &str) -> Result<Binding, SwitchError> {
        let spec = PortSpec {
            id,
            ifindex,
            name: name.to_owned(),
        };
        self.engine.attach(spec).map(binding).map_err(failure)
    }

    fn attach_uplink(&self, id: PortId, way_out: WayOut<'_>) -> Result<Binding, SwitchError> {
        let attached = self.engine.attach_uplink(UplinkSpec {
            port: PortSpec {
                id,
                ifindex: way_out.ifindex,
                name: way_out.name.to_owned(),
            },
            queues: way_out.offer.queues,
            receive_ring: way_out.receive_ring,
            zero_copy: !way_out.is_veth,
            xdp: match way_out.is_veth {
                true => XdpChoice::Auto,
                false => XdpChoice::Native,
            },
            cuts_datagrams: way_out.offer.cuts_datagrams,
            cuts_segments: way_out.offer.cuts_segments,
            is_bridged: way_out.is_bridged,
            host_side: way_out.host.map(|host| HostSide {
                port_ifindex: host.port.ifindex,
                far_end: HOST_SIDE.to_owned(),
            }),
        });
        attached.map(binding).map_err(failure)
    }

    fn detach(&self, id: PortId) -> Result<(), SwitchError> {
        self.engine.detach(id).map_err(failure)
    }

    fn lead_streams(&self, name: &str, ifindex: u32) -> Result<(), SwitchError> {
        let led = self.engine.lead_streams(name, ifindex);
        led.map_err(|error| SwitchError::Failed(error.to_string()))
    }

    fn leads_streams(&self, name: &str, ifindex: u32) -> Result<bool, SwitchError> {
        let leads = self.engine.leads_streams(name, ifindex);
        leads.map_err(|error| SwitchError::Failed(error.to_string()))
    }

    fn publish(&self, snapshot: Snapshot) {
        self.engine.publish(snapshot);
    }

    fn settle(&self) {
        self.engine.settle_connections();
    }

    fn traffic(&self) -> Traffic {
        self.engine.traffic()
    }

    fn drops(&self, id: PortId) -> u64 {
        self.engine.port_stats(id).map_or(0, |stats| stats.drops)
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.engine.event_fd()
    }

    fn drain_events(&self, out: &mut Vec<Event>) {
        self.engine.drain_events(out);
    }
}

fn binding(attached: Attached) -> Binding {
    Binding {
        native: attached.xdp_mode == XdpMode::Native,
        zero_copy: attached.zero_copy,
        lanes: attached.lanes,
    }
}

fn failure(error: PortError) -> SwitchError {
    let text = error.to_string();
    match error {
        PortError::Frames { .. } => SwitchError::Exhausted(text),
        _ => SwitchError::Failed(text),
    }
}

/// Engine and node, running.
pub(super) struct Live {
    name: String,
    mode: config::Mode,
    poll: config::PollMode,
    started: Instant,
    ready: AtomicBool,
    engine: Arc<Engine>,
    node: Arc<RwLock<Node>>,
}

impl Live {
    pub(super) fn new(config: &Config, engine: Arc<Engine>, node: Node, started: Instant) -> Live {
        Live {
            name: config.node().name.clone(),
            mode: config.network().mode,
            poll: config.lanes().poll,
            started,
            ready: AtomicBool::new(true),
            engine,
            node: Arc::new(RwLock::new(node)),
        }
    }

    /// Ends the node, then the lanes; blocks until both have.
    pub(super) fn stop(&self) {
        // Relaxed: a flag that nothing else depends on.
        self.ready.store(false, Ordering::Relaxed);
        self.node
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .stop();
        self.engine.stop();
    }

    fn node(&self) -> RwLockReadGuard<'_, Node> {
        read(&self.node)
    }

    /// A port's name, or its number when it is gone.
    fn port_name(&self, id: PortId) -> String {
        self.node()
            .port_name(id)
            .unwrap_or_else(|| format!("port-{}", id.0))
    }
}

impl Views for Live {
    fn status(&self) -> view::Status {
        let stats = self.engine.stats();
        let connections = self.engine.connection_count();
        let lanes = stats.lanes.iter().enumerate().map(|(id, lane)| view::Lane {
            id,
            core: lane.core,
            busy_ratio: lane.busy_ratio,
            rx_packets: lane.rx_packets,
            tx_packets: lane.tx_packets,
            flow_entries: lane.flow_entries,
            flow_hits: lane.flow_hits,
            flow_misses: lane.flow_misses,
            flow_evictions: lane.flow_evictions,
            sleeps: lane.sleeps,
            naps: lane.naps,
            events_lost: lane.events_lost,
            last_round_age_s: lane.last_round_age_s,
            has_ended: !lane.is_running,
        });
        let mut notices = port_notices(&self.ports());
        let (node, snapshot) = (self.node(), self.engine.snapshot());
        notices.extend(node.notices());
        let next_hops = |is_resolved: bool| {
            let all = snapshot.next_hops.iter().flatten();
            all.filter(|hop| hop.mac.is_some() == is_resolved).count() as u64
        };
        view::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.name.clone(),
            mode: self.mode.name().to_owned(),
            ready: self.ready.load(Ordering::Relaxed),
            uptime_s: self.started.elapsed().as_secs_f64(),
            snapshot_generation: u64::from(snapshot.generation.0),
            poll: self.poll.name().to_owned(),
            lanes: lanes.collect(),
            frames: view::Frames {
                total: stats.frames.total,
                free: stats.frames.free,
                in_use: stats.frames.in_use,
            },
            endpoints: node.endpoints(),
            connections: connections.all,
            connections_from_outside: connections.from_outside,
            connection_limit: connections.limit,
            port_rebuilds: stats.rebuilds,
            outer_fragments: self.engine.outer_fragments(),
            uplink: node.uplink(),
            vteps: snapshot.vteps.iter().flatten().count() as u64,
            next_hops: view::NextHops {
                resolved: next_hops(true),
                unresolved: next_hops(false),
            },
            stations: node.stations(),
            source: node.source(),
            ended: node.ended(),
            notices,
        }
    }

    fn ports(&self) -> Vec<view::Port> {
        let rows = self.node().ports();
        let mut ports: Vec<_> = rows
            .into_iter()
            .map(|(id, mut port)| {
                if let Some(stats) = self.engine.port_stats(id) {
                    port.rx_packets = stats.rx_packets;
                    port.rx_bytes = stats.rx_bytes;
                    port.tx_packets = stats.tx_packets;
                    port.tx_bytes = stats.tx_bytes;
                    port.drops = stats.drops;
                }
                port.fault = self.engine.port_fault(id);
                port
            })
            .collect();
        ports.sort_by(|a, b| order(a).cmp(&order(b)));
        ports
    }

    fn flows(&self) -> Vec<view::Flow> {
        let mut names = HashMap::new();
        let mut name = |id: PortId| {
            let known = names.entry(id).or_insert_with(|| self.port_name(id));
            known.clone()
        };
        let records = self.engine.flows();
        records
            .into_iter()
            .map(|record: FlowRecord| view::Flow {
                lane: record.lane,
                in_port: name(record.in_port),
                key: view::FlowKey {
                    src: record.src,
                    dst: record.dst,
                    proto: record.proto,
                    sport: record.sport,
                    dport: record.dport,
                },
                actions: record.actions,
                out: record.out.map(&mut name).unwrap_or_default(),
                packets: record.packets,
                bytes: record.bytes,
                idle_s: record.idle_ns as f64 / 1e9,
            })
            .collect()
    }

    fn connections(&self) -> Vec<view::Connection> {
        self.engine.connections().iter().map(connection).collect()
    }

    fn fdb(&self) -> Vec<view::FdbEntry> {
        self.node().fdb()
    }

    fn routes(&self) -> Vec<view::Route> {
        self.node().routes()
    }

    fn drops(&self) -> view::Drops {
        let counts = self.engine.stats().drops;
        DropReason::ALL
            .iter()
            .map(|reason| (reason.name().to_owned(), counts[reason.index()]))
            .collect()
    }

    fn capture(&self, port: Option<&str>, snaplen: usize) -> Option<Box<dyn Packets>> {
        let names = PortNames::new(Arc::clone(&self.node));
        let only = port.map(str::to_owned);
        let port = match port {
            None => None,
            Some(name) => Some(names.find(name)?),
        };
        let capture = self
            .engine
            .capture(CaptureSpec { port, snaplen })
            .inspect_err(|error| tracing::error!(%error, "cannot start a capture"))
            .ok()?;
        // The port may have gone before the capture began, and another have
        // its number. From here on the capture ends with it.
        if port.is_some_and(|id| self.node().port_name(id) != only) {
            return None;
        }
        Some(Box::new(LivePackets {
            capture,
            names,
            only,
        }))
    }
}

fn connection(record: &ConnectionRecord) -> view::Connection {
    let ConnectionRecord {
        original, reply, ..
    } = record;
    let translated = |was: End, is: End| {
        let end = SocketAddr::new(is.address.ip(), is.port);
        (was != is).then(|| end.to_string())
    };
    view::Connection {
        proto: protocol_name(original.protocol),
        src: original.source.address.ip().to_string(),
        sport: original.source.port,
        dst: original.destination.address.ip().to_string(),
        dport: original.destination.port,
        state: record.state.name().to_owned(),
        backend: translated(original.destination, reply.source),
        snat: translated(original.source, reply.destination),
        idle_s: record.idle_ms as f64 / 1e3,
        packets: record.packets,
    }
}

/// Ways out first, then pods by name; the same after a restart, when ports
/// have other numbers.
fn order(port: &view::Port) -> (u8, &str, &str, &str, &str) {
    let kind = match port.kind {
        view::PortKind::Uplink => 0,
        view::PortKind::Host => 1,
        view::PortKind::Pod => 2,
    };
    (kind, &port.namespace, &port.pod, &port.ifname, &port.name)
}

fn read(node: &RwLock<Node>) -> RwLockReadGuard<'_, Node> {
    node.read().unwrap_or_else(PoisonError::into_inner)
}

/// Names of ports for as long as a capture lasts: ports come, go, and leave
/// their numbers to others.
struct PortNames {
    node: Arc<RwLock<Node>>,
    names: HashMap<PortId, String>,
    read: Instant,
}

impl PortNames {
    /// How old a name may be.
    const AGE: Duration = Duration::from_secs(1);
    /// How soon an unknown port is worth another look.
    const PAUSE: Duration = Duration::from_millis(50);

    fn new(node: Arc<RwLock<Node>>) -> PortNames {
        let mut names = PortNames {
            node,
            names: HashMap::new(),
            read: Instant::now(),
        };
        names.refresh();
        names
    }

    fn refresh(&mut self) {
        let ports = read(&self.node).ports();
        self.names = ports
            .into_iter()
            .map(|(id, port)| (id, port.name))
            .collect();
        self.read = Instant::now();
    }

    fn find(&self, name: &str) -> Option<PortId> {
        let (id, _) = self.names.iter().find(|(_, known)| *known == name)?;
        Some(*id)
    }

    fn of(&mut self, id: PortId) -> String {
        let age = self.read.elapsed();
        let young = age > Self::PAUSE && !self.names.contains_key(&id);
        if young || age > Self::AGE {
            self.refresh();
        }
        match self.names.get(&id) {
            Some(name) => name.clone(),
            // Gone, or not yet known.
            None => format!("port-{}", id.0),
        }
    }
}

struct LivePackets {
    capture: Capture,
    names: PortNames,
    /// Name of the one port that it is of.
    only: Option<String>,
}

impl LivePackets {
    fn at_hand(&mut self) -> Option<Packet> {
        let packet = self.capture.next()?;
        Some(self.named(packet))
    }

    fn named(&mut self, packet: CapturedPacket) -> Packet {
        let port = match &self.only {
            // The number may be another's by the time that this is read.
            Some(name) => name.clone(),
            None => self.names.of(packet.port),
        };
        Packet {
            at: packet.at,
            port,
            inbound: packet.direction == Direction::In,
            len: packet.len as usize,
            drop: packet.drop.map(DropReason::name),
            data: packet.data,
        }
    }
}

impl Packets for LivePackets {
    fn next(&mut self, timeout: Duration) -> Option<Packet> {
        if let Some(packet) = self.at_hand() {
            return Some(packet);
        }
        if timeout.is_zero() {
            return None;
        }
        let mut fds = [PollFd::new(self.capture.fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, timeout);
        // Silenced before looking, so that what comes meanwhile wakes again.
        self.capture.acknowledge();
        self.at_hand()
    }

    fn lost(&self) -> u64 {
        self.capture.lost()
    }

    fn is_over(&self) -> bool {
        self.capture.is_over()
    }
}
