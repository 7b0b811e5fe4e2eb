//! The agent's side of a call: one connection, one question, one answer.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use spinlane_api::cni::{MAX_MESSAGE_BYTES, Request, Response};

use crate::error::Error;

/// How long to try when the agent's backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two attempts to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// A connection to the agent on which nothing has been asked yet.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    socket: PathBuf,
}

impl Agent {
    /// Connects to the agent of a run directory.
    ///
    /// # Errors
    /// [`Error::NoAgent`] when nobody listens there, [`Error::Io`] when the
    /// socket may not be used.
    pub fn connect(run_dir: &Path) -> Result<Self, Error> {
        let socket = run_dir.join(spinlane_api::CNI_SOCKET);
        let no_agent = |reason: String| Error::NoAgent {
            socket: socket.clone(),
            reason,
        };
        let failed = |errno: Errno| Error::Io {
            what: format!("connect to {}", socket.display()),
            source: errno.into(),
        };
        let address = SocketAddrUnix::new(&socket).map_err(failed)?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            let descriptor = socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )
            .map_err(failed)?;
            match connect(&descriptor, &address) {
                Ok(()) => {
                    let stream = UnixStream::from(descriptor);
                    stream
                        .set_nonblocking(false)
                        .map_err(Error::io(format!("make {} blocking", socket.display())))?;
                    return Ok(Self { stream, socket });
                }
                // The backlog is full: the agent is busy, not gone.
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(
                    errno @ (Errno::AGAIN
                    | Errno::INTR
                    | Errno::NOENT
                    | Errno::CONNREFUSED
                    | Errno::NOTDIR),
                ) => return Err(no_agent(std::io::Error::from(errno).to_string())),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Asks, with the pod's namespace riding along when the request needs it,
    /// and waits for the answer.
    ///
    /// # Errors
    /// [`Error::NoAgent`] when the agent goes away or stays silent,
    /// [`Error::Refused`] when it answers with a failure.
    pub fn ask(
        mut self,
        request: &Request,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<Response, Error> {
        let mut message = serde_json::to_vec(request).map_err(|error| Error::Answer {
            socket: self.socket.clone(),
            answer: format!("nothing, the request cannot be written: {error}"),
        })?;
        message.push(b'\n');
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(Error::Config(format!(
                "the request has {} bytes, more than the agent takes ({MAX_MESSAGE_BYTES})",
                message.len()
            )));
        }
        let asked = self.send(&message, netns).and_then(|()| self.answer_line());
        let line = asked.map_err(|source| Error::NoAgent {
            socket: self.socket.clone(),
            reason: match source.kind() {
                std::io::ErrorKind::WouldBlock => {
                    format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())
                }
                _ => format!("it went away: {source}"),
            },
        })?;
        match serde_json::from_slice(&line) {
            Ok(Response::Failed(failure)) => Err(Error::Refused(failure)),
            Ok(response) => Ok(response),
            Err(error) => Err(Error::Answer {
                socket: self.socket,
                answer: format!("{:?}: {error}", String::from_utf8_lossy(&line)),
            }),
        }
    }

    /// The error for an answer of the wrong kind.
    #[must_use]
    pub fn unexpected(run_dir: &Path, answer: &Response) -> Error {
        Error::Answer {
            socket: run_dir.join(spinlane_api::CNI_SOCKET),
            answer: format!("{answer:?}, which does not fit the question"),
        }
    }

    /// Sends the message, the descriptor on its first byte.
    fn send(&mut self, message: &[u8], netns: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
        self.stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let Some(netns) = netns else {
            return self.stream.write_all(message);
        };
        let descriptors = [netns];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = loop {
            match sendmsg(
                self.stream.as_fd(),
                &[IoSlice::new(message)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        // What did not fit goes without the descriptor.
        self.stream.write_all(&message[sent..])
    }

    fn answer_line(&mut self) -> std::io::Result<Vec<u8>> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut line = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let read = match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            line.extend_from_slice(&chunk[..read]);
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                line.truncate(end);
                return Ok(line);
            }
            if line.len() > MAX_MESSAGE_BYTES {
                return Err(std::io::Error::other("the answer has no end"));
            }
        }
    }
}
