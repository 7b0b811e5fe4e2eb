//! A runtime's call: a line of `CNI_ARGS`, and the network configuration.
#![no_main]

use rscni_plugin::types::NetConf;
use spinlane_cni::arguments::Arguments;
use spinlane_cni::error::Error;
use spinlane_cni::input::Input;
use spinlane_cni::settings::{Settings, Wishes};

libfuzzer_sys::fuzz_target!(|call: &[u8]| {
    let end = call.iter().position(|byte| *byte == b'\n');
    let (arguments, raw) = call.split_at(end.unwrap_or(call.len()));
    let arguments = String::from_utf8_lossy(arguments);
    let input = Input::parse(raw.to_vec());
    let _ = input.version();
    let arguments = Arguments::parse(Some(&arguments)).unwrap_or_else(|error| {
        told(&error);
        Arguments::default()
    });
    let Ok(config) = serde_json::from_slice::<NetConf>(input.raw()) else {
        return;
    };
    if let Err(error) = Settings::read(&config) {
        told(&error);
    }
    if let Err(error) = Wishes::read(&config, &arguments) {
        told(&error);
    }
});

/// A refusal says what it refuses.
fn told(error: &Error) {
    assert!(!error.to_string().is_empty());
}
