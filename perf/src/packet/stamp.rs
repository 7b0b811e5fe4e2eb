//! What a frame says about itself to a sink, in the first bytes of its
//! payload, all big-endian:
//!
//! ```text
//! 0       2            6               10                  18
//! | magic | run, flow | number in flow | time in ns        |
//! ```
//!
//! The run takes the upper 8 bits of its word, so that a sink tells a new run
//! of a generator from packets that come late. The time is `CLOCK_MONOTONIC`
//! of the sending machine, the same in all its namespaces.

/// Bytes of a stamp; with them a 64-byte frame of IPv4 and UDP is full.
pub const STAMP_BYTES: usize = 18;
/// Marks a stamp.
pub(crate) const MAGIC: u16 = 0x534c;
/// Bits of a flow's number.
pub(crate) const FLOW_BITS: u32 = 24;

/// A stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Run and flow.
    pub stream: u32,
    /// Which packet of the flow, from 0, wrapping.
    pub sequence: u32,
    /// When it was sent, in nanoseconds.
    pub time_ns: u64,
}

impl Stamp {
    /// Reads the stamp at the beginning of a payload.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Stamp> {
        let (magic, rest) = payload.split_first_chunk::<2>()?;
        let (stream, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<4>()?;
        let time = rest.first_chunk::<8>()?;
        (u16::from_be_bytes(*magic) == MAGIC).then(|| Stamp {
            stream: u32::from_be_bytes(*stream),
            sequence: u32::from_be_bytes(*sequence),
            time_ns: u64::from_be_bytes(*time),
        })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[0..2].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[2..6].copy_from_slice(&self.stream.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[10..18].copy_from_slice(&self.time_ns.to_be_bytes());
        bytes
    }
}
