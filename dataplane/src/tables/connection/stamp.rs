//! How far a TCP sender has come, by which its peer tells a new connection
//! from the one before it.
//!
//! Who closed first remembers a connection for a minute or more after its end
//! (RFC 9293, section 3.6.1), and takes a SYN of the same addresses and ports
//! only when it is later than all that the old connection sent. The senders
//! behind a port of masquerade are not one: each numbers as it likes, most of
//! them by a random start for each address and port. So a port whose connection
//! is over goes to one whose SYN its peer will take: another one waits for a
//! second until it sends its SYN again.

/// Marks a word that says something.
const IS_KNOWN: u64 = 1 << 32;

/// Where a sender is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The number after the last byte sent, and after the FIN; a SYN's own.
    pub sequence: u32,
    /// The sender's clock, when it sends timestamps (RFC 7323).
    pub timestamp: Option<u32>,
}

impl Stamp {
    /// Whether a SYN begins a new connection for a peer that has `last` of the
    /// one before (RFC 6191, section 2).
    pub fn is_after(self, last: Stamp) -> bool {
        match (self.timestamp, last.timestamp) {
            (Some(now), Some(then)) if now != then => is_later(now, then),
            _ => is_later(self.sequence, last.sequence),
        }
    }

    /// As two words, of which the first one is not 0.
    pub(super) fn to_words(self) -> [u64; 2] {
        let timestamp = self.timestamp.map_or(0, |time| IS_KNOWN | u64::from(time));
        [IS_KNOWN | u64::from(self.sequence), timestamp]
    }

    /// From [`Stamp::to_words`]; `None` for zeroes.
    pub(super) fn from_words([sequence, timestamp]: [u64; 2]) -> Option<Stamp> {
        let known = |word: u64| (word & IS_KNOWN != 0).then_some(word as u32);
        Some(Stamp {
            sequence: known(sequence)?,
            timestamp: known(timestamp),
        })
    }
}

/// Whether a number of a circle of 2³² comes after another.
fn is_later(number: u32, than: u32) -> bool {
    (number.wrapping_sub(than) as i32) > 0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn stamp(sequence: u32, timestamp: impl Into<Option<u32>>) -> Stamp {
        Stamp {
            sequence,
            timestamp: timestamp.into(),
        }
    }

    #[test]
    fn a_later_clock_begins_anew_or_else_a_later_number() {
        let last = stamp(1000, 50);
        let cases = [
            ("a later clock", stamp(7, 51), last, true),
            ("an earlier clock", stamp(2000, 49), last, false),
            ("the same clock, later", stamp(1001, 50), last, true),
            ("the same clock, not later", stamp(1000, 50), last, false),
            ("no clock, later", stamp(1001, None), last, true),
            ("no clock, not later", stamp(999, None), last, false),
            ("a clock at last", stamp(1001, 7), stamp(1000, None), true),
            (
                "across the clock's end",
                stamp(0, 3),
                stamp(0, !0 - 3),
                true,
            ),
            (
                "across the last number",
                stamp(3, None),
                stamp(!0, None),
                true,
            ),
        ];
        for (name, syn, last, expect) in cases {
            assert_eq!(syn.is_after(last), expect, "{name}");
        }
    }

    #[test]
    fn words_keep_all_of_it() {
        for stamp in [stamp(0, None), stamp(0, 0), stamp(!0, !0), stamp(7, None)] {
            assert_eq!(Stamp::from_words(stamp.to_words()), Some(stamp));
        }
        assert_eq!(Stamp::from_words([0, 0]), None);
    }
}
