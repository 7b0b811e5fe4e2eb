//! A pod that sends packets of ever new flows costs others no more than one
//! that sends as many packets of one flow: flows that are established stay so.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spinlane_tests::{LabError, Node, Pod, Result, root_or_skip, traffic};

/// Between two packets of a flood: what a build without optimisation keeps up
/// with on a busy machine, too.
const PAUSE: Duration = Duration::from_micros(100);
/// Ports that a flood comes from.
const SOURCES: usize = 16;
/// Rounds, in which the floods take turns: at least, and on a machine whose
/// other work weighs more than the floods.
const ROUNDS: [usize; 2] = [5, 20];
const ROUND: Duration = Duration::from_millis(600);
/// Conversations that are established before.
const CONVERSATIONS: usize = 8;
/// When a datagram counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// Sockets that talk to one that echoes, each a flow of its own.
struct Service {
    clients: Vec<UdpSocket>,
    is_over: Arc<AtomicBool>,
}

impl Service {
    fn start(client: &Pod, server: &Pod, address: IpAddr) -> Result<Service> {
        let failed = || LabError::io(format!("a service at {address}"));
        let echoing = server
            .namespace()
            .enter(|| UdpSocket::bind(SocketAddr::new(address, 0)))?
            .map_err(failed())?;
        echoing
            .set_read_timeout(Some(LOST_AFTER))
            .map_err(failed())?;
        let to = echoing.local_addr().map_err(failed())?;
        let connect = || -> std::io::Result<Vec<UdpSocket>> {
            let sockets = (0..CONVERSATIONS).map(|_| {
                let socket = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0)))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(LOST_AFTER))?;
                Ok(socket)
            });
            sockets.collect()
        };
        let clients = client.namespace().enter(connect)?.map_err(failed())?;
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        std::thread::spawn(move || {
            let mut packet = [0; 64];
            // Relaxed: nothing else is told by it.
            while !until.load(Ordering::Relaxed) {
                if let Ok((len, from)) = echoing.recv_from(&mut packet) {
                    let _ = echoing.send_to(&packet[..len], from);
                }
            }
        });
        Ok(Service { clients, is_over })
    }

    /// Questions that are answered in a round.
    fn answered(&self) -> std::io::Result<u64> {
        let began = Instant::now();
        let mut answered = 0;
        for client in self.clients.iter().cycle() {
            if began.elapsed() > ROUND {
                break;
            }
            client.send(b"question")?;
            answered += u64::from(client.recv(&mut [0; 64]).is_ok());
        }
        Ok(answered)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Relaxed: nothing else is told by it.
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn misses(node: &Node) -> Result<u64> {
    let lanes = node.status()?.lanes;
    Ok(lanes.iter().map(|lane| lane.flow_misses).sum())
}

/// A thread that sends datagrams from a pod until it is told to stop.
struct Flood {
    is_over: Arc<AtomicBool>,
    sending: Option<JoinHandle<std::io::Result<u64>>>,
}

impl Flood {
    /// To the first of these ports, then to the next one, and so on, again and
    /// again; from another port each time around.
    fn start(from: &Pod, to: &Pod, ports: RangeInclusive<u16>) -> Result<Flood> {
        let to = to.v4()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let mut sockets = from
            .namespace()
            .enter(|| -> std::io::Result<Vec<UdpSocket>> {
                let any = SocketAddr::from(([0, 0, 0, 0], 0));
                (0..SOURCES).map(|_| UdpSocket::bind(any)).collect()
            })?
            .map_err(LabError::io("make sockets for a flood"))?;
        let sending = std::thread::spawn(move || {
            let (began, mut sent) = (Instant::now(), 0u64);
            loop {
                for port in ports.clone() {
                    // Relaxed: nothing else is told by it.
                    if until.load(Ordering::Relaxed) {
                        return Ok(sent);
                    }
                    sockets[0].send_to(b"flood", (to, port))?;
                    sent += 1;
                    let due = began + PAUSE * u32::try_from(sent).unwrap_or(u32::MAX);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                sockets.rotate_left(1);
            }
        });
        Ok(Flood {
            is_over,
            sending: Some(sending),
        })
    }

    /// How many it sent.
    fn stop(mut self) -> Result<u64> {
        // Relaxed: nothing else is told by it.
        self.is_over.store(true, Ordering::Relaxed);
        let sending = self.sending.take().expect("it stops once");
        let sent = sending.join().expect("no panic in a flood");
        sent.map_err(LabError::io("send a flood"))
    }
}

/// Answers during a flood, and flows that the lanes had not known meanwhile, in
/// a hundred packets of it.
fn during(
    node: &Node,
    (from, to): (&Pod, &Pod),
    ports: RangeInclusive<u16>,
    service: &Service,
) -> Result<[u64; 2]> {
    let unknown = misses(node)?;
    let flood = Flood::start(from, to, ports)?;
    let answered = service.answered().map_err(LabError::io("ask"))?;
    let sent = flood.stop()?;
    let unknown = misses(node)? - unknown;
    Ok([answered, unknown * 100 / sent.max(1)])
}

#[test]
fn a_flood_of_new_flows_leaves_others_their_service() -> Result<()> {
    if !root_or_skip("a_flood_of_new_flows_leaves_others_their_service") {
        return Ok(());
    }
    let node = Node::plain("floods")?;
    let [flooder, target] = [
        Pod::attach(&node, "flooder")?,
        Pod::attach(&node, "target")?,
    ];
    let [client, server] = [Pod::attach(&node, "client")?, Pod::attach(&node, "server")?];
    traffic::reach(flooder.namespace(), target.v4()?)?;
    let service = Service::start(&client, &server, server.v4()?)?;
    service.answered().map_err(LabError::io("ask"))?;
    let (mut by_one, mut by_new) = (0, 0);
    for round in 1..=ROUNDS[1] {
        let pods = (&flooder, &target);
        let [answered, unknown] = during(&node, pods, 9..=9, &service)?;
        assert!(unknown < 50, "{unknown} % of the packets were of new flows");
        by_one += answered;
        let [answered, unknown] = during(&node, pods, 1024..=65_000, &service)?;
        assert!(unknown > 50, "{unknown} % of the packets were of new flows");
        by_new += answered;
        if round >= ROUNDS[0] && by_new * 2 >= by_one {
            break;
        }
    }
    assert!(
        by_new * 2 >= by_one,
        "{by_new} answers beside new flows, {by_one} beside as many packets of one"
    );
    node.settled_frames()?;
    Ok(())
}
