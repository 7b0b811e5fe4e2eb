//! What the agent shows: the documents of `-o json`, and of the HTTP socket.
//!
//! Times are in seconds, sizes in bytes, and names are stable: fields may be
//! added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `spinlane status` (`GET /v1/status`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// `vxlan`, `routed` or `l2`.
    pub mode: String,
    /// Whether pods can attach.
    pub ready: bool,
    /// Seconds since the agent started.
    pub uptime_s: f64,
    /// Generation of the snapshot in force.
    pub snapshot_generation: u64,
    /// How lanes wait: `adaptive`, `busy` or `interrupt`.
    pub poll: String,
    /// The lanes.
    pub lanes: Vec<Lane>,
    /// The frames of the UMEM.
    pub frames: Frames,
    /// Attached pod interfaces.
    pub endpoints: usize,
    /// Connections that the node follows.
    #[serde(default)]
    pub connections: u64,
    /// Those of them that somebody outside began, with a pod's own address.
    #[serde(default)]
    pub connections_from_outside: u64,
    /// Connections that fit.
    #[serde(default)]
    pub connection_limit: u64,
    /// Times that a port got fresh sockets because the kernel refused to serve
    /// the old ones.
    #[serde(default)]
    pub port_rebuilds: u64,
    /// Fragments of the overlay's outer packets that were left to the kernel.
    #[serde(default)]
    pub outer_fragments: u64,
    /// The node's way out; none where the configuration wants none.
    #[serde(default)]
    pub uplink: Option<Uplink>,
    /// Remote ends of the overlay.
    #[serde(default)]
    pub vteps: u64,
    /// Neighbours on the uplink that packets go to.
    #[serde(default)]
    pub next_hops: NextHops,
    /// Stations of the layer-2 segments.
    #[serde(default)]
    pub stations: Stations,
    /// Where the cluster's objects come from; none where nothing is read.
    #[serde(default)]
    pub source: Option<Source>,
    /// Parts of the agent that have ended although nobody stopped them. They
    /// do not come back before it restarts.
    #[serde(default)]
    pub ended: Vec<String>,
    /// What is not as it should be, and what to do about it.
    #[serde(default)]
    pub notices: Vec<String>,
}

/// Stations of the layer-2 segments in [`Status`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stations {
    /// Those that are known, learned and static ones.
    pub known: u64,
    /// Of them, those that moved to and fro too often and are held where they
    /// are.
    pub held: u64,
}

/// The node's way out in [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// The interface; what the configuration says while there is none.
    pub name: String,
    /// `up`, `down`, `no-carrier`, `missing` or `refused`.
    pub state: String,
    /// Its MTU in bytes; 0 while it is not attached.
    pub mtu: u32,
    /// The node's addresses.
    pub addresses: Vec<String>,
}

/// Neighbours on the uplink in [`Status`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHops {
    /// With a known hardware address.
    pub resolved: u64,
    /// Without one: packets for them wait.
    pub unresolved: u64,
}

/// Where the cluster's objects come from, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The directory.
    pub path: String,
    /// How many objects of each kind are in force.
    pub objects: BTreeMap<String, u64>,
    /// Unix time in seconds when everything was last read without an error;
    /// 0 before that.
    pub last_good_read_s: f64,
    /// Times that a file or the directory could not be read.
    pub read_errors: u64,
    /// What cannot be read now.
    pub errors: Vec<String>,
}

/// One lane in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lane {
    /// Index of the lane.
    pub id: usize,
    /// CPU it is pinned to.
    pub core: usize,
    /// Share of the last second that the lane had packets in hand, 0 to 1.
    pub busy_ratio: f64,
    /// Packets received since the start.
    pub rx_packets: u64,
    /// Packets transmitted since the start.
    pub tx_packets: u64,
    /// Entries in the lane's flow tables.
    #[serde(default)]
    pub flow_entries: u64,
    /// Packets that an entry decided.
    #[serde(default)]
    pub flow_hits: u64,
    /// Packets that had to be classified.
    #[serde(default)]
    pub flow_misses: u64,
    /// Entries pushed out for others.
    #[serde(default)]
    pub flow_evictions: u64,
    /// Times that the lane went to sleep.
    #[serde(default)]
    pub sleeps: u64,
    /// Times that it slept for a moment under a flood that it had caught up
    /// with.
    #[serde(default)]
    pub naps: u64,
    /// Notices to control that were lost because it did not keep up.
    #[serde(default)]
    pub events_lost: u64,
    /// Seconds since the lane last went round; it does so every second at
    /// least, asleep or not.
    #[serde(default)]
    pub last_round_age_s: f64,
    /// Whether its thread has ended although nobody stopped it. It does not
    /// come back before the agent restarts.
    #[serde(default)]
    pub has_ended: bool,
}

/// Frame accounts in [`Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// Frames of the UMEM.
    pub total: u64,
    /// On free lists or posted for filling.
    pub free: u64,
    /// Received and not yet sent, or sent and not yet completed.
    pub in_use: u64,
}

/// What a port connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// A pod's interface.
    Pod,
    /// The node's way out.
    Uplink,
    /// The host's own namespace.
    Host,
}

/// How XDP is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the skb is made.
    Generic,
}

/// One row of `spinlane ports` (`GET /v1/ports`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Name of the host's end.
    pub name: String,
    /// What it connects.
    pub kind: PortKind,
    /// The pod's namespace; empty when it has none.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's id.
    pub container_id: String,
    /// The interface's name in the pod.
    pub ifname: String,
    /// Name of the CNI network.
    pub network: String,
    /// L2 segment, when it belongs to one.
    pub segment: Option<String>,
    /// Addresses, without prefix length.
    pub addresses: Vec<String>,
    /// Hardware address of the far end.
    pub mac: String,
    /// Index of the host's end.
    pub ifindex: u32,
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// Whether the NIC and the UMEM share frames without a copy.
    pub zero_copy: bool,
    /// Lanes that hold a queue of this port.
    pub lanes: Vec<usize>,
    /// Queues of the interface that packets are received on; each has a
    /// socket.
    #[serde(default)]
    pub queues: u32,
    /// Whether super-frames are delivered whole; `false` for a pod that
    /// forwards or asked for segments.
    pub super_frames: bool,
    /// Path MTU of the pod's routes in bytes.
    pub mtu: u32,
    /// Packets received from it.
    pub rx_packets: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Packets sent to it.
    pub tx_packets: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Packets that came from it or were meant for it, and were dropped.
    pub drops: u64,
    /// Why it carries nothing at the moment; none while it does.
    #[serde(default)]
    pub fault: Option<String>,
}

/// `spinlane drops` (`GET /v1/drops`): every reason, also at 0.
pub type Drops = BTreeMap<String, u64>;

/// One row of `spinlane fdb` (`GET /v1/fdb`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// Segment that the entry belongs to.
    pub segment: String,
    /// Hardware address.
    pub mac: String,
    /// Port behind which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// VTEP behind which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep: Option<String>,
    /// Seconds since it was last seen.
    pub age_s: f64,
    /// Set by configuration, or held there by a guard: never ages, never moves.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// It moved to and fro too often: what it sends from elsewhere is dropped
    /// for a while.
    #[serde(rename = "held", default)]
    pub is_held: bool,
}

/// Where packets for a prefix go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteVia {
    /// To a pod of this node, or to the switch itself.
    Local,
    /// Through the overlay.
    Vtep,
    /// To a neighbour on the uplink.
    Gateway,
    /// To the node's kernel.
    Host,
    /// Nowhere: the sender is told that there is no route.
    Unreachable,
    /// Nowhere: the sender is told that it is forbidden.
    Prohibited,
    /// Nowhere: nobody is told.
    Blackhole,
}

/// One row of `spinlane routes` (`GET /v1/routes`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination, `ADDRESS/LENGTH`.
    pub prefix: String,
    /// How.
    pub via: RouteVia,
    /// Port that packets leave by; none for the switch's own addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Address of the remote end of the overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep: Option<String>,
    /// The neighbour on the uplink that packets are handed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The neighbour's hardware address; none while it is not resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Longest IP packet in bytes, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Key of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowKey {
    /// Source address (a MAC in an L2 segment).
    pub src: String,
    /// Destination address (a MAC in an L2 segment).
    pub dst: String,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmp6`, `l2` or the protocol's number.
    pub proto: String,
    /// Source port, 0 without one.
    pub sport: u16,
    /// Destination port, 0 without one.
    pub dport: u16,
}

/// One row of `spinlane flows` (`GET /v1/flows`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Lane whose table holds it.
    pub lane: usize,
    /// Port that its packets enter by.
    pub in_port: String,
    /// What identifies it.
    pub key: FlowKey,
    /// Actions, in order.
    pub actions: Vec<String>,
    /// Port that its packets leave by.
    pub out: String,
    /// Packets that hit the entry.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds since the last hit.
    pub idle_s: f64,
}

/// One row of `spinlane connections` (`GET /v1/connections`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// `tcp`, `udp`, `icmp` or `icmp6`.
    pub proto: String,
    /// Who opened it.
    pub src: String,
    /// Its port, or an echo's identifier.
    pub sport: u16,
    /// Whom it addressed.
    pub dst: String,
    /// Port there, 0 for echoes.
    pub dport: u16,
    /// Where it stands: `syn-sent`, `established`, …; `unreplied`, `replied`
    /// or `stream` without TCP.
    pub state: String,
    /// Address and port that the destination was translated to.
    pub backend: Option<String>,
    /// Address and port that the source was translated to; none where somebody
    /// outside began.
    pub snat: Option<String>,
    /// Seconds since the last packet; known to the second.
    pub idle_s: f64,
    /// Packets of both directions; those of flows are added once a second.
    pub packets: u64,
}

/// `spinlane version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of the command line.
    pub version: String,
    /// Version of the agent, when one answers.
    pub agent: Option<String>,
}

/// An error of the HTTP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What failed on which object, and what to do.
    pub error: String,
}
