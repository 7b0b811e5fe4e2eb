//! Which ports' stream sockets have packets.
//!
//! Their packets stand in no ring that the lane could look at, so it asks the
//! kernel, for all ports at once and once a round while packets come. `epoll` costs a call back for
//! each packet here, too, but these are few and long. A socket that it refuses
//! (`fs.epoll.max_user_watches`, memory) is asked by itself, as often.
#![allow(unsafe_code)] // epoll system calls

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::lane::ports::LanePorts;
use crate::stream_socket::{Spares, StreamSocket};
use crate::types::{Nanos, PortId};
use crate::umem::FramePool;

/// Ports that are told of at once; the others follow in the next round.
const MOST_READY: usize = 16;

/// How soon it asks again when there was nothing. Asking in vain would
/// lengthen a conversation of single packets by more than that in all.
const PAUSE_NANOS: u64 = 2_000;

/// A lane's stream sockets.
#[derive(Debug)]
pub(crate) struct Streams {
    epoll: OwnedFd,
    watched: u32,
    /// Ports whose sockets `epoll` refused.
    refused: Vec<PortId>,
    due: Nanos,
    pub(super) spares: Spares,
}

impl Streams {
    pub(crate) fn new() -> io::Result<Streams> {
        // SAFETY: plain system call.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Streams {
            // SAFETY: epoll_create1() just made the descriptor; nobody else
            // has it.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            watched: 0,
            refused: Vec::new(),
            due: Nanos(0),
            spares: Spares::default(),
        })
    }

    /// Readable while a socket has packets.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Looks after a port's socket from now on. An error means that this costs a
    /// system call of its own, and that [`Streams::fd`] does not tell of it.
    pub(super) fn watch(&mut self, id: PortId, socket: &StreamSocket) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: u64::from(id.0),
        };
        match self.control(libc::EPOLL_CTL_ADD, socket, &raw mut event) {
            Ok(()) => {
                self.watched += 1;
                Ok(())
            }
            Err(error) => {
                self.refused.push(id);
                Err(error)
            }
        }
    }

    /// No longer looks after it.
    pub(super) fn forget(&mut self, id: PortId, socket: &StreamSocket) {
        let known = self.refused.len();
        self.refused.retain(|&refused| refused != id);
        if self.refused.len() == known
            && self
                .control(libc::EPOLL_CTL_DEL, socket, std::ptr::null_mut())
                .is_ok()
        {
            self.watched -= 1;
        }
    }

    fn control(
        &self,
        what: i32,
        socket: &StreamSocket,
        event: *mut libc::epoll_event,
    ) -> io::Result<()> {
        let (epoll, fd) = (self.epoll.as_raw_fd(), socket.fd().as_raw_fd());
        // SAFETY: both descriptors are open; the event is live, or absent
        // where none is read.
        match unsafe { libc::epoll_ctl(epoll, what, fd, event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Tells the ports whose sockets have packets.
    #[inline]
    pub(super) fn look(&mut self, ports: &mut LanePorts, now: Nanos) {
        if (self.watched == 0 && self.refused.is_empty()) || now < self.due {
            return;
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST_READY];
        // SAFETY: the array is live and its length is given.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                MOST_READY as i32,
                0,
            )
        };
        self.due = match count > 0 {
            true => now,
            false => Nanos(now.0 + PAUSE_NANOS),
        };
        let ready = events.iter().take(usize::try_from(count).unwrap_or(0));
        let ready = ready.map(|event| PortId(event.u64 as _));
        for id in ready.chain(self.refused.iter().copied()) {
            if let Some(port) = ports.get(id) {
                port.stream_waits = true;
            }
        }
    }

    /// Has every socket from now on refused, as if there was no memory for it.
    #[cfg(test)]
    pub(super) fn refuse_all(&mut self) {
        // What is none of epoll's is refused by epoll_ctl().
        self.epoll = std::fs::File::open("/dev/null").unwrap().into();
    }

    /// Gives back what is held for packets to come.
    pub(super) fn release(&mut self, pool: &mut FramePool) {
        self.spares.release(pool);
    }
}
