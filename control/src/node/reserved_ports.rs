//! Keeps the kernel from choosing masquerade's ports for the node's own
//! connections (`net.ipv4.ip_local_reserved_ports`, for IPv6 too).
//!
//! Ports that were not reserved before are written beside the store first, so
//! that `cleanup` gives back these and no others. A program that binds one of
//! them by number still gets it.

use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

const SETTING: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The ports could not be reserved or given back.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot change {path} for the masquerade's ports: {source}; let the agent write it, or set network.masquerade = false"
)]
pub struct ReserveError {
    path: String,
    source: io::Error,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ReserveError + '_ {
    move |source| ReserveError {
        path: path.display().to_string(),
        source,
    }
}

/// Where the ports stand that are ours to give back.
pub(super) fn record(state_dir: &Path) -> PathBuf {
    state_dir.join("reserved-ports")
}

/// Reserves the range in the calling thread's network namespace, and gives
/// back what an earlier range had more.
pub(super) fn reserve(range: RangeInclusive<u16>, state_dir: &Path) -> Result<(), ReserveError> {
    let setting = Path::new(SETTING);
    let record = record(state_dir);
    let now = parse(&std::fs::read_to_string(setting).map_err(failed(setting))?);
    let ours = recorded(&record)?;
    let foreign: BTreeSet<u16> = now.difference(&ours).copied().collect();
    let added: BTreeSet<u16> = range.filter(|port| !foreign.contains(port)).collect();
    if added != ours {
        std::fs::write(&record, list(&added)).map_err(failed(&record))?;
    }
    let wanted: BTreeSet<u16> = foreign.union(&added).copied().collect();
    match wanted == now {
        true => Ok(()),
        false => std::fs::write(setting, list(&wanted)).map_err(failed(setting)),
    }
}

/// Gives back what [`reserve`] took. Returns whether there was anything.
pub(super) fn release(state_dir: &Path) -> Result<bool, ReserveError> {
    let setting = Path::new(SETTING);
    let record = record(state_dir);
    let ours = recorded(&record)?;
    if ours.is_empty() {
        return Ok(false);
    }
    let now = parse(&std::fs::read_to_string(setting).map_err(failed(setting))?);
    let left: BTreeSet<u16> = now.difference(&ours).copied().collect();
    std::fs::write(setting, list(&left)).map_err(failed(setting))?;
    std::fs::remove_file(&record).map_err(failed(&record))?;
    Ok(true)
}

fn recorded(record: &Path) -> Result<BTreeSet<u16>, ReserveError> {
    match std::fs::read_to_string(record) {
        Ok(text) => Ok(parse(&text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(source) => Err(failed(record)(source)),
    }
}

/// The kernel's notation: `80,443,61000-65535`.
fn parse(text: &str) -> BTreeSet<u16> {
    let ranges = text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
    });
    ranges.flatten().collect()
}

fn list(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == port => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let parts = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    let mut text = parts.collect::<Vec<_>>().join(",");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_notation_is_read_and_written() {
        for text in ["\n", "80\n", "80,443\n", "1-3,5,61000-65535\n", "65535\n"] {
            assert_eq!(list(&parse(text)), text);
        }
        assert_eq!(list(&parse("5,3,4")), "3-5\n");
    }
}
