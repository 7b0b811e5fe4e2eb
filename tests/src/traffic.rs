//! Pings and transfers whose contents are checked.
//!
//! The transfers are plain `std::net` on threads inside the namespaces: they
//! say whether bytes arrive and are the right ones, not how fast.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::{PATIENCE, Process, wait_for};

/// A peer that says nothing for this long has failed the transfer.
const SILENCE: Duration = PATIENCE;
/// After this long a datagram is lost.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// How often a thread that waits for packets looks whether it may end.
const LOOK: Duration = Duration::from_millis(50);
/// How often something is tried while the machine loses packets.
const TRIALS: u32 = 10;
/// Bytes that the transfers write at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// How a series of pings went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pings {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo replies received.
    pub received: u32,
    /// What `ping` printed.
    pub text: String,
}

impl Pings {
    /// Whether every request was answered.
    #[must_use]
    pub fn all(&self) -> bool {
        self.sent > 0 && self.sent == self.received
    }

    /// Of these, the first `count`: what was sent after them only passed the time
    /// until their replies came.
    fn first(self, count: u32) -> Self {
        let replies = self.text.lines().filter(|line| line.contains("bytes from"));
        let numbers = replies.filter_map(|line| {
            let (_, rest) = line.split_once("icmp_seq=")?;
            rest.split(' ').next()?.parse().ok()
        });
        let answered: BTreeSet<u32> = numbers.filter(|number| *number <= count).collect();
        Pings {
            sent: count,
            received: u32::try_from(answered.len()).expect("no more than were sent"),
            text: self.text,
        }
    }
}

/// Pings `to` from inside `from`, five times a second; a reply may take ten
/// seconds.
///
/// # Errors
/// When `ping` cannot be run or prints no summary.
pub fn ping(from: &Namespace, to: IpAddr, count: u32) -> Result<Pings> {
    ping_with(from, to, count, &[])
}

/// Starts a flood of long pings, fragments each, that ends by itself after a
/// hundred thousand.
///
/// # Errors
/// When `ping` cannot be started.
pub fn flood(from: &Namespace, to: IpAddr) -> Result<Process> {
    let to = to.to_string();
    from.spawn(&["ping", "-q", "-f", "-s", "5000", "-c", "100000", &to])
}

/// Pings `to` from inside `from` until a reply comes.
///
/// # Errors
/// When none comes for long, or `ping` cannot be run.
pub fn reach(from: &Namespace, to: IpAddr) -> Result<()> {
    let what = format!("a reply of {to} to {}", from.name());
    wait_for(&what, PATIENCE, || {
        let pings = ping_with(from, to, 1, &["-W", "1"]);
        pings.ok().filter(Pings::all)
    })
    .map(drop)
}

/// One of the kernel's counters in a namespace (`TcpRetransSegs`…), by the
/// name that `nstat` knows it by.
///
/// # Errors
/// When there is none of that name.
pub fn counter(namespace: &Namespace, name: &str) -> Result<u64> {
    let text = namespace.run(&["nstat", "-asz", name])?;
    let mut words = text.split_whitespace().skip_while(|word| *word != name);
    let number = words.nth(1).and_then(|number| number.parse().ok());
    number.ok_or_else(|| LabError::unexpected(format!("nstat {name}"), text))
}

/// Bytes and packets that a namespace received so far by its `eth0`.
///
/// # Errors
/// When it has no such device.
pub fn received(namespace: &Namespace) -> Result<(u64, u64)> {
    let text = namespace.run(&["grep", "eth0:", "/proc/self/net/dev"])?;
    let mut words = text.split_whitespace().skip(1);
    let mut number = || words.next().and_then(|word| word.parse().ok());
    let both = number().zip(number());
    both.ok_or_else(|| LabError::unexpected("the counters of eth0", text))
}

/// [`ping`] with more options (`-s 1400`, `-I eth1`…).
///
/// # Errors
/// As [`ping`].
pub fn ping_with(from: &Namespace, to: IpAddr, count: u32, options: &[&str]) -> Result<Pings> {
    // `ping` that had one reply waits for the last no longer than for the next
    // request's time, unless it has a deadline; it ends when all came.
    let deadline = (10 + count).to_string();
    let options = match count {
        1 => options.to_vec(),
        _ => [options, &["-w", &deadline]].concat(),
    };
    let is_well = |pings: &Result<Pings>| pings.as_ref().map_or(true, Pings::all);
    let trial = || ping_in_vain(from, to, count, &options).map(|pings| pings.first(count));
    counted(trial, is_well)
}

/// As [`ping_with`], for who expects that somebody is not answered: one answer
/// is too many, so it is not tried again, and nobody waits for the last one long.
///
/// # Errors
/// As [`ping`].
pub fn ping_in_vain(from: &Namespace, to: IpAddr, count: u32, options: &[&str]) -> Result<Pings> {
    let what = format!("ping {to} from {}", from.name());
    let output = from
        .command("ping")
        .args(["-n", "-i", "0.2", "-W", "10", "-c", &count.to_string()])
        .args(options)
        .arg(to.to_string())
        .env("LC_ALL", "C")
        .output()
        .map_err(LabError::io(what.clone()))?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let number_before = |words: &str| {
        text.split(words)
            .next()
            .filter(|head| head.len() < text.len())
            .and_then(|head| head.rsplit(|c: char| !c.is_ascii_digit()).next())
            .and_then(|digits| digits.parse().ok())
    };
    match (
        number_before(" packets transmitted"),
        number_before(" received"),
    ) {
        (Some(sent), Some(received)) => Ok(Pings {
            sent,
            received,
            text,
        }),
        _ => Err(LabError::unexpected(what, text)),
    }
}

/// A stream of bytes that both ends can make: xorshift64 from a seed.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// The next bytes; lengths must be multiples of 8 until the last call.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let word = self.state.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Opens a TCP connection from `client` to `address` inside `server` and
/// sends `bytes` of a pattern each way, one direction after the other; every
/// byte is compared.
///
/// # Errors
/// When a step fails, a byte differs or one side stays silent for half a minute.
pub fn tcp_both_ways(
    client: &Namespace,
    server: &Namespace,
    address: IpAddr,
    bytes: usize,
) -> Result<()> {
    let what = format!("TCP from {} to {address}", client.name());
    let listener = server
        .enter(|| TcpListener::bind(SocketAddr::new(address, 0)))?
        .map_err(LabError::io(format!(
            "listen on {address} in {}",
            server.name()
        )))?;
    let target = listener
        .local_addr()
        .map_err(LabError::io("read the listener's address"))?;
    let answering = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = accept_within(&listener, SILENCE)?;
        limit(&stream)?;
        receive(&mut stream, Pattern::new(1), bytes)?;
        send(&mut stream, Pattern::new(2), bytes)
    });
    let asked = client.enter(|| -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&target, SILENCE)?;
        limit(&stream)?;
        send(&mut stream, Pattern::new(1), bytes)?;
        receive(&mut stream, Pattern::new(2), bytes)
    })?;
    let answered = answering
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the server's thread panicked")));
    both_ends(&what, asked, answered)
}

/// What came of a conversation: where both ends failed, each says why.
fn both_ends<T>(what: &str, client: std::io::Result<T>, server: std::io::Result<()>) -> Result<T> {
    match (client, server) {
        (Err(client), Err(server)) => {
            let why = format!("client: {client}; server: {server}");
            Err(LabError::unexpected(what, why))
        }
        (client, server) => {
            let result = client.map_err(LabError::io(format!("{what}, client")))?;
            server.map_err(LabError::io(format!("{what}, server")))?;
            Ok(result)
        }
    }
}

/// One TCP connection from `client` to an echo at `address` inside `server`,
/// used for as long as `goes_on` says; every byte is compared. How often a
/// chunk came back.
///
/// # Errors
/// When it breaks, a byte differs or one side stays silent for half a minute.
pub fn tcp_lasting(
    client: &Namespace,
    server: &Namespace,
    address: IpAddr,
    goes_on: impl Fn() -> bool + Sync + Send,
) -> Result<u32> {
    let what = format!(
        "a lasting TCP connection from {} to {address}",
        client.name()
    );
    let listener = server
        .enter(|| TcpListener::bind(SocketAddr::new(address, 0)))?
        .map_err(LabError::io(format!("{what}, listen")))?;
    let target = listener
        .local_addr()
        .map_err(LabError::io("read the listener's address"))?;
    let echoing = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = accept_within(&listener, SILENCE)?;
        limit(&stream)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                len => stream.write_all(&chunk[..len])?,
            }
        }
    });
    let asked = client.enter(|| -> std::io::Result<u32> {
        let mut stream = TcpStream::connect_timeout(&target, SILENCE)?;
        limit(&stream)?;
        let mut rounds = 0;
        while goes_on() {
            let pattern = Pattern::new(u64::from(rounds));
            send(&mut stream, pattern.clone(), CHUNK_BYTES)?;
            receive(&mut stream, pattern, CHUNK_BYTES)?;
            rounds += 1;
        }
        Ok(rounds)
    })?;
    let echoed = echoing
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the server's thread panicked")));
    both_ends(&what, asked, echoed)
}

/// Opens a TCP connection from `client` to `address` inside `server`; the
/// address that the server sees it come from.
///
/// # Errors
/// When nobody connects within half a minute or a socket cannot be made.
pub fn tcp_seen_from(client: &Namespace, server: &Namespace, address: IpAddr) -> Result<IpAddr> {
    let what = format!("TCP from {} to {address}", client.name());
    let listener = server
        .enter(|| TcpListener::bind(SocketAddr::new(address, 0)))?
        .map_err(LabError::io(format!("{what}, listen")))?;
    let target = listener
        .local_addr()
        .map_err(LabError::io("read the listener's address"))?;
    // Whoever is connected by then waits in the listener's queue, unless a reset
    // came between.
    let connected = client.enter(|| TcpStream::connect_timeout(&target, SILENCE))?;
    connected.map_err(LabError::io(format!("{what}, client")))?;
    let accepted = accept_within(&listener, LOST_AFTER);
    let (_, from) = accepted.map_err(LabError::io(format!("{what}, server")))?;
    Ok(from.ip())
}

/// Sends `count` datagrams of `size` bytes from `client` to an echo socket at
/// `address` inside `server`, one after the other; how many came back whole.
///
/// # Errors
/// When a socket cannot be made.
pub fn udp_echo(
    client: &Namespace,
    server: &Namespace,
    address: IpAddr,
    count: u32,
    size: usize,
) -> Result<u32> {
    let what = format!("UDP from {} to {address}", client.name());
    let socket = server
        .enter(|| UdpSocket::bind(SocketAddr::new(address, 0)))?
        .map_err(LabError::io(format!("{what}, server socket")))?;
    let target = socket
        .local_addr()
        .map_err(LabError::io(format!("{what}, server address")))?;
    let waking = socket
        .try_clone()
        .map_err(LabError::io(format!("{what}, server socket")))?;
    let is_over = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&is_over);
    let answering = std::thread::spawn(move || echo(&socket, &until));
    let outcome = client.enter(|| -> std::io::Result<u32> {
        let any: IpAddr = match target.ip() {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(LOST_AFTER))?;
        let mut whole = 0;
        let mut sent = vec![0; size];
        let mut received = vec![0; size + 1];
        for number in 0..count {
            Pattern::new(u64::from(number)).fill(&mut sent);
            // Whether what came is what was sent; nothing may come.
            let mut ask = || -> std::io::Result<Option<bool>> {
                socket.send(&sent)?;
                let length = socket.recv(&mut received).ok();
                Ok(length.map(|length| received[..length] == sent[..]))
            };
            let came = counted(&mut ask, |came| !matches!(came, Ok(None)))?;
            whole += u32::from(came == Some(true));
        }
        Ok(whole)
    })?;
    // Relaxed: nothing else is told by it.
    is_over.store(true, Ordering::Relaxed);
    // It looks at once when something comes.
    let _ = waking.send_to(&[], target);
    let _ = answering.join();
    outcome.map_err(LabError::io(what))
}

/// Makes a trial, again where one went wrong while a CPU of the machine had no
/// room for packets: whose those were nobody knows. The last outcome.
fn counted<T>(mut trial: impl FnMut() -> T, is_well: impl Fn(&T) -> bool) -> T {
    let mut trials = 0;
    loop {
        let before = overflows();
        let outcome = trial();
        trials += 1;
        if is_well(&outcome) || overflows() == before || trials >= TRIALS {
            return outcome;
        }
    }
}

/// Packets, of whatever namespace, that came while their CPU's backlog was full.
fn overflows() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let dropped = text.lines().filter_map(|cpu| cpu.split(' ').nth(1));
    let counts = dropped.filter_map(|count| u64::from_str_radix(count, 16).ok());
    counts.sum()
}

fn echo(socket: &UdpSocket, is_over: &AtomicBool) {
    let mut buffer = vec![0; 65536];
    let _ = socket.set_read_timeout(Some(LOOK));
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// `accept` with a limit.
fn accept_within(
    listener: &TcpListener,
    limit: Duration,
) -> std::io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let deadline = std::time::Instant::now() + limit;
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false)?;
                return Ok((stream, from));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if std::time::Instant::now() >= deadline {
                    return Err(std::io::Error::new(
                        std::io::ErrorKind::TimedOut,
                        "nobody connected",
                    ));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error),
        }
    }
}

fn limit(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))
}

fn send(stream: &mut TcpStream, mut pattern: Pattern, bytes: usize) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(CHUNK_BYTES);
        pattern.fill(&mut chunk[..now]);
        stream.write_all(&chunk[..now])?;
        left -= now;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, mut pattern: Pattern, bytes: usize) -> std::io::Result<()> {
    let mut expected = vec![0; CHUNK_BYTES];
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(CHUNK_BYTES);
        stream.read_exact(&mut chunk[..now])?;
        pattern.fill(&mut expected[..now]);
        if chunk[..now] != expected[..now] {
            return Err(std::io::Error::other(format!(
                "content differs within {} bytes from byte {}",
                now,
                bytes - left
            )));
        }
        left -= now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn pattern_is_the_same_for_any_chunking_by_eights() {
        let mut whole = vec![0; 64];
        Pattern::new(7).fill(&mut whole);
        let mut pieces = vec![0; 64];
        let mut pattern = Pattern::new(7);
        for piece in pieces.chunks_mut(16) {
            pattern.fill(piece);
        }
        assert_eq!(whole, pieces);
        let mut other = vec![0; 64];
        Pattern::new(8).fill(&mut other);
        assert_ne!(whole, other);
    }
}
