//! The uplink's program on its device.
//!
//! It stays when the process ends, however that ends, and keeps the
//! masquerade's packets from the kernel until the next process is there. That
//! one puts its own program in its place in one step.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::programs::{ProgramFd, loaded_programs};

use crate::port::{Kind, Program, ProgramError, XdpChoice};
use crate::xdp_link::{self, Held, Old, XdpMode};

/// The program of a process before this one, or of this one.
pub(crate) struct Own {
    pub(crate) mode: XdpMode,
    program: ProgramFd,
}

/// Our program on a device; `None` for none, or somebody else's.
pub(crate) fn own(ifindex: u32) -> Result<Option<Own>, ProgramError> {
    let Some(Held { program, mode }) = xdp_link::held(ifindex).map_err(ProgramError::Attach)?
    else {
        return Ok(None);
    };
    let name = Kind::Uplink.program();
    let mut programs = loaded_programs().filter_map(Result::ok);
    let info = programs.find(|info| info.id() == program && info.name_as_str() == Some(name));
    let program = info.map(|info| info.fd()).transpose()?;
    Ok(program.map(|program| Own { mode, program }))
}

/// Attaches a program in the first mode that the device takes, in the place of
/// an earlier one of ours.
pub(crate) fn attach(
    program: &mut Program,
    ifindex: u32,
    choice: XdpChoice,
) -> Result<XdpMode, ProgramError> {
    let mut old = own(ifindex)?;
    let fd = program.load()?;
    let mut refused = None;
    for &mode in choice.attempts() {
        if let Some(other) = old.take_if(|old| old.mode != mode) {
            // No two modes at once.
            remove(ifindex, &other).map_err(ProgramError::Attach)?;
        }
        let old = old.as_ref();
        let old = old.map_or(Old::None, |old| Old::Program(old.program.as_fd()));
        match xdp_link::attach(ifindex, fd.as_fd(), mode, old) {
            Ok(()) => return Ok(mode),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.map_or(ProgramError::Missing("XDP mode"), ProgramError::Attach))
}

/// Takes our program off a device; the kernel has all of its frames again.
/// Returns whether there was one.
pub fn release(ifindex: u32) -> Result<bool, ProgramError> {
    let Some(own) = own(ifindex)? else {
        return Ok(false);
    };
    match remove(ifindex, &own) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        removed => removed.map(|()| true).map_err(ProgramError::Attach),
    }
}

fn remove(ifindex: u32, own: &Own) -> io::Result<()> {
    let program: BorrowedFd<'_> = own.program.as_fd();
    xdp_link::detach(ifindex, own.mode, Old::Program(program))
}
