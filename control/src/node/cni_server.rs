//! The socket of the CNI plugin: one connection, one question, one answer.
//!
//! Only root gets in (mode 0600, and the peer's credentials are looked at).
//! Each connection has a thread of its own, so calls about different
//! attachments overlap; a panic becomes an answer, and ADD has undone itself
//! by then.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use spinlane_api::CNI_SOCKET;
use spinlane_api::cni::{Failure, MAX_MESSAGE_BYTES, Request, Response, code};

use super::Core;
use super::sequel::Sequel;

/// How long a peer may take to ask and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Calls served at the same time.
const CONNECTIONS: usize = 256;
/// How long the last requests may take when the node stops.
const LAST_REQUESTS: Duration = Duration::from_millis(800);
/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Why the plugin cannot reach us.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No socket.
    #[error("cannot listen at {path}: {source}")]
    Listen {
        /// The socket.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// Another agent.
    #[error("another agent answers at {0}: stop that one or give this one a --run-dir of its own")]
    InUse(String),
}

/// The listening socket.
pub struct Server {
    core: Arc<Core>,
    listener: UnixListener,
    path: PathBuf,
    /// Calls that are served now, a thread each.
    serving: Arc<AtomicUsize>,
}

impl Server {
    /// Makes the socket; from here on the plugin may connect.
    pub(crate) fn bind(core: Arc<Core>) -> Result<Server, ServerError> {
        let path = core.setup().run_dir.join(CNI_SOCKET);
        if UnixStream::connect(&path).is_ok() {
            return Err(ServerError::InUse(path.display().to_string()));
        }
        // Bound under another name and renamed when its mode is right, so
        // that nobody ever finds a socket with a wider one.
        let aside = path.with_extension("new");
        let make = || -> io::Result<UnixListener> {
            std::fs::create_dir_all(&core.setup().run_dir)?;
            if let Err(e) = std::fs::remove_file(&aside)
                && e.kind() != io::ErrorKind::NotFound
            {
                return Err(e);
            }
            let listener = UnixListener::bind(&aside)?;
            std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            std::fs::rename(&aside, &path)?;
            Ok(listener)
        };
        let listener = make().map_err(|source| ServerError::Listen {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Server {
            core,
            listener,
            path,
            serving: Arc::default(),
        })
    }

    /// Serves until the node stops; then removes the socket and waits a
    /// moment for the last answers.
    pub fn run(self) {
        while !self.core.stopping() {
            let mut fds = [
                PollFd::new(&self.core.stop, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            if poll(&mut fds, None).is_err() {
                continue;
            }
            loop {
                match self.listener.accept() {
                    Ok((stream, _)) => self.serve(stream),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        tracing::error!(%error, "cannot accept a call of the CNI plugin");
                        std::thread::sleep(Duration::from_millis(50));
                        break;
                    }
                }
            }
        }
        let _ = std::fs::remove_file(&self.path);
        let deadline = Instant::now() + LAST_REQUESTS;
        while self.serving.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn serve(&self, mut stream: UnixStream) {
        let serving = Counted::begin(&self.serving);
        if serving.count > CONNECTIONS {
            let failure = refuse(code::TRY_AGAIN, "the agent is busy", "try again later");
            // A peer that left needs no answer.
            let _ = answer(&mut stream, &Response::Failed(failure));
            return;
        }
        let core = Arc::clone(&self.core);
        let spawned = std::thread::Builder::new()
            .name("cni".to_owned())
            .stack_size(1 << 20)
            .spawn(move || {
                if let Err(error) = exchange(&core, stream, serving) {
                    tracing::warn!(%error, "a call of the CNI plugin broke off");
                }
            });
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread for a call of the CNI plugin");
        }
    }
}

/// One of those that are counted, until it is dropped.
pub(super) struct Counted {
    total: Arc<AtomicUsize>,
    count: usize,
}

impl Counted {
    pub(super) fn begin(total: &Arc<AtomicUsize>) -> Counted {
        let count = total.fetch_add(1, Ordering::AcqRel) + 1;
        Counted {
            total: Arc::clone(total),
            count,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.total.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers a call. What an ADD leaves to do takes no place: it is queued.
pub(super) fn exchange(core: &Core, mut stream: UnixStream, serving: Counted) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    if !peer.uid.is_root() {
        let failure = refuse(
            code::INVALID_ENVIRONMENT,
            "only root may attach pods",
            "run the plugin as root",
        );
        return answer(&mut stream, &Response::Failed(failure));
    }
    let started = Instant::now();
    match read_request(&mut stream) {
        Ok((request, netns)) => {
            let command = command(&request);
            let handled = catch_unwind(AssertUnwindSafe(|| handle(core, &request, netns)));
            let (response, sequel) = handled.unwrap_or_else(|_| {
                let failure = refuse(
                    code::IO_FAILURE,
                    &format!("{command} panicked in the agent"),
                    "see the agent's log",
                );
                (Response::Failed(failure), None)
            });
            let failed = matches!(response, Response::Failed(_));
            core.metrics.answered(command, !failed, started.elapsed());
            if let Response::Failed(failure) = &response {
                tracing::warn!(
                    command,
                    code = failure.code,
                    details = failure.details,
                    "{}",
                    failure.msg
                );
            }
            let answered = answer(&mut stream, &response);
            drop(stream);
            if let Some(sequel) = sequel {
                core.sequels.leave(sequel);
            }
            drop(serving);
            answered
        }
        Err(Unreadable::Io(error)) => Err(error),
        Err(Unreadable::Refused(failure)) => answer(&mut stream, &Response::Failed(failure)),
    }
}

fn answer(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn refuse(code: u32, msg: &str, details: &str) -> Failure {
    Failure {
        code,
        msg: msg.to_owned(),
        details: details.to_owned(),
    }
}

fn command(request: &Request) -> &'static str {
    match request {
        Request::Add(_) | Request::Address(_) => "ADD",
        Request::Del(_) => "DEL",
        Request::Check(_) => "CHECK",
        Request::Gc { .. } => "GC",
        Request::Status { .. } => "STATUS",
    }
}

/// Carries a request out. An ADD that succeeds has a sequel, for when it is
/// answered.
fn handle(core: &Core, request: &Request, netns: Option<OwnedFd>) -> (Response, Option<Sequel>) {
    let mut sequel = None;
    let outcome = match request {
        Request::Add(add) | Request::Address(add) => match pod_netns(netns) {
            Ok(netns) => {
                let added = match request {
                    Request::Address(_) => core.give_addresses(add, netns.as_fd()),
                    _ => core.add(add, netns.as_fd()),
                };
                if added.is_ok() {
                    sequel = Sequel::begin(core, &add.attachment, netns);
                }
                added.map(Response::Added)
            }
            Err(failure) => return (Response::Failed(failure), None),
        },
        Request::Check(check) => match pod_netns(netns) {
            Ok(netns) => core.check(check, netns.as_fd()).map(|()| Response::Done),
            Err(failure) => return (Response::Failed(failure), None),
        },
        Request::Del(attachment) => core.delete(attachment).map(|()| Response::Done),
        Request::Gc { network, keep } => core.collect(network, keep).map(|()| Response::Done),
        Request::Status { segment, delegated } => core
            .status(segment.as_ref(), *delegated)
            .map(|()| Response::Done),
    };
    let response = outcome.unwrap_or_else(|error| Response::Failed(error.failure()));
    (response, sequel)
}

/// The namespace that came along, when it is one.
fn pod_netns(netns: Option<OwnedFd>) -> Result<OwnedFd, Failure> {
    let invalid = |details: &str| {
        refuse(
            code::INVALID_ENVIRONMENT,
            "CNI_NETNS is no network namespace",
            details,
        )
    };
    let netns = netns.ok_or_else(|| invalid("no descriptor came with the request"))?;
    let kind = rustix::fs::fstatfs(&netns).map_err(|e| invalid(&e.to_string()))?;
    // The type of the field differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    if kind.f_type as i64 == NSFS_MAGIC {
        Ok(netns)
    } else {
        Err(invalid("its path leads to something else"))
    }
}

enum Unreadable {
    Io(io::Error),
    Refused(Failure),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Unreadable::Io(error)
    }
}

/// Reads one line and the descriptor that rides on its first byte. Every
/// descriptor that arrives is owned, and closed if it has no use.
fn read_request(stream: &mut UnixStream) -> Result<(Request, Option<OwnedFd>), Unreadable> {
    let garbled = |details: &str| {
        Unreadable::Refused(refuse(
            code::DECODING_FAILURE,
            "the plugin's request is unreadable",
            details,
        ))
    };
    let mut buffer = vec![0u8; 16 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &*stream,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(io::Error::from)?;
    let mut netns = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                netns.get_or_insert(descriptor);
            }
        }
    }
    let mut message = buffer;
    message.truncate(received.bytes);
    let deadline = Instant::now() + PATIENCE;
    let mut chunk = [0u8; 16 * 1024];
    while !message.ends_with(b"\n") {
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(garbled("it is longer than 1 MiB"));
        }
        if Instant::now() > deadline {
            return Err(garbled("it did not end within 5 s"));
        }
        match stream.read(&mut chunk)? {
            0 => break,
            n => message.extend_from_slice(&chunk[..n]),
        }
    }
    if message.is_empty() {
        // A probe whether anybody listens.
        return Err(Unreadable::Refused(refuse(
            code::DECODING_FAILURE,
            "the plugin's request is empty",
            "",
        )));
    }
    let request = serde_json::from_slice(&message).map_err(|e| garbled(&e.to_string()))?;
    Ok((request, netns))
}
