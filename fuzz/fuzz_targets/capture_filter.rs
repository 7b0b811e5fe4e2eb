//! Filter expressions over strangers' packets.
#![no_main]

use spinlane_control::capture::Filter;
use spinlane_control::views::Packet;

libfuzzer_sys::fuzz_target!(|input: (&str, &[u8])| {
    let (expression, data) = input;
    if let Ok(filter) = Filter::parse(expression) {
        filter.matches(&Packet {
            at: std::time::SystemTime::UNIX_EPOCH,
            port: String::new(),
            inbound: true,
            len: data.len(),
            drop: None,
            data: data.to_vec(),
        });
    }
});
