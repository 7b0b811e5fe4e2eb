//! Datagrams of one flow that leave together arrive as the ones that were
//! sent.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::sockopt::{UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use spinlane_tests::capture::{self, Recording};
use spinlane_tests::cluster::{Families, UPLINK, Underlay};
use spinlane_tests::{Cluster, LabError, Node, Pod, Result, root_or_skip, traffic};

const DATAGRAM_BYTES: usize = 101;
const LAST_BYTES: usize = 30;
/// Datagrams of one send, the last one shorter.
const DATAGRAMS: usize = 41;

/// Bursts of which one at least comes to the lane at once.
const BURSTS: usize = 20;

/// Ports that tshark has no dissector for: it would find the bytes of another
/// protocol malformed.
const SENDER_PORT: u16 = 40_000;
const RECEIVER_PORT: u16 = 40_001;

/// What arrived in one call: the length of its datagrams, when the socket
/// asked to get several at once, and the bytes.
type Message = (Option<usize>, Vec<u8>);

/// One send that the sender's kernel cuts into datagrams, back to back.
fn payload() -> Vec<u8> {
    (0..(DATAGRAMS - 1) * DATAGRAM_BYTES + LAST_BYTES)
        .map(|at| (at % 251) as u8)
        .collect()
}

fn burst(from: &Pod, to: &Pod, address: IpAddr, together: bool) -> Result<Vec<Message>> {
    let receiver = to
        .namespace()
        .enter(|| UdpSocket::bind(SocketAddr::new(address, RECEIVER_PORT)))?
        .map_err(LabError::io("bind the receiver"))?;
    let target = receiver
        .local_addr()
        .map_err(LabError::io("read the receiver's address"))?;
    if together {
        setsockopt(&receiver, UdpGroSegment, &true)
            .map_err(|errno| LabError::io("ask for several at once")(errno.into()))?;
    }
    let timeout = Some(Duration::from_secs(10));
    let prepared = receiver.set_read_timeout(timeout);
    prepared.map_err(LabError::io("limit the receiver"))?;
    from.namespace()
        .enter(|| -> std::io::Result<()> {
            let any: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let sender = UdpSocket::bind(SocketAddr::new(any, SENDER_PORT))?;
            sender.connect(target)?;
            setsockopt(&sender, UdpGsoSegment, &(DATAGRAM_BYTES as i32))?;
            sender.send(&payload()).map(drop)
        })?
        .map_err(LabError::io("send a burst"))?;
    let mut messages = Vec::new();
    let mut bytes = 0;
    while bytes < payload().len() {
        let Some(message) = receive(&receiver) else {
            break;
        };
        bytes += message.1.len();
        messages.push(message);
    }
    Ok(messages)
}

/// The next message; `None` when the socket's patience ends.
fn receive(socket: &UdpSocket) -> Option<Message> {
    let mut buffer = vec![0; 65536];
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let fd = socket.as_raw_fd();
    let received = recvmsg::<()>(fd, &mut parts, Some(&mut control), MsgFlags::empty()).ok()?;
    let length = received.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::UdpGroSegments(length) => usize::try_from(length).ok(),
        _ => None,
    });
    let bytes = received.bytes;
    buffer.truncate(bytes);
    Some((length, buffer))
}

#[test]
fn a_burst_arrives_as_it_was_sent() -> Result<()> {
    if !root_or_skip("a_burst_arrives_as_it_was_sent") {
        return Ok(());
    }
    let node = Node::plain("burst")?;
    let (a, b) = (Pod::attach(&node, "a")?, Pod::attach(&node, "b")?);
    bursts_arrive(&a, &b)
}

#[test]
fn a_burst_arrives_at_another_node_as_it_was_sent() -> Result<()> {
    if !root_or_skip("a_burst_arrives_at_another_node_as_it_was_sent") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V4, |_| {})?;
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    for address in b.addresses("eth0")? {
        traffic::reach(a.namespace(), address)?;
    }
    bursts_arrive(&a, &b)
}

#[test]
fn a_burst_that_the_kernel_cuts_arrives_as_it_was_sent() -> Result<()> {
    if !root_or_skip("a_burst_that_the_kernel_cuts_arrives_as_it_was_sent") {
        return Ok(());
    }
    let mut cluster = Cluster::prepare(2, Families::V4, |_| {})?;
    for node in cluster.nodes_mut() {
        // What leaves is finished then, and can be checked.
        let plain = format!("ethtool -K {UPLINK} tso off gso off tx-udp-segmentation off tx off");
        node.namespace().sh(&plain)?;
        node.start_agent()?;
    }
    let [one, two] = cluster.nodes() else {
        unreachable!("two nodes");
    };
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    let (link, port) = (cluster.underlay().namespace(), Underlay::port(1));
    let file = one.run_dir().join("link.pcap");
    traffic::reach(a.namespace(), b.v4()?)?;
    let recording = Recording::start((link, &port), &["-Q", "in"], "udp port 4789", &file)?;
    let sent = payload();
    let sent: Vec<&[u8]> = sent.chunks(DATAGRAM_BYTES).collect();
    for address in [b.v4()?, b.v6()?] {
        for _ in 0..BURSTS {
            let messages = burst(&a, &b, address, false)?;
            let arrived: Vec<&[u8]> = messages.iter().map(|(_, bytes)| &bytes[..]).collect();
            assert_eq!(arrived, sent, "to {address}");
        }
    }
    recording.stop()?;
    let datagrams = format!("vxlan && udp.length == {}", 8 + DATAGRAM_BYTES);
    let all = 2 * BURSTS * (DATAGRAMS - 1);
    assert_eq!(capture::count(&file, &datagrams)?, all);
    // Over IPv4, only what was cut has an outer checksum.
    let cut = format!("{datagrams} && !(udp.checksum == 0)");
    assert!(capture::count(&file, &cut)? > 0, "the ring took them all");
    let odd = "_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0 \
               || udp.length.bad";
    assert_eq!(capture::count(&file, odd)?, 0, "tshark complains");
    Ok(())
}

fn bursts_arrive(a: &Pod, b: &Pod) -> Result<()> {
    let sent = payload();
    let sent: Vec<&[u8]> = sent.chunks(DATAGRAM_BYTES).collect();
    for address in [b.v4()?, b.v6()?] {
        let messages = burst(a, b, address, false)?;
        let arrived: Vec<&[u8]> = messages.iter().map(|(_, bytes)| &bytes[..]).collect();
        assert_eq!(arrived, sent, "to {address}");
        let messages = burst(a, b, address, true)?;
        let arrived: Vec<&[u8]> = messages
            .iter()
            .flat_map(|(length, bytes)| bytes.chunks(length.unwrap_or(bytes.len())))
            .collect();
        assert_eq!(arrived, sent, "to {address}, several at once");
        assert!(
            messages.len() < DATAGRAMS,
            "each of {} datagrams to {address} left by itself",
            messages.len()
        );
    }
    Ok(())
}
