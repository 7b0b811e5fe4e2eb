//! Reading captures with tshark: an opinion about bytes that is not ours.

use std::path::Path;
use std::process::Command;

use crate::error::Result;
use crate::process::run;

/// Fields of every packet in a capture file that matches `filter` (all when
/// empty), one row a packet; a field that occurs several times is joined by
/// commas, a missing one is empty.
///
/// # Errors
/// When tshark cannot open the file or knows no such field.
pub fn fields(file: &Path, filter: &str, names: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command
        .arg("-n")
        .args(["-o", "ip.check_checksum:TRUE"])
        .args(["-o", "tcp.check_checksum:TRUE"])
        .args(["-o", "udp.check_checksum:TRUE"])
        .arg("-r")
        .arg(file)
        .args(["-T", "fields", "-E", "separator=/t"]);
    if !filter.is_empty() {
        command.args(["-Y", filter]);
    }
    for name in names {
        command.args(["-e", name]);
    }
    Ok(run(command)?
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect())
}

/// Number of packets in a capture file that match `filter`.
///
/// # Errors
/// As [`fields`].
pub fn count(file: &Path, filter: &str) -> Result<usize> {
    Ok(fields(file, filter, &["frame.number"])?.len())
}
