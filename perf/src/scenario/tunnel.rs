//! Frames into a tunnel and out of it, one node's switch at work by itself.
//!
//! ```text
//! pod ── node ──(uplink)──┬── the link ── the second node, which stands still
//!                         └ sink of what was encapsulated, source of what is to be decapsulated
//! ```
//!
//! The far end of the first node's uplink counts and drops what comes, before
//! the link's bridge sees it, and sends past that bridge. How frames look in
//! the tunnel is read off a ping that came through it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use spinlane_tests::Namespace;
use spinlane_tests::cluster::UPLINK;

use crate::generator::live::{LiveFrames, device_index};
use crate::measure::{MeasureError, io_error};
use crate::packet::{
    ETHERNET_BYTES, FCS_BYTES, Mac, PortRange, Protocol, Sizes, Traffic, Tunnel, VXLAN_PORT,
};
use crate::scenario::frames::{self, live_frames, sink};
use crate::scenario::{Run, Sample};
use crate::sink::Filter;
use crate::sink::tc::TcSink;
use crate::stop::Stop;
use crate::subject::{SINK_PORT, Subject, Wire, ping, signal};

/// Bytes of the frames inside, without the frame check sequence.
const INNER_BYTES: usize = 64;
/// What VXLAN over IPv4 adds.
const TUNNEL_BYTES: usize = 50;
/// How long a ping may take to come through.
const PATIENCE: Duration = Duration::from_secs(5);

/// Frames from the first pod, counted at the far end of its node's uplink.
pub(super) fn into(subject: &dyn Subject, run: &Run, stop: &Stop) -> Result<Sample, MeasureError> {
    let wire = wire(subject)?;
    let traffic = frames::traffic(subject, run, INNER_BYTES)?;
    let _far = Still::new(&wire);
    let _live = LiveFrames::allow(subject.entrance())?;
    let filter = Filter {
        protocol: Protocol::Udp,
        ports: Some(PortRange::one(SINK_PORT)),
        tunnel_port: Some(VXLAN_PORT),
    };
    let sink = wire.namespace.enter(|| {
        let port = device_index(&wire.port)?;
        Ok::<_, MeasureError>(TcSink::attach_for(port, &filter)?)
    })??;
    let [from, _] = subject.pods();
    live_frames((from.namespace, "eth0"), &traffic, sink, run, stop)
}

/// Frames from the far end of the first node's uplink, counted in its pod.
pub(super) fn out_of(
    subject: &dyn Subject,
    run: &Run,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let wire = wire(subject)?;
    let [to, from] = subject.pods();
    let addresses = [from.address(run.v6), to.address(run.v6)];
    let seen = observe(&wire, from.namespace, addresses)?;
    let _far = Still::new(&wire);
    let mut traffic = Traffic::udp(
        seen.macs,
        addresses,
        [frames::SOURCE_PORT, SINK_PORT],
        Sizes::one(TUNNEL_BYTES + INNER_BYTES + FCS_BYTES),
    );
    traffic.tunnel = Some(seen.tunnel);
    let _live = LiveFrames::allow((wire.node, UPLINK))?;
    let sink = sink(&to, Some(SINK_PORT))?;
    live_frames((wire.namespace, &wire.port), &traffic, sink, run, stop)
}

fn wire(subject: &dyn Subject) -> Result<Wire<'_>, MeasureError> {
    subject.wire().ok_or_else(|| MeasureError::Unexpected {
        what: subject.kind().name().to_owned(),
        detail: "it has no tunnel; choose a subject with two nodes".to_owned(),
    })
}

/// The second node's switch, which stands still for as long as this lives.
struct Still<'a>(&'a [u32]);

impl<'a> Still<'a> {
    fn new(wire: &'a Wire<'_>) -> Still<'a> {
        signal(&wire.far_pids, Signal::SIGSTOP);
        Still(&wire.far_pids)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        signal(self.0, Signal::SIGCONT);
    }
}

/// How a frame is wrapped, and what Ethernet addresses it has inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wrapping {
    tunnel: Tunnel,
    macs: [Mac; 2],
}

/// Sends a ping through the tunnel and looks at it on the link.
fn observe(
    wire: &Wire<'_>,
    from: &Namespace,
    addresses: [IpAddr; 2],
) -> Result<Wrapping, MeasureError> {
    let failed = |errno: nix::Error| io_error("listening on the link")(errno.into());
    let listener = wire.namespace.enter(|| {
        let all = SockProtocol::EthAll;
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Packet, SockType::Raw, flags, all)
    })?;
    let listener = listener.map_err(failed)?;
    let wait = TimeVal::milliseconds(100);
    setsockopt(&listener, sockopt::ReceiveTimeout, &wait).map_err(failed)?;
    ping(from, addresses[1])?;
    let began = Instant::now();
    let mut frame = [0u8; 2048];
    while began.elapsed() < PATIENCE {
        match recv(listener.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(bytes) => {
                if let Some(wrapping) = unwrap(&frame[..bytes], addresses) {
                    return Ok(wrapping);
                }
            }
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => drop(ping(from, addresses[1])?),
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(MeasureError::Unreachable {
        what: "a ping in VXLAN on the link",
        seconds: PATIENCE.as_secs(),
    })
}

/// Reads a frame in VXLAN over IPv4 (RFC 7348, figure 1) that goes between
/// two addresses; others are `None`.
fn unwrap(frame: &[u8], [source, destination]: [IpAddr; 2]) -> Option<Wrapping> {
    const UDP_AT: usize = ETHERNET_BYTES + 20;
    let is_tunnel = frame.get(12..ETHERNET_BYTES)? == [8, 0]
        && *frame.get(ETHERNET_BYTES)? == 0x45
        && *frame.get(23)? == 17
        && *frame.get(UDP_AT + 2..UDP_AT + 4)? == VXLAN_PORT.to_be_bytes();
    let inner = frame.get(TUNNEL_BYTES..)?;
    let network = inner.get(ETHERNET_BYTES..)?;
    let addresses = match source {
        IpAddr::V4(_) => [12, 16].map(|at| v4(network, at).map(IpAddr::V4)),
        IpAddr::V6(_) => [8, 24].map(|at| v6(network, at).map(IpAddr::V6)),
    };
    if !is_tunnel || addresses != [Some(source), Some(destination)] {
        return None;
    }
    let vni = frame.get(UDP_AT + 12..UDP_AT + 15)?;
    Some(Wrapping {
        tunnel: Tunnel {
            source_mac: mac(frame, 6)?,
            destination_mac: mac(frame, 0)?,
            source: v4(frame, ETHERNET_BYTES + 12)?.into(),
            destination: v4(frame, ETHERNET_BYTES + 16)?.into(),
            vni: u32::from_be_bytes([0, vni[0], vni[1], vni[2]]),
            port: VXLAN_PORT,
        },
        macs: [mac(inner, 6)?, mac(inner, 0)?],
    })
}

fn mac(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..)?.first_chunk().copied().map(Mac)
}

fn v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes
        .get(at..)?
        .first_chunk::<4>()
        .copied()
        .map(Ipv4Addr::from)
}

fn v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes
        .get(at..)?
        .first_chunk::<16>()
        .copied()
        .map(Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn reads_frames_in_a_tunnel() {
        let (inner_macs, outer_macs) = ([[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]], [[2; 6], [4; 6]]);
        let (source, destination) = ([10, 99, 0, 2], [10, 99, 0, 1]);
        let mut inner = Vec::new();
        PacketBuilder::ethernet2(inner_macs[0], inner_macs[1])
            .ipv4(source, destination, 64)
            .icmpv4_echo_request(7, 1)
            .write(&mut inner, b"ping")
            .unwrap();
        let mut payload = vec![8, 0, 0, 0, 0x12, 0x34, 0x56, 0];
        payload.extend(&inner);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(outer_macs[0], outer_macs[1])
            .ipv4([172, 31, 0, 2], [172, 31, 0, 1], 64)
            .udp(50_000, 4789)
            .write(&mut frame, &payload)
            .unwrap();
        let addresses = [source, destination].map(IpAddr::from);
        let seen = unwrap(&frame, addresses).unwrap();
        assert_eq!(seen.macs, inner_macs.map(Mac));
        assert_eq!(
            seen.tunnel,
            Tunnel {
                source_mac: Mac(outer_macs[0]),
                destination_mac: Mac(outer_macs[1]),
                source: [172, 31, 0, 2].into(),
                destination: [172, 31, 0, 1].into(),
                vni: 0x12_3456,
                port: 4789,
            }
        );
        let [there, back] = addresses;
        assert_eq!(unwrap(&frame, [back, there]), None, "the answer");
        assert_eq!(unwrap(&inner, addresses), None, "no tunnel");
        assert_eq!(unwrap(&frame[..60], addresses), None, "cut short");
    }
}
