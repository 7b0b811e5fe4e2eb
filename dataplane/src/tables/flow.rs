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

mod translation;

pub use translation::Translation;

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
#[derive(Debug, Clone, Copy, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KeyV4 {
    /// Source and destination address, as they lie in the header.
    pub addresses: [u8; 8],
    /// Ports and the rest.
    pub upper: UpperKey,
}

/// IPv6: 40 bytes.
#[derive(Debug, Clone, Copy, Eq, FromBytes, Immutable, KnownLayout)]
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
    /// Where it came from: [`crate::snapshot::Location::to_key`].
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
    /// Where it came from: [`crate::snapshot::Location::to_key`].
    pub in_port: u16,
    /// Always 0.
    pub reserved: u16,
}

const _: () = assert!(size_of::<KeyV4>() == 16);
const _: () = assert!(size_of::<KeyV6>() == 40);
const _: () = assert!(size_of::<KeyL2>() == 16);

impl UpperKey {
    /// Made in a register, and so written in one piece: reading it back as a
    /// word does not wait for four smaller writes.
    #[inline(always)]
    pub fn new(ports: [u8; 4], in_port: u16, protocol: u8, is_fragment: bool) -> UpperKey {
        let [a, b, c, d] = ports;
        let [e, f] = in_port.to_ne_bytes();
        zerocopy::transmute!([a, b, c, d, e, f, protocol, u8::from(is_fragment)])
    }

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

impl KeyV4 {
    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        [u64::from_ne_bytes(self.addresses), self.upper.word()]
    }
}

impl KeyV6 {
    #[inline(always)]
    fn words(&self) -> [u64; 5] {
        let address = |at| word(&self.addresses, at);
        let upper = self.upper.word();
        [address(0), address(8), address(16), address(24), upper]
    }
}

// Compared by words: field by field costs a branch each, and arrays of five
// words a call of memcmp.
impl PartialEq for KeyV4 {
    #[inline(always)]
    fn eq(&self, other: &KeyV4) -> bool {
        self.words() == other.words()
    }
}

impl PartialEq for KeyV6 {
    #[inline(always)]
    fn eq(&self, other: &KeyV6) -> bool {
        let pairs = self.words().into_iter().zip(other.words());
        pairs.fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl FlowKey for KeyV4 {
    #[inline(always)]
    fn feed(&self, hasher: &mut impl Hasher) {
        for word in self.words() {
            hasher.write_u64(word);
        }
    }
}

impl FlowKey for KeyV6 {
    #[inline(always)]
    fn feed(&self, hasher: &mut impl Hasher) {
        for word in self.words() {
            hasher.write_u64(word);
        }
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
    /// Port to leave by; with [`Actions::ENCAPSULATE`] the remote end.
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

    /// Leaves through the overlay.
    pub const ENCAPSULATE: u16 = 16;
    /// Leaves by the uplink, where no device finishes checksums.
    pub const UPLINK: u16 = 32;

    /// The table's [`Translation`] of the flow holds.
    pub const TRANSLATE: u16 = 64;

    /// Whether it leaves the node.
    #[inline]
    pub const fn leaves_node(&self) -> bool {
        self.flags & (Actions::ENCAPSULATE | Actions::UPLINK) != 0
    }

    /// Makes packets no longer than `mtu`.
    pub fn limit(&mut self, mtu: u16) {
        self.mtu = self.mtu.min(mtu);
        self.segment_mtu = self.segment_mtu.min(mtu);
    }

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
struct Tags(u128);

const _: () = assert!(size_of::<Tags>() == WAYS * 2);

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

/// Where a flow may lie, by its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint(u32);

impl Hint {
    /// Nowhere.
    pub const NONE: Hint = Hint(u32::MAX);
}

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
    /// By slot; of flows that carry none, nothing is ever touched.
    translations: Vec<Translation>,
    len: usize,
    sweep: usize,
    seed: foldhash::quality::RandomState,
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
            translations: Translation::new_vec_zeroed(buckets * WAYS).expect(zeroed),
            len: 0,
            sweep: 0,
            seed: foldhash::quality::RandomState::default(),
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
    /// Its lowest bits name the bucket, so it is mixed to the end: keys that
    /// differ in one byte alone (the pods of a range) must not depend on the
    /// seed for their spreading.
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

    /// Where the key may be, by its tag alone; asks for that slot.
    #[inline]
    pub fn ask_slot(&self, hash: u64) -> Hint {
        let bucket = self.bucket(hash);
        match self.matches(bucket, hash) {
            0 => Hint::NONE,
            ways => {
                let slot = bucket * WAYS + first_way(ways);
                prefetch(&self.slots, slot);
                Hint(slot as u32)
            }
        }
    }

    /// The flow of a key. The hint may be older than the last insert.
    #[inline]
    pub fn find_hinted(&self, hint: Hint, hash: u64, key: &K) -> Option<SlotIndex> {
        match self.slots.get(hint.0 as usize) {
            Some(slot) if slot.key == *key => Some(SlotIndex(hint.0)),
            _ => self.find(hash, key),
        }
    }

    /// The flow of a key.
    #[inline(never)]
    pub fn find(&self, hash: u64, key: &K) -> Option<SlotIndex> {
        let bucket = self.bucket(hash);
        let mut ways = self.matches(bucket, hash);
        while ways != 0 {
            let slot = bucket * WAYS + first_way(ways);
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

    /// The translation of a flow that was just found or inserted.
    #[inline]
    pub fn translation(&mut self, index: SlotIndex) -> &mut Translation {
        &mut self.translations[index.0 as usize]
    }

    /// Decides a flow in the table anew; what it counted stays.
    pub fn redecide(&mut self, index: SlotIndex, actions: Actions, generation: Generation) {
        let flow = self.flow(index);
        flow.actions = actions;
        flow.generation = generation.0;
    }

    /// Has the flow's next packet decided anew, unless it is before.
    pub fn void(&mut self, index: SlotIndex) {
        let flow = self.flow(index);
        flow.generation = flow.generation.wrapping_sub(1);
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
        self.set_tag(bucket, way, tag(hash));
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
    #[inline]
    pub fn sweep(&mut self, now_ms: u32) {
        let bucket = self.sweep;
        self.sweep = (bucket + 1) & (self.tags.len() - 1);
        if self.tags[bucket].0 != 0 {
            self.sweep_bucket(bucket, now_ms);
        }
    }

    fn sweep_bucket(&mut self, bucket: usize, now_ms: u32) {
        for way in 0..WAYS {
            let is_used = self.tag_at(bucket, way) != 0;
            if is_used && self.idle_ms(bucket, way, now_ms) > IDLE_LIMIT_MS {
                self.set_tag(bucket, way, 0);
                // A hint must not find it again.
                self.slots[bucket * WAYS + way].key = K::new_zeroed();
                self.len -= 1;
            }
        }
    }

    /// Every flow in the table.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Flow)> {
        let slots = self.slots.iter().enumerate();
        let used = slots.filter(|(slot, _)| self.tag_at(slot / WAYS, slot % WAYS) != 0);
        used.map(|(_, slot)| (&slot.key, &slot.flow))
    }

    #[inline(always)]
    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.tags.len() - 1)
    }

    /// Ways whose tag is the hash's, each as the top bit of its 16. A way
    /// above a match may be named without matching; keys are compared anyway.
    #[inline(always)]
    fn matches(&self, bucket: usize, hash: u64) -> u128 {
        const LOW_BITS: u128 = u128::MAX / 0xffff;
        let differ = self.tags[bucket].0 ^ (u128::from(tag(hash)) * LOW_BITS);
        differ.wrapping_sub(LOW_BITS) & !differ & (LOW_BITS << 15)
    }

    #[inline(always)]
    fn tag_at(&self, bucket: usize, way: usize) -> u16 {
        (self.tags[bucket].0 >> (16 * way)) as u16
    }

    fn set_tag(&mut self, bucket: usize, way: usize, tag: u16) {
        let tags = &mut self.tags[bucket].0;
        *tags &= !(0xffff << (16 * way));
        *tags |= u128::from(tag) << (16 * way);
    }

    fn free_way(&self, bucket: usize) -> Option<usize> {
        (0..WAYS).find(|&way| self.tag_at(bucket, way) == 0)
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

#[inline(always)]
fn first_way(ways: u128) -> usize {
    ways.trailing_zeros() as usize / 16
}

/// The hash's upper bits, which the bucket does not use; never 0.
#[inline(always)]
fn tag(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}

#[cfg(test)]
mod tests;
