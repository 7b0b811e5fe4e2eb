//! Datagrams from a pod's own sockets, as an application sends them:
//! `sendmmsg` over one socket a flow, with or without UDP segmentation.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt::SndBufForce,
    sockopt::UdpGsoSegment,
};

use crate::generator::{Limit, Pace, Sent};
use crate::stop::Stop;

/// Datagrams of one `sendmmsg`.
const BATCH: usize = 64;
const SEND_BUFFER_BYTES: usize = 8 << 20;
/// Segments of one send with UDP segmentation (`UDP_MAX_SEGMENTS` is 64 on
/// the oldest kernels) and the most that one send carries.
const MAX_SEGMENTS: usize = 64;
const MAX_SEND_BYTES: usize = 65_000;

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagrams {
    /// Where to.
    pub to: SocketAddr,
    /// Where from; a free port when `None`, else this and the following ones.
    pub source_port: Option<u16>,
    /// Bytes of payload of one datagram.
    pub payload_bytes: usize,
    /// How many sockets, each with a source port of its own.
    pub flows: u16,
    /// Let the kernel cut many datagrams from one send (`UDP_SEGMENT`).
    pub segmentation: bool,
}

/// A generator of datagrams.
#[derive(Debug)]
pub struct SocketGenerator {
    sockets: Vec<UdpSocket>,
    datagrams_per_send: usize,
    payload: Vec<u8>,
}

impl SocketGenerator {
    /// Opens the sockets in the namespace of the calling thread.
    ///
    /// # Errors
    /// When a socket cannot be bound or connected.
    pub fn new(spec: &Datagrams) -> io::Result<SocketGenerator> {
        let any: IpAddr = match spec.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let datagrams_per_send = if spec.segmentation {
            (MAX_SEND_BYTES / spec.payload_bytes.max(1)).clamp(1, MAX_SEGMENTS)
        } else {
            1
        };
        let sockets = (0..spec.flows.max(1))
            .map(|flow| {
                let port = spec.source_port.map_or(0, |first| first.wrapping_add(flow));
                let socket = UdpSocket::bind((any, port))?;
                socket.connect(spec.to)?;
                // Without root the default buffer has to do.
                let _ = setsockopt(&socket, SndBufForce, &SEND_BUFFER_BYTES);
                if spec.segmentation {
                    let bytes = i32::try_from(spec.payload_bytes).unwrap_or(i32::MAX);
                    setsockopt(&socket, UdpGsoSegment, &bytes)?;
                }
                Ok(socket)
            })
            .collect::<io::Result<_>>()?;
        Ok(SocketGenerator {
            sockets,
            datagrams_per_send,
            payload: vec![0; spec.payload_bytes * datagrams_per_send],
        })
    }

    /// Sends on the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than full buffers or a
    /// receiver that is not there.
    pub fn run(&self, limit: Limit, stop: &Stop) -> io::Result<Sent> {
        let payload = [IoSlice::new(&self.payload)];
        let slices = [&payload; BATCH];
        let addresses = [None::<SockaddrStorage>; BATCH];
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let mut pace = Pace::new(limit, stop);
        let mut sockets = self.sockets.iter().cycle();
        let per_send = self.datagrams_per_send as u64;
        while let (Some(packets), Some(socket)) =
            (pace.next(BATCH as u64 * per_send), sockets.next())
        {
            let sends = packets.div_ceil(per_send) as usize;
            let result = sendmmsg(
                socket.as_raw_fd(),
                &mut headers,
                slices[..sends].iter().copied(),
                &addresses[..sends],
                [],
                MsgFlags::empty(),
            );
            match result {
                Ok(sent) => pace.add(sent.count() as u64 * per_send),
                Err(Errno::EINTR | Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(pace.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sends_what_it_says_over_loopback() {
        for segmentation in [false, true] {
            let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
            receiver
                .set_read_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            let generator = SocketGenerator::new(&Datagrams {
                to: receiver.local_addr().unwrap(),
                source_port: None,
                payload_bytes: 18,
                flows: 2,
                segmentation,
            })
            .unwrap();
            let limit = Limit {
                count: Some(128),
                ..Limit::default()
            };
            let sent = generator.run(limit, &Stop::new()).unwrap();
            assert_eq!(sent.packets, 128);
            let mut buffer = [0u8; 2048];
            for number in 0..128 {
                let bytes = receiver.recv(&mut buffer).unwrap();
                assert_eq!(bytes, 18, "datagram {number}, segmentation {segmentation}");
            }
        }
    }
}
