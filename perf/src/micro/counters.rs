//! Hardware counters of the calling thread (perf_event_open(2)).
#![allow(unsafe_code)] // libc has no safe form of the system call

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;

/// `struct perf_event_attr` as its first version had it
/// (include/uapi/linux/perf_event.h, PERF_ATTR_SIZE_VER0).
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64);

/// `PERF_TYPE_HARDWARE`.
const HARDWARE: u32 = 0;
/// `PERF_COUNT_HW_INSTRUCTIONS`.
const INSTRUCTIONS: u64 = 1;
/// Leave the kernel and the hypervisor out.
const USER_ONLY: u64 = 1 << 5 | 1 << 6;

/// Instructions that the calling thread retires in user mode.
#[derive(Debug)]
pub(super) struct Instructions(File);

impl Instructions {
    /// Begins to count.
    ///
    /// # Errors
    /// When the machine has no such counter (virtual ones often have not), or
    /// its owner forbids it (`kernel.perf_event_paranoid`).
    pub(super) fn open() -> io::Result<Instructions> {
        let attributes = Attributes {
            kind: HARDWARE,
            size: size_of::<Attributes>() as u32,
            config: INSTRUCTIONS,
            flags: USER_ONLY,
            ..Attributes::default()
        };
        // SAFETY: the structure is as long as it says and outlives the call;
        // this thread, any processor, no group, close on exec.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                0,
                -1,
                -1,
                8,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made the descriptor; nobody else has it.
        Ok(Instructions(unsafe { File::from_raw_fd(fd as i32) }))
    }

    /// Instructions so far.
    ///
    /// # Errors
    /// When the kernel took the counter away.
    pub(super) fn read(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}
