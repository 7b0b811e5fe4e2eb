//! A batch of strangers' packets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spinlane_dataplane::pipeline::fuzz::process_packets(data);
});
