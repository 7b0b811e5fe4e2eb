//! What a network device offers to AF_XDP, read without touching it: the
//! driver's XDP features (`linux/netdev.h`), ring sizes
//! (`linux/ethtool_netlink.h`).

use std::io;

use super::genetlink::{Attributes, Channel, ETHTOOL, NETDEV, attributes, number};

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_REDIRECT: u64 = 2;
const NETDEV_XDP_ACT_XSK_ZEROCOPY: u64 = 8;
const NETDEV_XDP_ACT_RX_SG: u64 = 32;

const RINGS_GET: u8 = 15;
const HEADER: u16 = 1;
const HEADER_DEV_NAME: u16 = 2;
const RINGS_RX_MAX: u16 = 2;
const RINGS_TX_MAX: u16 = 5;
const RINGS_RX: u16 = 6;
const RINGS_TX: u16 = 9;

/// What a driver says of XDP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Programs in the driver, with redirection to sockets.
    pub native: bool,
    /// Frames shared with sockets.
    pub zero_copy: bool,
    /// Packets in several buffers.
    pub multi_buffer: bool,
}

/// What the driver of an interface offers; Linux 6.3 began to tell.
pub fn xdp_features(ifindex: u32) -> io::Result<XdpFeatures> {
    let mut request = Attributes::default();
    request.bytes(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let answers = Channel::open(&NETDEV)?.ask(NETDEV_CMD_DEV_GET, request)?;
    let bits = answers
        .iter()
        .flat_map(|answer| attributes(answer))
        .find(|(kind, _)| *kind == NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|(_, value)| value.first_chunk().map(|b| u64::from_ne_bytes(*b)))
        .ok_or_else(|| io::Error::other("the kernel does not tell"))?;
    let has = |wanted: u64| bits & wanted == wanted;
    Ok(XdpFeatures {
        native: has(NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT),
        zero_copy: has(NETDEV_XDP_ACT_XSK_ZEROCOPY),
        multi_buffer: has(NETDEV_XDP_ACT_RX_SG),
    })
}

/// Sizes of a device's rings in descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rings {
    /// Of each receive ring.
    pub rx: u32,
    /// What it may be.
    pub rx_max: u32,
    /// Of each transmit ring.
    pub tx: u32,
    /// What it may be.
    pub tx_max: u32,
}

/// The rings of an interface in the calling thread's namespace; an error for
/// one that has none (a veth).
pub fn rings(interface: &str) -> io::Result<Rings> {
    let mut request = Attributes::default();
    request.nest(HEADER, |header| header.text(HEADER_DEV_NAME, interface));
    let answers = Channel::open(&ETHTOOL)?.ask(RINGS_GET, request)?;
    let of = |kind| number(&answers, kind).unwrap_or(0);
    Ok(Rings {
        rx: of(RINGS_RX),
        rx_max: of(RINGS_RX_MAX),
        tx: of(RINGS_TX),
        tx_max: of(RINGS_TX_MAX),
    })
}
