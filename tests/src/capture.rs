//! Reading captures with tshark: an opinion about bytes that is not ours.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::process::{Process, run};
use crate::{PATIENCE, wait_for};

/// The kernel hands packets to tcpdump within a second; and then some.
const HANDED_OVER: Duration = Duration::from_millis(2500);

/// Packets that tcpdump writes to a file.
#[derive(Debug)]
pub struct Recording {
    process: Process,
    file: PathBuf,
    /// Whether what comes and what goes is recorded.
    is_of_both: bool,
}

impl Recording {
    /// Starts tcpdump on an interface of a namespace and waits until it
    /// listens; `options` go before the filter (`-Q in`, `-s 128`).
    ///
    /// # Errors
    /// When it cannot be started or does not come to listen.
    pub fn start(
        on: (&Namespace, &str),
        options: &[&str],
        filter: &str,
        file: &Path,
    ) -> Result<Self> {
        let (namespace, interface) = on;
        let file_name = file.display().to_string();
        let mut argv = vec!["tcpdump", "-U", "-B", "16384"];
        argv.extend(["-Z", "root", "-i", interface, "-w", &file_name]);
        argv.extend(options);
        argv.push(filter);
        let process = namespace.spawn(&argv)?;
        // The file's header is written once the socket takes packets.
        wait_for("tcpdump to listen", PATIENCE, || {
            file.metadata().ok().filter(|meta| meta.len() >= 24)
        })?;
        Ok(Self {
            process,
            file: file.to_owned(),
            is_of_both: !options.contains(&"-Q"),
        })
    }

    /// Waits for tcpdump's own end, after as many packets as it was told by
    /// `-c`; how many it missed.
    ///
    /// # Errors
    /// When they do not come, or tcpdump fails.
    pub fn finish(self) -> Result<u32> {
        missed(&self.process.wait(PATIENCE)?)
    }

    /// Ends the recording once tcpdump has no more to write; how many packets
    /// it missed.
    ///
    /// # Errors
    /// When tcpdump fails.
    pub fn stop(self) -> Result<u32> {
        let len = || self.file.metadata().map_or(0, |meta| meta.len());
        let mut last = 0;
        while last != len() {
            last = len();
            std::thread::sleep(HANDED_OVER);
        }
        let ended = self.process.interrupt(PATIENCE)?;
        let received = said(&ended, " packets received by filter")?;
        let unread = received.saturating_sub(said(&ended, " packets captured")?);
        // By one direction alone others are received, too.
        let unread = if self.is_of_both { unread } else { 0 };
        Ok(missed(&ended)?.max(unread))
    }
}

/// How many packets an ended tcpdump missed.
fn missed(tcpdump: &Output) -> Result<u32> {
    said(tcpdump, " packets dropped by kernel")
}

/// The number that an ended tcpdump says before `words`.
fn said(tcpdump: &Output, words: &str) -> Result<u32> {
    let text = String::from_utf8_lossy(&tcpdump.stderr).into_owned();
    // One packet is no "packets".
    let one = words.replacen("packets", "packet", 1);
    let number = text.lines().find_map(|line| {
        let number = line.strip_suffix(words).or(line.strip_suffix(&one));
        number?.parse().ok()
    });
    match number {
        Some(number) if tcpdump.status.success() => Ok(number),
        _ => Err(LabError::unexpected("tcpdump", text)),
    }
}

/// What tshark may find wrong with any packet. A TCP checksum of all ones is
/// Linux's own way to write zero (`skb_checksum_help`, `CSUM_MANGLED_0`).
pub const ODD: &str = "_ws.malformed || ip.checksum.status == 0 \
                       || (tcp.checksum.status == 0 && tcp.checksum != 0xffff) \
                       || udp.checksum.status == 0 || icmp.checksum.status == 0 \
                       || icmpv6.checksum.status == 0 || udp.length.bad";

/// What tshark finds wrong with TCP connections when something was lost,
/// doubled or overtaken.
pub const TCP_COMPLAINTS: &str = "tcp.analysis.retransmission || tcp.analysis.fast_retransmission \
     || tcp.analysis.spurious_retransmission || tcp.analysis.out_of_order \
     || tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment \
     || tcp.analysis.duplicate_ack";

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
        // A stream's bytes mean nothing, whoever else has its ports.
        .args(["-d", "tcp.port==1024-65535,data"])
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
