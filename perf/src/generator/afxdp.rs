//! Frames from user space by an AF_XDP socket: any frame, jumbo ones and
//! recorded ones too, as the device's own driver sends.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock;
use crate::generator::replay::Recording;
use crate::generator::{Limit, Pace, Sent};
use crate::measure::{MeasureError, io_error};
use crate::packet::Template;
use crate::stop::Stop;
use crate::xsk::SendingSocket;

/// Frames that are put in line before the kernel is told.
const BATCH: u64 = 32;
/// How long the last frames may take to leave.
const DRAIN: Duration = Duration::from_secs(2);
/// The kernel frees a queue some time after its socket has gone, that of the
/// generator before this one, say: how often and for how long that is awaited.
const TRY_AGAIN: Duration = Duration::from_millis(10);
const TRIES: u32 = 200;

/// A generator out of one queue of a device.
#[derive(Debug)]
pub struct AfXdpGenerator {
    socket: SendingSocket,
}

impl AfXdpGenerator {
    /// Out of the first queue of `ifindex`.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn new(ifindex: u32) -> Result<AfXdpGenerator, MeasureError> {
        let mut tries = 1;
        loop {
            let error = match SendingSocket::open(ifindex, 0) {
                Ok(socket) => return Ok(AfXdpGenerator { socket }),
                Err(error) => error,
            };
            let is_busy = error.kind() == ErrorKind::ResourceBusy;
            if !is_busy || tries == TRIES {
                let why = match is_busy {
                    true => "another one has the device's first queue",
                    false => "needs root and a kernel with AF_XDP",
                };
                return Err(io_error(format!("opening an AF_XDP socket ({why})"))(error));
            }
            tries += 1;
            thread::sleep(TRY_AGAIN);
        }
    }

    /// Sends the frames of `template` on the calling thread.
    ///
    /// # Errors
    /// When the device goes.
    pub fn run(
        &mut self,
        template: &Template,
        limit: Limit,
        stop: &Stop,
    ) -> Result<Sent, MeasureError> {
        let mut frame = vec![0u8; template.traffic().sizes.largest()];
        let mut pace = Pace::new(limit, stop);
        while let Some(packets) = pace.next(BATCH) {
            let now_ns = clock::now_ns();
            for _ in 0..packets {
                let bytes = template.write(pace.number(), now_ns, &mut frame);
                if !self.put(&frame[..bytes], stop)? {
                    break;
                }
                pace.add(1);
            }
            self.send()?;
        }
        self.drain()?;
        Ok(pace.finish())
    }

    /// Sends a recording `rounds` times on the calling thread: at `speed`
    /// times its own pace, or as `limit` says without.
    ///
    /// # Errors
    /// When the device goes.
    pub fn replay(
        &mut self,
        recording: &Recording,
        speed: Option<f64>,
        rounds: u64,
        limits: (Limit, &Stop),
    ) -> Result<Sent, MeasureError> {
        let (limit, stop) = limits;
        let packets = recording.packets();
        let whole = recording.count(rounds);
        let length_ns = recording.length_ns();
        let limit = Limit {
            count: Some(limit.count.map_or(whole, |count| count.min(whole))),
            ..limit
        };
        let mut pace = Pace::new(limit, stop);
        let start_ns = clock::now_ns();
        while let Some(lot) = pace.next(if speed.is_some() { 1 } else { BATCH }) {
            for _ in 0..lot {
                let number = pace.number();
                let packet = &packets[(number % packets.len() as u64) as usize];
                if let Some(speed) = speed {
                    let round_ns = length_ns.saturating_mul(number / packets.len() as u64);
                    let after = round_ns.saturating_add(packet.after_ns) as f64 / speed;
                    let end_ns = limit
                        .duration
                        .map_or(u64::MAX, |most| start_ns + most.as_nanos() as u64);
                    if !wait(start_ns.saturating_add(after as u64), end_ns, stop) {
                        break;
                    }
                }
                if !self.put(&packet.bytes, stop)? {
                    break;
                }
                pace.add(1);
            }
            self.send()?;
        }
        self.drain()?;
        Ok(pace.finish())
    }

    /// Puts a frame in line, when there is room; `false` at the end.
    fn put(&mut self, frame: &[u8], stop: &Stop) -> Result<bool, MeasureError> {
        while !self.socket.push(frame) {
            if stop.is_set() {
                return Ok(false);
            }
            self.send()?;
        }
        Ok(true)
    }

    fn send(&mut self) -> Result<(), MeasureError> {
        self.socket.send().map_err(io_error("sending by AF_XDP"))
    }

    /// Waits until the kernel has sent everything.
    fn drain(&mut self) -> Result<(), MeasureError> {
        let began = Instant::now();
        while self.socket.outstanding() > 0 && began.elapsed() < DRAIN {
            self.send()?;
            thread::yield_now();
        }
        Ok(())
    }
}

/// Waits until a packet is due; `false` when the end came first.
fn wait(due_ns: u64, end_ns: u64, stop: &Stop) -> bool {
    loop {
        let now = clock::wait_until(due_ns.min(end_ns), Duration::from_millis(20));
        if stop.is_set() || now >= end_ns {
            return false;
        }
        if now >= due_ns {
            return true;
        }
    }
}
