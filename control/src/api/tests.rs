use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use http_body_util::BodyExt;
use spinlane_api::{API_SOCKET, view};
use tokio::sync::oneshot;

use super::client::{Client, ClientError};
use super::server::{CaptureQuery, bind, serve};
use crate::views::fake::{FakeSwitch, switch};
use crate::views::{Packet, Views};

/// A served fake switch; stops with the value.
struct Served {
    dir: tempfile::TempDir,
    _stop: oneshot::Sender<()>,
}

impl Served {
    fn start(switch: FakeSwitch) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let listener = bind(&dir.path().join(API_SOCKET)).unwrap();
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(serve(listener, Arc::new(switch), async {
            let _ = stopped.await;
        }));
        Served { dir, _stop: stop }
    }

    fn client(&self) -> Client {
        Client::new(self.dir.path())
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join(API_SOCKET)
    }
}

#[tokio::test]
async fn documents_come_through_unchanged() {
    let expected = switch();
    let served = Served::start(switch());
    let client = served.client();
    let status: view::Status = client.get("status").await.unwrap();
    assert_eq!(status, expected.status);
    let ports: Vec<view::Port> = client.get("ports").await.unwrap();
    assert_eq!(ports, expected.ports);
    let flows: Vec<view::Flow> = client.get("flows").await.unwrap();
    assert_eq!(flows, expected.flows());
    let fdb: Vec<view::FdbEntry> = client.get("fdb").await.unwrap();
    assert_eq!(fdb, expected.fdb());
    let routes: Vec<view::Route> = client.get("routes").await.unwrap();
    assert_eq!(routes, expected.routes());
    let drops: view::Drops = client.get("drops").await.unwrap();
    assert_eq!(drops, expected.drops());
    let version: view::Version = client.get("version").await.unwrap();
    assert_eq!(version.agent.as_deref(), Some(env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn the_socket_is_for_root_alone_from_the_start() {
    let served = Served::start(switch());
    let mode = std::fs::metadata(served.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // A stale file is replaced.
    bind(&served.socket()).unwrap();
}

#[tokio::test]
async fn mistakes_are_told_in_one_line() {
    let served = Served::start(switch());
    let client = served.client();
    let refused = |error: ClientError| match error {
        ClientError::Refused(text) => text,
        other => panic!("{other}"),
    };
    let error = client.get::<view::Status>("backends").await.unwrap_err();
    assert_eq!(
        refused(error),
        "nothing is at /v1/backends: ask for /v1/status and the like"
    );
    let cases = [
        (
            CaptureQuery {
                port: Some("web".to_owned()),
                ..CaptureQuery::default()
            },
            "\"web\" means several ports: choose one of sl1, sl3",
        ),
        (
            CaptureQuery {
                filter: Some("tcp & é".to_owned()),
                ..CaptureQuery::default()
            },
            "filter \"tcp & é\": \"&\" where \"and\", \"or\" or the end was expected",
        ),
        (
            CaptureQuery {
                snaplen: Some(3),
                ..CaptureQuery::default()
            },
            "snaplen 3 is out of range: give 14 to 262144 bytes",
        ),
    ];
    for (query, expected) in cases {
        let error = client.capture(&query).await.unwrap_err();
        assert_eq!(refused(error), expected);
    }
}

#[tokio::test]
async fn a_missing_agent_is_told_from_a_failing_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::new(dir.path())
        .get::<view::Status>("status")
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::NoAgent { .. }), "{error}");
    assert!(error.to_string().contains("api.sock"), "{error}");
    let served = Served::start(switch());
    // A document of another schema.
    let error = served.client().get::<Vec<u8>>("status").await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn a_capture_streams_and_ends_by_count() {
    let fake = switch();
    let packet = |port: &str| Packet {
        at: std::time::SystemTime::UNIX_EPOCH,
        port: port.to_owned(),
        inbound: true,
        len: 60,
        drop: None,
        data: vec![7; 60],
    };
    *fake.packets.lock().unwrap() = vec![packet("sl1"), packet("sl2"), packet("sl1")].into();
    let served = Served::start(fake);
    let query = CaptureQuery {
        port: Some("default/web".to_owned()),
        count: Some(2),
        ..CaptureQuery::default()
    };
    let body = served.client().capture(&query).await.unwrap();
    let bytes = body.collect().await.unwrap().to_bytes();
    let mut blocks = crate::capture::Blocks::default();
    blocks.take(&bytes, |_| Ok(())).unwrap();
    assert_eq!(blocks.packets(), 2);
}
