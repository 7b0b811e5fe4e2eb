//! The exact-match flow table of a lane.
//!
//! One table for each kind of key. It is set-associative: the hash names a
//! bucket of [`WAYS`] ways, and a line of 16-bit tags says which ways are
//! worth comparing.
//!
//! ```text
//! tags   | t t t t t t t t |  one line a bucket, 0 = free way
//! slots  | key, flow | key, flow | …  WAYS slots a bucket, 64 or 128 bytes
//! ```
//!
//! Memory is bounded by the capacity given at the start; the operating system
//! backs it with pages as they are first touched. Nothing is allocated later.
//! A table has one user; there is no sharing and no locking.
//!
//! **Who is pushed out.** A flow is protected after its last packet for a
//! time that grows with its packets ([`protection_ms`]); one that never saw a
//! second packet is not protected at all. A new flow takes a free way, else
//! the way of the least protected flow whose time is over, else it is not
//! installed and its packets are classified one by one. So a flood of random
//! flows competes with itself for the unprotected ways, and flows in use stay.

use std::hash::{BuildHasher, Hasher};

use zerocopy::{FromBytes, FromZeros, Immutable, KnownLayout};

use super::prefetch::prefetch;
use crate::types::{Generation, MacAddr};

/// Ways of a bucket.
pub const WAYS: usize = 8;

/// After this long without a packet a flow is forgotten, in milliseconds.
pub const IDLE_LIMIT_MS: u32 = 60_000;

/// Protection that each packet adds, and the most that a flow can have.
const PROTECTION_STEP_MS: u32 = 250;
const PROTECTION_LIMIT_MS: u32 = 30_000;

/// What identifies a flow.
pub trait FlowKey: Copy + Eq + FromZeros {
    /// Feeds the key to a hasher.
    fn feed(&self, hasher: &mut impl Hasher);
}

/// IPv4: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KeyV4 {
    /// Source and destination address, as they lie in the header.
    pub addresses: [u8; 8],
    /// Ports and the rest.
    pub upper: UpperKey,
}

/// IPv6: 40 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KeyV6 {
    /// Source and destination address, as they lie in the header.
    pub addresses: [u8; 32],
    /// Ports and the rest.
    pub upper: UpperKey,
}

/// What both IP keys hold besides addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UpperKey {
    /// Source and destination port as they lie in the header; identifier and
    /// type of an echo; 0 without.
    pub ports: [u8; 4],
    /// Port that it came by.
    pub in_port: u16,
    /// Protocol.
    pub protocol: u8,
    /// 1 for fragments, which are known by addresses only.
    pub is_fragment: u8,
}

/// A layer-2 segment's frame: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KeyL2 {
    /// Destination and source address, as they lie in the header.
    pub addresses: [u8; 12],
    /// Port that it came by.
    pub in_port: u16,
    /// Always 0.
    pub reserved: u16,
}

const _: () = assert!(size_of::<KeyV4>() == 16);
const _: () = assert!(size_of::<KeyV6>() == 40);
const _: () = assert!(size_of::<KeyL2>() == 16);

impl UpperKey {
    #[inline(always)]
    fn word(&self) -> u64 {
        let [a, b, c, d] = self.ports;
        let [e, f] = self.in_port.to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, self.protocol, self.is_fragment])
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

impl FlowKey for KeyV4 {
    #[inline(always)]
    fn feed(&self, hasher: &mut impl Hasher) {
        hasher.write_u64(u64::from_ne_bytes(self.addresses));
        hasher.write_u64(self.upper.word());
    }
}

impl FlowKey for KeyV6 {
    #[inline(always)]
    fn feed(&self, hasher: &mut impl Hasher) {
        for at in [0, 8, 16, 24] {
            hasher.write_u64(word(&self.addresses, at));
        }
        hasher.write_u64(self.upper.word());
    }
}

impl FlowKey for KeyL2 {
    #[inline(always)]
    fn feed(&self, hasher: &mut impl Hasher) {
        hasher.write_u64(word(&self.addresses, 0));
        hasher.write_u64((word(&self.addresses, 4) >> 32) | u64::from(self.in_port) << 32);
    }
}

/// What is done with a flow's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Actions {
    /// Destination address to set.
    pub destination: MacAddr,
    /// Source address to set.
    pub source: MacAddr,
    /// Port to leave by.
    pub out: u16,
    /// Longest IP packet that passes as it is.
    pub mtu: u16,
    /// Longest IP packet that a super-frame is segmented to.
    pub segment_mtu: u16,
    /// [`Actions::SUPER_FRAMES`] and the others.
    pub flags: u16,
}

impl Actions {
    /// The port takes super-frames whole.
    pub const SUPER_FRAMES: u16 = 1;
    /// Addresses are set and a hop is taken: a routed packet.
    pub const ROUTE: u16 = 2;
    /// Leaves by every other port of the segment.
    pub const FLOOD: u16 = 4;
    /// The sending station is known to be where it is.
    pub const STATION_KNOWN: u16 = 8;

    /// Whether a flag is set.
    #[inline]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A flow: its actions, and its use.
#[derive(Debug, Clone, Copy, Default, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// What is done.
    pub actions: Actions,
    /// Generation of the snapshot that decided it.
    generation: u32,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the last packet came, in milliseconds, wrapping.
    pub used_ms: u32,
    /// When control was last told of the sending station, in milliseconds,
    /// wrapping.
    pub told_ms: u32,
}

impl Flow {
    /// Whether a snapshot of this generation decided it.
    #[inline]
    pub fn is_current(&self, generation: Generation) -> bool {
        self.generation == generation.0
    }

    /// Counts one packet.
    #[inline]
    pub fn count(&mut self, bytes: u64, now_ms: u32) {
        self.packets += 1;
        self.bytes += bytes;
        self.used_ms = now_ms;
    }
}

#[derive(Debug, FromBytes, KnownLayout)]
#[repr(C, align(64))]
struct Slot<K> {
    key: K,
    flow: Flow,
}

const _: () = assert!(size_of::<Slot<KeyV4>>() == 64);
const _: () = assert!(size_of::<Slot<KeyL2>>() == 64);
const _: () = assert!(size_of::<Slot<KeyV6>>() == 128);

/// The tags of a bucket's ways.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
struct Tags([u16; WAYS]);

/// How long a flow of so many packets is protected after its last one, in
/// milliseconds.
#[inline]
pub fn protection_ms(packets: u64) -> u32 {
    match packets {
        0 | 1 => 0,
        _ => (packets.min(1 << 16) as u32 * PROTECTION_STEP_MS).min(PROTECTION_LIMIT_MS),
    }
}

/// Where a flow lies in its table, until the next insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotIndex(u32);

/// What an insert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It took a free way.
    Free(SlotIndex),
    /// It pushed another flow out.
    Evicted(SlotIndex),
    /// Every way holds a flow in use; it is not installed.
    Refused,
}

/// The table.
#[derive(Debug)]
pub struct FlowTable<K> {
    tags: Vec<Tags>,
    slots: Vec<Slot<K>>,
    len: usize,
    sweep: usize,
    seed: foldhash::fast::RandomState,
}

impl<K: FlowKey + FromBytes> FlowTable<K> {
    /// A table for `capacity` flows, rounded up to a power of two.
    ///
    /// # Panics
    /// When the address space has no room for it.
    pub fn new(capacity: usize) -> FlowTable<K> {
        let buckets = (capacity.max(WAYS) / WAYS).next_power_of_two();
        let zeroed = "the address space has room for the flow tables";
        FlowTable {
            tags: Tags::new_vec_zeroed(buckets).expect(zeroed),
            slots: Slot::new_vec_zeroed(buckets * WAYS).expect(zeroed),
            len: 0,
            sweep: 0,
            seed: foldhash::fast::RandomState::default(),
        }
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Flows that fit.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// The key's hash, seeded for each table anew; computed once per packet.
    #[inline]
    pub fn hash(&self, key: &K) -> u64 {
        let mut hasher = self.seed.build_hasher();
        key.feed(&mut hasher);
        hasher.finish()
    }

    /// Hashes a key and asks for the tags that its lookup will read.
    #[inline]
    pub fn ask_tags(&self, key: &K) -> u64 {
        let hash = self.hash(key);
        prefetch(&self.tags, self.bucket(hash));
        hash
    }

    /// Asks for the slot that a lookup will compare first.
    #[inline]
    pub fn ask_slot(&self, hash: u64) {
        let bucket = self.bucket(hash);
        let ways = self.matches(bucket, hash);
        if ways != 0 {
            prefetch(&self.slots, bucket * WAYS + ways.trailing_zeros() as usize);
        }
    }

    /// The flow of a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &K) -> Option<SlotIndex> {
        let bucket = self.bucket(hash);
        let mut ways = self.matches(bucket, hash);
        while ways != 0 {
            let slot = bucket * WAYS + ways.trailing_zeros() as usize;
            if self.slots[slot].key == *key {
                return Some(SlotIndex(slot as u32));
            }
            ways &= ways - 1;
        }
        None
    }

    /// A flow that was just found or inserted.
    #[inline]
    pub fn flow(&mut self, index: SlotIndex) -> &mut Flow {
        &mut self.slots[index.0 as usize].flow
    }

    /// Decides a flow in the table anew; what it counted stays.
    pub fn redecide(&mut self, index: SlotIndex, actions: Actions, generation: Generation) {
        let flow = self.flow(index);
        flow.actions = actions;
        flow.generation = generation.0;
    }

    /// Installs a flow whose key is not in the table.
    pub fn insert(
        &mut self,
        hash: u64,
        key: &K,
        actions: Actions,
        generation: Generation,
        now_ms: u32,
    ) -> Inserted {
        let bucket = self.bucket(hash);
        let (way, free) = match self.free_way(bucket) {
            Some(way) => (way, true),
            None => match self.unprotected_way(bucket, now_ms) {
                Some(way) => (way, false),
                None => return Inserted::Refused,
            },
        };
        let slot = bucket * WAYS + way;
        self.tags[bucket].0[way] = tag(hash);
        self.slots[slot] = Slot {
            key: *key,
            flow: Flow {
                actions,
                generation: generation.0,
                used_ms: now_ms,
                ..Flow::default()
            },
        };
        let index = SlotIndex(slot as u32);
        if free {
            self.len += 1;
            Inserted::Free(index)
        } else {
            Inserted::Evicted(index)
        }
    }

    /// Forgets idle flows of the next bucket; called once per batch, it goes
    /// round the table.
    pub fn sweep(&mut self, now_ms: u32) {
        let bucket = self.sweep;
        self.sweep = (bucket + 1) & (self.tags.len() - 1);
        for way in 0..WAYS {
            if self.tags[bucket].0[way] != 0 && self.idle_ms(bucket, way, now_ms) > IDLE_LIMIT_MS {
                self.tags[bucket].0[way] = 0;
                self.len -= 1;
            }
        }
    }

    /// Every flow in the table.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Flow)> {
        let used = self.tags.iter().flat_map(|tags| tags.0).enumerate();
        used.filter(|&(_, tag)| tag != 0).map(|(slot, _)| {
            let slot = &self.slots[slot];
            (&slot.key, &slot.flow)
        })
    }

    #[inline(always)]
    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.tags.len() - 1)
    }

    /// Ways whose tag is the hash's, as bits.
    #[inline(always)]
    fn matches(&self, bucket: usize, hash: u64) -> u8 {
        let tag = tag(hash);
        let tags = &self.tags[bucket].0;
        let mut ways = 0;
        for (way, &candidate) in tags.iter().enumerate() {
            ways |= u8::from(candidate == tag) << way;
        }
        ways
    }

    fn free_way(&self, bucket: usize) -> Option<usize> {
        self.tags[bucket].0.iter().position(|&tag| tag == 0)
    }

    fn idle_ms(&self, bucket: usize, way: usize, now_ms: u32) -> u32 {
        let used_ms = self.slots[bucket * WAYS + way].flow.used_ms;
        now_ms.wrapping_sub(used_ms)
    }

    /// The way whose protection ended longest ago; among those never
    /// protected, the oldest.
    fn unprotected_way(&self, bucket: usize, now_ms: u32) -> Option<usize> {
        (0..WAYS)
            .filter_map(|way| {
                let packets = self.slots[bucket * WAYS + way].flow.packets;
                let idle = self.idle_ms(bucket, way, now_ms);
                let protection = protection_ms(packets);
                let over = idle.checked_sub(protection)?;
                (protection == 0 || over > 0).then_some((over, way))
            })
            .max_by_key(|&(over, way)| (over, std::cmp::Reverse(way)))
            .map(|(_, way)| way)
    }
}

/// The hash's upper bits, which the bucket does not use; never 0.
#[inline(always)]
fn tag(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}
