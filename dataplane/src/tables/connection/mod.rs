//! The node's connections, one table for all lanes.
//!
//! A connection is found by either direction's tuple. Its entry, its place in
//! the index and in the timers are indices into a few arrays of 64-bit words
//! (`words`): there are no pointers, and nothing is allocated after the
//! start. The size is fixed, and each pod may hold half of it at most.
//!
//! Those that pods begin are translated. Those that somebody outside begins
//! towards a pod's own address are not, and are here so that the pod's answers
//! are not either. They take half of the table at most, a quarter for one pod,
//! and are the first to go under pressure; a pod's never goes for one of them.
//!
//! # Who may do what at the same time
//!
//! - **Looking up and refreshing** take no lock and may run on any thread.
//!   A cell of the index is loaded with *acquire* and was stored with
//!   *release*, so the entry it names was written before. Tuples are written
//!   only while the entry's version is even; each of their words is stored
//!   with *release* and loaded with *acquire*, and the version is read before
//!   and after them, so a reader that sees a word of the next use of the entry
//!   sees that the version moved on, and finds nothing.
//! - **Opening** is for any thread. An entry is taken from a shard under the
//!   shard's lock, and is the opener's alone until it stands in the index.
//!   Each tuple is put into the index under the lock of its index shard, which
//!   also finds out whether it is there already: two openers of one tuple, or
//!   two that want one translated tuple, cannot both succeed.
//! - **Changing state, expiring, evicting** happen under the lock of the
//!   entry's shard; the latter two only for entries on the shard's wheel. One
//!   that is still being opened is not there yet: it may change its state, but
//!   its opener alone, who reads that afterwards, puts it into the lists.
//! - Locks are spin locks, held for tens of instructions. The shard's is taken
//!   before the index's, never after, and never two of a kind.
//! - An id is an entry and the version that it was made with; a later use of
//!   the entry has another version, so an old id finds nothing. Between that
//!   check and the store of a time the entry may change hands; the new
//!   connection then looks a moment younger, which is harmless.
//!
//! # Flows that carry a translation
//!
//! A lane's flow refreshes its connection at most [`REFRESH_MS`] after the
//! last time, and checks the id then. No connection that a flow may use is
//! removed before it was left alone for twice that time. Those that are over
//! give way at once, but packets that begin or end a TCP connection void its
//! flows. So a flow never translates for a connection whose port went to
//! another.

pub(crate) mod echoes;
mod entry;
mod exits;
mod index;
#[cfg(not(loom))]
mod kept;
#[cfg(all(test, loom))]
mod loom_tests;
mod opening;
mod ports;
mod record;
mod shard;
mod share;
mod stamp;
mod state;
mod stride;
#[cfg(all(test, not(loom)))]
mod tests;
mod tuple;
mod words;

#[cfg(not(loom))]
use crate::tables::paths::Paths;
use crate::types::PortId;
use crate::wire::protocol;
use echoes::Echoes;
use entry::{Entries, Pair, WHEEL};
use exits::Crowded;
pub use exits::{Addresses, Exits};
use index::{Cell, Index};
#[cfg(not(loom))]
pub use kept::{Kept, KeptError, Unusable};
pub use opening::{Opening, Refused};
use ports::Holders;
pub use record::ConnectionRecord;
use shard::{Shard, Shards};
use share::Shares;
use stride::Stride;

pub use stamp::Stamp;
pub use state::{Origin, Side, State};
pub use tuple::{Address, End, Tuple};

/// How often a flow in use refreshes its connection, in milliseconds.
pub const REFRESH_MS: u32 = 1000;

/// A connection that a flow may use stays this long after its last packet.
const GRACE_MS: u64 = 2 * REFRESH_MS as u64;

/// Entries that one call of [`Connections::advance`] looks at.
const ADVANCE: usize = 32;

/// Connections of an earlier process, until it is known whose pods are there.
const UNSETTLED: PortId = PortId(PortId::LIMIT as u16);

/// Names one connection for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionId {
    entry: u32,
    version: u32,
}

impl ConnectionId {
    /// As two numbers, to be kept in a flow.
    pub const fn to_parts(self) -> [u32; 2] {
        [self.entry, self.version]
    }

    /// From [`ConnectionId::to_parts`].
    pub const fn from_parts([entry, version]: [u32; 2]) -> ConnectionId {
        ConnectionId { entry, version }
    }
}

/// A connection as a packet finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: ConnectionId,
    /// The direction that the packet has.
    pub side: Side,
    /// The tuple of the first packet, as its sender sent it.
    pub original: Tuple,
    /// The tuple of the answers, as they arrive.
    pub reply: Tuple,
    /// Where it stands.
    pub state: State,
    /// Longest packet that the original sender may send; 0 when unknown.
    pub mtu: u16,
    /// Who began it; what somebody outside did is not translated.
    pub origin: Origin,
    /// The node's own port, when the first packet came by that: the node's
    /// kernel may have translated it, and has to see the answers.
    pub through: Option<PortId>,
    /// Whether its time is not over. One whose time is over is as good as
    /// gone, except for [`Connections::renew`].
    pub is_live: bool,
}

impl Found {
    /// Whether the packet is one that the pod sends.
    pub fn is_pods_way(&self) -> bool {
        self.origin.is_pods(self.side)
    }
}

/// The table.
#[derive(Debug)]
pub struct Connections {
    seed: u64,
    capacity: usize,
    shard_count: usize,
    index: Index,
    entries: Entries,
    shards: Shards,
    holders: Holders,
    crowded: Crowded,
    stride: Stride,
    echoes: Echoes,
    shares: Shares,
    #[cfg(not(loom))]
    paths: Paths,
}

#[cfg(not(loom))]
impl Default for Connections {
    /// A table of the default size.
    fn default() -> Connections {
        Connections::new(Connections::DEFAULT_CAPACITY, kept::fresh_seed())
    }
}

/// How many connections fit, and into how many shards.
#[derive(Debug, Clone, Copy)]
struct Size {
    shards: usize,
    per_shard: usize,
}

impl Size {
    /// For so many connections, rounded up.
    fn of(capacity: usize) -> Size {
        let shards = (capacity / 64).clamp(1, 64).next_power_of_two();
        let per_shard = capacity.div_ceil(shards).max(1);
        Size { shards, per_shard }
    }

    fn capacity(self) -> usize {
        self.shards * self.per_shard
    }
}

impl Connections {
    /// Connections that a table has by default.
    pub const DEFAULT_CAPACITY: usize = 1 << 18;

    /// An empty table for so many connections, rounded up; `seed` keeps
    /// outsiders from aiming at one bucket.
    ///
    /// # Panics
    /// When the address space has no room for it.
    pub fn new(capacity: usize, seed: u64) -> Connections {
        let size = Size::of(capacity);
        Connections::over(Entries::new(size.capacity()), size, seed)
    }

    /// An empty table whose entries, all zero, lie somewhere already.
    fn over(entries: Entries, size: Size, seed: u64) -> Connections {
        let (capacity, shard_count) = (size.capacity(), size.shards);
        Connections {
            seed,
            capacity,
            shard_count,
            index: Index::new(capacity, shard_count),
            entries,
            shards: Shards::new(shard_count, size.per_shard as u32),
            holders: Holders::new(seed.rotate_left(32)),
            crowded: Crowded::new(),
            stride: Stride::new(),
            echoes: Echoes::new(),
            shares: Shares::new(capacity),
            #[cfg(not(loom))]
            paths: Paths::new(seed),
        }
    }

    /// What is known of paths by those whose address nobody translates.
    #[cfg(not(loom))]
    #[inline]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Connections that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Connections in the table now.
    pub fn len(&self) -> usize {
        self.begun_by(Origin::Pod) + self.begun_by(Origin::Outside)
    }

    /// How many of them began there.
    pub fn begun_by(&self, origin: Origin) -> usize {
        let live = (0..self.shard_count).map(|shard| self.shards.live(shard, origin));
        live.sum::<u64>() as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The hash of a tuple, for who looks it up and opens it.
    #[inline]
    pub(crate) fn hash(&self, tuple: &Tuple) -> u64 {
        tuple.hash(self.seed)
    }

    /// Asks for what a lookup of the tuple will read.
    #[inline]
    pub fn ask(&self, tuple: &Tuple) {
        self.index.ask(self.hash(tuple));
    }

    /// The connection that a packet's tuple belongs to.
    #[inline]
    pub fn find(&self, tuple: &Tuple, now_ms: u64) -> Option<Found> {
        self.find_hashed(self.hash(tuple), tuple, now_ms)
    }

    /// As [`Connections::find`], with the tuple's hash.
    #[inline]
    pub(crate) fn find_hashed(&self, hash: u64, tuple: &Tuple, now_ms: u64) -> Option<Found> {
        self.index
            .find(hash, |cell| self.confirm(cell, tuple, now_ms))
    }

    fn confirm(&self, cell: Cell, tuple: &Tuple, now_ms: u64) -> Option<Found> {
        let entry = cell.entry();
        let pair = self.entries.read(entry)?;
        let (side, named) = match cell.side() {
            Side::Original => (Side::Original, &pair.original),
            Side::Reply => (Side::Reply, &pair.reply),
        };
        (named == tuple)
            .then(|| self.found(entry, &pair, side, now_ms))
            .flatten()
    }

    fn found(&self, entry: u32, pair: &Pair, side: Side, now_ms: u64) -> Option<Found> {
        let state = self.entries.state(entry)?;
        let due_ms = self.entries.seen_ms(entry) + state.timeout_ms(pair.original.protocol);
        Some(Found {
            id: ConnectionId {
                entry,
                version: pair.version as u32,
            },
            side,
            original: pair.original,
            reply: pair.reply,
            state,
            mtu: self.entries.mtu(entry),
            origin: self.entries.origin(entry),
            through: self.entries.through(entry),
            is_live: due_ms > now_ms,
        })
    }

    /// Puts a connection that stands in the index on the timers, as its state
    /// is by now.
    #[inline]
    fn enlist(&self, (shard, entry): (usize, u32), version: u64) {
        let shard = self.shards.lock(shard, &self.entries);
        if self.entries.version(entry) == version {
            self.reschedule(&shard, entry);
        }
    }

    /// Where a live connection's state and time have it stand.
    #[inline]
    fn reschedule(&self, shard: &Shard<'_>, entry: u32) {
        let Some(state) = self.entries.state(entry) else {
            return;
        };
        let timeout_ms = state.timeout_ms(self.entries.protocol(entry));
        shard.schedule(entry, self.entries.seen_ms(entry) + timeout_ms);
        shard.set_expendable(entry, state.is_expendable());
    }

    /// Takes a connection out of everything.
    fn remove(&self, shard: &Shard<'_>, entry: u32) {
        let Some(pair) = self.entries.read(entry) else {
            return;
        };
        for (tuple, side) in [(&pair.original, Side::Original), (&pair.reply, Side::Reply)] {
            let hash = tuple.hash(self.seed);
            self.index.remove(hash, Cell::new(hash, side, entry));
        }
        shard.unschedule(entry);
        shard.set_expendable(entry, false);
        self.shares.uncount(self.entries.share(entry));
        self.count_echo(entry, &pair.reply, false);
        if let Some(place) = self.entries.claim(entry) {
            self.holders.release(place);
        }
        self.entries.retire(entry);
        shard.give(entry);
    }

    /// Notes a packet of a connection (or several of one flow): its time, and
    /// what its TCP flags do to the state. `None` when the connection is gone
    /// or its time is over.
    #[inline]
    pub fn follow(
        &self,
        id: ConnectionId,
        side: Side,
        tcp_flags: u8,
        packets: u64,
        now_ms: u64,
    ) -> Option<State> {
        if self.entries.version(id.entry) as u32 != id.version {
            return None;
        }
        let state = self.entries.state(id.entry)?;
        let age_ms = now_ms.saturating_sub(self.entries.opened_ms(id.entry));
        let origin = self.entries.origin(id.entry);
        let after = |state: State| state.after(side, origin, tcp_flags, age_ms);
        if after(state) == state {
            self.entries.see(id.entry, now_ms, packets);
            return Some(state);
        }
        self.change(id, now_ms, packets, after)
    }

    /// Notes the longest packet that the original sender may send, when that
    /// is shorter than what is known. Returns whether it was.
    pub fn limit(&self, id: ConnectionId, mtu: u16) -> bool {
        let known = self.mtu(id);
        let is_news = known == 0 || mtu < known;
        if is_news && self.entries.version(id.entry) as u32 == id.version {
            self.entries.set_mtu(id.entry, mtu);
        }
        is_news
    }

    /// Notes how far the original sender of a connection that is over came.
    pub fn note_last(&self, id: ConnectionId, last: Stamp) {
        if self.entries.version(id.entry) as u32 == id.version {
            self.entries.set_last(id.entry, last);
        }
    }

    /// Longest packet that the original sender may send; 0 when unknown.
    pub fn mtu(&self, id: ConnectionId) -> u16 {
        self.entries.mtu(id.entry)
    }

    /// The node's own port, when the first packet came by that.
    pub fn through(&self, id: ConnectionId) -> Option<PortId> {
        let is_its = self.entries.version(id.entry) as u32 == id.version;
        self.entries.through(id.entry).filter(|_| is_its)
    }

    /// Begins a connection anew whose time was over and whose ends and ports
    /// are the same.
    pub fn renew(&self, id: ConnectionId, state: State, now_ms: u64) -> Option<State> {
        self.change(id, now_ms, 1, |_| state)
    }

    fn change(
        &self,
        id: ConnectionId,
        now_ms: u64,
        packets: u64,
        next: impl FnOnce(State) -> State,
    ) -> Option<State> {
        let shard = self.shards.lock(self.shards.of(id.entry), &self.entries);
        if self.entries.version(id.entry) as u32 != id.version {
            return None;
        }
        let state = next(self.entries.state(id.entry)?);
        self.entries
            .set_state(id.entry, state, self.entries.share(id.entry));
        self.entries.see(id.entry, now_ms, packets);
        // One that is still being opened may come to nothing, and be given back
        // as one that stands in no list.
        if self.entries.get(id.entry, WHEEL) != 0 {
            self.reschedule(&shard, id.entry);
        }
        Some(state)
    }

    /// Ends a connection, whatever its state. Whether this call did.
    pub fn end(&self, id: ConnectionId) -> bool {
        let shard = self.shards.lock(self.shards.of(id.entry), &self.entries);
        let is_its = self.entries.version(id.entry) as u32 == id.version
            && self.entries.get(id.entry, WHEEL) != 0;
        if is_its {
            self.remove(&shard, id.entry);
        }
        is_its
    }

    /// Removes what is overdue in the next shard; bounded work, for every
    /// batch. `turn` is the caller's, and remembers where it was.
    #[inline]
    pub fn advance(&self, turn: &mut usize, now_ms: u64) {
        *turn = (*turn + 1) & (self.shard_count - 1);
        let second = now_ms / 1000;
        if let Some(shard) = self.shards.lock_due(*turn, &self.entries, second) {
            self.turn_wheel(&shard, second, now_ms);
        }
    }

    #[cold]
    fn turn_wheel(&self, shard: &Shard<'_>, second: u64, now_ms: u64) {
        shard.catch_up(second);
        let mut looked_at = 0;
        while shard.second() < second && looked_at < ADVANCE {
            let Some(entry) = shard.next_due() else {
                continue;
            };
            looked_at += 1;
            let state = self.entries.state(entry);
            let pair = self.entries.read(entry);
            let Some((state, pair)) = state.zip(pair) else {
                continue;
            };
            let due_ms = self.entries.seen_ms(entry) + state.timeout_ms(pair.original.protocol);
            match due_ms > now_ms {
                true => shard.schedule(entry, due_ms),
                false => self.remove(shard, entry),
            }
        }
    }

    /// Removes every connection of a pod that is gone, by its port. Takes time
    /// by the size of the table; for control.
    pub fn forget(&self, pod: PortId) {
        for shard in 0..self.shard_count {
            for entry in self.shards.used(shard) {
                let is_its =
                    || self.entries.version(entry) & 1 == 1 && self.entries.share(entry).pod == pod;
                if !is_its() {
                    continue;
                }
                let shard = self.shards.lock(shard, &self.entries);
                // Asked again: it may have changed hands before the lock.
                if is_its() && self.entries.get(entry, WHEEL) != 0 {
                    self.remove(&shard, entry);
                }
            }
        }
    }

    /// Notes that an echo identifier is given out, or no more. What began
    /// outside was given none.
    fn count_echo(&self, entry: u32, reply: &Tuple, is_more: bool) {
        let is_echo = matches!(reply.protocol, protocol::ICMP | protocol::ICMPV6);
        if is_echo && self.entries.origin(entry) == Origin::Pod {
            self.echoes.count(reply.destination.port, is_more);
        }
    }

    /// Lets the uplink's program read which echo identifiers are given out.
    #[cfg(not(loom))]
    pub(crate) fn show_echoes(&self, program: crate::mapped_bytes::MappedBytes) {
        self.echoes.show(program);
    }

    /// Connections that one pod may have, of those that began there.
    pub fn pod_limit(&self, origin: Origin) -> usize {
        self.shares.limit(origin)
    }
}
