//! The file format (draft-ietf-opsawg-pcapng): an interface block a port,
//! announced when its first packet comes, and an enhanced packet block a
//! packet with its direction, its drop reason and what was lost before it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{Endianness, PcapError};

use crate::views::Packet;

/// Longest block that [`Blocks`] takes for one: the longest frame chain, its
/// options and room.
pub const LARGEST_BLOCK_BYTES: usize = 1 << 20;

const ENHANCED_PACKET: u32 = 6;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// Timestamps in nanoseconds: 10^-9.
const NANOSECONDS: u8 = 9;

/// Writes blocks into memory.
pub(super) struct Writer {
    file: PcapNgWriter<Vec<u8>>,
    snaplen: u32,
    filter: Option<String>,
    interfaces: HashMap<String, u32>,
    lost: u64,
}

impl Writer {
    pub(super) fn new(snaplen: usize, filter: Option<&str>) -> Writer {
        let application = concat!("spinlane ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(application.into())],
            ..SectionHeaderBlock::default()
        };
        let file = in_memory(PcapNgWriter::with_section_header(Vec::new(), section));
        Writer {
            file,
            snaplen: u32::try_from(snaplen).unwrap_or(u32::MAX),
            filter: filter.map(str::to_owned),
            interfaces: HashMap::new(),
            lost: 0,
        }
    }

    /// Adds a packet; `lost` counts what was lost since the capture began.
    pub(super) fn packet(&mut self, packet: &Packet, lost: u64) {
        let interface_id = self.interface(&packet.port);
        let direction = if packet.inbound { INBOUND } else { OUTBOUND };
        let mut options = vec![EnhancedPacketOption::Flags(direction)];
        if let Some(reason) = packet.drop {
            options.push(EnhancedPacketOption::Comment(
                format!("dropped: {reason}").into(),
            ));
        }
        if lost > self.lost {
            options.push(EnhancedPacketOption::DropCount(lost - self.lost));
            self.lost = lost;
        }
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: packet
                .at
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or(Duration::ZERO),
            original_len: u32::try_from(packet.len).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&packet.data),
            options,
        };
        in_memory(self.file.write_pcapng_block(block));
    }

    fn interface(&mut self, port: &str) -> u32 {
        if let Some(id) = self.interfaces.get(port) {
            return *id;
        }
        let id = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        let mut options = vec![
            InterfaceDescriptionOption::IfName(port.to_owned().into()),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        if let Some(filter) = &self.filter {
            // Code 0 of if_filter: the expression as text.
            let text = [b"\0", filter.as_bytes()].concat();
            options.push(InterfaceDescriptionOption::IfFilter(text.into()));
        }
        in_memory(self.file.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snaplen,
            options,
        }));
        self.interfaces.insert(port.to_owned(), id);
        id
    }

    /// Bytes that wait to be taken.
    pub(super) fn len(&self) -> usize {
        self.file.get_ref().len()
    }

    /// The blocks so far, whole ones only.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.file.get_mut())
    }
}

/// Writing to memory fails for no reason but a wrong interface number, and
/// those are counted here.
fn in_memory<T>(written: Result<T, PcapError>) -> T {
    match written {
        Ok(value) => value,
        Err(e) => unreachable!("a pcapng block did not fit into memory: {e}"),
    }
}

/// Cuts a stream of bytes into whole blocks, so that a file that ends at any
/// moment is a valid one.
#[derive(Debug, Default)]
pub struct Blocks {
    pending: Vec<u8>,
    packets: u64,
}

impl Blocks {
    /// Takes bytes as they come and hands the whole blocks among them to
    /// `write`.
    pub fn take(
        &mut self,
        bytes: &[u8],
        mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        self.pending.extend_from_slice(bytes);
        let mut whole = 0;
        while let Some((kind, len)) = next_block(&self.pending[whole..])? {
            self.packets += u64::from(kind == ENHANCED_PACKET);
            whole += len;
        }
        if whole > 0 {
            write(&self.pending[..whole])?;
            self.pending.drain(..whole);
        }
        Ok(())
    }

    /// Packets in the blocks so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }
}

/// Type and length of the block that `bytes` begins with, once it is whole.
fn next_block(bytes: &[u8]) -> std::io::Result<Option<(u32, usize)>> {
    let Some((head, _)) = bytes.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let [k0, k1, k2, k3, l0, l1, l2, l3] = *head;
    let kind = u32::from_le_bytes([k0, k1, k2, k3]);
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if !(12..=LARGEST_BLOCK_BYTES).contains(&len) || !len.is_multiple_of(4) {
        return Err(std::io::Error::other(format!(
            "the agent sent a block of {len} bytes, which is none"
        )));
    }
    Ok((bytes.len() >= len).then_some((kind, len)))
}
