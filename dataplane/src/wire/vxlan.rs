//! VXLAN (RFC 7348).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::Vni;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// The I flag: the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;

/// The header.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct VxlanHeader {
    /// [`FLAG_VNI`]; the others are sent as 0 and ignored.
    pub flags: u8,
    /// Sent as 0 and ignored.
    pub reserved: [u8; 3],
    /// The network.
    pub vni: [u8; 3],
    /// Sent as 0 and ignored.
    pub reserved_last: u8,
}

const _: () = assert!(size_of::<VxlanHeader>() == HEADER_LEN);

impl VxlanHeader {
    /// The header of a network's packets.
    pub const fn new(vni: Vni) -> VxlanHeader {
        VxlanHeader {
            flags: FLAG_VNI,
            reserved: [0; 3],
            vni: vni.to_bytes(),
            reserved_last: 0,
        }
    }

    /// The network, when the header names one.
    #[inline]
    pub fn vni(&self) -> Option<Vni> {
        (self.flags & FLAG_VNI != 0).then_some(Vni::from_bytes(self.vni))
    }
}
