//! The result as a table for people.

use std::fmt::Write;

use comfy_table::Cell;

use super::Micro;
use super::work::ENDLESS;
use crate::report::{busy_elsewhere, figure, table};

pub(super) fn text(micro: &Micro) -> String {
    let mut text = String::new();
    let machine = &micro.machine;
    let _ = writeln!(
        text,
        "{}, Linux {}; core {}, time-stamp counter at {:.2} GHz; {} samples of each case, in turns",
        machine.cpu,
        machine.kernel,
        micro.core,
        micro.tsc_hz / 1e9,
        micro.rounds,
    );
    if !micro.complete {
        let _ = writeln!(text, "Interrupted: rounds or instructions are missing.");
    }
    let _ = writeln!(text, "instructions: {}", micro.instructions);
    let allocations = match micro.allocations {
        Some(count) => count.to_string(),
        None => "not counted".to_owned(),
    };
    let _ = writeln!(
        text,
        "allocations while packets were handled: {allocations}"
    );
    let warning = busy_elsewhere(machine, "figures are higher than they need be");
    if let Some(warning) = warning {
        let _ = writeln!(text, "{warning}");
    }
    let _ = writeln!(text, "\n{}", cases(micro));
    let _ = writeln!(text, "\n{}", peer(micro));
    if !micro.ratios.is_empty() {
        let _ = writeln!(text, "\n{}", ratios(micro));
    }
    text.trim_end().to_owned()
}

fn cases(micro: &Micro) -> comfy_table::Table {
    let header = [
        "work",
        "IP",
        "flows",
        "batch",
        "per",
        "cycles",
        "95 % interval",
        "ns",
        "instructions",
        "known",
    ];
    let mut table = table(header.map(Cell::new));
    for row in &micro.cases {
        let case = row.case;
        let flows = match case.flows {
            ENDLESS => "all new".to_owned(),
            flows => flows.to_string(),
        };
        let (low, high) = row.cycles.interval;
        let instructions = row
            .instructions
            .map_or_else(String::new, |n| format!("{n:.0}"));
        let known = row
            .hit_share
            .map_or_else(String::new, |share| format!("{:.1} %", share * 100.0));
        table.add_row(vec![
            Cell::new(case.work.name()),
            figure(if case.v6 { "6" } else { "4" }),
            figure(flows),
            figure(case.batch.to_string()),
            Cell::new(&row.unit),
            figure(format!("{:.1}", row.cycles.value)),
            figure(format!("{low:.1} – {high:.1}")),
            figure(format!("{:.1}", row.ns)),
            figure(instructions),
            figure(known),
        ]);
    }
    table
}

pub(super) fn peer(micro: &Micro) -> String {
    let peer = &micro.peer;
    if let Some(reason) = &peer.missing {
        return format!("{}: missing: {reason}", peer.name);
    }
    let settings: Vec<String> = peer
        .settings
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let cycles = peer.cycles.map_or_else(String::new, |cycles| {
        let (low, high) = cycles.interval;
        format!(
            "{:.1} cycles per packet ({low:.1} – {high:.1}); ",
            cycles.value
        )
    });
    format!("{}: {cycles}{}", peer.name, settings.join(" · "))
}

fn ratios(micro: &Micro) -> comfy_table::Table {
    let mut table = table(["cycles of", "to", "median", "95 % interval", "bar", ""].map(Cell::new));
    for (of, to, median, at_most, word) in micro.bars() {
        let (low, high) = median.interval;
        table.add_row(vec![
            Cell::new(of),
            Cell::new(to),
            figure(format!("{:.2}", median.value)),
            figure(format!("{low:.2} – {high:.2}")),
            figure(format!("≤ {at_most}")),
            Cell::new(word.text()),
        ]);
    }
    table
}
