//! Kubernetes objects in files that people write and tools render.
#![no_main]

use spinlane_control::source::object;

libfuzzer_sys::fuzz_target!(|text: &str| {
    // What ends a line in YAML 1.1.
    let breaks = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
    let lines = text.matches(breaks).count() + 1;
    // What is missing is missed at the end.
    if let Err(error) = object::parse(text) {
        assert!(!error.message.is_empty());
        assert!(error.line.is_none_or(|line| (1..=lines + 1).contains(&line)));
    }
});
