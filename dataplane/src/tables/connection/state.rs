//! States of a connection, and how long each lasts without a packet.
//!
//! Windows and sequence numbers are not followed: packets of one connection
//! may take several lanes, and what the ends make of a packet is theirs to
//! decide. So flags alone move the state, and a reset that comes from outside
//! is believed only once nothing follows it for [`State::Reset`]'s time.

use crate::wire::protocol;
use crate::wire::tcp::flags;

/// Which direction of a connection a packet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// As the first packet.
    Original = 0,
    /// The other.
    Reply = 1,
}

impl Side {
    /// The other direction.
    pub const fn other(self) -> Side {
        match self {
            Side::Original => Side::Reply,
            Side::Reply => Side::Original,
        }
    }
}

/// Who began a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Origin {
    /// A pod of this node, towards the outside.
    Pod = 0,
    /// Somebody outside, towards a pod's own address.
    Outside = 1,
}

impl Origin {
    pub(super) const COUNT: usize = 2;

    pub(super) const fn from_number(number: u8) -> Origin {
        match number {
            0 => Origin::Pod,
            _ => Origin::Outside,
        }
    }

    /// Whether packets of that direction come from the pod.
    pub(super) const fn is_pods(self, side: Side) -> bool {
        matches!(
            (self, side),
            (Origin::Pod, Side::Original) | (Origin::Outside, Side::Reply)
        )
    }
}

macro_rules! states {
    ($($(#[$doc:meta])* $variant:ident = $number:literal => $name:literal,)*) => {
        /// Where a connection stands.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum State { $($(#[$doc])* $variant = $number,)* }

        impl State {
            /// Its name in documents.
            pub const fn name(self) -> &'static str {
                match self { $(State::$variant => $name,)* }
            }

            pub(super) const fn from_number(number: u8) -> Option<State> {
                match number { $($number => Some(State::$variant),)* _ => None }
            }
        }
    };
}

states! {
    /// Not TCP: nobody answered yet.
    Unreplied = 1 => "unreplied",
    /// Not TCP: answered.
    Replied = 2 => "replied",
    /// Not TCP: still talking after the first moment.
    Stream = 3 => "stream",
    /// A SYN was seen.
    SynSent = 4 => "syn-sent",
    /// A SYN came back.
    SynReceived = 5 => "syn-received",
    /// TCP without its beginning, and nobody answered yet.
    PickedUp = 6 => "picked-up",
    /// Both ends talk.
    Established = 7 => "established",
    /// The original sender is done; the other may go on.
    FinWait = 8 => "fin-wait",
    /// The other end is done; the original sender may go on.
    CloseWait = 9 => "close-wait",
    /// Both are done.
    TimeWait = 10 => "time-wait",
    /// The pod reset it.
    Closed = 11 => "closed",
    /// A reset came from outside.
    Reset = 12 => "reset",
}

const SECOND_MS: u64 = 1000;

/// A flow of UDP or echoes that goes on for longer than this is no single
/// question (as nf_conntrack has it).
const STREAM_AFTER_MS: u64 = 2 * SECOND_MS;

impl State {
    /// The state that a first packet opens; `None` when it can open none.
    pub fn first(protocol: u8, tcp_flags: u8) -> Option<State> {
        match protocol {
            protocol::TCP if tcp_flags & flags::RST != 0 => None,
            protocol::TCP => match (tcp_flags & flags::SYN != 0, tcp_flags & flags::ACK != 0) {
                (true, true) => None,
                (true, false) => Some(State::SynSent),
                (false, _) => Some(State::PickedUp),
            },
            _ => Some(State::Unreplied),
        }
    }

    /// How long the state lasts without a packet, in milliseconds.
    ///
    /// | state | here | nf_conntrack | asked for |
    /// |---|---|---|---|
    /// | UDP, one question | 30 s | 30 s | 2 min (RFC 4787, REQ-5; a port that DNS holds for minutes is worth more) |
    /// | UDP stream | 180 s | 120 s | 2 min, 5 recommended |
    /// | echo | 60 s | 30 s | 60 s (RFC 5508, REQ-1) |
    /// | SYN sent | 120 s | 120 s | 4 min (RFC 5382, REQ-5, as all that is half open) |
    /// | SYN received | 60 s | 60 s | |
    /// | picked up | 120 s | 300 s (unacknowledged) | |
    /// | established | 24 h | 5 days; kube-proxy sets 24 h | 2 h 4 min |
    /// | one end done | 1 h | 60–120 s; kube-proxy sets 1 h | 4 min |
    /// | both done | 120 s | 120 s | 4 min |
    /// | reset by the pod | 10 s | 10 s | |
    /// | reset from outside | 240 s | 10 s | 4 min (RFC 7857, section 2.2) |
    pub fn timeout_ms(self, protocol: u8) -> u64 {
        let seconds = match self {
            _ if matches!(protocol, protocol::ICMP | protocol::ICMPV6) => 60,
            State::Unreplied | State::Replied => 30,
            State::Stream => 180,
            State::SynReceived => 60,
            State::Established => 24 * 3600,
            State::FinWait | State::CloseWait => 3600,
            State::SynSent | State::PickedUp | State::TimeWait => 120,
            State::Closed => 10,
            State::Reset => 240,
        };
        seconds * SECOND_MS
    }

    /// Whether the connection is over for both ends and only its port is kept,
    /// which a new one to the same destination may have when no other is free;
    /// no flow is installed for it any more (as `nf_nat_used_tuple_harder`,
    /// net/netfilter/nf_nat_core.c).
    pub fn may_give_way(self) -> bool {
        matches!(self, State::TimeWait | State::Closed | State::Reset)
    }

    /// Whether nobody on the other side has said anything.
    pub(super) fn is_unanswered(self) -> bool {
        matches!(self, State::Unreplied | State::PickedUp)
    }

    /// The state after a packet; `age_ms` is the connection's. TCP flags are 0
    /// for other protocols.
    pub fn after(self, side: Side, origin: Origin, tcp_flags: u8, age_ms: u64) -> State {
        let is_reply = side == Side::Reply;
        let is_pods = origin.is_pods(side);
        if let State::Unreplied | State::Replied | State::Stream = self {
            return match self {
                State::Unreplied if is_reply => State::Replied,
                State::Replied if age_ms > STREAM_AFTER_MS => State::Stream,
                same => same,
            };
        }
        if tcp_flags & flags::RST != 0 {
            return match (self, is_pods) {
                (State::Closed, _) | (_, true) => State::Closed,
                (_, false) => State::Reset,
            };
        }
        if tcp_flags & flags::SYN != 0 {
            return self.after_syn(is_reply, is_pods, tcp_flags & flags::ACK != 0);
        }
        let open = match self {
            State::SynReceived if !is_reply => State::Established,
            State::PickedUp if is_reply => State::Established,
            // The pod goes on: the reset was not for it, or not believed.
            State::Reset if is_pods => State::Established,
            same => same,
        };
        match tcp_flags & flags::FIN != 0 {
            true => open.after_fin(is_reply),
            false => open,
        }
    }

    fn after_syn(self, is_reply: bool, is_pods: bool, has_ack: bool) -> State {
        match self {
            State::SynSent | State::PickedUp if is_reply => State::SynReceived,
            // The same ends begin anew (RFC 9293, section 3.6.1).
            State::TimeWait | State::Closed if !is_reply && !has_ack => State::SynSent,
            State::Reset if !is_reply && is_pods && !has_ack => State::SynSent,
            same => same,
        }
    }

    fn after_fin(self, is_reply: bool) -> State {
        match (self, is_reply) {
            (State::FinWait, true) | (State::CloseWait, false) => State::TimeWait,
            (State::Established | State::SynReceived, true) => State::CloseWait,
            (State::Established | State::SynReceived, false) => State::FinWait,
            (same, _) => same,
        }
    }

    /// Whether the packets of a direction need not be looked at one by one:
    /// flows may answer for those without SYN, FIN or RST. Not of who is done,
    /// so that no flow is left when both are.
    #[inline]
    pub fn is_settled(self, side: Side) -> bool {
        match self {
            State::Unreplied | State::Replied | State::Stream | State::Established => true,
            State::FinWait => side == Side::Reply,
            State::CloseWait => side == Side::Original,
            State::SynSent
            | State::SynReceived
            | State::PickedUp
            | State::TimeWait
            | State::Closed
            | State::Reset => false,
        }
    }

    /// Whether it goes first when room is needed: not agreed on by both ends,
    /// or over.
    pub fn is_expendable(self) -> bool {
        !matches!(
            self,
            State::Stream | State::Established | State::FinWait | State::CloseWait
        )
    }

    /// Whether no flow can be using it, so that it can go at any moment.
    pub(super) fn is_half_open(self) -> bool {
        matches!(self, State::SynSent | State::SynReceived | State::PickedUp)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SYN: u8 = flags::SYN;
    const ACK: u8 = flags::ACK;
    const FIN: u8 = flags::FIN | flags::ACK;
    const RST: u8 = flags::RST;

    /// A name, the state before, packets with their flags, the state after.
    type Case = (&'static str, State, &'static [(Side, u8)], State);

    #[test]
    fn flags_move_the_state() {
        use Side::{Original as O, Reply as R};
        use State::*;
        let cases: &[Case] = &[
            (
                "handshake",
                SynSent,
                &[(R, SYN | ACK), (O, ACK)],
                Established,
            ),
            ("half of it", SynSent, &[(R, SYN | ACK)], SynReceived),
            ("both at once", SynSent, &[(R, SYN), (O, ACK)], Established),
            ("a repeated SYN", SynSent, &[(O, SYN)], SynSent),
            ("challenged, not opened", SynSent, &[(R, ACK)], SynSent),
            ("refused", SynSent, &[(R, RST | ACK)], Reset),
            (
                "sender closes first",
                Established,
                &[(O, FIN), (R, FIN)],
                TimeWait,
            ),
            (
                "other closes first",
                Established,
                &[(R, FIN), (O, FIN)],
                TimeWait,
            ),
            (
                "half closed",
                Established,
                &[(O, FIN), (R, ACK), (O, ACK)],
                FinWait,
            ),
            (
                "half closed by the other",
                Established,
                &[(R, FIN), (O, ACK)],
                CloseWait,
            ),
            (
                "FIN with the handshake's end",
                SynReceived,
                &[(O, FIN)],
                FinWait,
            ),
            ("reset", Established, &[(O, RST)], Closed),
            ("reset from outside", Established, &[(R, RST)], Reset),
            (
                "reset that nobody heeds",
                Established,
                &[(R, RST), (O, ACK)],
                Established,
            ),
            (
                "reset, and late data",
                Established,
                &[(R, RST), (R, ACK)],
                Reset,
            ),
            (
                "closed stays closed",
                Closed,
                &[(R, RST), (R, ACK), (O, ACK)],
                Closed,
            ),
            ("opened again", TimeWait, &[(O, SYN)], SynSent),
            (
                "not opened again from outside",
                TimeWait,
                &[(R, SYN)],
                TimeWait,
            ),
            (
                "SYN inside a window",
                Established,
                &[(R, SYN), (O, SYN)],
                Established,
            ),
            ("picked up", PickedUp, &[(O, ACK), (R, ACK)], Established),
            ("datagrams", Unreplied, &[(O, 0), (O, 0)], Unreplied),
            ("datagrams answered", Unreplied, &[(R, 0), (O, 0)], Replied),
        ];
        for (name, from, packets, to) in cases {
            let end = packets.iter().fold(*from, |state, &(side, flags)| {
                state.after(side, Origin::Pod, flags, 0)
            });
            assert_eq!(end, *to, "{name}");
        }
    }

    #[test]
    fn the_outside_may_begin_and_is_believed_no_more_for_it() {
        use Side::{Original as O, Reply as R};
        use State::*;
        let cases: &[Case] = &[
            (
                "handshake",
                SynSent,
                &[(R, SYN | ACK), (O, ACK)],
                Established,
            ),
            ("refused by the pod", SynSent, &[(R, RST | ACK)], Closed),
            (
                "picked up in its middle",
                PickedUp,
                &[(O, ACK), (R, ACK)],
                Established,
            ),
            ("reset by the pod", Established, &[(R, RST)], Closed),
            ("reset by the caller", Established, &[(O, RST)], Reset),
            (
                "reset that the pod does not heed",
                Established,
                &[(O, RST), (R, ACK)],
                Established,
            ),
            (
                "reset, then begun again",
                Established,
                &[(O, RST), (O, SYN), (R, SYN | ACK), (O, ACK), (R, ACK)],
                Established,
            ),
            ("begun again when over", TimeWait, &[(O, SYN)], SynSent),
            (
                "not begun again by the pod",
                TimeWait,
                &[(R, SYN)],
                TimeWait,
            ),
        ];
        for (name, from, packets, to) in cases {
            let end = packets.iter().fold(*from, |state, &(side, flags)| {
                state.after(side, Origin::Outside, flags, 0)
            });
            assert_eq!(end, *to, "{name}");
        }
    }

    #[test]
    fn a_talk_that_goes_on_is_a_stream() {
        let after = |state: State, age_ms| state.after(Side::Original, Origin::Pod, 0, age_ms);
        assert_eq!(after(State::Replied, 2000), State::Replied);
        assert_eq!(after(State::Replied, 2001), State::Stream);
        assert_eq!(after(State::Unreplied, 9000), State::Unreplied);
    }

    #[test]
    fn a_first_packet_opens_what_it_may() {
        assert_eq!(State::first(protocol::TCP, SYN), Some(State::SynSent));
        assert_eq!(State::first(protocol::TCP, SYN | ACK), None);
        assert_eq!(State::first(protocol::TCP, ACK), Some(State::PickedUp));
        assert_eq!(State::first(protocol::TCP, RST | ACK), None);
        assert_eq!(State::first(protocol::UDP, 0), Some(State::Unreplied));
    }

    #[test]
    fn numbers_name_states() {
        let all: Vec<State> = (0..=u8::MAX).filter_map(State::from_number).collect();
        assert_eq!(all.len(), 12);
        for state in all {
            assert_eq!(State::from_number(state as u8), Some(state));
            assert!(state.timeout_ms(protocol::TCP) >= 10_000);
            for side in [Side::Original, Side::Reply] {
                assert!(
                    !(state.is_half_open() && state.is_settled(side)),
                    "{state:?}"
                );
                assert!(
                    !(state.may_give_way() && state.is_settled(side)),
                    "{state:?}"
                );
            }
        }
    }
}
