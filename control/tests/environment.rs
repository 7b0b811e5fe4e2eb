//! What the command line takes from the environment.

use std::process::{Command, Output};

fn status(run_dir: Option<&str>, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spinlane"));
    command.arg("status").args(more);
    match run_dir {
        Some(dir) => command.env("SPINLANE_RUN_DIR", dir),
        None => command.env_remove("SPINLANE_RUN_DIR"),
    };
    command.output().expect("it starts")
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let (empty, none) = (status(Some(""), &[]), status(None, &[]));
    assert_ne!(empty.status.code(), Some(2), "{empty:?}");
    assert_eq!(empty.status, none.status);
    assert_eq!(empty.stderr, none.stderr);
}

#[test]
fn an_option_is_taken_at_its_word() {
    let words = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let elsewhere = status(Some("/nowhere/variable"), &[]);
    assert_eq!(elsewhere.status.code(), Some(3));
    assert!(words(&elsewhere).contains("/nowhere/variable"));
    for variable in ["", "/nowhere/variable"] {
        let option = status(Some(variable), &["--run-dir", "/nowhere/option"]);
        assert_eq!(option.status.code(), Some(3));
        assert!(words(&option).contains("/nowhere/option"));
        let empty = status(Some(variable), &["--run-dir", ""]);
        assert_eq!(empty.status.code(), Some(2), "{empty:?}");
    }
}
