//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept in the machine's byte order, four bytes at a time: the one's
//! complement sum does not care, and only the folded result is turned.

/// A running one's complement sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const ZERO: Sum = Sum(0);

    /// Adds bytes that begin at an even distance from where the sum began. An
    /// odd last byte counts as if a zero followed.
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        let mut total = self.0;
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        let mut last = [0; 4];
        let rest = words.remainder();
        last[..rest.len()].copy_from_slice(rest);
        Sum(total + u64::from(u32::from_ne_bytes(last)))
    }

    /// Adds bytes that begin at an odd distance from where the sum began.
    #[inline]
    pub fn odd_bytes(self, bytes: &[u8]) -> Sum {
        let shifted = Sum::ZERO.bytes(bytes).fold_native().swap_bytes();
        Sum(self.0 + u64::from(shifted))
    }

    /// Adds one word.
    #[inline]
    pub fn word(self, word: u16) -> Sum {
        Sum(self.0 + u64::from(word.to_be()))
    }

    /// Adds another sum.
    #[inline]
    pub fn sum(self, other: Sum) -> Sum {
        Sum(self.0 + u64::from(other.fold_native()))
    }

    #[inline]
    fn fold_native(self) -> u16 {
        // Adding a sum to itself turned by half leaves, in the upper half, the
        // two halves' sum with the carry brought round.
        let sum = (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32;
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }

    /// The sum folded to 16 bits: what a *partial* checksum field holds.
    #[inline]
    #[must_use]
    pub fn fold(self) -> u16 {
        u16::from_be(self.fold_native())
    }

    /// The complement of the folded sum: what a complete field holds.
    #[inline]
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// As [`Self::checksum`], for UDP, where 0 means that there is none.
    #[inline]
    #[must_use]
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// What a change of covered bytes adds to a one's complement sum (RFC 1624,
/// equation 3).
pub fn delta(old: &[u8], new: &[u8]) -> u16 {
    let gone = !Sum::ZERO.bytes(old).fold();
    Sum::ZERO.word(gone).bytes(new).fold()
}

/// The checksum of `bytes`; 0 when they hold a correct checksum already.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::ZERO.bytes(bytes).checksum()
}

/// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200
/// section 8.1): both addresses as they lie in the header, protocol and
/// length.
#[inline]
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: u16) -> Sum {
    Sum::ZERO
        .bytes(addresses)
        .word(u16::from(protocol))
        .word(len)
}

/// The checksum after one covered word changed from `old` to `new` (RFC 1624,
/// equation 3).
#[inline]
#[must_use]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(((sum >> 16) + (sum & 0xffff)) as u16)
}

/// RFC 1071 to the letter, not complemented: adds big-endian words and wraps
/// each carry round. What tests compare with.
#[cfg(any(test, fuzzing))]
pub(crate) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum: u16 = 0;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
        let (added, carry) = sum.overflowing_add(word);
        sum = added + u16::from(carry);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::ZERO.bytes(&bytes).fold(), 0xddf2);
    }

    #[test]
    fn rfc_1624_example_does_not_give_minus_zero() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        assert_eq!(Sum::ZERO.word(0xffff).checksum(), 0);
        assert_eq!(Sum::ZERO.word(0xffff).udp_checksum(), 0xffff);
    }

    proptest! {
        #[test]
        fn sum_equals_naive(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::ZERO.bytes(&bytes).fold(), naive_sum(&bytes));
        }

        #[test]
        fn sum_in_pieces_equals_naive(
            bytes in proptest::collection::vec(any::<u8>(), 1..500),
            cuts in proptest::collection::vec(0usize..500, 0..6),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c % bytes.len()).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let (mut from, mut sum) = (0, Sum::ZERO);
            for cut in cuts {
                let piece = &bytes[from..cut];
                sum = if from % 2 == 0 { sum.bytes(piece) } else { sum.odd_bytes(piece) };
                from = cut;
            }
            prop_assert_eq!(sum.fold(), naive_sum(&bytes));
        }

        #[test]
        fn update_equals_full(
            bytes in proptest::collection::vec(any::<u8>(), 2..100),
            at in any::<usize>(),
            new in any::<u16>(),
        ) {
            let mut bytes = bytes;
            if bytes.len() % 2 == 1 { bytes.pop(); }
            let at = (at % (bytes.len() / 2)) * 2;
            let before = checksum(&bytes);
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            let (updated, full) = (update(before, old, new), checksum(&bytes));
            // The two zeros of one's complement are the same number.
            prop_assert!(updated == full || (updated ^ full) == 0xffff && (updated == 0 || full == 0));
        }
    }
}
