//! How a frame is written: headers that stay, fields that vary, and the sums
//! from which a checksum is made without reading the frame again.
//!
//! Every header byte of every frame is written anew. A receiver that forwards
//! in place changes the memory that a generator in the kernel gets back.

use std::net::IpAddr;

use super::{FLOW_BITS, Mac, PacketError, Protocol, Stamp, Traffic, Tunnel, fold, sum_words};

/// First port of those that RFC 7348 recommends for the source.
const TUNNEL_SOURCE_PORT: u16 = 49152;
const TUNNEL_SOURCE_PORTS_MASK: u32 = 0x3fff;
const UDP_BYTES: usize = 8;
const VXLAN_BYTES: usize = 8;

/// Where a network header and what follows it are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layer3 {
    pub(crate) v6: bool,
    pub(crate) at: usize,
    pub(crate) transport_at: usize,
    /// Sum of the words of the IPv4 header that stay; 0 for IPv6.
    pub(crate) sum: u32,
}

impl Layer3 {
    /// Offset of the last 32 bits of the source address.
    pub(crate) fn source_at(&self) -> usize {
        self.at + if self.v6 { 20 } else { 12 }
    }

    /// Offset of the last 32 bits of the destination address.
    pub(crate) fn destination_at(&self) -> usize {
        self.at + if self.v6 { 36 } else { 16 }
    }

    /// Offset of the length field, and what of the frame it does not count.
    pub(crate) fn length(&self) -> (usize, usize) {
        if self.v6 {
            (self.at + 4, self.transport_at)
        } else {
            (self.at + 2, self.at)
        }
    }
}

/// What differs from frame to frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Varying {
    pub(crate) flow: u32,
    /// Which packet of the flow, from 0, wrapping.
    pub(crate) sequence: u32,
    /// Bytes on the device.
    pub(crate) size: usize,
    /// Last 32 bits of the addresses.
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

/// The frames of a [`Traffic`], ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    traffic: Traffic,
    /// Headers and stamp; zero where fields vary.
    headers: Vec<u8>,
    outer: Option<Layer3>,
    inner: Layer3,
    payload_at: usize,
    /// Sum of what stays under the transport's checksum.
    transport_sum: u32,
}

impl Template {
    /// Of a traffic whose frames have at most `most` bytes, the frame check
    /// sequence counted.
    ///
    /// # Errors
    /// When such frames cannot be.
    pub fn new(traffic: &Traffic, most: usize) -> Result<Template, PacketError> {
        traffic.check(most)?;
        let mut headers = Vec::new();
        let outer = traffic
            .tunnel
            .map(|tunnel| write_tunnel(&mut headers, &tunnel));
        let (source, destination) = (traffic.source.first(), traffic.destination.first());
        let number = traffic.protocol.number(source.is_ipv6());
        let macs = [traffic.source_mac, traffic.destination_mac];
        let inner = write_network(&mut headers, macs, [source, destination], number, true);
        write_transport(&mut headers, traffic);
        let payload_at = headers.len();
        if traffic.stamps {
            let stamp = Stamp {
                stream: 0,
                sequence: 0,
                time_ns: 0,
            };
            headers.extend(stamp.bytes());
        }
        let mut transport_sum = sum_words(&headers[inner.transport_at..]);
        let echo_v4 = traffic.protocol == Protocol::IcmpEcho && !inner.v6;
        if !echo_v4 {
            transport_sum += u32::from(number);
            if inner.v6 {
                // The last 32 bits of each address are zero here.
                transport_sum += sum_words(&headers[inner.at + 8..inner.at + 40]);
            }
        }
        Ok(Template {
            traffic: traffic.clone(),
            headers,
            outer,
            inner,
            payload_at,
            transport_sum,
        })
    }

    /// What it is of.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    pub(crate) fn headers(&self) -> &[u8] {
        &self.headers
    }

    pub(crate) fn outer(&self) -> Option<Layer3> {
        self.outer
    }

    pub(crate) fn inner(&self) -> Layer3 {
        self.inner
    }

    pub(crate) fn payload_at(&self) -> usize {
        self.payload_at
    }

    pub(crate) fn transport_sum(&self) -> u32 {
        self.transport_sum
    }

    /// Offset of the transport's checksum.
    pub(crate) fn checksum_at(&self) -> usize {
        self.inner.transport_at
            + match self.traffic.protocol {
                Protocol::Udp => 6,
                Protocol::TcpSyn => 16,
                Protocol::IcmpEcho => 2,
            }
    }

    /// How often the transport's length is under its own checksum.
    pub(crate) fn length_count(&self) -> u32 {
        match (self.traffic.protocol, self.inner.v6) {
            (Protocol::Udp, _) => 2, // header and pseudo header
            (Protocol::TcpSyn, _) | (Protocol::IcmpEcho, true) => 1,
            (Protocol::IcmpEcho, false) => 0,
        }
    }

    /// Whether the addresses are under the transport's checksum.
    pub(crate) fn sums_addresses(&self) -> bool {
        self.inner.v6 || self.traffic.protocol != Protocol::IcmpEcho
    }

    /// The run's part of a stamp.
    pub(crate) fn run_bits(&self) -> u32 {
        u32::from(self.traffic.run) << FLOW_BITS
    }

    /// What frame `number` of the run has of its own.
    pub(crate) fn varying(&self, number: u64) -> Varying {
        let traffic = &self.traffic;
        let flows = u64::from(traffic.flows.max(1));
        let (turn, flow) = (number / flows, (number % flows) as u32);
        let places = traffic.sizes.places();
        // Each flow walks through the pattern, whatever the number of flows.
        let place = (turn + u64::from(flow)) % places.len().max(1) as u64;
        let mut rest = flow;
        let mut index = |count: u32| {
            let index = rest % count;
            rest /= count;
            index
        };
        let source_port = index(traffic.source_ports.count()) as u16;
        let destination_ports = match traffic.protocol {
            Protocol::IcmpEcho => 1,
            Protocol::Udp | Protocol::TcpSyn => traffic.destination_ports.count(),
        };
        let destination_port = index(destination_ports) as u16;
        let destination = index(traffic.destination.count());
        let source = index(traffic.source.count());
        Varying {
            flow,
            sequence: turn as u32,
            size: places[place as usize],
            source: traffic.source.low() + source,
            destination: traffic.destination.low() + destination,
            source_port: traffic.source_ports.first() + source_port,
            destination_port: traffic.destination_ports.first() + destination_port,
        }
    }

    /// The stamp of frame `number`, sent at `time_ns`.
    #[must_use]
    pub fn stamp(&self, number: u64, time_ns: u64) -> Stamp {
        let varying = self.varying(number);
        self.stamp_of(&varying, time_ns)
    }

    fn stamp_of(&self, varying: &Varying, time_ns: u64) -> Stamp {
        Stamp {
            stream: self.run_bits() | varying.flow,
            sequence: varying.sequence,
            time_ns,
        }
    }

    /// Writes frame `number` of the run, sent at `time_ns`, into a buffer of
    /// zeros or of an earlier frame, and returns its bytes on the device.
    ///
    /// # Panics
    /// When `frame` is shorter than the largest size.
    pub fn write(&self, number: u64, time_ns: u64, frame: &mut [u8]) -> usize {
        let varying = self.varying(number);
        let size = varying.size;
        frame[..self.headers.len()].copy_from_slice(&self.headers);
        if let Some(outer) = self.outer {
            let port = TUNNEL_SOURCE_PORT + (varying.flow & TUNNEL_SOURCE_PORTS_MASK) as u16;
            put_16(frame, outer.transport_at, port);
            put_16(
                frame,
                outer.transport_at + 4,
                (size - outer.transport_at) as u16,
            );
            write_length(frame, &outer, size, 0);
        }
        let inner = self.inner;
        put_32(frame, inner.source_at(), varying.source);
        put_32(frame, inner.destination_at(), varying.destination);
        let addresses = words(varying.source) + words(varying.destination);
        write_length(frame, &inner, size, addresses);
        let transport_bytes = (size - inner.transport_at) as u16;
        let mut sum = self.transport_sum + self.length_count() * u32::from(transport_bytes);
        if self.sums_addresses() {
            sum += addresses;
        }
        sum += self.write_fields(frame, &varying);
        if self.traffic.stamps {
            let stamp = self.stamp_of(&varying, time_ns).bytes();
            frame[self.payload_at..][..stamp.len()].copy_from_slice(&stamp);
            sum += sum_words(&stamp[2..]); // the magic is in the template's sum
        }
        let checksum = match (!fold(sum), self.traffic.protocol) {
            (0, Protocol::Udp) => u16::MAX, // RFC 768: zero means none
            (checksum, _) => checksum,
        };
        put_16(frame, self.checksum_at(), checksum);
        size
    }

    /// The transport's own fields; returns their sum.
    fn write_fields(&self, frame: &mut [u8], varying: &Varying) -> u32 {
        let at = self.inner.transport_at;
        let mut sum = u32::from(varying.source_port);
        match self.traffic.protocol {
            Protocol::IcmpEcho => {
                put_16(frame, at + 4, varying.source_port);
                put_16(frame, at + 6, varying.sequence as u16);
                return sum + (varying.sequence & 0xffff);
            }
            Protocol::Udp => put_16(frame, at + 4, (varying.size - at) as u16),
            Protocol::TcpSyn => {
                put_32(frame, at + 4, varying.sequence);
                sum += words(varying.sequence);
            }
        }
        put_16(frame, at, varying.source_port);
        put_16(frame, at + 2, varying.destination_port);
        sum + u32::from(varying.destination_port)
    }
}

/// The port that a tunnel's first flow has; others count up, masked.
pub(crate) const TUNNEL_PORTS: (u16, u32) = (TUNNEL_SOURCE_PORT, TUNNEL_SOURCE_PORTS_MASK);

fn words(value: u32) -> u32 {
    (value >> 16) + (value & 0xffff)
}

fn put_16(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn put_32(frame: &mut [u8], at: usize, value: u32) {
    frame[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// The length of a network header, and the sum of an IPv4 one.
fn write_length(frame: &mut [u8], layer: &Layer3, size: usize, addresses: u32) {
    let (at, before) = layer.length();
    let length = (size - before) as u16;
    put_16(frame, at, length);
    if !layer.v6 {
        let sum = !fold(layer.sum + u32::from(length) + addresses);
        put_16(frame, layer.at + 10, sum);
    }
}

/// Ethernet and network header; the last 32 bits of the addresses are left
/// zero when they `vary`.
fn write_network(
    headers: &mut Vec<u8>,
    macs: [Mac; 2],
    addresses: [IpAddr; 2],
    protocol: u8,
    vary: bool,
) -> Layer3 {
    headers.extend(macs[1].0);
    headers.extend(macs[0].0);
    let v6 = addresses[0].is_ipv6();
    let at = headers.len() + 2;
    if v6 {
        headers.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol, 64]);
    } else {
        headers.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0]);
        headers.extend([0x40, 0, 64, protocol, 0, 0]); // do not fragment
    }
    for address in addresses {
        match address {
            IpAddr::V4(address) => headers.extend(address.octets()),
            IpAddr::V6(address) => headers.extend(address.octets()),
        }
        if vary {
            let low = headers.len() - 4;
            headers[low..].fill(0);
        }
    }
    Layer3 {
        v6,
        at,
        transport_at: headers.len(),
        sum: if v6 { 0 } else { sum_words(&headers[at..]) },
    }
}

/// Everything around the inner frame. The outer checksum is zero, as RFC 7348
/// and, over IPv6, RFC 6935 allow.
fn write_tunnel(headers: &mut Vec<u8>, tunnel: &Tunnel) -> Layer3 {
    let macs = [tunnel.source_mac, tunnel.destination_mac];
    let addresses = [tunnel.source, tunnel.destination];
    let layer = write_network(headers, macs, addresses, 17, false);
    headers.extend([0, 0]);
    headers.extend(tunnel.port.to_be_bytes());
    headers.extend([0; 4]);
    headers.extend([0x08, 0, 0, 0]); // the network identifier is valid
    headers.extend((tunnel.vni << 8).to_be_bytes());
    debug_assert_eq!(headers.len(), layer.transport_at + UDP_BYTES + VXLAN_BYTES);
    layer
}

fn write_transport(headers: &mut Vec<u8>, traffic: &Traffic) {
    match traffic.protocol {
        Protocol::Udp => headers.extend([0; UDP_BYTES]),
        Protocol::TcpSyn => {
            headers.extend([0; 12]);
            headers.extend([0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
        }
        Protocol::IcmpEcho => {
            let kind = if traffic.is_v6() { 128 } else { 8 };
            headers.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
}
