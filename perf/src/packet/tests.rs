//! Frames as etherparse reads them, and as it would have summed them.
#![allow(clippy::unwrap_used)]

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::*;

const MOST: usize = MAX_FRAME_BYTES;

fn traffic(source: &str, destination: &str) -> Traffic {
    let macs = [Mac([2, 0, 0, 0, 0, 0x0a]), Mac([2, 0, 0, 0, 0, 0x0b])];
    let addresses = [source.parse().unwrap(), destination.parse().unwrap()];
    Traffic {
        stamps: true,
        run: 7,
        ..Traffic::udp(macs, addresses, [5000, 9], Sizes::one(84))
    }
}

const PAIRS: [(&str, &str); 2] = [
    ("10.0.255.250-10.1.0.9", "10.9.0.1-10.9.0.4"),
    ("fd00::fff0-fd00::1:9", "fd09::1-fd09::4"),
];

/// Every frame of a run, in a buffer that is used again and again.
fn frames(traffic: &Traffic, count: u64) -> Vec<Vec<u8>> {
    let template = Template::new(traffic, MOST).unwrap();
    let mut buffer = vec![0u8; 2048];
    (0..count)
        .map(|number| {
            let size = template.write(number, 1_000_000_007 * number, &mut buffer);
            buffer[..size].to_vec()
        })
        .collect()
}

fn checksum_of(packet: &SlicedPacket<'_>) -> (u16, u16) {
    let net = packet.net.clone().unwrap();
    match (net, packet.transport.clone().unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let ip = ip.header().to_header();
            let sum = udp.to_header().calc_checksum_ipv4(&ip, udp.payload());
            (udp.checksum(), sum.unwrap())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let ip = ip.header().to_header();
            let sum = udp.to_header().calc_checksum_ipv6(&ip, udp.payload());
            (udp.checksum(), sum.unwrap())
        }
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let ip = ip.header().to_header();
            let sum = tcp.to_header().calc_checksum_ipv4(&ip, tcp.payload());
            (tcp.checksum(), sum.unwrap())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let ip = ip.header().to_header();
            let sum = tcp.to_header().calc_checksum_ipv6(&ip, tcp.payload());
            (tcp.checksum(), sum.unwrap())
        }
        (NetSlice::Ipv4(_), TransportSlice::Icmpv4(icmp)) => {
            let sum = icmp.icmp_type().calc_checksum(icmp.payload());
            (icmp.checksum(), sum)
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let ip = ip.header().to_header();
            let kind = icmp.icmp_type();
            let sum = kind.calc_checksum(ip.source, ip.destination, icmp.payload());
            (icmp.checksum(), sum.unwrap())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn checksums_hold_for_every_protocol_and_flow() {
    for (source, destination) in PAIRS {
        for protocol in [Protocol::Udp, Protocol::TcpSyn, Protocol::IcmpEcho] {
            let mut traffic = traffic("10.0.0.1", "10.0.0.2");
            traffic.source = source.parse().unwrap();
            traffic.destination = destination.parse().unwrap();
            traffic.protocol = protocol;
            traffic.source_ports = "65530-65535".parse().unwrap();
            traffic.destination_ports = "9-11".parse().unwrap();
            traffic.sizes = "96:1,101:1,1518:1".parse().unwrap();
            traffic.flows = u32::try_from(traffic.room()).unwrap();
            for (number, frame) in frames(&traffic, 2000).iter().enumerate() {
                let packet = SlicedPacket::from_ethernet(frame).unwrap();
                if let Some(NetSlice::Ipv4(ip)) = &packet.net {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
                let (is, should) = checksum_of(&packet);
                assert_eq!(is, should, "{source} {protocol:?} frame {number}");
            }
        }
    }
}

#[test]
fn a_frame_is_what_etherparse_builds() {
    let mut traffic = traffic("10.0.0.1", "10.0.0.2");
    traffic.stamps = false;
    traffic.sizes = Sizes::one(64);
    let built = PacketBuilder::ethernet2(traffic.source_mac.0, traffic.destination_mac.0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(5000, 9);
    let mut bytes = Vec::new();
    built.write(&mut bytes, &[0; 18]).unwrap();
    assert_eq!(frames(&traffic, 1)[0], bytes);
}

#[test]
fn flows_differ_and_repeat_in_order() {
    let mut traffic = traffic("10.0.0.1", "10.0.0.2");
    traffic.source = "10.0.0.1-10.0.0.2".parse().unwrap();
    traffic.source_ports = "5000-5002".parse().unwrap();
    traffic.destination_ports = "9-10".parse().unwrap();
    traffic.flows = 12;
    let tuple = |frame: &[u8]| {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(NetSlice::Ipv4(ip)) = packet.net else {
            panic!("no IPv4")
        };
        let Some(TransportSlice::Udp(udp)) = packet.transport else {
            panic!("no UDP")
        };
        let source = ip.header().source_addr();
        (source, udp.source_port(), udp.destination_port())
    };
    let frames = frames(&traffic, 36);
    let mut seen: Vec<_> = frames[..12].iter().map(|frame| tuple(frame)).collect();
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(tuple(frame), seen[number % 12]);
        let stamp = Stamp::read(&frame[42..]).unwrap();
        assert_eq!(stamp.stream, 7 << 24 | (number as u32 % 12));
        assert_eq!(stamp.sequence, number as u32 / 12);
        assert_eq!(stamp.time_ns, 1_000_000_007 * number as u64);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 12);
}

#[test]
fn a_mix_keeps_its_shares_in_every_flow() {
    for flows in [1, 2, 11, 12, 13] {
        let mut traffic = traffic("10.0.0.1", "10.0.0.2");
        traffic.source_ports = PortRange::from(5000, flows);
        traffic.flows = flows;
        traffic.sizes = Sizes::imix();
        let frames = frames(&traffic, u64::from(flows) * 12);
        for flow in 0..flows as usize {
            let of = |size| {
                let own = frames.iter().skip(flow).step_by(flows as usize);
                own.filter(|frame| frame.len() == size).count()
            };
            assert_eq!((of(60), of(590), of(1514)), (7, 4, 1), "{flows} flows");
        }
    }
}

#[test]
fn refuses_what_cannot_be() {
    let mixed = traffic("10.0.0.1", "fd00::2").check(MOST);
    assert!(matches!(mixed, Err(PacketError::Families(..))));
    let mut small = traffic("10.0.0.1", "10.0.0.2");
    small.sizes = Sizes::one(64);
    assert_eq!(small.check(MOST), Ok(()), "64 bytes hold a stamp");
    small = traffic("fd00::1", "fd00::2");
    small.sizes = Sizes::one(83);
    let wrong = small.check(MOST).unwrap_err();
    assert!(matches!(wrong, PacketError::Size { least: 84, .. }));
    small.stamps = false;
    assert_eq!(small.check(MOST), Ok(()));
    small.sizes = Sizes::one(1519);
    assert!(matches!(
        small.check(1518),
        Err(PacketError::Size { most: 1518, .. })
    ));
    let mut many = traffic("10.0.0.1", "10.0.0.2");
    many.source_ports = "5000-65535".parse().unwrap();
    many.flows = 60_537;
    assert!(matches!(
        many.check(MOST),
        Err(PacketError::Flows { room: 60_536, .. })
    ));
    many.flows = 60_536;
    assert_eq!(many.check(MOST), Ok(()));
}

#[test]
fn addresses_read_as_they_are_written() {
    let mac: Mac = "02:00:0a:ff:00:0b".parse().unwrap();
    assert_eq!(mac.to_string(), "02:00:0a:ff:00:0b");
    for wrong in [
        "",
        "02:00",
        "02:00:00:00:00:00:00",
        "2:0:0:0:0:0",
        "gg:00:00:00:00:00",
    ] {
        assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
    }
}
