//! Maps that programs count in and user space reads.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{BpfError, address, call, call_for_fd, raw};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_GET_NEXT_KEY: libc::c_long = 4;

const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
/// Elements of a hash map are made when they are needed.
const NO_PREALLOC: u32 = 1;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    /// For `MAP_GET_NEXT_KEY` the next key.
    value: u64,
    flags: u64,
}

fn create(map_type: u32, words: usize, entries: u32, flags: u32) -> Result<OwnedFd, BpfError> {
    let mut attribute = MapCreate {
        map_type,
        key_size: 4,
        value_size: u32::try_from(words * 8).expect("values are short"),
        max_entries: entries,
        map_flags: flags,
    };
    call_for_fd(MAP_CREATE, &mut attribute).map_err(|source| BpfError::Call {
        what: "making a map",
        source,
    })
}

/// Reads the element `key` into `value`, as many words as the kernel writes.
fn look_up(map: &OwnedFd, key: u32, value: &mut [u64]) -> io::Result<()> {
    let mut attribute = MapElement {
        map: raw(map),
        key: address(&raw const key),
        value: address(value.as_mut_ptr()),
        ..MapElement::default()
    };
    call(MAP_LOOKUP_ELEM, &mut attribute)?;
    // The kernel wrote through the address; the compiler has to know.
    std::hint::black_box(value);
    Ok(())
}

fn reading(source: io::Error) -> BpfError {
    BpfError::Call {
        what: "reading a map",
        source,
    }
}

/// A per-CPU array of `N` counters under the key 0.
#[derive(Debug)]
pub struct Counters<const N: usize> {
    map: OwnedFd,
    cpus: usize,
}

impl<const N: usize> Counters<N> {
    /// A map of `N` zeros a CPU.
    ///
    /// # Errors
    /// When the kernel refuses the map.
    pub fn new() -> Result<Counters<N>, BpfError> {
        Ok(Counters {
            map: create(MAP_TYPE_PERCPU_ARRAY, N, 1, 0)?,
            cpus: possible_cpus()?,
        })
    }

    /// The descriptor for [`super::assembly::Assembler::load_map`].
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.map.as_raw_fd()
    }

    /// The counters of each CPU.
    ///
    /// # Errors
    /// When the kernel refuses the lookup.
    pub fn read_each(&self) -> Result<Vec<Vec<u64>>, BpfError> {
        let mut values = vec![0u64; N * self.cpus];
        look_up(&self.map, 0, &mut values).map_err(reading)?;
        Ok(values.chunks(N).map(<[u64]>::to_vec).collect())
    }

    /// The counters, summed over CPUs.
    ///
    /// # Errors
    /// When the kernel refuses the lookup.
    pub fn read(&self) -> Result<[u64; N], BpfError> {
        let mut sum = [0u64; N];
        for value in self.read_each()? {
            for (total, part) in sum.iter_mut().zip(value) {
                *total += part;
            }
        }
        Ok(sum)
    }
}

/// `N` words under the key 0, the same for all CPUs.
#[derive(Debug)]
pub struct Record<const N: usize> {
    map: OwnedFd,
}

impl<const N: usize> Record<N> {
    /// A record of zeros.
    ///
    /// # Errors
    /// When the kernel refuses the map.
    pub fn new() -> Result<Record<N>, BpfError> {
        Ok(Record {
            map: create(MAP_TYPE_ARRAY, N, 1, 0)?,
        })
    }

    /// The descriptor for [`super::assembly::Assembler::load_map`].
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.map.as_raw_fd()
    }

    /// The words.
    ///
    /// # Errors
    /// When the kernel refuses the lookup.
    pub fn read(&self) -> Result<[u64; N], BpfError> {
        let mut value = [0; N];
        look_up(&self.map, 0, &mut value).map_err(reading)?;
        Ok(value)
    }

    /// Replaces the words.
    ///
    /// # Errors
    /// When the kernel refuses the update.
    pub fn write(&self, value: &[u64; N]) -> Result<(), BpfError> {
        let key = 0u32;
        let mut attribute = MapElement {
            map: raw(&self.map),
            key: address(&raw const key),
            value: address(value.as_ptr()),
            ..MapElement::default()
        };
        call(MAP_UPDATE_ELEM, &mut attribute)
            .map(drop)
            .map_err(|source| BpfError::Call {
                what: "writing a map",
                source,
            })
    }
}

/// A row of bits, which a program finds by the number of their 64-bit word.
#[derive(Debug)]
pub struct Bits {
    map: OwnedFd,
}

impl Bits {
    /// At least `count` bits, none of them set.
    ///
    /// # Errors
    /// When the kernel refuses the map.
    pub fn new(count: u32) -> Result<Bits, BpfError> {
        Ok(Bits {
            map: create(MAP_TYPE_ARRAY, 1, count.div_ceil(u64::BITS), 0)?,
        })
    }

    /// The descriptor for [`super::assembly::Assembler::load_map`].
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.map.as_raw_fd()
    }
}

/// A hash table of `N` words a key, filled by a program.
#[derive(Debug)]
pub struct Table<const N: usize> {
    map: OwnedFd,
}

impl<const N: usize> Table<N> {
    /// A table of at most `entries`.
    ///
    /// # Errors
    /// When the kernel refuses the map.
    pub fn new(entries: u32) -> Result<Table<N>, BpfError> {
        Ok(Table {
            map: create(MAP_TYPE_HASH, N, entries, NO_PREALLOC)?,
        })
    }

    /// The descriptor for [`super::assembly::Assembler::load_map`].
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.map.as_raw_fd()
    }

    /// Shows every key and its words to `see`.
    ///
    /// # Errors
    /// When the kernel refuses a lookup.
    pub fn each(&self, mut see: impl FnMut(u32, &[u64; N])) -> Result<(), BpfError> {
        let mut key: Option<u32> = None;
        let mut value = [0; N];
        while let Some(next) = self.next_key(key)? {
            match look_up(&self.map, next, &mut value) {
                Ok(()) => see(next, &value),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(reading(error)),
            }
            key = Some(next);
        }
        Ok(())
    }

    fn next_key(&self, key: Option<u32>) -> Result<Option<u32>, BpfError> {
        let mut next = 0u32;
        let mut attribute = MapElement {
            map: raw(&self.map),
            key: key
                .as_ref()
                .map_or(0, |key| address(std::ptr::from_ref(key))),
            value: address(&raw mut next),
            ..MapElement::default()
        };
        match call(MAP_GET_NEXT_KEY, &mut attribute) {
            Ok(_) => Ok(Some(std::hint::black_box(next))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(reading(error)),
        }
    }
}

/// How many CPUs the kernel keeps per-CPU values for.
fn possible_cpus() -> Result<usize, BpfError> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")
        .map_err(|error| BpfError::PossibleCpus(error.to_string()))?;
    text.trim()
        .rsplit(['-', ','])
        .next()
        .and_then(|last| last.parse::<usize>().ok())
        .map(|last| last + 1)
        .ok_or_else(|| BpfError::PossibleCpus(format!("{text:?} is no list of CPUs")))
}
