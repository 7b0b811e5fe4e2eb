//! A blocking rtnetlink socket that sends many requests in one system call.
//!
//! The kernel works a batch off in order and acknowledges each request, so a
//! pod is wired in a handful of round trips. A long batch goes in lots. A
//! socket belongs to the network namespace that its thread was in when it was
//! opened, for good.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};

/// Requests that go at once: together with their answers they fit the
/// socket's buffers (`net.core.wmem_default` and `rmem_default`, 208 KiB).
const LOT: usize = 64;
/// Room for news, of which a thousand routes and neighbours make as much at
/// once as they take, some 800 bytes each.
const NEWS_BYTES: usize = 4 << 20;
/// How long the kernel may take for one lot.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Room for one datagram of a dump.
const BUFFER_BYTES: usize = 64 * 1024;

/// How often a list that changes is read.
const DUMP_ATTEMPTS: usize = 5;
/// `struct nlmsghdr`, with which each message begins.
const HEADER_BYTES: usize = 16;
/// `RTM_NEWNEXTHOP`, `RTM_DELNEXTHOP` (`linux/rtnetlink.h`).
const NEXT_HOP_MESSAGES: [u16; 2] = [104, 105];
/// `linux/netlink.h`: the list changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;

type Received = (NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>);

/// What subscribed groups said.
#[derive(Debug, Default)]
pub struct News {
    /// What the decoder knows.
    pub messages: Vec<RouteNetlinkMessage>,
    /// A next hop object changed (`ip nexthop`), which the decoder does not
    /// know. Routes that refer to it may lead elsewhere, and say nothing.
    pub next_hops: bool,
}

/// What went wrong at the kernel's door.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The request did not get through, or no answer came.
    #[error("netlink exchange failed while trying to {what}: {source}")]
    Exchange {
        /// What was to be done.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was to be done.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl NetlinkError {
    /// The kernel's error number, when it refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } => source.raw_os_error(),
            NetlinkError::Open(_) | NetlinkError::Exchange { .. } => None,
        }
    }
}

/// One request of a batch.
#[derive(Debug)]
pub struct Request {
    what: String,
    message: RouteNetlinkMessage,
    flags: u16,
    tolerated: &'static [i32],
}

impl Request {
    /// Makes something that must not be there yet.
    pub fn create(what: impl Into<String>, message: RouteNetlinkMessage) -> Request {
        Request::with(what, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes something, or replaces what is there.
    pub fn replace(what: impl Into<String>, message: RouteNetlinkMessage) -> Request {
        Request::with(what, message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Asks for, changes or deletes something.
    pub fn plain(what: impl Into<String>, message: RouteNetlinkMessage) -> Request {
        Request::with(what, message, 0)
    }

    /// Error numbers that count as done.
    #[must_use]
    pub fn tolerate(mut self, errors: &'static [i32]) -> Request {
        self.tolerated = errors;
        self
    }

    fn with(what: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Request {
        Request {
            what: what.into(),
            message,
            flags: flags | NLM_F_REQUEST | NLM_F_ACK,
            tolerated: &[],
        }
    }
}

/// A rtnetlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Netlink, NetlinkError> {
        Netlink::subscribe(&[])
    }

    /// Opens a socket that also hears the given multicast groups.
    pub fn subscribe(groups: &[u32]) -> Result<Netlink, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            rustix::net::sockopt::set_socket_timeout(
                socket.as_fd(),
                rustix::net::sockopt::Timeout::Recv,
                Some(TIMEOUT),
            )?;
            if !groups.is_empty() {
                use rustix::net::sockopt::set_socket_recv_buffer_size_force as set_room;
                // With less room some news is lost, and all is read anew.
                let _ = set_room(socket.as_fd(), NEWS_BYTES);
            }
            for &group in groups {
                socket.add_membership(group)?;
            }
            Ok(socket)
        };
        Ok(Netlink {
            socket: open().map_err(NetlinkError::Open)?,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    /// Sends every request and waits for every answer. All of them are tried;
    /// the first refusal that is not tolerated is the error. Answers stand in
    /// the order of the requests that asked for something.
    pub fn batch(
        &mut self,
        requests: Vec<Request>,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let (mut answers, mut refusal) = (Vec::new(), None);
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let lot = requests.by_ref().take(LOT);
            let refused = self.lot(lot, &mut answers)?;
            refusal = refusal.or(refused);
        }
        refusal.map_or(Ok(answers), Err)
    }

    /// Sends some requests at once; what came of them, and the first refusal.
    fn lot(
        &mut self,
        requests: impl Iterator<Item = Request>,
        answers: &mut Vec<RouteNetlinkMessage>,
    ) -> Result<Option<NetlinkError>, NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut pending: Vec<(String, &'static [i32])> = Vec::with_capacity(LOT);
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut bytes, request.message, request.flags, self.sequence);
            pending.push((request.what, request.tolerated));
        }
        let Some((last_what, _)) = pending.last() else {
            return Ok(None);
        };
        let exchange = |source| NetlinkError::Exchange {
            what: last_what.clone(),
            source,
        };
        self.socket.send(&bytes, 0).map_err(exchange)?;
        let mut refusal = None;
        let mut missing = pending.len();
        while missing > 0 {
            for (header, payload) in self.receive().map_err(exchange)? {
                let position = header.sequence_number.wrapping_sub(first) as usize;
                let Some((what, tolerated)) = pending.get(position) else {
                    continue;
                };
                match payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => {
                        missing -= 1;
                        let code = error.raw_code().abs();
                        if code != 0 && !tolerated.contains(&code) && refusal.is_none() {
                            refusal = Some(NetlinkError::Refused {
                                what: what.clone(),
                                source: io::Error::from_raw_os_error(code),
                            });
                        }
                    }
                    NetlinkPayload::Done(_)
                    | NetlinkPayload::Noop
                    | NetlinkPayload::Overrun(_)
                    | _ => {}
                }
            }
        }
        Ok(refusal)
    }

    /// Sends one request.
    pub fn request(&mut self, request: Request) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.batch(vec![request])
    }

    /// Everything of a kind. A list that changed while it was read is read
    /// again.
    pub fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut answers = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            let (list, interrupted) = self.dump_once(what, message.clone())?;
            answers = list;
            if !interrupted {
                break;
            }
        }
        Ok(answers)
    }

    fn dump_once(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        let exchange = |source| NetlinkError::Exchange {
            what: what.to_owned(),
            source,
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        append(
            &mut bytes,
            message,
            NLM_F_REQUEST | NLM_F_DUMP,
            self.sequence,
        );
        self.socket.send(&bytes, 0).map_err(exchange)?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        loop {
            for (header, payload) in self.receive().map_err(exchange)? {
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                let sequence = header.sequence_number;
                if sequence != self.sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => {
                        return Err(NetlinkError::Refused {
                            what: what.to_owned(),
                            source: io::Error::from_raw_os_error(error.raw_code().abs()),
                        });
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, interrupted)),
                    _ => {}
                }
            }
        }
    }

    /// Waits for what the subscribed groups say. `ENOBUFS` means that some of
    /// it was lost.
    pub fn listen(&mut self) -> io::Result<News> {
        let mut news = News::default();
        for message in self.read()? {
            news.next_hops |= NEXT_HOP_MESSAGES.contains(&kind(message));
            if let Some((_, NetlinkPayload::InnerMessage(message))) = decode(message) {
                news.messages.push(message);
            }
        }
        Ok(news)
    }

    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump(
            "list the interfaces",
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
        )?;
        Ok(answers.iter().filter_map(Link::from_message).collect())
    }

    /// The link of that name; `None` when there is none.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let answers = self.request(
            Request::plain(format!("find interface {name}"), get_link(name))
                .tolerate(&[libc::ENODEV]),
        )?;
        Ok(answers.iter().find_map(Link::from_message))
    }

    /// Addresses of the namespace with the interface's index.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpAddr, u8)>, NetlinkError> {
        let held = self.address_messages()?;
        let held = held.iter().filter_map(|message| {
            Some((
                message.header.index,
                address_of(message)?,
                message.header.prefix_len,
            ))
        });
        Ok(held.collect())
    }

    /// Those of the addresses that the kernel itself would let new connections
    /// leave with (`inet_select_addr`, `ipv6_dev_get_saddr`): of global scope,
    /// in use by nobody else as far as is known, not deprecated, and not there
    /// for privacy alone.
    pub fn source_addresses(&mut self) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let held = self.address_messages()?;
        let fit = held.iter().filter(|message| is_source(message));
        let fit = fit.filter_map(|message| Some((message.header.index, address_of(message)?)));
        Ok(fit.collect())
    }

    fn address_messages(&mut self) -> Result<Vec<AddressMessage>, NetlinkError> {
        let answers = self.dump(
            "list the addresses",
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        )?;
        let messages = answers.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => Some(message),
            _ => None,
        });
        Ok(messages.collect())
    }

    fn receive(&mut self) -> io::Result<Vec<Received>> {
        Ok(self.read()?.into_iter().filter_map(decode).collect())
    }

    /// The messages of one datagram, as they are.
    fn read(&mut self) -> io::Result<Vec<&[u8]>> {
        self.buffer.clear();
        let length = loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(length) => break length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        let mut messages = Vec::new();
        while rest.len() >= HEADER_BYTES {
            let claimed = (read_u32(rest, 0) as usize).max(HEADER_BYTES);
            let Some(one) = rest.get(..claimed) else {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            };
            messages.push(one);
            rest = rest.get(claimed.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

/// A message, unless the decoder does not understand it: newer kernels may say
/// more than it knows, and that is no answer to us.
fn decode(message: &[u8]) -> Option<Received> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    Some(message.into_parts())
}

/// `IFA_LOCAL` is the own address on point-to-point links, and absent with
/// IPv6.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

fn is_source(message: &AddressMessage) -> bool {
    let mut attributes = message.attributes.iter();
    let flags = attributes.find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or(AddressFlags::empty());
    let is_optimistic = flags.contains(AddressFlags::Optimistic);
    let is_tentative = flags.contains(AddressFlags::Tentative) && !is_optimistic;
    // One bit, IFA_F_TEMPORARY with IPv6.
    let is_temporary =
        message.header.family == AddressFamily::Inet6 && flags.contains(AddressFlags::Secondary);
    let is_unfit = flags.intersects(AddressFlags::Dadfailed | AddressFlags::Deprecated);
    message.header.scope == AddressScope::Universe && !is_tentative && !is_temporary && !is_unfit
}

/// `nlmsg_type`, the second field of the header.
fn kind(message: &[u8]) -> u16 {
    match message {
        [_, _, _, _, low, high, ..] => u16::from_ne_bytes([*low, *high]),
        _ => 0,
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    if let Some(slice) = bytes.get(at..at + 4) {
        word.copy_from_slice(slice);
    }
    u32::from_ne_bytes(word)
}

fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

/// An interface as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Alias, empty without one.
    pub alias: String,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// Device MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, with a carrier, and known to be so by every protocol.
    pub operational: bool,
    /// Up, and what it is plugged into too.
    pub has_carrier: bool,
    /// Receive queues.
    pub rx_queues: u32,
    /// Bytes of the longest super-frame that it cuts.
    pub longest_offload: u32,
    /// A veth: what it carries need not be summed up.
    pub is_veth: bool,
    /// The kernel's own end of a VXLAN.
    pub is_vxlan: bool,
}

impl Link {
    /// Reads a `RTM_NEWLINK` or `RTM_DELLINK`; `None` for anything else.
    pub fn from_message(message: &RouteNetlinkMessage) -> Option<Link> {
        let (RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) =
            message
        else {
            return None;
        };
        let has = |flag| message.header.flags.contains(flag);
        let mut link = Link {
            index: message.header.index,
            up: has(LinkFlags::Up),
            has_carrier: has(LinkFlags::Running),
            rx_queues: 1,
            ..Link::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::OperState(state) => {
                    link.operational = *state == netlink_packet_route::link::State::Up;
                }
                LinkAttribute::NumRxQueues(count) => link.rx_queues = *count,
                LinkAttribute::GsoMaxSize(bytes) => link.longest_offload = *bytes,
                LinkAttribute::LinkInfo(info) => {
                    link.is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
                    link.is_vxlan = info.contains(&LinkInfo::Kind(InfoKind::Vxlan));
                }
                _ => {}
            }
        }
        Some(link)
    }
}

/// `RTM_GETLINK` for a name.
pub fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::GetLink(message)
}

/// `RTM_DELLINK` for a name.
pub fn delete_link(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    Request::plain(
        format!("delete interface {name}"),
        RouteNetlinkMessage::DelLink(message),
    )
}
