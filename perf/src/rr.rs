//! Round trips: one request, one response, then the next.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cpu;
use crate::measure::{MeasureError, io_error};
use crate::stop::Stop;
use crate::subject::{Pod, ROUND_TRIP_PORT};

const REQUEST_BYTES: usize = 16;
/// After this a datagram counts as lost.
const LOSS: Duration = Duration::from_millis(200);
/// How much longer the first answer is waited for.
const FIRST_ANSWER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);
/// Longest round trip that the histogram keeps.
const LONGEST_NS: u64 = 10_000_000_000;

/// What carries the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP without Nagle's algorithm.
    Tcp,
    /// UDP.
    Udp,
}

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundTrips {
    /// What carries them.
    pub transport: Transport,
    /// Left out at the start.
    pub warm_up: Duration,
    /// Measured after it.
    pub duration: Duration,
    /// Core that the asking side is bound to; the scheduler's choice without.
    pub client_core: Option<usize>,
    /// IPv6 instead of IPv4.
    pub v6: bool,
}

/// Round trip times in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundTripResult {
    /// How many round trips.
    pub count: u64,
    /// Datagrams without an answer.
    pub lost: u64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// All of them, in nanoseconds.
    #[serde(skip)]
    pub histogram: Histogram<u64>,
}

impl RoundTripResult {
    fn of(histogram: Histogram<u64>, lost: u64) -> RoundTripResult {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        RoundTripResult {
            count: histogram.len(),
            lost,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1000.0,
            histogram,
        }
    }
}

/// Asks from `from`, answers in `to`, until `stop` at the longest.
///
/// # Errors
/// When the connection fails, nothing comes back, or `stop` ended it before
/// anything did.
pub fn round_trips(
    from: &Pod<'_>,
    to: &Pod<'_>,
    run: &RoundTrips,
    stop: &Stop,
) -> Result<RoundTripResult, MeasureError> {
    let over = Stop::new();
    let end = || over.is_set() || stop.is_set();
    let own = SocketAddr::new(to.address(run.v6), ROUND_TRIP_PORT);
    let address = SocketAddr::new(to.destination(run.v6), ROUND_TRIP_PORT);
    thread::scope(|scope| {
        let _over = over.on_drop();
        let answering = to.namespace.enter(|| Answering::bind(run.transport, own))?;
        let answering = answering.map_err(io_error("listening in the answering pod"))?;
        scope.spawn(move || answering.run(&end));
        let result = from.namespace.enter(|| ask(address, run, &end))?;
        let (histogram, lost) = result.map_err(io_error("asking over the switch"))?;
        if histogram.is_empty() && stop.is_set() {
            return Err(MeasureError::Interrupted);
        }
        if histogram.is_empty() {
            return Err(MeasureError::Unreachable {
                what: "an answer",
                seconds: (run.warm_up + run.duration + FIRST_ANSWER).as_secs(),
            });
        }
        Ok(RoundTripResult::of(histogram, lost))
    })
}

enum Answering {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Answering {
    fn bind(transport: Transport, address: SocketAddr) -> io::Result<Answering> {
        Ok(match transport {
            Transport::Tcp => Answering::Tcp(TcpListener::bind(address)?),
            Transport::Udp => Answering::Udp(UdpSocket::bind(address)?),
        })
    }

    /// Answers until the end; an error ends it, and the asking side tells.
    fn run(self, end: &dyn Fn() -> bool) {
        let mut buffer = [0u8; 2048];
        match self {
            Answering::Udp(socket) => {
                if socket.set_read_timeout(Some(LOOK)).is_err() {
                    return;
                }
                while !end() {
                    if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&buffer[..bytes], from);
                    }
                }
            }
            Answering::Tcp(listener) => {
                let Some(mut stream) = accept(&listener, end) else {
                    return;
                };
                while !end() {
                    match stream.read(&mut buffer) {
                        Ok(0) => return,
                        Ok(bytes) => {
                            let _ = stream.write_all(&buffer[..bytes]);
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, end: &dyn Fn() -> bool) -> Option<TcpStream> {
    listener.set_nonblocking(true).ok()?;
    while !end() {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).ok()?;
            stream.set_nodelay(true).ok()?;
            stream.set_read_timeout(Some(LOOK)).ok()?;
            return Some(stream);
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}

fn ask(
    address: SocketAddr,
    run: &RoundTrips,
    end: &dyn Fn() -> bool,
) -> io::Result<(Histogram<u64>, u64)> {
    if let Some(core) = run.client_core {
        cpu::pin(core)?;
    }
    let mut client = Client::connect(run.transport, address)?;
    let mut histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3)
        .map_err(|error| io::Error::other(error.to_string()))?;
    let mut lost = 0;
    let began = Instant::now();
    let enough = run.warm_up + run.duration;
    // One loss is no verdict on a short run.
    let goes_on = |histogram: &Histogram<u64>| match began.elapsed() {
        elapsed if elapsed < enough => true,
        elapsed => histogram.is_empty() && elapsed < enough + FIRST_ANSWER,
    };
    while !end() && goes_on(&histogram) {
        let asked = Instant::now();
        let answered = client.exchange()?;
        if began.elapsed() < run.warm_up {
            continue;
        }
        if answered {
            histogram.saturating_record(asked.elapsed().as_nanos() as u64);
        } else {
            lost += 1;
        }
    }
    Ok((histogram, lost))
}

enum Client {
    Tcp(TcpStream),
    Udp(UdpSocket, u64),
}

impl Client {
    fn connect(transport: Transport, address: SocketAddr) -> io::Result<Client> {
        match transport {
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&address, Duration::from_secs(4))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                Ok(Client::Tcp(stream))
            }
            Transport::Udp => {
                let any = match address {
                    SocketAddr::V4(_) => "0.0.0.0:0",
                    SocketAddr::V6(_) => "[::]:0",
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(address)?;
                socket.set_read_timeout(Some(LOSS))?;
                Ok(Client::Udp(socket, 0))
            }
        }
    }

    /// One round trip; `false` when a datagram was lost.
    fn exchange(&mut self) -> io::Result<bool> {
        let mut buffer = [0u8; REQUEST_BYTES];
        match self {
            Client::Tcp(stream) => {
                stream.write_all(&buffer)?;
                stream.read_exact(&mut buffer)?;
                Ok(true)
            }
            Client::Udp(socket, number) => {
                *number += 1;
                buffer[..8].copy_from_slice(&number.to_le_bytes());
                let sent = buffer;
                socket.send(&sent)?;
                loop {
                    match socket.recv(&mut buffer) {
                        Ok(_) if buffer == sent => return Ok(true),
                        Ok(_) => {} // a late answer to a request given up
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => return Ok(false),
                    }
                }
            }
        }
    }
}
