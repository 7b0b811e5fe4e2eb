//! Frames made in the kernel: `BPF_PROG_TEST_RUN` over live frames.
//!
//! An XDP program writes every frame and redirects it out of the pod's
//! device, as if the pod had sent it, at some two million a second from one
//! core. The far end of a veth takes such frames only when it runs NAPI: with
//! a native XDP program, or with GRO on; otherwise the generator counts
//! millions and nothing arrives.

use std::io;
use std::time::{Duration, Instant};

use crate::bpf::{BpfError, Program, ProgramType, Record};
use crate::clock;
use crate::generator::program::{
    END, INTERVAL, INTERVAL_FRACTION_BITS, LOST, NEXT, RECORD_WORDS, SENT_AT, SLACK, START, code,
};
use crate::generator::{Limit, Sent};
use crate::measure::MeasureError;
use crate::packet::Template;
use crate::stop::Stop;

/// Largest frame that one page of a live run holds beside the kernel's own
/// structures, the frame check sequence counted.
pub const MAX_LIVE_FRAME_BYTES: usize = 3400;
/// Frames a call at full speed. A call costs some 12 ms (the kernel patches
/// its XDP dispatcher before and after), so it has to be long; but no longer
/// than the end can wait.
const FRAMES_PER_CALL: u64 = 1 << 18;
/// Frames that the driver gets at once at full speed.
const FULL_BATCH: u32 = 64;
/// The same when paced: every frame goes at its own time.
const PACED_BATCH: u32 = 1;
/// Runs of a paced call beside its frames: those that only wait, some 8 µs
/// each, make a call last about a second.
const WAITING_RUNS: u64 = 125_000;
/// Frames and waits of a paced call at most.
const MAX_PACED_RUNS: u64 = 1 << 19;
/// What a run that only waits takes at least.
const SHORTEST_RUN_NS: u64 = 4_000;
/// Frames farther apart than this are waited for in user space, where
/// something else can use the core.
const SPARSE: Duration = Duration::from_millis(40);
/// How long before a sparse frame is due its call begins.
const CALL_AHEAD: Duration = Duration::from_millis(20);
/// A wait in user space looks for the end this often.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// A generator of live frames.
#[derive(Debug)]
pub struct XdpGenerator {
    program: Program,
    record: Record<RECORD_WORDS>,
    /// What frames are before the program writes them.
    frame: Vec<u8>,
}

impl XdpGenerator {
    /// A generator out of the device `ifindex`.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn new(ifindex: u32, template: &Template) -> Result<XdpGenerator, BpfError> {
        let record = Record::new()?;
        let code = code(ifindex, template, record.descriptor());
        Ok(XdpGenerator {
            program: Program::load(ProgramType::Xdp, "generator", &code)?,
            record,
            frame: vec![0; template.traffic().sizes.largest()],
        })
    }

    /// Sends on the calling thread, which must be in the device's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the run.
    pub fn run(&self, limit: Limit, stop: &Stop) -> Result<Sent, MeasureError> {
        let mut record = [0u64; RECORD_WORDS];
        record[END] = limit.whole().unwrap_or(u64::MAX);
        record[SLACK] = limit.slack.as_nanos() as u64;
        if let Some(rate) = limit.rate {
            record[INTERVAL] = (1_000_000_000 << INTERVAL_FRACTION_BITS) / rate.max(1);
        }
        self.record.write(&record)?;
        let (began, cpu_began) = (Instant::now(), clock::thread_ns());
        loop {
            let record = self.record.read()?;
            let over = stop.is_set() || limit.duration.is_some_and(|most| began.elapsed() >= most);
            let left = record[END] - record[NEXT];
            if over || left == 0 {
                let wall = began.elapsed().as_secs_f64();
                let late_seconds = record[LOST] as f64 / 1e9;
                let worked = (clock::thread_ns() - cpu_began) as f64 / 1e9;
                return Ok(Sent {
                    packets: record[NEXT],
                    // A paced run ends with its last frame, not with its call.
                    seconds: match limit.rate {
                        Some(_) if left == 0 => paced_ns(&record) as f64 / 1e9,
                        _ => wall,
                    },
                    late_seconds,
                    preempted_seconds: match limit.rate {
                        Some(_) => (wall - worked).clamp(0.0, late_seconds),
                        None => (wall - worked).max(0.0),
                    },
                });
            }
            self.call(&record, left, limit.rate)?;
        }
    }

    /// A burst of up to `most` frames. An end of it counts from here on, also
    /// before it runs.
    ///
    /// # Errors
    /// When the kernel refuses the update.
    pub fn burst(&self, most: u32) -> Result<Burst<'_>, BpfError> {
        let mut record = [0u64; RECORD_WORDS];
        record[END] = most.into();
        self.record.write(&record)?;
        Ok(Burst {
            generator: self,
            most,
        })
    }

    /// One call of the kernel, or a part of a long wait.
    fn call(
        &self,
        record: &[u64; RECORD_WORDS],
        left: u64,
        rate: Option<u64>,
    ) -> Result<(), BpfError> {
        let (frames, batch) = match rate {
            None => (left.min(FRAMES_PER_CALL), FULL_BATCH),
            Some(rate) => {
                let apart_ns = record[INTERVAL] >> INTERVAL_FRACTION_BITS;
                if record[NEXT] > 0 && apart_ns > SPARSE.as_nanos() as u64 {
                    let ahead = CALL_AHEAD.as_nanos() as u64;
                    let due = record[START] + passed_ns(record) - ahead;
                    if clock::wait_until(due, LONGEST_WAIT) < due {
                        return Ok(());
                    }
                }
                // No more than the last frames wait for, lest it ends late.
                let last = left.saturating_mul(apart_ns / SHORTEST_RUN_NS + 2);
                let runs = (WAITING_RUNS + rate).min(MAX_PACED_RUNS).min(last);
                (runs, PACED_BATCH)
            }
        };
        self.frames(
            u32::try_from(frames).expect("at most MAX_PACED_RUNS"),
            batch,
        )
    }

    /// One call of the kernel; a signal ends it early.
    fn frames(&self, frames: u32, batch: u32) -> Result<(), BpfError> {
        match self.program.run_live(&self.frame, frames, batch) {
            Err(BpfError::Call { source, .. }) if source.kind() == io::ErrorKind::Interrupted => {
                Ok(())
            }
            result => result,
        }
    }
}

/// Frames that one thread sends until another one ends it.
#[derive(Debug)]
pub struct Burst<'g> {
    generator: &'g XdpGenerator,
    most: u32,
}

impl Burst<'_> {
    /// Sends at full speed on the calling thread, which must be in the device's
    /// namespace, in a single call of the kernel, so without a pause. How many
    /// it sent.
    ///
    /// # Errors
    /// When the kernel refuses the run.
    pub fn run(&self) -> Result<u64, MeasureError> {
        let record = &self.generator.record;
        // The kernel goes through all frames, also those past the end.
        if record.read()?[END] > 0 {
            self.generator.frames(self.most, FULL_BATCH)?;
        }
        Ok(record.read()?[NEXT])
    }

    /// Ends it. The record is written as a whole, so a few numbers may be sent
    /// twice.
    ///
    /// # Errors
    /// When the kernel refuses the update.
    pub fn end(&self) -> Result<(), BpfError> {
        let mut record = self.generator.record.read()?;
        record[END] = 0;
        self.generator.record.write(&record)
    }
}

/// From frame 0 to the last one, and the time that is that one's own.
fn paced_ns(record: &[u64; RECORD_WORDS]) -> u64 {
    let began = record[START] - record[LOST];
    record[SENT_AT] - began + (record[INTERVAL] >> INTERVAL_FRACTION_BITS)
}

/// From frame 0 to the next one, without what was lost.
fn passed_ns(record: &[u64; RECORD_WORDS]) -> u64 {
    let passed = u128::from(record[INTERVAL]) * u128::from(record[NEXT]);
    (passed >> INTERVAL_FRACTION_BITS) as u64
}
