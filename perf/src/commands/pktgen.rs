//! `spinlane-perf pktgen`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::ifaddrs::getifaddrs;
use serde::Serialize;
use spinlane_perf::cpu;
use spinlane_perf::generator::afxdp::AfXdpGenerator;
use spinlane_perf::generator::replay::Recording;
use spinlane_perf::generator::socket::{SocketGenerator, SocketOptions};
use spinlane_perf::generator::xdp::{MAX_LIVE_FRAME_BYTES, XdpGenerator};
use spinlane_perf::generator::{Limit, Sent};
use spinlane_perf::measure::{MeasureError, io_error};
use spinlane_perf::packet::{
    AddressRange, ETHERNET_BYTES, FCS_BYTES, MAX_FRAME_BYTES, Mac, PortRange, Protocol, Sizes,
    Template, Traffic, Tunnel, VXLAN_PORT,
};
use spinlane_perf::path::route_mtu;
use spinlane_perf::progress::Timed;
use spinlane_perf::report;
use spinlane_perf::stop::Stop;
use spinlane_perf::terminal;

use super::{device, enter, show, show_measured};
use crate::args::seconds;
use crate::output::Output;

/// Flows that ranges make by themselves, without `--flows`.
const MAX_OWN_FLOWS: u64 = 1 << 20;
const DEFAULT_SOURCE_PORT: u16 = 5000;

/// How packets are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// In the kernel, straight out of the device: the fastest on a veth
    Xdp,
    /// By an AF_XDP socket: jumbo frames and recordings too
    Afxdp,
    /// By UDP sockets, as an application sends
    Socket,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Engine::Xdp => "xdp",
            Engine::Afxdp => "afxdp",
            Engine::Socket => "socket",
        }
    }

    /// Why a device may not have taken what was offered, and what to do.
    fn hint_when_refused(self) -> &'static str {
        match self {
            Engine::Xdp => {
                "a veth does only where GRO is on at its far end (ethtool -K FAR-END gro on); or \
                 use --engine afxdp"
            }
            Engine::Afxdp | Engine::Socket => {
                "a veth drops what is longer than the MTU of its far end, and all while that is \
                 down"
            }
        }
    }

    fn largest_frame(self) -> usize {
        match self {
            Engine::Xdp => MAX_LIVE_FRAME_BYTES,
            Engine::Afxdp | Engine::Socket => MAX_FRAME_BYTES,
        }
    }
}

/// `pktgen`.
#[derive(Debug, Args)]
pub(crate) struct Pktgen {
    /// Network namespace, a name or a path; the caller's without
    #[arg(long, value_name = "NAME")]
    netns: Option<PathBuf>,
    /// Device to send from (engines xdp and afxdp)
    #[arg(long, default_value = "eth0")]
    dev: String,
    /// How packets are made: xdp, but recordings are sent by afxdp
    #[arg(long, value_enum)]
    engine: Option<Engine>,
    #[command(flatten)]
    fields: Fields,
    #[command(flatten)]
    tunnel: TunnelFields,
    #[command(flatten)]
    replay: Replay,
    /// Let the kernel cut many datagrams from one send (engine socket)
    #[arg(long)]
    gso: bool,
    /// How long
    #[arg(long, value_parser = seconds, value_name = "S")]
    seconds: Option<Duration>,
    /// How many packets
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Packets a second; as fast as it goes without
    #[arg(long, value_name = "PPS", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Core to run on
    #[arg(long)]
    core: Option<usize>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What is in the packets.
#[derive(Debug, Args)]
struct Fields {
    /// Source Ethernet address; the device's without
    #[arg(long, value_name = "MAC")]
    src_mac: Option<Mac>,
    /// Destination Ethernet address: the next hop's (engines xdp and afxdp)
    #[arg(long, value_name = "MAC")]
    dst_mac: Option<Mac>,
    /// Source address or range; the device's first without
    #[arg(long, value_name = "ADDR[-ADDR]")]
    src: Option<AddressRange>,
    /// Destination address or range
    #[arg(long, value_name = "ADDR[-ADDR]", required_unless_present = "replay")]
    dst: Option<AddressRange>,
    /// Source port or range; sockets take free ones without, others 5000 on
    #[arg(long, value_name = "PORT[-PORT]")]
    sport: Option<PortRange>,
    /// Destination port or range
    #[arg(long, value_name = "PORT[-PORT]", default_value = "9")]
    dport: PortRange,
    /// What the packets carry
    #[arg(long, value_enum, default_value = "udp")]
    protocol: Protocol,
    /// Bytes of a frame, the 4 of its check sequence counted: one size, imix
    /// (7 of 64, 4 of 594, 1 of 1518), or a mix such as 64:3,1518:1
    #[arg(long, value_name = "SIZES", default_value = "64")]
    size: Sizes,
    /// How many flows; as many as the ranges make without
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    flows: Option<u32>,
    /// Leave out the number and time that a sink reads
    #[arg(long)]
    no_stamps: bool,
}

/// What is around the packets.
#[derive(Debug, Args)]
struct TunnelFields {
    /// Put the frames into VXLAN of this network; --size counts all of it
    #[arg(long, value_name = "VNI", value_parser = clap::value_parser!(u32).range(0..1 << 24),
          requires_all = ["outer_src", "outer_dst", "outer_dst_mac"])]
    vxlan: Option<u32>,
    /// This end of the tunnel
    #[arg(long, value_name = "ADDR", requires = "vxlan")]
    outer_src: Option<IpAddr>,
    /// The other end
    #[arg(long, value_name = "ADDR", requires = "vxlan")]
    outer_dst: Option<IpAddr>,
    /// Outer source Ethernet address; the device's without
    #[arg(long, value_name = "MAC", requires = "vxlan")]
    outer_src_mac: Option<Mac>,
    /// Outer destination Ethernet address
    #[arg(long, value_name = "MAC", requires = "vxlan")]
    outer_dst_mac: Option<Mac>,
    /// UDP port of the tunnel
    #[arg(long, value_name = "PORT", default_value_t = VXLAN_PORT, requires = "vxlan")]
    vxlan_port: u16,
}

/// Recorded packets.
#[derive(Debug, Args)]
struct Replay {
    /// Send the packets of a pcap or pcapng file as they are, at their own
    /// pace, or at --rate
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "src", "dst", "sport", "dport", "protocol", "size", "flows", "vxlan", "gso",
        "src_mac", "dst_mac", "no_stamps"])]
    replay: Option<PathBuf>,
    /// Times its own pace; 0 for as fast as it goes
    #[arg(long, value_name = "FACTOR", requires = "replay", conflicts_with = "rate", value_parser = speed)]
    speed: Option<f64>,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 1, requires = "replay",
          value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

fn speed(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|speed| (0.0..=1e6).contains(speed))
        .ok_or_else(|| format!("{text:?} is no factor between 0 and 1000000"))
}

/// What was offered. A rate is what a sink counts.
#[derive(Debug, Serialize)]
struct Offered {
    engine: &'static str,
    offered_packets: u64,
    offered_per_second: f64,
    seconds: f64,
    late_seconds: f64,
    /// Packets that the device says it sent meanwhile, whoever's.
    device_packets: u64,
}

impl Pktgen {
    /// The chosen engine, or the one for what is to be sent.
    fn engine(&self) -> Engine {
        let own = match self.replay.replay {
            Some(_) => Engine::Afxdp,
            None => Engine::Xdp,
        };
        self.engine.unwrap_or(own)
    }

    /// Refuses what the chosen engine would pass over in silence.
    fn check(&self) -> Result<(), MeasureError> {
        let engine = self.engine();
        let Replay {
            replay,
            speed,
            rounds,
        } = &self.replay;
        if replay.is_some() && engine != Engine::Afxdp {
            let what = format!("--engine {}", engine.name());
            return Err(wrong(what, "only --engine afxdp sends recordings"));
        }
        for (what, given) in [("--speed", speed.is_some()), ("--rounds", *rounds != 1)] {
            if replay.is_none() && given {
                return Err(wrong(what, "only --replay has it"));
            }
        }
        if self.gso && engine != Engine::Socket {
            return Err(wrong("--gso", "only --engine socket has it"));
        }
        let macs = [
            ("--src-mac", self.fields.src_mac),
            ("--dst-mac", self.fields.dst_mac),
        ];
        match macs.iter().find(|(_, mac)| mac.is_some()) {
            Some((what, _)) if engine == Engine::Socket => Err(wrong(
                *what,
                "sockets leave Ethernet addresses to the kernel; choose --engine xdp or afxdp",
            )),
            _ => Ok(()),
        }
    }
}

/// Sends, and says what was offered.
pub(crate) fn run(arguments: &Pktgen, stop: &Stop) -> Result<(), MeasureError> {
    arguments.check()?;
    enter(arguments.netns.as_deref())?;
    if let Some(core) = arguments.core {
        cpu::pin(core).map_err(io_error(format!("--core {core}")))?;
    }
    let limit = Limit {
        duration: arguments.seconds,
        count: arguments.count,
        rate: arguments.rate,
        ..Limit::default()
    };
    let engine = arguments.engine();
    if engine != Engine::Socket {
        device(&arguments.dev)?;
    }
    let before = device_packets(&arguments.dev)?;
    let sent = match &arguments.replay.replay {
        Some(file) => {
            let recording = Recording::read(file)?;
            let own_pace = arguments
                .replay
                .speed
                .or(limit.rate.is_none().then_some(1.0));
            let speed = own_pace.filter(|speed| *speed > 0.0);
            let rounds = arguments.replay.rounds;
            let own = speed.and_then(|speed| recording.takes(rounds, speed));
            let _timed = timed(&limit, Some(recording.count(rounds)), own);
            let mut generator = AfXdpGenerator::new(device(&arguments.dev)?)?;
            generator.replay(&recording, speed, rounds, (limit, stop))?
        }
        None => {
            let _timed = timed(&limit, None, None);
            generate(arguments, limit, stop)?
        }
    };
    let offered = Offered {
        engine: engine.name(),
        offered_packets: sent.packets,
        offered_per_second: sent.packets as f64 / sent.seconds.max(1e-9),
        seconds: sent.seconds,
        late_seconds: sent.late_seconds,
        device_packets: device_packets(&arguments.dev)?.saturating_sub(before),
    };
    // The namespace's own packets are among what the device took.
    if engine != Engine::Socket && offered.device_packets < sent.packets.div_ceil(10) {
        let hint = engine.hint_when_refused();
        terminal::warn(&format!(
            "spinlane-perf: {} took {} of {} packets: {hint}",
            arguments.dev, offered.device_packets, sent.packets
        ));
    }
    let text = offered.text();
    match arguments.seconds.is_some() || arguments.count.is_some() {
        true => show_measured(&arguments.output, &offered, &text, stop),
        // Without an end of its own it has run until it was told to end.
        false => show(&arguments.output, &offered, &text),
    }
}

/// A bar over what takes a known time: that of `limit`, at most so many
/// packets, at most `own`.
fn timed(limit: &Limit, packets: Option<u64>, own: Option<Duration>) -> Timed {
    let count = [limit.count, packets].into_iter().flatten().min();
    let paced = count
        .zip(limit.rate)
        .and_then(|(count, rate)| Duration::try_from_secs_f64(count as f64 / rate as f64).ok());
    let known = [limit.duration, paced, own].into_iter().flatten().min();
    Timed::start("sending", known.unwrap_or_default())
}

/// Packets that a device of the namespace which the thread is in has sent.
fn device_packets(name: &str) -> Result<u64, MeasureError> {
    const PATH: &str = "/proc/thread-self/net/dev";
    let text = std::fs::read_to_string(PATH).map_err(io_error(PATH.to_owned()))?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let device = lines.find(|(device, _)| device.trim() == name);
    let packets = device.and_then(|(_, counters)| counters.split_whitespace().nth(9));
    Ok(packets
        .and_then(|packets| packets.parse().ok())
        .unwrap_or(0))
}

impl Offered {
    fn text(&self) -> String {
        let late = if self.late_seconds > 0.0 {
            format!("; {:.3} s late, not made up for", self.late_seconds)
        } else {
            String::new()
        };
        format!(
            "offered {} packets in {:.2} s, {}{late}; what arrives, a sink counts",
            self.offered_packets,
            self.seconds,
            report::quantity(self.offered_per_second, "packets/s")
        )
    }
}

fn generate(arguments: &Pktgen, limit: Limit, stop: &Stop) -> Result<Sent, MeasureError> {
    let traffic = traffic(arguments)?;
    let engine = arguments.engine();
    let template = Template::new(&traffic, engine.largest_frame())?;
    if engine != Engine::Socket {
        warn_of_route(&traffic);
    }
    match engine {
        Engine::Xdp => XdpGenerator::new(device(&arguments.dev)?, &template)?.run(limit, stop),
        Engine::Afxdp => AfXdpGenerator::new(device(&arguments.dev)?)?.run(&template, limit, stop),
        Engine::Socket => {
            let options = SocketOptions {
                any_source: arguments.fields.src.is_none(),
                any_port: arguments.fields.sport.is_none(),
                segmentation: arguments.gso,
            };
            SocketGenerator::new(&template, options)?.run(limit, stop)
        }
    }
}

/// Says so when the pod's own kernel would not send such packets: a device may
/// take more than its routes, and who switches or routes them drops them then.
fn warn_of_route(traffic: &Traffic) {
    let outermost = traffic.tunnel.map(|tunnel| tunnel.destination);
    let to = outermost.unwrap_or(traffic.destination.first());
    let largest = traffic.sizes.largest().saturating_sub(ETHERNET_BYTES) as u64;
    if let Some(most) = route_mtu(to).filter(|most| largest > *most) {
        terminal::warn(&format!(
            "spinlane-perf: packets of {largest} bytes, but the route to {to} takes {most}: they \
             may be dropped on the way; --size {} fits",
            most as usize + ETHERNET_BYTES + FCS_BYTES
        ));
    }
}

fn wrong(what: impl Into<String>, detail: impl Into<String>) -> MeasureError {
    MeasureError::Usage {
        what: what.into(),
        detail: detail.into(),
    }
}

/// What the arguments describe.
fn traffic(arguments: &Pktgen) -> Result<Traffic, MeasureError> {
    let fields = &arguments.fields;
    let destination = fields
        .dst
        .ok_or_else(|| wrong("pktgen", "give --dst or --replay"))?;
    let own = Own::of(&arguments.dev)?;
    let socket = arguments.engine() == Engine::Socket;
    let source = match fields.src {
        Some(source) => source,
        // A socket's address is the kernel's choice; only its family counts.
        None if socket => AddressRange::one(destination.first()),
        None => AddressRange::one(own.address(destination.first().is_ipv6())?),
    };
    let macs = if socket {
        [Mac([0; 6]); 2]
    } else {
        let next_hop = fields.dst_mac.ok_or_else(|| {
            wrong(
                format!("pktgen --engine {}", arguments.engine().name()),
                "give --dst-mac, the next hop's Ethernet address (ip neigh shows it)",
            )
        })?;
        [fields.src_mac.map_or_else(|| own.mac(), Ok)?, next_hop]
    };
    let mut source_ports = fields.sport.unwrap_or(PortRange::one(DEFAULT_SOURCE_PORT));
    if let Some(flows) = fields.flows
        && source_ports.count() == 1
        && fields.dport.count() == 1
        && source.count() == 1
        && destination.count() == 1
    {
        source_ports = PortRange::from(source_ports.first(), flows);
    }
    let mut traffic = Traffic {
        source_mac: macs[0],
        destination_mac: macs[1],
        source,
        destination,
        protocol: fields.protocol,
        source_ports,
        destination_ports: fields.dport,
        flows: 1,
        sizes: fields.size.clone(),
        stamps: !fields.no_stamps,
        run: std::process::id() as u8,
        tunnel: tunnel(&arguments.tunnel, &own)?,
    };
    let own_flows = traffic.room().min(MAX_OWN_FLOWS) as u32;
    traffic.flows = fields.flows.unwrap_or(own_flows);
    Ok(traffic)
}

fn tunnel(fields: &TunnelFields, own: &Own) -> Result<Option<Tunnel>, MeasureError> {
    let (Some(vni), Some(source), Some(destination), Some(destination_mac)) = (
        fields.vxlan,
        fields.outer_src,
        fields.outer_dst,
        fields.outer_dst_mac,
    ) else {
        return Ok(None);
    };
    Ok(Some(Tunnel {
        source_mac: fields.outer_src_mac.map_or_else(|| own.mac(), Ok)?,
        destination_mac,
        source,
        destination,
        vni,
        port: fields.vxlan_port,
    }))
}

/// Addresses of the sending device.
struct Own {
    device: String,
    mac: Option<Mac>,
    addresses: Vec<IpAddr>,
}

impl Own {
    fn of(device: &str) -> Result<Own, MeasureError> {
        let listed = getifaddrs()
            .map_err(std::io::Error::from)
            .map_err(io_error("listing the addresses of devices"))?;
        let mut own = Own {
            device: device.to_owned(),
            mac: None,
            addresses: Vec::new(),
        };
        for entry in listed.filter(|entry| entry.interface_name == device) {
            let Some(address) = entry.address else {
                continue;
            };
            if let Some(link) = address.as_link_addr() {
                own.mac = link.addr().map(Mac);
            }
            if let Some(v4) = address.as_sockaddr_in() {
                own.addresses.push(v4.ip().into());
            }
            if let Some(v6) = address.as_sockaddr_in6() {
                own.addresses.push(v6.ip().into());
            }
        }
        Ok(own)
    }

    fn mac(&self) -> Result<Mac, MeasureError> {
        self.mac.ok_or_else(|| {
            let detail = "it has no Ethernet address, or is not there; give --src-mac";
            wrong(format!("--dev {}", self.device), detail)
        })
    }

    /// The first address of a family, a link-local one only without others.
    fn address(&self, v6: bool) -> Result<IpAddr, MeasureError> {
        let local =
            |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let mut own: Vec<IpAddr> = self.addresses.clone();
        own.retain(|address| address.is_ipv6() == v6);
        own.sort_by_key(local);
        own.first().copied().ok_or_else(|| {
            let family = if v6 { "IPv6" } else { "IPv4" };
            let detail = format!("it has no {family} address; give --src");
            wrong(format!("--dev {}", self.device), detail)
        })
    }
}
