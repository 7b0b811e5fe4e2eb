//! TCP connections, one after another: connect, ask, be answered, close.
//!
//! The answering side closes first, so that TIME_WAIT stays there and the
//! asking side does not run out of ports.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cpu;
use crate::measure::{MeasureError, io_error};
use crate::scenario::{Run, Sample, busy};
use crate::stop::Stop;
use crate::subject::{CONNECTION_PORT, Subject};

/// Askers, and answerers, side by side.
const CLIENTS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(2);

/// Connections a second.
pub(super) fn of(subject: &dyn Subject, run: &Run, stop: &Stop) -> Result<Sample, MeasureError> {
    let [from, to] = subject.pods();
    let listener = to
        .namespace
        .enter(|| TcpListener::bind((to.address(run.v6), CONNECTION_PORT)))?
        .map_err(io_error("listening for connections in the receiving pod"))?;
    listener
        .set_nonblocking(true)
        .map_err(io_error("listening for connections"))?;
    let address = SocketAddr::new(to.destination(run.v6), CONNECTION_PORT);
    let over = Stop::new();
    let end = || over.is_set() || stop.is_set();
    let made = AtomicU64::new(0);
    thread::scope(|scope| {
        let _over = over.on_drop();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            scope.spawn(|| answer(&listener, &end));
            clients.push(scope.spawn(|| {
                from.namespace
                    .enter(|| ask(address, run.socket_core(), &made, &end))
                    .map_err(MeasureError::from)?
                    .map_err(io_error("making connections"))
            }));
        }
        if !stop.sleep(run.warm_up) {
            return Err(MeasureError::Interrupted);
        }
        let busy = busy()?;
        let (began, first) = (Instant::now(), made.load(Ordering::Relaxed));
        let whole = stop.watch(run.duration, || made.load(Ordering::Relaxed) == first);
        let count = made.load(Ordering::Relaxed) - first;
        let sample = Sample::new(count as f64 / began.elapsed().as_secs_f64(), [], busy)?;
        over.set();
        for client in clients {
            client.join().map_err(|_| MeasureError::Panicked)??;
        }
        match count {
            0 if !whole => Err(MeasureError::Interrupted),
            0 => Err(MeasureError::Unreachable {
                what: "a TCP connection",
                seconds: began.elapsed().as_secs(),
            }),
            _ => Ok(sample),
        }
    })
}

fn ask(
    address: SocketAddr,
    core: Option<usize>,
    made: &AtomicU64,
    end: &dyn Fn() -> bool,
) -> io::Result<()> {
    if let Some(core) = core {
        cpu::pin(core)?;
    }
    while !end() {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.write_all(&[0])?;
        let mut byte = [0];
        match stream.read_exact(&mut byte) {
            // The close that comes next is part of the connection.
            Ok(()) => drop(stream.read(&mut byte)?),
            // Answerers leave at the end, maybe with a request unread.
            Err(_) if end() => return Ok(()),
            Err(error) => return Err(error),
        }
        made.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn answer(listener: &TcpListener, end: &dyn Fn() -> bool) {
    while !end() {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let mut byte = [0];
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(PATIENCE));
                if stream.read_exact(&mut byte).is_ok() {
                    let _ = stream.write_all(&byte);
                }
            }
            Err(_) => wait(listener),
        }
    }
}

/// Until there is a connection, or a moment has passed.
fn wait(listener: &TcpListener) {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut wanted, PollTimeout::from(50u8));
}
