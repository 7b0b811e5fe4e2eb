//! The program that makes frames in the kernel: what
//! [`Template::write`] does, in BPF.
//!
//! It runs once a frame: waits until the frame is due, takes the next number,
//! derives flow, fields and size from it, writes every header byte and the
//! checksums, and redirects out of the device. A frame that is not due yet,
//! or one past the end, is dropped and has no number.

use crate::bpf::assembly::{
    Assembler, Condition, Helper, Instruction, Label, Operation, R0, R1, R2, R3, R4, R6, R7, R8,
    R9, R10, Register, Width,
};
use crate::bpf::context::{XDP_ABORTED, XDP_DATA, XDP_DATA_END, XDP_DROP, look_up, word};
use crate::packet::{Layer3, Protocol, Template};

/// Words of the record that program and user space share.
pub(crate) const RECORD_WORDS: usize = 7;
/// Number of the next frame.
pub(crate) const NEXT: usize = 0;
/// First number that is not sent.
pub(crate) const END: usize = 1;
/// When frame 0 is due, in nanoseconds: at once while it is 0. Moved on when
/// time was lost.
pub(crate) const START: usize = 2;
/// Time between two frames, in 1/1024 ns; 0 for as fast as it goes.
pub(crate) const INTERVAL: usize = 3;
/// How late a frame may be, in nanoseconds. Time lost beyond it is not made
/// up for.
pub(crate) const SLACK: usize = 4;
/// Time that was lost so, in nanoseconds.
pub(crate) const LOST: usize = 5;
/// When the last paced frame went, in nanoseconds.
pub(crate) const SENT_AT: usize = 6;
/// Bits of the fraction of [`INTERVAL`].
pub(crate) const INTERVAL_FRACTION_BITS: u32 = 10;

/// Looks at the clock before a frame that is not due is given up; bounds the
/// time that softirqs of this core wait, and the verifier's work.
const LOOKS: i32 = 400;

/// Places on the stack.
const NOW: i16 = -8;
const TURN: i16 = -16;
const FLOW: i16 = -24;
const SIZE: i16 = -32;
const KEY: i16 = -40;
const LOOK: i16 = -48;

fn offset(at: usize) -> i16 {
    i16::try_from(at).expect("headers are short")
}

/// The program for `template` out of `ifindex`, with the record behind `map`.
pub(crate) fn code(ifindex: u32, template: &Template, map: i32) -> Vec<Instruction> {
    let mut program = Assembler::new();
    let abort = program.label();
    let drop = program.label();
    let mut writer = Writer {
        program: &mut program,
        template,
        abort,
        drop,
    };
    writer.take_number(map);
    writer.choose_size();
    writer.write();
    program.set(R1, ifindex.cast_signed());
    program.set(R2, 0);
    program.call(Helper::Redirect);
    program.exit();
    for (label, verdict) in [(drop, XDP_DROP), (abort, XDP_ABORTED)] {
        program.place(label);
        program.set(R0, verdict);
        program.exit();
    }
    program.finish()
}

struct Writer<'a> {
    program: &'a mut Assembler,
    template: &'a Template,
    abort: Label,
    drop: Label,
}

impl Writer<'_> {
    /// `r6 =` context; leaves the frame's time, turn and flow on the stack.
    fn take_number(&mut self, map: i32) {
        let program = &mut *self.program;
        program.copy(R6, R1);
        program.store_value(Width::Word, 0, R10, KEY);
        look_up(program, map, KEY, self.abort);
        program.copy(R9, R0);
        program.load(Width::Double, R7, R9, word(NEXT));
        program.load(Width::Double, R1, R9, word(END));
        program.jump_if_register(R7, Condition::AtLeast, R1, self.drop);
        self.wait_until_due();
        let flows = self.template.traffic().flows;
        let program = &mut *self.program;
        program.copy(R1, R7);
        program.add(R1, 1);
        program.store(Width::Double, R1, R9, word(NEXT));
        program.copy(R1, R7);
        program.compute(Operation::Divide, R1, flows.cast_signed());
        program.store(Width::Double, R1, R10, TURN);
        program.compute(Operation::Modulo, R7, flows.cast_signed());
        program.store(Width::Double, R7, R10, FLOW);
    }

    /// Leaves the time of sending on the stack. `r7` is the frame's number,
    /// `r9` the record.
    fn wait_until_due(&mut self) {
        let program = &mut *self.program;
        let [begun, look, due, in_time, unpaced] = std::array::from_fn(|_| program.label());
        program.load(Width::Double, R8, R9, word(INTERVAL));
        program.jump_if(R8, Condition::Equal, 0, unpaced);
        program.compute_register(Operation::Multiply, R8, R7);
        program.compute(
            Operation::ShiftRight,
            R8,
            INTERVAL_FRACTION_BITS.cast_signed(),
        );
        program.load(Width::Double, R1, R9, word(START));
        program.jump_if(R1, Condition::NotEqual, 0, begun);
        program.call(Helper::Time);
        program.store(Width::Double, R0, R9, word(START));
        program.copy(R1, R0);
        program.place(begun);
        program.add_register(R8, R1);
        program.store_value(Width::Double, LOOKS, R10, LOOK);
        program.place(look);
        program.call(Helper::Time);
        program.jump_if_register(R0, Condition::AtLeast, R8, due);
        program.load(Width::Double, R1, R10, LOOK);
        program.add(R1, -1);
        program.store(Width::Double, R1, R10, LOOK);
        program.jump_if(R1, Condition::NotEqual, 0, look);
        program.jump_to(self.drop);
        program.place(due);
        // Later than the slack: the rest is lost.
        program.copy(R1, R0);
        program.compute_register(Operation::Subtract, R1, R8);
        program.load(Width::Double, R2, R9, word(SLACK));
        program.jump_if_register(R2, Condition::AtLeast, R1, in_time);
        program.compute_register(Operation::Subtract, R1, R2);
        for field in [START, LOST] {
            program.load(Width::Double, R2, R9, word(field));
            program.add_register(R2, R1);
            program.store(Width::Double, R2, R9, word(field));
        }
        program.place(in_time);
        program.store(Width::Double, R0, R9, word(SENT_AT));
        program.store(Width::Double, R0, R10, NOW);
        let paced = program.label();
        program.jump_to(paced);
        program.place(unpaced);
        if self.template.traffic().stamps {
            program.call(Helper::Time);
            program.store(Width::Double, R0, R10, NOW);
        }
        program.place(paced);
    }

    /// Leaves the frame's size on the stack and cuts the frame to it.
    fn choose_size(&mut self) {
        let program = &mut *self.program;
        let sizes = &self.template.traffic().sizes;
        let places = sizes.places();
        let largest = sizes.largest();
        program.set(R8, largest as i32);
        let mut others: Vec<usize> = places.to_vec();
        others.sort_unstable();
        others.dedup();
        others.pop();
        if !others.is_empty() {
            let chosen = program.label();
            program.load(Width::Double, R3, R10, TURN);
            program.load(Width::Double, R4, R10, FLOW);
            program.add_register(R3, R4);
            program.compute(Operation::Modulo, R3, places.len() as i32);
            for size in others {
                let mask = places
                    .iter()
                    .enumerate()
                    .filter(|(_, place)| **place == size)
                    .fold(0u64, |mask, (place, _)| mask | 1 << place);
                let next = program.label();
                program.set_wide(R4, mask);
                program.compute_register(Operation::ShiftRight, R4, R3);
                program.compute(Operation::And, R4, 1);
                program.jump_if(R4, Condition::Equal, 0, next);
                program.set(R8, size as i32);
                program.jump_to(chosen);
                program.place(next);
            }
            program.place(chosen);
            let whole = program.label();
            program.copy(R2, R8);
            program.add(R2, -(largest as i32));
            program.jump_if(R2, Condition::Equal, 0, whole);
            program.copy(R1, R6);
            program.call(Helper::AdjustTail);
            program.jump_if(R0, Condition::NotEqual, 0, self.abort);
            program.place(whole);
        }
        program.store(Width::Double, R8, R10, SIZE);
    }

    /// Writes the frame. `r7 =` its first byte, `r8 =` the sum of the
    /// transport, `r9 =` the sum of the addresses.
    fn write(&mut self) {
        let template = self.template;
        let program = &mut *self.program;
        program.load(Width::Word, R7, R6, XDP_DATA);
        program.load(Width::Word, R1, R6, XDP_DATA_END);
        program.copy(R2, R7);
        program.add(R2, template.headers().len() as i32);
        program.jump_if_register(R2, Condition::Greater, R1, self.abort);
        self.write_headers();
        if let Some(outer) = template.outer() {
            self.program.set(R9, 0);
            self.write_length(&outer);
            self.write_tunnel_port(&outer);
        }
        self.write_addresses();
        let inner = template.inner();
        self.write_length(&inner);
        let program = &mut *self.program;
        program.set(R8, template.transport_sum().cast_signed());
        program.load(Width::Double, R1, R10, SIZE);
        program.add(R1, -(inner.transport_at as i32));
        for _ in 0..template.length_count() {
            program.add_register(R8, R1);
        }
        if template.traffic().protocol == Protocol::Udp {
            program.to_big_endian(R1, 16);
            program.store(Width::Half, R1, R7, offset(inner.transport_at + 4));
        }
        if template.sums_addresses() {
            program.add_register(R8, R9);
        }
        self.write_transport_fields();
        if template.traffic().stamps {
            self.write_stamp();
        }
        self.write_checksum();
    }

    fn write_headers(&mut self) {
        let headers = self.template.headers();
        let mut at = 0;
        while at < headers.len() {
            let (width, bytes, value) = match headers[at..] {
                [a, b, c, d, ..] => (Width::Word, 4, i32::from_le_bytes([a, b, c, d])),
                [a, b, ..] => (Width::Half, 2, i32::from(u16::from_le_bytes([a, b]))),
                [a, ..] => (Width::Byte, 1, i32::from(a)),
                [] => break,
            };
            self.program.store_value(width, value, R7, offset(at));
            at += bytes;
        }
    }

    /// The length of a network header; with it the sum of an IPv4 one, whose
    /// addresses' sum is in `r9`.
    fn write_length(&mut self, layer: &Layer3) {
        let program = &mut *self.program;
        let (at, before) = layer.length();
        program.load(Width::Double, R1, R10, SIZE);
        program.add(R1, -(before as i32));
        program.copy(R2, R1);
        program.to_big_endian(R2, 16);
        program.store(Width::Half, R2, R7, offset(at));
        if !layer.v6 {
            program.add_register(R1, R9);
            program.add(R1, layer.sum.cast_signed());
            fold_and_invert(program, R1, R2);
            program.to_big_endian(R1, 16);
            program.store(Width::Half, R1, R7, offset(layer.at + 10));
        }
    }

    fn write_tunnel_port(&mut self, outer: &Layer3) {
        let (first, mask) = crate::packet::TUNNEL_PORTS;
        let program = &mut *self.program;
        program.load(Width::Double, R1, R10, FLOW);
        program.compute(Operation::And, R1, mask.cast_signed());
        program.add(R1, first.into());
        program.to_big_endian(R1, 16);
        program.store(Width::Half, R1, R7, offset(outer.transport_at));
        program.load(Width::Double, R1, R10, SIZE);
        program.add(R1, -(outer.transport_at as i32));
        program.to_big_endian(R1, 16);
        program.store(Width::Half, R1, R7, offset(outer.transport_at + 4));
    }

    /// Addresses by the flow's number; `r9 =` their sum.
    fn write_addresses(&mut self) {
        let traffic = self.template.traffic();
        let inner = self.template.inner();
        let destination_ports = match traffic.protocol {
            Protocol::IcmpEcho => 1,
            Protocol::Udp | Protocol::TcpSyn => traffic.destination_ports.count(),
        };
        let before = u64::from(traffic.source_ports.count()) * u64::from(destination_ports);
        let program = &mut *self.program;
        program.set(R9, 0);
        program.load(Width::Double, R1, R10, FLOW);
        program.set_wide(R2, before);
        program.compute_register(Operation::Divide, R1, R2);
        let fields = [
            (traffic.destination, inner.destination_at()),
            (traffic.source, inner.source_at()),
        ];
        for (range, at) in fields {
            self.take_index(range.count());
            let program = &mut *self.program;
            program.set_wide(R3, range.low().into());
            program.add_register(R2, R3);
            program.add_register(R9, R2);
            program.to_big_endian(R2, 32);
            program.store(Width::Word, R2, R7, offset(at));
        }
    }

    /// `r2 = r1 % count`, `r1 /= count`.
    fn take_index(&mut self, count: u32) {
        let program = &mut *self.program;
        if count == 1 {
            program.set(R2, 0);
            return;
        }
        program.set_wide(R3, count.into());
        program.copy(R2, R1);
        program.compute_register(Operation::Modulo, R2, R3);
        program.compute_register(Operation::Divide, R1, R3);
    }

    /// Ports, or an echo request's identifier and number.
    fn write_transport_fields(&mut self) {
        let traffic = self.template.traffic();
        let at = self.template.inner().transport_at;
        self.program.load(Width::Double, R1, R10, FLOW);
        self.take_index(traffic.source_ports.count());
        let first = traffic.source_ports.first();
        if traffic.protocol == Protocol::IcmpEcho {
            self.put_16(first, at + 4);
            let program = &mut *self.program;
            program.load(Width::Double, R2, R10, TURN);
            program.compute(Operation::And, R2, 0xffff);
            return self.put_16(0, at + 6);
        }
        self.put_16(first, at);
        self.take_index(traffic.destination_ports.count());
        self.put_16(traffic.destination_ports.first(), at + 2);
        if traffic.protocol == Protocol::TcpSyn {
            self.put_turn(at + 4);
        }
    }

    /// Stores `r2 + first` at `at` and adds it to the sum.
    fn put_16(&mut self, first: u16, at: usize) {
        let program = &mut *self.program;
        program.add(R2, first.into());
        program.add_register(R8, R2);
        program.to_big_endian(R2, 16);
        program.store(Width::Half, R2, R7, offset(at));
    }

    /// Stores the low 32 bits of the turn at `at` and adds them to the sum.
    fn put_turn(&mut self, at: usize) {
        let program = &mut *self.program;
        program.load(Width::Word, R2, R10, TURN);
        program.add_register(R8, R2);
        program.to_big_endian(R2, 32);
        program.store(Width::Word, R2, R7, offset(at));
    }

    /// See [`crate::packet::Stamp`] for the layout.
    fn write_stamp(&mut self) {
        let at = self.template.payload_at();
        let program = &mut *self.program;
        program.load(Width::Double, R2, R10, FLOW);
        program.set_wide(R3, self.template.run_bits().into());
        program.compute_register(Operation::Or, R2, R3);
        program.add_register(R8, R2);
        program.to_big_endian(R2, 32);
        program.store(Width::Word, R2, R7, offset(at + 2));
        self.put_turn(at + 6);
        let program = &mut *self.program;
        program.load(Width::Double, R2, R10, NOW);
        program.copy(R3, R2);
        program.compute(Operation::ShiftRight, R3, 32);
        program.add_register(R8, R3);
        program.load(Width::Word, R3, R10, NOW);
        program.add_register(R8, R3);
        program.to_big_endian(R2, 64);
        program.store(Width::Double, R2, R7, offset(at + 10));
    }

    fn write_checksum(&mut self) {
        let program = &mut *self.program;
        fold_and_invert(program, R8, R2);
        if self.template.traffic().protocol == Protocol::Udp {
            let some = program.label();
            program.jump_if(R8, Condition::NotEqual, 0, some);
            program.set(R8, 0xffff); // RFC 768: zero means none
            program.place(some);
        }
        program.to_big_endian(R8, 16);
        program.store(Width::Half, R8, R7, offset(self.template.checksum_at()));
    }
}

/// The one's complement of the sum of `sum`'s 16-bit words; the sums here
/// stay below 2^38. Loses `spare`.
fn fold_and_invert(program: &mut Assembler, sum: Register, spare: Register) {
    for _ in 0..4 {
        program.copy(spare, sum);
        program.compute(Operation::ShiftRight, spare, 16);
        program.compute(Operation::And, sum, 0xffff);
        program.add_register(sum, spare);
    }
    program.compute(Operation::Xor, sum, 0xffff);
}
