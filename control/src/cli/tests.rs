use std::collections::BTreeMap;

use super::*;
use crate::check::{Item, Report, State};
use crate::views::Views;
use crate::views::fake::switch;

fn parsed(words: &[&str]) -> Result<Arguments, clap::Error> {
    let words = [&["spinlane"], words].concat();
    arguments(words.into_iter().map(OsString::from))
}

#[test]
fn arguments_stand_before_or_after_the_command() {
    for words in [
        ["-o", "json", "--run-dir", "/r", "status"],
        ["status", "--run-dir", "/r", "-o", "json"],
    ] {
        let arguments = parsed(&words).unwrap();
        assert_eq!(arguments.common.output, Output::Json);
        assert_eq!(arguments.common.run_dir, PathBuf::from("/r"));
    }
    let arguments = parsed(&["demo", "--seconds", "3", "-v"]).unwrap();
    let Command::Demo(demo) = arguments.command else {
        panic!("{arguments:?}")
    };
    assert_eq!(demo.rest, ["--seconds", "3", "-v"]);
}

#[test]
fn wrong_usage_is_one_line() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["stat"],
            "unrecognized subcommand 'stat' tip: a similar subcommand exists: 'status'; see `spinlane --help`",
        ),
        (
            &["capture"],
            "the following required arguments were not provided: --write <FILE>; see `spinlane --help`",
        ),
        (
            &["status", "-o", "xml"],
            "invalid value 'xml' for '--output <FORMAT>' [possible values: table, json]; see `spinlane --help`",
        ),
        (
            &["capture", "--write", "f", "--snaplen", "13"],
            "invalid value '13' for '--snaplen <BYTES>': 13 is not in 14..=262144; see `spinlane --help`",
        ),
        (
            &["capture", "--write", "f", "--count", "0"],
            "invalid value '0' for '--count <N>': 0 is not in 1..18446744073709551615; see `spinlane --help`",
        ),
    ];
    for (words, expected) in cases {
        let error = parsed(words).unwrap_err();
        assert_eq!(one_line(&error.to_string()), *expected);
    }
}

#[test]
fn what_comes_later_is_absent() {
    for word in ["services", "policy", "trace", "top"] {
        let error = parsed(&[word]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSubcommand, "{word}");
    }
}

#[test]
fn failures_have_the_status_of_their_kind() {
    let no_agent = ClientError::NoAgent {
        socket: PathBuf::from("/x"),
        reason: "gone".to_owned(),
    };
    assert_eq!(Failure::from(no_agent).status, 3);
    assert_eq!(
        Failure::from(ClientError::Refused("no".to_owned())).status,
        1
    );
    assert_eq!(Failure::usage("x").status, 2);
}

/// Every table, as it is printed without a terminal.
#[test]
fn tables_read_well() {
    let switch = switch();
    let nothing: BTreeMap<String, u64> = [("runt".to_owned(), 0)].into();
    let report = Report {
        ok: false,
        items: vec![Item {
            name: "kernel".to_owned(),
            state: State::Missing,
            detail: "too old".to_owned(),
        }],
    };
    let tables = [
        table::status(&switch.status),
        table::ports(&switch.ports),
        table::flows(&switch.flows()),
        table::fdb(&switch.fdb()),
        table::routes(&switch.routes()),
        table::drops(&switch.drops()),
        table::ports(&[]),
        table::flows(&[]),
        table::fdb(&[]),
        table::drops(&nothing),
        table::check(&report),
        table::cleanup(&[]),
        table::cleanup(&["interface sl1".to_owned()]),
    ];
    for line in tables.iter().flat_map(|table| table.lines()) {
        assert!(line.chars().count() <= 120, "{line}");
    }
    insta::assert_snapshot!(tables.join("\n---\n"));
}

#[test]
fn json_is_the_view_itself() {
    let view = switch().status;
    let text = serde_json::to_string_pretty(&view).unwrap();
    assert_eq!(serde_json::from_str::<view::Status>(&text).unwrap(), view);
}
