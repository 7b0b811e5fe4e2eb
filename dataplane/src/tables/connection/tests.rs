mod outside;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::wire::protocol::{TCP, UDP};
use crate::wire::tcp::flags;

const EGRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const NOW: u64 = 1_000_000;

fn end(address: [u8; 4], port: u16) -> End {
    End {
        address: Address::v4(address),
        port,
    }
}

fn tuple(protocol: u8, source: End, destination: End) -> Tuple {
    Tuple {
        source,
        destination,
        protocol,
    }
}

/// A tuple of pod `pod`, by small numbers.
fn numbered(pod: u8, sport: u16, server: u8, dport: u16) -> Tuple {
    tuple(
        UDP,
        end([10, 244, 1, pod], sport),
        end([203, 0, 113, server], dport),
    )
}

fn open_as(
    table: &Connections,
    original: Tuple,
    state: State,
    ports: RangeInclusive<u16>,
    now_ms: u64,
) -> Result<Found, Refused> {
    let opening = Opening {
        original,
        pod: PortId(u16::from(original.source.address.octets_v4()[3])),
        state,
        stamp: None,
    };
    let exits = Exits {
        addresses: Addresses::V4(&[EGRESS]),
        ports: &ports,
    };
    table.masquerade(&opening, &exits, now_ms)
}

fn open(table: &Connections, original: Tuple) -> Result<Found, Refused> {
    open_as(table, original, State::Unreplied, 61_000..=65_535, NOW)
}

#[test]
fn both_directions_find_it() {
    let table = Connections::new(1024, 1);
    let original = numbered(2, 4000, 9, 53);
    let opened = open(&table, original).unwrap();
    assert_eq!(opened.reply.source, original.destination);
    assert_eq!(
        opened.reply.destination.address,
        EGRESS.octets().pipe(Address::v4)
    );
    assert!((61_000..=65_535).contains(&opened.reply.destination.port));
    let there = table.find(&original, NOW).unwrap();
    assert_eq!((there.side, there.id), (Side::Original, opened.id));
    let back = table.find(&opened.reply, NOW).unwrap();
    assert_eq!((back.side, back.id), (Side::Reply, opened.id));
    assert_eq!(back.original, original);
    // Another sender to the same port is nobody's answer.
    let stranger = Tuple {
        source: end([203, 0, 113, 9], 54),
        ..opened.reply
    };
    assert_eq!(table.find(&stranger, NOW), None);
}

/// Reads as a method call, for arrays.
trait Pipe: Sized {
    fn pipe<R>(self, f: impl FnOnce(Self) -> R) -> R {
        f(self)
    }
}

impl Pipe for [u8; 4] {}

#[test]
fn ipv6_keys_work_alike() {
    let table = Connections::new(1024, 1);
    let address = |last: u16| {
        let v6 = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last);
        End {
            address: Address::v6(v6.octets()),
            port: 80 + last,
        }
    };
    let opening = Opening {
        original: tuple(TCP, address(1), address(2)),
        pod: PortId(1),
        state: State::SynSent,
        stamp: None,
    };
    let exit = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
    let exits = Exits {
        addresses: Addresses::V6(&[exit]),
        ports: &(61_000..=65_535),
    };
    let opened = table.masquerade(&opening, &exits, NOW).unwrap();
    assert_eq!(opened.reply.destination.address.ip(), exit);
    assert!(table.find(&opened.reply, NOW).is_some());
}

#[test]
fn an_end_keeps_its_port_towards_everybody_while_ports_last() {
    let table = Connections::new(4096, 1);
    let port = |server| {
        let opened = open(&table, numbered(2, 4000, server, 53)).unwrap();
        opened.reply.destination.port
    };
    let ports: HashSet<u16> = (1..200).map(port).collect();
    assert_eq!(ports.len(), 1);
    let kept = open(&table, numbered(3, 62_123, 1, 53)).unwrap();
    assert_eq!(kept.reply.destination.port, 62_123);
}

/// 100 000 connections from one address to 8 destinations: with 16 384 ports
/// to 8 ends, and with the default 4536 to 8 addresses of three ports each.
/// (Eight ends times 4536 ports are 36 288, and no more can be told apart.)
#[test]
fn ports_are_used_again_for_each_destination() {
    for (ports, server_ports) in [(49_152..=65_535, 1), (61_000..=65_535, 3)] {
        let table = Connections::new(Connections::DEFAULT_CAPACITY, 1);
        let mut replies = HashSet::new();
        for number in 0..100_000u32 {
            let server = (number % 8) as u8;
            let port = 80 + (number / 8 % server_ports) as u16;
            let place = number / 8 / server_ports;
            let original = tuple(
                TCP,
                end([10, 244, 1, 2], (1024 + place) as u16),
                end([203, 0, 113, server], port),
            );
            let opened = open_as(&table, original, State::SynSent, ports.clone(), NOW);
            let reply = opened.unwrap_or_else(|e| panic!("{number}: {e:?}")).reply;
            assert!(ports.contains(&reply.destination.port));
            assert!(replies.insert(format!("{reply:?}")), "told apart");
        }
        assert_eq!(table.len(), 100_000);
    }
}

/// One pod keeps half of the range, port by port, as kernels choose them. The
/// other half is another's to its last port.
#[test]
fn ports_that_are_kept_side_by_side_are_in_nobodys_way() {
    let table = Connections::new(1 << 16, 1);
    let open = |pod, sport| {
        let ports = 49_152..=65_535;
        let original = numbered(pod, sport, 1, 53);
        open_as(&table, original, State::Unreplied, ports, NOW)
    };
    for sport in 49_152..57_344 {
        let kept = open(2, sport).unwrap();
        assert_eq!(kept.reply.destination.port, sport);
    }
    for sport in 1024..1024 + 8192 {
        let opened = open(3, sport).unwrap_or_else(|e| panic!("{sport}: {e:?}"));
        assert!(opened.reply.destination.port >= 57_344);
    }
    assert_eq!(open(3, 80), Err(Refused::NoPort));
}

/// Nor in a range of which one search sees a part, of this width say.
#[test]
fn a_part_of_a_long_range_is_not_all_of_one_side() {
    let table = Connections::new(1 << 17, 1);
    let open = |pod, sport| {
        let original = numbered(pod, sport, 1, 53);
        open_as(&table, original, State::SynSent, 1024..=64_263, NOW)
    };
    for sport in 1024..40_000 {
        open(2, sport).unwrap();
    }
    for sport in 0..1000 {
        let opened = open(3, sport).unwrap_or_else(|e| panic!("{sport}: {e:?}"));
        assert!(opened.reply.destination.port >= 40_000);
    }
}

/// Of the widest range one search sees a part. Who asks again gets the last one.
#[test]
fn another_try_looks_elsewhere() {
    let table = Connections::new(1 << 17, 1);
    let open = |pod, sport, now_ms| {
        let original = numbered(pod, sport, 1, 53);
        open_as(&table, original, State::SynSent, 1024..=65_535, now_ms)
    };
    for sport in 1024..65_535 {
        open(2, sport, NOW).unwrap();
    }
    for sport in 80..85 {
        let mut tries = NOW..NOW + 100;
        let found = tries.find_map(|now_ms| open(3, sport, now_ms).ok());
        let found = found.unwrap();
        assert_eq!(found.reply.destination.port, 65_535);
        table.end(found.id);
    }
}

#[test]
fn exhaustion_is_told_and_heals() {
    let table = Connections::new(4096, 1);
    let range = 61_000..=61_099;
    let open = |sport, now_ms| {
        let original = numbered(2, sport, 1, 53);
        open_as(&table, original, State::Unreplied, range.clone(), now_ms)
    };
    for sport in 0..100 {
        open(sport, NOW).unwrap();
    }
    assert_eq!(open(100, NOW), Err(Refused::NoPort));
    let elsewhere = numbered(2, 100, 2, 53);
    assert!(open_as(&table, elsewhere, State::Unreplied, range.clone(), NOW).is_ok());
    let mut turn = 0;
    let later = NOW + 33_000;
    for _ in 0..2000 {
        table.advance(&mut turn, later);
    }
    assert_eq!(table.len(), 0);
    open(100, later).unwrap();
}

/// A client that opens and closes connections to one server, many times as
/// fast as their ports come free.
#[test]
fn ports_of_connections_that_are_over_are_used_again() {
    let table = Connections::new(4096, 1);
    let open = |sport| {
        let original = numbered(2, sport, 1, 80);
        open_as(&table, original, State::SynSent, 61_000..=61_099, NOW)
    };
    let mut replies = HashSet::new();
    for sport in 1000..2000 {
        let opened = open(sport).unwrap_or_else(|e| panic!("{sport}: {e:?}"));
        replies.insert(opened.reply.destination.port);
        for (side, tcp_flags) in [
            (Side::Reply, flags::SYN | flags::ACK),
            (Side::Original, flags::ACK),
            (Side::Original, flags::FIN | flags::ACK),
            (Side::Reply, flags::FIN | flags::ACK),
        ] {
            table.follow(opened.id, side, tcp_flags, 1, NOW);
        }
    }
    assert_eq!(replies.len(), 100, "each port is used");
    assert_eq!(table.len(), 100, "one connection a port");
    // What goes on keeps its port.
    for sport in 2000..2100 {
        let opened = open(sport).unwrap();
        table.follow(opened.id, Side::Reply, flags::SYN | flags::ACK, 1, NOW);
    }
    assert_eq!(open(2100), Err(Refused::NoPort));
}

/// Which of the ports in use, each with a connection that is over, a newcomer
/// gets: those are 61 000 on, told by state, time of the last packet, and the
/// number that the peer remembers.
#[test]
fn the_port_that_fits_best_is_used_again() {
    use State::{Reset, TimeWait};
    const OLD: u64 = NOW - 150;
    const VERY_OLD: u64 = NOW - 10_001;
    let cases = [
        (
            "quiet",
            vec![(TimeWait, NOW - 50, 1), (TimeWait, OLD, 1)],
            1,
        ),
        ("believed", vec![(TimeWait, NOW, 1), (TimeWait, OLD, 9)], 0),
        ("any", vec![(TimeWait, OLD, 9)], 0),
        ("may go on", vec![(Reset, OLD, 1), (TimeWait, OLD, 1)], 1),
        ("is over", vec![(TimeWait, OLD, 9), (Reset, VERY_OLD, 1)], 1),
    ];
    for (name, over, expect) in cases {
        let table = Connections::new(256, 1);
        let range = |count: usize| 61_000..=60_999 + count as u16;
        let ids: Vec<_> = (0..)
            .zip(&over)
            .map(|(place, (state, seen, number))| {
                let original = numbered(2, 4000 + place, 1, 80);
                let ports = 61_000 + place..=61_000 + place;
                let opened = open_as(&table, original, *state, ports, *seen).unwrap();
                let last = Stamp {
                    sequence: *number,
                    timestamp: None,
                };
                table.note_last(opened.id, last);
                opened.id
            })
            .collect();
        let opening = Opening {
            original: numbered(3, 5000, 1, 80),
            pod: PortId(3),
            state: State::SynSent,
            stamp: Some(Stamp {
                sequence: 5,
                timestamp: None,
            }),
        };
        let exits = Exits {
            addresses: Addresses::V4(&[EGRESS]),
            ports: &range(over.len()),
        };
        let opened = table.masquerade(&opening, &exits, NOW).unwrap();
        assert_eq!(opened.reply.destination.port, 61_000 + expect, "{name}");
        let gone = ids.iter().filter(|id| !table.end(**id)).count();
        assert_eq!(gone, 1, "{name}");
    }
}

#[test]
fn one_pod_cannot_fill_the_table() {
    let table = Connections::new(256, 1);
    let mut refused = None;
    for sport in 0..256 {
        let server = (sport % 200) as u8;
        refused = open(&table, numbered(2, sport, server, 53))
            .err()
            .or(refused);
    }
    assert_eq!(refused, Some(Refused::PodLimit));
    assert_eq!(table.len(), 128);
    open(&table, numbered(3, 1, 1, 53)).unwrap();
}

#[test]
fn half_open_goes_first_and_established_stays() {
    let table = Connections::new(64, 1);
    let tcp = |number: u16| {
        let source = end([10, 244, 1, number as u8], number);
        tuple(TCP, source, end([203, 0, 113, 1], 80))
    };
    let open = |number: u16| open_as(&table, tcp(number), State::SynSent, 61_000..=65_535, NOW);
    for number in 0..40 {
        let opened = open(number).unwrap();
        if number % 2 == 0 {
            let id = opened.id;
            table.follow(id, Side::Reply, flags::SYN | flags::ACK, 1, NOW);
            let state = table.follow(id, Side::Original, flags::ACK, 1, NOW);
            assert_eq!(state, Some(State::Established));
        }
    }
    for number in 40..200 {
        open(number).unwrap();
    }
    assert_eq!(table.len(), 64);
    for number in 0..40 {
        let is_there = table.find(&tcp(number), NOW).is_some();
        assert_eq!(is_there, number % 2 == 0, "{number}");
    }
    // Only those worth keeping are left: no more fits.
    for number in 40..200 {
        if let Some(found) = table.find(&tcp(number), NOW) {
            table.follow(found.id, Side::Reply, flags::SYN | flags::ACK, 1, NOW);
            table.follow(found.id, Side::Original, flags::ACK, 1, NOW);
        }
    }
    assert_eq!(open(201), Err(Refused::TableFull));
}

#[test]
fn a_flow_in_use_is_not_evicted_under_it() {
    let table = Connections::new(64, 1);
    for sport in 0..64 {
        open(&table, numbered(sport as u8, sport, 1, 53)).unwrap();
    }
    let newcomer = numbered(99, 99, 1, 53);
    assert_eq!(open(&table, newcomer), Err(Refused::TableFull));
    let later = NOW + GRACE_MS + 1;
    let opened = open_as(&table, newcomer, State::Unreplied, 61_000..=65_535, later);
    assert!(opened.is_ok());
}

#[test]
fn time_ends_a_connection_and_use_prolongs_it() {
    let table = Connections::new(1024, 1);
    let (idle, busy) = (numbered(2, 1, 1, 53), numbered(2, 2, 1, 53));
    let idle = open(&table, idle).unwrap();
    let busy = open(&table, busy).unwrap();
    let mut turn = 0;
    for second in 1..=40u64 {
        let now_ms = NOW + second * 1000;
        assert!(
            table
                .follow(busy.id, Side::Original, 0, 5, now_ms)
                .is_some()
        );
        for _ in 0..16 {
            table.advance(&mut turn, now_ms);
        }
        let is_live = table
            .find(&idle.original, now_ms)
            .is_some_and(|f| f.is_live);
        assert_eq!(is_live, second < 30, "{second}");
    }
    assert_eq!(table.len(), 1);
    assert_eq!(
        table.follow(idle.id, Side::Original, 0, 1, NOW + 40_000),
        None
    );
    let records = table.records(NOW + 40_000);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].packets, 1 + 40 * 5);
}

#[test]
fn a_reset_ends_it_soon_however_far_off_it_was_due() {
    let table = Connections::new(64, 1);
    let original = tuple(TCP, end([10, 244, 1, 2], 5), end([203, 0, 113, 1], 80));
    let opened = open_as(&table, original, State::Established, 61_000..=65_535, NOW).unwrap();
    table.follow(opened.id, Side::Original, flags::RST, 1, NOW);
    let mut turn = 0;
    for step in 0..200 {
        table.advance(&mut turn, NOW + 11_000 + step);
    }
    assert_eq!(table.len(), 0);
}

#[test]
fn what_was_over_can_begin_again_at_the_same_port() {
    let table = Connections::new(64, 1);
    let original = numbered(2, 1, 1, 53);
    let opened = open(&table, original).unwrap();
    let later = NOW + 31_000;
    let found = table.find(&original, later).unwrap();
    assert!(!found.is_live);
    assert!(table.records(later).is_empty());
    table.renew(found.id, State::Unreplied, later).unwrap();
    let again = table.find(&original, later).unwrap();
    assert!(again.is_live);
    assert_eq!(again.reply, opened.reply);
}

#[test]
fn a_pod_that_is_gone_leaves_nothing() {
    let table = Connections::new(1024, 1);
    for sport in 0..50 {
        open(&table, numbered(2, sport, 1, 53)).unwrap();
        open(&table, numbered(3, sport, 1, 53)).unwrap();
    }
    table.forget(PortId(2));
    assert_eq!(table.len(), 50);
    assert!(table.find(&numbered(2, 7, 1, 53), NOW).is_none());
    assert!(table.find(&numbered(3, 7, 1, 53), NOW).is_some());
}

/// What a table does in one step of the property test.
#[derive(Debug, Clone)]
enum Step {
    Open(u8, u16, u8),
    Follow(usize, bool),
    Wait(u64),
    Advance,
    Forget(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..4, 0u16..40, 0u8..3).prop_map(|(p, s, d)| Step::Open(p, s, d)),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(n, r)| Step::Follow(n, r)),
        1 => (0u64..20_000).prop_map(Step::Wait),
        2 => Just(Step::Advance),
        1 => (0u8..4).prop_map(Step::Forget),
    ]
}

/// The table as one map, without hashes, shards or timers.
#[derive(Default)]
struct Model {
    by_original: HashMap<String, (Found, u64, State)>,
}

impl Model {
    fn is_live(&self, original: &Tuple, now_ms: u64) -> bool {
        let entry = self.by_original.get(&format!("{original:?}"));
        entry.is_some_and(|(_, seen, state)| seen + state.timeout_ms(UDP) > now_ms)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn it_equals_a_map(steps in proptest::collection::vec(step(), 1..300)) {
        let table = Connections::new(1024, 3);
        let mut model = Model::default();
        let mut opened: Vec<Found> = Vec::new();
        let (mut now_ms, mut turn) = (NOW, 0);
        for step in steps {
            match step {
                Step::Open(pod, sport, server) => {
                    let original = numbered(pod, sport, server, 53);
                    let found = table.find(&original, now_ms);
                    let is_live = found.is_some_and(|f| f.is_live);
                    prop_assert_eq!(is_live, model.is_live(&original, now_ms));
                    if is_live { continue; }
                    let found = match found {
                        Some(found) => {
                            table.renew(found.id, State::Unreplied, now_ms).unwrap();
                            table.find(&original, now_ms).unwrap()
                        }
                        None => open_as(&table, original, State::Unreplied, 61_000..=61_199, now_ms).unwrap(),
                    };
                    opened.push(found);
                    model.by_original.insert(format!("{original:?}"), (found, now_ms, State::Unreplied));
                }
                Step::Follow(number, is_reply) => {
                    if opened.is_empty() { continue; }
                    let found = opened[number % opened.len()];
                    let entry = model.by_original.get_mut(&format!("{:?}", found.original));
                    let Some((current, seen, state)) = entry else { continue };
                    if current.id != found.id || *seen + state.timeout_ms(UDP) <= now_ms { continue; }
                    // 1 ms old at most when opened, so never a stream at once.
                    let (side, tuple) = match is_reply {
                        true => (Side::Reply, found.reply),
                        false => (Side::Original, found.original),
                    };
                    let by_tuple = table.find(&tuple, now_ms).unwrap();
                    prop_assert_eq!((by_tuple.id, by_tuple.side), (found.id, side));
                    *state = table.follow(found.id, side, 0, 1, now_ms).unwrap();
                    *seen = now_ms;
                }
                Step::Wait(ms) => now_ms += ms,
                Step::Advance => for _ in 0..64 { table.advance(&mut turn, now_ms) },
                Step::Forget(pod) => {
                    table.forget(PortId(u16::from(pod)));
                    model.by_original.retain(|_, (f, ..)| f.original.source.address != Address::v4([10, 244, 1, pod]));
                }
            }
        }
        let live = model.by_original.values().filter(|(_, seen, state)| seen + state.timeout_ms(UDP) > now_ms).count();
        prop_assert_eq!(table.records(now_ms).len(), live);
        for pod in 0..4 {
            table.forget(PortId(pod));
        }
        prop_assert_eq!(table.len(), 0);
        prop_assert!(table.shares.are_all_free());
    }
}

#[test]
fn threads_share_it() {
    let table = Arc::new(Connections::new(2048, 5));
    let threads: Vec<_> = (0..4u8)
        .map(|thread| {
            let table = Arc::clone(&table);
            std::thread::spawn(move || {
                let (mut turn, mut opened) = (usize::from(thread), 0);
                for round in 0..20_000u32 {
                    let now_ms = NOW + u64::from(round / 4);
                    let sport = (round.wrapping_mul(2_654_435_761) >> 22) as u16;
                    let original = numbered((round % 7) as u8, sport, 1, 53);
                    let found = match table.find(&original, now_ms) {
                        Some(found) if found.is_live => found,
                        Some(_) => continue,
                        None => match open_as(
                            &table,
                            original,
                            State::Unreplied,
                            61_000..=65_535,
                            now_ms,
                        ) {
                            Ok(found) => found,
                            Err(_) => continue,
                        },
                    };
                    opened += 1;
                    assert_eq!(found.original, original);
                    if let Some(back) = table.find(&found.reply, now_ms) {
                        assert_eq!(back.reply, found.reply);
                    }
                    table.follow(found.id, Side::Original, 0, 1, now_ms);
                    table.advance(&mut turn, now_ms);
                }
                opened
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap() > 1000);
    }
    let records = table.records(NOW + 5000);
    let replies: HashSet<String> = records.iter().map(|r| format!("{:?}", r.reply)).collect();
    assert_eq!(
        replies.len(),
        records.len(),
        "no answer is two connections'"
    );
    for pod in 0..7 {
        table.forget(PortId(pod));
    }
    assert_eq!(table.len(), 0);
    assert!(table.shares.are_all_free());
}
