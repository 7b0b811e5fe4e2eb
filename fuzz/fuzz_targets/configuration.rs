//! Configuration files.
#![no_main]

use spinlane_control::config::{Config, Environment};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let environment = Environment {
        allowed_cores: vec![0, 1],
        host_name: "node-a".to_owned(),
        ..Environment::default()
    };
    if let Err(error) = Config::parse(text, "spinlane.toml", &environment) {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
});
