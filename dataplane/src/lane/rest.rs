//! When a lane waits, and how it is woken.
//!
//! `adaptive` goes round while there is work and for a moment after, because
//! the next packet of a conversation is usually near and a sleeping core costs
//! tens of microseconds to wake; then it sleeps on all its sockets and its
//! alarm at once. Level-triggered polling closes the race between the last
//! look at the rings and the sleep.
#![allow(unsafe_code)] // epoll and eventfd system calls

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::counters::LaneCounters;
use crate::lane::ports::Waits;
use crate::types::Nanos;

/// How lanes wait for packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PollMode {
    /// Spins while there is work, then sleeps.
    #[default]
    Adaptive,
    /// Never sleeps.
    Busy,
    /// Sleeps whenever a round was empty.
    Interrupt,
}

/// How long an adaptive lane goes on looking after its last packet: longer
/// than a round trip between two pods, so that a conversation never waits for
/// a core to wake.
const LINGER_NANOS: u64 = 200_000;

/// A lane goes round at least this often, so that its health can be told.
const LONGEST_SLEEP_MS: i32 = 1000;

/// Frames that were sent come back without a wake-up; look for them soon.
const COMPLETION_SLEEP_MS: i32 = 5;

/// A port that did not take all is tried again right away.
const TRANSMIT_SLEEP_MS: i32 = 0;

/// Wakes a sleeping thread: an eventfd.
#[derive(Debug)]
pub(crate) struct Alarm(OwnedFd);

impl Alarm {
    pub(crate) fn new() -> io::Result<Alarm> {
        // SAFETY: plain system call.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: eventfd() just made the descriptor; nobody else has it.
        Ok(Alarm(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes the sleeper. A full counter means that it is awake anyway.
    pub(crate) fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight live bytes, as eventfd wants them.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Silences it.
    pub(crate) fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight live bytes, as eventfd wants them.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A lane's waiting.
#[derive(Debug)]
pub(super) struct Rest {
    mode: PollMode,
    epoll: OwnedFd,
    last_packet: Nanos,
    alarm: i32,
}

impl Rest {
    pub(super) fn new(mode: PollMode, alarm: &Alarm) -> io::Result<Rest> {
        // SAFETY: plain system call.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: epoll_create1() just made the descriptor.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let rest = Rest {
            mode,
            epoll,
            last_packet: Nanos(0),
            alarm: alarm.fd().as_raw_fd(),
        };
        rest.control(libc::EPOLL_CTL_ADD, alarm.fd())?;
        Ok(rest)
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: fd.as_raw_fd() as u64,
        };
        // SAFETY: both descriptors and the event are live.
        let done = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                operation,
                fd.as_raw_fd(),
                &raw mut event,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Wakes for packets of this socket from now on.
    pub(super) fn watch(&self, socket: BorrowedFd<'_>) {
        // Fails only when the kernel is out of memory for it; the port then
        // is served once a second and by every other wake-up.
        let _ = self.control(libc::EPOLL_CTL_ADD, socket);
    }

    /// No longer wakes for this socket.
    pub(super) fn forget(&self, socket: BorrowedFd<'_>) {
        let _ = self.control(libc::EPOLL_CTL_DEL, socket);
    }

    /// Whether it is time to sleep after a round of `packets`.
    #[inline]
    pub(super) fn is_due(&mut self, packets: usize, now: Nanos) -> bool {
        if packets > 0 {
            self.last_packet = now;
            return false;
        }
        match self.mode {
            PollMode::Adaptive => now.since(self.last_packet) > LINGER_NANOS,
            PollMode::Busy => false,
            PollMode::Interrupt => true,
        }
    }

    /// Sleeps until a packet, the alarm, or what `waits` is worth waiting for.
    pub(super) fn sleep(&mut self, counters: &LaneCounters, waits: Waits) {
        let timeout = match waits {
            Waits::Nothing => LONGEST_SLEEP_MS,
            Waits::Completions => COMPLETION_SLEEP_MS,
            Waits::Transmit => TRANSMIT_SLEEP_MS,
        };
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: the array is live and its length is given.
        let woken = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                timeout,
            )
        };
        counters.sleeps.add(1);
        let alarm = self.alarm as u64;
        if events
            .iter()
            .take(woken.max(0) as usize)
            .any(|event| event.u64 == alarm)
        {
            let mut count = [0u8; 8];
            // SAFETY: eight live bytes, as eventfd wants them; the alarm lives
            // as long as the lane.
            unsafe { libc::read(self.alarm, count.as_mut_ptr().cast(), count.len()) };
        }
    }
}
