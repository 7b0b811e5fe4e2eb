//! Whether segments of TCP overtook each other, by what both ends saw on their
//! interfaces. What was lost, and sent again for that, says nothing about it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::capture::{self, Recording};
use crate::error::{LabError, Result};
use crate::namespace::Namespace;

/// A segment, or a super-frame of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    seq: u32,
    len: u32,
    /// The sender's clock.
    stamp: u32,
}

impl Segment {
    /// Whether this one came of `sent`, whole or in part.
    fn is_of(self, sent: Segment) -> bool {
        self.stamp == sent.stamp && self.seq.wrapping_sub(sent.seq) < sent.len.max(1)
    }
}

/// How many of those that came were sent before one that came earlier.
fn overtaken(sent: &[Segment], came: &[Segment]) -> usize {
    let (mut at, mut last_seq) = (0, None::<u32>);
    let mut overtaken = 0;
    for &segment in came {
        let is_next = |seq: u32| (segment.seq.wrapping_sub(seq) as i32) > 0;
        let found = (at..sent.len()).find(|&index| {
            let may_be = index > at || last_seq.is_none_or(is_next);
            may_be && segment.is_of(sent[index])
        });
        match found {
            Some(index) => (at, last_seq) = (index, Some(segment.seq)),
            None => overtaken += 1,
        }
    }
    overtaken
}

/// Connections to a port, recorded where they leave and where they come.
#[derive(Debug)]
pub struct Watched {
    ends: [(Recording, PathBuf); 2],
    port: u16,
}

impl Watched {
    /// Records what leaves `from` by its `eth0` for TCP `port`, and what comes
    /// to `to`; the recordings stand in `dir`.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(from: &Namespace, to: &Namespace, port: u16, dir: &Path) -> Result<Self> {
        let record = |namespace: &Namespace, direction: &str| -> Result<_> {
            let file = dir.join(format!("order-{direction}.pcap"));
            let _ = std::fs::remove_file(&file);
            let options = ["-Q", direction, "-s", "100"];
            let filter = format!("tcp dst port {port}");
            let recording = Recording::start((namespace, "eth0"), &options, &filter, &file)?;
            Ok((recording, file))
        };
        Ok(Self {
            ends: [record(from, "out")?, record(to, "in")?],
            port,
        })
    }

    /// Ends both recordings: how many segments were overtaken, `None` when
    /// tcpdump did not see all.
    ///
    /// # Errors
    /// When tcpdump or tshark fails, or saw nothing.
    pub fn overtaken(self) -> Result<Option<usize>> {
        let mut missed = 0;
        let mut seen = Vec::new();
        for (recording, file) in self.ends {
            missed += recording.stop()?;
            seen.push(connections(&file, self.port)?);
            let _ = std::fs::remove_file(&file);
        }
        let (Some(came), Some(sent)) = (seen.pop(), seen.pop()) else {
            return Ok(None);
        };
        if came.is_empty() {
            return Err(LabError::unexpected("order", "no segment came"));
        }
        let of = |port| sent.get(port).map_or(&[][..], Vec::as_slice);
        let all = came.iter().map(|(port, came)| overtaken(of(port), came));
        let overtaken = all.sum();
        Ok((missed == 0).then_some(overtaken))
    }
}

/// The segments of every connection in a file, by the port that it comes from.
fn connections(file: &Path, port: u16) -> Result<HashMap<String, Vec<Segment>>> {
    let names = [
        "tcp.srcport",
        "tcp.seq_raw",
        "tcp.len",
        "tcp.options.timestamp.tsval",
    ];
    let mut connections: HashMap<String, Vec<Segment>> = HashMap::new();
    // A reset may be the kernel's own word, for a connection that is gone.
    let filter = format!("tcp.dstport == {port} && tcp.flags.reset == 0");
    for row in capture::fields(file, &filter, &names)? {
        let number = |at: usize| {
            let parsed = row[at].parse();
            parsed.map_err(|_| LabError::unexpected("order", format!("a segment is {row:?}")))
        };
        let segment = Segment {
            seq: number(1)?,
            len: number(2)?,
            stamp: number(3)?,
        };
        connections.entry(row[0].clone()).or_default().push(segment);
    }
    Ok(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(all: &[(u32, u32, u32)]) -> Vec<Segment> {
        let segment = |&(seq, len, stamp)| Segment { seq, len, stamp };
        all.iter().map(segment).collect()
    }

    #[test]
    fn only_what_was_overtaken_counts() {
        let end = u32::MAX - 99;
        let cases = [
            ("whole", vec![(0, 100, 1), (100, 100, 1), (200, 0, 2)], 0),
            ("lost", vec![(0, 100, 1), (200, 0, 2)], 0),
            ("cut", vec![(0, 50, 1), (50, 50, 1), (100, 100, 1)], 0),
            ("overtaken", vec![(100, 100, 1), (0, 100, 1)], 1),
            ("a part overtaken", vec![(50, 50, 1), (0, 50, 1)], 1),
            ("doubled", vec![(0, 100, 1), (0, 100, 1)], 1),
        ];
        let sent = segments(&[(0, 100, 1), (100, 100, 1), (200, 0, 2)]);
        for (name, came, expect) in cases {
            assert_eq!(overtaken(&sent, &segments(&came)), expect, "{name}");
        }
        // Sent again, across the end of the numbers.
        let sent = segments(&[(end, 100, 1), (0, 100, 1), (end, 100, 2)]);
        let came = segments(&[(0, 100, 1), (end, 100, 2)]);
        assert_eq!(overtaken(&sent, &came), 0);
        assert_eq!(overtaken(&sent, &sent), 0);
        let came = segments(&[(end, 100, 2), (0, 100, 1)]);
        assert_eq!(overtaken(&sent, &came), 1);
    }
}
