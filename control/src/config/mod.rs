//! `spinlane.toml`: the whole configuration, validated.
//!
//! The text becomes a [`Config`] in three moves: the document is walked for
//! keys that nobody knows, serde fills the raw structs, and validation turns
//! those into values that hold by construction. Nothing rechecks them later.
//! Every error is one line: `FILE:LINE: what is wrong, and what to write`.
//!
//! Defaults stand in the `validate` module; what they take from the machine is in
//! [`Environment`].

mod agreement;
mod document;
mod environment;
mod place;
mod raw;
#[cfg(test)]
mod tests;
mod validate;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use spinlane_dataplane::types::{MacAddr, is_routable};

pub use environment::{Environment, Interface, allowed_cores, is_global};

use document::{Complaint, Document, line_of};
use raw::RawConfig;

/// Bytes that VXLAN over IPv4 puts around an IP packet: IPv4, UDP, VXLAN and
/// the inner Ethernet header (RFC 7348 section 5).
pub const VXLAN_OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
pub const VXLAN_OVERHEAD_V6: u32 = 70;
/// Smallest MTU of an IPv4 host (RFC 791) and of an IPv6 link (RFC 8200).
pub(crate) const SMALLEST_MTU: [u32; 2] = [576, 1280];
/// Underlay MTU when no uplink says otherwise.
pub const DEFAULT_UNDERLAY_MTU: u32 = 1500;
/// The segment that pods, node and uplink share in l2 mode; a `[[segments]]`
/// table of that name sets its guard and its static stations.
pub const SHARED_SEGMENT: &str = "l2";

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the text came from.
    pub file: String,
    /// Line that the message is about, from 1, when there is one.
    pub line: Option<usize>,
    /// What is wrong and what to write instead, on one line.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The validated configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    node: Node,
    network: Network,
    lanes: Lanes,
    segments: Vec<Segment>,
    source: Source,
    metrics: Metrics,
    underlay: Option<Interface>,
    warnings: Vec<String>,
}

impl Config {
    /// Reads and validates a file against this machine.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| ConfigError {
            file: path.display().to_string(),
            line: None,
            message: format!(
                "cannot read the configuration: {e}; name an existing file with --config"
            ),
        })?;
        let environment = Environment::of_this_process();
        Config::parse(&text, &path.display().to_string(), &environment)
    }

    /// Validates a text; `file` is the name that errors carry.
    pub fn parse(text: &str, file: &str, environment: &Environment) -> Result<Config, ConfigError> {
        parse(text, environment).map_err(|complaint| ConfigError {
            file: file.to_owned(),
            line: complaint.offset.map(|offset| line_of(text, offset)),
            message: complaint.message,
        })
    }

    /// `[node]`
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// `[network]`
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// `[lanes]`
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// `[[segments]]`
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// `[source]`
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// `[metrics]`
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The interface that `node.uplink` chose, when there is one.
    pub fn underlay(&self) -> Option<&Interface> {
        self.underlay.as_ref()
    }

    /// MTU of the routes between pods in bytes: the underlay's, less the
    /// overlay's headers in vxlan mode.
    pub fn path_mtu(&self) -> u32 {
        let underlay = self.underlay.as_ref().map(|interface| interface.mtu);
        self.network.path_mtu(underlay, &self.node.addresses)
    }

    /// One line for each key that the user set and that changes nothing yet.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

fn parse(text: &str, environment: &Environment) -> Result<Config, Complaint> {
    let document = Document::parse(text)?;
    document.check_keys(&RawConfig::SHAPE)?;
    let raw: RawConfig = toml::from_str(text).map_err(|error| {
        let mut complaint = Complaint::from(error);
        if let Some(name) = complaint.offset.and_then(|o| document.name_at(o)) {
            complaint.message = format!("{name}: {}", complaint.message);
        }
        complaint
    })?;
    validate::validate(&raw, &document, environment)
}

/// `[node]`: who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// Addresses of the node, at most one a family, IPv4 first; the
    /// uplink's when the file names none.
    pub addresses: Vec<IpAddr>,
    /// Whether the file names them.
    pub names_addresses: bool,
    /// The way out.
    pub uplink: Uplink,
    /// Ranges that this node's pods get addresses from.
    pub pod_cidrs: Vec<IpNet>,
}

/// `node.uplink`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uplink {
    /// The interface that holds the default route.
    Auto,
    /// No way out.
    None,
    /// This interface.
    Named(String),
}

impl Uplink {
    /// As it is spelled in the configuration.
    pub fn name(&self) -> &str {
        match self {
            Uplink::Auto => "auto",
            Uplink::None => "none",
            Uplink::Named(name) => name,
        }
    }
}

/// `[network]`: how nodes and pods reach each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The way between nodes.
    pub mode: Mode,
    /// Every pod of the cluster is in one of these.
    pub cluster_cidrs: Vec<IpNet>,
    /// ClusterIPs are taken from these.
    pub service_cidrs: Vec<IpNet>,
    /// VNI of the pod network, 24 bits.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// MTU of the underlay.
    pub mtu: Mtu,
    /// Whether pods reach the outside under the node's address.
    pub masquerade: bool,
    /// Destinations besides the cluster's that see the pod's own address.
    pub masquerade_exclude: Vec<IpNet>,
    /// Source ports that masquerade takes.
    pub masquerade_ports: PortRange,
    /// Addresses that masquerade uses; the uplink's when empty.
    pub egress_addresses: Vec<IpAddr>,
    /// VXLAN towards nodes in other subnets, routes towards the rest.
    pub cross_subnet: bool,
    /// The pods' gateways in l2 mode, at most one a family; the kernel's
    /// default routes by the uplink name those that are absent.
    pub gateways: Vec<IpAddr>,
}

impl Network {
    /// As [`Config::path_mtu`], where the uplink's MTU (none without an
    /// uplink) and the node's addresses are these.
    pub fn path_mtu(&self, underlay: Option<u32>, addresses: &[IpAddr]) -> u32 {
        let underlay = match self.mtu {
            Mtu::Bytes(bytes) => bytes,
            Mtu::Auto => underlay
                .filter(|mtu| *mtu > 0)
                .unwrap_or(DEFAULT_UNDERLAY_MTU),
        };
        // A loopback uplink says 65536; no IP packet is longer than 65535.
        underlay.min(65535).saturating_sub(self.overhead(addresses))
    }

    /// Bytes that the mode adds to pods' packets between nodes with such
    /// addresses.
    fn overhead(&self, addresses: &[IpAddr]) -> u32 {
        match self.mode {
            Mode::Routed | Mode::L2 => 0,
            Mode::Vxlan => vxlan_overhead(addresses),
        }
    }

    /// Bytes that the overlay adds beyond what the mode does.
    pub fn more_overhead(&self, addresses: &[IpAddr]) -> u32 {
        vxlan_overhead(addresses) - self.overhead(addresses)
    }

    /// The pod network's VNI, where it has an overlay.
    pub fn overlay_vni(&self) -> Option<u32> {
        let has_overlay = match self.mode {
            Mode::Vxlan => true,
            Mode::Routed => self.cross_subnet,
            Mode::L2 => false,
        };
        has_overlay.then_some(self.vni)
    }

    /// Why a range cannot be one of a node's pods, whose addresses are these.
    pub fn refuses_pods(&self, cidr: &IpNet, addresses: &[IpAddr]) -> Option<String> {
        if let Some(why) = serves_no_pods(cidr) {
            return Some(why);
        }
        if let Some(service) = self.service_cidrs.iter().find(|s| overlap(s, cidr)) {
            return Some(format!(
                "{cidr} and network.service-cidrs {service} overlap: give services a range of their own"
            ));
        }
        let cluster = self.cluster_cidrs.iter();
        let mut of_family = cluster
            .filter(|c| c.max_prefix_len() == cidr.max_prefix_len())
            .peekable();
        if of_family.peek().is_some() && !of_family.any(|cluster| cluster.contains(cidr)) {
            return Some(format!(
                "{cidr} lies outside network.cluster-cidrs: widen those or choose a range inside"
            ));
        }
        let held = addresses.iter().find(|a| cidr.contains(*a));
        held.filter(|_| self.mode != Mode::L2).map(|address| {
            format!(
                "{cidr} covers the node's own address {address}: pods need a range of their own"
            )
        })
    }

    /// Why a range is not on the uplink's link in mode `l2`, whose networks
    /// are these; nothing while none is known.
    pub fn is_beyond_link(&self, cidr: &IpNet, networks: &[IpNet]) -> Option<String> {
        let mut on_link = networks.iter().chain(&self.cluster_cidrs);
        let is_fine = self.mode != Mode::L2
            || networks.is_empty()
            || on_link.any(|network| network.contains(cidr));
        (!is_fine).then(|| {
            let names: Vec<_> = networks.iter().map(ToString::to_string).collect();
            format!(
                "{cidr} is in no network of the uplink ({}), whose addresses pods get in mode \"l2\": choose a range inside, or name its whole network in network.cluster-cidrs",
                names.join(", ")
            )
        })
    }
}

/// Why no pod could have an address of a range.
fn serves_no_pods(cidr: &IpNet) -> Option<String> {
    if cidr.max_prefix_len() - cidr.prefix_len() < 2 {
        return Some(format!(
            "{cidr} has no room for a gateway and pods: give at least a /{}",
            cidr.max_prefix_len() - 2
        ));
    }
    let is_usable = is_routable(cidr.network()) && is_routable(cidr.broadcast());
    (!is_usable).then(|| format!("{cidr} is no range that pods can use"))
}

/// `network.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An overlay.
    Vxlan,
    /// A subnet a node, nodes' addresses as next hops.
    Routed,
    /// Pods and nodes in one segment.
    L2,
}

impl Mode {
    /// As it is spelled in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Vxlan => "vxlan",
            Mode::Routed => "routed",
            Mode::L2 => "l2",
        }
    }
}

/// `network.mtu`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtu {
    /// The uplink's.
    Auto,
    /// So many bytes.
    Bytes(u32),
}

/// Bytes of the overlay's headers between nodes with such addresses.
fn vxlan_overhead(addresses: &[IpAddr]) -> u32 {
    match !addresses.is_empty() && addresses.iter().all(IpAddr::is_ipv6) {
        true => VXLAN_OVERHEAD_V6,
        false => VXLAN_OVERHEAD_V4,
    }
}

/// An inclusive range of transport ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port, at least 1.
    pub first: u16,
    /// Last port, at least `first`.
    pub last: u16,
}

impl PortRange {
    /// Whether a port is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// `[lanes]`: the poll loops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lanes {
    /// One lane on each, in this order.
    pub cores: Vec<usize>,
    /// How lanes wait.
    pub poll: PollMode,
    /// Size of the frame memory in frames of 4 KiB.
    pub frames: usize,
    /// How XDP attaches to pod ports.
    pub xdp_mode: XdpMode,
    /// Super-frames and checksum offload in pods.
    pub offloads: Offloads,
}

/// `lanes.poll`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollMode {
    /// Spin while there is work, then sleep.
    Adaptive,
    /// Never sleep.
    Busy,
    /// Always sleep between packets.
    Interrupt,
}

impl PollMode {
    /// As it is spelled in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            PollMode::Adaptive => "adaptive",
            PollMode::Busy => "busy",
            PollMode::Interrupt => "interrupt",
        }
    }
}

/// `lanes.xdp-mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// The best that the kernel has.
    Auto,
    /// In the stack.
    Generic,
    /// In the driver.
    Native,
}

/// `lanes.offloads`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// On where the kernel can.
    Auto,
    /// Off in every pod.
    Off,
}

/// `[[segments]]`: a layer-2 network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// What network configurations call it.
    pub name: String,
    /// Its VNI between nodes.
    pub vni: Option<u32>,
    /// Ranges that its pods get addresses from.
    pub cidrs: Vec<IpNet>,
    /// Whether frames must carry their port's own MAC and addresses.
    pub guard: bool,
    /// Stations that are known beforehand.
    pub stations: Vec<Station>,
}

/// A static entry of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Station {
    /// Its hardware address, unicast.
    pub mac: MacAddr,
    /// Where it is.
    pub at: StationPlace,
}

/// Where a static station is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StationPlace {
    /// Behind the port of this name.
    Port(String),
    /// Behind another node.
    Vtep(IpAddr),
}

/// `[source]`: where Kubernetes objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The API server.
    Kubernetes,
    /// A directory of YAML files.
    Manifests(PathBuf),
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Where the metrics are served; nowhere with `"none"`.
    pub listen: Option<SocketAddr>,
}

impl Metrics {
    /// Where metrics are served when the file does not say.
    pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9465);
}
