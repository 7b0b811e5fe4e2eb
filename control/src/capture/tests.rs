use std::process::Command;
use std::time::{Duration, SystemTime};

use pcap_file::pcapng::{Block, PcapNgReader};
use tokio::sync::mpsc;

use super::*;
use crate::views::fake::switch;
use crate::views::{Packet, Views};

fn packet(port: &str, first: u8, drop: Option<&'static str>) -> Packet {
    let mut data = vec![0; 60];
    data[0] = first;
    data[12..14].copy_from_slice(&[0x08, 0x06]);
    Packet {
        at: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
        port: port.to_owned(),
        inbound: first.is_multiple_of(2),
        len: 1514,
        drop,
        data,
    }
}

/// Records what the fake switch has and returns the file.
fn recorded(recording: &Recording, packets: Vec<Packet>) -> Vec<u8> {
    let switch = switch();
    *switch.packets.lock().unwrap() = packets.into();
    let mut packets = switch.capture(None, recording.snaplen).unwrap();
    let (reader, mut blocks) = mpsc::channel(1000);
    record(recording, &mut *packets, &reader);
    drop(reader);
    let mut file = Vec::new();
    while let Some(lot) = blocks.blocking_recv() {
        file.extend(lot);
    }
    file
}

fn three() -> Vec<Packet> {
    vec![
        packet("sl1", 2, None),
        packet("sl2", 3, Some("spoofed")),
        packet("sl1", 4, None),
    ]
}

fn recording(count: u64) -> Recording {
    Recording {
        count: Some(count),
        snaplen: 262_144,
        ..Recording::default()
    }
}

/// The packets of a port that was removed.
struct Last(Option<Packet>);

impl Packets for Last {
    fn next(&mut self, _: Duration) -> Option<Packet> {
        self.0.take()
    }

    fn lost(&self) -> u64 {
        0
    }

    fn is_over(&self) -> bool {
        self.0.is_none()
    }
}

#[test]
fn a_capture_ends_with_its_port() {
    let (reader, mut blocks) = mpsc::channel(1000);
    record(&recording(9), &mut Last(three().pop()), &reader);
    drop(reader);
    let mut counted = Blocks::default();
    while let Some(lot) = blocks.blocking_recv() {
        counted.take(&lot, |_| Ok(())).unwrap();
    }
    assert_eq!(counted.packets(), 1);
}

#[test]
fn tshark_reads_interfaces_times_and_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.pcapng");
    std::fs::write(&path, recorded(&recording(3), three())).unwrap();
    let tshark = Command::new("tshark")
        .args([
            "-r",
            path.to_str().unwrap(),
            "-T",
            "fields",
            "-E",
            "separator=,",
        ])
        .args([
            "-e",
            "frame.interface_name",
            "-e",
            "frame.time_epoch",
            "-e",
            "frame.len",
        ])
        .args([
            "-e",
            "frame.cap_len",
            "-e",
            "frame.packet_flags_direction",
            "-e",
            "frame.comment",
        ])
        .output();
    let Ok(output) = tshark else {
        assert!(std::env::var_os("CI").is_none(), "tshark is missing");
        eprintln!("SKIPPED: tshark is not installed");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let time = "1700000000.123456789";
    let lines: Vec<_> = text.lines().collect();
    let expected = [
        format!("sl1,{time},1514,60,0x00000001,"),
        format!("sl2,{time},1514,60,0x00000002,dropped: spoofed"),
        format!("sl1,{time},1514,60,0x00000001,"),
    ];
    assert_eq!(
        lines,
        expected,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn count_and_filter_choose() {
    let mut only_dropped = recording(1);
    only_dropped.filter = Some(Filter::parse("dropped").unwrap());
    only_dropped.expression = Some("dropped".to_owned());
    let file = recorded(&only_dropped, three());
    let mut reader = PcapNgReader::new(&file[..]).unwrap();
    let mut seen = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.unwrap() {
            Block::InterfaceDescription(_) => seen.push("interface".to_owned()),
            Block::EnhancedPacket(packet) => seen.push(format!("packet {}", packet.data[0])),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["interface", "packet 3"]);
}

#[test]
fn a_reader_that_leaves_ends_it() {
    let switch = switch();
    let mut packets = switch.capture(None, 100).unwrap();
    let (reader, blocks) = mpsc::channel(10);
    let leaver = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        drop(blocks);
    });
    let endless = Recording {
        snaplen: 100,
        ..Recording::default()
    };
    record(&endless, &mut *packets, &reader);
    leaver.join().unwrap();
}

#[test]
fn whole_blocks_only_reach_the_file() {
    let file = recorded(&recording(3), three());
    for step in [1, 7, 64, file.len()] {
        let mut blocks = Blocks::default();
        let mut written = Vec::new();
        for lot in file.chunks(step) {
            blocks
                .take(lot, |whole| {
                    written.extend_from_slice(whole);
                    Ok(())
                })
                .unwrap();
            // What was written so far is a file of its own.
            if !written.is_empty() {
                let mut reader = PcapNgReader::new(&written[..]).unwrap();
                while let Some(block) = reader.next_block() {
                    block.unwrap();
                }
            }
        }
        assert_eq!(written, file);
        assert_eq!(blocks.packets(), 3);
    }
}

#[test]
fn nonsense_is_no_block() {
    let mut blocks = Blocks::default();
    let odd = [6u32.to_le_bytes(), 13u32.to_le_bytes()].concat();
    assert!(blocks.take(&odd, |_| Ok(())).is_err());
}

#[test]
fn losses_are_counted_where_they_happen() {
    let mut writer = Writer::new(100, None);
    writer.packet(&packet("sl1", 2, None), 0);
    writer.packet(&packet("sl1", 2, None), 5);
    writer.packet(&packet("sl1", 2, None), 5);
    let file = writer.take();
    let mut reader = PcapNgReader::new(&file[..]).unwrap();
    let mut lost = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            lost.push(packet.options.iter().find_map(|option| match option {
                pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption::DropCount(n) => {
                    Some(*n)
                }
                _ => None,
            }));
        }
    }
    assert_eq!(lost, [None, Some(5), None]);
}
