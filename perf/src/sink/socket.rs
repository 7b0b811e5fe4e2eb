//! A sink that is an ordinary UDP socket, read as an application would.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt::RcvBufForce,
};

use crate::sink::Count;
use crate::stop::Stop;

const BATCH: usize = 64;
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
const DATAGRAM_BYTES: usize = 2048;

/// A socket and what came in by it. One thread runs it, any may look.
#[derive(Debug)]
pub struct SocketSink {
    socket: UdpSocket,
    /// Written by the running thread only, read by any; relaxed, since the
    /// numbers guard nothing.
    packets: AtomicU64,
    bytes: AtomicU64,
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
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        while !stop.is_set() {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers
                .iter_mut()
                .map(|buffer| [IoSliceMut::new(buffer)])
                .collect();
            let received = recvmmsg(
                self.socket.as_raw_fd(),
                &mut headers,
                slices.iter_mut(),
                MsgFlags::MSG_WAITFORONE,
                None,
            );
            match received {
                Ok(messages) => {
                    let (packets, bytes) = messages.fold((0, 0), |(packets, bytes), message| {
                        (packets + 1, bytes + message.bytes as u64)
                    });
                    self.packets.fetch_add(packets, Ordering::Relaxed);
                    self.bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
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
