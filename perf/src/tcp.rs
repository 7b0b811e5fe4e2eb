//! Bulk TCP between two pods: N streams, counted by the receiver.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cpu;
use crate::measure::{MeasureError, io_error};
use crate::stop::Stop;
use crate::subject::{BULK_PORT, Pod};

/// Bytes of one write or read, as iperf3 has them.
const CHUNK_BYTES: usize = 128 * 1024;
/// How often blocked threads look whether the end has come.
const LOOK: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bulk {
    /// Streams side by side.
    pub streams: usize,
    /// Left out at the start, while windows open.
    pub warm_up: Duration,
    /// Measured after it.
    pub duration: Duration,
    /// Core that the senders are bound to; the scheduler's choice without.
    pub sender_core: Option<usize>,
    /// IPv6 instead of IPv4.
    pub v6: bool,
}

/// What the receiver counted and what the senders' kernel says of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BulkResult {
    /// Bits a second that the receiver read.
    pub bits_per_second: f64,
    /// Seconds that were measured.
    pub seconds: f64,
    /// Segments sent again, over all streams (`tcpi_total_retrans`).
    pub retransmits: u64,
    /// Reordering events that the senders noticed (`tcpi_reord_seen`).
    pub reordering: u64,
    /// Duplicates that receivers reported: retransmitted without need
    /// (`tcpi_dsack_dups`).
    pub spurious: u64,
}

/// Runs the streams from `from` to `to`, until `stop` at the longest.
///
/// # Errors
/// When a connection fails, or `stop` ended it before anything was measured.
pub fn bulk(
    from: &Pod<'_>,
    to: &Pod<'_>,
    run: &Bulk,
    stop: &Stop,
) -> Result<BulkResult, MeasureError> {
    let listener = to
        .namespace
        .enter(|| TcpListener::bind((to.address(run.v6), BULK_PORT)))?
        .map_err(io_error("listening for TCP in the receiving pod"))?;
    let address = SocketAddr::new(to.destination(run.v6), BULK_PORT);
    let received = AtomicU64::new(0);
    let over = Stop::new();
    let end = || over.is_set() || stop.is_set();
    thread::scope(|scope| {
        let _over = over.on_drop();
        let mut senders = Vec::new();
        for _ in 0..run.streams.max(1) {
            senders.push(scope.spawn(|| {
                from.namespace
                    .enter(|| send(address, run.sender_core, &end))
                    .map_err(MeasureError::from)?
                    .map_err(io_error("sending TCP"))
            }));
            let stream = accept(&listener, &end)?;
            let received = &received;
            scope.spawn(move || receive(stream, received, &end));
        }
        if !stop.sleep(run.warm_up) {
            return Err(MeasureError::Interrupted);
        }
        let (began, first) = (Instant::now(), received.load(Ordering::Relaxed));
        let whole = stop.watch(run.duration, || received.load(Ordering::Relaxed) == first);
        let bytes = received.load(Ordering::Relaxed) - first;
        let seconds = began.elapsed().as_secs_f64();
        over.set();
        let mut result = BulkResult {
            bits_per_second: bytes as f64 * 8.0 / seconds,
            seconds,
            retransmits: 0,
            reordering: 0,
            spurious: 0,
        };
        for sender in senders {
            let info = sender.join().map_err(|_| MeasureError::Panicked)??;
            result.retransmits += u64::from(info.tcpi_total_retrans);
            result.reordering += u64::from(info.tcpi_reord_seen);
            result.spurious += u64::from(info.tcpi_dsack_dups);
        }
        match bytes {
            0 if !whole => Err(MeasureError::Interrupted),
            _ => Ok(result),
        }
    })
}

/// The next connection, without blocking past the end.
fn accept(listener: &TcpListener, end: &dyn Fn() -> bool) -> Result<TcpStream, MeasureError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    listener
        .set_nonblocking(true)
        .map_err(io_error("accepting TCP"))?;
    let began = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream
                    .set_nonblocking(false)
                    .map_err(io_error("accepting TCP"))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if end() {
                    return Err(MeasureError::Interrupted);
                }
                if began.elapsed() > PATIENCE {
                    return Err(MeasureError::Unreachable {
                        what: "a TCP connection",
                        seconds: PATIENCE.as_secs(),
                    });
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(io_error("accepting TCP")(error)),
        }
    }
}

fn receive(mut stream: TcpStream, received: &AtomicU64, end: &dyn Fn() -> bool) {
    let mut buffer = vec![0u8; CHUNK_BYTES];
    if stream.set_read_timeout(Some(LOOK)).is_err() {
        return;
    }
    while !end() {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => {
                received.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(error) if may_go_on(&error) => {}
            Err(_) => return,
        }
    }
}

fn send(
    address: SocketAddr,
    core: Option<usize>,
    end: &dyn Fn() -> bool,
) -> io::Result<libc::tcp_info> {
    if let Some(core) = core {
        cpu::pin(core)?;
    }
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(4))?;
    stream.set_write_timeout(Some(LOOK))?;
    let buffer = vec![0u8; CHUNK_BYTES];
    while !end() {
        match stream.write(&buffer) {
            Ok(_) => {}
            Err(error) if may_go_on(&error) => {}
            // The receiver saw the end first, and closed.
            Err(_) if end() => break,
            Err(error) => return Err(error),
        }
    }
    info::of(&stream)
}

fn may_go_on(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// `TCP_INFO`, which no safe crate at hand reads.
mod info {
    #![allow(unsafe_code)]

    use std::io;
    use std::mem::MaybeUninit;
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;

    /// What the kernel knows of a connection.
    pub(super) fn of(stream: &TcpStream) -> io::Result<libc::tcp_info> {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut bytes = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the descriptor is open, `info` has room for `bytes` bytes
        // and the kernel writes no more. There is no safe form in std or nix.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: every field is an integer and the memory began as zeros, so
        // it is a value whatever part of it the kernel wrote.
        Ok(unsafe { info.assume_init() })
    }
}
