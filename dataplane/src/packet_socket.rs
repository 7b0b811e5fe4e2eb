//! A packet socket that sends super-frames.
//!
//! For a packet of many chunks it is the better way out than the transmit
//! ring. The kernel copies the packet once either way, but into a few large
//! pieces rather than a page for each chunk; and the header of a virtual
//! network device before the packet (`PACKET_VNET_HDR`, net/packet/af_packet.c;
//! `struct virtio_net_hdr`, include/uapi/linux/virtio_net.h) can say how long
//! its segments are (`gso_size`), which a receiver that forwards needs to
//! know. The kernel then cuts it where it has to be cut, if anywhere.
//!
//! The socket receives nothing: its protocol is 0.

use std::io::{self, IoSlice};

use crate::pipeline::datagrams::MAX_DATAGRAMS;
use crate::pipeline::gather::{self, Together};
use crate::pipeline::segment::{Offload, Segments};
use crate::raw_socket::{RawSocket, Receive};

/// Many super-frames may wait in the receiving pod's backlog.
const SEND_BUFFER_BYTES: libc::c_int = 32 << 20;

/// Bytes of a whole packet that the kernel keeps in one piece with its own
/// structure: its headers, for it to read.
const LINEAR_BYTES: u16 = 128;

/// Bytes of `struct virtio_net_hdr`.
const HEADER_BYTES: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Pieces of memory that one packet comes from at most: the header for the
/// kernel, the packet's own headers, and what follows. A chain of frames has
/// fewer.
const MAX_PARTS: usize = 2 + MAX_DATAGRAMS;

/// The same of a packet that is gathered.
const MAX_GATHERED: usize = 1 + gather::MAX_PARTS;

/// How packets reach the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// At once, past the queue discipline. What the device does not cut is
    /// lost there (`__dev_direct_xmit`, net/core/dev.c).
    PastDiscipline,
    /// As the node's own packets do; the kernel cuts what the device does not.
    Ordinary,
}

/// A socket that sends on one device.
#[derive(Debug)]
pub(crate) struct PacketSocket(RawSocket);

impl PacketSocket {
    /// Opens a socket that sends on device `ifindex`.
    pub(crate) fn open(ifindex: u32, way: Way) -> io::Result<PacketSocket> {
        let socket = RawSocket::open()?;
        socket.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        if way == Way::PastDiscipline {
            socket.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        }
        socket.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES)?;
        socket.bind(ifindex, Receive::Nothing)?;
        Ok(PacketSocket(socket))
    }

    /// Sends a packet of so many pieces; the kernel has its own copy when this
    /// returns.
    pub(crate) fn send<'a>(
        &self,
        pieces: impl Iterator<Item = &'a [u8]>,
        offload: &Offload,
    ) -> io::Result<()> {
        self.send_parts::<MAX_PARTS>(pieces, header(offload))
    }

    /// As [`PacketSocket::send`], of a packet that lacks nothing.
    pub(crate) fn send_complete<'a>(
        &self,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        self.send_parts::<MAX_PARTS>(pieces, [0; HEADER_BYTES])
    }

    /// As [`PacketSocket::send`], of a packet that the kernel keeps in one
    /// piece: where it cuts short datagrams, copying them is cheaper than
    /// referring to the pages that they lie in.
    pub(crate) fn send_in_one_piece(&self, bytes: &[u8], offload: &Offload) -> io::Result<()> {
        let linear = bytes.len().min(usize::from(u16::MAX)) as u16;
        let header = linear_header(offload, linear);
        self.0.send(&[IoSlice::new(&header), IoSlice::new(bytes)])
    }

    /// As [`PacketSocket::send`].
    pub(crate) fn send_gathered(&self, together: &Together<'_, '_>) -> io::Result<()> {
        self.send_parts::<MAX_GATHERED>(together.pieces(), header(&together.offload))
    }

    fn send_parts<'a, const MOST: usize>(
        &self,
        pieces: impl Iterator<Item = &'a [u8]>,
        header: [u8; HEADER_BYTES],
    ) -> io::Result<()> {
        let mut parts = [IoSlice::new(&[]); MOST];
        parts[0] = IoSlice::new(&header);
        let mut count = 1;
        for (part, bytes) in parts[1..].iter_mut().zip(pieces) {
            *part = IoSlice::new(bytes);
            count += 1;
        }
        self.0.send(&parts[..count])
    }
}

/// `struct virtio_net_hdr`: flags `u8`, type `u8`, then header length, segment
/// length, checksum start and checksum offset, `u16` of the host's order.
fn header(offload: &Offload) -> [u8; HEADER_BYTES] {
    linear_header(
        offload,
        offload.cut.map_or(LINEAR_BYTES, |cut| cut.header_len),
    )
}

/// The same, of a packet whose first `linear` bytes the kernel keeps in one
/// piece.
fn linear_header(offload: &Offload, linear: u16) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0] = NEEDS_CHECKSUM;
    bytes[2..4].copy_from_slice(&linear.to_ne_bytes());
    if let Some(cut) = offload.cut {
        bytes[1] = match cut.segments {
            Segments::Udp => GSO_UDP,
            Segments::Tcp {
                is_v6,
                is_congestion_window_reduced,
            } => {
                let family = if is_v6 { GSO_TCPV6 } else { GSO_TCPV4 };
                let ecn = if is_congestion_window_reduced {
                    GSO_ECN
                } else {
                    0
                };
                family | ecn
            }
        };
        bytes[4..6].copy_from_slice(&cut.segment_len.to_ne_bytes());
    }
    bytes[6..8].copy_from_slice(&offload.checksum.start.to_ne_bytes());
    bytes[8..10].copy_from_slice(&offload.checksum.offset.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::TxChecksum;
    use crate::pipeline::segment::Cut;

    #[test]
    fn the_header_has_the_kernels_layout() {
        let words = |offload: &Offload| {
            let bytes = header(offload);
            let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
            (bytes[0], bytes[1], word(2), word(4), word(6), word(8))
        };
        let checksum = TxChecksum {
            start: 34,
            offset: 16,
        };
        let whole = Offload {
            checksum,
            cut: None,
        };
        assert_eq!(words(&whole), (1, 0, LINEAR_BYTES, 0, 34, 16));
        let cut = |segments| Offload {
            checksum,
            cut: Some(Cut {
                segments,
                header_len: 66,
                segment_len: 1448,
            }),
        };
        let tcp = |is_v6, is_congestion_window_reduced| Segments::Tcp {
            is_v6,
            is_congestion_window_reduced,
        };
        assert_eq!(words(&cut(tcp(false, false))), (1, 1, 66, 1448, 34, 16));
        assert_eq!(words(&cut(tcp(true, true))), (1, 0x84, 66, 1448, 34, 16));
        assert_eq!(words(&cut(Segments::Udp)), (1, 5, 66, 1448, 34, 16));
    }
}
