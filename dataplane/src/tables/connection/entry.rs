//! What the table keeps of one connection: 24 words.
//!
//! ```text
//! 0 version     odd while live; counts up twice for each use of the entry
//! 1 state       state 8 | who began it 8 | pod's port 16
//! 2 seen_ms     last packet
//! 3 opened_ms   first packet
//! 4 packets
//! 5 wheel       previous 32 | next 32
//! 6 queue       previous 32 | next 32
//! 7 claim       masquerade's port, + 1; 0 without one
//! 8..12         original source and destination
//! 12..16        reply source and destination
//! 16 ports      original source | destination | reply source | destination
//! 17 protocol
//! 18 mtu         longest packet that the original sender may send; 0 unknown
//! 19 check       of both tuples, for who finds the entry in a file
//! 20 through     the node's port that it came by, + 1; 0 for others
//! 21..23 last    how far its original sender came; 0 unknown
//! ```
//!
//! Words without a use are 0, also in a file: one that gets a use in which 0
//! says nothing leaves the layout as it is.
//!
//! Tuples are written while the version is even and the entry is one lane's
//! alone; who reads them reads the version before and after. So an entry is
//! whole at any instant at which the process may be killed.

use super::share::Share;
use super::stamp::Stamp;
use super::state::{Origin, State};
use super::tuple::{Address, End, Tuple};
use super::words::{Memory, Words};
use crate::sync::{AtomicU64, Ordering};
use crate::types::PortId;

pub(super) const WORDS: usize = 24;

/// Words of a cache line; an entry is three.
const LINE: usize = 8;

/// Words before the first entry; a page, which a file's header fills.
pub(super) const HEADER: usize = 512;

/// Tells this layout from others in a file. Count it up with every change of
/// the words, of [`State`]'s numbers or of the header.
pub(super) const LAYOUT: u64 = 2;

const VERSION: usize = 0;
const STATE: usize = 1;
const SEEN: usize = 2;
const OPENED: usize = 3;
const PACKETS: usize = 4;
pub(super) const WHEEL: usize = 5;
pub(super) const QUEUE: usize = 6;
const CLAIM: usize = 7;
const TUPLES: usize = 8;
const PORTS: usize = 16;
const PROTOCOL: usize = 17;
const MTU: usize = 18;
const CHECK: usize = 19;
const THROUGH: usize = 20;
const LAST: usize = 21;

/// The entries.
#[derive(Debug)]
pub(super) struct Entries(Words);

/// Both directions of a connection, and which use of the entry it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) version: u64,
    pub(super) original: Tuple,
    pub(super) reply: Tuple,
}

impl Entries {
    pub(super) fn new(count: usize) -> Entries {
        Entries(Words::new(HEADER + count * WORDS))
    }

    /// In memory that begins with a header.
    pub(super) fn over(memory: Memory) -> Entries {
        Entries(Words::over(memory))
    }

    /// Makes sure that there is memory for so many entries from `first` on.
    #[cfg(not(loom))]
    pub(super) fn back(&self, first: u32, count: u32) -> bool {
        let first = HEADER + first as usize * WORDS;
        let memory = self.0.memory();
        memory.back(first, count as usize * WORDS).is_ok()
    }

    #[cfg(loom)]
    pub(super) fn back(&self, _first: u32, _count: u32) -> bool {
        true
    }

    #[inline]
    fn word(&self, entry: u32, word: usize) -> &AtomicU64 {
        self.0.at(HEADER + entry as usize * WORDS + word)
    }

    /// All words of an entry.
    #[inline]
    fn words(&self, entry: u32) -> &[AtomicU64; WORDS] {
        self.0.run(HEADER + entry as usize * WORDS)
    }

    /// Asks for the words of an entry that is used soon.
    #[inline]
    pub(super) fn ask(&self, entry: u32) {
        let first = HEADER + entry as usize * WORDS;
        for line in (0..WORDS).step_by(LINE) {
            self.0.prefetch(first + line);
        }
    }

    /// A word that the entry's shard lock guards, or that needs no order.
    pub(super) fn get(&self, entry: u32, word: usize) -> u64 {
        self.0.get(HEADER + entry as usize * WORDS + word)
    }

    pub(super) fn set(&self, entry: u32, word: usize, value: u64) {
        self.0.set(HEADER + entry as usize * WORDS + word, value);
    }

    /// The version now; odd for a live connection.
    #[inline]
    pub(super) fn version(&self, entry: u32) -> u64 {
        // Acquire: tuples read afterwards are this version's or later ones'.
        self.word(entry, VERSION).load(Ordering::Acquire)
    }

    /// Writes the tuples of a connection that is not live, and makes it so.
    pub(super) fn write(&self, entry: u32, original: &Tuple, reply: &Tuple, check: u64) -> u64 {
        let ends = [
            original.source,
            original.destination,
            reply.source,
            reply.destination,
        ];
        // Release, each: a reader that sees one of these sees, too, that the
        // version before them was even.
        let words = self.words(entry);
        let put = |word: usize, value: u64| words[word].store(value, Ordering::Release);
        let mut ports = 0;
        for (number, end) in ends.iter().enumerate() {
            put(TUPLES + 2 * number, end.address.0[0]);
            put(TUPLES + 2 * number + 1, end.address.0[1]);
            ports = ports << 16 | u64::from(end.port);
        }
        put(PORTS, ports);
        put(PROTOCOL, u64::from(original.protocol));
        put(CHECK, check);
        // Relaxed: the entry is the caller's alone.
        let version = words[VERSION].load(Ordering::Relaxed) + 1;
        debug_assert_eq!(version & 1, 1);
        // Release: the tuples go before.
        put(VERSION, version);
        version
    }

    /// Ends the entry's use; ids of it are void from now on.
    pub(super) fn retire(&self, entry: u32) {
        let version = self.get(entry, VERSION);
        debug_assert_eq!(version & 1, 1);
        // Release: whoever reuses the entry writes after this.
        self.word(entry, VERSION)
            .store(version + 1, Ordering::Release);
    }

    /// The tuples of a live connection; `None` when it is not live or changed
    /// hands meanwhile.
    #[inline]
    pub(super) fn read(&self, entry: u32) -> Option<Pair> {
        let words = self.words(entry);
        // Acquire, each: see `version` and `write`.
        let get = |word: usize| words[word].load(Ordering::Acquire);
        let version = get(VERSION);
        if version & 1 == 0 {
            return None;
        }
        let ports = get(PORTS);
        let end = |number: usize| End {
            address: Address([get(TUPLES + 2 * number), get(TUPLES + 2 * number + 1)]),
            port: (ports >> (48 - 16 * number)) as u16,
        };
        let protocol = get(PROTOCOL) as u8;
        let tuple = |source, destination| Tuple {
            source,
            destination,
            protocol,
        };
        let pair = Pair {
            version,
            original: tuple(end(0), end(1)),
            reply: tuple(end(2), end(3)),
        };
        (get(VERSION) == version).then_some(pair)
    }

    /// The protocol of a connection that stays live meanwhile.
    #[inline]
    pub(super) fn protocol(&self, entry: u32) -> u8 {
        self.get(entry, PROTOCOL) as u8
    }

    /// The state; `None` for an entry that never had one.
    #[inline]
    pub(super) fn state(&self, entry: u32) -> Option<State> {
        State::from_number(self.get(entry, STATE) as u8)
    }

    /// Whose share of the table it takes.
    pub(super) fn share(&self, entry: u32) -> Share {
        let word = self.get(entry, STATE);
        Share {
            origin: Origin::from_number((word >> 8) as u8),
            pod: PortId((word >> 16) as u16),
        }
    }

    /// Who began it.
    pub(super) fn origin(&self, entry: u32) -> Origin {
        self.share(entry).origin
    }

    pub(super) fn set_state(&self, entry: u32, state: State, share: Share) {
        let Share { origin, pod } = share;
        let word = state as u64 | (origin as u64) << 8 | u64::from(pod.0) << 16;
        self.set(entry, STATE, word);
    }

    /// What [`Entries::write`] was given to tell tuples from damage by.
    pub(super) fn check(&self, entry: u32) -> u64 {
        self.get(entry, CHECK)
    }

    /// When the last packet came.
    #[inline]
    pub(super) fn seen_ms(&self, entry: u32) -> u64 {
        self.get(entry, SEEN)
    }

    #[inline]
    pub(super) fn see(&self, entry: u32, now_ms: u64, packets: u64) {
        self.set(entry, SEEN, now_ms);
        // Two lanes that count at once may lose some: it is for people.
        let before = self.get(entry, PACKETS);
        self.set(entry, PACKETS, before.wrapping_add(packets));
    }

    pub(super) fn packets(&self, entry: u32) -> u64 {
        self.get(entry, PACKETS)
    }

    pub(super) fn opened_ms(&self, entry: u32) -> u64 {
        self.get(entry, OPENED)
    }

    /// Sets what a new connection begins with.
    pub(super) fn begin(&self, entry: u32, now_ms: u64) {
        let words = self.words(entry);
        let begins = [
            (OPENED, now_ms),
            (SEEN, now_ms),
            (PACKETS, 1),
            (CLAIM, 0),
            (MTU, 0),
            (THROUGH, 0),
            (LAST, 0),
            (LAST + 1, 0),
        ];
        for (word, value) in begins {
            // Relaxed: the entry is the caller's alone.
            words[word].store(value, Ordering::Relaxed);
        }
    }

    /// Goes on with what another table had of the connection.
    pub(super) fn take_over(&self, entry: u32, other: &Entries, from: u32) {
        for word in [SEEN, OPENED, PACKETS, MTU, THROUGH, LAST, LAST + 1] {
            self.set(entry, word, other.get(from, word));
        }
    }

    /// The node's own port, when the first packet came by that.
    pub(super) fn through(&self, entry: u32) -> Option<PortId> {
        let number = self.get(entry, THROUGH).checked_sub(1)?;
        u16::try_from(number).ok().map(PortId)
    }

    pub(super) fn set_through(&self, entry: u32, port: Option<PortId>) {
        self.set(entry, THROUGH, port.map_or(0, |port| u64::from(port.0) + 1));
    }

    /// Longest packet that the original sender may send; 0 when unknown.
    pub(super) fn mtu(&self, entry: u32) -> u16 {
        self.get(entry, MTU) as u16
    }

    pub(super) fn set_mtu(&self, entry: u32, mtu: u16) {
        self.set(entry, MTU, u64::from(mtu));
    }

    /// How far the original sender came, as far as that was noted.
    pub(super) fn last(&self, entry: u32) -> Option<Stamp> {
        Stamp::from_words([self.get(entry, LAST), self.get(entry, LAST + 1)])
    }

    pub(super) fn set_last(&self, entry: u32, last: Stamp) {
        let [sequence, timestamp] = last.to_words();
        self.set(entry, LAST, sequence);
        self.set(entry, LAST + 1, timestamp);
    }

    pub(super) fn claim(&self, entry: u32) -> Option<u32> {
        (self.get(entry, CLAIM) as u32).checked_sub(1)
    }

    pub(super) fn set_claim(&self, entry: u32, claim: Option<u32>) {
        self.set(entry, CLAIM, claim.map_or(0, |claim| u64::from(claim) + 1));
    }
}
