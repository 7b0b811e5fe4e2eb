use std::net::Ipv4Addr;

use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::*;
use crate::views::fake::{FakeSwitch, switch};

/// Status and body of `GET path` from a server over this switch.
async fn get(switch: FakeSwitch, path: &str) -> (u16, String) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let node = NodeMetrics::new().unwrap();
    node.answered("ADD", true, std::time::Duration::from_millis(7));
    let server = MetricsServer::new(address, Arc::new(switch), &node).unwrap();
    let bound = server.address().unwrap();
    tokio::spawn(server.serve(std::future::pending()).unwrap());
    let stream = TcpStream::connect(bound).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header("host", "x")
        .body(http_body_util::Empty::<hyper::body::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn every_figure_has_its_series() {
    let (status, text) = get(switch(), "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "spinlane_port_rx_packets_total{kind=\"pod\",namespace=\"default\",pod=\"web\",port=\"sl1\"} 1234567",
        "spinlane_port_drops_total{kind=\"pod\",namespace=\"other\",pod=\"web\",port=\"sl3\"} 3",
        "spinlane_port_up{kind=\"pod\",namespace=\"default\",pod=\"web\",port=\"sl1\"} 1",
        "spinlane_port_rebuilds_total 1",
        "spinlane_uplink_outer_fragments_total 2",
        "spinlane_drops_total{reason=\"spoofed\"} 3",
        "spinlane_drops_total{reason=\"runt\"} 0",
        "spinlane_lane_busy_ratio{lane=\"0\"} 0.125",
        "spinlane_lane_last_round_age_seconds{lane=\"0\"} 0.9",
        "spinlane_flow_entries{lane=\"0\"} 17",
        "spinlane_frames{state=\"free\"} 16380",
        "spinlane_frames{state=\"in_use\"} 4",
        "spinlane_endpoints 2",
        "spinlane_connections 3",
        "spinlane_connections_from_outside 1",
        "spinlane_connections_limit 262144",
        "spinlane_uplink_up{uplink=\"eth0\"} 1",
        "spinlane_uplink_mtu_bytes{uplink=\"eth0\"} 1500",
        "spinlane_vteps 4",
        "spinlane_next_hops{state=\"resolved\"} 2",
        "spinlane_next_hops{state=\"unresolved\"} 1",
        "spinlane_source_objects{kind=\"Node\"} 5",
        "spinlane_source_last_good_read_timestamp_seconds 1700000000.5",
        "spinlane_source_read_errors_total 2",
        "spinlane_source_failing 0",
        "spinlane_stations{state=\"held\"} 1",
        "spinlane_stations{state=\"known\"} 7",
        "spinlane_notices 0",
        "spinlane_ready 1",
        "spinlane_build_info{mode=\"routed\",poll=\"adaptive\",version=\"0.1.0\"} 1",
        "spinlane_cni_request_duration_seconds_count{command=\"ADD\",result=\"ok\"} 1",
        "spinlane_cni_request_duration_seconds_count{command=\"DEL\",result=\"error\"} 0",
        "# TYPE spinlane_port_rx_packets_total counter",
        "# TYPE spinlane_frames gauge",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn health_follows_the_lanes_and_readiness_the_node() {
    assert_eq!(get(switch(), "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(switch(), "/readyz").await, (200, "ok\n".to_owned()));
    let mut stalled = switch();
    stalled.status.lanes[0].last_round_age_s = 6.0;
    let (status, why) = get(stalled, "/healthz").await;
    assert_eq!(
        (status, why.as_str()),
        (503, "lanes [0] have not gone round for 5 s\n")
    );
    let mut ended = switch();
    ended.status.lanes[0].has_ended = true;
    assert_eq!(get(ended, "/healthz").await.0, 503);
    let mut stopping = switch();
    stopping.status.ready = false;
    assert_eq!(get(stopping, "/readyz").await.0, 503);
    assert_eq!(get(switch(), "/other").await.0, 404);
}

#[tokio::test]
async fn a_port_without_sockets_is_down() {
    let mut broken = switch();
    broken.ports[0].fault = Some("port sl1: no frames".to_owned());
    let (_, text) = get(broken, "/metrics").await;
    let line = "spinlane_port_up{kind=\"pod\",namespace=\"default\",pod=\"web\",port=\"sl1\"} 0";
    assert!(text.lines().any(|l| l == line), "{text}");
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let taken = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let node = NodeMetrics::new().unwrap();
    let error = MetricsServer::new(address, Arc::new(switch()), &node).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("cannot serve metrics on {address}: ")),
        "{text}"
    );
}

#[tokio::test]
async fn the_dashboard_asks_for_metrics_that_there_are() {
    const DASHBOARD: &str = include_str!("../../../deploy/grafana-dashboard.json");
    serde_json::from_str::<serde_json::Value>(DASHBOARD).unwrap();
    let (_, text) = get(switch(), "/metrics").await;
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let asked: Vec<_> = DASHBOARD
        .match_indices("spinlane_")
        .map(|(at, _)| DASHBOARD[at..].split(|c| !is_name(c)).next().unwrap())
        .collect();
    assert!(asked.len() > 10, "{asked:?}");
    for name in asked {
        assert!(
            text.lines()
                .any(|line| line.starts_with(&format!("{name}{{"))
                    || line.starts_with(&format!("{name} "))),
            "{name} is not served"
        );
    }
}
