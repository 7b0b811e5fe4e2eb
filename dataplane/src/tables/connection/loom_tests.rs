use loom::sync::Arc;
use loom::thread;

use super::*;

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // Two switches in the middle of things find every order of two critical
    // sections and a reader; all orders would take days.
    builder.preemption_bound = Some(2);
    builder.check(test);
}

fn end(number: u8) -> End {
    End {
        address: Address::v4([10, 0, 0, number]),
        port: u16::from(number),
    }
}

fn tuple(source: u8, destination: u8) -> Tuple {
    Tuple {
        source: end(source),
        destination: end(destination),
        protocol: crate::wire::protocol::TCP,
    }
}

fn open(table: &Connections, original: Tuple, reply: Tuple) -> Result<Found, Refused> {
    let opening = Opening {
        original,
        pod: PortId(0),
        state: State::Established,
        stamp: None,
    };
    table.open(&opening, Origin::Pod, 1000, |entry, hash| {
        Ok(table.publish((entry, hash), &original, &reply, 1000))
    })
}

#[test]
fn loom_of_two_openers_one_opens() {
    model(|| {
        let table = Arc::new(Connections::new(4, 1));
        let other = Arc::clone(&table);
        let (original, replies) = (tuple(1, 2), [tuple(2, 8), tuple(2, 9)]);
        let opener = thread::spawn(move || open(&other, original, replies[0]).unwrap());
        let here = open(&table, original, replies[1]).unwrap();
        let there = opener.join().unwrap();
        assert_eq!((here.id, here.reply), (there.id, there.reply));
        assert_eq!(table.len(), 1);
        let lost = replies.into_iter().find(|reply| *reply != here.reply);
        assert_eq!(table.find(&lost.unwrap(), 1000), None);
    });
}

#[test]
fn loom_a_translated_tuple_is_given_once() {
    model(|| {
        let table = Arc::new(Connections::new(4, 1));
        let other = Arc::clone(&table);
        let opener = thread::spawn(move || open(&other, tuple(1, 2), tuple(2, 9)));
        let here = open(&table, tuple(3, 2), tuple(2, 9));
        let there = opener.join().unwrap();
        assert!(here.is_ok() != there.is_ok());
        assert_eq!(here.err().or(there.err()), Some(Refused::NoPort));
        assert_eq!(table.len(), 1);
    });
}

/// On the entry itself: loom looks for races against the last access to a
/// word, so the writer must not read what it is about to write.
#[test]
fn loom_a_reader_never_sees_two_uses_mixed() {
    model(|| {
        let entries = Arc::new(Entries::new(1));
        let uses = [(tuple(1, 2), tuple(2, 9)), (tuple(3, 4), tuple(4, 8))];
        entries.write(0, &uses[0].0, &uses[0].1, 0);
        let other = Arc::clone(&entries);
        let writer = thread::spawn(move || {
            other.retire(0);
            other.write(0, &uses[1].0, &uses[1].1, 0);
        });
        if let Some(seen) = entries.read(0) {
            let which = usize::from(seen.version == 3);
            assert_eq!((seen.original, seen.reply), uses[which]);
        }
        writer.join().unwrap();
        assert_eq!(entries.read(0).map(|pair| pair.version), Some(3));
    });
}

#[test]
fn loom_a_refresh_and_a_removal_end_well() {
    model(|| {
        let table = Arc::new(Connections::new(1, 1));
        let found = open(&table, tuple(1, 2), tuple(2, 9)).unwrap();
        let other = Arc::clone(&table);
        let lane = thread::spawn(move || {
            let reset = crate::wire::tcp::flags::RST;
            other.follow(found.id, Side::Original, reset, 1, 1001)
        });
        table.forget(PortId(0));
        lane.join().unwrap();
        assert_eq!(table.len(), 0);
        open(&table, tuple(1, 2), tuple(2, 9)).unwrap();
    });
}

#[test]
fn loom_a_port_has_one_holder() {
    model(|| {
        let holders = Arc::new(Holders::new(1));
        let other = Arc::clone(&holders);
        let (protocol, outside, range) = (crate::wire::protocol::UDP, end(9).address, 0..=1);
        let lane = thread::spawn(move || other.claim(protocol, end(5), outside, &(0..=1)));
        let here = holders.claim(protocol, end(6), outside, &range);
        let there = lane.join().unwrap();
        let (here, there) = (here.unwrap(), there.unwrap());
        assert_ne!(here.port, there.port);
        assert_eq!(holders.claim(protocol, end(7), outside, &range), None);
        holders.release(here.place);
        let next = holders.claim(protocol, end(7), outside, &range).unwrap();
        assert_eq!(next.port, here.port);
    });
}

/// A lane of an old snapshot goes on with what a lane of the next one ends.
#[test]
fn loom_an_end_and_a_refresh_leave_nothing_half() {
    model(|| {
        let table = Arc::new(Connections::new(1, 1));
        let found = open(&table, tuple(1, 2), tuple(2, 9)).unwrap();
        let other = Arc::clone(&table);
        let lane = thread::spawn(move || {
            let fin = crate::wire::tcp::flags::FIN;
            other.follow(found.id, Side::Original, fin, 1, 1001)
        });
        assert!(table.end(found.id));
        lane.join().unwrap();
        assert!(!table.end(found.id));
        assert_eq!(table.len(), 0);
        let again = open(&table, tuple(1, 2), tuple(2, 9)).unwrap();
        assert_ne!(again.id, found.id);
    });
}

/// What the wheel's next slot, the only one that takes any here, holds.
fn on_the_wheel(table: &Connections) -> Vec<u32> {
    let shard = table.shards.lock(0, &table.entries);
    let due = std::iter::from_fn(|| shard.next_due());
    due.take(2 * table.capacity()).collect()
}

fn expendable(table: &Connections) -> Vec<u32> {
    let shard = table.shards.lock(0, &table.entries);
    let queue = shard.expendable(Origin::Pod);
    queue.take(2 * table.capacity()).collect()
}

/// A reset from outside, for what stands in the index with its answers' tuple
/// alone, perhaps.
fn reset(table: &Connections, reply: Tuple) -> Option<State> {
    let found = table.find(&reply, 1000)?;
    let flags = crate::wire::tcp::flags::RST;
    table.follow(found.id, Side::Reply, flags, 1, 1001)
}

#[test]
fn loom_what_is_not_opened_after_all_stands_in_no_list() {
    model(|| {
        let table = Arc::new(Connections::new(4, 1));
        let first = open(&table, tuple(1, 2), tuple(2, 9)).unwrap();
        let other = Arc::clone(&table);
        let lane = thread::spawn(move || reset(&other, tuple(2, 8)));
        let here = open(&table, tuple(1, 2), tuple(2, 8)).unwrap();
        lane.join().unwrap();
        assert_eq!(here.id, first.id);
        assert_eq!(expendable(&table), []);
        assert_eq!(on_the_wheel(&table), [first.id.entry]);
    });
}

#[test]
fn loom_a_state_that_changes_while_opening_is_kept() {
    model(|| {
        let table = Arc::new(Connections::new(4, 1));
        let other = Arc::clone(&table);
        let lane = thread::spawn(move || reset(&other, tuple(2, 8)));
        let opened = open(&table, tuple(1, 2), tuple(2, 8)).unwrap().id.entry;
        let changed = lane.join().unwrap();
        let state = changed.unwrap_or(State::Established);
        let found = table.find(&tuple(1, 2), 1001).unwrap();
        assert_eq!((found.id.entry, found.state), (opened, state));
        let queued = state.is_expendable().then_some(opened);
        assert_eq!(expendable(&table), Vec::from_iter(queued));
        assert_eq!(on_the_wheel(&table), [opened]);
    });
}
