//! The way by which datagrams of the overlay leave an uplink together.
//!
//! A device that cuts them gets them past its queue discipline, as it gets
//! what stands in the transmit ring. For another one the kernel cuts them,
//! which it does behind the queue discipline only: there they may wait while
//! the ring goes on. So a flow that went this way keeps to it until long after
//! the last of its datagrams has left.

use std::io;

use crate::packet_socket::{PacketSocket, Way};
use crate::types::Nanos;

/// Source ports of the overlay's datagrams (RFC 7348, section 5), a flow's
/// always the same.
const FLOWS: usize = 1 << 14;

/// How long a flow keeps to the queue discipline. No queue holds packets for
/// as long and is of use to anybody.
const KEEPING_MS: u32 = 4_000;

/// Datagrams, as frames, from which on two are worth the kernel's cutting. It
/// costs as much for short ones as for long, the transmit ring less.
const LONG: u32 = 512;

/// How many short ones are: single ones cost more by the socket than by the
/// ring, and a flow that once went this way keeps to it.
const MANY: usize = 16;

/// A socket, and who has to use it.
#[derive(Debug)]
pub(crate) struct OverlayWay {
    pub(crate) socket: PacketSocket,
    kept: Option<Kept>,
}

impl OverlayWay {
    /// Of device `ifindex`, which cuts datagrams by itself or does not.
    pub(crate) fn open(ifindex: u32, cuts_datagrams: bool) -> io::Result<OverlayWay> {
        let (way, kept) = match cuts_datagrams {
            true => (Way::PastDiscipline, None),
            false => (Way::Ordinary, Some(Kept::new())),
        };
        let socket = PacketSocket::open(ifindex, way)?;
        Ok(OverlayWay { socket, kept })
    }

    /// Whether so many datagrams of a flow, as frames of `len` bytes, are worth
    /// this way.
    pub(crate) fn is_for(&self, datagrams: usize, len: u32) -> bool {
        self.kept.is_none() || is_worth_cutting(datagrams, len)
    }

    /// Whether the flow of that source port has to go this way.
    pub(crate) fn keeps(&self, source_port: u16, now: Nanos) -> bool {
        let kept = self.kept.as_ref();
        kept.is_some_and(|kept| kept.has(source_port, now))
    }

    /// Whether some datagrams may have left before the kernel said this: it
    /// cut them, and then the device was full. Before that, it says other
    /// things; past the queue discipline all go or none.
    pub(crate) fn may_have_begun(&self, error: &io::Error) -> bool {
        self.kept.is_some() && error.raw_os_error() == Some(libc::ENOBUFS)
    }

    /// Notes that datagrams of that source port went this way.
    pub(crate) fn went(&mut self, source_port: u16, now: Nanos) {
        if let Some(kept) = &mut self.kept {
            kept.note(source_port, now);
        }
    }
}

fn is_worth_cutting(datagrams: usize, len: u32) -> bool {
    len >= LONG || datagrams >= MANY
}

/// Until when flows are kept, in milliseconds; 0 for those that never were.
#[derive(Debug)]
struct Kept(Box<[u32]>);

fn milliseconds(now: Nanos) -> u32 {
    (now.0 / 1_000_000) as u32
}

impl Kept {
    fn new() -> Kept {
        Kept(vec![0; FLOWS].into_boxed_slice())
    }

    fn has(&self, source_port: u16, now: Nanos) -> bool {
        let until = self.0[usize::from(source_port) % FLOWS];
        // The clock wraps after 49 days.
        until != 0 && until.wrapping_sub(milliseconds(now)) <= KEEPING_MS
    }

    fn note(&mut self, source_port: u16, now: Nanos) {
        let until = milliseconds(now).wrapping_add(KEEPING_MS);
        self.0[usize::from(source_port) % FLOWS] = until.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_datagrams_need_many_to_be_cut() {
        assert!(is_worth_cutting(2, LONG));
        assert!(is_worth_cutting(MANY, 60));
        assert!(!is_worth_cutting(MANY - 1, LONG - 1));
    }

    #[test]
    fn a_flow_is_kept_for_a_while_after_its_last_run() {
        let at = |ms: u64| Nanos(ms * 1_000_000);
        // Also across the wrap of the clock in milliseconds.
        for start in [0, 5, 1 << 20, (1 << 32) - 2_000] {
            let mut kept = Kept::new();
            assert!(!kept.has(0xc001, at(start)));
            kept.note(0xc001, at(start));
            for later in [0, 1, 3_999] {
                assert!(kept.has(0xc001, at(start + later)), "{start} + {later}");
            }
            assert!(!kept.has(0xc002, at(start)), "another flow");
            assert!(!kept.has(0xc001, at(start + 4_002)), "{start}");
            kept.note(0xc001, at(start + 9_000));
            assert!(kept.has(0xc001, at(start + 12_000)));
        }
    }
}
