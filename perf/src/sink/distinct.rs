//! A sink that counts different flows by their stamps, each once, and keeps
//! when the first and the last of them came: the rate of a burst, whenever
//! somebody looks.

use crate::bpf::{Attachment, Bits, BpfError, Counters, Program, ProgramType};
use crate::packet::FLOW_BITS;
use crate::sink::Filter;
use crate::sink::program::{DISTINCT, FIRST, FLOW_WORDS, Hook, LAST, Look, code};

/// What came of a burst of flows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Burst {
    /// Different flows.
    pub flows: u64,
    /// From the first to the last of them, in seconds.
    pub seconds: f64,
}

impl Burst {
    /// Flows a second; 0 for fewer than two.
    #[must_use]
    pub fn rate(&self) -> f64 {
        match self.seconds > 0.0 {
            true => self.flows.saturating_sub(1) as f64 / self.seconds,
            false => 0.0,
        }
    }
}

/// A sink at tc ingress that counts flows and drops their packets; dropping it
/// takes it off the device.
#[derive(Debug)]
pub struct FlowSink {
    counters: Counters<FLOW_WORDS>,
    _bits: Bits,
    _attachment: Attachment,
    _program: Program,
}

impl FlowSink {
    /// Puts a sink on the device `ifindex` of the calling thread's namespace
    /// for what `filter` takes. Others pass it by.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(ifindex: u32, filter: &Filter) -> Result<FlowSink, BpfError> {
        let counters = Counters::new()?;
        let bits = Bits::new(1 << FLOW_BITS)?;
        let look = Look::AtFlows(bits.descriptor());
        let code = code(Hook::Tc, filter, counters.descriptor(), look);
        let program = Program::load(ProgramType::Tc, "sink", &code)?;
        let attachment = program.attach_ingress(ifindex)?;
        Ok(FlowSink {
            counters,
            _bits: bits,
            _attachment: attachment,
            _program: program,
        })
    }

    /// What has come so far.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn burst(&self) -> Result<Burst, BpfError> {
        let each = self.counters.read_each()?;
        let seen = || each.iter().filter(|cpu| cpu[DISTINCT] > 0);
        let first = seen().map(|cpu| cpu[FIRST]).min().unwrap_or(0);
        let last = seen().map(|cpu| cpu[LAST]).max().unwrap_or(0);
        Ok(Burst {
            flows: seen().map(|cpu| cpu[DISTINCT]).sum(),
            seconds: last.saturating_sub(first) as f64 / 1e9,
        })
    }
}
