//! Which end inside holds which port outside.
//!
//! While ports last, an end keeps one port towards all destinations (RFC 4787
//! REQ-1, RFC 5382 REQ-1, RFC 5508 REQ-1): each (protocol, address, port) has
//! a word with the holder's fingerprint and how many connections stand on it.
//!
//! ```text
//! | fingerprint of the end inside 40 | connections 24 |   0 = free
//! ```
//!
//! The words of one address are a hash table of its own. An end has its own
//! port, when that is in range and free, or one of eight buckets of four, each
//! in a cache line or two; the emptiest takes it, so nearly all ports find a
//! holder. Two ends whose fingerprints are equal share a port; that hurts
//! nobody, because what makes packets unambiguous is the reply tuple, which the
//! index holds once.
//!
//! Any lane claims and releases at any time, with one compare-and-swap; the
//! words publish nothing else, so every access is relaxed.

use std::ops::{Range, RangeInclusive};

use super::tuple::{Address, End};
use super::words::Words;
use crate::sync::Ordering;
use crate::tables::mix::mix;
use crate::wire::protocol;

/// Addresses that have words of their own; more share.
#[cfg(not(loom))]
const ADDRESSES: usize = 16;
#[cfg(loom)]
const ADDRESSES: usize = 1;
#[cfg(not(loom))]
const PORTS: usize = 1 << 16;
#[cfg(loom)]
const PORTS: usize = 4;
const PROTOCOLS: usize = 3;

/// Ports of a bucket.
const WAYS: usize = 4;

/// Buckets that an end may have its port in.
const CHOICES: usize = 8;

const COUNT_MASK: u64 = (1 << 24) - 1;

/// The holders.
#[derive(Debug)]
pub(super) struct Holders {
    words: Words,
    seed: u64,
}

/// A port that was claimed for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// The port.
    pub(super) port: u16,
    /// For [`Holders::release`].
    pub(super) place: u32,
}

impl Holders {
    pub(super) fn new(seed: u64) -> Holders {
        Holders {
            words: Words::new(PROTOCOLS * ADDRESSES * PORTS),
            seed,
        }
    }

    fn base(&self, protocol: u8, address: Address) -> usize {
        let class = match protocol {
            protocol::TCP => 0,
            protocol::UDP => 1,
            _ => 2,
        };
        let end = End { address, port: 0 };
        let slot = end.hash(0, self.seed) as usize % ADDRESSES;
        (class * ADDRESSES + slot) * PORTS
    }

    /// The port of an end at an address, held for one connection more; `None`
    /// when it holds none and none is free where it looks.
    pub(super) fn claim(
        &self,
        protocol: u8,
        inside: End,
        address: Address,
        range: &RangeInclusive<u16>,
    ) -> Option<Claim> {
        let hash = inside.hash(protocol, self.seed);
        let fingerprint = fingerprint(hash);
        let base = self.base(protocol, address);
        let made = |place: usize| Claim {
            port: (place - base) as u16,
            place: place as u32,
        };
        let own = range.contains(&inside.port);
        let own = own.then_some(base + usize::from(inside.port));
        if let Some(own) = own.filter(|&own| self.join(own, fingerprint)) {
            return Some(made(own));
        }
        let buckets = Buckets::of(hash, base, range);
        // The emptiest, so that all fill alike; of several the first, where the
        // next connection of the end finds its port soonest.
        let (mut most, mut emptiest) = (0, 0);
        for choice in 0..CHOICES {
            let bucket = buckets.get(choice);
            let mut free = 0;
            for (place, word) in bucket.clone().zip(self.words.slice(bucket)) {
                // Relaxed: see the module.
                let held = word.load(Ordering::Relaxed);
                if held & !COUNT_MASK == fingerprint && self.join(place, fingerprint) {
                    return Some(made(place));
                }
                free += usize::from(held == 0);
            }
            if free > most {
                (most, emptiest) = (free, choice);
            }
        }
        if let Some(own) = own.filter(|&own| self.take(own, fingerprint)) {
            return Some(made(own));
        }
        let choices = std::iter::once(emptiest).chain(0..CHOICES);
        let mut places = choices.flat_map(|choice| buckets.get(choice));
        places
            .find(|&place| self.take(place, fingerprint))
            .map(made)
    }

    /// A port that an end had, held again for one connection; `None` when
    /// another end holds it by now.
    pub(super) fn claim_again(&self, protocol: u8, inside: End, outside: End) -> Option<Claim> {
        let fingerprint = fingerprint(inside.hash(protocol, self.seed));
        let place = self.base(protocol, outside.address) + usize::from(outside.port);
        let is_held = self.join(place, fingerprint) || self.take(place, fingerprint);
        is_held.then_some(Claim {
            port: outside.port,
            place: place as u32,
        })
    }

    /// One connection more of a holder.
    fn join(&self, place: usize, fingerprint: u64) -> bool {
        let word = self.words.at(place);
        let more = |held: u64| {
            let is_ours = held & !COUNT_MASK == fingerprint;
            (is_ours && held & COUNT_MASK != COUNT_MASK).then_some(held + 1)
        };
        more(self.words.get(place)).is_some()
            && word
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
                .is_ok()
    }

    fn take(&self, place: usize, fingerprint: u64) -> bool {
        let word = self.words.at(place);
        self.words.get(place) == 0
            && word
                .compare_exchange(0, fingerprint | 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// One connection less; the last one frees the port.
    pub(super) fn release(&self, place: u32) {
        let less = |held: u64| match held & COUNT_MASK {
            0 => None,
            1 => Some(0),
            _ => Some(held - 1),
        };
        let word = self.words.at(place as usize);
        // It cannot be free: the caller holds it.
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// The buckets of an end.
struct Buckets {
    /// Sixteen bits a choice.
    hashes: [u64; CHOICES / 4],
    /// The range's places.
    places: Range<usize>,
    /// Buckets in it.
    count: usize,
}

impl Buckets {
    #[inline]
    fn of(hash: u64, base: usize, range: &RangeInclusive<u16>) -> Buckets {
        let (first, last) = (usize::from(*range.start()), usize::from(*range.end()));
        Buckets {
            hashes: [hash, mix(&[], hash)],
            places: base + first..base + last + 1,
            count: ((last + 1 - first) / WAYS).max(1),
        }
    }

    /// The places of one. The range's last bucket has what is left over.
    #[inline]
    fn get(&self, choice: usize) -> Range<usize> {
        let bits = self.hashes[choice / 4] >> (16 * (choice % 4)) & 0xffff;
        let bucket = (bits as usize * self.count) >> 16;
        let start = self.places.start + bucket * WAYS;
        match bucket + 1 == self.count {
            true => start..self.places.end,
            false => start..start + WAYS,
        }
    }
}

/// Never 0, which is a free port's.
fn fingerprint(hash: u64) -> u64 {
    (hash | 1 << 24) & !COUNT_MASK
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn end(last: u8, port: u16) -> End {
        End {
            address: Address::v4([10, 244, 1, last]),
            port,
        }
    }

    fn egress() -> Address {
        Address::from(std::net::IpAddr::from(Ipv4Addr::new(172, 31, 0, 1)))
    }

    #[test]
    fn an_end_keeps_its_port_until_the_last_connection() {
        let holders = Holders::new(7);
        let range = 61_000..=65_535;
        let claim = |last, port| {
            let claim = holders.claim(protocol::UDP, end(last, port), egress(), &range);
            claim.unwrap()
        };
        let first = claim(2, 5000);
        assert!(range.contains(&first.port));
        assert_eq!(claim(2, 5000), first);
        assert_ne!(claim(2, 5001).port, first.port);
        assert_eq!(claim(2, 62_000).port, 62_000, "kept when free");
        assert_ne!(claim(3, 62_000).port, 62_000, "held by another");
        holders.release(first.place);
        assert_eq!(claim(2, 5000), first, "still one left");
    }

    /// Half of the range is kept, port by port. Others find the other half.
    #[test]
    fn ports_that_are_kept_side_by_side_hide_none() {
        let holders = Holders::new(3);
        let range = 49_152..=65_535;
        let claim = |last, port| holders.claim(protocol::TCP, end(last, port), egress(), &range);
        for port in 49_152..57_344 {
            assert_eq!(claim(2, port).map(|claim| claim.port), Some(port));
        }
        let found = (0..6144u16).filter(|number| claim(3, 1024 + number).is_some());
        let found = found.count();
        assert!(found * 100 > 6144 * 99, "{found}");
    }

    #[test]
    fn nearly_every_port_finds_a_holder_and_comes_back() {
        let holders = Holders::new(9);
        let range = 61_000..=65_535;
        let mut claims = Vec::new();
        for number in 0..4536u16 {
            let inside = end(2, number + 1024);
            claims.extend(holders.claim(protocol::TCP, inside, egress(), &range));
        }
        assert!(claims.len() > 4400, "{}", claims.len());
        let mut ports: Vec<u16> = claims.iter().map(|claim| claim.port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), claims.len(), "one holder each");
        for claim in &claims {
            holders.release(claim.place);
        }
        assert!((0..PROTOCOLS * ADDRESSES * PORTS).all(|place| holders.words.get(place) == 0));
    }
}
