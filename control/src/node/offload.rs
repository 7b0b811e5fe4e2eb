//! Device features (`ethtool -K`) and queues in use (`ethtool -L`) by generic
//! netlink, each in one round trip.
//!
//! What a super-frame needs stays on: scatter-gather, TCP segmentation and
//! generic checksums. What the switch cannot carry without changing its
//! meaning goes off: UDP segmentation loses datagram borders, SCTP needs a
//! CRC32c, tunnels' and VLANs' offloads hide headers.
//!
//! Names and numbers are those of `linux/ethtool_netlink.h`.

use std::collections::BTreeSet;
use std::io;

use super::genetlink::{Attributes, Channel, ETHTOOL, attributes, number};

/// Features that go off in every pod that keeps its offloads.
pub const UNSUITED: &[&str] = &[
    UDP_SEGMENTATION,
    "tx-checksum-sctp",
    "tx-sctp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-gso-partial",
    "tx-gso-list",
    "tx-vlan-hw-insert",
    "tx-vlan-stag-hw-insert",
    "rx-vlan-hw-parse",
    "rx-vlan-stag-hw-parse",
];

/// Features that a super-frame needs.
pub const NEEDED: &[&str] = &[
    "tx-scatter-gather",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-checksum-ip-generic",
];

/// TCP segmentation, in the transmit direction.
pub const TCP_SEGMENTATION: &[&str] = &[
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
];

/// Cutting of TCP super-frames of either family, congestion or not.
pub const SUPER_FRAMES: &[&str] = &["tx-tcp-segmentation", "tx-tcp6-segmentation"];

/// Cutting of UDP datagrams that are handed to the device together.
pub const UDP_SEGMENTATION: &str = "tx-udp-segmentation";

/// Merging of received segments.
pub const RECEIVE_MERGE: &[&str] = &["rx-gro"];

const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const CHANNELS_GET: u8 = 17;
const CHANNELS_SET: u8 = 18;
const HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;
const CHANNELS_RX_COUNT: u16 = 6;
const CHANNELS_TX_COUNT: u16 = 7;
const HEADER_DEV_NAME: u16 = 2;
const HEADER_FLAGS: u16 = 3;
const FLAG_OMIT_REPLY: u32 = 2;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// Why features were not read or set.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the {which} of {interface}: {source}")]
pub struct OffloadError {
    what: &'static str,
    which: &'static str,
    interface: String,
    source: io::Error,
}

/// Turns features of an interface in the calling thread's namespace on or
/// off. Names that the kernel does not know are left out: it cannot do what
/// they stand for.
pub fn set(interface: &str, on: &[&str], off: &[&str]) -> Result<(), OffloadError> {
    let wanted = || {
        on.iter()
            .map(|n| (*n, true))
            .chain(off.iter().map(|n| (*n, false)))
    };
    let attempt = || -> io::Result<()> {
        let mut channel = Channel::open(&ETHTOOL)?;
        let all: Vec<_> = wanted().collect();
        match set_features(&mut channel, interface, &all) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            other => return other,
        }
        for one in wanted() {
            match set_features(&mut channel, interface, &[one]) {
                Err(e) if e.raw_os_error() != Some(libc::EINVAL) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    };
    attempt().map_err(|source| OffloadError {
        what: "set",
        which: "offloads",
        interface: interface.to_owned(),
        source,
    })
}

/// Has an interface in the calling thread's namespace use so many of its
/// queues, in each direction.
pub fn use_queues(interface: &str, queues: u32) -> Result<(), OffloadError> {
    let attempt = || set_queues(&mut Channel::open(&ETHTOOL)?, interface, queues);
    attempt().map_err(|source| OffloadError {
        what: "choose",
        which: "queues",
        interface: interface.to_owned(),
        source,
    })
}

/// How many of its queues an interface receives on.
pub fn queues_in_use(interface: &str) -> Result<u32, OffloadError> {
    let attempt = || receive_queues(&mut Channel::open(&ETHTOOL)?, interface);
    attempt().map_err(|source| OffloadError {
        what: "read",
        which: "queues",
        interface: interface.to_owned(),
        source,
    })
}

/// Names of the features that are on.
pub fn active(interface: &str) -> Result<BTreeSet<String>, OffloadError> {
    let attempt = || active_features(&mut Channel::open(&ETHTOOL)?, interface);
    attempt().map_err(|source| OffloadError {
        what: "read",
        which: "offloads",
        interface: interface.to_owned(),
        source,
    })
}

fn set_features(
    channel: &mut Channel,
    interface: &str,
    features: &[(&str, bool)],
) -> io::Result<()> {
    let mut request = Attributes::default();
    request.nest(HEADER, |header| {
        header.text(HEADER_DEV_NAME, interface);
        header.bytes(HEADER_FLAGS, &FLAG_OMIT_REPLY.to_ne_bytes());
    });
    request.nest(FEATURES_WANTED, |set| {
        set.nest(BITSET_BITS, |bits| {
            for (name, on) in features {
                bits.nest(BITS_BIT, |bit| {
                    bit.text(BIT_NAME, name);
                    if *on {
                        bit.bytes(BIT_VALUE, &[]);
                    }
                });
            }
        });
    });
    channel.ask(FEATURES_SET, request).map(drop)
}

fn set_queues(channel: &mut Channel, interface: &str, queues: u32) -> io::Result<()> {
    let mut request = Attributes::default();
    request.nest(HEADER, |header| header.text(HEADER_DEV_NAME, interface));
    for direction in [CHANNELS_RX_COUNT, CHANNELS_TX_COUNT] {
        request.bytes(direction, &queues.to_ne_bytes());
    }
    channel.ask(CHANNELS_SET, request).map(drop)
}

fn receive_queues(channel: &mut Channel, interface: &str) -> io::Result<u32> {
    let mut request = Attributes::default();
    request.nest(HEADER, |header| header.text(HEADER_DEV_NAME, interface));
    let answers = channel.ask(CHANNELS_GET, request)?;
    number(&answers, CHANNELS_RX_COUNT).ok_or_else(|| io::Error::other("the kernel does not tell"))
}

fn active_features(channel: &mut Channel, interface: &str) -> io::Result<BTreeSet<String>> {
    let mut request = Attributes::default();
    request.nest(HEADER, |header| {
        header.text(HEADER_DEV_NAME, interface);
    });
    let answers = channel.ask(FEATURES_GET, request)?;
    let inner = |bytes: &[u8], wanted: u16| -> Vec<Vec<u8>> {
        attributes(bytes)
            .filter(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value.to_vec())
            .collect()
    };
    let mut names = BTreeSet::new();
    for answer in answers {
        for set in inner(&answer, FEATURES_ACTIVE) {
            for bits in inner(&set, BITSET_BITS) {
                for bit in inner(&bits, BITS_BIT) {
                    for name in inner(&bit, BIT_NAME) {
                        let text = String::from_utf8_lossy(&name);
                        names.insert(text.trim_end_matches('\0').to_owned());
                    }
                }
            }
        }
    }
    Ok(names)
}
