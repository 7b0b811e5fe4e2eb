//! Device features (`ethtool -K`) and queues in use (`ethtool -L`) by generic
//! netlink, each in one round trip.
//!
//! What a super-frame needs stays on: scatter-gather, TCP segmentation and
//! generic checksums. What the switch cannot carry without changing its
//! meaning goes off: UDP segmentation loses datagram borders, SCTP needs a
//! CRC32c, tunnels' and VLANs' offloads hide headers.
//!
//! A request is `nlmsghdr`, `genlmsghdr` (command, version, 2 bytes zero) and
//! attributes; names and numbers are those of `linux/ethtool_netlink.h`.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};

/// Features that go off in every pod that keeps its offloads.
pub const UNSUITED: &[&str] = &[
    "tx-udp-segmentation",
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

/// Merging of received segments.
pub const RECEIVE_MERGE: &[&str] = &["rx-gro"];

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
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
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const NLM_F_REQUEST_ACK: u16 = 5;
const NLMSG_ERROR: u16 = 2;

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
        let mut channel = Channel::open()?;
        let all: Vec<_> = wanted().collect();
        match channel.set(interface, &all) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            other => return other,
        }
        for one in wanted() {
            match channel.set(interface, &[one]) {
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
    let attempt = || Channel::open()?.use_queues(interface, queues);
    attempt().map_err(|source| OffloadError {
        what: "choose",
        which: "queues",
        interface: interface.to_owned(),
        source,
    })
}

/// How many of its queues an interface receives on.
pub fn queues_in_use(interface: &str) -> Result<u32, OffloadError> {
    let attempt = || Channel::open()?.queues_in_use(interface);
    attempt().map_err(|source| OffloadError {
        what: "read",
        which: "queues",
        interface: interface.to_owned(),
        source,
    })
}

/// Names of the features that are on.
pub fn active(interface: &str) -> Result<BTreeSet<String>, OffloadError> {
    let attempt = || Channel::open()?.active(interface);
    attempt().map_err(|source| OffloadError {
        what: "read",
        which: "offloads",
        interface: interface.to_owned(),
        source,
    })
}

/// The ethtool family's number, the same in every namespace; 0 before it is
/// known. Any thread writes it, always the same value, so relaxed order does.
static FAMILY: AtomicU16 = AtomicU16::new(0);

struct Channel {
    socket: Socket,
    family: u16,
}

impl Channel {
    fn open() -> io::Result<Channel> {
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        rustix::net::sockopt::set_socket_timeout(
            socket.as_fd(),
            rustix::net::sockopt::Timeout::Recv,
            Some(Duration::from_secs(5)),
        )?;
        let mut channel = Channel {
            socket,
            family: FAMILY.load(Ordering::Relaxed),
        };
        if channel.family == 0 {
            channel.family = channel.find_family()?;
            FAMILY.store(channel.family, Ordering::Relaxed);
        }
        Ok(channel)
    }

    fn find_family(&mut self) -> io::Result<u16> {
        let mut name = Attributes::default();
        name.text(CTRL_ATTR_FAMILY_NAME, "ethtool");
        let answers = self.exchange(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name)?;
        answers
            .iter()
            .flat_map(|a| attributes(a))
            .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
            .and_then(|(_, value)| value.first_chunk().map(|b| u16::from_ne_bytes(*b)))
            .ok_or_else(|| io::Error::other("the kernel has no ethtool netlink family"))
    }

    fn set(&mut self, interface: &str, features: &[(&str, bool)]) -> io::Result<()> {
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
        self.exchange(self.family, FEATURES_SET, request).map(drop)
    }

    fn use_queues(&mut self, interface: &str, queues: u32) -> io::Result<()> {
        let mut request = Attributes::default();
        request.nest(HEADER, |header| header.text(HEADER_DEV_NAME, interface));
        for direction in [CHANNELS_RX_COUNT, CHANNELS_TX_COUNT] {
            request.bytes(direction, &queues.to_ne_bytes());
        }
        self.exchange(self.family, CHANNELS_SET, request).map(drop)
    }

    fn queues_in_use(&mut self, interface: &str) -> io::Result<u32> {
        let mut request = Attributes::default();
        request.nest(HEADER, |header| header.text(HEADER_DEV_NAME, interface));
        let answers = self.exchange(self.family, CHANNELS_GET, request)?;
        answers
            .iter()
            .flat_map(|a| attributes(a))
            .find(|(kind, _)| *kind == CHANNELS_RX_COUNT)
            .and_then(|(_, value)| value.first_chunk().map(|b| u32::from_ne_bytes(*b)))
            .ok_or_else(|| io::Error::other("the kernel does not tell"))
    }

    fn active(&mut self, interface: &str) -> io::Result<BTreeSet<String>> {
        let mut request = Attributes::default();
        request.nest(HEADER, |header| {
            header.text(HEADER_DEV_NAME, interface);
        });
        let answers = self.exchange(self.family, FEATURES_GET, request)?;
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

    /// Sends one request and collects the attributes of its answers, up to
    /// the acknowledgement.
    fn exchange(&mut self, kind: u16, command: u8, body: Attributes) -> io::Result<Vec<Vec<u8>>> {
        let length = 20 + body.0.len();
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&(length as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&[command, 1, 0, 0]);
        message.extend_from_slice(&body.0);
        self.socket.send(&message, 0)?;
        let mut answers = Vec::new();
        loop {
            let mut buffer = Vec::with_capacity(32 * 1024);
            let received = self.socket.recv(&mut buffer, 0)?;
            let mut rest = buffer.get(..received).unwrap_or_default();
            while let Some(header) = rest.first_chunk::<16>() {
                let claimed = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
                let claimed = (claimed as usize).max(16);
                let Some(one) = rest.get(..claimed) else {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                };
                if u16::from_ne_bytes([header[4], header[5]]) == NLMSG_ERROR {
                    let code = one.get(16..20).and_then(|b| b.first_chunk::<4>());
                    return match code.map_or(-libc::EPROTO, |b| i32::from_ne_bytes(*b)) {
                        0 => Ok(answers),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                answers.push(one.get(20..).unwrap_or_default().to_vec());
                rest = rest.get(claimed.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Attributes under construction: length, type, value, padding to 4 bytes.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.0
            .extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated);
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }
}

/// Walks attributes; stops at the first malformed one.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_what_was_nested() {
        let mut built = Attributes::default();
        built.nest(7, |inner| {
            inner.text(1, "abc");
            inner.bytes(2, &[9]);
        });
        built.bytes(3, &[]);
        let outer: Vec<_> = attributes(&built.0).collect();
        assert_eq!(outer.len(), 2);
        assert_eq!(outer[0].0, 7);
        let inner: Vec<_> = attributes(outer[0].1).collect();
        assert_eq!(inner, vec![(1, b"abc\0".as_slice()), (2, [9].as_slice())]);
        assert_eq!(outer[1], (3, [].as_slice()));
    }

    #[test]
    fn malformed_attributes_end_the_walk() {
        for bytes in [[3u8, 0, 1, 0].as_slice(), &[200, 0, 1, 0, 0], &[1, 2]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
