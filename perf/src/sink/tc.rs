//! A sink at tc ingress of the receiving pod's device: counts UDP packets to
//! one port and drops them, before the pod's stack has work with them.
//!
//! It is not an XDP program on purpose: that would change how the veth works
//! and with it what is measured.

use crate::bpf::assembly::{
    Assembler, Helper, Instruction, Label, R0, R1, R2, R6, R7, R8, R10, Width,
};
use crate::bpf::{Attachment, BpfError, Counters, Program, ProgramType};
use crate::sink::Count;

/// Offsets in `struct __sk_buff`.
const SKB_LEN: i16 = 0;
const SKB_PROTOCOL: i16 = 16;
const SKB_GSO_SEGS: i16 = 164;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;
const UDP: i32 = 17;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;

/// A counting, dropping sink; dropping it takes it off the device.
#[derive(Debug)]
pub struct TcSink {
    counters: Counters<2>,
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
        let counters = Counters::new()?;
        let code = code(port, counters.descriptor());
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
        let [packets, bytes] = self.counters.read()?;
        Ok(Count { packets, bytes })
    }
}

fn code(port: Option<u16>, map: i32) -> Vec<Instruction> {
    let mut program = Assembler::new();
    let [v4, v6, matched, pass] = std::array::from_fn(|_| program.label());
    program.copy(R6, R1);
    program.load(Width::Word, R7, R6, SKB_PROTOCOL);
    program.jump_if_equal(R7, i32::from(ETHERTYPE_V4.to_be()), v4);
    program.jump_if_equal(R7, i32::from(ETHERTYPE_V6.to_be()), v6);
    program.jump_to(pass);
    for (label, protocol_at, port_at) in [(v4, 23, 36), (v6, 20, 56)] {
        program.place(label);
        program.load_packet(Width::Byte, protocol_at);
        program.jump_if_not_equal(R0, UDP, pass);
        if let Some(port) = port {
            program.load_packet(Width::Half, port_at);
            program.jump_if_not_equal(R0, i32::from(port), pass);
        }
        program.jump_to(matched);
    }
    program.place(matched);
    count_and_drop(&mut program, map, pass);
    program.place(pass);
    program.set(R0, TCX_NEXT);
    program.exit();
    program.finish()
}

fn count_and_drop(program: &mut Assembler, map: i32, pass: Label) {
    let segmented = program.label();
    program.set(R1, 0);
    program.store(Width::Word, R1, R10, -4);
    program.copy(R2, R10);
    program.add(R2, -4);
    program.load_map(R1, map);
    program.call(Helper::MapLookup);
    program.jump_if_equal(R0, 0, pass);
    program.load(Width::Word, R8, R6, SKB_GSO_SEGS);
    program.jump_if_not_equal(R8, 0, segmented);
    program.set(R8, 1);
    program.place(segmented);
    program.load(Width::Double, R1, R0, 0);
    program.add_register(R1, R8);
    program.store(Width::Double, R1, R0, 0);
    program.load(Width::Word, R8, R6, SKB_LEN);
    program.load(Width::Double, R1, R0, 8);
    program.add_register(R1, R8);
    program.store(Width::Double, R1, R0, 8);
    program.set(R0, TCX_DROP);
    program.exit();
}
