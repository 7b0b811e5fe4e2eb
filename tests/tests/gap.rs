//! How long pods' traffic stops when the agent is exchanged for another.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spinlane_tests::{LabError, Namespace, Node, Pod, Result, root_or_skip, traffic};

/// How often a question is asked.
const PACE: Duration = Duration::from_millis(10);
/// Longer than this nobody waits, whatever else the machine does.
const BOUND: Duration = Duration::from_secs(10);

fn echo(server: &UdpSocket, is_over: &AtomicBool) {
    let mut buffer = [0; 64];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((len, from)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(&buffer[..len], from);
        }
    }
}

/// Asks every 10 ms; the longest time without an answer.
fn longest_silence(client: &UdpSocket, is_over: &AtomicBool) -> std::io::Result<Duration> {
    let (mut heard, mut longest) = (Instant::now(), Duration::ZERO);
    let mut buffer = [0; 64];
    while !is_over.load(Ordering::Relaxed) {
        client.send(b"?")?;
        match client.recv(&mut buffer) {
            Ok(_) => {
                longest = longest.max(heard.elapsed());
                heard = Instant::now();
                std::thread::sleep(PACE);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(longest.max(heard.elapsed()))
}

fn socket(namespace: &Namespace, at: std::net::IpAddr) -> Result<UdpSocket> {
    let failed = LabError::io("open a socket");
    let open = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((at, 0))?;
        socket.set_read_timeout(Some(PACE))?;
        Ok(socket)
    };
    namespace.enter(open)?.map_err(failed)
}

/// The longest silence between two pods while `change` happens.
fn silence(from: &Pod, to: &Pod, change: impl FnOnce() -> Result<()>) -> Result<Duration> {
    traffic::reach(from.namespace(), to.v4()?)?;
    let server = socket(to.namespace(), to.v4()?)?;
    let client = socket(from.namespace(), from.v4()?)?;
    let failed = || LabError::io("ask a pod");
    let there = server.local_addr().map_err(failed())?;
    client.connect(there).map_err(failed())?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| echo(&server, &is_over));
        let asking = scope.spawn(|| longest_silence(&client, &is_over));
        std::thread::sleep(PACE * 20);
        let changed = change();
        std::thread::sleep(PACE * 50);
        is_over.store(true, Ordering::Relaxed);
        answering.join().expect("no panic");
        let longest = asking.join().expect("no panic").map_err(failed())?;
        changed.map(|()| longest)
    })
}

/// The kernel's numbers of the XDP programs of a node's interfaces.
fn programs(node: &Node) -> Result<Vec<String>> {
    let shown = node.namespace().ip("-d -o link show")?;
    let attached = shown.split("prog/xdp id ").skip(1);
    let numbers = attached.filter_map(|rest| rest.split_whitespace().next());
    Ok(numbers.map(str::to_owned).collect())
}

#[test]
fn traffic_stops_shortly_while_the_agent_is_exchanged() -> Result<()> {
    if !root_or_skip("traffic_stops_shortly_while_the_agent_is_exchanged") {
        return Ok(());
    }
    let node = Node::plain("gap")?;
    let mut pods = Vec::new();
    for count in [2, 50] {
        while pods.len() < count {
            pods.push(Pod::attach(&node, &format!("p{}", pods.len()))?);
        }
        // Exchanging them is what took longest.
        let before = programs(&node)?;
        assert_eq!(before.len(), count + 1, "one for each port");
        for is_crash in [false, true] {
            let gap = silence(&pods[0], &pods[count - 1], || node.bounce(is_crash))?;
            let how = if is_crash { "a kill" } else { "SIGTERM" };
            println!("{count} pods, {how}: {gap:?}");
            assert!(gap < BOUND, "{count} pods, {how}: {gap:?}");
            assert_eq!(programs(&node)?, before, "{count} pods, {how}");
        }
    }
    Ok(())
}
