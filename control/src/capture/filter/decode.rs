//! The headers that filters ask about, read leniently: whatever is cut off or
//! malformed is absent, and a filter on it does not match.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use spinlane_dataplane::types::MacAddr;

use super::Network;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMP6: u8 = 58;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
const IPV6: u16 = 0x86dd;
/// Extension headers that are walked before giving up.
const MOST_EXTENSIONS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Headers {
    /// Source, destination.
    pub(super) macs: Option<(MacAddr, MacAddr)>,
    /// VLAN of the outermost tag.
    pub(super) vlan: Option<u16>,
    /// EtherType behind the tags.
    pub(super) ethertype: Option<u16>,
    pub(super) network: Option<Network>,
    /// Source, destination; of ARP the sender's and the target's.
    pub(super) addresses: Option<(IpAddr, IpAddr)>,
    pub(super) protocol: Option<u8>,
    /// Source, destination; absent in later fragments.
    pub(super) ports: Option<(u16, u16)>,
}

impl Headers {
    pub(super) fn of(frame: &[u8]) -> Headers {
        let mut headers = Headers::default();
        // Each reader stops at the first header that is cut off.
        let _ = headers.read(frame);
        headers
    }

    fn read(&mut self, frame: &[u8]) -> Option<()> {
        let dst = MacAddr(*frame.first_chunk()?);
        let src = MacAddr(*frame.get(6..)?.first_chunk()?);
        self.macs = Some((src, dst));
        let mut at = 12;
        let mut ethertype = be16(frame, at)?;
        while ethertype == VLAN || ethertype == QINQ {
            let tag = be16(frame, at + 2)? & 0x0fff;
            self.vlan = self.vlan.or(Some(tag));
            at += 4;
            ethertype = be16(frame, at)?;
        }
        self.ethertype = Some(ethertype);
        let body = frame.get(at + 2..)?;
        match ethertype {
            IPV4 => self.read_v4(body),
            IPV6 => self.read_v6(body),
            ARP => self.read_arp(body),
            _ => None,
        }
    }

    fn read_v4(&mut self, body: &[u8]) -> Option<()> {
        self.network = Some(Network::V4);
        let header_len = usize::from(body.first()? & 0xf) * 4;
        let src = Ipv4Addr::from(*body.get(12..)?.first_chunk::<4>()?);
        let dst = Ipv4Addr::from(*body.get(16..)?.first_chunk::<4>()?);
        self.addresses = Some((src.into(), dst.into()));
        let protocol = *body.get(9)?;
        self.protocol = Some(protocol);
        let first_fragment = be16(body, 6)? & 0x1fff == 0;
        if first_fragment {
            self.read_ports(protocol, body.get(header_len..)?)?;
        }
        Some(())
    }

    fn read_v6(&mut self, body: &[u8]) -> Option<()> {
        self.network = Some(Network::V6);
        let src = Ipv6Addr::from(*body.get(8..)?.first_chunk::<16>()?);
        let dst = Ipv6Addr::from(*body.get(24..)?.first_chunk::<16>()?);
        self.addresses = Some((src.into(), dst.into()));
        let mut next = *body.get(6)?;
        let mut rest = body.get(40..)?;
        for _ in 0..MOST_EXTENSIONS {
            let len = match next {
                // Hop-by-hop, routing, destination options (RFC 8200).
                0 | 43 | 60 => 8 + usize::from(*rest.get(1)?) * 8,
                // Authentication header (RFC 4302) counts in words.
                51 => 8 + usize::from(*rest.get(1)?) * 4,
                44 if be16(rest, 2)? & 0xfff8 != 0 => {
                    self.protocol = Some(*rest.first()?);
                    return None;
                }
                44 => 8,
                _ => break,
            };
            next = *rest.first()?;
            rest = rest.get(len..)?;
        }
        self.protocol = Some(next);
        self.read_ports(next, rest)
    }

    fn read_ports(&mut self, protocol: u8, body: &[u8]) -> Option<()> {
        if matches!(protocol, TCP | UDP | SCTP) {
            self.ports = Some((be16(body, 0)?, be16(body, 2)?));
        }
        Some(())
    }

    fn read_arp(&mut self, body: &[u8]) -> Option<()> {
        self.network = Some(Network::Arp);
        // Ethernet and IPv4 (RFC 826).
        if body.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let sender = Ipv4Addr::from(*body.get(14..)?.first_chunk::<4>()?);
        let target = Ipv4Addr::from(*body.get(24..)?.first_chunk::<4>()?);
        self.addresses = Some((sender.into(), target.into()));
        Some(())
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u16::from_be_bytes(*b))
}
