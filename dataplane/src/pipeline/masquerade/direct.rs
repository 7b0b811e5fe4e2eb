//! Connections that somebody outside begins with a pod's own address, because
//! a router there knows the pods' range.
//!
//! Nothing about them is translated, but they are followed all the same: the
//! pod's answers go where its own connections would be masqueraded, and must
//! not be taken for beginnings.

use super::super::Round;
use super::super::classify::{self, Decision, Ingress, RoutedKey};
use super::super::parse::{Headers, Part};
use super::{Age, Decided, Subject, applies, is_error, own_tuple, refusal, tcp_flags};
use crate::drops::DropReason;
use crate::frame::Batch;
use crate::snapshot::{PortEntry, Role, RouteTarget};
use crate::tables::connection::{Found, Opening, Origin, Refused, Side, State, Tuple};
use crate::tables::flow::{Actions, Translation};
use crate::types::PortId;
use crate::wire::{icmpv4, icmpv6, protocol};

/// The pod's port, when a packet comes to a pod from somebody towards whom the
/// pod is masqueraded: by the uplink, or through the node's kernel.
pub(super) fn called<K: RoutedKey>(
    round: &Round<'_>,
    from: Ingress<'_>,
    key: &K,
    actions: &Actions,
) -> Option<PortId> {
    let snapshot = round.snapshot;
    let Ingress::Port(port) = from else {
        return None;
    };
    let is_from_outside = matches!(port.role, Role::Uplink | Role::Host)
        && !actions.leaves_node()
        && applies(round, key.source());
    if !is_from_outside {
        return None;
    }
    let out = snapshot.port(PortId(actions.out))?;
    let is_pods = out.role == Role::Pod && snapshot.host(key.source()).is_none();
    // A neighbour that is not found yet is reached by the uplink too.
    let leave = match snapshot.routes.lookup(key.source()) {
        Some(RouteTarget::NextHop(_) | RouteTarget::Spread(_) | RouteTarget::OnLink) => true,
        Some(
            RouteTarget::Vtep(_)
            | RouteTarget::Host(_)
            | RouteTarget::Unreachable
            | RouteTarget::Prohibited
            | RouteTarget::Blackhole,
        )
        | None => false,
    };
    (is_pods && leave).then_some(out.id)
}

/// Follows what somebody outside sends to a pod; `decision` delivers it. What
/// belongs to no connection and begins none is delivered too, one by one, so
/// that no flow answers for the beginning that may come.
pub(super) fn arrives<K: RoutedKey>(
    round: &Round<'_>,
    batch: &Batch,
    subject: Subject<'_, K>,
    from: Ingress<'_>,
    (decision, pod): (Decision, PortId),
) -> Decided {
    let headers = subject.headers;
    let unfollowed = |is_settled| Decided {
        is_settled,
        ..Decided::plain(decision)
    };
    if is_error(headers, K::IS_V6) || headers.part == Part::Later {
        return unfollowed(false);
    }
    let bytes = round.umem.bytes(batch.head(subject.index));
    let Some(tuple) = own_tuple(bytes, subject) else {
        return unfollowed(true);
    };
    let flags = tcp_flags(bytes, headers);
    let first = begins(headers, K::IS_V6, flags);
    let opening = (pod, through(from));
    match follow(round, &tuple, opening, (flags, first)) {
        Ok(Some((translation, is_settled))) => {
            let is_settled = is_settled && headers.part == Part::Whole;
            Decided {
                decision,
                translation: Some(translation),
                is_settled,
            }
        }
        Ok(None) => unfollowed(false),
        Err(reason) => Decided::drop(reason),
    }
}

/// The connection of a packet from outside, opened when there is none and it
/// may begin one, and whether flows may answer from now on.
fn follow(
    round: &Round<'_>,
    tuple: &Tuple,
    (pod, through): (PortId, Option<PortId>),
    (tcp_flags, first): (u8, Option<State>),
) -> Result<Option<(Translation, bool)>, DropReason> {
    let (connections, now_ms) = (round.connections, round.millis());
    let found = connections.find(tuple, now_ms);
    let known = found.filter(|found| found.origin == Origin::Outside && !found.is_pods_way());
    // One that begins anew another way is another one: its answers go back there.
    let is_over = |found: &Found| !found.is_live || found.state == State::TimeWait;
    let known = known.filter(|found| {
        let is_another = first.is_some() && found.through != through && is_over(found);
        !(is_another && connections.end(found.id))
    });
    let known = known.and_then(|found| {
        let state = match found.is_live {
            true => connections.follow(found.id, Side::Original, tcp_flags, 1, now_ms),
            false => first.and_then(|state| connections.renew(found.id, state, now_ms)),
        };
        Some((
            found.id,
            Age::Known.is_settled(state?, Side::Original, tcp_flags),
        ))
    });
    let opened = match (known, first) {
        (Some(known), _) => Ok(known),
        (None, None) => return Ok(None),
        (None, Some(state)) => {
            let opening = Opening {
                original: *tuple,
                pod,
                state,
                stamp: None,
            };
            let opened = connections.track(&opening, through, now_ms);
            opened.map(|found| {
                (
                    found.id,
                    Age::New.is_settled(found.state, Side::Original, tcp_flags),
                )
            })
        }
    };
    match opened {
        Ok((id, is_settled)) => Ok(Some((Translation::none(id, Side::Original), is_settled))),
        // The pod talks to that very end, which knows it by another address.
        Err(Refused::NoPort) => Ok(None),
        Err(refused) => Err(refusal(refused)),
    }
}

/// The node's own port, when a packet comes by that.
fn through(from: Ingress<'_>) -> Option<PortId> {
    match from {
        Ingress::Port(port) if port.role == Role::Host => Some(port.id),
        Ingress::Port(_) | Ingress::Overlay(_) => None,
    }
}

/// Where a pod's answer that was leaving goes instead, when the node's kernel
/// brought what it answers: the kernel may have translated that, as for a host
/// port, and translates this back. It goes as long as the way out takes it, since
/// the kernel only passes it on.
pub(super) fn goes_back(
    round: &Round<'_>,
    from: Ingress<'_>,
    (leaving, translation): (&Actions, &Translation),
) -> Option<Decision> {
    let is_followed = translation.is_none == 1;
    let through = is_followed.then(|| round.connections.through(translation.connection_id()))??;
    let is_hosts = |port: &&PortEntry| port.role == Role::Host;
    let port = round.snapshot.port(through).filter(is_hosts)?;
    Some(match classify::deliver(round.snapshot, from, port.id) {
        Decision::Forward(mut actions) => {
            actions.flags &= !Actions::SUPER_FRAMES;
            actions.limit(leaving.mtu);
            Decision::Forward(actions)
        }
        other => other,
    })
}

/// What a first packet begins; `None` for answers.
pub(super) fn begins(headers: &Headers, is_v6: bool, tcp_flags: u8) -> Option<State> {
    let echo_reply = match is_v6 {
        true => (protocol::ICMPV6, icmpv6::kind::ECHO_REPLY),
        false => (protocol::ICMP, icmpv4::kind::ECHO_REPLY),
    };
    match (headers.protocol, headers.icmp_kind) == echo_reply {
        true => None,
        false => State::first(headers.protocol, tcp_flags),
    }
}
