//! Pods leave the cluster with the node's address.
//!
//! Stands before [`super::classify`] for packets that no flow answers for:
//! what the uplink brings to an egress address is looked up among the
//! connections and delivered to the pod behind it; what classify sends out
//! from a pod gets an address and port of the node, unless it answers somebody
//! who addressed the pod itself ([`direct`]). The flow that is then installed
//! carries the translation; packets that move a TCP connection's state come
//! here every time.
//!
//! Answers are let in from the address and port that the pod addressed, and
//! from nobody else (RFC 4787, section 5: address and port-dependent
//! filtering). ICMP errors are known by the packet that they quote.

mod direct;

use std::net::IpAddr;

use zerocopy::FromBytes;

use super::classify::{self, Decision, Ingress, RoutedKey};
use super::parse::{Headers, Kind, Part};
use super::pieces::Datagram;
use super::translate::{self, Quote};
use super::{Lane, LookedUp, Round, narrow};
use crate::drops::DropReason;
use crate::frame::Batch;
use crate::snapshot::{Destination, Role};
use crate::tables::connection::{
    Addresses, End, Exits, Found, Opening, Origin, Refused, Side, Stamp, State, Tuple,
};
use crate::tables::flow::{Actions, Hint, Translation, UpperKey};
use crate::types::PortId;
use crate::wire::tcp::{self, TcpHeader, flags, option};
use crate::wire::{icmpv4, icmpv6, protocol};

/// How long a destination without a free port is not asked for again.
const EXHAUSTED_MS: u64 = 100;

/// Destinations that are remembered so: more than one pod's connections can
/// exhaust (131072 of 4536 ports each), since looking for a port in vain takes
/// most of a millisecond.
const EXHAUSTED: usize = 128;

/// Flags of packets that may move a TCP connection's state.
const EDGES: u8 = flags::SYN | flags::FIN | flags::RST;

/// What becomes of a packet, and what it gets on the way.
pub(super) struct Decided {
    pub(super) decision: Decision,
    pub(super) translation: Option<Translation>,
    /// Whether later packets of its kind may get the same unasked.
    pub(super) is_settled: bool,
}

impl Decided {
    fn plain(decision: Decision) -> Decided {
        Decided {
            decision,
            translation: None,
            is_settled: true,
        }
    }

    fn drop(reason: DropReason) -> Decided {
        Decided::plain(Decision::Drop(reason))
    }
}

/// A packet with what is known of it.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a, K> {
    pub(super) index: usize,
    pub(super) headers: &'a Headers,
    pub(super) key: &'a K,
    pub(super) hash: u64,
}

/// Destinations without a free port, so that a flood of new connections costs
/// one search now and then.
#[derive(Debug, Default)]
pub(super) struct Exhausted {
    /// For everybody.
    all: Places,
    /// For what is left of connections: who begins may still get a port whose
    /// connection is over.
    picked_up: Places,
}

impl Exhausted {
    fn holds(&self, tuple: &Tuple, state: State, now_ms: u64) -> bool {
        self.all.hold(tuple, now_ms)
            || state == State::PickedUp && self.picked_up.hold(tuple, now_ms)
    }

    fn note(&mut self, refused: Refused, tuple: &Tuple, state: State, now_ms: u64) {
        match (refused, state) {
            (Refused::NoPort, _) => self.all.note(tuple, now_ms),
            (Refused::NoFreePort, State::PickedUp) => self.picked_up.note(tuple, now_ms),
            _ => {}
        }
    }
}

/// Some destinations, each for a while.
#[derive(Debug)]
struct Places {
    places: Vec<(End, u8, u64)>,
    next: usize,
    /// When none of them holds any more.
    until: u64,
}

impl Default for Places {
    fn default() -> Places {
        Places {
            places: Vec::with_capacity(EXHAUSTED),
            next: 0,
            until: 0,
        }
    }
}

impl Places {
    fn hold(&self, tuple: &Tuple, now_ms: u64) -> bool {
        let is_it = |(end, protocol, until): &(End, u8, u64)| {
            *end == tuple.destination && *protocol == tuple.protocol && *until > now_ms
        };
        now_ms < self.until && self.places.iter().any(is_it)
    }

    fn note(&mut self, tuple: &Tuple, now_ms: u64) {
        let until = now_ms + EXHAUSTED_MS;
        let place = (tuple.destination, tuple.protocol, until);
        match self.places.get_mut(self.next) {
            Some(old) => *old = place,
            None => self.places.push(place),
        }
        self.next = (self.next + 1) % EXHAUSTED;
        self.until = until;
    }
}

/// Asks for what looking up the connections of packets will read that no flow
/// answers for, so that the cache misses of a batch overlap.
#[inline]
pub(super) fn ask_all(round: &Round<'_>, packets: &[LookedUp]) {
    if !round.snapshot.masquerade.is_on || packets.len() == 1 {
        return;
    }
    for packet in packets.iter().filter(|packet| packet.hint == Hint::NONE) {
        match &packet.parsed.kind {
            Kind::V4(key) => ask(round, key),
            Kind::V6(key) => ask(round, key),
            Kind::Arp | Kind::Segment(..) | Kind::Bad(_) => {}
        }
    }
}

fn ask<K: RoutedKey>(round: &Round<'_>, key: &K) {
    let UpperKey {
        ports: [a, b, c, d],
        protocol,
        is_fragment,
        ..
    } = *key.upper();
    let has_ports = matches!(protocol, protocol::TCP | protocol::UDP) && is_fragment == 0;
    if !has_ports {
        return;
    }
    let end = |address: IpAddr, port| End {
        address: address.into(),
        port: u16::from_be_bytes(port),
    };
    round.connections.ask(&Tuple {
        source: end(key.source(), [a, b]),
        destination: end(key.destination(), [c, d]),
        protocol,
    });
}

/// Decides a packet that no flow answers for.
pub(super) fn classify<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    subject: Subject<'_, K>,
    lane: &mut Lane,
) -> Decided {
    let snapshot = round.snapshot;
    let from = Ingress::of(snapshot, subject.key.upper().in_port);
    if let Some(from) = from
        && from.is_uplink()
        && snapshot.masquerade.leaves_with(subject.key.destination())
        && let Some(decided) = inbound(round, batch, subject, from, lane)
    {
        return decided;
    }
    let decision = classify::classify(snapshot, subject.key, subject.headers);
    match (decision, from) {
        (Decision::Forward(actions), Some(Ingress::Port(port)))
            if actions.has(Actions::UPLINK)
                && port.role == Role::Pod
                && applies(round, subject.key.destination()) =>
        {
            match outbound(round, batch, subject, port.id, lane) {
                Ok((translation, is_settled)) => Decided {
                    decision: direct::goes_back(
                        round,
                        Ingress::Port(port),
                        (&actions, &translation),
                    )
                    .unwrap_or(decision),
                    translation: Some(translation),
                    is_settled,
                },
                Err(reason) => Decided::drop(reason),
            }
        }
        (Decision::Forward(actions), Some(from)) => {
            match direct::called(round, from, subject.key, &actions) {
                Some(pod) => direct::arrives(round, batch, subject, from, (decision, pod)),
                None => Decided::plain(decision),
            }
        }
        (decision, _) => Decided::plain(decision),
    }
}

/// Whether a packet may have moved its TCP connection's state, so that no
/// flow may answer for it.
#[inline]
pub(super) fn is_edge(bytes: &[u8], headers: &Headers) -> bool {
    tcp_flags(bytes, headers) & EDGES != 0
}

#[inline]
pub(super) fn tcp_flags(bytes: &[u8], headers: &Headers) -> u8 {
    match headers.protocol {
        protocol::TCP => bytes
            .get(usize::from(headers.transport) + 13)
            .copied()
            .unwrap_or(0),
        _ => 0,
    }
}

/// How far the sender of a TCP packet has come with it.
fn stamp(bytes: &[u8], headers: &Headers) -> Option<Stamp> {
    if headers.protocol != protocol::TCP || headers.part != Part::Whole {
        return None;
    }
    let segment = bytes.get(usize::from(headers.transport)..)?;
    let (header, _) = TcpHeader::ref_from_prefix(segment).ok()?;
    let payload = headers.transport_len().saturating_sub(header.header_len());
    let fin = u32::from(header.flags & flags::FIN != 0);
    let mut options = tcp::options(segment);
    let clock = options.find(|(kind, _)| *kind == option::TIMESTAMPS);
    let timestamp = clock.and_then(|(_, content)| content.first_chunk().copied());
    Some(Stamp {
        sequence: header.sequence.get().wrapping_add(payload as u32 + fin),
        timestamp: timestamp.map(u32::from_be_bytes),
    })
}

fn applies(round: &Round<'_>, destination: IpAddr) -> bool {
    let masquerade = &round.snapshot.masquerade;
    masquerade.is_on && !masquerade.excludes(destination)
}

fn is_error(headers: &Headers, is_v6: bool) -> bool {
    match headers.protocol {
        protocol::ICMP if !is_v6 => icmpv4::is_transit_error(headers.icmp_kind),
        protocol::ICMPV6 if is_v6 => icmpv6::is_error(headers.icmp_kind),
        _ => false,
    }
}

/// A pod's packet to the outside.
fn outbound<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    subject: Subject<'_, K>,
    pod: PortId,
    lane: &mut Lane,
) -> Result<(Translation, bool), DropReason> {
    let headers = subject.headers;
    if is_error(headers, K::IS_V6) {
        let translation = outbound_error(round, batch, subject)?;
        return Ok((translation, false));
    }
    let bytes = round.umem.bytes(batch.head(subject.index));
    if headers.part == Part::Later {
        return Ok((later_piece(round, bytes, subject, lane)?, false));
    }
    let tuple = own_tuple::<K>(bytes, subject).ok_or(DropReason::MasqueradeUnsupported)?;
    let flags = tcp_flags(bytes, headers);
    let first = direct::begins(headers, K::IS_V6, flags);
    let stamp = stamp(bytes, headers);
    let (found, age) = connect(round, &tuple, pod, (flags, first, stamp), lane)?;
    let is_over = found.state.may_give_way() && flags & tcp::flags::RST == 0;
    if let (true, Origin::Pod, Some(last)) = (is_over, found.origin, stamp) {
        round.connections.note_last(found.id, last);
    }
    let (old, new) = (found.original.source, found.reply.destination);
    let translation = match found.origin {
        Origin::Outside => Translation::none(found.id, found.side),
        Origin::Pod => Translation {
            mtu: found.mtu,
            ..Translation::between(old, new, Side::Original).of(found.id)
        },
    };
    Ok(finish(
        round,
        bytes,
        subject,
        (translation, age.is_settled(found.state, found.side, flags)),
        lane,
    ))
}

/// Whether a packet's connection was there before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Known,
}

impl Age {
    /// Whether flows may answer from now on. Many a connection is one question
    /// and one answer, so its first packet installs none; nor does one that
    /// begins or ends it, after which the ports may soon be another's.
    fn is_settled(self, state: State, side: Side, tcp_flags: u8) -> bool {
        self == Age::Known && state.is_settled(side) && tcp_flags & EDGES == 0
    }
}

/// Remembers a first piece; of a whole packet the flow may be installed when
/// it is settled.
fn finish<K: RoutedKey>(
    round: &Round<'_>,
    bytes: &[u8],
    subject: Subject<'_, K>,
    (translation, is_settled): (Translation, bool),
    lane: &mut Lane,
) -> (Translation, bool) {
    if subject.headers.part == Part::Whole {
        return (translation, is_settled);
    }
    if let Some(datagram) = Datagram::of(bytes, subject.headers, subject.key) {
        K::pieces(lane).remember(subject.hash, datagram, translation, round.now_ms);
    }
    (translation, false)
}

fn later_piece<K: RoutedKey>(
    round: &Round<'_>,
    bytes: &[u8],
    subject: Subject<'_, K>,
    lane: &mut Lane,
) -> Result<Translation, DropReason> {
    Datagram::of(bytes, subject.headers, subject.key)
        .and_then(|datagram| K::pieces(lane).find(subject.hash, &datagram, round.now_ms))
        .ok_or(DropReason::FirstFragmentMissing)
}

fn own_tuple<K: RoutedKey>(bytes: &[u8], subject: Subject<'_, K>) -> Option<Tuple> {
    let addresses = (
        subject.key.source().into(),
        subject.key.destination().into(),
    );
    let transport = bytes.get(usize::from(subject.headers.transport)..)?;
    translate::tuple(addresses, subject.headers.protocol, transport)
}

/// The connection of a pod's packet, opened when there is none.
fn connect(
    round: &Round<'_>,
    tuple: &Tuple,
    pod: PortId,
    (tcp_flags, first, stamp): (u8, Option<State>, Option<Stamp>),
    lane: &mut Lane,
) -> Result<(Found, Age), DropReason> {
    let (connections, now_ms) = (round.connections, round.millis());
    let masquerade = &round.snapshot.masquerade;
    let hash = connections.hash(tuple);
    if let Some(found) = connections.find_hashed(hash, tuple, now_ms) {
        if !found.is_pods_way() {
            return Err(DropReason::NoConnection);
        }
        let exit = found.reply.destination;
        // Echoes have an exact map of their own.
        let is_ours = masquerade.leaves_with(exit.address.ip())
            && (masquerade.ports.contains(&exit.port)
                || !matches!(tuple.protocol, protocol::TCP | protocol::UDP));
        // Whose exit is masquerade's no more, and what somebody outside began
        // and left: the pod begins anew.
        let is_stale = match found.origin {
            Origin::Pod => !is_ours,
            Origin::Outside => !found.is_live,
        } && connections.end(found.id);
        let state = match found.is_live && !is_stale {
            true => connections.follow(found.id, found.side, tcp_flags, 1, now_ms),
            false if is_stale => None,
            false => first.and_then(|state| connections.renew(found.id, state, now_ms)),
        };
        if let Some(state) = state {
            return Ok((Found { state, ..found }, Age::Known));
        }
    }
    let state = first.ok_or(DropReason::NoConnection)?;
    if lane.exhausted.holds(tuple, state, now_ms) {
        return Err(DropReason::NoMasqueradePort);
    }
    let exits = Exits {
        addresses: match tuple.source.address.is_v4() {
            true => Addresses::V4(&masquerade.egress_v4),
            false => Addresses::V6(&masquerade.egress_v6),
        },
        ports: &masquerade.ports,
    };
    let opening = Opening {
        original: *tuple,
        pod,
        state,
        stamp,
    };
    let opened = connections.masquerade_hashed(hash, &opening, &exits, now_ms);
    match opened {
        Ok(found) => Ok((found, Age::New)),
        Err(refused) => {
            lane.exhausted.note(refused, tuple, state, now_ms);
            Err(refusal(refused))
        }
    }
}

fn refusal(refused: Refused) -> DropReason {
    match refused {
        Refused::TableFull => DropReason::ConnectionTableFull,
        Refused::PodLimit => DropReason::ConnectionLimit,
        Refused::NoAddress => DropReason::NoMasqueradeAddress,
        Refused::NoPort | Refused::NoFreePort => DropReason::NoMasqueradePort,
    }
}

/// What the uplink brings to an egress address; `None` for what is not
/// masquerade's.
fn inbound<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    subject: Subject<'_, K>,
    from: Ingress<'_>,
    lane: &mut Lane,
) -> Option<Decided> {
    let (headers, key) = (subject.headers, subject.key);
    let (source, destination) = (key.source(), key.destination());
    if let Err(reason) =
        classify::admit(round.snapshot, from, source, destination, headers.to_group)
    {
        return Some(Decided::drop(reason));
    }
    if is_error(headers, K::IS_V6) {
        return inbound_error(round, batch, subject, from, lane);
    }
    let bytes = round.umem.bytes(batch.head(subject.index));
    if headers.part == Part::Later {
        let found = later_piece(round, bytes, subject, lane);
        return Some(match found {
            Ok(translation) => deliver(round, from, (translation, false)),
            Err(reason) => Decided::drop(reason),
        });
    }
    let tuple = own_tuple(bytes, subject)?;
    let now_ms = round.millis();
    let found = round.connections.find(&tuple, now_ms);
    let answered = found
        .filter(|found| found.is_live && found.side == Side::Reply)
        .and_then(|found| {
            let tcp_flags = tcp_flags(bytes, headers);
            let state = round
                .connections
                .follow(found.id, Side::Reply, tcp_flags, 1, now_ms)?;
            Some((found, Age::Known.is_settled(state, Side::Reply, tcp_flags)))
        });
    let Some((found, is_settled)) = answered else {
        let is_ours = round
            .snapshot
            .masquerade
            .ports
            .contains(&tuple.destination.port);
        return is_ours.then(|| Decided::drop(DropReason::NoConnection));
    };
    if let Some(mtu) = narrow::accepted::<K>(bytes, headers) {
        round.connections.limit(found.id, mtu);
    }
    let (old, new) = (found.reply.destination, found.original.source);
    let translation = Translation::between(old, new, Side::Reply).of(found.id);
    let finished = finish(round, bytes, subject, (translation, is_settled), lane);
    Some(deliver(round, from, finished))
}

/// To the pod that the translation names.
fn deliver(
    round: &Round<'_>,
    from: Ingress<'_>,
    (translation, is_settled): (Translation, bool),
) -> Decided {
    let decision = match round.snapshot.host(translation.to()) {
        Some(Destination::Pod(out)) => classify::deliver(round.snapshot, from, out),
        Some(Destination::Host(_) | Destination::Gateway) | None => {
            Decision::Drop(DropReason::NoEndpoint)
        }
    };
    Decided {
        decision,
        translation: Some(translation),
        is_settled,
    }
}

/// An ICMP error from outside about a packet that a pod sent.
fn inbound_error<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    subject: Subject<'_, K>,
    from: Ingress<'_>,
    lane: &mut Lane,
) -> Option<Decided> {
    let (quote, found) = quoted(round, batch, subject).filter(|(_, f)| f.side == Side::Reply)?;
    let bytes = round.umem.bytes(batch.head(subject.index));
    if quote.tuple.protocol == protocol::TCP
        && let Some(mtu) = narrow::passes::<K>(bytes, subject.headers)
        && round.connections.limit(found.id, mtu)
    {
        lane.shortened_ms = round.now_ms;
    }
    let (old, new) = (found.reply.destination, found.original.source);
    let translation = error(round, batch, subject, (&quote, old, new, Side::Reply));
    Some(deliver(round, from, (translation, false)))
}

/// A pod's ICMP error about a packet that came from outside.
fn outbound_error<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    subject: Subject<'_, K>,
) -> Result<Translation, DropReason> {
    let (quote, found) = quoted(round, batch, subject).ok_or(DropReason::NoConnection)?;
    // The way of the packet that it quotes, back.
    let way = quote.tuple.reversed();
    if way.source.address != subject.key.source().into() || !found.is_pods_way() {
        return Err(DropReason::NoConnection);
    }
    if found.origin == Origin::Outside {
        return Ok(Translation::none(found.id, found.side));
    }
    let (old, new) = (found.original.source, found.reply.destination);
    Ok(error(
        round,
        batch,
        subject,
        (&quote, old, new, Side::Original),
    ))
}

/// The connection of the packet that an error quotes, found as the error's own:
/// that packet went the other way.
fn quoted<K: RoutedKey>(
    round: &Round<'_>,
    batch: &Batch,
    subject: Subject<'_, K>,
) -> Option<(Quote, Found)> {
    if subject.headers.part != Part::Whole {
        return None;
    }
    let bytes = round.umem.bytes(batch.head(subject.index));
    let quote = translate::quote(bytes, subject.headers, K::IS_V6)?;
    let found = round
        .connections
        .find(&quote.tuple.reversed(), round.millis())?;
    found.is_live.then_some((quote, found))
}

/// Translates inside an error; gives what is left to do outside.
fn error<K: RoutedKey>(
    round: &Round<'_>,
    batch: &mut Batch,
    subject: Subject<'_, K>,
    (quote, old, new, side): (&Quote, End, End, Side),
) -> Translation {
    let translation = Translation::between(old, new, side);
    let bytes = round.umem.bytes_mut(batch.head_mut(subject.index));
    translate::apply_to_quote(bytes, subject.headers, K::IS_V6, quote, &translation);
    Translation {
        is_address_only: 1,
        ..translation
    }
}
