//! The program of a sink in the kernel: matches packets, counts and drops
//! them, and, when it tracks, reads each packet's stamp.
//!
//! Each flow has a window of bits for the last packets by number, so that a
//! duplicate is told from a late one, and the next number that is expected.
//! Packets of a flow may come on several CPUs at once, so both change by
//! compare-and-exchange.

use crate::bpf::assembly::{
    Assembler, Condition, Helper, Instruction, Label, Operation, R0, R1, R2, R3, R4, R5, R6, R7,
    R8, R9, R10, Register, Width,
};
use crate::bpf::context::{
    ETHERTYPE_V4, ETHERTYPE_V6, SKB_GSO_SEGS, SKB_GSO_SIZE, SKB_LEN, TCX_DROP, TCX_NEXT, XDP_DATA,
    XDP_DATA_END, XDP_DROP, XDP_PASS, look_up, word,
};
use crate::packet::{FLOW_BITS, MAGIC, Protocol, STAMP_BYTES};
use crate::sink::Filter;
use crate::sink::flow::{self, SLOTS};
use crate::sink::latency::{BUCKETS, SUB_BUCKET_BITS};

/// Counters of a CPU, in words.
pub(crate) const PACKETS: usize = 0;
pub(crate) const BYTES: usize = 1;
pub(crate) const UNSTAMPED: usize = 2;
pub(crate) const SUPER_FRAMES: usize = 3;
pub(crate) const UNTRACKED: usize = 4;
pub(crate) const MAX_LATENCY: usize = 5;
/// Of the packet at hand only.
const SHIFTED: usize = 6;
const SHIFT: usize = 7;
pub(crate) const HISTOGRAM: usize = 8;
/// Words when it tracks.
pub(crate) const TRACKING_WORDS: usize = HISTOGRAM + BUCKETS;
/// Words when it only counts.
pub(crate) const COUNTING_WORDS: usize = 2;
/// Different flows, and when the first and the last came, in nanoseconds.
pub(crate) const DISTINCT: usize = 3;
pub(crate) const FIRST: usize = 4;
pub(crate) const LAST: usize = 5;
/// Words when it counts flows.
pub(crate) const FLOW_WORDS: usize = 6;

/// Where the program sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// tc ingress: the veth stays as it is.
    Tc,
    /// XDP: earlier, but the device then works in another way.
    Xdp,
}

/// What a sink does with a packet beside counting it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Look {
    /// Nothing.
    Away,
    /// Counts flows, each once; the descriptor of a bit for each.
    AtFlows(i32),
    /// Reads the whole stamp.
    AtStamps(Tracking),
}

/// Descriptors of the maps of a sink that tracks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tracking {
    pub(crate) flows: i32,
    /// A record of zeros that a new flow begins as.
    pub(crate) blank: i32,
}

/// Segments of a packet that are looked at: as many as a lane puts together and
/// the oldest kernels make of one send. The verifier walks through all of them.
const MAX_SEGMENTS: i32 = 64;
/// Tries of a compare-and-exchange.
const TRIES: usize = 4;

const UDP: i32 = 17;
const UDP_AND_VXLAN_BYTES: i32 = 16;
const ETHERNET_BYTES: i32 = 14;
const V6_BYTES: i32 = 40;
/// Ethernet and the least IPv4 header: all that both families are told by.
const NETWORK_BYTES: i32 = 34;

/// Places on the stack; the stamp's fields lie aligned.
const NETWORK: i16 = -64;
const PORTS: i16 = -72;
const KEY: i16 = -80;
const STAMP: i16 = -106;
const STAMP_STREAM: i16 = STAMP + 2;
const STAMP_SEQUENCE: i16 = STAMP + 6;
const STAMP_TIME: i16 = STAMP + 10;
/// Where the payload of a segment begins, how far the next one is, how many
/// there are, how many were looked at.
const AT: i16 = -120;
const STEP: i16 = -128;
const SEGMENTS: i16 = -136;
const TURN: i16 = -144;

/// The program; `counters` is a per-CPU map.
pub(crate) fn code(hook: Hook, filter: &Filter, counters: i32, look: Look) -> Vec<Instruction> {
    let mut program = Assembler::new();
    let pass = program.label();
    let done = program.label();
    let mut writer = Writer {
        program: &mut program,
        hook,
        pass,
        done,
    };
    writer.match_packet(filter);
    writer.count(counters);
    match look {
        Look::Away => {}
        Look::AtFlows(bits) => writer.count_flows(bits),
        Look::AtStamps(tracking) => writer.track(tracking),
    }
    let (drop_it, pass_it) = match hook {
        Hook::Tc => (TCX_DROP, TCX_NEXT),
        Hook::Xdp => (XDP_DROP, XDP_PASS),
    };
    for (label, verdict) in [(done, drop_it), (pass, pass_it)] {
        program.place(label);
        program.set(R0, verdict);
        program.exit();
    }
    program.finish()
}

struct Writer<'a> {
    program: &'a mut Assembler,
    hook: Hook,
    /// Not ours.
    pass: Label,
    /// Counted.
    done: Label,
}

impl Writer<'_> {
    /// Copies `bytes` of the packet from `r7` on to the stack; `short` when
    /// there are fewer.
    fn load(&mut self, to: i16, bytes: i32, short: Label) {
        let program = &mut *self.program;
        program.copy(R1, R6);
        program.copy(R2, R7);
        program.copy(R3, R10);
        program.add(R3, to.into());
        program.set(R4, bytes);
        program.call(match self.hook {
            Hook::Tc => Helper::SkbLoadBytes,
            Hook::Xdp => Helper::XdpLoadBytes,
        });
        program.jump_if(R0, Condition::NotEqual, 0, short);
    }

    /// `r0 =` the map's value under the key that is on the stack.
    fn look_up(&mut self, map: i32, missing: Label) {
        look_up(self.program, map, KEY, missing);
    }

    /// `r6 =` context, `r7 =` offset of the payload.
    fn match_packet(&mut self, filter: &Filter) {
        let pass = self.pass;
        self.program.copy(R6, R1);
        self.program.set(R7, 0);
        if let Some(port) = filter.tunnel_port {
            self.match_network(UDP, UDP);
            self.load(PORTS, 4, pass);
            let program = &mut *self.program;
            program.load(Width::Half, R1, R10, PORTS + 2);
            program.jump_if(R1, Condition::NotEqual, port.to_be().into(), pass);
            program.add(R7, UDP_AND_VXLAN_BYTES);
        }
        let protocol = filter.protocol;
        let numbers = [false, true].map(|v6| i32::from(protocol.number(v6)));
        self.match_network(numbers[0], numbers[1]);
        self.load(PORTS, 4, pass);
        let program = &mut *self.program;
        if protocol == Protocol::IcmpEcho {
            let echo = program.label();
            program.load(Width::Byte, R1, R10, PORTS);
            program.jump_if(R1, Condition::Equal, 8, echo);
            program.jump_if(R1, Condition::NotEqual, 128, pass);
            program.place(echo);
        } else if let Some(ports) = filter.ports {
            program.load(Width::Half, R1, R10, PORTS + 2);
            program.to_big_endian(R1, 16);
            program.jump_if(R1, Condition::Less, ports.first().into(), pass);
            program.jump_if(R1, Condition::Greater, ports.last().into(), pass);
        }
        program.add(R7, protocol.header_bytes() as i32);
    }

    /// Moves `r7` from an Ethernet header to what follows the network header.
    fn match_network(&mut self, v4_protocol: i32, v6_protocol: i32) {
        let pass = self.pass;
        self.load(NETWORK, NETWORK_BYTES, pass);
        let program = &mut *self.program;
        let [v4, v6, matched] = std::array::from_fn(|_| program.label());
        program.load(Width::Half, R1, R10, NETWORK + 12);
        program.jump_if(R1, Condition::Equal, ETHERTYPE_V4.to_be().into(), v4);
        program.jump_if(R1, Condition::Equal, ETHERTYPE_V6.to_be().into(), v6);
        program.jump_to(pass);
        program.place(v4);
        program.load(Width::Byte, R1, R10, NETWORK + 23);
        program.jump_if(R1, Condition::NotEqual, v4_protocol, pass);
        program.load(Width::Byte, R1, R10, NETWORK + 14);
        program.compute(Operation::And, R1, 0xf);
        program.compute(Operation::ShiftLeft, R1, 2);
        program.add_register(R7, R1);
        program.add(R7, ETHERNET_BYTES);
        program.jump_to(matched);
        program.place(v6);
        program.load(Width::Byte, R1, R10, NETWORK + 20);
        program.jump_if(R1, Condition::NotEqual, v6_protocol, pass);
        program.add(R7, ETHERNET_BYTES + V6_BYTES);
        program.place(matched);
    }

    /// `r9 =` this CPU's counters; at tc `r8 =` segments of the packet.
    fn count(&mut self, counters: i32) {
        let pass = self.pass;
        self.program.store_value(Width::Word, 0, R10, KEY);
        self.look_up(counters, pass);
        let program = &mut *self.program;
        program.copy(R9, R0);
        match self.hook {
            Hook::Tc => {
                let segmented = program.label();
                program.load(Width::Word, R8, R6, SKB_GSO_SEGS);
                program.jump_if(R8, Condition::NotEqual, 0, segmented);
                program.set(R8, 1);
                program.place(segmented);
                program.load(Width::Word, R2, R6, SKB_LEN);
            }
            Hook::Xdp => {
                program.set(R8, 1);
                program.load(Width::Word, R2, R6, XDP_DATA_END);
                program.load(Width::Word, R1, R6, XDP_DATA);
                program.compute_register(Operation::Subtract, R2, R1);
            }
        }
        for (counter, by) in [(PACKETS, R8), (BYTES, R2)] {
            add_to(program, R9, counter, by);
        }
    }

    /// Reads the stamp of each segment: latency, then the flow's order.
    fn track(&mut self, maps: Tracking) {
        let done = self.done;
        let [unstamped, untracked, segment, next] = std::array::from_fn(|_| self.program.label());
        self.done = next;
        self.begin_segments();
        self.program.place(segment);
        self.program.load(Width::Double, R7, R10, AT);
        self.load_stamp(unstamped);
        self.measure_latency();
        self.find_flow(maps, untracked);
        self.track_order(untracked);
        let program = &mut *self.program;
        for (label, counter) in [(unstamped, UNSTAMPED), (untracked, UNTRACKED)] {
            program.place(label);
            program.set(R1, 1);
            add_to(program, R9, counter, R1);
            program.jump_to(next);
        }
        program.place(next);
        self.done = done;
        self.next_segment(segment);
    }

    /// What is gone through: `r8` segments, the payload of the first one at
    /// `r7`, each as far behind the one before as the packet says.
    fn begin_segments(&mut self) {
        let program = &mut *self.program;
        program.store(Width::Double, R7, R10, AT);
        if self.hook == Hook::Xdp {
            return; // it sees no segments
        }
        let single = program.label();
        program.store(Width::Double, R8, R10, SEGMENTS);
        program.store_value(Width::Double, 0, R10, TURN);
        program.load(Width::Word, R1, R6, SKB_GSO_SIZE);
        program.store(Width::Double, R1, R10, STEP);
        program.jump_if(R8, Condition::Equal, 1, single);
        add_to(program, R9, SUPER_FRAMES, R8);
        program.place(single);
    }

    /// Goes to the next segment, if there is one. Those beyond the most that
    /// are looked at count as untracked.
    fn next_segment(&mut self, segment: Label) {
        let done = self.done;
        let program = &mut *self.program;
        if self.hook == Hook::Xdp {
            program.jump_to(done);
            return;
        }
        let enough = program.label();
        program.load(Width::Double, R1, R10, TURN);
        program.add(R1, 1);
        program.store(Width::Double, R1, R10, TURN);
        program.load(Width::Double, R2, R10, SEGMENTS);
        program.jump_if_register(R1, Condition::AtLeast, R2, done);
        program.jump_if(R1, Condition::AtLeast, MAX_SEGMENTS, enough);
        program.load(Width::Double, R7, R10, AT);
        program.load(Width::Double, R2, R10, STEP);
        program.add_register(R7, R2);
        program.store(Width::Double, R7, R10, AT);
        program.jump_to(segment);
        program.place(enough);
        program.compute_register(Operation::Subtract, R2, R1);
        add_to(program, R9, UNTRACKED, R2);
        program.jump_to(done);
    }

    fn load_stamp(&mut self, unstamped: Label) {
        self.load(STAMP, STAMP_BYTES as i32, unstamped);
        let program = &mut *self.program;
        program.load(Width::Half, R1, R10, STAMP);
        program.jump_if(R1, Condition::NotEqual, MAGIC.to_be().into(), unstamped);
    }

    /// Counts the packet's flow unless it came before, and keeps the time.
    fn count_flows(&mut self, bits: i32) {
        let done = self.done;
        let [unstamped, later] = std::array::from_fn(|_| self.program.label());
        self.load_stamp(unstamped);
        let program = &mut *self.program;
        program.load(Width::Word, R1, R10, STAMP_STREAM);
        program.to_big_endian(R1, 32);
        program.compute(Operation::And, R1, (1 << FLOW_BITS) - 1);
        program.copy(R7, R1);
        program.compute(Operation::And, R7, 63);
        program.compute(Operation::ShiftRight, R1, 6);
        program.store(Width::Word, R1, R10, KEY);
        self.look_up(bits, done);
        let program = &mut *self.program;
        program.set(R1, 1);
        program.compute_register(Operation::ShiftLeft, R1, R7);
        program.copy(R2, R1);
        program.atomic_fetch_or(R2, R0, 0);
        program.compute_register(Operation::And, R2, R1);
        program.jump_if(R2, Condition::NotEqual, 0, done);
        program.set(R1, 1);
        add_to(program, R9, DISTINCT, R1);
        program.call(Helper::Time);
        program.store(Width::Double, R0, R9, word(LAST));
        program.load(Width::Double, R1, R9, word(FIRST));
        program.jump_if(R1, Condition::NotEqual, 0, later);
        program.store(Width::Double, R0, R9, word(FIRST));
        program.place(later);
        program.jump_to(done);
        program.place(unstamped);
        program.set(R1, 1);
        add_to(program, R9, UNSTAMPED, R1);
    }

    /// Adds the packet's latency to the histogram, unless it is of the future.
    fn measure_latency(&mut self) {
        let program = &mut *self.program;
        let [over, not_most, in_range] = std::array::from_fn(|_| program.label());
        program.call(Helper::Time);
        program.load(Width::Double, R1, R10, STAMP_TIME);
        program.to_big_endian(R1, 64);
        program.jump_if_register(R0, Condition::Less, R1, over);
        program.compute_register(Operation::Subtract, R0, R1);
        program.load(Width::Double, R1, R9, word(MAX_LATENCY));
        program.jump_if_register(R1, Condition::AtLeast, R0, not_most);
        program.store(Width::Double, R0, R9, word(MAX_LATENCY));
        program.place(not_most);
        // r1 = how far right until SUB_BUCKET_BITS + 1 bits are left. Both are
        // kept in memory, of whose values the verifier knows nothing: else it
        // goes on from each of the 64 ways through here by itself.
        program.store(Width::Double, R0, R9, word(SHIFTED));
        program.store_value(Width::Double, 0, R9, word(SHIFT));
        for step in [32, 16, 8, 4, 2, 1] {
            let below = program.label();
            program.load(Width::Double, R0, R9, word(SHIFTED));
            program.set_wide(R2, 1 << (SUB_BUCKET_BITS + step).min(63));
            program.jump_if_register(R0, Condition::Less, R2, below);
            program.compute(Operation::ShiftRight, R0, step.cast_signed());
            program.store(Width::Double, R0, R9, word(SHIFTED));
            program.load(Width::Double, R1, R9, word(SHIFT));
            program.add(R1, step.cast_signed());
            program.store(Width::Double, R1, R9, word(SHIFT));
            program.place(below);
        }
        program.load(Width::Double, R0, R9, word(SHIFTED));
        program.load(Width::Double, R1, R9, word(SHIFT));
        // What is left is 64 to 127, or less where nothing was shifted.
        program.compute(Operation::ShiftLeft, R1, SUB_BUCKET_BITS.cast_signed());
        program.add_register(R1, R0);
        program.jump_if(R1, Condition::Less, BUCKETS as i32, in_range);
        program.set(R1, BUCKETS as i32 - 1);
        program.place(in_range);
        program.compute(Operation::ShiftLeft, R1, 3);
        program.copy(R2, R9);
        program.add_register(R2, R1);
        program.set(R1, 1);
        add_to(program, R2, HISTOGRAM, R1);
        program.place(over);
    }

    /// `r8 =` the flow's record, made when it is new.
    fn find_flow(&mut self, maps: Tracking, untracked: Label) {
        let program = &mut *self.program;
        let [new, found] = std::array::from_fn(|_| program.label());
        program.load(Width::Word, R1, R10, STAMP_STREAM);
        program.to_big_endian(R1, 32);
        program.store(Width::Word, R1, R10, KEY);
        program.copy(R7, R1);
        self.look_up(maps.flows, new);
        self.program.jump_to(found);
        self.program.place(new);
        self.program.store_value(Width::Word, 0, R10, KEY);
        self.look_up(maps.blank, untracked);
        let program = &mut *self.program;
        program.store(Width::Word, R7, R10, KEY);
        program.copy(R3, R0);
        program.copy(R2, R10);
        program.add(R2, KEY.into());
        program.load_map(R1, maps.flows);
        program.set(R4, 1); // BPF_NOEXIST: another CPU may have been first
        program.call(Helper::MapUpdate);
        self.look_up(maps.flows, untracked);
        self.program.place(found);
        self.program.copy(R8, R0);
    }

    /// Duplicates, order and the next number of the flow in `r8`.
    fn track_order(&mut self, untracked: Label) {
        let done = self.done;
        self.extend_sequence();
        let [new, late, duplicate, reordered] = std::array::from_fn(|_| self.program.label());
        self.mark(new, late, duplicate);
        self.program.jump_to(untracked);
        let program = &mut *self.program;
        for (label, counter) in [(duplicate, flow::DUPLICATES), (late, flow::LATE)] {
            program.place(label);
            program.set(R1, 1);
            program.atomic_add(R1, R8, word(counter));
            program.jump_to(done);
        }
        program.place(new);
        program.set(R1, 1);
        program.atomic_add(R1, R8, word(flow::UNIQUE));
        // The lowest number, as the largest complement.
        let not_lowest = program.label();
        program.set(R1, -1);
        program.compute_register(Operation::Xor, R1, R7);
        program.load(Width::Double, R2, R8, word(flow::LOWEST_INVERTED));
        program.jump_if_register(R2, Condition::AtLeast, R1, not_lowest);
        program.store(Width::Double, R1, R8, word(flow::LOWEST_INVERTED));
        program.place(not_lowest);
        for _ in 0..TRIES {
            program.load(Width::Double, R0, R8, word(flow::NEXT));
            program.jump_if_register(R7, Condition::Less, R0, reordered);
            program.copy(R5, R0);
            program.copy(R1, R7);
            program.add(R1, 1);
            program.atomic_exchange(R1, R8, word(flow::NEXT));
            program.jump_if_register(R0, Condition::Equal, R5, done);
        }
        program.jump_to(done);
        program.place(reordered);
        program.set(R1, 1);
        program.atomic_add(R1, R8, word(flow::REORDERED));
        program.add(R0, -1);
        program.compute_register(Operation::Subtract, R0, R7);
        program.load(Width::Double, R1, R8, word(flow::DISTANCE));
        program.jump_if_register(R1, Condition::AtLeast, R0, done);
        program.store(Width::Double, R0, R8, word(flow::DISTANCE));
        program.jump_to(done);
    }

    /// `r7 =` the number in 64 bits, as near as can be to the expected one;
    /// the first is placed above [`flow::ORIGIN`].
    fn extend_sequence(&mut self) {
        let program = &mut *self.program;
        let [first, extended] = std::array::from_fn(|_| program.label());
        program.load(Width::Word, R1, R10, STAMP_SEQUENCE);
        program.to_big_endian(R1, 32);
        program.load(Width::Double, R7, R8, word(flow::NEXT));
        program.jump_if(R7, Condition::Equal, 0, first);
        program.compute_register(Operation::Subtract, R1, R7);
        program.compute(Operation::ShiftLeft, R1, 32);
        program.compute(Operation::ShiftRightSigned, R1, 32);
        program.add_register(R7, R1);
        program.jump_to(extended);
        program.place(first);
        program.set_wide(R7, flow::ORIGIN);
        program.add_register(R7, R1);
        program.place(extended);
    }

    /// Marks number `r7` in the window, and goes to what it was. Falls
    /// through when other CPUs were always faster.
    fn mark(&mut self, new: Label, late: Label, duplicate: Label) {
        let program = &mut *self.program;
        // r4 = the slot, r3 = the chunk's number, r2 = the bit.
        program.copy(R4, R7);
        program.compute(Operation::ShiftRight, R4, 5);
        program.copy(R3, R4);
        program.compute(Operation::ShiftLeft, R3, 32);
        program.compute(Operation::ShiftRight, R3, 32);
        program.compute(Operation::And, R4, SLOTS as i32 - 1);
        program.compute(Operation::ShiftLeft, R4, 3);
        program.add_register(R4, R8);
        program.copy(R5, R7);
        program.compute(Operation::And, R5, 31);
        program.set(R2, 1);
        program.compute_register(Operation::ShiftLeft, R2, R5);
        for _ in 0..TRIES {
            let [fresh, same, swap] = std::array::from_fn(|_| program.label());
            program.load(Width::Double, R0, R4, word(flow::WINDOW));
            program.jump_if(R0, Condition::Equal, 0, fresh);
            program.copy(R1, R0);
            program.compute(Operation::ShiftRight, R1, 32);
            program.copy(R5, R3);
            program.compute_register(Operation::Subtract, R5, R1);
            program.compute(Operation::ShiftLeft, R5, 32);
            program.jump_if(R5, Condition::Equal, 0, same);
            program.jump_if(R5, Condition::LessSigned, 0, late);
            program.place(fresh);
            program.copy(R1, R3);
            program.compute(Operation::ShiftLeft, R1, 32);
            program.jump_to(swap);
            program.place(same);
            program.copy(R1, R0);
            program.compute_register(Operation::And, R1, R2);
            program.jump_if(R1, Condition::NotEqual, 0, duplicate);
            program.copy(R1, R0);
            program.place(swap);
            program.compute_register(Operation::Or, R1, R2);
            program.copy(R5, R0);
            program.atomic_exchange(R1, R4, word(flow::WINDOW));
            program.jump_if_register(R0, Condition::Equal, R5, new);
        }
    }
}

/// Adds `by` to a word of this CPU's own. Loses `r5`.
fn add_to(program: &mut Assembler, base: Register, counter: usize, by: Register) {
    program.load(Width::Double, R5, base, word(counter));
    program.add_register(R5, by);
    program.store(Width::Double, R5, base, word(counter));
}
