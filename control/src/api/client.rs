//! The asking side: one request over the agent's socket.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use spinlane_api::API_SOCKET;
use spinlane_api::view::ApiError;
use tokio::net::UnixStream;

use super::server::CaptureQuery;

/// Longest wait for an answer to begin; views take milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or whoever does keeps silent.
    #[error(
        "no agent answers at {socket}: {reason}; start one with `spinlane agent`, or name its --run-dir"
    )]
    NoAgent {
        /// The socket that was tried.
        socket: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The socket is somebody else's.
    #[error("may not ask the agent at {0}: run this command as root")]
    Forbidden(PathBuf),
    /// The agent said no.
    #[error("{0}")]
    Refused(String),
    /// The connection broke, or the answer is not what this version knows.
    #[error("the agent's answer to {question} broke off: {reason}; see the agent's log")]
    Broken {
        /// What was asked.
        question: String,
        /// What happened.
        reason: String,
    },
}

/// The agent of one run directory.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The agent whose run directory this is; nothing is opened yet.
    pub fn new(run_dir: &Path) -> Client {
        Client {
            socket: run_dir.join(API_SOCKET),
        }
    }

    /// Asks for a document, such as `status`.
    pub async fn get<T: DeserializeOwned>(&self, document: &str) -> Result<T, ClientError> {
        let question = format!("/v1/{document}");
        let broken = |reason: String| ClientError::Broken {
            question: question.clone(),
            reason,
        };
        let response = self.ask(&question).await?;
        let body = tokio::time::timeout(PATIENCE, response.into_body().collect())
            .await
            .map_err(|_| broken("it did not end in time".to_owned()))?
            .map_err(|e| broken(e.to_string()))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|e| broken(e.to_string()))
    }

    /// Starts a capture; the body is a pcapng file as long as the capture.
    pub async fn capture(&self, query: &CaptureQuery) -> Result<Incoming, ClientError> {
        let mut question = "/v1/capture?".to_owned();
        push(&mut question, "port", query.port.as_deref());
        push(&mut question, "filter", query.filter.as_deref());
        push(
            &mut question,
            "count",
            query.count.map(|n| n.to_string()).as_deref(),
        );
        push(
            &mut question,
            "snaplen",
            query.snaplen.map(|n| n.to_string()).as_deref(),
        );
        Ok(self.ask(&question).await?.into_body())
    }

    async fn ask(&self, question: &str) -> Result<Response<Incoming>, ClientError> {
        let uri: Uri = question
            .parse()
            .map_err(|e| ClientError::Refused(format!("cannot ask for {question}: {e}")))?;
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| self.unreachable(&e))?;
        let answered = tokio::time::timeout(PATIENCE, exchange(stream, uri)).await;
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(e)) => return Err(self.silent(e.to_string())),
            Err(_) => {
                return Err(self.silent(format!("it kept silent for {} s", PATIENCE.as_secs())));
            }
        };
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await;
        let bytes = body.map(|b| b.to_bytes()).unwrap_or_default();
        Err(match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(refusal) => ClientError::Refused(refusal.error),
            Err(_) => ClientError::Refused(format!("the agent refused {question}: {status}")),
        })
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.socket.clone()),
            _ => self.silent(error.to_string()),
        }
    }

    fn silent(&self, reason: String) -> ClientError {
        ClientError::NoAgent {
            socket: self.socket.clone(),
            reason,
        }
    }
}

async fn exchange(stream: UnixStream, uri: Uri) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = uri;
    let host = HeaderValue::from_static("spinlane");
    request.headers_mut().insert(HOST, host);
    sender.send_request(request).await
}

fn push(question: &mut String, key: &str, value: Option<&str>) {
    let Some(value) = value else { return };
    if !question.ends_with('?') {
        question.push('&');
    }
    question.push_str(key);
    question.push('=');
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            question.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(question, "%{byte:02X}");
        }
    }
}
