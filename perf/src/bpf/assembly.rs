//! BPF instructions, written by hand.
//!
//! The programs of this crate are short and depend on what is measured, so
//! they are put together here and need no compiler and no object file. Jumps name a [`Label`]; [`Assembler::finish`]
//! turns the names into offsets.

/// One BPF instruction as the kernel takes it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

/// A register, r0 to r10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(u8);

/// Result of calls and of the program.
pub const R0: Register = Register(0);
/// First argument.
pub const R1: Register = Register(1);
/// Second argument.
pub const R2: Register = Register(2);
/// Third argument.
pub const R3: Register = Register(3);
/// Fourth argument.
pub const R4: Register = Register(4);
/// Fifth argument.
pub const R5: Register = Register(5);
/// Kept over calls; holds the context for packet loads.
pub const R6: Register = Register(6);
/// Kept over calls.
pub const R7: Register = Register(7);
/// Kept over calls.
pub const R8: Register = Register(8);
/// Kept over calls.
pub const R9: Register = Register(9);
/// The frame pointer, read only.
pub const R10: Register = Register(10);

/// Width of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes.
    Double,
}

impl Width {
    const fn bits(self) -> u8 {
        match self {
            Width::Word => 0x00,
            Width::Half => 0x08,
            Width::Byte => 0x10,
            Width::Double => 0x18,
        }
    }
}

/// Helper functions of the kernel that the programs call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// `bpf_map_lookup_elem`.
    MapLookup = 1,
    /// `bpf_map_update_elem`.
    MapUpdate = 2,
    /// `bpf_ktime_get_ns`.
    Time = 5,
    /// `bpf_skb_store_bytes`.
    SkbStoreBytes = 9,
    /// `bpf_redirect`.
    Redirect = 23,
    /// `bpf_skb_load_bytes`.
    SkbLoadBytes = 26,
    /// `bpf_xdp_adjust_tail`.
    AdjustTail = 65,
    /// `bpf_redirect_peer`.
    RedirectPeer = 155,
    /// `bpf_xdp_load_bytes`.
    XdpLoadBytes = 189,
}

/// Arithmetic on 64 bits; everything is unsigned unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `+`
    Add = 0x00,
    /// `-`
    Subtract = 0x10,
    /// `*`
    Multiply = 0x20,
    /// `/`
    Divide = 0x30,
    /// `|`
    Or = 0x40,
    /// `&`
    And = 0x50,
    /// `<<`
    ShiftLeft = 0x60,
    /// `>>`
    ShiftRight = 0x70,
    /// `%`
    Modulo = 0x90,
    /// `^`
    Xor = 0xa0,
    /// `>>` that keeps the sign.
    ShiftRightSigned = 0xc0,
}

/// When to jump; comparisons are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// `==`
    Equal = 0x10,
    /// `>`
    Greater = 0x20,
    /// `>=`
    AtLeast = 0x30,
    /// `!=`
    NotEqual = 0x50,
    /// `<`
    Less = 0xa0,
    /// `<`, both signed.
    LessSigned = 0xc0,
}

/// A place to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// Collects instructions in program order.
#[derive(Debug, Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    /// Position of each label, once placed.
    labels: Vec<Option<usize>>,
    /// Jumps by position, with the label they name.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// An empty program.
    #[must_use]
    pub fn new() -> Assembler {
        Assembler::default()
    }

    /// A label that is placed later by [`Assembler::place`].
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts the label before the next instruction.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    fn push(&mut self, code: u8, dst: Register, src: Register, offset: i16, immediate: i32) {
        self.instructions.push(Instruction {
            code,
            registers: dst.0 | (src.0 << 4),
            offset,
            immediate,
        });
    }

    fn jump(&mut self, code: u8, dst: Register, src: Register, immediate: i32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(code, dst, src, 0, immediate);
    }

    /// `dst = value`.
    pub fn set(&mut self, dst: Register, value: i32) {
        self.push(0xb7, dst, R0, 0, value);
    }

    /// `dst = src`.
    pub fn copy(&mut self, dst: Register, src: Register) {
        self.push(0xbf, dst, src, 0, 0);
    }

    /// `dst = value`, all 64 bits.
    pub fn set_wide(&mut self, dst: Register, value: u64) {
        self.push(0x18, dst, R0, 0, (value as u32).cast_signed());
        self.push(0, R0, R0, 0, ((value >> 32) as u32).cast_signed());
    }

    /// `dst = dst OPERATION value`.
    pub fn compute(&mut self, operation: Operation, dst: Register, value: i32) {
        self.push(0x07 | operation as u8, dst, R0, 0, value);
    }

    /// `dst = dst OPERATION src`.
    pub fn compute_register(&mut self, operation: Operation, dst: Register, src: Register) {
        self.push(0x0f | operation as u8, dst, src, 0, 0);
    }

    /// `dst += value`.
    pub fn add(&mut self, dst: Register, value: i32) {
        self.compute(Operation::Add, dst, value);
    }

    /// `dst += src`.
    pub fn add_register(&mut self, dst: Register, src: Register) {
        self.compute_register(Operation::Add, dst, src);
    }

    /// The low `bits` (16, 32 or 64) of `dst`, in network byte order.
    pub fn to_big_endian(&mut self, dst: Register, bits: i32) {
        self.push(0xdc, dst, R0, 0, bits);
    }

    /// `dst = *(src + offset)`.
    pub fn load(&mut self, width: Width, dst: Register, src: Register, offset: i16) {
        self.push(0x61 | width.bits(), dst, src, offset, 0);
    }

    /// `*(base + offset) = value`.
    pub fn store(&mut self, width: Width, value: Register, base: Register, offset: i16) {
        self.push(0x63 | width.bits(), base, value, offset, 0);
    }

    /// `*(base + offset) = value`.
    pub fn store_value(&mut self, width: Width, value: i32, base: Register, offset: i16) {
        self.push(0x62 | width.bits(), base, R0, offset, value);
    }

    /// `*(base + offset) += value` on 64 bits, atomically.
    pub fn atomic_add(&mut self, value: Register, base: Register, offset: i16) {
        self.push(0xdb, base, value, offset, 0);
    }

    /// `*(base + offset) = value` if it is [`R0`]; `r0 =` what it was. On 64
    /// bits, atomically.
    pub fn atomic_exchange(&mut self, value: Register, base: Register, offset: i16) {
        self.push(0xdb, base, value, offset, 0xf1);
    }

    /// `value = *(base + offset)`, of which the bits of `value` are then set.
    /// On 64 bits, atomically.
    pub fn atomic_fetch_or(&mut self, value: Register, base: Register, offset: i16) {
        self.push(0xdb, base, value, offset, 0x41);
    }

    /// `r0 =` the packet's bytes at `offset`, in host byte order. Wants the
    /// context in [`R6`], loses [`R1`] to [`R5`] and ends the program with 0
    /// when the packet is shorter.
    pub fn load_packet(&mut self, width: Width, offset: i32) {
        self.push(0x20 | width.bits(), R0, R0, 0, offset);
    }

    /// `dst =` the map behind the descriptor `map`.
    pub fn load_map(&mut self, dst: Register, map: i32) {
        /// `BPF_PSEUDO_MAP_FD`.
        const PSEUDO_MAP: Register = Register(1);
        self.push(0x18, dst, PSEUDO_MAP, 0, map);
        self.push(0, R0, R0, 0, 0);
    }

    /// Jumps when `dst CONDITION value`.
    pub fn jump_if(&mut self, dst: Register, condition: Condition, value: i32, to: Label) {
        self.jump(0x05 | condition as u8, dst, R0, value, to);
    }

    /// Jumps when the lower 32 bits of `dst` are not `value`.
    pub fn jump_if_word_not_equal(&mut self, dst: Register, value: i32, to: Label) {
        self.jump(0x56, dst, R0, value, to);
    }

    /// Jumps when `dst CONDITION src`.
    pub fn jump_if_register(
        &mut self,
        dst: Register,
        condition: Condition,
        src: Register,
        to: Label,
    ) {
        self.jump(0x0d | condition as u8, dst, src, 0, to);
    }

    /// Jumps.
    pub fn jump_to(&mut self, to: Label) {
        self.jump(0x05, R0, R0, 0, to);
    }

    /// Calls a helper of the kernel.
    pub fn call(&mut self, helper: Helper) {
        self.push(0x85, R0, R0, 0, helper as i32);
    }

    /// Ends the program with r0.
    pub fn exit(&mut self) {
        self.push(0x95, R0, R0, 0, 0);
    }

    /// The program, every jump resolved.
    ///
    /// # Panics
    /// When a label that is jumped to was never placed.
    #[must_use]
    pub fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0].expect("a label that is jumped to has a place");
            let offset = target as isize - at as isize - 1;
            self.instructions[at].offset =
                i16::try_from(offset).expect("programs here are far shorter than 32768");
        }
        self.instructions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_count_from_the_next_instruction() {
        let mut program = Assembler::new();
        let start = program.label();
        let end = program.label();
        program.place(start);
        program.jump_if(R1, Condition::Equal, 7, end);
        program.jump_to(start);
        program.place(end);
        program.exit();
        let code = program.finish();
        assert_eq!(code[0].offset, 1);
        assert_eq!(code[1].offset, -2);
    }

    #[test]
    fn encodes_as_the_kernel_documents() {
        // Known encodings, from the kernel's instruction set document.
        let mut program = Assembler::new();
        let end = program.label();
        program.set(R1, 5);
        program.load(Width::Word, R2, R6, 16);
        program.store(Width::Half, R2, R5, 34);
        program.store_value(Width::Word, -2, R7, 4);
        program.compute(Operation::Modulo, R3, 12);
        program.compute_register(Operation::ShiftRight, R3, R9);
        program.jump_if_register(R1, Condition::AtLeast, R2, end);
        program.set_wide(R4, 0x1_0000_0002);
        program.atomic_exchange(R2, R7, 8);
        program.atomic_fetch_or(R2, R7, 8);
        program.place(end);
        program.call(Helper::Redirect);
        let bytes: Vec<[u8; 8]> = program
            .finish()
            .iter()
            .map(|i| {
                let [o0, o1] = i.offset.to_le_bytes();
                let [i0, i1, i2, i3] = i.immediate.to_le_bytes();
                [i.code, i.registers, o0, o1, i0, i1, i2, i3]
            })
            .collect();
        assert_eq!(bytes[0], [0xb7, 0x01, 0, 0, 5, 0, 0, 0]);
        assert_eq!(bytes[1], [0x61, 0x62, 16, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[2], [0x6b, 0x25, 34, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[3], [0x62, 0x07, 4, 0, 0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(bytes[4], [0x97, 0x03, 0, 0, 12, 0, 0, 0]);
        assert_eq!(bytes[5], [0x7f, 0x93, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[6], [0x3d, 0x21, 4, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[7], [0x18, 0x04, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[8], [0x00, 0x00, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[9], [0xdb, 0x27, 8, 0, 0xf1, 0, 0, 0]);
        assert_eq!(bytes[10], [0xdb, 0x27, 8, 0, 0x41, 0, 0, 0]);
        assert_eq!(bytes[11], [0x85, 0x00, 0, 0, 23, 0, 0, 0]);
    }
}
