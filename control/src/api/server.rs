//! The serving side: one route a document, and the capture stream.

use std::fs;
use std::future::Future;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use spinlane_api::view::{ApiError, Version};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::blocking;
use crate::capture::{Filter, Recording, record};
use crate::views::{Views, find_port};

/// Blocks of a capture that wait for a slow reader before packets are lost
/// further up.
const CAPTURE_BACKLOG: usize = 64;
/// Bytes that a capture keeps of each packet: an Ethernet header at least, at
/// most more than the longest frame chain that a lane carries.
pub const SNAPLENS: RangeInclusive<i64> = 14..=262_144;

type Shared = Arc<dyn Views>;

/// Makes the socket file with mode 0600, replacing a stale one. The caller
/// holds the run directory's lock, so nobody listens there.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
    };
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the socket's own mode, so that nobody can connect between
    // bind and a later chmod.
    nix::sys::stat::fchmod(&fd, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(128)?)?;
    UnixListener::from_std(StdUnixListener::from(fd))
}

/// Serves until `stopped` resolves.
pub async fn serve(
    listener: UnixListener,
    views: Shared,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(views))
        .with_graceful_shutdown(stopped)
        .await
}

/// The routes.
pub fn router(views: Shared) -> Router {
    Router::new()
        .route(
            "/v1/status",
            get(|s: State<Shared>| show(s, |v| v.status())),
        )
        .route("/v1/ports", get(|s: State<Shared>| show(s, |v| v.ports())))
        .route("/v1/flows", get(|s: State<Shared>| show(s, |v| v.flows())))
        .route(
            "/v1/connections",
            get(|s: State<Shared>| show(s, |v| v.connections())),
        )
        .route("/v1/fdb", get(|s: State<Shared>| show(s, |v| v.fdb())))
        .route(
            "/v1/routes",
            get(|s: State<Shared>| show(s, |v| v.routes())),
        )
        .route("/v1/drops", get(|s: State<Shared>| show(s, |v| v.drops())))
        .route("/v1/version", get(version))
        .route("/v1/capture", get(capture))
        .fallback(unknown)
        .method_not_allowed_fallback(refuse_method)
        .with_state(views)
}

async fn show<T: Serialize + Send + 'static>(
    State(views): State<Shared>,
    view: impl FnOnce(&dyn Views) -> T + Send + 'static,
) -> Response {
    match blocking(move || view(&*views)).await {
        Some(document) => Json(document).into_response(),
        None => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the agent could not answer: see its log".to_owned(),
        ),
    }
}

async fn version() -> Json<Version> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Json(Version {
        version: version.clone(),
        agent: Some(version),
    })
}

async fn unknown(uri: Uri) -> Response {
    failure(
        StatusCode::NOT_FOUND,
        format!(
            "nothing is at {}: ask for /v1/status and the like",
            uri.path()
        ),
    )
}

async fn refuse_method(uri: Uri) -> Response {
    failure(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} can only be read: use GET", uri.path()),
    )
}

fn failure(status: StatusCode, error: String) -> Response {
    (status, Json(ApiError { error })).into_response()
}

/// What `/v1/capture` takes.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureQuery {
    /// Port as an operator names it; every port when absent.
    pub port: Option<String>,
    /// Filter expression.
    pub filter: Option<String>,
    /// Packets after which the capture ends.
    pub count: Option<u64>,
    /// Bytes kept of each packet.
    pub snaplen: Option<u32>,
}

async fn capture(
    State(views): State<Shared>,
    query: Result<Query<CaptureQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(e) => return failure(StatusCode::BAD_REQUEST, e.body_text()),
    };
    let filter = match query.filter.as_deref().map(Filter::parse).transpose() {
        Ok(filter) => filter,
        Err(e) => return failure(StatusCode::BAD_REQUEST, e.to_string()),
    };
    let (least, most) = SNAPLENS.into_inner();
    let snaplen = query.snaplen.map_or(most, i64::from);
    if !SNAPLENS.contains(&snaplen) {
        return failure(
            StatusCode::BAD_REQUEST,
            format!("snaplen {snaplen} is out of range: give {least} to {most} bytes"),
        );
    }
    let snaplen = snaplen as usize;
    let port = query.port;
    let started = blocking(move || start(&*views, port.as_deref(), snaplen)).await;
    let packets = match started {
        Some(Ok(packets)) => packets,
        Some(Err(response)) => return *response,
        None => {
            return failure(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the capture could not start: see the agent's log".to_owned(),
            );
        }
    };
    let recording = Recording {
        filter,
        expression: query.filter,
        count: query.count,
        snaplen,
    };
    let (reader, blocks) = mpsc::channel(CAPTURE_BACKLOG);
    // A thread of its own: a capture lasts as long as its reader wants.
    let recorder = std::thread::Builder::new()
        .name("capture".to_owned())
        .spawn(move || {
            let mut packets = packets;
            record(&recording, &mut *packets, &reader);
        });
    match recorder {
        Ok(_) => stream(blocks),
        Err(e) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the capture could not start a thread: {e}"),
        ),
    }
}

type Started = Result<Box<dyn crate::views::Packets>, Box<Response>>;

fn start(views: &dyn Views, port: Option<&str>, snaplen: usize) -> Started {
    let gone = |error: String| Box::new(failure(StatusCode::NOT_FOUND, error));
    let port = match port {
        None => None,
        Some(name) => Some(find_port(&views.ports(), name).map_err(gone)?.name.clone()),
    };
    views.capture(port.as_deref(), snaplen).ok_or_else(|| {
        gone("the port is being removed: `spinlane ports` lists the others".to_owned())
    })
}

fn stream(receiver: mpsc::Receiver<Vec<u8>>) -> Response {
    let blocks = futures::stream::unfold(receiver, |mut receiver| async move {
        let block = receiver.recv().await?;
        Some((
            Ok::<_, std::convert::Infallible>(Bytes::from(block)),
            receiver,
        ))
    });
    (
        [(header::CONTENT_TYPE, "application/x-pcapng")],
        Body::from_stream(blocks),
    )
        .into_response()
}
