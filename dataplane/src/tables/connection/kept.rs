//! Connections that outlive the process, and what was said of narrow paths.
//!
//! The entries lie in a file that is mapped, in a directory that should be in
//! memory (tmpfs). Everything else follows from them and is made anew: at the
//! next start live entries are copied, one by one, into the file of a fresh
//! table, which then takes the old one's name. So it does not matter at which
//! instant the process ended, or who held which lock. Behind the entries, where
//! the next [`PAGE`] begins, lie the words of the narrow paths
//! (`tables::paths`); each means something by itself, so they are copied as
//! they are.
//!
//! The file's first page, in words of the machine:
//!
//! ```text
//! 0 "spinlane" | 1 layout | 2 seed | 3 connections that fit
//! 4..6 the machine's boot | 6 the clock at the lanes' time 0, ms | 7 check of 0..7
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::entry::{Entries, HEADER, LAYOUT, Pair, WORDS};
use super::opening::{Published, check};
use super::share::Share;
use super::state::State;
use super::words::Memory;
use super::{Connections, Origin, Size, UNSETTLED};
use crate::monotonic;
use crate::sync::{AtomicU64, Ordering};
use crate::tables::mix::mix;
use crate::tables::paths::Paths;
use crate::types::PortId;

#[cfg(test)]
mod tests;

const MAGIC: u64 = u64::from_be_bytes(*b"spinlane");

/// Words of the header that are in use, its check last.
const HEADER_WORDS: usize = 8;

/// Words of the largest page that a mapping has to begin with (64 KiB).
const PAGE: usize = 8192;

/// Entries that are read at once.
const PIECE: usize = 64;

/// The longest file that is believed: 256 times the default.
const MOST: usize = Connections::DEFAULT_CAPACITY << 8;

/// The connections cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot keep the connections in {path}: {source}; they will not survive the agent's next restart"
)]
pub struct KeptError {
    path: PathBuf,
    source: io::Error,
}

/// Why what an earlier process left is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// It is too short, of another layout, or damaged.
    #[error("it is not a table of connections of this version, or damaged")]
    Foreign,
    /// The machine was started again since.
    #[error("it is from before the machine's last start")]
    OldBoot,
}

/// A table whose connections outlive the process.
#[derive(Debug)]
pub struct Kept {
    /// The table.
    pub connections: Connections,
    /// The moment that its times count from.
    pub origin: Instant,
    /// Connections that an earlier process had open.
    pub taken_over: usize,
    /// Entries that made no sense, or found no place.
    pub lost: usize,
    /// Why an earlier process' table was left alone.
    pub unusable: Option<Unusable>,
}

/// What a table is told by its header.
#[derive(Debug, Clone, Copy)]
struct Header {
    seed: u64,
    capacity: usize,
    boot: u128,
    /// What the clock showed at the table's time 0.
    origin: Duration,
}

impl Header {
    fn words(&self) -> [u64; HEADER_WORDS] {
        let mut words = [
            MAGIC,
            LAYOUT,
            self.seed,
            self.capacity as u64,
            (self.boot >> 64) as u64,
            self.boot as u64,
            self.origin.as_millis() as u64,
            0,
        ];
        words[HEADER_WORDS - 1] = mix(&words[..HEADER_WORDS - 1], MAGIC);
        words
    }

    fn read(words: &[u64; HEADER_WORDS]) -> Option<Header> {
        let &[_, _, seed, capacity, high, low, origin_ms, _] = words;
        let header = Header {
            seed,
            capacity: capacity as usize,
            boot: u128::from(high) << 64 | u128::from(low),
            origin: Duration::from_millis(origin_ms),
        };
        (header.words() == *words && header.capacity <= MOST).then_some(header)
    }
}

/// What an earlier process left.
struct Left {
    header: Header,
    origin: Instant,
    entries: Entries,
    paths: Vec<u8>,
}

impl Connections {
    /// A table of `capacity` connections that lies in the file `path`, with
    /// what an earlier process left there. Nobody else may use the file.
    pub fn kept(path: &Path, capacity: usize) -> Result<Kept, KeptError> {
        let failed = |source| KeptError {
            path: path.to_owned(),
            source,
        };
        let (left, unusable) = match load(path) {
            Ok(left) => (left, None),
            Err(unusable) => (None, Some(unusable)),
        };
        let size = Size::of(capacity);
        let now = monotonic::now();
        let header = Header {
            seed: left.as_ref().map_or_else(fresh_seed, |l| l.header.seed),
            capacity: size.capacity(),
            boot: boot(),
            origin: left.as_ref().map_or(now, |left| left.header.origin),
        };
        let origin = left.as_ref().map_or_else(Instant::now, |left| left.origin);
        let fresh = path.with_extension("new");
        let left_paths = left.as_ref().map_or(&[][..], |left| &left.paths);
        let (entries, paths) = create(&fresh, &header, left_paths).map_err(failed)?;
        let connections = Connections {
            paths: Paths::over(paths, header.seed),
            ..Connections::over(entries, size, header.seed)
        };
        let (taken_over, lost) = match &left {
            Some(left) => {
                let now_ms = now.saturating_sub(header.origin).as_millis() as u64;
                connections.take_over(left, now_ms)
            }
            None => (0, 0),
        };
        std::fs::rename(&fresh, path).map_err(failed)?;
        Ok(Kept {
            connections,
            origin,
            taken_over,
            lost,
            unusable,
        })
    }

    /// Opens again what is still live; how many, and how many were lost.
    fn take_over(&self, left: &Left, now_ms: u64) -> (usize, usize) {
        let (mut taken_over, mut lost) = (0, 0);
        for from in 0..left.header.capacity as u32 {
            let Some(pair) = left.entries.read(from) else {
                continue;
            };
            let state = left.entries.state(from).filter(|_| {
                let hashes = (pair.original.hash(self.seed), pair.reply.hash(self.seed));
                left.entries.check(from) == check(hashes)
            });
            let Some(state) = state else {
                lost += 1;
                continue;
            };
            let seen_ms = left.entries.seen_ms(from).min(now_ms);
            if seen_ms + state.timeout_ms(pair.original.protocol) <= now_ms {
                continue;
            }
            match self.reopen((&left.entries, from), &pair, state, now_ms) {
                true => taken_over += 1,
                false => lost += 1,
            }
        }
        (taken_over, lost)
    }

    fn reopen(
        &self,
        (left, from): (&Entries, u32),
        pair: &Pair,
        state: State,
        now_ms: u64,
    ) -> bool {
        let Pair {
            original, reply, ..
        } = pair;
        let origin = left.origin(from);
        let hash = original.hash(self.seed);
        let Some((shard, entry)) = self.take_entry(hash, origin, now_ms) else {
            return false;
        };
        self.entries.begin(entry, now_ms);
        self.entries.take_over(entry, left, from);
        let share = Share {
            origin,
            pod: UNSETTLED,
        };
        self.entries.set_state(entry, state, share);
        let Published::Done(version, _) = self.publish((entry, hash), original, reply, now_ms)
        else {
            self.shards.lock(shard, &self.entries).give(entry);
            return false;
        };
        self.shares.count(share);
        if left.claim(from).is_some() {
            let (inside, outside) = (original.source, reply.destination);
            let claim = self.holders.claim_again(original.protocol, inside, outside);
            self.entries.set_claim(entry, claim.map(|c| c.place));
        }
        self.enlist((shard, entry), version);
        true
    }

    /// Gives the connections of an earlier process to the pods that have
    /// their addresses now, by port, and removes those of pods that are gone.
    pub fn settle(&self, pod_of: impl Fn(IpAddr) -> Option<PortId>) {
        for number in 0..self.shard_count {
            for entry in self.shards.used(number) {
                let shard = self.shards.lock(number, &self.entries);
                let old = self.entries.share(entry);
                if old.pod != UNSETTLED {
                    continue;
                }
                let Some((pair, state)) = self.entries.read(entry).zip(self.entries.state(entry))
                else {
                    continue;
                };
                let inside = match old.origin {
                    Origin::Pod => pair.original.source,
                    Origin::Outside => pair.original.destination,
                };
                match pod_of(inside.address.ip()) {
                    Some(pod) => {
                        let share = Share { pod, ..old };
                        self.entries.set_state(entry, state, share);
                        self.shares.uncount(old);
                        self.shares.count(share);
                    }
                    None => self.remove(&shard, entry),
                }
            }
        }
    }
}

/// What lies there; `None` when there is no file.
fn load(path: &Path) -> Result<Option<Left>, Unusable> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut page = [0; HEADER_WORDS * 8];
    match file.read_exact_at(&mut page, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(Unusable::Foreign),
        read => read?,
    }
    let mut words = [0; HEADER_WORDS];
    for (word, bytes) in words.iter_mut().zip(page.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    let header = Header::read(&words).ok_or(Unusable::Foreign)?;
    if header.boot != boot() {
        return Err(Unusable::OldBoot);
    }
    let origin = monotonic::instant(header.origin).ok_or(Unusable::Foreign)?;
    if file.metadata()?.len() != file_len(header.capacity) {
        return Err(Unusable::Foreign);
    }
    let entries = Entries::over(copy(&file, Size::of(header.capacity))?);
    let mut paths = vec![0; Paths::WORDS * 8];
    file.read_exact_at(&mut paths, (paths_at(header.capacity) * 8) as u64)?;
    Ok(Some(Left {
        header,
        origin,
        entries,
        paths,
    }))
}

/// Words before the narrow paths.
fn paths_at(capacity: usize) -> usize {
    (HEADER + capacity * WORDS).next_multiple_of(PAGE)
}

/// Bytes of the whole file.
fn file_len(capacity: usize) -> u64 {
    ((paths_at(capacity) + Paths::WORDS) * 8) as u64
}

/// The file's entries, in memory. Each shard uses its entries in order, so what
/// follows an unused one is not read.
fn copy(file: &File, size: Size) -> io::Result<Memory> {
    let memory = Memory::anonymous(HEADER + size.capacity() * WORDS)?;
    let mut bytes = vec![0; PIECE * WORDS * 8];
    for shard in 0..size.shards {
        for first in (0..size.per_shard).step_by(PIECE) {
            let count = PIECE.min(size.per_shard - first);
            let at = HEADER + (shard * size.per_shard + first) * WORDS;
            let piece = &mut bytes[..count * WORDS * 8];
            file.read_exact_at(piece, (at * 8) as u64)?;
            fill(&memory[at..], piece);
            let last = &piece[(count - 1) * WORDS * 8..];
            if last.iter().all(|byte| *byte == 0) {
                break;
            }
        }
    }
    Ok(memory)
}

/// Fills words that nobody else has.
fn fill(words: &[AtomicU64], bytes: &[u8]) {
    for (word, bytes) in words.iter().zip(bytes.as_chunks().0) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
}

/// A file of an empty table, with these words of narrow paths.
fn create(path: &Path, header: &Header, paths: &[u8]) -> io::Result<(Entries, Memory)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.set_len(file_len(header.capacity))?;
    let second = file.try_clone()?;
    let narrow = Memory::of_file(second, paths_at(header.capacity), Paths::WORDS)?;
    narrow.back(0, Paths::WORDS)?;
    fill(&narrow, paths);
    let memory = Memory::of_file(file, 0, HEADER + header.capacity * WORDS)?;
    memory.back(0, HEADER)?;
    for (word, value) in memory.iter().zip(header.words()) {
        word.store(value, Ordering::Relaxed);
    }
    Ok((Entries::over(memory), narrow))
}

pub(super) fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// Which start of the machine this is; 0 where the kernel does not say.
fn boot() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let digits = text.unwrap_or_default().replace(['-', '\n'], "");
    u128::from_str_radix(&digits, 16).unwrap_or(0)
}
