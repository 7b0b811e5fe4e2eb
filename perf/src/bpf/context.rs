//! What programs find and answer: places in the kernel's structures and the
//! verdicts of each hook (include/uapi/linux/bpf.h), and EtherTypes.

use super::assembly::{Assembler, Condition, Helper, Label, R0, R1, R2, R10};

/// `struct xdp_md`: where the packet begins.
pub(crate) const XDP_DATA: i16 = 0;
/// `struct xdp_md`: where the packet ends.
pub(crate) const XDP_DATA_END: i16 = 4;
/// `struct __sk_buff`: bytes of the packet.
pub(crate) const SKB_LEN: i16 = 0;
/// `struct __sk_buff`: EtherType.
pub(crate) const SKB_PROTOCOL: i16 = 16;
/// `struct __sk_buff`: segments that it will be cut into.
pub(crate) const SKB_GSO_SEGS: i16 = 164;
/// `struct __sk_buff`: bytes of payload of each.
pub(crate) const SKB_GSO_SIZE: i16 = 176;

pub(crate) const XDP_ABORTED: i32 = 0;
pub(crate) const XDP_DROP: i32 = 1;
pub(crate) const XDP_PASS: i32 = 2;
pub(crate) const TCX_NEXT: i32 = -1;
pub(crate) const TCX_DROP: i32 = 2;

pub(crate) const ETHERTYPE_V4: u16 = 0x0800;
pub(crate) const ETHERTYPE_V6: u16 = 0x86dd;

/// Offset of word `index` of a record.
pub(crate) fn word(index: usize) -> i16 {
    (index * 8) as i16
}

/// `r0 =` the value of `map` under the key at `key` on the stack; jumps when
/// there is none. Loses `r1` to `r5`.
pub(crate) fn look_up(program: &mut Assembler, map: i32, key: i16, missing: Label) {
    program.copy(R2, R10);
    program.add(R2, key.into());
    program.load_map(R1, map);
    program.call(Helper::MapLookup);
    program.jump_if(R0, Condition::Equal, 0, missing);
}
