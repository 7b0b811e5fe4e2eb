//! A hundred thousand connections at once, through sockets.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::Value;
use spinlane_tests::probe::http_get;
use spinlane_tests::{LabError, Namespace, Node, Pod, root_or_skip, traffic};

use super::outside::{FAR, Outside};

const SCRIPT: &str = include_str!("crowd.py");

/// Ports outside.
const PORTS: u16 = 16_384;
const FIRST: u16 = u16::MAX - PORTS + 1;

/// One process of the script's; it ends with its input, or its namespace.
/// There is one for each address, since a process may not have a hundred
/// thousand sockets everywhere.
struct Side {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    fn start(at: &Namespace, arguments: &str) -> Result<Side, LabError> {
        let mut command = at.command("/usr/bin/python3");
        command.args(["-c", SCRIPT]).args(arguments.split(' '));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(LabError::io("start a side"))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.expect("both are piped");
        Ok(Side {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    fn line(&mut self) -> Result<String, LabError> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        read.map_err(LabError::io("hear of a side"))?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self) -> Result<(), LabError> {
        let asked = self.input.write_all(b"\n");
        asked.map_err(LabError::io("ask a side"))
    }

    /// How many there are of what it goes on to name.
    fn count(&mut self) -> Result<usize, LabError> {
        self.ask()?;
        let line = self.line()?;
        let count = line.parse();
        count.map_err(|_| LabError::unexpected("a number", line))
    }

    /// The ends that a server's connections come from.
    fn held(&mut self) -> Result<Vec<SocketAddr>, LabError> {
        let end = |line: String| {
            let (address, port) = line.split_once(' ')?;
            Some((address.parse::<IpAddr>().ok()?, port.parse().ok()?).into())
        };
        (0..self.count()?)
            .map(|_| {
                let line = self.line()?;
                end(line.clone()).ok_or_else(|| LabError::unexpected("an end", line))
            })
            .collect()
    }

    fn leave(self) -> Result<(), LabError> {
        let Side {
            mut child, input, ..
        } = self;
        drop(input);
        let status = child.wait().map_err(LabError::io("wait for a side"))?;
        assert!(status.success(), "{status}");
        Ok(())
    }
}

/// Connections from as many ports of a pod to each of some servers.
struct Crowd {
    sides: Vec<Side>,
    ends: u16,
}

impl Crowd {
    fn open(from: &Pod, (first, ends): (u16, u16), to: &[Ipv4Addr]) -> Result<Crowd, LabError> {
        let start = |server: &Ipv4Addr| {
            let arguments = format!("open {server} 7 {first} {ends}");
            Side::start(from.namespace(), &arguments)
        };
        let mut sides: Vec<_> = to.iter().map(start).collect::<Result<_, _>>()?;
        for side in &mut sides {
            assert_eq!(side.line()?, "open");
        }
        Ok(Crowd { sides, ends })
    }

    /// Talks through many of the connections; how many.
    fn talk(&mut self) -> Result<usize, LabError> {
        self.sides.iter_mut().map(Side::count).sum()
    }

    /// The ports outside of each end, by the agent's rows; one row for each
    /// connection.
    fn ways_out(&self, pod: &Pod, rows: &[Value]) -> Result<HashMap<u64, Vec<u64>>, LabError> {
        let pod = pod.v4()?.to_string();
        let mut ends: HashMap<u64, Vec<u64>> = HashMap::new();
        for row in rows.iter().filter(|row| row["src"] == pod) {
            let port = row["snat"].as_str().and_then(port_of);
            if let Some((inside, outside)) = row["sport"].as_u64().zip(port) {
                ends.entry(inside).or_default().push(outside);
            }
        }
        assert_eq!(ends.len(), usize::from(self.ends));
        assert!(ends.values().all(|ports| ports.len() == self.sides.len()));
        Ok(ends)
    }

    fn leave(self) -> Result<(), LabError> {
        self.sides.into_iter().try_for_each(Side::leave)
    }
}

fn port_of(end: &str) -> Option<u64> {
    end.parse::<SocketAddr>().ok().map(|end| end.port().into())
}

fn is_one(ports: &[u64]) -> bool {
    ports.iter().all(|port| *port == ports[0])
}

/// The agent's rows of the connections, after its other figures said the same.
/// The pings of the beginning may still be there.
fn rows(node: &Node, all: usize, pings: usize) -> Result<Vec<Value>, LabError> {
    let expected = all as u64..=(all + pings) as u64;
    let status = node.status()?;
    assert!(expected.contains(&status.connections), "{status:?}");
    let metrics = http_get(node.namespace(), "127.0.0.1:9465", "/metrics")?;
    let mut gauges = metrics.lines();
    let gauge = gauges.find_map(|line| line.strip_prefix("spinlane_connections "));
    let gauge: Option<u64> = gauge.and_then(|number| number.parse().ok());
    assert!(gauge.is_some_and(|n| expected.contains(&n)), "{gauge:?}");
    let drops = node.drops()?;
    let refusals = [
        "no_masquerade_port",
        "no_connection",
        "connection_limit",
        "connection_table_full",
    ];
    let is_none_refused = refusals.iter().all(|reason| drops[*reason] == 0);
    assert!(is_none_refused, "{drops:?}");
    let rows = node.cli(&["connections"])?;
    let mut rows = rows.as_array().cloned().unwrap_or_default();
    rows.retain(|row| row["proto"] == "tcp" && row["state"] == "established");
    assert_eq!(rows.len(), all);
    Ok(rows)
}

/// From one address to eight, while it has 16 384 ports. The first pod's ends
/// keep their own, half of all; the second's, which has the same, get others,
/// one each. What is left does not do for the third's ends, which leave by what
/// is free towards each destination.
#[test]
fn a_hundred_thousand_connections_are_open_at_once() -> Result<(), LabError> {
    if !root_or_skip("a_hundred_thousand_connections_are_open_at_once") {
        return Ok(());
    }
    let outside = Outside::start(&format!("{FIRST}-65535"))?;
    let servers = [2, 3, 4, 5, 6, 7, 8, 9].map(|host| Ipv4Addr::new(203, 0, 113, host));
    for server in &servers[1..] {
        let more = format!("address add {server}/24 dev eth0");
        outside.far.ip(&more)?;
    }
    let attach = |name| Pod::attach(outside.node(), name);
    let pods = [attach("a")?, attach("b")?, attach("c")?];
    for pod in &pods {
        for server in servers {
            traffic::reach(pod.namespace(), server.into())?;
        }
    }
    let serve = |server| Side::start(&outside.far, &format!("serve {server} 7"));
    let mut serving: Vec<_> = servers.into_iter().map(serve).collect::<Result<_, _>>()?;
    for side in &mut serving {
        assert_eq!(side.line()?, "listening");
    }

    let mut keep = Crowd::open(&pods[0], (FIRST, PORTS / 2), &servers)?;
    let mut move_on = Crowd::open(&pods[1], (FIRST, 6144), &servers[..2])?;
    let mut share = Crowd::open(&pods[2], (20_000, 4096), &servers[2..])?;
    let all = 8 * usize::from(PORTS / 2) + 2 * 6144 + 6 * 4096;
    assert!(all > 100_000);
    let rows = rows(outside.node(), all, pods.len() * servers.len())?;
    // The agent and the servers see the same.
    let own = outside.own(FAR[0]);
    for (server, side) in servers.iter().zip(&mut serving) {
        let ends = side.held()?;
        assert!(
            ends.iter()
                .all(|end| end.ip() == own && end.port() >= FIRST)
        );
        let server = server.to_string();
        let said = rows.iter().filter(|row| row["dst"] == server);
        let said: HashSet<&str> = said.filter_map(|row| row["snat"].as_str()).collect();
        assert_eq!(said.len(), ends.len(), "{server}");
        assert!(ends.iter().all(|end| said.contains(&*end.to_string())));
    }
    let kept = keep.ways_out(&pods[0], &rows)?;
    let is_kept = kept.iter().all(|(own, out)| is_one(out) && out[0] == *own);
    assert!(is_kept, "a port that is free is kept");
    let moved = move_on.ways_out(&pods[1], &rows)?;
    let single = moved.values().filter(|out| is_one(out)).count();
    assert!(single * 100 > moved.len() * 97, "{single}");
    let shared = share.ways_out(&pods[2], &rows)?;
    let single = shared.values().filter(|out| is_one(out)).count();
    assert!(single < 2048, "{single}");
    // All live, and nobody's bytes come to another.
    let talked = keep.talk()? + move_on.talk()? + share.talk()?;
    assert_eq!(talked, all / 16);

    for crowd in [keep, move_on, share] {
        crowd.leave()?;
    }
    serving.into_iter().try_for_each(Side::leave)?;
    outside.node().settled_frames()?;
    outside.nothing_leaked()
}
