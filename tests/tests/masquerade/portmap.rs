//! Host ports by the reference `portmap` plugin, chained behind ours: the
//! node's kernel translates what comes for the port, and what is answered.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use serde_json::json;
use spinlane_tests::cluster::Families;
use spinlane_tests::{
    Cluster, LabError, Namespace, Node, PATIENCE, Pod, egress, root_or_skip, traffic, wait_for,
};

use super::outside::{FAR, Outside};

const PORTMAP: &str = "/usr/lib/cni/portmap";
const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;
/// What README.md says, for these networks.
const BACK: &str = "nft 'table inet host-ports {
  chain back {
    type nat hook postrouting priority srcnat
    oifname spinlane0 ct status dnat ip saddr { 10.244.0.0/16, 172.31.0.0/24 } masquerade
    oifname spinlane0 ct status dnat ip6 saddr { fd44::/16, fd31::/64 } masquerade
  }
}'";
/// More than a segment each way.
const BYTES: usize = 200_000;

/// What the reference plugin answers to a call for a pod with two host ports.
fn portmap(node: &Namespace, pod: &Pod, command: &str) -> Result<(), LabError> {
    let ports = ["tcp", "udp"].map(
        |protocol| json!({"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": protocol}),
    );
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "portmap",
        "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": ports},
        "prevResult": pod.attached("eth0")?.result,
    });
    config["prevResult"]["cniVersion"] = json!("1.0.0");
    let answer = pod
        .call(command, "eth0", config)
        .invoke_program(Path::new(PORTMAP), node)?;
    answer.success(&format!("{command} of portmap")).map(drop)
}

/// Asks a server in the pod by the node's port, by TCP and by UDP. Whom the
/// server saw.
fn ask(from: &Namespace, node: IpAddr, pod: &Namespace) -> Result<[IpAddr; 2], LabError> {
    ask_much(from, node, pod, BYTES)
}

/// The same with that many bytes by TCP each way.
fn ask_much(
    from: &Namespace,
    node: IpAddr,
    pod: &Namespace,
    bytes: usize,
) -> Result<[IpAddr; 2], LabError> {
    let failed = LabError::io(format!("ask {node} port {HOST_PORT} from {}", from.name()));
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, POD_PORT));
    // A process that is being started elsewhere holds the last call's sockets
    // until it runs its program.
    let (tcp, udp) = wait_for("the pod's port to be free", PATIENCE, || {
        let bind = || TcpListener::bind(any).and_then(|tcp| Ok((tcp, UdpSocket::bind(any)?)));
        pod.enter(bind).ok()?.ok()
    })?;
    let exchange = || -> std::io::Result<[IpAddr; 2]> {
        udp.set_read_timeout(Some(PATIENCE))?;
        let serving = std::thread::spawn(move || -> std::io::Result<[IpAddr; 2]> {
            let (mut stream, by_tcp) = tcp.accept()?;
            stream.read_exact(&mut vec![0; bytes])?;
            stream.write_all(&vec![1; bytes])?;
            let (_, by_udp) = udp.recv_from(&mut [0; 16])?;
            udp.send_to(b"answer", by_udp)?;
            Ok([by_tcp, by_udp].map(|seen| seen.ip().to_canonical()))
        });
        let asking = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&(node, HOST_PORT).into(), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&vec![1; bytes])?;
            stream.read_exact(&mut vec![0; bytes])?;
            let socket = UdpSocket::bind((node_family(node), 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect((node, HOST_PORT))?;
            socket.send(b"question")?;
            socket.recv(&mut [0; 16]).map(drop)
        };
        let asked = from.enter(asking).map_err(std::io::Error::other)?;
        asked?;
        let served = serving.join();
        served.map_err(|_| std::io::Error::other("the server's thread panicked"))?
    };
    exchange().map_err(failed)
}

/// The unspecified address of a family.
fn node_family(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A pod with host ports.
fn published(node: &Node) -> Result<Pod, LabError> {
    assert!(
        Path::new(PORTMAP).exists(),
        "install containernetworking-plugins"
    );
    let pod = Pod::attach(node, "web")?;
    let node = node.namespace();
    node.sysctl("net/ipv4/ip_forward", "1")?;
    node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    portmap(node, &pod, "ADD")?;
    Ok(pod)
}

fn host_port(mode: &str) -> Result<(), LabError> {
    let outside = Outside::start_with(|config| config.mode = mode.to_owned())?;
    let node = outside.node().namespace();
    let pod = published(outside.node())?;
    for to in FAR {
        let seen = ask(&outside.far, outside.own(to), pod.namespace())?;
        assert_eq!(seen, [to; 2], "{mode}");
        // The pod's own connections hide it as ever.
        let seen = traffic::tcp_seen_from(pod.namespace(), &outside.far, to)?;
        assert_eq!(seen, outside.own(to));
    }
    portmap(node, &pod, "DEL")?;
    assert_eq!(outside.node().drops()?["no_connection"], 0);
    outside.nothing_leaked()
}

#[test]
fn a_host_port_is_reached_from_outside_in_mode_vxlan() -> Result<(), LabError> {
    if !root_or_skip("a_host_port_is_reached_from_outside_in_mode_vxlan") {
        return Ok(());
    }
    host_port("vxlan")
}

#[test]
fn a_host_port_is_reached_from_outside_where_pods_are_routed() -> Result<(), LabError> {
    if !root_or_skip("a_host_port_is_reached_from_outside_where_pods_are_routed") {
        return Ok(());
    }
    host_port("routed")
}

/// Pods and nodes of the cluster, whom the pod's answers would reach without
/// the kernel that translated the question.
fn host_port_inside(mode: &str) -> Result<(), LabError> {
    let cluster = Cluster::start(2, Families::Dual, |config| config.mode = mode.to_owned())?;
    let [node, other] = cluster.nodes() else {
        unreachable!("two nodes")
    };
    let pod = published(node)?;
    let (neighbour, far) = (Pod::attach(node, "neighbour")?, Pod::attach(other, "far")?);
    let callers = [pod.namespace(), node.namespace()];
    let by_the_rule = [neighbour.namespace(), far.namespace(), other.namespace()];
    for to in cluster.addresses(1) {
        // Over an address that answers, neighbours know each other.
        for caller in callers.iter().chain(&by_the_rule) {
            traffic::reach(caller, to)?;
        }
        for caller in callers {
            let seen = ask(caller, to, pod.namespace())?;
            assert_eq!(seen, [to; 2], "{mode}, {}", caller.name());
        }
    }
    node.namespace().sh(BACK)?;
    for to in cluster.addresses(1) {
        for caller in by_the_rule {
            let seen = ask(caller, to, pod.namespace())?;
            assert_eq!(seen, [to; 2], "{mode}, {}", caller.name());
        }
    }
    // What comes to the kernel in super-frames it passes on in super-frames.
    egress::led(neighbour.namespace(), "eth0")?;
    for to in cluster.addresses(1) {
        let before = traffic::received(pod.namespace())?;
        ask_much(neighbour.namespace(), to, pod.namespace(), 50 * BYTES)?;
        let after = traffic::received(pod.namespace())?;
        let (bytes, packets) = (after.0 - before.0, after.1 - before.1);
        assert!(
            bytes / packets > 3 * 1500,
            "behind the host port {bytes} bytes came in {packets} packets"
        );
    }
    Ok(())
}

#[test]
fn a_host_port_is_reached_from_inside_in_mode_vxlan() -> Result<(), LabError> {
    if !root_or_skip("a_host_port_is_reached_from_inside_in_mode_vxlan") {
        return Ok(());
    }
    host_port_inside("vxlan")
}

#[test]
fn a_host_port_is_reached_from_inside_where_pods_are_routed() -> Result<(), LabError> {
    if !root_or_skip("a_host_port_is_reached_from_inside_where_pods_are_routed") {
        return Ok(());
    }
    host_port_inside("routed")
}
