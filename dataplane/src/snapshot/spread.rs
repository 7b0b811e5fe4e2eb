//! Several neighbours that one route leads to.

use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::fast::FixedState;

use crate::types::NextHopId;

/// Next hops of one route, by weight: each has some of up to
/// [`Spread::SLOTS`] slots, and both ends' addresses choose one of these. All
/// packets from one address to another go the same way then, their fragments
/// too (as Linux has it for IPv4 with `fib_multipath_hash_policy` 0),
/// whatever lane they take and also after a restart. With another set of next
/// hops many pairs get another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    slots: [NextHopId; Spread::SLOTS],
    used: u8,
}

impl Spread {
    /// Slots at most, and so next hops: later ones are left out.
    pub const SLOTS: usize = 16;

    /// Shares slots out to next hops by their weights, exactly where they
    /// suffice, else as near as each having one at least allows. `None`
    /// without next hops.
    pub fn new(hops: &[(NextHopId, u32)]) -> Option<Spread> {
        let hops = &hops[..hops.len().min(Spread::SLOTS)];
        let weight = |at: usize| u64::from(hops[at].1.max(1));
        let common = (0..hops.len()).map(weight).reduce(common_divisor)?;
        let total: u64 = (0..hops.len()).map(|at| weight(at) / common).sum();
        let used = total.min(Spread::SLOTS as u64) as usize;
        let mut slots = [hops[0].0; Spread::SLOTS];
        let mut given = [1; Spread::SLOTS];
        for (slot, hop) in slots.iter_mut().zip(hops) {
            *slot = hop.0;
        }
        // Each next slot to whom it leaves with the most weight for one
        // (D'Hondt's method).
        for slot in &mut slots[hops.len()..used] {
            let by_slot = |&a: &usize, &b: &usize| {
                (weight(a) * (given[b] + 1)).cmp(&(weight(b) * (given[a] + 1)))
            };
            // Of equals the first.
            let next = (0..hops.len()).rev().max_by(by_slot)?;
            given[next] += 1;
            *slot = hops[next].0;
        }
        Some(Spread {
            slots,
            used: used as u8,
        })
    }

    /// Whom packets from one address to another are handed to.
    pub fn next_hop(&self, source: IpAddr, destination: IpAddr) -> NextHopId {
        let hash = FixedState::default().hash_one((source, destination));
        self.slots()[(hash % self.slots().len() as u64) as usize]
    }

    /// The slots' holders; who has a greater weight is there more often.
    pub fn slots(&self) -> &[NextHopId] {
        &self.slots[..usize::from(self.used)]
    }
}

fn common_divisor(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        _ => common_divisor(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(weights: &[u32]) -> Vec<usize> {
        let hops: Vec<_> = (0..).map(NextHopId).zip(weights.iter().copied()).collect();
        let spread = Spread::new(&hops).unwrap();
        let held = |hop: &(NextHopId, u32)| spread.slots().iter().filter(|s| **s == hop.0).count();
        hops.iter().map(held).collect()
    }

    #[test]
    fn slots_are_shared_out_by_weight() {
        assert_eq!(Spread::new(&[]), None);
        assert_eq!(slots(&[7]), [1]);
        assert_eq!(slots(&[1, 1]), [1, 1]);
        assert_eq!(slots(&[3, 1]), [3, 1]);
        assert_eq!(slots(&[30, 20, 10]), [3, 2, 1]);
        assert_eq!(slots(&[0, 1]), [1, 1]);
        assert_eq!(slots(&[256, 1]), [15, 1]);
        assert_eq!(slots(&[7, 5, 11]), [5, 3, 8]);
        assert_eq!(slots(&[1; 16]), [1; 16]);
        let beyond = slots(&[1; 20]);
        assert_eq!((&beyond[..16], &beyond[16..]), (&[1; 16][..], &[0; 4][..]));
    }

    #[test]
    fn ends_spread_by_weight_and_each_pair_keeps_its_way() {
        let hops = [(NextHopId(4), 3), (NextHopId(9), 1)];
        let spread = Spread::new(&hops).unwrap();
        for family in ["10.244.1.", "fd44::"] {
            let end = |n: u32| format!("{family}{}", n % 250).parse::<IpAddr>().unwrap();
            let pairs = (0..4000).map(|n| (end(n), end(1 + n / 250)));
            let first = pairs.filter(|(a, b)| {
                let hop = spread.next_hop(*a, *b);
                assert_eq!(hop, Spread::new(&hops).unwrap().next_hop(*a, *b));
                hop == NextHopId(4)
            });
            let first = first.count();
            assert!((2800..3200).contains(&first), "{first} of 4000");
        }
    }
}
