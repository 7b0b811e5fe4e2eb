//! A sink at tc ingress of the receiving pod's device: counts UDP packets to
//! one port and drops them, before the pod's stack has work with them.
//!
//! It is not an XDP program on purpose: that would change how the veth works
//! and with it what is measured.

use crate::bpf::{Attachment, BpfError, Counters, Program, ProgramType};
use crate::packet::{PortRange, Protocol};
use crate::sink::program::{COUNTING_WORDS, Hook, Look, code};
use crate::sink::{Count, Filter};

/// A counting, dropping sink; dropping it takes it off the device.
#[derive(Debug)]
pub struct TcSink {
    counters: Counters<COUNTING_WORDS>,
    _attachment: Attachment,
    _program: Program,
}

impl TcSink {
    /// Puts a sink on the device `ifindex` of the calling thread's namespace
    /// for UDP to `port` (any port without). Others pass it by.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(ifindex: u32, port: Option<u16>) -> Result<TcSink, BpfError> {
        TcSink::attach_for(
            ifindex,
            &Filter {
                protocol: Protocol::Udp,
                ports: port.map(PortRange::one),
                tunnel_port: None,
            },
        )
    }

    /// The same for what `filter` takes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_for(ifindex: u32, filter: &Filter) -> Result<TcSink, BpfError> {
        let counters = Counters::new()?;
        let code = code(Hook::Tc, filter, counters.descriptor(), Look::Away);
        let program = Program::load(ProgramType::Tc, "sink", &code)?;
        let attachment = program.attach_ingress(ifindex)?;
        Ok(TcSink {
            counters,
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
}
