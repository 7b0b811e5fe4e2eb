//! A sink in the kernel that reads every packet's stamp: counts, loss,
//! duplicates, order and latency, without a packet reaching user space.

use crate::bpf::{Attachment, BpfError, Counters, Program, ProgramType, Record, Table};
use crate::sink::flow::{self, Order};
use crate::sink::latency::Latencies;
use crate::sink::program::{
    HISTOGRAM, Hook, Look, MAX_LATENCY, SUPER_FRAMES, TRACKING_WORDS, Tracking, UNSTAMPED,
    UNTRACKED, code,
};
use crate::sink::{Count, Filter, Stamps};

/// Flows that are tracked at most.
const MAX_FLOWS: u32 = 1 << 18;

/// A tracking, dropping sink; dropping it takes it off the device.
#[derive(Debug)]
pub struct TrackingSink {
    counters: Counters<TRACKING_WORDS>,
    flows: Table<{ flow::WORDS }>,
    /// What a new flow's record is copied from.
    _blank: Record<{ flow::WORDS }>,
    _attachment: Attachment,
    _program: Program,
}

impl TrackingSink {
    /// Puts a sink on the device `ifindex` of the calling thread's namespace
    /// for what `filter` takes. Others pass it by.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(ifindex: u32, hook: Hook, filter: &Filter) -> Result<TrackingSink, BpfError> {
        let counters = Counters::new()?;
        let flows = Table::new(MAX_FLOWS)?;
        let blank = Record::new()?;
        let tracking = Tracking {
            flows: flows.descriptor(),
            blank: blank.descriptor(),
        };
        let code = code(
            hook,
            filter,
            counters.descriptor(),
            Look::AtStamps(tracking),
        );
        let (program, attachment) = match hook {
            Hook::Tc => {
                let program = Program::load(ProgramType::Tc, "sink", &code)?;
                let attachment = program.attach_ingress(ifindex)?;
                (program, attachment)
            }
            Hook::Xdp => {
                let program = Program::load(ProgramType::Xdp, "sink", &code)?;
                let attachment = program.attach_xdp(ifindex)?;
                (program, attachment)
            }
        };
        Ok(TrackingSink {
            counters,
            flows,
            _blank: blank,
            _attachment: attachment,
            _program: program,
        })
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn count(&self) -> Result<Count, BpfError> {
        Count::read(&self.counters)
    }

    /// What the stamps have said so far.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn stamps(&self) -> Result<Stamps, BpfError> {
        let mut order = Order::default();
        self.flows.each(|_, record| order.add(record))?;
        let mut latencies = Latencies::default();
        for counters in self.counters.read_each()? {
            let buckets = &counters[HISTOGRAM..];
            latencies.merge(&Latencies::of_buckets(buckets, counters[MAX_LATENCY]));
        }
        let counters = self.counters.read()?;
        Ok(Stamps {
            order,
            latency: latencies.summary(),
            unstamped: counters[UNSTAMPED],
            in_super_frames: counters[SUPER_FRAMES],
            untracked: counters[UNTRACKED],
        })
    }
}
