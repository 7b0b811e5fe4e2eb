//! Tells a segment's stations where an address now is: a gratuitous ARP
//! (RFC 5227 section 3) and an unsolicited neighbour advertisement (RFC 4861
//! section 7.2.6), sent by the pod's own interface.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use spinlane_dataplane::types::MacAddr;

/// Sends what announces `addresses`, from the interface of that name in the
/// calling thread's namespace, and gives the socket: it takes the kernel
/// milliseconds to close.
pub fn announce(interface: &str, mac: MacAddr, addresses: &[IpAddr]) -> io::Result<OwnedFd> {
    let link = nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let socket = nix::sys::socket::socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None::<SockProtocol>,
    )?;
    for address in addresses {
        let frame = match address {
            IpAddr::V4(v4) => gratuitous_arp(mac, *v4),
            IpAddr::V6(v6) => unsolicited_advertisement(mac, *v6),
        };
        nix::sys::socket::sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty())?;
    }
    Ok(socket)
}

/// An ARP request for the sender's own address.
fn gratuitous_arp(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend_from_slice(&MacAddr::BROADCAST.0);
    frame.extend_from_slice(&mac.0);
    // EtherType ARP; Ethernet, IPv4, lengths 6 and 4; request.
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&address.octets());
    frame
}

/// A neighbour advertisement to all nodes, override set, with the target's
/// link-layer address.
fn unsolicited_advertisement(mac: MacAddr, address: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    body.extend_from_slice(&address.octets());
    body.extend_from_slice(&[2, 1]);
    body.extend_from_slice(&mac.0);
    let sum = checksum(address, all_nodes, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = Vec::with_capacity(86);
    frame.extend_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend_from_slice(&(body.len() as u16).to_be_bytes());
    // ICMPv6, hop limit 255.
    frame.extend_from_slice(&[58, 255]);
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&all_nodes.octets());
    frame.extend_from_slice(&body);
    frame
}

/// The ICMPv6 checksum (RFC 4443 section 2.3) of a body with its field zero.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> u16 {
    let length = [0, 0, 0, body.len() as u8, 0, 0, 0, 58];
    let words = [&source.octets()[..], &destination.octets(), &length, body].concat();
    let mut sum: u32 = words
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Type, SlicedPacket, TransportSlice};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    #[test]
    fn advertisement_is_valid() {
        let address: Ipv6Addr = "fd00::9".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, address);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
            panic!("no ICMPv6 in {packet:?}");
        };
        let destination: Ipv6Addr = "ff02::1".parse().unwrap();
        assert!(icmp.is_checksum_valid(address.octets(), destination.octets()));
        assert!(matches!(
            icmp.icmp_type(),
            Icmpv6Type::NeighborAdvertisement(_)
        ));
    }

    #[test]
    fn gratuitous_arp_asks_for_its_own_address() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(10, 50, 0, 9));
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::NetSlice::Arp(arp)) = packet.net else {
            panic!("no ARP in {packet:?}");
        };
        assert_eq!(arp.sender_protocol_addr(), arp.target_protocol_addr());
        assert_eq!(arp.sender_hw_addr(), MAC.0);
    }
}
