//! The way by which packets leave an uplink together, to be cut there:
//! datagrams of the overlay, and super-frames that need no overlay.
//!
//! A device that cuts them gets them past its queue discipline, as it gets
//! what stands in the transmit ring. For another one the kernel cuts them,
//! which it does behind the queue discipline only: there they may wait while
//! the ring goes on. So a flow that went this way keeps to it until long after
//! the last of its packets has left. TCP does so on any device: one with
//! several queues may have another one for the ring.

use std::io;

use crate::packet_socket::{PacketSocket, Way};
use crate::types::Nanos;
use crate::wire::ethernet::HEADER_LEN as L3;
use crate::wire::{ipv4, ipv6, protocol};

/// Marks that flows are told apart by: source ports of the overlay's datagrams
/// (RFC 7348, section 5), or what [`tcp_mark`] makes.
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
pub(crate) struct UplinkWay {
    pub(crate) socket: PacketSocket,
    kept: Option<Kept>,
    is_cut_by_kernel: bool,
}

impl UplinkWay {
    /// For datagrams of the overlay, by device `ifindex`, which cuts datagrams
    /// by itself or does not.
    pub(crate) fn of_datagrams(ifindex: u32, cuts_datagrams: bool) -> io::Result<UplinkWay> {
        let kept = (!cuts_datagrams).then(Kept::new);
        UplinkWay::open(ifindex, cuts_datagrams, kept)
    }

    /// For TCP, by device `ifindex`, which cuts it by itself or does not.
    pub(crate) fn of_segments(ifindex: u32, cuts_segments: bool) -> io::Result<UplinkWay> {
        UplinkWay::open(ifindex, cuts_segments, Some(Kept::new()))
    }

    fn open(ifindex: u32, device_cuts: bool, kept: Option<Kept>) -> io::Result<UplinkWay> {
        let way = match device_cuts {
            true => Way::PastDiscipline,
            false => Way::Ordinary,
        };
        Ok(UplinkWay {
            socket: PacketSocket::open(ifindex, way)?,
            kept,
            is_cut_by_kernel: !device_cuts,
        })
    }

    /// Whether so many datagrams of a flow, as frames of `len` bytes, are worth
    /// this way.
    pub(crate) fn is_for(&self, datagrams: usize, len: u32) -> bool {
        !self.is_cut_by_kernel || is_worth_cutting(datagrams, len)
    }

    /// Whether what waits may be overtaken by what goes past the queue
    /// discipline.
    pub(crate) fn may_wait(&self) -> bool {
        self.is_cut_by_kernel
    }

    /// Whether the flow of that mark has to go this way.
    pub(crate) fn keeps(&self, mark: u16, now: Nanos) -> bool {
        let kept = self.kept.as_ref();
        kept.is_some_and(|kept| kept.has(mark, now))
    }

    /// Whether some datagrams may have left before the kernel said this: it
    /// cut them, and then the device was full. Before that, it says other
    /// things; past the queue discipline all go or none.
    pub(crate) fn may_have_begun(&self, error: &io::Error) -> bool {
        self.is_cut_by_kernel && error.raw_os_error() == Some(libc::ENOBUFS)
    }

    /// Lets the flows of that mark go by the ring, until they go this way again.
    pub(crate) fn forget(&mut self, mark: u16) {
        if let Some(kept) = self.kept.as_mut().filter(|_| !self.is_cut_by_kernel) {
            kept.forget(mark);
        }
    }

    /// Notes that packets of that mark went this way.
    pub(crate) fn went(&mut self, mark: u16, now: Nanos) {
        if let Some(kept) = &mut self.kept {
            kept.note(mark, now);
        }
    }
}

fn is_worth_cutting(datagrams: usize, len: u32) -> bool {
    len >= LONG || datagrams >= MANY
}

/// The mark of a TCP packet's flow; `None` for what is no plain TCP packet.
/// Flows may share one.
pub(crate) fn tcp_mark(frame: &[u8]) -> Option<u16> {
    let kind = (frame.get(12..15)?, frame.get(20)?, frame.get(23)?);
    let (addresses, ports) = match kind {
        ([0x08, 0x00, 0x45], _, &protocol::TCP) => (L3 + 12, L3 + ipv4::HEADER_LEN),
        ([0x86, 0xdd, _], &protocol::TCP, _) => (L3 + 8, L3 + ipv6::HEADER_LEN),
        _ => return None,
    };
    // The last bytes of addresses tell most; both ways have marks of their own.
    let end = frame.get(addresses..ports)?.rchunks(2).next()?;
    let ports = frame.get(ports..ports + 4)?;
    let word = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    let mixed = word(ports) ^ word(&ports[2..]).rotate_left(7) ^ word(end).rotate_left(11);
    Some(mixed)
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

    fn has(&self, mark: u16, now: Nanos) -> bool {
        let until = self.0[usize::from(mark) % FLOWS];
        // The clock wraps after 49 days.
        until != 0 && until.wrapping_sub(milliseconds(now)) <= KEEPING_MS
    }

    fn forget(&mut self, mark: u16) {
        self.0[usize::from(mark) % FLOWS] = 0;
    }

    fn note(&mut self, mark: u16, now: Nanos) {
        let until = milliseconds(now).wrapping_add(KEEPING_MS);
        self.0[usize::from(mark) % FLOWS] = until.max(1);
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
            kept.forget(0xc001);
            assert!(!kept.has(0xc001, at(start + 12_000)));
        }
    }
}
