//! Connections that somebody outside begins: their own part of the table.

use super::*;

/// Caller `number` to port 80 of a pod.
fn call(pod: u8, number: u16) -> Tuple {
    let caller = end([203, 0, (number >> 8) as u8, number as u8], 40_000);
    tuple(TCP, caller, end([10, 244, 1, pod], 80))
}

fn track(table: &Connections, original: Tuple, state: State) -> Result<Found, Refused> {
    let opening = Opening {
        original,
        pod: PortId(u16::from(original.destination.address.octets_v4()[3])),
        state,
        stamp: None,
    };
    table.track(&opening, None, NOW)
}

fn establish(table: &Connections, found: &Found) {
    table.follow(found.id, Side::Reply, flags::SYN | flags::ACK, 1, NOW);
    let state = table.follow(found.id, Side::Original, flags::ACK, 1, NOW);
    assert_eq!(state, Some(State::Established));
}

#[test]
fn both_directions_find_what_began_outside() {
    let table = Connections::new(1024, 1);
    let original = call(2, 7);
    let opened = track(&table, original, State::SynSent).unwrap();
    assert_eq!(opened.reply, original.reversed());
    let there = table.find(&original, NOW).unwrap();
    assert!(!there.is_pods_way());
    let back = table.find(&original.reversed(), NOW).unwrap();
    assert!(back.is_pods_way());
    assert_eq!((back.id, back.origin), (opened.id, Origin::Outside));
    assert_eq!(
        (table.begun_by(Origin::Pod), table.begun_by(Origin::Outside)),
        (0, 1)
    );
    assert!(table.end(opened.id));
    assert!(table.is_empty());
    assert_eq!(table.find(&original.reversed(), NOW), None);
}

#[test]
fn a_flood_from_outside_leaves_half_of_the_table_to_the_pods() {
    let table = Connections::new(1024, 1);
    // Pods' connections of the kind that goes first.
    let own = |number: u16| numbered(number as u8, number, 1, 53);
    for number in 0..200 {
        open(&table, own(number)).unwrap();
    }
    for number in 0..60_000u16 {
        let _ = track(&table, call((number % 7) as u8, number), State::SynSent);
    }
    for number in 0..200 {
        assert!(table.find(&own(number), NOW).is_some(), "{number}");
    }
    assert_eq!(table.begun_by(Origin::Pod), 200);
    assert!(table.begun_by(Origin::Outside) <= 512);
    // The newest callers are those that are known.
    let known = (59_900..60_000).filter(|&n| table.find(&call((n % 7) as u8, n), NOW).is_some());
    assert!(known.count() > 90);
}

#[test]
fn callers_of_one_pod_leave_room_for_those_of_another() {
    let table = Connections::new(1024, 1);
    let limit = table.pod_limit(Origin::Outside);
    for number in 0..1000 {
        if let Ok(found) = track(&table, call(2, number), State::SynSent) {
            establish(&table, &found);
        }
    }
    assert_eq!(table.begun_by(Origin::Outside), limit);
    let refused = track(&table, call(2, 1000), State::SynSent);
    assert_eq!(refused, Err(Refused::PodLimit));
    for number in 0..100 {
        let found = track(&table, call(3, number), State::SynSent).unwrap();
        establish(&table, &found);
    }
    // What the pod begins itself is counted apart.
    open(&table, numbered(2, 1, 1, 53)).unwrap();
}

#[test]
fn callers_that_are_not_answered_give_way_to_their_like() {
    let table = Connections::new(1024, 1);
    let first = track(&table, call(2, 0), State::SynSent).unwrap();
    establish(&table, &first);
    for number in 1..2000 {
        track(&table, call(2, number), State::SynSent).unwrap();
    }
    assert!(table.begun_by(Origin::Outside) <= table.pod_limit(Origin::Outside));
    assert!(table.find(&call(2, 0), NOW).is_some(), "established");
}

#[test]
fn pods_come_before_callers() {
    let table = Connections::new(64, 1);
    let callers: Vec<_> = (0..16)
        .map(|n| track(&table, call(2, n), State::SynSent).unwrap())
        .collect();
    establish(&table, &callers[0]);
    for number in 0..48 {
        open(&table, numbered(number as u8, number, 1, 53)).unwrap();
    }
    assert_eq!(table.len(), 64);
    // Full: each that a pod begins takes the place of a caller's, until only
    // those are left that are worth keeping.
    for number in 48..63 {
        open(&table, numbered(number as u8, number, 1, 53)).unwrap();
    }
    assert_eq!(table.begun_by(Origin::Outside), 1);
    assert!(table.find(&call(2, 0), NOW).is_some(), "established");
    let refused = open(&table, numbered(63, 63, 1, 53));
    assert_eq!(refused, Err(Refused::TableFull));
}

#[test]
fn what_a_pod_sent_too_early_gives_way_unless_it_was_answered() {
    let table = Connections::new(1024, 1);
    let own = Tuple {
        protocol: UDP,
        ..call(2, 7).reversed()
    };
    let taken = open(&table, own).unwrap();
    let called = track(&table, own.reversed(), State::Unreplied).unwrap();
    assert_eq!(table.find(&own, NOW).unwrap().id, called.id);
    assert_eq!(table.find(&taken.reply, NOW), None);
    let other = Tuple {
        protocol: UDP,
        ..call(2, 8).reversed()
    };
    let taken = open(&table, other).unwrap();
    table.follow(taken.id, Side::Reply, 0, 1, NOW);
    let refused = track(&table, other.reversed(), State::Unreplied);
    assert_eq!(refused, Err(Refused::NoPort));
    assert_eq!(table.find(&other, NOW).unwrap().id, taken.id);
    assert_eq!(table.len(), 2);
}

#[test]
fn only_identifiers_of_pods_own_echoes_are_given_out() {
    let table = Connections::new(1024, 1);
    let asked = tuple(
        crate::wire::protocol::ICMP,
        end([203, 0, 113, 9], 777),
        end([10, 244, 1, 2], 0),
    );
    let opened = track(&table, asked, State::Unreplied).unwrap();
    assert!(!table.echoes.is_given(777));
    let own = tuple(
        crate::wire::protocol::ICMP,
        end([10, 244, 1, 2], 61_777),
        end([203, 0, 113, 9], 0),
    );
    let own = open(&table, own).unwrap();
    assert!(table.echoes.is_given(own.reply.destination.port));
    assert!(table.end(opened.id) && table.end(own.id));
    assert!(!table.echoes.is_given(own.reply.destination.port));
}
