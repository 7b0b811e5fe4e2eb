//! What later fragments get, as their first piece decided: only that one has
//! ports, or says that it is an echo request to the gateway. Bounded: a datagram
//! pushes the oldest one of its set out.

use super::classify::RoutedKey;
use super::parse::{Headers, L3};
use crate::tables::flow::Translation;
use crate::wire::ipv6;

/// Datagrams whose pieces are on their way, at most: sets of four.
const SETS: usize = 256;
const WAYS: usize = 4;

/// How long later pieces are waited for: as long as receivers do (RFC 8200,
/// section 4.5, has 60 s; Linux 30 s).
const WAIT_MS: u32 = 30_000;

/// What the pieces of a datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Datagram<K> {
    /// Addresses, protocol and where it came from; no ports.
    key: K,
    identification: u32,
}

impl<K: RoutedKey> Datagram<K> {
    /// Of a fragment; `key` is one of fragments.
    pub(super) fn of(bytes: &[u8], headers: &Headers, key: &K) -> Option<Datagram<K>> {
        let identification = match K::IS_V6 {
            true => {
                let end = bytes.len().min(usize::from(headers.transport));
                let packet = bytes.get(L3..end)?;
                ipv6::walk(packet).ok()?.fragment?.identification
            }
            false => u32::from(u16::from_be_bytes([
                *bytes.get(L3 + 4)?,
                *bytes.get(L3 + 5)?,
            ])),
        };
        Some(Datagram {
            key: *key,
            identification,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Piece<K> {
    datagram: Datagram<K>,
    translation: Translation,
    came_ms: u32,
}

/// The table of one lane and family.
#[derive(Debug)]
pub(super) struct Pieces<K> {
    sets: Box<[[Option<Piece<K>>; WAYS]]>,
}

impl<K: RoutedKey> Pieces<K> {
    pub(super) fn new() -> Pieces<K> {
        Pieces {
            sets: vec![[None; WAYS]; SETS].into_boxed_slice(),
        }
    }

    fn set(&mut self, hash: u64, datagram: &Datagram<K>) -> &mut [Option<Piece<K>>; WAYS] {
        let spread = u64::from(datagram.identification).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &mut self.sets[(hash ^ spread >> 32) as usize % SETS]
    }

    /// Remembers a first piece; `hash` is its flow key's.
    pub(super) fn remember(
        &mut self,
        hash: u64,
        datagram: Datagram<K>,
        translation: Translation,
        now_ms: u32,
    ) {
        let set = self.set(hash, &datagram);
        let age = |piece: &Option<Piece<K>>| match piece {
            Some(piece) if piece.datagram == datagram => u64::MAX,
            Some(piece) => u64::from(now_ms.wrapping_sub(piece.came_ms)),
            None => u64::from(u32::MAX) + 1,
        };
        if let Some(oldest) = set.iter_mut().max_by_key(|piece| age(piece)) {
            *oldest = Some(Piece {
                datagram,
                translation,
                came_ms: now_ms,
            });
        }
    }

    /// What a later piece gets.
    pub(super) fn find(
        &mut self,
        hash: u64,
        datagram: &Datagram<K>,
        now_ms: u32,
    ) -> Option<Translation> {
        let mut pieces = self.set(hash, datagram).iter().flatten();
        let piece = pieces.find(|piece| piece.datagram == *datagram)?;
        (now_ms.wrapping_sub(piece.came_ms) <= WAIT_MS).then_some(piece.translation)
    }
}
