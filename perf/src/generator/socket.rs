//! Datagrams from a pod's own sockets, as an application sends them:
//! `sendmmsg` over a socket a source port, with or without UDP segmentation.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt::SndBufForce,
    sockopt::UdpGsoSegment,
};

use crate::clock;
use crate::generator::{Limit, Pace, Sent};
use crate::measure::{MeasureError, io_error};
use crate::packet::{PacketError, Protocol, STAMP_BYTES, Template};
use crate::stop::Stop;

/// Datagrams of one `sendmmsg`.
const BATCH: usize = 64;
const SEND_BUFFER_BYTES: usize = 8 << 20;
/// Segments of one send with UDP segmentation (`UDP_MAX_SEGMENTS` is 64 on
/// the oldest kernels) and the most that one send carries.
const MAX_SEGMENTS: usize = 64;
const MAX_SEND_BYTES: usize = 65_000;
/// Below the usual limit of open files.
const MAX_SOCKETS: usize = 900;

/// How sockets are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketOptions {
    /// Leave the source address to the kernel.
    pub any_source: bool,
    /// Leave the source ports to the kernel.
    pub any_port: bool,
    /// Let the kernel cut many datagrams from one send (`UDP_SEGMENT`).
    pub segmentation: bool,
}

/// A socket and the flows that leave by it.
#[derive(Debug)]
struct Source {
    socket: UdpSocket,
    flows: Vec<u32>,
    /// Which of the flows is next.
    next: usize,
}

/// A generator of datagrams.
#[derive(Debug)]
pub struct SocketGenerator {
    sources: Vec<Source>,
    template: Template,
    /// Bytes of a frame before the payload.
    header_bytes: usize,
    /// Sockets are connected, since all flows have one destination.
    connected: bool,
    /// Datagrams of one send; more than one with segmentation.
    segments: usize,
    /// Packets that each flow has sent.
    turns: Vec<u64>,
}

impl SocketGenerator {
    /// Opens the sockets in the namespace of the calling thread. Frames of
    /// `template` say addresses, ports, sizes and stamps.
    ///
    /// # Errors
    /// When a socket cannot send such frames, or cannot be bound.
    pub fn new(template: &Template, options: SocketOptions) -> Result<Self, MeasureError> {
        let traffic = template.traffic();
        let refused = |what, instead| PacketError::Engine {
            engine: "socket",
            what,
            instead,
        };
        if traffic.protocol != Protocol::Udp {
            return Err(refused("TCP SYN or ICMP", "choose --engine xdp or afxdp").into());
        }
        if traffic.tunnel.is_some() {
            return Err(refused("VXLAN", "choose --engine xdp or afxdp").into());
        }
        if options.segmentation && traffic.sizes.smallest() < traffic.sizes.largest() {
            return Err(refused("a mix of sizes with --gso", "give one --size").into());
        }
        let header_bytes = traffic.least_bytes() - if traffic.stamps { STAMP_BYTES } else { 0 };
        let payload_bytes = traffic.sizes.largest() - header_bytes;
        let segments = if options.segmentation {
            (MAX_SEND_BYTES / payload_bytes.max(1)).clamp(1, MAX_SEGMENTS)
        } else {
            1
        };
        let destinations = traffic.destination.count() > 1 || traffic.destination_ports.count() > 1;
        let mut generator = SocketGenerator {
            sources: Vec::new(),
            template: template.clone(),
            header_bytes,
            connected: !destinations || traffic.flows == 1,
            segments,
            turns: vec![0; traffic.flows as usize],
        };
        generator.open(options)?;
        if options.segmentation {
            let bytes = i32::try_from(payload_bytes).unwrap_or(i32::MAX);
            for source in &generator.sources {
                setsockopt(&source.socket, UdpGsoSegment, &bytes)
                    .map_err(|errno| io_error("--gso")(errno.into()))?;
            }
        }
        Ok(generator)
    }

    fn open(&mut self, options: SocketOptions) -> Result<(), MeasureError> {
        let flows = self.template.traffic().flows;
        let mut places = std::collections::HashMap::new();
        for flow in 0..flows {
            let address = self.source(flow, options);
            // Free ports differ by themselves: a socket for each flow's port.
            let port = self.template.varying(flow.into()).source_port;
            let place = *places.entry((address, port)).or_insert(self.sources.len());
            if place < self.sources.len() {
                self.sources[place].flows.push(flow);
                continue;
            }
            if place >= MAX_SOCKETS {
                return Err(MeasureError::Unexpected {
                    what: format!("--flows {flows} with --engine socket"),
                    detail: format!(
                        "each source port takes a socket, at most {MAX_SOCKETS}; narrow --sport or widen --dport"
                    ),
                });
            }
            let socket =
                UdpSocket::bind(address).map_err(io_error(format!("binding {address}")))?;
            if self.connected {
                let to = self.destination(flow);
                socket
                    .connect(to)
                    .map_err(io_error(format!("connecting to {to}")))?;
            }
            // Without root the default buffer has to do.
            let _ = setsockopt(&socket, SndBufForce, &SEND_BUFFER_BYTES);
            self.sources.push(Source {
                socket,
                flows: vec![flow],
                next: 0,
            });
        }
        Ok(())
    }

    /// Where a flow's socket is bound.
    fn source(&self, flow: u32, options: SocketOptions) -> SocketAddr {
        let traffic = self.template.traffic();
        let varying = self.template.varying(flow.into());
        let address: IpAddr = match (options.any_source, traffic.is_v6()) {
            (true, false) => Ipv4Addr::UNSPECIFIED.into(),
            (true, true) => Ipv6Addr::UNSPECIFIED.into(),
            (false, _) => traffic
                .source
                .address(varying.source - traffic.source.low()),
        };
        let port = if options.any_port {
            0
        } else {
            varying.source_port
        };
        SocketAddr::new(address, port)
    }

    fn destination(&self, flow: u32) -> SocketAddr {
        let traffic = self.template.traffic();
        let varying = self.template.varying(flow.into());
        let address = traffic
            .destination
            .address(varying.destination - traffic.destination.low());
        SocketAddr::new(address, varying.destination_port)
    }

    /// Sends on the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than full buffers or a
    /// receiver that is not there.
    pub fn run(&mut self, limit: Limit, stop: &Stop) -> Result<Sent, MeasureError> {
        let mut batch = Batch::new(self.template.traffic().sizes.largest(), self.segments);
        let mut pace = Pace::new(limit, stop);
        let mut source = 0;
        let most = (BATCH * self.segments) as u64;
        while let Some(packets) = pace.next(most) {
            self.fill(&mut batch, source, packets as usize);
            batch
                .send(&self.sources[source].socket, stop)
                .map_err(|errno| io_error("sending UDP")(errno.into()))?;
            pace.add(batch.packets as u64);
            source = (source + 1) % self.sources.len();
        }
        Ok(pace.finish())
    }

    /// Writes the next `packets` of a source.
    fn fill(&mut self, batch: &mut Batch, source: usize, packets: usize) {
        batch.clear();
        let flows = u64::from(self.template.traffic().flows);
        let stamps = self.template.traffic().stamps;
        let now_ns = clock::now_ns();
        let mut left = packets;
        while left > 0 && batch.sends() < BATCH {
            let source = &mut self.sources[source];
            let flow = source.flows[source.next];
            source.next = (source.next + 1) % source.flows.len();
            let segments = left.min(self.segments);
            left -= segments;
            for _ in 0..segments {
                let turn = &mut self.turns[flow as usize];
                let number = *turn * flows + u64::from(flow);
                *turn += 1;
                let payload_bytes = self.template.varying(number).size - self.header_bytes;
                let stamp = stamps.then(|| self.template.stamp(number, now_ns).bytes());
                batch.push(payload_bytes, stamp);
            }
            let to = (!self.connected).then(|| self.destination(flow));
            batch.end_send(segments, to);
        }
    }
}

/// The payloads of one `sendmmsg`.
#[derive(Debug)]
struct Batch {
    /// One buffer a send.
    buffers: Vec<Vec<u8>>,
    /// Bytes and packets of each send, and where to.
    sends: Vec<(usize, usize, Option<SockaddrStorage>)>,
    /// Bytes of the send that is being filled.
    filled: usize,
    packets: usize,
    headers: Headers,
}

/// What the kernel is told of each message; made once.
struct Headers(MultiHeaders<SockaddrStorage>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Headers")
    }
}

impl Batch {
    fn new(largest: usize, segments: usize) -> Batch {
        Batch {
            buffers: vec![vec![0; largest * segments]; BATCH],
            sends: Vec::with_capacity(BATCH),
            filled: 0,
            packets: 0,
            headers: Headers(MultiHeaders::preallocate(BATCH, None)),
        }
    }

    fn clear(&mut self) {
        self.sends.clear();
        self.packets = 0;
    }

    fn sends(&self) -> usize {
        self.sends.len()
    }

    fn push(&mut self, bytes: usize, stamp: Option<[u8; STAMP_BYTES]>) {
        if let Some(stamp) = stamp {
            let buffer = &mut self.buffers[self.sends.len()];
            buffer[self.filled..][..STAMP_BYTES].copy_from_slice(&stamp);
        }
        self.filled += bytes;
    }

    fn end_send(&mut self, packets: usize, to: Option<SocketAddr>) {
        let to = to.map(SockaddrStorage::from);
        self.sends.push((self.filled, packets, to));
        self.filled = 0;
        self.packets += packets;
    }

    /// Sends all of it; what the kernel takes later is tried again, so that
    /// no number is missing for a reason of the sender's.
    fn send(&mut self, socket: &UdpSocket, stop: &Stop) -> Result<(), Errno> {
        let mut done = 0;
        while done < self.sends.len() && !stop.is_set() {
            let slices: Vec<[IoSlice<'_>; 1]> = self.sends[done..]
                .iter()
                .zip(&self.buffers[done..])
                .map(|((bytes, ..), buffer)| [IoSlice::new(&buffer[..*bytes])])
                .collect();
            let addresses: Vec<_> = self.sends[done..].iter().map(|send| send.2).collect();
            let result = sendmmsg(
                socket.as_raw_fd(),
                &mut self.headers.0,
                slices.iter(),
                &addresses[..],
                [],
                MsgFlags::empty(),
            );
            match result {
                Ok(sent) => done += sent.count(),
                Err(Errno::EINTR | Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.packets = self.sends[..done].iter().map(|send| send.1).sum();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::packet::{AddressRange, Mac, PortRange, Stamp, Traffic};

    fn over_loopback(sizes: &str, flows: u32, options: SocketOptions) -> Vec<(usize, Stamp)> {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let macs = [Mac([2; 6]), Mac([4; 6])];
        let here = "127.0.0.1".parse().unwrap();
        let port = receiver.local_addr().unwrap().port();
        let traffic = Traffic {
            flows,
            stamps: true,
            source: AddressRange::one(here),
            source_ports: PortRange::from(5000, flows),
            ..Traffic::udp(macs, [here, here], [5000, port], sizes.parse().unwrap())
        };
        let template = Template::new(&traffic, 1518).unwrap();
        let mut generator = SocketGenerator::new(&template, options).unwrap();
        let limit = Limit {
            count: Some(120),
            ..Limit::default()
        };
        let sent = generator.run(limit, &Stop::new()).unwrap();
        assert_eq!(sent.packets, 120);
        let mut buffer = [0u8; 2048];
        (0..120)
            .map(|_| {
                let bytes = receiver.recv(&mut buffer).unwrap();
                (bytes, Stamp::read(&buffer[..bytes]).unwrap())
            })
            .collect()
    }

    #[test]
    fn sends_what_it_says() {
        for segmentation in [false, true] {
            let options = SocketOptions {
                any_source: true,
                any_port: true,
                segmentation,
            };
            let seen = over_loopback("64", 2, options);
            let stamps: HashSet<_> = seen
                .iter()
                .map(|(_, stamp)| (stamp.stream, stamp.sequence))
                .collect();
            assert!(seen.iter().all(|(bytes, _)| *bytes == 18), "{seen:?}");
            assert_eq!(stamps.len(), 120);
            for flow in 0..2 {
                let last = stamps.iter().filter(|stamp| stamp.0 == flow);
                let count = last.clone().count() as u32;
                assert_eq!(last.map(|stamp| stamp.1).max(), count.checked_sub(1));
            }
        }
    }

    #[test]
    fn a_mix_has_its_shares() {
        let options = SocketOptions {
            any_source: true,
            any_port: true,
            segmentation: false,
        };
        let seen = over_loopback("imix", 1, options);
        let of = |size| seen.iter().filter(|(bytes, _)| *bytes == size).count();
        assert_eq!((of(18), of(548), of(1472)), (70, 40, 10));
    }
}
