//! What the node takes from the configuration.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use spinlane_dataplane::types::{MacAddr, SegmentId};

use super::endpoint::{SUPER_FRAME_MTU, fnv1a};
use super::ipam::first_address;
use super::steering;
use crate::config::{
    Config, Mode, Network, Offloads, SHARED_SEGMENT, Segment, Uplink, allowed_cores,
};

/// The gateway's link-local address, on every routed port.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The settings of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Name of the node.
    pub name: String,
    /// Its addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// Whether those are the uplink's and the Node object's to say.
    pub follows_addresses: bool,
    /// Ranges of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether those are the Node object's to say.
    pub follows_pod_cidrs: bool,
    /// Why ranges of the Node object are not in force.
    pub refusals: Vec<String>,
    /// The way out.
    pub uplink: Uplink,
    /// How nodes and pods reach each other.
    pub network: Network,
    /// Layer-2 networks.
    pub segments: Vec<Segment>,
    /// Path MTU of pods' routes in bytes.
    pub path_mtu: u32,
    /// Whether pods keep their offloads and get super-frames.
    pub offloads: bool,
    /// CPUs that take frames in: the spare ones, else the lanes'.
    pub receive_cpus: Vec<usize>,
    /// CPUs that this process may use and no lane is pinned to.
    pub spare_cpus: Vec<usize>,
    /// Sockets.
    pub run_dir: PathBuf,
    /// The store.
    pub state_dir: PathBuf,
}

impl Setup {
    /// The node's share of a configuration.
    pub fn new(config: &Config, run_dir: &Path, state_dir: &Path) -> Setup {
        let mut segments = config.segments().to_vec();
        let is_shared = |segment: &Segment| segment.name == SHARED_SEGMENT;
        if config.network().mode == Mode::L2 && !segments.iter().any(is_shared) {
            segments.push(Segment {
                name: SHARED_SEGMENT.to_owned(),
                vni: None,
                cidrs: Vec::new(),
                guard: true,
                stations: Vec::new(),
            });
        }
        let spare_cpus = steering::spare_cpus(&allowed_cores(), &config.lanes().cores);
        let mut setup = Setup {
            name: config.node().name.clone(),
            addresses: config.node().addresses.clone(),
            follows_addresses: !config.node().names_addresses,
            pod_cidrs: Vec::new(),
            follows_pod_cidrs: config.node().pod_cidrs.is_empty(),
            refusals: Vec::new(),
            uplink: config.node().uplink.clone(),
            network: config.network().clone(),
            segments,
            path_mtu: config.path_mtu(),
            offloads: config.lanes().offloads == Offloads::Auto,
            receive_cpus: match spare_cpus.is_empty() {
                true => config.lanes().cores.clone(),
                false => spare_cpus.clone(),
            },
            spare_cpus,
            run_dir: run_dir.to_path_buf(),
            state_dir: state_dir.to_path_buf(),
        };
        let ranges = config.node().pod_cidrs.clone();
        setup.set_pod_cidrs(ranges);
        setup
    }

    /// Sets the ranges that pods get addresses from.
    pub fn set_pod_cidrs(&mut self, ranges: Vec<IpNet>) {
        if let Some(shared) = self.shared_segment() {
            self.segments[shared.index()].cidrs.clone_from(&ranges);
        }
        self.pod_cidrs = ranges;
    }

    /// The segment that pods, node and uplink share; in mode `l2`.
    pub fn shared_segment(&self) -> Option<SegmentId> {
        if self.network.mode != Mode::L2 {
            return None;
        }
        let mut segments = self.segments.iter();
        let at = segments.position(|segment| segment.name == SHARED_SEGMENT)?;
        Some(SegmentId(at as u16))
    }

    /// The segment that a network configuration means which names this one.
    pub fn segment_of(&self, named: Option<&String>) -> Option<String> {
        let shared = self.shared_segment().map(|_| SHARED_SEGMENT.to_owned());
        named.cloned().or(shared)
    }

    /// Path MTU of pods in a segment, or of routed ones. A segment with a VNI
    /// goes through the overlay in every mode.
    pub fn path_mtu_in(&self, segment: Option<&str>) -> u32 {
        let mut segments = self.segments.iter();
        let has_vni = |s: &&Segment| Some(s.name.as_str()) == segment && s.vni.is_some();
        let more = match segments.find(has_vni) {
            Some(_) => self.network.more_overhead(&self.addresses),
            None => 0,
        };
        self.path_mtu.saturating_sub(more)
    }

    /// MTU of the devices that super-frames may reach, or the path's where
    /// there are none.
    pub fn device_mtu(&self) -> u32 {
        if self.offloads {
            SUPER_FRAME_MTU
        } else {
            self.path_mtu
        }
    }

    /// First address of the first pod range of a family.
    pub fn gateway(&self, v6: bool) -> Option<IpAddr> {
        let range = self
            .pod_cidrs
            .iter()
            .find(|net| matches!(net, IpNet::V6(_)) == v6)?;
        Some(first_address(range))
    }

    /// The switch's MAC address: the same after every restart and with any
    /// range of pods, because pods remember it.
    pub fn gateway_mac(&self) -> MacAddr {
        hashed_mac(self.name.as_bytes())
    }
}

/// A locally administered unicast address from a hash.
pub fn hashed_mac(of: &[u8]) -> MacAddr {
    let [a, b, c, d, ..] = fnv1a(&[of]).to_be_bytes();
    MacAddr([0x0a, 0x5a, a, b, c, d])
}

/// The MAC address of a pod's interface: from its IPv4 address, else from its
/// IPv6 address, else from what identifies it.
pub fn pod_mac(addresses: impl Iterator<Item = IpAddr>, identity: &[u8]) -> MacAddr {
    let mut v6 = None;
    for address in addresses {
        match address {
            IpAddr::V4(v4) => return MacAddr::from_ipv4(v4),
            IpAddr::V6(address) => v6 = v6.or(Some(address)),
        }
    }
    match v6 {
        Some(address) => hashed_mac(&address.octets()),
        None => hashed_mac(identity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::samples;

    #[test]
    fn a_segment_with_a_vni_has_room_for_the_overlay() {
        let of = |mode: Mode, address: &str, segment| {
            let mut setup = Setup {
                addresses: vec![address.parse().unwrap()],
                network: crate::config::Network {
                    mode,
                    ..samples::network("")
                },
                path_mtu: 1500,
                ..samples::setup()
            };
            setup.segments.push(Segment {
                name: "blue".into(),
                vni: Some(100),
                cidrs: vec![],
                guard: false,
                stations: vec![],
            });
            setup.path_mtu_in(segment)
        };
        for (mode, address, segment, expect) in [
            (Mode::Routed, "192.0.2.1", Some("blue"), 1450),
            (Mode::L2, "2001:db8::1", Some("blue"), 1430),
            (Mode::Vxlan, "192.0.2.1", Some("blue"), 1500),
            (Mode::Routed, "192.0.2.1", Some("red"), 1500),
            (Mode::Routed, "192.0.2.1", None, 1500),
        ] {
            assert_eq!(of(mode, address, segment), expect, "{mode:?} {segment:?}");
        }
    }

    #[test]
    fn macs_follow_addresses() {
        let mac = |list: &[&str]| pod_mac(list.iter().map(|a| a.parse().unwrap()), b"x");
        assert_eq!(
            mac(&["fd00::5", "10.244.1.5"]).to_string(),
            "0a:58:0a:f4:01:05"
        );
        let v6 = mac(&["fd00::5"]);
        assert!(v6.is_unicast() && v6.0[0] & 2 == 2);
        assert_ne!(v6, mac(&["fd00::6"]));
        assert_ne!(v6, mac(&[]));
    }
}
