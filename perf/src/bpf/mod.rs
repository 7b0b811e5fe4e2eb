//! The few calls of bpf(2) that a generator and a sink need: load a program,
//! make maps and read them, attach a program to a device, and run an XDP program over live frames.
//!
//! This is the crate's kernel boundary for BPF. Everything that it gives out
//! owns its descriptor, so that dropping it detaches and frees.
#![allow(unsafe_code)]

pub mod assembly;
pub(crate) mod context;
mod map;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use self::assembly::Instruction;
pub use map::{Bits, Counters, Record, Table};

const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;

const ATTACH_XDP: u32 = 37;
const ATTACH_TCX_INGRESS: u32 = 46;
const TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
/// Every step; the last one before the error is at the end of the buffer.
const LOG_LEVEL: u32 = 1;
const LOG_BYTES: usize = 1 << 20;

/// A call of bpf(2) that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The call itself failed.
    #[error("bpf: {what}: {source}; needs root and Linux 6.6 or newer")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The verifier refused a program.
    #[error("bpf: loading the {what} program: {source}: {log}")]
    Load {
        /// Which program.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
        /// Last line of the verifier's log.
        log: String,
    },
    /// The list of possible CPUs could not be read.
    #[error("bpf: reading the possible CPUs from /sys/devices/system/cpu/possible: {0}")]
    PossibleCpus(String),
}

/// What a program may be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramType {
    /// tc classifier and action.
    Tc = 3,
    /// XDP.
    Xdp = 6,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    prog_flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    return_value: u32,
    data_in_bytes: u32,
    data_out_bytes: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

/// bpf(2) with an attribute of its own kind. The buffers that `attribute`
/// points at must be valid for the kernel's reads and writes in `command`.
fn call<T>(command: libc::c_long, attribute: &mut T) -> io::Result<i32> {
    let attribute: *mut T = attribute;
    // SAFETY: `attribute` is a live, exclusive repr(C) value whose size is
    // passed along; the private callers keep the buffers it names alive.
    // There is no safe form: bpf(2) is a raw system call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn call_for_fd<T>(command: libc::c_long, attribute: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attribute)?;
    // SAFETY: the kernel just returned this descriptor to us; nobody else
    // owns it. There is no safe way to adopt a raw descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn address<T: ?Sized>(buffer: *const T) -> u64 {
    buffer.cast::<u8>().addr() as u64
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Loads and verifies `code`. `what` names it in errors.
    ///
    /// # Errors
    /// When the kernel or its verifier refuses the program.
    pub fn load(
        kind: ProgramType,
        what: &'static str,
        code: &[Instruction],
    ) -> Result<Program, BpfError> {
        // The log of a program with many paths is longer than any buffer, so
        // it is only asked for when there is something to explain.
        let (result, _) = load(kind, code, 0);
        let source = match result {
            Ok(fd) => return Ok(Program { fd }),
            Err(source) => source,
        };
        let (_, log) = load(kind, code, LOG_LEVEL);
        Err(BpfError::Load {
            what,
            source,
            log: log
                .trim_end_matches(['\0', '\n'])
                .lines()
                .rev()
                .find(|line| !line.starts_with("processed "))
                .unwrap_or("the verifier gave no reason")
                .to_owned(),
        })
    }

    /// Attaches a tc program at the ingress of the device `ifindex` of the
    /// calling thread's network namespace, before all others.
    ///
    /// # Errors
    /// When the device is not there or the kernel has no tcx.
    pub fn attach_ingress(&self, ifindex: u32) -> Result<Attachment, BpfError> {
        self.attach(ifindex, ATTACH_TCX_INGRESS, "attaching at tc ingress")
    }

    /// Attaches an XDP program to the device `ifindex` of the calling
    /// thread's network namespace, in the driver where it can.
    ///
    /// # Errors
    /// When the device is not there or already has a program.
    pub fn attach_xdp(&self, ifindex: u32) -> Result<Attachment, BpfError> {
        self.attach(ifindex, ATTACH_XDP, "attaching an XDP program")
    }

    fn attach(
        &self,
        ifindex: u32,
        attach_type: u32,
        what: &'static str,
    ) -> Result<Attachment, BpfError> {
        let mut attribute = LinkCreate {
            program: raw(&self.fd),
            ifindex,
            attach_type,
            ..LinkCreate::default()
        };
        call_for_fd(LINK_CREATE, &mut attribute)
            .map(|link| Attachment { _link: link })
            .map_err(|source| BpfError::Call { what, source })
    }

    /// Runs an XDP program over `repeat` live frames that start as copies of
    /// `frame`; what the program redirects is really sent, `batch` frames at
    /// once. Frames are recycled, so the program finds in them its own
    /// earlier writes and those of whoever received them.
    ///
    /// # Errors
    /// When the kernel refuses; `Interrupted` when a signal came.
    pub fn run_live(&self, frame: &[u8], repeat: u32, batch: u32) -> Result<(), BpfError> {
        let mut attribute = TestRun {
            program: raw(&self.fd),
            data_in_bytes: u32::try_from(frame.len()).expect("a frame"),
            data_in: address(frame.as_ptr()),
            repeat,
            flags: TEST_XDP_LIVE_FRAMES,
            batch,
            ..TestRun::default()
        };
        match call(PROG_TEST_RUN, &mut attribute) {
            Ok(_) => Ok(()),
            Err(source) => Err(BpfError::Call {
                what: "running a program over live frames",
                source,
            }),
        }
    }
}

/// A signal that comes while a program is verified ends that; as often as this
/// it is tried again.
const LOADS: u32 = 5;

/// Calls until no signal came in between.
fn undisturbed<T>(mut load: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut result = load();
    for _ in 1..LOADS {
        match &result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => result = load(),
            _ => break,
        }
    }
    result
}

/// Loads; with a log when `level` is not 0.
fn load(kind: ProgramType, code: &[Instruction], level: u32) -> (io::Result<OwnedFd>, String) {
    let license = c"GPL";
    let mut log = vec![0u8; if level == 0 { 0 } else { LOG_BYTES }];
    let mut attribute = ProgLoad {
        prog_type: kind as u32,
        instruction_count: u32::try_from(code.len()).expect("a short program"),
        instructions: address(code.as_ptr()),
        license: address(license.as_ptr()),
        log_level: level,
        log_size: log.len() as u32,
        log: if level == 0 {
            0
        } else {
            address(log.as_mut_ptr())
        },
        ..ProgLoad::default()
    };
    let result = undisturbed(|| call_for_fd(PROG_LOAD, &mut attribute));
    let log = String::from_utf8_lossy(std::hint::black_box(&log)).into_owned();
    (result, log)
}

/// A program in its place; dropping it takes it out.
#[derive(Debug)]
pub struct Attachment {
    _link: OwnedFd,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_signal_does_not_keep_a_program_from_being_loaded() {
        use io::ErrorKind::{InvalidInput, WouldBlock};
        for (answers, tries, found) in [
            (vec![Ok(7)], 1, Ok(7)),
            (vec![Err(WouldBlock), Err(WouldBlock), Ok(7)], 3, Ok(7)),
            (vec![Err(InvalidInput), Ok(7)], 1, Err(InvalidInput)),
            (vec![Err(WouldBlock); 9], 5, Err(WouldBlock)),
        ] {
            let tried = Cell::new(0);
            let result = undisturbed(|| {
                let answer = answers[tried.replace(tried.get() + 1)];
                answer.map_err(io::Error::from)
            });
            assert_eq!((result.map_err(|e| e.kind()), tried.get()), (found, tries));
        }
    }
}
