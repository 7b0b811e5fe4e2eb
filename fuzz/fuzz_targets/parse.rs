//! Headers of strangers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spinlane_dataplane::pipeline::fuzz::parse_bytes(data);
});
