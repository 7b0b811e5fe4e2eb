//! A sink that is an ordinary UDP socket, read as an application would.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt::RcvBufForce,
};

use crate::clock;
use crate::sink::flow::Tracker;
use crate::sink::{Count, Stamps};
use crate::stop::Stop;

const BATCH: usize = 64;
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
/// The largest of a jumbo frame.
const DATAGRAM_BYTES: usize = 9216;

/// A socket and what came in by it. One thread runs it, any may look.
#[derive(Debug)]
pub struct SocketSink {
    socket: UdpSocket,
    /// Written by the running thread only, read by any; relaxed, since the
    /// numbers guard nothing.
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Held by the running thread for a batch, by others to look.
    tracker: Mutex<Tracker>,
}

impl SocketSink {
    /// Binds in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<SocketSink> {
        let socket = UdpSocket::bind(address)
            .map_err(|error| io::Error::new(error.kind(), format!("bind {address}: {error}")))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        // Without root the default buffer has to do.
        let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER_BYTES);
        Ok(SocketSink {
            socket,
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            tracker: Mutex::default(),
        })
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Receives until `stop`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn run(&self, stop: &Stop) -> io::Result<()> {
        let mut buffers = vec![[0u8; DATAGRAM_BYTES]; BATCH];
        let mut lengths = Vec::with_capacity(BATCH);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        while !stop.is_set() {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers
                .iter_mut()
                .map(|buffer| [IoSliceMut::new(buffer)])
                .collect();
            lengths.clear();
            let received = recvmmsg(
                self.socket.as_raw_fd(),
                &mut headers,
                slices.iter_mut(),
                MsgFlags::MSG_WAITFORONE,
                None,
            )
            .map(|messages| lengths.extend(messages.map(|message| message.bytes)));
            match received {
                Ok(()) => self.take(&buffers, &lengths, clock::now_ns()),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Counts a batch and reads its stamps.
    fn take(&self, buffers: &[[u8; DATAGRAM_BYTES]], lengths: &[usize], now_ns: u64) {
        let bytes: usize = lengths.iter().sum();
        self.packets
            .fetch_add(lengths.len() as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut tracker = self.tracker.lock().unwrap_or_else(|lock| lock.into_inner());
        for (buffer, length) in buffers.iter().zip(lengths) {
            tracker.add(&buffer[..*length], now_ns);
        }
    }

    /// What the stamps have said so far.
    #[must_use]
    pub fn stamps(&self) -> Stamps {
        let tracker = self.tracker.lock().unwrap_or_else(|lock| lock.into_inner());
        Stamps {
            order: tracker.order(),
            latency: tracker.latencies.summary(),
            unstamped: tracker.unstamped,
            in_super_frames: 0,
            untracked: 0,
        }
    }

    /// The largest jitter of a flow (RFC 3550), in microseconds.
    #[must_use]
    pub fn jitter_us(&self) -> Option<f64> {
        let tracker = self.tracker.lock().unwrap_or_else(|lock| lock.into_inner());
        tracker.jitter_us()
    }

    /// What it has counted so far.
    #[must_use]
    pub fn count(&self) -> Count {
        Count {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
