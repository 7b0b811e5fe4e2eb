use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::AtomicBool;

use super::*;
use crate::tables::connection::{
    Address, Addresses, End, Exits, Found, Opening, Origin, Refused, Side, Tuple,
};
use crate::wire::protocol::{ICMP, TCP, UDP};
use crate::wire::tcp::flags;

const CAPACITY: usize = 4096;
const PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

fn end(address: IpAddr, port: u16) -> End {
    End {
        address: Address::from(address),
        port,
    }
}

fn tuple(protocol: u8, pod: u8, sport: u16, server: u8) -> Tuple {
    Tuple {
        source: end(Ipv4Addr::new(10, 244, 1, pod).into(), sport),
        destination: end(Ipv4Addr::new(203, 0, 113, server).into(), 53),
        protocol,
    }
}

fn open(table: &Connections, original: Tuple, now_ms: u64) -> Result<Found, Refused> {
    let [.., pod] = original.source.address.octets_v6();
    let opening = Opening {
        original,
        pod: PortId(u16::from(pod)),
        state: match original.protocol {
            TCP => State::SynSent,
            _ => State::Unreplied,
        },
        stamp: None,
    };
    let addresses = match original.source.address.is_v4() {
        true => Addresses::V4(&[Ipv4Addr::new(172, 31, 0, 1)]),
        false => Addresses::V6(&[Ipv6Addr::LOCALHOST]),
    };
    let exits = Exits {
        addresses,
        ports: &PORTS,
    };
    table.masquerade(&opening, &exits, now_ms)
}

fn kept(path: &Path) -> (Kept, u64) {
    let kept = Connections::kept(path, CAPACITY).unwrap();
    let now_ms = kept.origin.elapsed().as_millis() as u64;
    (kept, now_ms)
}

/// A directory in memory, where there is one.
fn directory() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    match shm.is_dir() {
        true => tempfile::tempdir_in(shm).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

#[test]
fn the_next_process_goes_on() {
    let directory = directory();
    let path = directory.path().join("connections");
    let (first, now_ms) = kept(&path);
    assert_eq!((first.taken_over, first.lost), (0, 0));
    let table = first.connections;
    let v6 = Tuple {
        source: end(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into(), 7),
        destination: end(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 9).into(), 443),
        protocol: TCP,
    };
    let tcp = open(&table, tuple(TCP, 2, 4000, 9), now_ms).unwrap();
    table.follow(tcp.id, Side::Reply, flags::SYN | flags::ACK, 1, now_ms);
    table.follow(tcp.id, Side::Original, flags::ACK, 7, now_ms);
    table.limit(tcp.id, 1400);
    let opened = [
        tcp,
        open(&table, tuple(UDP, 2, 4000, 9), now_ms).unwrap(),
        open(&table, tuple(ICMP, 3, 4000, 9), now_ms).unwrap(),
        open(&table, v6, now_ms).unwrap(),
    ];
    let mut before: Vec<_> = table.records(now_ms);
    drop(table);

    let (second, now_ms) = kept(&path);
    assert!(second.unusable.is_none());
    assert_eq!((second.taken_over, second.lost), (4, 0));
    let table = second.connections;
    let key = |r: &crate::tables::connection::ConnectionRecord| format!("{:?}", r.original);
    let mut after = table.records(now_ms);
    before.sort_by_key(key);
    after.sort_by_key(key);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.original, after.original);
        assert_eq!(before.reply, after.reply);
        assert_eq!(before.state, after.state);
        assert_eq!(before.packets, after.packets);
    }
    for opened in &opened {
        let back = table.find(&opened.reply, now_ms).unwrap();
        assert_eq!((back.side, back.is_live), (Side::Reply, true));
        assert_eq!(
            table.find(&opened.original, now_ms).unwrap().reply,
            opened.reply
        );
    }
    let found = table.find(&tcp.original, now_ms).unwrap();
    assert_eq!((found.state, found.mtu), (State::Established, 1400));
    // An end keeps its port towards others too, and nobody else gets it.
    let again = open(&table, tuple(TCP, 2, 4000, 8), now_ms).unwrap();
    assert_eq!(again.reply.destination, tcp.reply.destination);
    let outside = tcp.reply.destination.port;
    let rival = open(&table, tuple(TCP, 3, outside, 7), now_ms).unwrap();
    assert_ne!(rival.reply.destination.port, outside);
}

#[test]
fn pods_that_are_gone_leave_nothing() {
    let directory = directory();
    let path = directory.path().join("connections");
    let (first, now_ms) = kept(&path);
    for sport in 0..40 {
        for pod in [2, 3] {
            open(&first.connections, tuple(UDP, pod, sport, 9), now_ms).unwrap();
        }
    }
    drop(first);
    let (second, now_ms) = kept(&path);
    let table = second.connections;
    let two = IpAddr::from([10, 244, 1, 2]);
    table.settle(|address| (address == two).then_some(PortId(70)));
    assert_eq!(table.len(), 40);
    let records = table.records(now_ms);
    assert!(records.iter().all(|record| record.pod == PortId(70)));
    table.forget(PortId(70));
    assert!(table.is_empty());
    assert!(table.shares.are_all_free());
}

/// The node's own port.
const THROUGH: Option<PortId> = Some(PortId(3));

#[test]
fn callers_of_pods_are_known_again() {
    let directory = directory();
    let path = directory.path().join("connections");
    let (first, now_ms) = kept(&path);
    let mut called = Vec::new();
    for pod in [2, 3] {
        for sport in 0..40 {
            let original = tuple(UDP, pod, sport, 9).reversed();
            let opening = Opening {
                original,
                pod: PortId(u16::from(pod)),
                state: State::Unreplied,
                stamp: None,
            };
            called.push(first.connections.track(&opening, THROUGH, now_ms).unwrap());
            open(&first.connections, tuple(UDP, pod, sport, 8), now_ms).unwrap();
        }
    }
    drop(first);
    let (second, now_ms) = kept(&path);
    assert_eq!((second.taken_over, second.lost), (160, 0));
    let table = second.connections;
    let two = IpAddr::from([10, 244, 1, 2]);
    table.settle(|address| (address == two).then_some(PortId(70)));
    let begun = || [Origin::Pod, Origin::Outside].map(|origin| table.begun_by(origin));
    assert_eq!(begun(), [40, 40]);
    for was in called {
        let is = table.find(&was.reply, now_ms);
        let to_two = was.original.destination.address == Address::from(two);
        assert_eq!(is.is_some(), to_two);
        assert!(is.is_none_or(|is| is.origin == Origin::Outside && is.is_pods_way()));
        assert!(is.is_none_or(|is| is.through == THROUGH));
    }
    table.forget(PortId(70));
    assert_eq!(begun(), [0, 0]);
    assert!(table.shares.are_all_free());
}

#[test]
fn narrow_paths_are_known_again() {
    let directory = directory();
    let path = directory.path().join("connections");
    let (a, b) = (
        IpAddr::from([10, 244, 1, 2]),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    );
    let (first, now_ms) = kept(&path);
    let paths = first.connections.paths();
    paths.accept(a, b, Some(1400), now_ms);
    paths.narrow(b, a, 1300, now_ms);
    drop(first);
    // Also from the file that the second one made.
    for _ in 0..2 {
        let (next, now_ms) = kept(&path);
        let paths = next.connections.paths();
        let limits = [(a, b), (b, a), (a, a)].map(|(from, to)| paths.limit(from, to, now_ms));
        assert_eq!(limits, [Some(1400), Some(1300), None]);
    }
    // Without the file there is nothing to go by.
    std::fs::remove_file(&path).unwrap();
    let (other, now_ms) = kept(&path);
    assert_eq!(other.connections.paths().limit(a, b, now_ms), None);
}

#[test]
fn what_is_over_is_not_taken_over() {
    let directory = directory();
    let path = directory.path().join("connections");
    let (first, now_ms) = kept(&path);
    open(&first.connections, tuple(UDP, 2, 1, 9), now_ms).unwrap();
    drop(first);
    // As if it had all been 31 s earlier.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut header = load(&path).unwrap().unwrap().header;
    header.origin = header.origin.saturating_sub(Duration::from_secs(31));
    write_header(&file, &header.words());
    let (second, _) = kept(&path);
    assert_eq!((second.taken_over, second.lost), (0, 0));
    assert!(second.unusable.is_none());
}

fn write_header(file: &File, words: &[u64; HEADER_WORDS]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    file.write_all_at(&bytes, 0).unwrap();
}

#[test]
fn damage_is_told_and_ignored() {
    let directory = directory();
    let path = directory.path().join("connections");
    type Spoil = fn(&File);
    let cases: [(&str, Spoil, Option<usize>); 5] = [
        ("untouched", |_| {}, Some(0)),
        (
            "another layout",
            |file| file.write_all_at(&[9], 8).unwrap(),
            None,
        ),
        ("cut off", |file| file.set_len(9999).unwrap(), None),
        ("empty", |file| file.set_len(0).unwrap(), None),
        (
            "an address",
            |file| {
                for at in (0..CAPACITY).map(|entry| (HEADER + entry * WORDS) * 8) {
                    let mut word = [0; 8];
                    file.read_exact_at(&mut word, at as u64).unwrap();
                    if word != [0; 8] {
                        file.write_all_at(&[1], (at + 9 * 8) as u64).unwrap();
                        return;
                    }
                }
            },
            Some(1),
        ),
    ];
    for (name, spoil, lost) in cases {
        let _ = std::fs::remove_file(&path);
        let (first, now_ms) = kept(&path);
        for sport in 0..3 {
            open(&first.connections, tuple(UDP, 2, sport, 9), now_ms).unwrap();
        }
        drop(first);
        spoil(
            &OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap(),
        );
        let (second, now_ms) = kept(&path);
        assert_eq!(second.unusable.is_none(), lost.is_some(), "{name}");
        let left = lost.map_or(0, |lost| 3 - lost);
        assert_eq!(second.taken_over, left, "{name}");
        assert_eq!(second.lost, lost.unwrap_or(0), "{name}");
        open(&second.connections, tuple(UDP, 9, 9, 9), now_ms).unwrap();
    }
}

#[test]
fn another_start_of_the_machine_is_told() {
    let directory = directory();
    let path = directory.path().join("connections");
    drop(kept(&path));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let header = Header {
        seed: 1,
        capacity: CAPACITY,
        boot: boot() ^ 1,
        origin: Duration::ZERO,
    };
    write_header(&file, &header.words());
    assert!(matches!(kept(&path).0.unusable, Some(Unusable::OldBoot)));
}

/// The file is copied at instants at which three threads are at work, as a
/// kill would leave it, only worse: the copy is not of one instant.
#[test]
fn any_instant_leaves_only_what_was_there() {
    let directory = directory();
    let path = directory.path().join("connections");
    let copy = directory.path().join("copy");
    let (first, _) = kept(&path);
    let (table, origin) = (&first.connections, first.origin);
    let now_ms = || origin.elapsed().as_millis() as u64;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u8 {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut round = 0u32;
                while !is_over.load(Ordering::Relaxed) {
                    round = round.wrapping_add(1);
                    let sport = (round.wrapping_mul(2_654_435_761) >> 20) as u16;
                    let _ = open(
                        table,
                        tuple(UDP, thread, sport, (round % 5) as u8),
                        now_ms(),
                    );
                    if round.is_multiple_of(500) {
                        table.forget(PortId(u16::from(thread)));
                    }
                }
            });
        }
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(3));
            std::fs::copy(&path, &copy).unwrap();
            let (next, now_ms) = kept(&copy);
            assert!(next.unusable.is_none());
            for record in next.connections.records(now_ms) {
                let Tuple {
                    source,
                    destination,
                    ..
                } = record.original;
                let [.., server] = destination.address.octets_v4();
                let [.., pod] = source.address.octets_v4();
                assert!(pod < 3 && server < 5, "{record:?}");
                assert_eq!(record.original, tuple(UDP, pod, source.port, server));
                assert_eq!(record.reply.source, destination);
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
