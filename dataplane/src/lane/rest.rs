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

/// Sockets up to which a lane naps: asking for each costs some 0.1 µs a nap.
const MOST_WATCHED: usize = 256;

/// A port that did not take all is tried again soon: nothing wakes the lane
/// when it has room.
const TRANSMIT_SLEEP_MS: i32 = 1;

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
///
/// `poll` rather than `epoll`: an epoll instance stays registered with every
/// socket while the lane is awake, so that the kernel would call it back, under
/// its lock, for each packet received and each buffer sent. `poll` registers
/// only while it sleeps.
#[derive(Debug)]
pub(super) struct Rest {
    mode: PollMode,
    /// The alarm, then every socket.
    watched: Vec<libc::pollfd>,
    last_packet: Nanos,
}

const fn watch(fd: i32) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

impl Rest {
    pub(super) fn new(mode: PollMode, alarm: &Alarm) -> Rest {
        Rest {
            mode,
            watched: vec![watch(alarm.fd().as_raw_fd())],
            last_packet: Nanos(0),
        }
    }

    /// Has the calling thread wake when it asked to, not up to 50 µs later.
    pub(super) fn prepare(&self) {
        // SAFETY: plain system call about the calling thread.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
    }

    /// Wakes for packets of this socket from now on.
    pub(super) fn watch(&mut self, socket: BorrowedFd<'_>) {
        self.watched.push(watch(socket.as_raw_fd()));
    }

    /// No longer wakes for this socket.
    pub(super) fn forget(&mut self, socket: BorrowedFd<'_>) {
        let gone = socket.as_raw_fd();
        self.watched.retain(|watched| watched.fd != gone);
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

    /// Whether the lane may sleep while there is traffic.
    #[inline]
    pub(super) fn may_nap(&self) -> bool {
        self.mode == PollMode::Adaptive && self.watched.len() <= MOST_WATCHED
    }

    /// Sleeps for so long, or until a packet of another socket than these, or
    /// the alarm.
    pub(super) fn nap<'a>(
        &mut self,
        alarm: &Alarm,
        counters: &LaneCounters,
        nanos: u64,
        except: impl Iterator<Item = BorrowedFd<'a>>,
    ) {
        for socket in except {
            let fd = socket.as_raw_fd();
            let watched = self.watched.iter_mut().find(|watched| watched.fd == fd);
            if let Some(watched) = watched {
                // The kernel passes over what is negative.
                watched.fd = !fd;
            }
        }
        let timeout = libc::timespec {
            tv_sec: 0,
            tv_nsec: nanos as libc::c_long,
        };
        let count = self.watched.len() as libc::nfds_t;
        let (watched, timeout) = (self.watched.as_mut_ptr(), &raw const timeout);
        // SAFETY: the array is live and its length is given; so is the timeout.
        unsafe { libc::ppoll(watched, count, timeout, std::ptr::null()) };
        counters.naps.add(1);
        for watched in self.watched.iter_mut().filter(|watched| watched.fd < 0) {
            watched.fd = !watched.fd;
        }
        if self.watched[0].revents != 0 {
            alarm.clear();
        }
    }

    /// Sleeps until a packet, the alarm, or what `waits` is worth waiting for.
    pub(super) fn sleep(&mut self, alarm: &Alarm, counters: &LaneCounters, waits: Waits) {
        let timeout = match waits {
            Waits::Nothing => LONGEST_SLEEP_MS,
            Waits::Completions => COMPLETION_SLEEP_MS,
            Waits::Transmit => TRANSMIT_SLEEP_MS,
        };
        let count = self.watched.len() as libc::nfds_t;
        // SAFETY: the array is live and its length is given.
        unsafe { libc::poll(self.watched.as_mut_ptr(), count, timeout) };
        counters.sleeps.add(1);
        if self.watched[0].revents != 0 {
            alarm.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// So long that a test that waits for it in vain shows.
    const NAP: Duration = Duration::from_millis(300);

    /// Lets a lane nap, and says whether something ended that early.
    fn is_woken(rest: &mut Rest, alarm: &Alarm, except: &Alarm) -> bool {
        let began = Instant::now();
        let counters = LaneCounters::new();
        let nanos = NAP.as_nanos() as u64;
        rest.nap(alarm, &counters, nanos, [except.fd()].into_iter());
        assert_eq!((counters.naps.get(), counters.sleeps.get()), (1, 0));
        began.elapsed() < NAP
    }

    #[test]
    fn a_nap_ends_for_everybody_but_the_flood() {
        let [alarm, flooding, other] = std::array::from_fn(|_| Alarm::new().unwrap());
        let mut rest = Rest::new(PollMode::Adaptive, &alarm);
        rest.watch(flooding.fd());
        rest.watch(other.fd());
        flooding.ring();
        assert!(!is_woken(&mut rest, &alarm, &flooding), "by the flood");
        assert!(is_woken(&mut rest, &alarm, &other), "it is watched again");
        flooding.clear();
        other.ring();
        assert!(is_woken(&mut rest, &alarm, &flooding), "by another port");
        other.clear();
        alarm.ring();
        assert!(is_woken(&mut rest, &alarm, &flooding), "by the alarm");
        assert!(!is_woken(&mut rest, &alarm, &flooding), "it was silenced");
    }

    #[test]
    fn only_adaptive_lanes_nap() {
        let alarm = Alarm::new().unwrap();
        let naps = |mode| Rest::new(mode, &alarm).may_nap();
        assert!(naps(PollMode::Adaptive));
        assert!(!naps(PollMode::Busy) && !naps(PollMode::Interrupt));
    }
}
