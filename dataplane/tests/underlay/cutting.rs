//! Super-frames over an uplink that cuts them, or for which the kernel or the
//! lane does: as long as they may be, and in order.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::lab::*;
use super::{linux_router, stream, with_routes};

/// What tcpdump sees come to an end of the lab.
struct Recording {
    tcpdump: Child,
    file: PathBuf,
}

impl Recording {
    fn start(lab: &Lab, end: &str, filter: &str) -> Recording {
        let namespace = lab.namespace(end);
        let file = std::env::temp_dir().join(format!("{namespace}.pcap"));
        let _ = std::fs::remove_file(&file);
        let tcpdump = Command::new("ip")
            .args(["netns", "exec", &namespace, "tcpdump", "-U", "-Z", "root"])
            .args(["-i", "eth0", "-Q", "in", "-s", "100", "-B", "16384", "-w"])
            .arg(&file)
            .arg(filter)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The file's header is written once the socket takes packets.
        eventually("tcpdump listens", || {
            file.metadata().is_ok_and(|meta| meta.len() >= 24)
        });
        Recording { tcpdump, file }
    }

    /// Ends it once it has no more to write; fields of every packet, as tshark
    /// reads them.
    fn stop(mut self, fields: &[&str]) -> Vec<Vec<String>> {
        let len = || self.file.metadata().map_or(0, |meta| meta.len());
        let mut last = 0;
        while last != len() {
            last = len();
            std::thread::sleep(std::time::Duration::from_millis(1500));
        }
        let id = self.tcpdump.id().to_string();
        let interrupted = Command::new("kill").args(["-INT", &id]).status();
        assert!(interrupted.unwrap().success());
        self.tcpdump.wait().unwrap();
        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-T", "fields", "-r"]).arg(&self.file);
        for field in fields {
            tshark.args(["-e", field]);
        }
        let read = tshark.output().unwrap();
        let text = String::from_utf8(read.stdout).unwrap();
        let row = |line: &str| line.split('\t').map(str::to_owned).collect();
        text.lines().map(row).collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // One that was stopped has ended already.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Has what the pod sends enter on one CPU, as the agent does. Without, each
/// CPU that the sender moves to has a backlog of its own in the kernel, and
/// what it sends on one overtakes what it sent on the other before.
fn steer(lab: &Lab) {
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    let (word, bit) = (last / 32, last % 32);
    let mask = format!("{:x}{}", 1u32 << bit, ",00000000".repeat(word));
    let queue = "/sys/class/net/p0/queues/rx-0/rps_cpus";
    let mut write = Command::new("ip");
    write.args(["netns", "exec", &lab.namespace("node"), "sh", "-c"]);
    let written = write.arg(format!("echo {mask} > {queue}")).status();
    assert!(written.unwrap().success());
}

/// Which segments of a recording were overtaken, by whom. Whoever sends a segment
/// numbers it (`ip_select_ident_segs`, include/net/ip.h), once more when it
/// sends it again, so numbers that go back tell of order and nothing else. What
/// the kernel answers for a connection that is gone carries no data and is
/// numbered by itself.
fn overtaken(recording: Recording) -> Vec<String> {
    let mut last: HashMap<String, (u16, &[String])> = HashMap::new();
    let rows = recording.stop(&["tcp.srcport", "ip.id", "tcp.len", "tcp.seq"]);
    assert!(rows.len() > 100, "{} segments were recorded", rows.len());
    let with_data = rows.iter().filter(|row| row[2] != "0");
    let overtaken = with_data.filter_map(|row| {
        let number = u16::from_str_radix(row[1].trim_start_matches("0x"), 16).unwrap();
        let (before, by) = last.insert(row[0].clone(), (number, row))?;
        let step = number.wrapping_sub(before) as i16;
        (step <= 0).then(|| format!("{row:?} by {by:?}"))
    });
    overtaken.collect()
}

/// Streams over an uplink that cuts, and was said to. Gives the mean length of
/// the frames that came to the peer. Nothing may be sent again but what was
/// lost, and nothing may be overtaken.
fn stream_over(lab: &Lab, (cuts, said): (bool, bool)) -> u64 {
    let state = if cuts { "on" } else { "off" };
    lab.succeeds("node", &format!("ethtool -K up0 tso {state} gso {state}"));
    let (engine, attached) = attach_as(lab, (1, 1), |spec| spec.cuts_segments = said);
    attached.unwrap();
    engine.publish(with_routes(snapshot(), Some(PEER_MAC)));
    let count = |end: &str, command: &str| {
        let text = lab.succeeds(end, command);
        let number = text.lines().last().and_then(|line| {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.parse::<u64>().ok())
        });
        number.unwrap_or_else(|| panic!("{command}: {text}"))
    };
    let counts = || {
        [
            count("peer", "cat /sys/class/net/eth0/statistics/rx_packets"),
            count("peer", "cat /sys/class/net/eth0/statistics/rx_bytes"),
            count("pod", "nstat -asz TcpRetransSegs"),
        ]
    };
    let before = counts();
    let recording = Recording::start(lab, "peer", "tcp dst port 5201");
    stream(lab, &engine);
    let after = counts();
    frames_come_home(&engine);
    engine.stop();
    let overtaken = overtaken(recording);
    assert!(overtaken.is_empty(), "were overtaken: {overtaken:#?}");
    let [packets, bytes, sent_again] = std::array::from_fn(|at| after[at] - before[at]);
    assert!(sent_again < MOST_LOST, "{sent_again} segments sent again");
    bytes / packets
}

/// Of the 14 000 segments of a stream: a machine with other work loses some.
const MOST_LOST: u64 = 140;

#[test]
fn the_uplinks_device_cuts_super_frames_or_the_kernel_does() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("cut");
    linux_router(&lab);
    steer(&lab);
    // A veth that cuts passes them whole.
    let mean = stream_over(&lab, (true, true));
    assert!(mean > 10_000, "frames of {mean} bytes left");
    // Last, what the device does no longer is cut by the lane.
    for said in [false, true] {
        let mean = stream_over(&lab, (false, said));
        assert!(
            (1000..=1514).contains(&mean),
            "frames of {mean} bytes left, said {said}"
        );
    }
}
