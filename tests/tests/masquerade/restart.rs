//! Connections outlive the agent.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use spinlane_tests::traffic::Pattern;
use spinlane_tests::{LabError, Namespace, Node, Pod, root_or_skip, traffic, wait_for};

use super::outside::{FAR, Outside};

/// A peer that says nothing for this long is taken for lost.
const SILENCE: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 16 * 1024;

/// How a talk went.
#[derive(Debug)]
struct Talk {
    /// Longest time without an answer.
    gap: Duration,
}

/// What the talkers and the test tell each other.
#[derive(Default)]
struct Desk {
    rounds: [AtomicU64; 2],
    is_over: AtomicBool,
}

/// Answers one connection with what it says; nobody may come again.
fn answer(listener: &TcpListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    listener.set_nonblocking(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            len => stream.write_all(&chunk[..len])?,
        }
    }
    match listener.accept() {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        other => Err(std::io::Error::other(format!(
            "a second one came: {other:?}"
        ))),
    }
}

/// Sends chunk after chunk and compares what comes back.
fn talk(to: SocketAddr, desk: &Desk, number: usize) -> std::io::Result<Talk> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let (mut pattern, mut gap) = (Pattern::new(to.port().into()), Duration::ZERO);
    let (mut sent, mut back) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    while !desk.is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        pattern.fill(&mut sent);
        stream.write_all(&sent)?;
        stream.read_exact(&mut back)?;
        if sent != back {
            return Err(std::io::Error::other("other bytes came back"));
        }
        gap = gap.max(began.elapsed());
        desk.rounds[number].fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Talk { gap })
}

/// Waits until both talkers were answered a few times more.
fn goes_on(desk: &Desk, when: &str) -> Result<(), LabError> {
    let rounds = || [0, 1].map(|number| desk.rounds[number].load(Ordering::Relaxed));
    let before = rounds();
    wait_for(&format!("both talks go on {when}"), SILENCE, || {
        let now = rounds();
        (now[0] >= before[0] + 5 && now[1] >= before[1] + 5).then_some(())
    })
}

/// Asks an UDP server for the address that it sees.
fn seen(socket: &UdpSocket, server: &UdpSocket) -> std::io::Result<SocketAddr> {
    for _ in 0..40 {
        socket.send(b"?")?;
        if let Ok((_, from)) = server.recv_from(&mut [0; 8]) {
            server.send_to(b"!", from)?;
            return Ok(from);
        }
    }
    Err(std::io::Error::other("no datagram came"))
}

fn datagrams(pod: &Namespace, far: &Namespace) -> Result<(UdpSocket, UdpSocket), LabError> {
    let open = || -> std::io::Result<(UdpSocket, SocketAddr)> {
        let server = UdpSocket::bind((FAR[0], 0))?;
        server.set_read_timeout(Some(Duration::from_millis(250)))?;
        let address = server.local_addr()?;
        Ok((server, address))
    };
    let failed = LabError::io("open an UDP socket");
    let (server, address) = far.enter(open)?.map_err(failed)?;
    let connect = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(address)?;
        Ok(socket)
    };
    let socket = pod.enter(connect)?.map_err(LabError::io("connect to it"))?;
    Ok((socket, server))
}

/// The states of a pod's connections.
fn held(outside: &Outside, pod: IpAddr, proto: &str) -> Result<Vec<String>, LabError> {
    let rows = outside.node().cli(&["connections"])?;
    let rows = rows.as_array().cloned().unwrap_or_default();
    let is_its = |row: &&serde_json::Value| row["src"] == pod.to_string() && row["proto"] == proto;
    let states = rows.iter().filter(is_its);
    Ok(states
        .map(|row| row["state"].as_str().unwrap_or_default().to_owned())
        .collect())
}

/// Talks from `from` to both listeners, while the agent is killed a few times
/// and then restarted.
pub(super) fn through_restarts(
    node: &mut Node,
    listeners: &[TcpListener; 2],
    from: &Namespace,
) -> Result<(), LabError> {
    let desk = Desk::default();
    let talks: Vec<_> = std::thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(|| answer(listener).expect("one connection, to its end"));
        }
        let talkers: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(number, listener)| {
                let to = listener.local_addr().expect("bound");
                let desk = &desk;
                scope.spawn(move || from.enter(|| talk(to, desk, number)))
            })
            .collect();
        let outcome = (|| {
            goes_on(&desk, "at first")?;
            for round in 0..3 {
                node.kill9();
                std::thread::sleep(Duration::from_millis(200));
                node.start_agent()?;
                goes_on(&desk, &format!("after a kill, round {round}"))?;
            }
            node.restart()?;
            goes_on(&desk, "after a restart")
        })();
        desk.is_over.store(true, Ordering::Relaxed);
        let talks = talkers
            .into_iter()
            .map(|talker| talker.join().expect("no panic"));
        let talks: Vec<_> = talks.collect();
        outcome.map(|()| talks)
    })?;
    for talk in talks {
        let talk = talk?.map_err(LabError::io("talk through restarts"))?;
        println!("longest wait for an answer: {:?}", talk.gap);
    }
    Ok(())
}

/// Listens at an address of a namespace.
pub(super) fn listen(namespace: &Namespace, at: IpAddr) -> Result<TcpListener, LabError> {
    let bound = namespace.enter(|| TcpListener::bind((at, 0)))?;
    bound.map_err(LabError::io(format!("listen on {at}")))
}

/// The uplink's sockets are made anew for other queues and offloads. The
/// kernel, which knows nothing of the pods' connections, must not answer
/// meanwhile.
#[test]
fn connections_outlive_changes_of_the_uplinks_device() -> Result<(), LabError> {
    if !root_or_skip("connections_outlive_changes_of_the_uplinks_device") {
        return Ok(());
    }
    let outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    let (inside, far) = (pod.namespace(), &outside.far);
    let (rounds, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let goes_on = || {
        rounds.fetch_add(1, Ordering::Relaxed);
        !is_over.load(Ordering::Relaxed)
    };
    for to in FAR {
        traffic::reach(inside, to)?;
    }
    std::thread::scope(|scope| {
        let talks =
            FAR.map(|to| scope.spawn(move || traffic::tcp_lasting(inside, far, to, goes_on)));
        let more = |when: &str| {
            let before = rounds.load(Ordering::Relaxed);
            wait_for(&format!("talks go on {when}"), SILENCE, || {
                (rounds.load(Ordering::Relaxed) > before + 20).then_some(())
            })
        };
        let outcome = (|| {
            more("at first")?;
            let node = outside.node();
            let attached = || node.log_tail(200).matches("attached uplink=").count();
            let changes = ["-L eth0 rx 2 tx 2", "-K eth0 tx-udp-segmentation off"];
            for change in changes {
                let before = attached();
                node.namespace().sh(&format!("ethtool {change}"))?;
                wait_for(&format!("the uplink after {change}"), SILENCE, || {
                    (attached() > before).then_some(())
                })?;
                more(&format!("after {change}"))?;
            }
            Ok(())
        })();
        is_over.store(true, Ordering::Relaxed);
        for talk in talks {
            talk.join().expect("no panic")?;
        }
        outcome
    })?;
    assert_eq!(outside.node().drops()?["no_connection"], 0);
    outside.nothing_leaked()
}

#[test]
fn connections_outlive_the_agent() -> Result<(), LabError> {
    if !root_or_skip("connections_outlive_the_agent") {
        return Ok(());
    }
    let mut outside = Outside::start("61000-65535")?;
    let pod = Pod::attach(outside.node(), "web")?;
    let other = Pod::attach(outside.node(), "other")?;
    for to in FAR {
        traffic::reach(pod.namespace(), to)?;
    }
    let far = &outside.far;
    let listeners = [listen(far, FAR[0])?, listen(far, FAR[1])?];
    let (socket, server) = datagrams(pod.namespace(), &outside.far)?;
    let failed = || LabError::io("ask for an address");
    let before = seen(&socket, &server).map_err(failed())?;
    let node = &mut outside.cluster.nodes_mut()[0];
    through_restarts(node, &listeners, pod.namespace())?;
    // The same port towards the same end, and nobody else has it.
    let after = seen(&socket, &server).map_err(failed())?;
    assert_eq!(after, before);
    assert_eq!(outside.node().drops()?["no_connection"], 0);
    // They were followed to their ends, and a pod that vanished meanwhile
    // leaves nothing.
    assert_eq!(held(&outside, pod.v4()?, "udp")?, ["stream"]);
    for address in [pod.v4()?, pod.v6()?] {
        wait_for("TCP's last acknowledgement", SILENCE, || {
            let states = held(&outside, address, "tcp").ok()?;
            (states == ["time-wait"]).then_some(())
        })?;
    }
    traffic::reach(other.namespace(), FAR[0])?;
    let address = other.v4()?;
    assert!(!held(&outside, address, "icmp")?.is_empty());
    outside.node_mut().kill9();
    drop(other);
    wait_for("the pod's end to go", SILENCE, || {
        let interfaces = outside.node().interfaces().ok()?;
        let ends = interfaces.iter().filter(|name| name.starts_with("sl"));
        // The other pod's.
        (ends.count() == 1).then_some(())
    })?;
    outside.node_mut().start_agent()?;
    assert!(held(&outside, address, "icmp")?.is_empty());
    assert_eq!(held(&outside, pod.v4()?, "udp")?, ["stream"]);
    outside.nothing_leaked()
}
