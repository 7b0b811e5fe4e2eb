//! Generic netlink: one request, its answers, and the attributes of both.
//!
//! A request is `nlmsghdr`, `genlmsghdr` (command, version, 2 bytes zero) and
//! attributes.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const NLM_F_REQUEST_ACK: u16 = 5;
const NLMSG_ERROR: u16 = 2;

/// A family of commands.
#[derive(Debug)]
pub(super) struct Family {
    name: &'static str,
    /// The same in every namespace; 0 before it is known. Any thread writes
    /// it, always the same value, so relaxed order does.
    number: AtomicU16,
}

impl Family {
    pub(super) const fn named(name: &'static str) -> Family {
        Family {
            name,
            number: AtomicU16::new(0),
        }
    }
}

/// `linux/ethtool_netlink.h`
pub(super) static ETHTOOL: Family = Family::named("ethtool");
/// `linux/netdev.h`
pub(super) static NETDEV: Family = Family::named("netdev");

/// A socket in the calling thread's network namespace.
pub(super) struct Channel {
    socket: Socket,
    family: u16,
}

impl Channel {
    pub(super) fn open(family: &Family) -> io::Result<Channel> {
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
            family: family.number.load(Ordering::Relaxed),
        };
        if channel.family == 0 {
            channel.family = channel.find(family.name)?;
            family.number.store(channel.family, Ordering::Relaxed);
        }
        Ok(channel)
    }

    fn find(&mut self, family: &str) -> io::Result<u16> {
        let mut name = Attributes::default();
        name.text(CTRL_ATTR_FAMILY_NAME, family);
        let answers = self.exchange(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name)?;
        answers
            .iter()
            .flat_map(|a| attributes(a))
            .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
            .and_then(|(_, value)| value.first_chunk().map(|b| u16::from_ne_bytes(*b)))
            .ok_or_else(|| io::Error::other(format!("the kernel has no {family} family")))
    }

    /// Sends one request of the family and collects the attributes of its
    /// answers, up to the acknowledgement.
    pub(super) fn ask(&mut self, command: u8, body: Attributes) -> io::Result<Vec<Vec<u8>>> {
        self.exchange(self.family, command, body)
    }

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
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.0
            .extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated);
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }
}

/// Walks attributes; stops at the first malformed one.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number of four bytes under a kind, at the outermost level.
pub(super) fn number(answers: &[Vec<u8>], kind: u16) -> Option<u32> {
    let all = answers.iter().flat_map(|answer| attributes(answer));
    let mut of_kind = all.filter(|(found, _)| *found == kind);
    of_kind.find_map(|(_, value)| value.first_chunk().map(|b| u32::from_ne_bytes(*b)))
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
