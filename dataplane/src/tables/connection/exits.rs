//! The address and port that a connection leaves with.
//!
//! An end inside has the port that it holds or can hold (`ports`), else any
//! that is free towards its destination. When none is, one whose connection is
//! over serves again: best one that has been quiet, and of which the peer can
//! tell the newcomer's SYN from the old connection ([`Stamp::is_after`]), since
//! it may remember that.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::opening::{Opening, Published, Refused};
use super::stamp::Stamp;
use super::state::State;
use super::tuple::{Address, End, Tuple};
use super::words::Words;
use super::{ConnectionId, Connections, Found};

/// Ports that are tried for one connection when ends share ports: all the
/// dynamic ones (RFC 6335, section 6), of a wider range a part, and another
/// one the next time.
const TRIES: usize = 16_384;

/// Ports in use that are passed by before one is taken whose connection is
/// over.
const PASSED_BY: usize = 64;

/// Destinations that are known to be crowded; more share.
#[cfg(not(loom))]
const CROWDED: usize = 64;
#[cfg(loom)]
const CROWDED: usize = 1;

/// How long no ports in use are passed by towards a crowded one.
const CROWDED_MS: u64 = 100;

/// How long a peer's last words are under way: a round trip around the world
/// is rarely longer.
const UNDER_WAY_MS: u64 = 100;

/// How long a reset may turn out to be forged, because both ends go on (as
/// long as `nf_conntrack_tcp_timeout_close`).
const RESET_MS: u64 = 10_000;

/// Addresses and ports that masquerade may leave with.
#[derive(Debug, Clone, Copy)]
pub struct Exits<'a> {
    /// The addresses.
    pub addresses: Addresses<'a>,
    /// The ports, and echo identifiers.
    pub ports: &'a RangeInclusive<u16>,
}

/// Addresses of one family.
#[derive(Debug, Clone, Copy)]
pub enum Addresses<'a> {
    /// IPv4.
    V4(&'a [Ipv4Addr]),
    /// IPv6.
    V6(&'a [Ipv6Addr]),
}

impl Addresses<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Addresses::V4(addresses) => addresses.len(),
            Addresses::V6(addresses) => addresses.len(),
        }
    }

    fn get(&self, index: usize) -> Address {
        match self {
            Addresses::V4(addresses) => Address::v4(addresses[index].octets()),
            Addresses::V6(addresses) => Address::v6(addresses[index].octets()),
        }
    }
}

/// Destinations towards which hardly a port is free, as the times until when
/// that is believed. They publish nothing, so every access is relaxed.
#[derive(Debug)]
pub(super) struct Crowded(Words);

impl Crowded {
    pub(super) fn new() -> Crowded {
        Crowded(Words::new(CROWDED))
    }

    fn has(&self, place: usize, now_ms: u64) -> bool {
        self.0.get(place) > now_ms
    }

    fn note(&self, place: usize, now_ms: u64) {
        self.0.set(place, now_ms + CROWDED_MS);
    }
}

/// A port in use whose connection is over.
struct Over {
    id: ConnectionId,
    reply: Tuple,
    fit: Fit,
}

/// How well such a port fits, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// The peer, which may remember the connection, would not believe the
    /// newcomer.
    Disbelieved,
    /// The peer's last words to the old connection may be under way, and would
    /// come to the newcomer; or it was reset, and may go on all the same.
    Fresh,
    /// Nothing is in the way.
    Good,
}

impl Connections {
    /// Tries exits until one is free: first the port that the end inside
    /// holds or can hold, then any that is free towards this destination.
    pub(super) fn find_exit(
        &self,
        new: (u32, u64),
        opening: &Opening,
        exits: &Exits<'_>,
        now_ms: u64,
    ) -> Result<Published, Refused> {
        let original = &opening.original;
        let count = exits.addresses.len();
        let inside = original.source;
        // An end's connections leave by one address (RFC 4787, REQ-2).
        let home = match count {
            1 => 0,
            _ => End { port: 0, ..inside }.hash(0, self.seed) as usize % count,
        };
        let addresses = || {
            let numbers = (home..count).chain(0..home);
            numbers.map(|number| exits.addresses.get(number))
        };
        for address in addresses() {
            let protocol = original.protocol;
            let claim = self.holders.claim(protocol, inside, address, exits.ports);
            let Some(claim) = claim else {
                continue;
            };
            let reply = answers(original, address, claim.port);
            match self.publish(new, original, &reply, now_ms) {
                done @ Published::Done(..) => {
                    self.entries.set_claim(new.0, Some(claim.place));
                    return Ok(done);
                }
                Published::ReplyTaken => self.holders.release(claim.place),
                other => {
                    self.holders.release(claim.place);
                    return Ok(other);
                }
            }
        }
        let mut over = None;
        for address in addresses() {
            let exit = (address, exits.ports);
            if let Some(free) = self.share_exit(new, opening, exit, (&mut over, now_ms)) {
                return Ok(free);
            }
        }
        let over = over.ok_or(Refused::NoPort)?;
        // What is left of a connection begins none for its peer, and it would
        // be forgotten what that remembers.
        if opening.state == State::PickedUp {
            return Err(Refused::NoFreePort);
        }
        self.end(over.id);
        match self.publish(new, original, &over.reply, now_ms) {
            // Another lane was faster.
            Published::ReplyTaken => Err(Refused::NoFreePort),
            other => Ok(other),
        }
    }

    /// Tries ports of an address one after the other; `None` when it finds none
    /// that is free, and what it found instead in `over`.
    fn share_exit(
        &self,
        new: (u32, u64),
        opening: &Opening,
        (address, ports): (Address, &RangeInclusive<u16>),
        (over, now_ms): (&mut Option<Over>, u64),
    ) -> Option<Published> {
        let original = &opening.original;
        let first = *ports.start();
        let range = usize::from(*ports.end() - first) + 1;
        let start = original.hash(self.seed.rotate_left(17) ^ now_ms) as usize % range;
        let stride = self.stride.of(range);
        let place = original.destination.hash(original.protocol, self.seed) as usize % CROWDED;
        let is_crowded = self.crowded.has(place, now_ms);
        for step in 0..range.min(TRIES) {
            let port = first + ((start + step * stride) % range) as u16;
            let reply = answers(original, address, port);
            let Some(holder) = self.find(&reply, now_ms) else {
                match self.publish(new, original, &reply, now_ms) {
                    Published::ReplyTaken => continue,
                    other => return Some(other),
                }
            };
            let best = over.as_ref().map(|over| over.fit);
            if best != Some(Fit::Good) && holder.state.may_give_way() {
                let fit = self.fit(&holder, opening.stamp, now_ms);
                if Some(fit) > best {
                    let id = holder.id;
                    *over = Some(Over { id, reply, fit });
                }
            }
            match over {
                Some(over) if over.fit == Fit::Good && is_crowded => break,
                Some(_) if step >= PASSED_BY => {
                    self.crowded.note(place, now_ms);
                    break;
                }
                Some(_) | None => {}
            }
        }
        None
    }

    /// How well the port of a connection that is over fits a new one. After a
    /// mere reset nobody waits (RFC 6191).
    fn fit(&self, over: &Found, new: Option<Stamp>, now_ms: u64) -> Fit {
        let is_believed = match self.entries.last(over.id.entry) {
            Some(last) => new.is_some_and(|new| new.is_after(last)),
            None => over.state != State::TimeWait,
        };
        let quiet_ms = now_ms.saturating_sub(self.entries.seen_ms(over.id.entry));
        let long = match over.state {
            State::Reset => RESET_MS,
            _ => UNDER_WAY_MS,
        };
        match (is_believed, quiet_ms > long) {
            (false, _) => Fit::Disbelieved,
            (true, false) => Fit::Fresh,
            (true, true) => Fit::Good,
        }
    }
}

/// The tuple of the answers that come to an exit.
fn answers(original: &Tuple, address: Address, port: u16) -> Tuple {
    Tuple {
        source: original.destination,
        destination: End { address, port },
        protocol: original.protocol,
    }
}
