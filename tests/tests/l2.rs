//! Mode `l2`: pods are stations of the node's own network, beside plain Linux.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use serde_json::json;
use spinlane_tests::capture::Recording;
use spinlane_tests::cluster::UPLINK;
use spinlane_tests::lan::{HOST, Lan, OUTSIDE, ROUTER};
use spinlane_tests::{
    LabError, Namespace, PATIENCE, Pod, Process, capture, lab_dir, root_or_skip, traffic, wait_for,
};

const SOON: Duration = Duration::from_secs(15);

fn reaches(from: &Namespace, address: IpAddr) -> Result<(), LabError> {
    wait_for(&format!("{} to {address}", from.name()), SOON, || {
        let pings = traffic::ping(from, address, 1);
        pings.ok().filter(traffic::Pings::all)
    })
    .map(drop)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn hardware_address(of: &Namespace) -> Result<String, LabError> {
    let text = of.run(&["cat", "/sys/class/net/eth0/address"])?;
    Ok(text.trim().to_owned())
}

/// Ping, TCP and UDP between every two of pods, nodes, a plain host and one
/// behind the router.
fn everybody_talks(lan: &Lan) -> Result<(), LabError> {
    let pods = [
        Pod::attach(&lan.nodes()[0], "a")?,
        Pod::attach(&lan.nodes()[0], "b")?,
        Pod::attach(&lan.nodes()[1], "c")?,
    ];
    for (name, from, to, address) in lan.pairs(&pods)? {
        reaches(from, address)?;
        traffic::tcp_both_ways(from, to, address, 300 << 10)?;
        for size in [18, 1400] {
            let whole = traffic::udp_echo(from, to, address, 3, size)?;
            assert_eq!(whole, 3, "{name}: UDP of {size} bytes");
        }
    }
    Ok(())
}

#[test]
fn pods_nodes_and_plain_hosts_share_one_network() -> Result<(), LabError> {
    if !root_or_skip("pods_nodes_and_plain_hosts_share_one_network") {
        return Ok(());
    }
    everybody_talks(&Lan::start(2, |_| {})?)
}

#[test]
fn several_lanes_share_it_too() -> Result<(), LabError> {
    if !root_or_skip("several_lanes_share_it_too") {
        return Ok(());
    }
    let mut lan = Lan::prepare(2, |config| config.cores = "[0, 1]".to_owned())?;
    for node in lan.nodes_mut() {
        let queues = ["ethtool", "-L", "eth0", "rx", "2", "tx", "2"];
        node.namespace().run(&queues)?;
        node.start_agent()?;
    }
    everybody_talks(&lan)
}

#[test]
fn super_frames_leave_in_segments_and_arp_from_end_to_end() -> Result<(), LabError> {
    if !root_or_skip("super_frames_leave_in_segments_and_arp_from_end_to_end") {
        return Ok(());
    }
    let lan = Lan::start(1, |_| {})?;
    let pod = Pod::attach(&lan.nodes()[0], "a")?;
    let file = lab_dir()?.join("l2.pcap");
    lan.nodes()[0].namespace().cut_before_the_wire(UPLINK)?;
    // The node's end of the link, so what comes from it is what it sent.
    let recording = Recording::start((lan.link(), "p1"), &["-s", "200"], "", &file)?;
    for to in lan.addresses(HOST) {
        traffic::tcp_both_ways(pod.namespace(), lan.host(), to, 4 << 20)?;
    }
    reaches(lan.host(), pod.v6()?)?;
    recording.stop()?;
    let own = hardware_address(pod.namespace())?;
    let of_pod = format!("eth.src == {own}");
    let count = |filter: &str| capture::count(&file, &format!("{of_pod} && {filter}"));
    assert!(count("tcp.len > 1400")? > 4000, "segments of TCP");
    assert_eq!(count("frame.len > 1514")?, 0);
    // Addresses and hop counts are those of the pod: nobody routes.
    assert_eq!(count("tcp && (ip.ttl < 64 || ipv6.hlim < 64)")?, 0);
    assert!(count("arp")? > 0 && count("icmpv6.type == 135")? > 0);
    let node = hardware_address(lan.nodes()[0].namespace())?;
    let answered = format!("eth.src == {node} && arp.src.proto_ipv4 == {}", pod.v4()?);
    assert_eq!(
        capture::count(&file, &answered)?,
        0,
        "nobody answers for it"
    );
    // Checksums are the switch's work where the pod left them to its device.
    let partial = format!("{of_pod} && tcp && tcp.len < 100 && tcp.checksum.status == 0");
    assert_eq!(capture::count(&file, &partial)?, 0);
    let routes = pod.namespace().ip("route show")?;
    assert!(routes.contains("mtu 1500"), "{routes}");
    assert!(
        routes.contains(&format!("default via 172.31.0.{ROUTER}")),
        "{routes}"
    );
    let hop = pod.namespace().ip("-6 route show default")?;
    assert!(hop.contains(&format!("via fd31::{ROUTER:x}")), "{hop}");
    Ok(())
}

/// The port of multicast DNS.
const MULTICAST_DNS: u16 = 5353;

fn index(namespace: &Namespace) -> Result<u32, LabError> {
    let text = namespace.run(&["cat", "/sys/class/net/eth0/ifindex"])?;
    Ok(text.trim().parse().expect("a number"))
}

/// A socket that has joined a group by `eth0`.
fn join(namespace: &Namespace, group: IpAddr) -> Result<UdpSocket, LabError> {
    let index = index(namespace)?;
    let make = || -> std::io::Result<UdpSocket> {
        let socket = match group {
            IpAddr::V4(v4) => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, MULTICAST_DNS))?;
                socket.join_multicast_v4(&v4, &Ipv4Addr::UNSPECIFIED)?;
                socket
            }
            IpAddr::V6(v6) => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, MULTICAST_DNS))?;
                socket.join_multicast_v6(&v6, index)?;
                socket
            }
        };
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    namespace.enter(make)?.map_err(LabError::io(format!(
        "join {group} in {}",
        namespace.name()
    )))
}

/// Which of the listeners hear what is sent to a group.
fn who_hears(
    group: IpAddr,
    from: &Namespace,
    listeners: &[&Namespace],
) -> Result<Vec<bool>, LabError> {
    let sockets: Vec<_> = listeners
        .iter()
        .map(|listener| join(listener, group))
        .collect::<Result<_, _>>()?;
    let to: SocketAddr = match group {
        IpAddr::V4(_) => (group, MULTICAST_DNS).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, MULTICAST_DNS, 0, index(from)?).into(),
    };
    let message = format!("{} to {group}", from.name());
    let sent = from.enter(|| {
        join(from, group)?
            .send_to(message.as_bytes(), to)
            .map_err(LabError::io("send to a group"))
    })?;
    assert_eq!(sent?, message.len());
    let hears = |socket: &UdpSocket| {
        let mut buffer = [0; 128];
        let heard = socket.recv_from(&mut buffer);
        heard.is_ok_and(|(length, _)| &buffer[..length] == message.as_bytes())
    };
    Ok(sockets.iter().map(hears).collect())
}

#[test]
fn groups_reach_the_kernel_and_the_pods_of_every_node() -> Result<(), LabError> {
    if !root_or_skip("groups_reach_the_kernel_and_the_pods_of_every_node") {
        return Ok(());
    }
    let lan = Lan::start(2, |_| {})?;
    let [one, two] = lan.nodes() else {
        unreachable!("two nodes");
    };
    let pods = [
        Pod::attach(one, "a")?,
        Pod::attach(one, "b")?,
        Pod::attach(two, "c")?,
    ];
    let [a, b, c] = pods.each_ref().map(Pod::namespace);
    let all = [a, b, c, one.namespace(), two.namespace(), lan.host()];
    for group in ["224.0.0.251", "ff02::fb"].map(address) {
        for from in all {
            let others: Vec<_> = all
                .into_iter()
                .filter(|n| n.name() != from.name())
                .collect();
            let heard = who_hears(group, from, &others)?;
            let names: Vec<_> = others.iter().map(|n| n.name()).zip(heard).collect();
            assert!(
                names.iter().all(|(_, heard)| *heard),
                "{group} from {}: {names:?}",
                from.name()
            );
        }
    }
    Ok(())
}

/// What `udhcpc` runs with a lease.
const LEASE: &str = "#!/bin/sh
case $1 in bound|renew)
    ip address replace $ip/$mask dev $interface
    ip route replace default via ${router%% *} dev $interface;;
esac
";

/// The router's DHCP server and advertisements.
fn serve(lan: &Lan) -> Result<Process, LabError> {
    let leases = lab_dir()?.join(format!("{}.leases", lan.router().name()));
    lan.router().spawn(&[
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--pid-file=",
        "--interface=eth0",
        "--enable-ra",
        "--ra-param=eth0,high,4",
        "--no-ping",
        "--dhcp-range=172.31.0.210,172.31.0.220,255.255.255.0,2m",
        "--dhcp-range=fd31::,ra-only,64",
        &format!("--dhcp-leasefile={}", leases.display()),
    ])
}

#[test]
fn pods_without_addresses_ask_the_network_for_them() -> Result<(), LabError> {
    if !root_or_skip("pods_without_addresses_ask_the_network_for_them") {
        return Ok(());
    }
    let lan = Lan::start(2, |config| config.pod_cidrs = Vec::new())?;
    let dir = lab_dir()?;
    let script = dir.join("lease.sh");
    std::fs::write(&script, LEASE).map_err(LabError::io("write the script"))?;
    lan.host()
        .run(&["chmod", "+x", &script.display().to_string()])?;
    let _server = serve(&lan)?;
    let pods = [
        Pod::attach(&lan.nodes()[0], "a")?,
        Pod::attach(&lan.nodes()[1], "b")?,
    ];
    let mut addresses = Vec::new();
    for (pod, node) in pods.iter().zip(lan.nodes()) {
        assert_eq!(pod.addresses("eth0")?, Vec::<IpAddr>::new());
        let inside = pod.namespace();
        let client = [
            "udhcpc",
            "-i",
            "eth0",
            "-f",
            "-n",
            "-q",
            "-t",
            "20",
            "-T",
            "1",
            "-s",
            &script.display().to_string(),
        ];
        inside.run(&client)?;
        let v4 = wait_for("the lease's address", SOON, || own_address(inside, "-4"))?;
        assert!(v4.to_string().starts_with("172.31.0.2"), "{v4}");
        // From the router's advertisement, with its default route.
        let v6 = wait_for("an address of the prefix", SOON, || {
            own_address(inside, "-6")
        })?;
        assert!(v6.to_string().starts_with("fd31:"), "{v6}");
        let device = inside.ip("link show eth0")?;
        assert!(device.contains("mtu 1500"), "{device}");
        for address in [v4, v6] {
            reaches(node.namespace(), address)?;
            reaches(lan.host(), address)?;
            traffic::tcp_both_ways(lan.host(), inside, address, 300 << 10)?;
        }
        for outside in OUTSIDE {
            reaches(inside, outside.parse().expect("an address"))?;
            traffic::tcp_both_ways(inside, lan.outside(), address(outside), 300 << 10)?;
        }
        addresses.push([v4, v6]);
    }
    for address in addresses[1] {
        traffic::tcp_both_ways(pods[0].namespace(), pods[1].namespace(), address, 300 << 10)?;
    }
    Ok(())
}

#[test]
fn other_plugins_give_addresses_of_the_network() -> Result<(), LabError> {
    if !root_or_skip("other_plugins_give_addresses_of_the_network") {
        return Ok(());
    }
    let lan = Lan::start(1, |_| {})?;
    let node = &lan.nodes()[0];
    let _server = serve(&lan)?;
    let mut pods = [
        Pod::bare("leased")?,
        Pod::bare("fixed")?,
        Pod::bare("local")?,
    ];
    let socket = lab_dir()?.join(format!("{}.dhcp", node.namespace().name()));
    let socket = socket.display().to_string();
    let daemon = ["/usr/lib/cni/dhcp", "daemon", "-socketpath", &socket];
    let _daemon = node.namespace().spawn(&daemon)?;
    wait_for("the daemon", SOON, || {
        std::path::Path::new(&socket).exists().then_some(())
    })?;
    let kinds = [
        json!({"type": "dhcp", "daemonSocketPath": socket}),
        json!({"type": "static", "addresses": [{"address": "172.31.0.150/24"}]}),
        json!({"type": "host-local", "dataDir": node.ipam_dir(), "ranges": [[
            {"subnet": "172.31.0.0/24", "rangeStart": "172.31.0.160", "gateway": "172.31.0.254"}
        ]]}),
    ];
    for (pod, ipam) in pods.iter_mut().zip(kinds) {
        let network = node.network("delegated", json!({ "ipam": ipam }));
        pod.add(node, "eth0", &network)?;
        let own = pod.v4()?;
        let inside = pod.namespace();
        assert_eq!(own_address(inside, "-4"), Some(own));
        let routes = inside.ip("route show default")?;
        assert!(
            routes.contains(&format!("via 172.31.0.{ROUTER} ")),
            "{routes}"
        );
        let answer = pod.check(node, "eth0")?;
        assert_eq!(answer.exit, 0, "{}", answer.output);
        for from in [lan.host(), node.namespace(), lan.outside()] {
            reaches(from, own)?;
        }
        traffic::tcp_both_ways(inside, lan.outside(), address(OUTSIDE[0]), 300 << 10)?;
        // What it was not given it may not use.
        inside.ip("address add 172.31.0.99/24 dev eth0")?;
        let forged =
            traffic::ping_in_vain(inside, lan.addresses(HOST)[0], 2, &["-I", "172.31.0.99"])?;
        assert_eq!(forged.received, 0, "{}", forged.text);
    }
    let leased = pods[0].v4()?.to_string();
    assert!(leased.starts_with("172.31.0.2"), "{leased}");
    for pod in &mut pods {
        pod.del(node, "eth0")?;
    }
    // Without a server nothing is left behind.
    let mut lost = Pod::bare("lost")?;
    let wrong = json!({"ipam": {"type": "dhcp", "daemonSocketPath": "/nowhere"}});
    assert!(
        lost.add(node, "eth0", &node.network("delegated", wrong))
            .is_err()
    );
    assert_eq!(node.status()?.endpoints, 0);
    assert!(lost.namespace().ip("link show eth0").is_err());
    Ok(())
}

/// The first global address of a pod's interface.
fn own_address(pod: &Namespace, family: &str) -> Option<IpAddr> {
    let shown = pod.ip(&format!("-o {family} address show dev eth0 scope global"));
    let shown = shown.ok()?;
    let tentative = shown.contains("tentative");
    let mut words = shown
        .split_whitespace()
        .skip_while(|word| !word.starts_with("inet"));
    let address = words.nth(1)?.split('/').next()?.parse().ok();
    address.filter(|_| !tentative)
}
