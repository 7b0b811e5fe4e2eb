//! Prometheus metrics at `/metrics`, liveness at `/healthz`, readiness at
//! `/readyz`.
//!
//! Lanes keep plain counters; they are read when somebody scrapes. A series
//! ends with the port that it is about.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use spinlane_api::view;
use tokio::net::TcpListener;

use crate::api::blocking;
use crate::node::metrics::Metrics as NodeMetrics;
use crate::views::{Views, unwell};

/// The metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address is taken or not ours.
    #[error(
        "cannot serve metrics on {address}: {source}; choose another metrics.listen, or \"none\""
    )]
    Listen {
        /// `metrics.listen`.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// A collector clashes with another.
    #[error("cannot collect metrics: {0}")]
    Collect(#[from] prometheus::Error),
}

/// Listens; [`MetricsServer::serve`] answers.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    listener: StdTcpListener,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    registry: Registry,
    views: Arc<dyn Views>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl MetricsServer {
    /// Takes the address and registers the collectors.
    pub fn new(
        address: SocketAddr,
        views: Arc<dyn Views>,
        node: &NodeMetrics,
    ) -> Result<MetricsServer, MetricsError> {
        let listener =
            listen(address).map_err(|source| MetricsError::Listen { address, source })?;
        let registry = Registry::new();
        registry.register(Box::new(SwitchCollector::new(Arc::clone(&views))?))?;
        registry.register(Box::new(node.cni_durations.clone()))?;
        Ok(MetricsServer {
            address,
            listener,
            shared: Shared { registry, views },
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stopped` resolves. Call it inside the runtime.
    pub fn serve(
        &self,
        stopped: impl Future<Output = ()> + Send + 'static,
    ) -> Result<impl Future<Output = io::Result<()>> + Send + 'static, MetricsError> {
        let listener = self
            .listener
            .try_clone()
            .and_then(TcpListener::from_std)
            .map_err(|source| MetricsError::Listen {
                address: self.address,
                source,
            })?;
        let routes = router(self.shared.clone());
        Ok(async move {
            axum::serve(listener, routes)
                .with_graceful_shutdown(stopped)
                .await
        })
    }
}

/// Binds also while no interface holds the address yet: loopback may be down
/// in a young namespace.
fn listen(address: SocketAddr) -> io::Result<StdTcpListener> {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt,
        socket, sockopt,
    };
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(StdTcpListener::from(fd))
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let text = blocking(move || TextEncoder::new().encode_to_string(&shared.registry.gather()));
    match text.await {
        Some(Ok(text)) => {
            let format = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
            (format, text).into_response()
        }
        Some(Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    let Some(unwell) = blocking(move || unwell(&shared.views.status())).await else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "no answer\n").into_response();
    };
    match unwell {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match blocking(move || shared.views.status().ready).await {
        Some(true) => "ok\n".into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "pods cannot attach\n").into_response(),
    }
}

/// Everything that is read from the switch at scrape time. The vectors are
/// made anew for each scrape, so that nothing of a port that is gone remains.
struct SwitchCollector {
    views: Arc<dyn Views>,
    descriptions: Vec<Desc>,
}

const PORT: &[&str] = &["port", "namespace", "pod", "kind"];
const LANE: &[&str] = &["lane"];

struct Series {
    port_rx_packets: IntCounterVec,
    port_rx_bytes: IntCounterVec,
    port_tx_packets: IntCounterVec,
    port_tx_bytes: IntCounterVec,
    port_drops: IntCounterVec,
    port_up: IntGaugeVec,
    port_rebuilds: IntCounterVec,
    outer_fragments: IntCounterVec,
    drops: IntCounterVec,
    lane_busy: GaugeVec,
    lane_rx_packets: IntCounterVec,
    lane_tx_packets: IntCounterVec,
    lane_sleeps: IntCounterVec,
    lane_naps: IntCounterVec,
    lane_events_lost: IntCounterVec,
    lane_round_age: GaugeVec,
    flow_entries: IntGaugeVec,
    flow_hits: IntCounterVec,
    flow_misses: IntCounterVec,
    flow_evictions: IntCounterVec,
    frames: IntGaugeVec,
    endpoints: IntGaugeVec,
    connections: IntGaugeVec,
    connections_from_outside: IntGaugeVec,
    connection_limit: IntGaugeVec,
    uplink_up: IntGaugeVec,
    uplink_mtu: IntGaugeVec,
    vteps: IntGaugeVec,
    next_hops: IntGaugeVec,
    stations: IntGaugeVec,
    source_objects: IntGaugeVec,
    source_last_good_read: GaugeVec,
    source_errors: IntCounterVec,
    source_failing: IntGaugeVec,
    notices: IntGaugeVec,
    generation: IntGaugeVec,
    ready: IntGaugeVec,
    uptime: GaugeVec,
    build: IntGaugeVec,
}

impl Series {
    fn new() -> Result<Series, prometheus::Error> {
        let counter =
            |name: &str, help: &str, labels| IntCounterVec::new(Opts::new(name, help), labels);
        let gauge =
            |name: &str, help: &str, labels| IntGaugeVec::new(Opts::new(name, help), labels);
        let real = |name: &str, help: &str, labels| GaugeVec::new(Opts::new(name, help), labels);
        Ok(Series {
            port_rx_packets: counter(
                "spinlane_port_rx_packets_total",
                "Packets received from a port.",
                PORT,
            )?,
            port_rx_bytes: counter(
                "spinlane_port_rx_bytes_total",
                "Bytes received from a port.",
                PORT,
            )?,
            port_tx_packets: counter(
                "spinlane_port_tx_packets_total",
                "Packets sent to a port.",
                PORT,
            )?,
            port_tx_bytes: counter(
                "spinlane_port_tx_bytes_total",
                "Bytes sent to a port.",
                PORT,
            )?,
            port_drops: counter(
                "spinlane_port_drops_total",
                "Packets of a port that were dropped.",
                PORT,
            )?,
            port_up: gauge(
                "spinlane_port_up",
                "Whether a port carries packets; 0 while its sockets cannot be had.",
                PORT,
            )?,
            port_rebuilds: counter(
                "spinlane_port_rebuilds_total",
                "Times that a port got fresh sockets.",
                &[],
            )?,
            outer_fragments: counter(
                "spinlane_uplink_outer_fragments_total",
                "Fragments of the overlay's outer packets, left to the kernel.",
                &[],
            )?,
            drops: counter(
                "spinlane_drops_total",
                "Packets dropped, by reason.",
                &["reason"],
            )?,
            lane_busy: real(
                "spinlane_lane_busy_ratio",
                "Share of the last second that a lane had packets in hand.",
                LANE,
            )?,
            lane_rx_packets: counter(
                "spinlane_lane_rx_packets_total",
                "Packets received by a lane.",
                LANE,
            )?,
            lane_tx_packets: counter(
                "spinlane_lane_tx_packets_total",
                "Packets transmitted by a lane.",
                LANE,
            )?,
            lane_sleeps: counter(
                "spinlane_lane_sleeps_total",
                "Times that a lane went to sleep.",
                LANE,
            )?,
            lane_naps: counter(
                "spinlane_lane_naps_total",
                "Times that a lane napped under a flood.",
                LANE,
            )?,
            lane_events_lost: counter(
                "spinlane_lane_events_lost_total",
                "Notices to control that were lost.",
                LANE,
            )?,
            lane_round_age: real(
                "spinlane_lane_last_round_age_seconds",
                "Seconds since a lane last went round.",
                LANE,
            )?,
            flow_entries: gauge(
                "spinlane_flow_entries",
                "Entries of a lane's flow tables.",
                LANE,
            )?,
            flow_hits: counter(
                "spinlane_flow_hits_total",
                "Packets that a flow entry decided.",
                LANE,
            )?,
            flow_misses: counter(
                "spinlane_flow_misses_total",
                "Packets that had to be classified.",
                LANE,
            )?,
            flow_evictions: counter(
                "spinlane_flow_evictions_total",
                "Flow entries pushed out for others.",
                LANE,
            )?,
            frames: gauge(
                "spinlane_frames",
                "Frames of the frame memory, by state.",
                &["state"],
            )?,
            endpoints: gauge("spinlane_endpoints", "Attached pod interfaces.", &[])?,
            connections: gauge(
                "spinlane_connections",
                "Connections that the node follows.",
                &[],
            )?,
            connections_from_outside: gauge(
                "spinlane_connections_from_outside",
                "Connections that somebody outside began with a pod's own address.",
                &[],
            )?,
            connection_limit: gauge("spinlane_connections_limit", "Connections that fit.", &[])?,
            uplink_up: gauge(
                "spinlane_uplink_up",
                "Whether the node's way out carries packets.",
                &["uplink"],
            )?,
            uplink_mtu: gauge(
                "spinlane_uplink_mtu_bytes",
                "MTU of the node's way out; 0 while it is not attached.",
                &["uplink"],
            )?,
            vteps: gauge("spinlane_vteps", "Remote ends of the overlay.", &[])?,
            next_hops: gauge(
                "spinlane_next_hops",
                "Neighbours on the uplink that packets go to, by whether their hardware address is known.",
                &["state"],
            )?,
            stations: gauge(
                "spinlane_stations",
                "Stations of the layer-2 segments: known ones, and of them those that move to and fro and are held.",
                &["state"],
            )?,
            source_objects: gauge(
                "spinlane_source_objects",
                "Objects of the cluster in force, by kind.",
                &["kind"],
            )?,
            source_last_good_read: real(
                "spinlane_source_last_good_read_timestamp_seconds",
                "When all objects were last read without an error.",
                &[],
            )?,
            source_errors: counter(
                "spinlane_source_read_errors_total",
                "Times that a file or the directory of objects could not be read.",
                &[],
            )?,
            source_failing: gauge(
                "spinlane_source_failing",
                "Files, or the directory, that cannot be read now.",
                &[],
            )?,
            notices: gauge(
                "spinlane_notices",
                "Things that are not as they should be; `spinlane status` names them.",
                &[],
            )?,
            generation: gauge(
                "spinlane_snapshot_generation",
                "Generation of the snapshot in force.",
                &[],
            )?,
            ready: gauge("spinlane_ready", "Whether pods can attach.", &[])?,
            uptime: real(
                "spinlane_uptime_seconds",
                "Seconds since the agent started.",
                &[],
            )?,
            build: gauge(
                "spinlane_build_info",
                "Always 1; the labels say what runs.",
                &["version", "mode", "poll"],
            )?,
        })
    }

    fn fill(&self, status: &view::Status, ports: &[view::Port], drops: &view::Drops) {
        for port in ports {
            let kind = match port.kind {
                view::PortKind::Pod => "pod",
                view::PortKind::Uplink => "uplink",
                view::PortKind::Host => "host",
            };
            let labels: [&str; 4] = [&port.name, &port.namespace, &port.pod, kind];
            self.port_rx_packets
                .with_label_values(&labels)
                .inc_by(port.rx_packets);
            self.port_rx_bytes
                .with_label_values(&labels)
                .inc_by(port.rx_bytes);
            self.port_tx_packets
                .with_label_values(&labels)
                .inc_by(port.tx_packets);
            self.port_tx_bytes
                .with_label_values(&labels)
                .inc_by(port.tx_bytes);
            self.port_drops
                .with_label_values(&labels)
                .inc_by(port.drops);
            self.port_up
                .with_label_values(&labels)
                .set(i64::from(port.fault.is_none()));
        }
        self.port_rebuilds
            .with_label_values::<&str>(&[])
            .inc_by(status.port_rebuilds);
        self.outer_fragments
            .with_label_values::<&str>(&[])
            .inc_by(status.outer_fragments);
        for (reason, packets) in drops {
            self.drops.with_label_values(&[reason]).inc_by(*packets);
        }
        for lane in &status.lanes {
            self.fill_lane(lane);
        }
        let gauge = |gauge: &IntGaugeVec, labels: &[&str], value: u64| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            gauge.with_label_values(labels).set(value);
        };
        gauge(&self.frames, &["free"], status.frames.free);
        gauge(&self.frames, &["in_use"], status.frames.in_use);
        gauge(&self.frames, &["total"], status.frames.total);
        gauge(&self.endpoints, &[], status.endpoints as u64);
        gauge(&self.connections, &[], status.connections);
        gauge(
            &self.connections_from_outside,
            &[],
            status.connections_from_outside,
        );
        gauge(&self.connection_limit, &[], status.connection_limit);
        if let Some(uplink) = &status.uplink {
            let is_up = u64::from(uplink.state == "up");
            gauge(&self.uplink_up, &[&uplink.name], is_up);
            gauge(&self.uplink_mtu, &[&uplink.name], u64::from(uplink.mtu));
        }
        gauge(&self.vteps, &[], status.vteps);
        gauge(&self.next_hops, &["resolved"], status.next_hops.resolved);
        gauge(
            &self.next_hops,
            &["unresolved"],
            status.next_hops.unresolved,
        );
        gauge(&self.stations, &["known"], status.stations.known);
        gauge(&self.stations, &["held"], status.stations.held);
        if let Some(source) = &status.source {
            self.fill_source(source);
        }
        gauge(&self.notices, &[], status.notices.len() as u64);
        gauge(&self.generation, &[], status.snapshot_generation);
        gauge(&self.ready, &[], u64::from(status.ready));
        gauge(
            &self.build,
            &[&status.version, &status.mode, &status.poll],
            1,
        );
        self.uptime
            .with_label_values::<&str>(&[])
            .set(status.uptime_s);
    }

    fn fill_source(&self, source: &view::Source) {
        for (kind, objects) in &source.objects {
            let objects = i64::try_from(*objects).unwrap_or(i64::MAX);
            self.source_objects.with_label_values(&[kind]).set(objects);
        }
        self.source_last_good_read
            .with_label_values::<&str>(&[])
            .set(source.last_good_read_s);
        self.source_errors
            .with_label_values::<&str>(&[])
            .inc_by(source.read_errors);
        self.source_failing
            .with_label_values::<&str>(&[])
            .set(source.errors.len() as i64);
    }

    fn fill_lane(&self, lane: &view::Lane) {
        let id = lane.id.to_string();
        let labels = [id.as_str()];
        self.lane_busy
            .with_label_values(&labels)
            .set(lane.busy_ratio);
        self.lane_rx_packets
            .with_label_values(&labels)
            .inc_by(lane.rx_packets);
        self.lane_tx_packets
            .with_label_values(&labels)
            .inc_by(lane.tx_packets);
        self.lane_sleeps
            .with_label_values(&labels)
            .inc_by(lane.sleeps);
        self.lane_naps.with_label_values(&labels).inc_by(lane.naps);
        self.lane_events_lost
            .with_label_values(&labels)
            .inc_by(lane.events_lost);
        self.lane_round_age
            .with_label_values(&labels)
            .set(lane.last_round_age_s);
        let entries = i64::try_from(lane.flow_entries).unwrap_or(i64::MAX);
        self.flow_entries.with_label_values(&labels).set(entries);
        self.flow_hits
            .with_label_values(&labels)
            .inc_by(lane.flow_hits);
        self.flow_misses
            .with_label_values(&labels)
            .inc_by(lane.flow_misses);
        self.flow_evictions
            .with_label_values(&labels)
            .inc_by(lane.flow_evictions);
    }

    fn all(&self) -> [&dyn Collector; 39] {
        [
            &self.port_rx_packets,
            &self.port_rx_bytes,
            &self.port_tx_packets,
            &self.port_tx_bytes,
            &self.port_drops,
            &self.port_up,
            &self.port_rebuilds,
            &self.outer_fragments,
            &self.drops,
            &self.lane_busy,
            &self.lane_rx_packets,
            &self.lane_tx_packets,
            &self.lane_sleeps,
            &self.lane_naps,
            &self.lane_events_lost,
            &self.lane_round_age,
            &self.flow_entries,
            &self.flow_hits,
            &self.flow_misses,
            &self.flow_evictions,
            &self.frames,
            &self.endpoints,
            &self.connections,
            &self.connections_from_outside,
            &self.connection_limit,
            &self.uplink_up,
            &self.uplink_mtu,
            &self.vteps,
            &self.next_hops,
            &self.stations,
            &self.source_objects,
            &self.source_last_good_read,
            &self.source_errors,
            &self.source_failing,
            &self.notices,
            &self.generation,
            &self.ready,
            &self.uptime,
            &self.build,
        ]
    }
}

impl SwitchCollector {
    fn new(views: Arc<dyn Views>) -> Result<SwitchCollector, prometheus::Error> {
        let series = Series::new()?;
        let descriptions = series
            .all()
            .iter()
            .flat_map(|c| c.desc())
            .cloned()
            .collect();
        Ok(SwitchCollector {
            views,
            descriptions,
        })
    }
}

impl Collector for SwitchCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(series) = Series::new() else {
            // They could be made when the collector was: names do not change.
            return Vec::new();
        };
        series.fill(
            &self.views.status(),
            &self.views.ports(),
            &self.views.drops(),
        );
        series.all().iter().flat_map(|c| c.collect()).collect()
    }
}

#[cfg(test)]
mod tests;
