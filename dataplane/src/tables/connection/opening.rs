//! Opening connections: an entry, the address and port that the answers come
//! to ([`super::exits`]), and the places in the index.

use super::exits::Exits;
use super::index::{Cell, NoCell};
use super::shard::Shard;
use super::share::Share;
use super::stamp::Stamp;
use super::state::{Origin, Side, State};
use super::tuple::Tuple;
use super::{ConnectionId, Connections, Found, GRACE_MS};
use crate::types::PortId;

/// Expendable entries that are looked at for one that may go.
const VICTIMS: usize = 8;

/// A connection to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// Its first packet's tuple.
    pub original: Tuple,
    /// The pod's port, whose share of the table it takes.
    pub pod: PortId,
    /// What it begins as.
    pub state: State,
    /// Where its sender begins to count, when it is TCP and known.
    pub stamp: Option<Stamp>,
}

/// Why no connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The table, or the part of it for what begins outside, is full of
    /// connections that are worth more.
    TableFull,
    /// The pod has its share of the table.
    PodLimit,
    /// No port is free towards this destination; or the pod talks to the very
    /// end that begins outside, translated.
    NoPort,
    /// Ports are left only for who begins with a SYN, or another lane took
    /// the one that was left.
    NoFreePort,
    /// There is no address of the family to leave with.
    NoAddress,
}

/// What came of putting a connection into the index.
pub(super) enum Published {
    /// With the version that the entry has now, and its answers' tuple.
    Done(u64, Tuple),
    /// The translated tuple belongs to another connection.
    ReplyTaken,
    /// Somebody else opened it a moment ago.
    OriginalTaken(Found),
    Full,
}

/// What tells an entry from damage, by the hashes of both tuples.
pub(super) fn check((original, reply): (u64, u64)) -> u64 {
    original ^ reply.rotate_left(32)
}

impl Connections {
    /// Opens a connection whose answers come to one of the exits. When another
    /// lane opened it just now, that one is found.
    pub fn masquerade(
        &self,
        opening: &Opening,
        exits: &Exits<'_>,
        now_ms: u64,
    ) -> Result<Found, Refused> {
        self.masquerade_hashed(self.hash(&opening.original), opening, exits, now_ms)
    }

    /// As [`Connections::masquerade`], with the first packet's hash from
    /// [`Connections::hash`].
    pub(crate) fn masquerade_hashed(
        &self,
        hash: u64,
        opening: &Opening,
        exits: &Exits<'_>,
        now_ms: u64,
    ) -> Result<Found, Refused> {
        if exits.addresses.len() == 0 {
            return Err(Refused::NoAddress);
        }
        self.open_hashed(hash, opening, (Origin::Pod, now_ms), |entry| {
            self.find_exit((entry, hash), opening, exits, now_ms)
        })
    }

    /// Opens a connection that somebody outside begins with a pod's own
    /// address, and that nobody here translates; its first packet came
    /// `through` the node's own port, or by the uplink. When another lane opened
    /// it just now, that one is found.
    pub fn track(
        &self,
        opening: &Opening,
        through: Option<PortId>,
        now_ms: u64,
    ) -> Result<Found, Refused> {
        let original = opening.original;
        let reply = original.reversed();
        // What the pod sent before this was taken for a beginning, and went to
        // somebody who does not know the address that it came from.
        if let Some(rival) = self.find(&reply, now_ms)
            && (rival.state.is_unanswered() || !rival.is_live)
        {
            self.end(rival.id);
        }
        self.open(opening, Origin::Outside, now_ms, |entry, hash| {
            self.entries.set_through(entry, through);
            Ok(self.publish((entry, hash), &original, &reply, now_ms))
        })
    }

    /// Takes an entry, and gives it back unless `publish` succeeds, which gets
    /// the first packet's hash too.
    pub(super) fn open(
        &self,
        opening: &Opening,
        origin: Origin,
        now_ms: u64,
        publish: impl FnOnce(u32, u64) -> Result<Published, Refused>,
    ) -> Result<Found, Refused> {
        let hash = self.hash(&opening.original);
        self.open_hashed(hash, opening, (origin, now_ms), |entry| {
            publish(entry, hash)
        })
    }

    fn open_hashed(
        &self,
        hash: u64,
        opening: &Opening,
        (origin, now_ms): (Origin, u64),
        publish: impl FnOnce(u32) -> Result<Published, Refused>,
    ) -> Result<Found, Refused> {
        debug_assert_eq!(hash, self.hash(&opening.original));
        let share = Share {
            origin,
            pod: opening.pod,
        };
        let shares = &self.shares;
        let is_counted =
            shares.take(share) || self.evict_of(share, hash, now_ms) && shares.take(share);
        if !is_counted {
            return Err(Refused::PodLimit);
        }
        let Some((shard, entry)) = self.take_entry(hash, origin, now_ms) else {
            shares.uncount(share);
            return Err(Refused::TableFull);
        };
        self.entries.begin(entry, now_ms);
        self.entries.set_state(entry, opening.state, share);
        let refused = match publish(entry) {
            Ok(Published::Done(version, reply)) => {
                self.enlist((shard, entry), version);
                return Ok(Found {
                    id: ConnectionId {
                        entry,
                        version: version as u32,
                    },
                    side: Side::Original,
                    original: opening.original,
                    reply,
                    state: opening.state,
                    mtu: 0,
                    origin,
                    through: self.entries.through(entry),
                    is_live: true,
                });
            }
            Ok(Published::OriginalTaken(found)) => Ok(found),
            Ok(Published::Full) => Err(Refused::TableFull),
            Ok(Published::ReplyTaken) => Err(Refused::NoPort),
            Err(refused) => Err(refused),
        };
        shares.uncount(share);
        let shard = self.shards.lock(shard, &self.entries);
        shard.give(entry);
        refused
    }

    /// Makes the entry a connection, found by both tuples; `there` is the hash
    /// of the original one.
    pub(super) fn publish(
        &self,
        (entry, there): (u32, u64),
        original: &Tuple,
        reply: &Tuple,
        now_ms: u64,
    ) -> Published {
        let back = self.hash(reply);
        self.index.ask(back);
        let version = self
            .entries
            .write(entry, original, reply, check((there, back)));
        let reply_cell = Cell::new(back, Side::Reply, entry);
        let put = self
            .index
            .insert(back, reply_cell, |cell| self.confirm(cell, reply, now_ms));
        if let Err(no) = put {
            self.entries.retire(entry);
            return match no {
                NoCell::Taken(_) => Published::ReplyTaken,
                NoCell::Full => Published::Full,
            };
        }
        let cell = Cell::new(there, Side::Original, entry);
        let put = self
            .index
            .insert(there, cell, |cell| self.confirm(cell, original, now_ms));
        let Err(no) = put else {
            self.count_echo(entry, reply, true);
            return Published::Done(version, *reply);
        };
        self.index.remove(back, reply_cell);
        self.entries.retire(entry);
        match no {
            NoCell::Taken(found) => Published::OriginalTaken(found),
            NoCell::Full => Published::Full,
        }
    }

    /// The hash's own shard, and those that stand in for it.
    fn candidates(&self, hash: u64) -> impl Iterator<Item = usize> {
        let own = (hash >> 34) as usize;
        // A power of two.
        let count = self.shard_count;
        (0..4.min(count)).map(move |step| (own + step) & (count - 1))
    }

    /// A free entry, of the hash's own shard when that has one; with its shard.
    pub(super) fn take_entry(
        &self,
        hash: u64,
        origin: Origin,
        now_ms: u64,
    ) -> Option<(usize, u32)> {
        let take = |number: usize| {
            let entry = self.shards.lock(number, &self.entries).take(origin);
            entry.map(|entry| (number, entry))
        };
        self.candidates(hash).find_map(take).or_else(|| {
            self.candidates(hash).find_map(|number| {
                let shard = self.shards.lock(number, &self.entries);
                self.make_room(&shard, origin, now_ms);
                shard.take(origin).map(|entry| (number, entry))
            })
        })
    }

    /// Makes room by an expendable connection that may go: one that began
    /// outside, and only for a pod's one of a pod's.
    fn make_room(&self, shard: &Shard<'_>, origin: Origin, now_ms: u64) {
        let _ = self.evict(shard, Origin::Outside, now_ms, |_| true)
            || origin == Origin::Pod && self.evict(shard, origin, now_ms, |_| true);
    }

    /// Makes room in a pod's share of what begins outside. Of its own a pod
    /// may use up its share.
    fn evict_of(&self, share: Share, hash: u64, now_ms: u64) -> bool {
        let is_its = |entry: u32| self.entries.share(entry) == share;
        share.origin == Origin::Outside
            && self.candidates(hash).any(|shard| {
                let shard = self.shards.lock(shard, &self.entries);
                self.evict(&shard, share.origin, now_ms, is_its)
            })
    }

    /// Removes the oldest expendable connection that may go, of those that
    /// `is_it` names.
    fn evict(
        &self,
        shard: &Shard<'_>,
        origin: Origin,
        now_ms: u64,
        is_it: impl Fn(u32) -> bool,
    ) -> bool {
        let may_go = |entry: &u32| {
            let idle_ms = now_ms.saturating_sub(self.entries.seen_ms(*entry));
            let state = self.entries.state(*entry);
            is_it(*entry) && (idle_ms > GRACE_MS || state.is_some_and(State::is_half_open))
        };
        let victim = shard.expendable(origin).take(VICTIMS).find(may_go);
        if let Some(entry) = victim {
            self.remove(shard, entry);
        }
        victim.is_some()
    }
}
