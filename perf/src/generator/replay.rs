//! Recorded packets: pcap and pcapng files, read whole.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};

use crate::measure::MeasureError;
use crate::packet::{ETHERNET_BYTES, MAX_FRAME_BYTES};

/// What is kept in memory at most.
const MAX_BYTES: usize = 1 << 30;
/// How a pcapng file begins: its first block's type.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Units of a second of a pcapng interface that does not say.
const MICROSECONDS: u64 = 1_000_000;

/// A recorded packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When it came after the first one, in nanoseconds.
    pub after_ns: u64,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// A recording of at least one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    packets: Vec<Packet>,
}

impl Recording {
    /// Reads a pcap or pcapng file of Ethernet packets.
    ///
    /// # Errors
    /// When the file is none of these, has no packets, or holds some that a
    /// generator cannot send.
    pub fn read(path: &Path) -> Result<Recording, MeasureError> {
        let wrong = |detail: String| MeasureError::Unexpected {
            what: format!("--replay {}", path.display()),
            detail,
        };
        let mut file = File::open(path).map_err(|error| wrong(error.to_string()))?;
        let mut magic = [0u8; 4];
        let begun = file.read_exact(&mut magic).and_then(|()| file.rewind());
        begun.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => wrong("it is empty, no pcap or pcapng file".to_owned()),
            _ => wrong(error.to_string()),
        })?;
        let mut packets = Packets::default();
        let read = if magic == PCAPNG_MAGIC {
            read_pcapng(file, &mut packets)
        } else {
            read_pcap(file, &mut packets)
        };
        read.map_err(wrong)?;
        let Some(first) = packets.list.iter().map(|(ns, _)| *ns).min() else {
            return Err(wrong("it has no packets".to_owned()));
        };
        Ok(Recording {
            packets: packets
                .list
                .into_iter()
                .map(|(ns, bytes)| Packet {
                    after_ns: ns - first,
                    bytes,
                })
                .collect(),
        })
    }

    /// The packets, in the file's order.
    #[must_use]
    pub fn packets(&self) -> &[Packet] {
        &self.packets
    }

    /// Time from the first to the last, with one mean gap, so that a round
    /// follows another as a packet follows another.
    #[must_use]
    pub fn length_ns(&self) -> u64 {
        let last = self.packets.iter().map(|packet| packet.after_ns).max();
        let gaps = self.packets.len().max(2) as u64 - 1;
        last.map_or(0, |last| last.saturating_add(last / gaps))
    }

    /// How many packets `rounds` of it are, as far as that can be counted.
    #[must_use]
    pub fn count(&self, rounds: u64) -> u64 {
        (self.packets.len() as u64).saturating_mul(rounds)
    }

    /// Time that `rounds` of it take at `speed` times its own pace; `None`
    /// beyond any clock.
    #[must_use]
    pub fn takes(&self, rounds: u64, speed: f64) -> Option<Duration> {
        let own_s = self.length_ns() as f64 * rounds as f64 / 1e9;
        Duration::try_from_secs_f64(own_s / speed).ok()
    }
}

/// What was read so far.
#[derive(Default)]
struct Packets {
    list: Vec<(u64, Vec<u8>)>,
    bytes: usize,
}

impl Packets {
    fn add(&mut self, ns: u64, data: &[u8], original: u32) -> Result<(), String> {
        let number = self.list.len() + 1;
        if data.len() < original as usize {
            return Err(format!(
                "packet {number} is cut to {} of {original} bytes; record whole packets",
                data.len()
            ));
        }
        if !(ETHERNET_BYTES..=MAX_FRAME_BYTES).contains(&data.len()) {
            return Err(format!(
                "packet {number} has {} bytes; {ETHERNET_BYTES} to {MAX_FRAME_BYTES} can be sent",
                data.len()
            ));
        }
        self.bytes += data.len();
        if self.bytes > MAX_BYTES {
            return Err("more than 1 GiB of packets; replay a part of it".to_owned());
        }
        self.list.push((ns, data.to_vec()));
        Ok(())
    }
}

fn explain(error: PcapError) -> String {
    format!("it is no pcap or pcapng file that can be read: {error}")
}

fn read_pcap(file: File, packets: &mut Packets) -> Result<(), String> {
    let mut reader = PcapReader::new(BufReader::new(file)).map_err(explain)?;
    check_link(reader.header().datalink)?;
    while let Some(packet) = reader.next_packet() {
        let packet = packet.map_err(explain)?;
        let ns = packet.timestamp.as_nanos() as u64;
        packets.add(ns, &packet.data, packet.orig_len)?;
    }
    Ok(())
}

fn read_pcapng(file: File, packets: &mut Packets) -> Result<(), String> {
    let mut reader = PcapNgReader::new(BufReader::new(file)).map_err(explain)?;
    let mut units: Vec<u64> = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.map_err(explain)? {
            Block::SectionHeader(_) => units.clear(),
            Block::InterfaceDescription(interface) => {
                check_link(interface.linktype)?;
                units.push(units_per_second(&interface));
            }
            Block::EnhancedPacket(packet) => {
                let units = units
                    .get(packet.interface_id as usize)
                    .ok_or("a packet names an interface that is not described")?;
                // The crate hands out the file's number as if it were of ns.
                let time = packet.timestamp.as_nanos();
                let ns = (time * 1_000_000_000 / u128::from(*units)) as u64;
                packets.add(ns, &packet.data, packet.original_len)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_link(link: DataLink) -> Result<(), String> {
    match link {
        DataLink::ETHERNET => Ok(()),
        other => Err(format!("its packets are {other:?}, not Ethernet")),
    }
}

/// The unit of an interface's times: 10^-n s, or 2^-n s with the upper bit.
fn units_per_second(interface: &InterfaceDescriptionBlock<'_>) -> u64 {
    let given = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(value) => Some(*value),
        _ => None,
    });
    let base = |value: u8| if value & 0x80 == 0 { 10u64 } else { 2 };
    given
        .and_then(|value| base(value).checked_pow(u32::from(value & 0x7f)))
        .unwrap_or(MICROSECONDS)
}
