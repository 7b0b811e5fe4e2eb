//! The lab of these tests: three namespaces, and the snapshots that they begin
//! with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use spinlane_dataplane::engine::{
    Attached, Engine, EngineConfig, PollMode, PortError, PortSpec, UplinkSpec, XdpChoice,
};
use spinlane_dataplane::snapshot::{
    AddressMap, Destination, Gateway, Network, NextHop, OuterHeader, OuterPath, PortEntry, Prefix,
    Role, RouteTable, RouteTarget, Snapshot, Underlay, Vtep,
};
use spinlane_dataplane::types::{MacAddr, NextHopId, PortId, Vni, VtepId};

pub(crate) const POD: PortId = PortId(0);
pub(crate) const UPLINK: PortId = PortId(1);
pub(crate) const GATEWAY_MAC: MacAddr = MacAddr([0x0a, 0x58, 10, 244, 1, 1]);
pub(crate) const POD_MAC: MacAddr = MacAddr([0x0a, 0x58, 10, 244, 1, 2]);
pub(crate) const UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub(crate) const VTEP_MAC: MacAddr = MacAddr([0x0a, 0x58, 172, 31, 0, 1]);
pub(crate) const PEER_VTEP_MAC: MacAddr = MacAddr([0x0a, 0x58, 172, 31, 0, 2]);

pub(crate) fn is_root() -> bool {
    // SAFETY: plain system call.
    let is_root = unsafe { libc::geteuid() } == 0;
    assert!(
        is_root || std::env::var("CI").as_deref() != Ok("true"),
        "needs root, and CI=true forbids skipping it"
    );
    if !is_root {
        eprintln!("!!! SKIPPED: it needs root (network namespaces)");
    }
    is_root
}

/// Three namespaces: the node, its pod, and the peer on the underlay. They go
/// with the value.
pub(crate) struct Lab {
    pub prefix: String,
    pub queues: u32,
}

impl Lab {
    pub(crate) fn new(name: &str) -> Lab {
        Lab::with_queues(name, 1, 1)
    }

    /// With so many queues on the uplink, and on the pod's and later links.
    pub(crate) fn with_queues(name: &str, uplink: u32, pod: u32) -> Lab {
        let prefix = format!("sl{}-{name}", std::process::id());
        let queues = uplink;
        let mut lab = Lab { prefix, queues };
        for end in ["node", "pod", "peer"] {
            lab.run(&format!("ip netns add {}-{end}", lab.prefix));
            lab.ip(end, "link set lo up");
        }
        lab.veth("node", "up0", UPLINK_MAC, ("peer", "eth0", PEER_MAC));
        lab.queues = pod;
        lab.veth("node", "p0", GATEWAY_MAC, ("pod", "eth0", POD_MAC));
        lab.ip("node", "address add 172.31.0.1/24 dev up0");
        lab.ip("peer", "address add 172.31.0.2/24 dev eth0");
        lab.ip("node", "address add fd00:31::1/64 dev up0 nodad");
        lab.ip("peer", "address add fd00:31::2/64 dev eth0 nodad");
        lab.ip("pod", "address add 10.244.1.2/32 dev eth0");
        lab.ip("pod", "address add fd00:1::2/128 dev eth0 nodad");
        lab.ip("pod", "route add 10.244.1.1 dev eth0");
        lab.ip("pod", "route add default via 10.244.1.1");
        lab.ip("pod", "route add fd00:1::1 dev eth0");
        lab.ip("pod", "route add default via fd00:1::1");
        for address in ["10.244.1.1", "fd00:1::1"] {
            let neighbor = format!("neighbor replace {address} dev eth0 lladdr {GATEWAY_MAC}");
            lab.ip("pod", &neighbor);
        }
        lab
    }

    pub(crate) fn veth(&self, one: &str, name: &str, mac: MacAddr, other: (&str, &str, MacAddr)) {
        let (end, peer, peer_mac) = other;
        let (one, end) = (self.namespace(one), self.namespace(end));
        let queues = format!("numtxqueues {0} numrxqueues {0}", self.queues);
        self.run(&format!(
            "ip link add {name} netns {one} address {mac} {queues} type veth peer name {peer} netns {end} address {peer_mac} {queues}"
        ));
        self.run(&format!("ip -n {one} link set {name} up"));
        self.run(&format!("ip -n {end} link set {peer} up"));
    }

    pub(crate) fn namespace(&self, end: &str) -> String {
        format!("{}-{end}", self.prefix)
    }

    pub(crate) fn ip(&self, end: &str, arguments: &str) {
        let family = match arguments.contains("::") {
            true => "-6 ",
            false => "",
        };
        self.run(&format!(
            "ip {family}-n {} {arguments}",
            self.namespace(end)
        ));
    }

    pub(crate) fn run(&self, line: &str) {
        let output = output(line);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {errors}");
    }

    pub(crate) fn inside(&self, end: &str, line: &str) -> Output {
        output(&format!("ip netns exec {} {line}", self.namespace(end)))
    }

    /// Runs a command in a namespace, which must succeed.
    pub(crate) fn succeeds(&self, end: &str, line: &str) -> String {
        let output = self.inside(end, line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line} in {end}: {text}");
        text
    }

    pub(crate) fn ifindex(&self, end: &str, device: &str) -> u32 {
        let text = self.succeeds(end, &format!("cat /sys/class/net/{device}/ifindex"));
        text.trim().parse().unwrap()
    }

    /// An iperf3 server in a namespace, listening, that serves one client.
    pub(crate) fn iperf_server(&self, end: &str) -> Child {
        let server = Command::new("ip")
            .args(["netns", "exec", &self.namespace(end), "iperf3", "-s", "-1"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the server listens", || {
            self.succeeds(end, "ss -Hltn").contains(":5201")
        });
        server
    }

    /// Moves this thread, and those that it starts, into the node.
    pub(crate) fn enter_node(&self) {
        let path = format!("/run/netns/{}", self.namespace("node"));
        let file = std::fs::File::open(path).unwrap();
        // SAFETY: plain system call on a live descriptor.
        let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for end in ["node", "pod", "peer"] {
            output(&format!("ip netns delete {}", self.namespace(end)));
        }
    }
}

/// Waits, as long as a busy machine takes, until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until no frame is under way.
pub(crate) fn frames_come_home(engine: &Engine) {
    eventually("every frame is home", || engine.stats().frames.in_use == 0);
}

pub(crate) fn output(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    Command::new(program).args(words).output().unwrap()
}

pub(crate) fn prefix(text: &str) -> Prefix {
    let (address, len) = text.split_once('/').unwrap();
    Prefix {
        address: address.parse().unwrap(),
        len: len.parse().unwrap(),
    }
}

pub(crate) fn port(id: PortId, role: Role, mac: MacAddr, addresses: &[&str]) -> Option<PortEntry> {
    Some(PortEntry {
        id,
        role,
        mac,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        mtu: 1500,
        super_frames: role == Role::Pod,
        device_mtu: 1500,
        segment_mtu: 1500,
        partial_checksums: true,
    })
}

/// A node with one pod and an uplink, and nothing beyond.
pub(crate) fn snapshot() -> Snapshot {
    let mut hosts_v4 = AddressMap::default();
    hosts_v4.insert(Ipv4Addr::new(10, 244, 1, 1), Destination::Gateway);
    hosts_v4.insert(Ipv4Addr::new(10, 244, 1, 2), Destination::Pod(POD));
    let mut hosts_v6 = AddressMap::default();
    let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    hosts_v6.insert(v6("fd00:1::1"), Destination::Gateway);
    hosts_v6.insert(v6("fd00:1::2"), Destination::Pod(POD));
    Snapshot {
        ports: Arc::new(vec![
            port(POD, Role::Pod, POD_MAC, &["10.244.1.2", "fd00:1::2"]),
            port(UPLINK, Role::Uplink, UPLINK_MAC, &[]),
        ]),
        hosts_v4: Arc::new(hosts_v4),
        hosts_v6: Arc::new(hosts_v6),
        gateway: Arc::new(Gateway {
            mac: GATEWAY_MAC,
            addresses_v4: vec![Ipv4Addr::new(10, 244, 1, 1)],
            addresses_v6: vec![v6("fd00:1::1")],
            pod_cidrs: vec![prefix("10.244.1.0/24"), prefix("fd00:1::/64")],
        }),
        underlay: Arc::new(Underlay {
            uplink: Some(UPLINK),
            mac: UPLINK_MAC,
            ..Underlay::default()
        }),
        ..Snapshot::default()
    }
}

/// Adds the overlay towards the peer's address on the underlay.
pub(crate) fn with_overlay(mut snapshot: Snapshot, local: &str, remote: &str) -> Snapshot {
    let (local, remote): (IpAddr, IpAddr) = (local.parse().unwrap(), remote.parse().unwrap());
    let vni = Vni::new(7).unwrap();
    let mtu = if local.is_ipv4() { 1450 } else { 1430 };
    let path = OuterPath {
        source_mac: UPLINK_MAC,
        destination_mac: PEER_MAC,
        source: local,
        destination: remote,
    };
    snapshot.next_hops = Arc::new(vec![Some(NextHop {
        address: remote,
        port: UPLINK,
        mac: Some(PEER_MAC),
        mtu: 1500,
    })]);
    snapshot.vteps = Arc::new(vec![Some(Vtep {
        address: remote,
        vni,
        mac: PEER_VTEP_MAC,
        mtu,
        next_hop: NextHopId(0),
        outer: OuterHeader::new(&path, 4789, vni).unwrap(),
    })]);
    let mut routes = RouteTable::default();
    for text in ["10.244.2.0/24", "fd00:2::/64"] {
        routes.insert(prefix(text), RouteTarget::Vtep(VtepId(0)));
    }
    snapshot.routes = Arc::new(routes);
    snapshot.underlay = Arc::new(Underlay {
        addresses: vec![local],
        vxlan_port: 4789,
        vtep_mac: VTEP_MAC,
        networks: [(vni, Network::Routed)].into_iter().collect(),
        peers: [((vni, remote), VtepId(0))].into_iter().collect(),
        ..(*snapshot.underlay).clone()
    });
    snapshot
}

pub(crate) fn engine(lab: &Lab) -> Engine {
    engine_with(lab, false)
}

pub(crate) fn engine_with(lab: &Lab, is_bridged: bool) -> Engine {
    let (engine, attached) = attach(lab, (1, 4), is_bridged);
    attached.unwrap();
    engine
}

/// An engine without ports, in the node.
pub(crate) fn start(lab: &Lab, lanes: usize) -> Engine {
    lab.enter_node();
    Engine::start(EngineConfig {
        cores: (0..lanes).collect(),
        poll: PollMode::Adaptive,
        frames: 4096,
        xdp: XdpChoice::Auto,
        connections: None,
    })
    .unwrap()
}

pub(crate) fn attach(
    lab: &Lab,
    (lanes, queues): (usize, u32),
    is_bridged: bool,
) -> (Engine, Result<Attached, PortError>) {
    attach_as(lab, (lanes, queues), |spec| spec.is_bridged = is_bridged)
}

/// As [`attach`]; `change` has the last word on how the uplink is taken.
pub(crate) fn attach_as(
    lab: &Lab,
    (lanes, queues): (usize, u32),
    change: impl FnOnce(&mut UplinkSpec),
) -> (Engine, Result<Attached, PortError>) {
    let engine = start(lab, lanes);
    let spec = |id, device: &str| PortSpec {
        id,
        ifindex: lab.ifindex("node", device),
        name: device.to_owned(),
    };
    engine.attach(spec(POD, "p0")).unwrap();
    let mut uplink = UplinkSpec {
        port: spec(UPLINK, "up0"),
        queues,
        receive_ring: 0,
        zero_copy: false,
        xdp: XdpChoice::Auto,
        cuts_datagrams: true,
        cuts_segments: true,
        is_bridged: false,
        host_side: None,
    };
    change(&mut uplink);
    let attached = engine.attach_uplink(uplink);
    (engine, attached)
}
