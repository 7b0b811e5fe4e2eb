//! Reads across the frames of one packet.

use crate::frame::Batch;
use crate::umem::Umem;
use crate::wire::checksum::Sum;

/// The sum of packet `index` from byte `from` to its end. `from` lies in the
/// head frame.
pub(super) fn sum(umem: &Umem, batch: &Batch, index: usize, from: usize) -> Sum {
    let mut sum = Sum::ZERO;
    let mut summed = 0;
    for (position, frame) in batch.chain(index).enumerate() {
        let bytes = umem.bytes(frame);
        let bytes = match position {
            0 => bytes.get(from..).unwrap_or_default(),
            _ => bytes,
        };
        sum = match summed % 2 {
            0 => sum.bytes(bytes),
            _ => sum.odd_bytes(bytes),
        };
        summed += bytes.len();
    }
    sum
}
