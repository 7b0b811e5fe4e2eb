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
    END, INTERVAL, INTERVAL_FRACTION_BITS, LOST, NEXT, RECORD_WORDS, SLACK, START, code,
};
use crate::generator::{Limit, Sent};
use crate::measure::MeasureError;
use crate::packet::Template;
use crate::stop::Stop;

/// Largest frame that one page of a live run holds beside the kernel's own
/// structures, the frame check sequence counted.
pub const MAX_LIVE_FRAME_BYTES: usize = 3400;
/// Frames a call: long enough to hide the call's own cost (it makes a page
/// pool), short enough to hear of the end.
const FRAMES_PER_CALL: u64 = 1 << 15;
/// Frames that the driver gets at once at full speed.
const FULL_BATCH: u32 = 64;
/// The same when paced: every frame goes at its own time.
const PACED_BATCH: u32 = 1;
/// Runs of a paced call. Some only wait, 8 µs or so each, so that a call takes
/// about a tenth of a second and its own cost does not matter.
const PACED_RUNS: u64 = 12_500;
/// What a run that only waits takes at least.
const SHORTEST_RUN_NS: u64 = 4_000;
/// The same where frames are far apart: enough to wait for one.
const SPARSE_RUNS: u64 = 64;
/// A wait in user space looks for the end this often.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// Waiting below this is the program's.
const PROGRAM_WAIT: Duration = Duration::from_micros(400);

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
        record[START] = clock::now_ns();
        record[END] = limit.whole().unwrap_or(u64::MAX);
        record[SLACK] = limit.slack.as_nanos() as u64;
        if let Some(rate) = limit.rate {
            record[INTERVAL] = (1_000_000_000 << INTERVAL_FRACTION_BITS) / rate.max(1);
        }
        self.record.write(&record)?;
        let began = Instant::now();
        loop {
            let record = self.record.read()?;
            let over = stop.is_set() || limit.duration.is_some_and(|most| began.elapsed() >= most);
            let left = record[END] - record[NEXT];
            if over || left == 0 {
                return Ok(Sent {
                    packets: record[NEXT],
                    seconds: began.elapsed().as_secs_f64(),
                    late_seconds: record[LOST] as f64 / 1e9,
                });
            }
            self.call(&record, left, limit.rate)?;
        }
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
                let passed =
                    (record[INTERVAL] as u128 * record[NEXT] as u128) >> INTERVAL_FRACTION_BITS;
                let due = record[START] + passed as u64;
                let program_wait = PROGRAM_WAIT.as_nanos() as u64;
                if due > clock::now_ns() + program_wait {
                    clock::wait_until(due - program_wait / 4, LONGEST_WAIT);
                    return Ok(());
                }
                let apart = record[INTERVAL] >> INTERVAL_FRACTION_BITS;
                let runs = if apart > program_wait {
                    SPARSE_RUNS
                } else {
                    PACED_RUNS.max(rate / 10)
                };
                // No more than the last frames wait for, lest it ends late.
                let last = left.saturating_mul(apart / SHORTEST_RUN_NS + 2);
                (runs.min(last).min(FRAMES_PER_CALL), PACED_BATCH)
            }
        };
        let frames = u32::try_from(frames).expect("at most FRAMES_PER_CALL");
        match self.program.run_live(&self.frame, frames, batch) {
            Err(BpfError::Call { source, .. }) if source.kind() == io::ErrorKind::Interrupted => {
                Ok(())
            }
            result => result,
        }
    }
}
