//! Pairs of addresses between which packets have to be shorter than the way
//! would carry: because the receiver of a TCP connection said so in its SYN, or
//! somebody on the path did by an ICMP error.
//!
//! A sender knows such things by itself and cuts accordingly. But a super-frame
//! does not say how its sender wants it cut, so the switch has to know, too.
//! What leaves with another address has the same kept with its connection.
//! A receiver says it once, at the beginning of a connection, which may outlive
//! the process; so the words may lie in the connections' file.
//!
//! The table is a fixed set of 64-bit words, four to a bucket; more pairs than
//! it has room for displace each other. A word names its pair by a part of a
//! seeded hash alone: among 2¹⁸ pairs of a bucket somebody is mistaken for
//! another and gets shorter segments than could be, which is harmless.
//!
//! # Who may do what at the same time
//!
//! Any thread may look up and change. A word is loaded and stored whole and
//! carries nothing with it; of two changes of one word at the same moment one
//! may be lost, and the next packet or error of its kind says it again.

use std::net::IpAddr;

use super::mix::mix;
use crate::mapped_words::MappedWords;
use crate::sync::{AtomicU32, Ordering};

/// Words of a bucket.
const WAYS: usize = 4;

/// Buckets; a power of two.
const BUCKETS: usize = 1 << 12;

/// How long the path's word is believed, in minutes (RFC 1191, section 6.3).
const PATH_LIFE_MIN: u8 = 10;

/// The table.
#[derive(Debug)]
pub struct Paths {
    seed: u64,
    words: MappedWords,
    /// Counts changes that flows decided before have to hear of. Written by
    /// every lane, read by every lane. Stored with *release* after the word,
    /// loaded with *acquire* before it.
    epoch: AtomicU32,
    /// Whether anything was ever put in: 0 or 1. Needs no order: who sees it
    /// late misses what it would have missed a moment before.
    is_used: AtomicU32,
}

/// What a word says. Zero as a whole is nobody's.
///
/// | bits | |
/// |---|---|
/// | 0–15 | longest packet that the receiver accepts; 0 when that is no limit |
/// | 16–31 | longest packet that the path carries; 0 likewise |
/// | 32–37 | spare |
/// | 38–45 | minute in which the path said so, wrapping |
/// | 46–63 | part of the pair's hash |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    const TAG: u32 = 38 + 8;

    fn accepted(self) -> u16 {
        self.0 as u16
    }

    fn path(self, minute: u8) -> u16 {
        let age = minute.wrapping_sub((self.0 >> 38) as u8);
        match age < PATH_LIFE_MIN {
            true => (self.0 >> 16) as u16,
            false => 0,
        }
    }

    fn new(tag: u64, accepted: u16, path: u16, minute: u8) -> Word {
        if accepted == 0 && path == 0 {
            return Word(0);
        }
        let limits = u64::from(accepted) | u64::from(path) << 16;
        Word(tag << Word::TAG | u64::from(minute) << 38 | limits)
    }
}

impl Paths {
    /// Words of a table.
    pub(super) const WORDS: usize = BUCKETS * WAYS;

    /// An empty table; `seed` keeps outsiders from aiming at one bucket.
    ///
    /// # Panics
    /// When the address space has no room for it.
    pub(super) fn new(seed: u64) -> Paths {
        let room = "the address space has room for narrow paths";
        Paths::over(MappedWords::anonymous(Paths::WORDS).expect(room), seed)
    }

    /// A table in [`Paths::WORDS`] words that are zero, or were a table's with
    /// the same seed and origin of time.
    pub(super) fn over(words: MappedWords, seed: u64) -> Paths {
        let is_used = words.iter().any(|word| word.load(Ordering::Relaxed) != 0);
        Paths {
            seed,
            words,
            epoch: AtomicU32::new(0),
            is_used: AtomicU32::new(u32::from(is_used)),
        }
    }

    /// Changes with every limit that flows decided before have to obey.
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Has flows that were decided before ask again.
    pub fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Longest packet from one address to another, in bytes, where there is a
    /// limit.
    #[inline]
    pub fn limit(&self, from: IpAddr, to: IpAddr, now_ms: u64) -> Option<u16> {
        if self.is_used.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (bucket, tag) = self.place(from, to);
        let word = self.load(self.find(bucket, tag)?);
        let limits = [word.accepted(), word.path(minute(now_ms))];
        limits.into_iter().filter(|limit| *limit > 0).min()
    }

    /// What the receiver says: it accepts packets of so many bytes, or, by
    /// `None`, as long ones as come. The last word counts.
    pub fn accept(&self, from: IpAddr, to: IpAddr, longest: Option<u16>, now_ms: u64) {
        self.change(from, to, now_ms, |_, path| (longest.unwrap_or(0), path));
    }

    /// What somebody on the path says: longer packets do not pass. Whether that
    /// is news.
    pub fn narrow(&self, from: IpAddr, to: IpAddr, longest: u16, now_ms: u64) -> bool {
        let mut is_news = false;
        self.change(from, to, now_ms, |accepted, path| {
            is_news = path == 0 || longest < path;
            (accepted, if is_news { longest } else { path })
        });
        is_news
    }

    fn change(
        &self,
        from: IpAddr,
        to: IpAddr,
        now_ms: u64,
        change: impl FnOnce(u16, u16) -> (u16, u16),
    ) {
        let (bucket, tag) = self.place(from, to);
        let minute = minute(now_ms);
        let at = self.find(bucket, tag);
        let old = at.map_or(Word(0), |at| self.load(at));
        let (accepted, path) = change(old.accepted(), old.path(minute));
        let new = Word::new(tag, accepted, path, minute);
        if at.is_none() && new == Word(0) {
            return;
        }
        let at = at.unwrap_or_else(|| self.room(bucket, tag));
        self.words[at].store(new.0, Ordering::Relaxed);
        self.is_used.store(1, Ordering::Relaxed);
    }

    /// First word of the pair's bucket, and what names the pair in it.
    fn place(&self, from: IpAddr, to: IpAddr) -> (usize, u64) {
        let [from, to] = [from, to].map(|address| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        });
        let halves = [from >> 64, from, to >> 64, to].map(|bits| bits as u64);
        let hash = mix(&halves, self.seed);
        let bucket = hash as usize % BUCKETS * WAYS;
        (bucket, hash >> Word::TAG)
    }

    fn load(&self, at: usize) -> Word {
        Word(self.words[at].load(Ordering::Relaxed))
    }

    fn find(&self, bucket: usize, tag: u64) -> Option<usize> {
        (bucket..bucket + WAYS).find(|&at| {
            let word = self.load(at);
            word.0 != 0 && word.0 >> Word::TAG == tag
        })
    }

    /// A free word of the bucket, or one that has to go.
    fn room(&self, bucket: usize, tag: u64) -> usize {
        let free = (bucket..bucket + WAYS).find(|&at| self.load(at).0 == 0);
        free.unwrap_or(bucket + tag as usize % WAYS)
    }
}

fn minute(now_ms: u64) -> u8 {
    (now_ms / 60_000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: u64 = 60_000;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0af4_0000 + number).into()
    }

    #[test]
    fn the_smaller_of_both_limits_counts() {
        let (a, b) = (address(1), "fd00::2".parse().unwrap());
        let paths = Paths::new(7);
        assert_eq!(paths.limit(a, b, 0), None);
        paths.accept(a, b, Some(1400), 0);
        assert_eq!(paths.limit(a, b, 0), Some(1400));
        assert_eq!(paths.limit(b, a, 0), None, "the other direction");
        assert!(paths.narrow(a, b, 1300, 0));
        assert!(!paths.narrow(a, b, 1350, 0), "longer than known");
        assert!(paths.narrow(a, b, 1290, 0));
        assert_eq!(paths.limit(a, b, 0), Some(1290));
        // The next connection's receiver accepts what comes; the path is the
        // same.
        paths.accept(a, b, None, 0);
        assert_eq!(paths.limit(a, b, 0), Some(1290));
        paths.accept(a, b, Some(1200), 0);
        assert_eq!(paths.limit(a, b, 0), Some(1200));
    }

    #[test]
    fn a_path_is_believed_for_ten_minutes_a_receiver_always() {
        let (a, b) = (address(1), address(2));
        let paths = Paths::new(7);
        paths.accept(a, b, Some(1400), 0);
        paths.narrow(a, b, 1300, 250 * MINUTE_MS);
        assert_eq!(paths.limit(a, b, 259 * MINUTE_MS), Some(1300));
        assert_eq!(paths.limit(a, b, 260 * MINUTE_MS), Some(1400));
        assert!(paths.narrow(a, b, 1350, 261 * MINUTE_MS), "news again");
        assert_eq!(paths.limit(a, b, 261 * MINUTE_MS), Some(1350));
        paths.accept(a, b, None, 271 * MINUTE_MS);
        assert_eq!(paths.limit(a, b, 271 * MINUTE_MS), None);
    }

    #[test]
    fn pairs_displace_each_other_when_there_are_too_many() {
        let paths = Paths::new(7);
        let many = (BUCKETS * WAYS * 2) as u32;
        for number in 0..many {
            paths.accept(address(number), address(0), Some(1000), 0);
            assert_eq!(paths.limit(address(number), address(0), 0), Some(1000));
        }
        let known = (0..many).filter(|n| paths.limit(address(*n), address(0), 0).is_some());
        let known = known.count();
        assert!(
            (BUCKETS * WAYS / 2..=BUCKETS * WAYS).contains(&known),
            "{known}"
        );
    }
}
