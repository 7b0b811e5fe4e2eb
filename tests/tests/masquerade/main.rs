//! Pods reach hosts that know nothing of them, with the node's address.

mod addresses;
mod crowd;
mod inbound;
mod lanes;
mod outside;
mod paths;
mod portmap;
mod restart;

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use outside::{FAR, Outside, refused};
use spinlane_tests::{LabError, Pod, root_or_skip, traffic, wait_for};

#[test]
fn pods_reach_the_outside_with_the_nodes_address() -> Result<(), LabError> {
    if !root_or_skip("pods_reach_the_outside_with_the_nodes_address") {
        return Ok(());
    }
    let outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    for to in FAR {
        traffic::reach(pod.namespace(), to)?;
        let seen = traffic::tcp_seen_from(pod.namespace(), &outside.far, to)?;
        assert_eq!(seen, outside.own(to));
        traffic::tcp_both_ways(pod.namespace(), &outside.far, to, 2 << 20)?;
        for size in [18, 1200] {
            let whole = traffic::udp_echo(pod.namespace(), &outside.far, to, 20, size)?;
            assert_eq!(whole, 20, "{to}, {size} bytes");
        }
        // The node's own way is as it was, pings too.
        assert!(traffic::ping(outside.node().namespace(), to, 2)?.all());
        let seen = traffic::tcp_seen_from(outside.node().namespace(), &outside.far, to)?;
        assert_eq!(seen, outside.own(to));
    }
    // Fragments both ways.
    let pings = traffic::ping_with(pod.namespace(), FAR[0], 3, &["-s", "3000"])?;
    assert!(pings.all(), "{pings:?}");
    let rows = outside.node().cli(&["connections"])?;
    let rows = rows.as_array().expect("a list");
    let snat = |row: &serde_json::Value| row["snat"].as_str().map(str::to_owned);
    let translated: Vec<_> = rows.iter().filter_map(snat).collect();
    assert!(translated.len() >= 6, "{rows:?}");
    for end in translated {
        let end: std::net::SocketAddr = end.parse().expect("an address and a port");
        assert_eq!(end.ip(), outside.own(end.ip()));
        assert!((61_000..=65_535).contains(&end.port()), "{end}");
    }
    outside.nothing_leaked()
}

#[test]
fn errors_from_outside_reach_the_pod() -> Result<(), LabError> {
    if !root_or_skip("errors_from_outside_reach_the_pod") {
        return Ok(());
    }
    let outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    for to in FAR {
        traffic::reach(pod.namespace(), to)?;
        // Nobody listens there.
        let refused = refused(pod.namespace(), to)?;
        assert_eq!(refused, ErrorKind::ConnectionRefused, "{to}");
    }
    // The router's answers: hops ran out, and its next link is narrow.
    let ping = |options: &str| {
        let line = format!("LC_ALL=C ping -n -c 1 -W 10 {options} {} || true", FAR[0]);
        pod.namespace().sh(&line)
    };
    let exceeded = ping("-t 2")?;
    assert!(exceeded.contains("From 172.31.0.9"), "{exceeded}");
    assert!(exceeded.contains("Time to live exceeded"), "{exceeded}");
    let too_big = ping("-M do -s 1380")?;
    assert!(too_big.contains("mtu = 1300"), "{too_big}");
    let line = format!(
        "LC_ALL=C ping -6 -n -c 1 -W 10 -M do -s 1340 {} || true",
        FAR[1]
    );
    let too_big = pod.namespace().sh(&line)?;
    assert!(
        too_big.contains("mtu=1300") || too_big.contains("mtu: 1300"),
        "{too_big}"
    );
    outside.nothing_leaked()
}

#[test]
fn ports_run_out_by_name_and_are_kept_from_the_node() -> Result<(), LabError> {
    if !root_or_skip("ports_run_out_by_name_and_are_kept_from_the_node") {
        return Ok(());
    }
    let outside = Outside::start("61000-61007")?;
    let pod = Pod::attach(outside.node(), "web")?;
    let node = outside.node().namespace();
    let reserved = node.sh("cat /proc/sys/net/ipv4/ip_local_reserved_ports")?;
    assert_eq!(reserved.trim(), "61000-61007");
    traffic::reach(pod.namespace(), FAR[0])?;
    let sockets: Vec<UdpSocket> = pod
        .namespace()
        .enter(|| {
            (0..20)
                .map(|_| UdpSocket::bind("0.0.0.0:0"))
                .collect::<Result<_, _>>()
        })?
        .map_err(LabError::io("bind in the pod"))?;
    for socket in &sockets {
        socket
            .send_to(b"?", (FAR[0], 9))
            .map_err(LabError::io("send from the pod"))?;
    }
    wait_for("exhaustion to be counted", Duration::from_secs(3), || {
        let drops = outside.node().drops().ok()?;
        (drops["no_masquerade_port"] == 12).then_some(())
    })?;
    // Towards another destination the same ports serve again.
    let other = IpAddr::from([203, 0, 113, 1]);
    let whole = traffic::udp_echo(pod.namespace(), &outside.router, other, 3, 100)?;
    assert_eq!(whole, 3);
    outside.nothing_leaked()
}

/// Whoever pings chooses a number, and others choose the same.
#[test]
fn echoes_of_the_same_number_are_told_apart() -> Result<(), LabError> {
    if !root_or_skip("echoes_of_the_same_number_are_told_apart") {
        return Ok(());
    }
    let outside = Outside::start("61000-65535")?;
    let pods = [
        Pod::attach(outside.node(), "a")?,
        Pod::attach(outside.node(), "b")?,
    ];
    let node = outside.node().namespace();
    let [a, b] = pods.each_ref().map(Pod::namespace);
    for to in FAR {
        [a, b, node]
            .iter()
            .try_for_each(|from| traffic::reach(from, to))?;
        let answered = std::thread::scope(|scope| {
            let pings = [a, b, node]
                .map(|from| scope.spawn(move || traffic::ping_with(from, to, 10, &["-e", "7"])));
            pings.map(|ping| ping.join().expect("no panic"))
        });
        for pings in answered {
            let pings = pings?;
            assert!(
                pings.all() && !pings.text.contains("DUP"),
                "{to}: {}",
                pings.text
            );
        }
    }
    outside.nothing_leaked()
}

/// A server that closes first remembers each connection, and takes the next one
/// from the same port only when it can tell it from that (RFC 6191). The pod's
/// kernel begins to count anywhere.
#[test]
fn ports_serve_again_for_whom_the_server_believes() -> Result<(), LabError> {
    if !root_or_skip("ports_serve_again_for_whom_the_server_believes") {
        return Ok(());
    }
    const CONNECTIONS: usize = 600;
    let outside = Outside::start("61000-61063")?;
    let pod = Pod::attach(outside.node(), "web")?;
    traffic::reach(pod.namespace(), FAR[0])?;
    let listener = outside
        .far
        .enter(|| TcpListener::bind((FAR[0], 7)))?
        .map_err(LabError::io("listen outside"))?;
    let server = std::thread::spawn(move || -> io::Result<()> {
        listener
            .incoming()
            .take(CONNECTIONS)
            .try_for_each(|stream| stream.map(drop))
    });
    let ask = || -> io::Result<()> {
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect((FAR[0], 7))?;
            assert_eq!(stream.read(&mut [0])?, 0);
        }
        Ok(())
    };
    pod.namespace()
        .enter(ask)?
        .map_err(LabError::io("connect from the pod"))?;
    let served = server.join().expect("the server ends");
    served.map_err(LabError::io("serve outside"))?;
    let count = |line: &str| {
        outside
            .far
            .sh(line)
            .map(|text| text.trim().parse::<usize>())
    };
    let remembered = count("ss -Htn state time-wait | wc -l")?;
    assert!(remembered.is_ok_and(|ports| ports > 32));
    // On older kernels the one counter is the other, too.
    let line =
        "nstat -asz TcpExtPAWSTimewait TcpExtPAWSEstab | awk '/PAWS/ {n += $2} END {print n}'";
    let disbelieved = count(line)?;
    assert_eq!(disbelieved, Ok(0));
    outside.nothing_leaked()
}
