//! Frames made in the kernel: `BPF_PROG_TEST_RUN` over live frames.
//!
//! An XDP program redirects every frame out of the pod's device, as if the
//! pod had sent it, at some two million a second from one core. The far end
//! of a veth takes such frames only when it runs NAPI: with a native XDP
//! program, or with GRO on; otherwise the generator counts millions and
//! nothing arrives.

use std::io;

use crate::bpf::assembly::{
    Assembler, Helper, Instruction, Label, R0, R1, R2, R3, R4, R5, R6, R7, R10, Width,
};
use crate::bpf::{BpfError, Counters, Program, ProgramType};
use crate::generator::{Limit, Pace, Sent};
use crate::packet::Template;
use crate::stop::Stop;

/// Frames a call: long enough to hide the call's own cost (it makes a page
/// pool), short enough to hear of the end.
const FRAMES_PER_CALL: u64 = 1 << 15;
/// Offsets in `struct xdp_md`.
const XDP_DATA: i16 = 0;
const XDP_DATA_END: i16 = 4;
const XDP_ABORTED: i32 = 0;

/// A generator of live frames.
#[derive(Debug)]
pub struct XdpGenerator {
    rounds: Vec<(Program, Template)>,
    /// The number of the next flow, kept over calls by the programs.
    _next_flow: Counters<1>,
}

impl XdpGenerator {
    /// A generator out of the device `ifindex`. The `templates` (addresses)
    /// take turns from call to call, each one's flows (source ports) from
    /// frame to frame.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn new(ifindex: u32, templates: Vec<Template>) -> Result<XdpGenerator, BpfError> {
        let next_flow = Counters::new()?;
        let rounds = templates
            .into_iter()
            .map(|template| {
                let code = code(ifindex, &template, next_flow.descriptor());
                Program::load(ProgramType::Xdp, "generator", &code)
                    .map(|program| (program, template))
            })
            .collect::<Result<_, _>>()?;
        Ok(XdpGenerator {
            rounds,
            _next_flow: next_flow,
        })
    }

    /// Sends on the calling thread, which must be in the device's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the run.
    pub fn run(&self, limit: Limit, stop: &Stop) -> Result<Sent, BpfError> {
        let mut pace = Pace::new(limit, stop);
        let mut rounds = self.rounds.iter().cycle();
        while let Some(packets) = pace.next(FRAMES_PER_CALL) {
            let Some((program, template)) = rounds.next() else {
                break;
            };
            let repeat = u32::try_from(packets).expect("at most FRAMES_PER_CALL");
            match program.run_live(template.bytes(), repeat) {
                Ok(()) => pace.add(packets),
                Err(BpfError::Call { source, .. })
                    if source.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pace.finish())
    }
}

/// Writes the headers, takes the next flow's number from the map and writes
/// its source port and filler, and redirects. All of it is written for every
/// frame: a recycled one still holds an earlier flow's, or what a receiver
/// that forwards in place made of it (other addresses, a lower TTL).
fn code(ifindex: u32, template: &Template, map: i32) -> Vec<Instruction> {
    let mut program = Assembler::new();
    let abort = program.label();
    program.copy(R6, R1);
    if template.flows() > 1 {
        take_flow(&mut program, template, map, abort);
    }
    write_headers(&mut program, template, abort);
    if template.flows() > 1 {
        write_flow(&mut program, template);
    }
    program.set(R1, ifindex.cast_signed());
    program.set(R2, 0);
    program.call(Helper::Redirect);
    program.exit();
    program.place(abort);
    program.set(R0, XDP_ABORTED);
    program.exit();
    program.finish()
}

fn offset(at: usize) -> i16 {
    i16::try_from(at).expect("headers are short")
}

/// `r2 =` the frame, its headers written up to the filler and some more.
fn write_headers(program: &mut Assembler, template: &Template, abort: Label) {
    let (words, _) = template.bytes().as_chunks::<4>();
    let count = words.len().min((template.filler_at() + 2).div_ceil(4));
    // The words must lie inside the frame.
    program.load(Width::Word, R2, R6, XDP_DATA);
    program.load(Width::Word, R3, R6, XDP_DATA_END);
    program.copy(R4, R2);
    program.add(R4, i32::from(offset(count * 4)));
    program.jump_if_greater_register(R4, R3, abort);
    for (number, word) in words[..count].iter().enumerate() {
        program.set(R5, i32::from_ne_bytes(*word));
        program.store(Width::Word, R5, R2, offset(number * 4));
    }
}

/// `r7 =` the flow's number; the next one goes back to the map.
fn take_flow(program: &mut Assembler, template: &Template, map: i32, abort: Label) {
    let in_range = program.label();
    program.set(R1, 0);
    program.store(Width::Word, R1, R10, -4);
    program.copy(R2, R10);
    program.add(R2, -4);
    program.load_map(R1, map);
    program.call(Helper::MapLookup);
    program.jump_if_equal(R0, 0, abort);
    program.load(Width::Double, R7, R0, 0);
    program.jump_if_less(R7, template.flows().cast_signed(), in_range);
    program.set(R7, 0);
    program.place(in_range);
    program.copy(R1, R7);
    program.add(R1, 1);
    program.store(Width::Double, R1, R0, 0);
}

/// The flow's source port, and the filler that keeps the checksum.
fn write_flow(program: &mut Assembler, template: &Template) {
    program.copy(R5, R7);
    program.add(R5, i32::from(template.source_port()));
    program.to_big_endian_16(R5);
    program.store(Width::Half, R5, R2, offset(template.source_port_at()));
    program.set(R5, 0xffff);
    program.subtract_register(R5, R7);
    program.to_big_endian_16(R5);
    program.store(Width::Half, R5, R2, offset(template.filler_at()));
}
