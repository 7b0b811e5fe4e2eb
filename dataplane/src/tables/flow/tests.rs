//! The table against a model, and what a flood does to flows in use.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn key(number: u32) -> KeyV4 {
    let mut addresses = [10, 0, 0, 1, 10, 0, 0, 2];
    addresses[4..].copy_from_slice(&number.to_be_bytes());
    KeyV4 {
        addresses,
        upper: UpperKey {
            ports: [0, 1, 0, 2],
            in_port: 3,
            protocol: 6,
            is_fragment: 0,
        },
    }
}

fn actions(number: u32) -> Actions {
    Actions {
        out: number as u16,
        mtu: (number >> 16) as u16,
        ..Actions::default()
    }
}

/// What a lane does with a packet; whether its flow was known.
fn packet(table: &mut FlowTable<KeyV4>, number: u32, now_ms: u32) -> bool {
    let key = key(number);
    let hash = table.ask_tags(&key);
    let hint = table.ask_slot(hash);
    if let Some(slot) = table.find_hinted(hint, hash, &key) {
        assert_eq!(table.flow(slot).actions, actions(number));
        table.flow(slot).count(64, now_ms);
        return true;
    }
    match table.insert(hash, &key, actions(number), Generation(1), now_ms) {
        Inserted::Free(slot) | Inserted::Evicted(slot) => table.flow(slot).count(64, now_ms),
        Inserted::Refused => {}
    }
    false
}

proptest! {
    #[test]
    fn equals_a_hash_map_while_nothing_is_evicted(numbers in proptest::collection::vec(0u32..300, 1..2000)) {
        let mut table = FlowTable::new(1 << 14);
        let mut model: HashMap<u32, u64> = HashMap::new();
        for number in numbers {
            let known = packet(&mut table, number, 1);
            let count = model.entry(number).or_default();
            prop_assert_eq!(known, *count > 0);
            *count += 1;
        }
        prop_assert_eq!(table.len(), model.len());
        let mut found = HashMap::new();
        for (key, flow) in table.iter() {
            let [.., a, b, c, d] = key.addresses;
            prop_assert_eq!(flow.bytes, flow.packets * 64);
            found.insert(u32::from_be_bytes([a, b, c, d]), flow.packets);
        }
        prop_assert_eq!(found, model);
    }

    #[test]
    fn what_is_found_is_what_was_put_whatever_is_evicted(numbers in proptest::collection::vec(0u32..400, 1..4000)) {
        // packet() compares the actions of every hit with the key's.
        let mut table = FlowTable::new(64);
        for (step, number) in numbers.iter().enumerate() {
            packet(&mut table, *number, step as u32 * 20);
            prop_assert!(table.len() <= table.capacity());
            prop_assert_eq!(table.iter().count(), table.len());
        }
    }
}

#[test]
fn a_flood_of_random_flows_does_not_push_out_flows_in_use() {
    let mut table = FlowTable::new(1 << 12);
    let established = 1 << 10;
    let mut now_ms = 0;
    for _ in 0..10 {
        now_ms += 10;
        for number in 0..established {
            packet(&mut table, number, now_ms);
        }
    }
    // Twenty new flows for each packet of an established one.
    let (mut hits, mut packets, mut random) = (0, 0, 1 << 20);
    for _ in 0..50 {
        now_ms += 100;
        for number in 0..established {
            hits += u32::from(packet(&mut table, number, now_ms));
            packets += 1;
            for _ in 0..20 {
                random += 1;
                packet(&mut table, random, now_ms);
            }
        }
    }
    let rate = f64::from(hits) / f64::from(packets);
    assert!(rate > 0.99, "{rate} of established packets hit");
}

#[test]
fn neighbouring_keys_spread_over_the_table() {
    // Pods of a range, and ports of a client, differ in a few bits only. The
    // second number takes every value that could meet a weak seed.
    type Make = fn(u8, [u8; 2]) -> [u8; 12];
    let cases: [(&str, Make); 4] = [
        ("destinations", |n, [a, b]| {
            [10, 1, 0, 2, 10, 1, 0, n, 0, a, b, 80]
        }),
        ("sources", |n, [a, b]| {
            [10, 1, 0, n, 10, 1, 0, 2, 0, a, b, 80]
        }),
        ("source ports", |n, [a, b]| {
            [10, 1, a, b, 10, 1, 0, 2, 160, n, 0, 80]
        }),
        ("destination ports", |n, [a, b]| {
            [10, 1, a, b, 10, 1, 0, 2, 160, 0, 80, n]
        }),
    ];
    for (name, make) in cases {
        for round in 0..1 << 10_u16 {
            // Room for four times as many: by chance hardly a bucket is full.
            let mut table = FlowTable::new(1 << 10);
            for number in 0..=u8::MAX {
                let bytes = make(number, u16::to_le_bytes(round));
                let mut key = key(0);
                key.addresses.copy_from_slice(&bytes[..8]);
                key.upper.ports.copy_from_slice(&bytes[8..]);
                table.insert(table.hash(&key), &key, actions(1), Generation(1), 0);
            }
            assert!(table.len() > 240, "{name}: {} of 256 fit", table.len());
        }
    }
}

#[test]
fn a_flood_does_not_keep_new_flows_out_for_ever() {
    let mut table = FlowTable::new(64);
    for number in 0..10_000 {
        packet(&mut table, number, number / 100);
    }
    let hits = (0..20).filter(|_| packet(&mut table, 77_777, 101)).count();
    assert_eq!(hits, 19, "a new flow takes the place of the flood's");
}

#[test]
fn flows_in_use_refuse_a_new_one_until_they_rest() {
    let mut table = FlowTable::new(WAYS);
    for number in 0..WAYS as u32 {
        for _ in 0..1000 {
            packet(&mut table, number, 0);
        }
    }
    let newcomer = key(99);
    let hash = table.hash(&newcomer);
    let at = |table: &mut FlowTable<KeyV4>, now_ms| {
        table.insert(hash, &newcomer, actions(99), Generation(1), now_ms)
    };
    assert_eq!(at(&mut table, protection_ms(1000)), Inserted::Refused);
    let after = at(&mut table, protection_ms(1000) + 1);
    assert!(matches!(after, Inserted::Evicted(_)));
    assert_eq!(table.len(), WAYS);
}

#[test]
fn the_sweep_forgets_idle_flows_and_no_others() {
    // So large that no set fills up, whatever the seed of the hash.
    let slots = 1 << 16;
    let mut table = FlowTable::new(slots);
    let start = u32::MAX - 5_000; // the clock wraps meanwhile
    for number in 0..200 {
        packet(&mut table, number, start);
    }
    let later = start.wrapping_add(IDLE_LIMIT_MS);
    for number in 0..50 {
        assert!(packet(&mut table, number, later));
    }
    for _ in 0..slots {
        table.sweep(later.wrapping_add(1));
    }
    assert_eq!(table.len(), 50);
    for number in 0..50 {
        assert!(packet(&mut table, number, later));
    }
    assert!(!packet(&mut table, 51, later));
}

#[test]
fn an_old_hint_finds_the_flow_all_the_same() {
    let mut table = FlowTable::new(WAYS);
    let (one, two) = (key(1), key(2));
    let hash = table.hash(&two);
    let hint = table.ask_slot(hash);
    assert_eq!(hint, Hint::NONE);
    packet(&mut table, 1, 0);
    packet(&mut table, 2, 0);
    let found = table.find_hinted(hint, hash, &two);
    assert_eq!(found, table.find(hash, &two));
    assert!(found.is_some());
    let hint = table.ask_slot(table.hash(&one));
    assert_eq!(table.find_hinted(hint, hash, &two), found);
}

#[test]
fn a_flow_of_another_generation_is_not_current() {
    let mut table = FlowTable::new(WAYS);
    packet(&mut table, 1, 0);
    let slot = table.find(table.hash(&key(1)), &key(1)).unwrap();
    assert!(table.flow(slot).is_current(Generation(1)));
    assert!(!table.flow(slot).is_current(Generation(2)));
    table.redecide(slot, actions(5), Generation(2));
    assert!(table.flow(slot).is_current(Generation(2)));
    assert_eq!(table.flow(slot).packets, 1, "what it counted stays");
}
