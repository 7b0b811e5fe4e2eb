//! What a run of frames looks like.

use std::net::IpAddr;

use serde::Serialize;

use super::{
    AddressRange, FLOW_BITS, MAX_FRAME_BYTES, Mac, PacketError, PortRange, STAMP_BYTES, Sizes,
};
use crate::packet::{ETHERNET_BYTES, FCS_BYTES};

/// What the frames carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP segments that ask for a connection.
    TcpSyn,
    /// ICMP or `ICMPv6` echo requests; the source port is their identifier.
    IcmpEcho,
}

impl Protocol {
    /// Bytes of its header.
    #[must_use]
    pub fn header_bytes(self) -> usize {
        match self {
            Protocol::Udp | Protocol::IcmpEcho => 8,
            Protocol::TcpSyn => 20,
        }
    }

    /// Its number in an IP header.
    #[must_use]
    pub(crate) fn number(self, v6: bool) -> u8 {
        match self {
            Protocol::Udp => 17,
            Protocol::TcpSyn => 6,
            Protocol::IcmpEcho if v6 => 58,
            Protocol::IcmpEcho => 1,
        }
    }

    /// The name in documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Udp => "UDP",
            Protocol::TcpSyn => "TCP SYN",
            Protocol::IcmpEcho => "ICMP echo",
        }
    }
}

/// What is put around the frames (RFC 7348).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer source Ethernet address.
    pub source_mac: Mac,
    /// Outer destination Ethernet address.
    pub destination_mac: Mac,
    /// Address of this end.
    pub source: IpAddr,
    /// Address of the other end.
    pub destination: IpAddr,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Destination port.
    pub port: u16,
}

/// A run of frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Source Ethernet address.
    pub source_mac: Mac,
    /// Destination Ethernet address.
    pub destination_mac: Mac,
    /// Source addresses.
    pub source: AddressRange,
    /// Destination addresses.
    pub destination: AddressRange,
    /// What they carry.
    pub protocol: Protocol,
    /// Source ports; identifiers of echo requests.
    pub source_ports: PortRange,
    /// Destination ports; echo requests have none.
    pub destination_ports: PortRange,
    /// How many flows, one after the other. They differ in the source port
    /// first, then in the destination port, the destination, the source.
    pub flows: u32,
    /// What sizes they have.
    pub sizes: Sizes,
    /// Whether each says which it is and when it was sent. Without, the
    /// payload is zeros.
    pub stamps: bool,
    /// Tells runs apart.
    pub run: u8,
    /// What goes around them.
    pub tunnel: Option<Tunnel>,
}

impl Traffic {
    /// One flow of unstamped UDP, to be changed as needed.
    #[must_use]
    pub fn udp(macs: [Mac; 2], addresses: [IpAddr; 2], ports: [u16; 2], sizes: Sizes) -> Traffic {
        Traffic {
            source_mac: macs[0],
            destination_mac: macs[1],
            source: AddressRange::one(addresses[0]),
            destination: AddressRange::one(addresses[1]),
            protocol: Protocol::Udp,
            source_ports: PortRange::one(ports[0]),
            destination_ports: PortRange::one(ports[1]),
            flows: 1,
            sizes,
            stamps: false,
            run: 0,
            tunnel: None,
        }
    }

    /// Flows that the ranges hold.
    #[must_use]
    pub fn room(&self) -> u64 {
        let ports = match self.protocol {
            Protocol::IcmpEcho => self.source_ports.count().into(),
            Protocol::Udp | Protocol::TcpSyn => {
                u64::from(self.source_ports.count()) * u64::from(self.destination_ports.count())
            }
        };
        ports
            .saturating_mul(self.source.count().into())
            .saturating_mul(self.destination.count().into())
    }

    /// Whether the (inner) addresses are IPv6.
    #[must_use]
    pub fn is_v6(&self) -> bool {
        self.source.first().is_ipv6()
    }

    /// Bytes of headers and stamp, on the device.
    #[must_use]
    pub fn least_bytes(&self) -> usize {
        let outer = self
            .tunnel
            .map_or(0, |tunnel| ETHERNET_BYTES + ip_bytes(tunnel.source) + 16);
        let stamp = if self.stamps { STAMP_BYTES } else { 0 };
        outer
            + ETHERNET_BYTES
            + ip_bytes(self.source.first())
            + self.protocol.header_bytes()
            + stamp
    }

    /// Checks that such frames can be, none of more than `most` bytes with
    /// the check sequence.
    ///
    /// # Errors
    /// When families mix, a size does not fit or the ranges hold fewer flows.
    pub fn check(&self, most: usize) -> Result<(), PacketError> {
        let (source, destination) = (self.source.first(), self.destination.first());
        if source.is_ipv6() != destination.is_ipv6() {
            return Err(PacketError::Families(source, destination));
        }
        if let Some(tunnel) = self.tunnel
            && tunnel.source.is_ipv6() != tunnel.destination.is_ipv6()
        {
            let ends = (tunnel.source, tunnel.destination);
            return Err(PacketError::TunnelFamilies(ends.0, ends.1));
        }
        let least = self.least_bytes() + FCS_BYTES;
        let most = most.min(MAX_FRAME_BYTES);
        for size in [self.sizes.smallest(), self.sizes.largest()] {
            let size = size + FCS_BYTES;
            if !(least..=most).contains(&size) {
                return Err(PacketError::Size {
                    size,
                    what: self.describe(),
                    least,
                    most,
                });
            }
        }
        let room = self.room();
        let most_flows = room.min(1 << FLOW_BITS);
        if self.flows == 0 || u64::from(self.flows) > most_flows {
            return Err(PacketError::Flows {
                flows: self.flows,
                room: most_flows,
            });
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!(
            "{} over IPv{}{}{}",
            self.protocol.name(),
            if self.is_v6() { 6 } else { 4 },
            if self.tunnel.is_some() {
                " in VXLAN"
            } else {
                ""
            },
            if self.stamps {
                " with a stamp (--no-stamps leaves it out)"
            } else {
                ""
            },
        )
    }
}

fn ip_bytes(address: IpAddr) -> usize {
    if address.is_ipv6() { 40 } else { 20 }
}
