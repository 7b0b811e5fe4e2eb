//! What the CNI plugin asks and the agent answers.
//!
//! One connection carries one exchange. The plugin sends a [`Request`] as one
//! JSON document of at most [`MAX_MESSAGE_BYTES`], ended by a newline; for ADD
//! and CHECK the pod's network-namespace descriptor rides on the first byte
//! as `SCM_RIGHTS`. The agent answers with one [`Response`], also a line, and
//! closes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Longest message either side accepts, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// What identifies an attachment, by the CNI specification (section 2,
/// "Lifecycle & Ordering"): the network's name, the container and the
/// interface inside it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// The pod that an attachment belongs to, from `CNI_ARGS`; empty strings when
/// the runtime named none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`.
    pub uid: String,
}

/// An address with its prefix length and, when known, its gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address itself.
    pub address: IpAddr,
    /// Length of the on-link prefix as the result reports it.
    pub prefix_len: u8,
    /// The gateway that serves this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route in the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination in CIDR notation.
    pub dst: String,
    /// Next hop; on-link when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// An interface in a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name of the interface.
    pub name: String,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// MTU of the device in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the namespace that holds it; absent for the host's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// What ADD wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// Which attachment to make.
    pub attachment: Attachment,
    /// Whose it is.
    pub pod: Pod,
    /// `CNI_NETNS`, kept for results and for CHECK after a restart.
    pub netns_path: String,
    /// `segment` of the network configuration.
    #[serde(default)]
    pub segment: Option<String>,
    /// `mtu` of the network configuration: path MTU of the pod's routes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// `superFrames` of the network configuration.
    #[serde(default)]
    pub super_frames: Option<bool>,
    /// The `mac` capability.
    #[serde(default)]
    pub mac: Option<String>,
    /// The `ips` capability: addresses to take, with or without `/len`.
    #[serde(default)]
    pub ips: Vec<String>,
    /// Result of delegated IPAM. Absent: the agent chooses the addresses.
    #[serde(default)]
    pub delegated: Option<Delegated>,
    /// Addresses come with a request of their own, since who gives them asks
    /// the network by the pod's interface (`dhcp`).
    #[serde(default)]
    pub addresses_follow: bool,
}

/// What a delegated IPAM plugin answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegated {
    /// The plugin's `type`.
    pub plugin: String,
    /// Addresses to set.
    pub addresses: Vec<Address>,
    /// Routes to set.
    pub routes: Vec<Route>,
}

/// What ADD made, in the terms of a CNI result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// Host end first, then the pod's.
    pub interfaces: Vec<Interface>,
    /// Addresses of the pod's interface.
    pub addresses: Vec<Address>,
    /// Routes that were set in the pod.
    pub routes: Vec<Route>,
}

/// What CHECK compares: the attachment as the runtime remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Which attachment.
    pub attachment: Attachment,
    /// `CNI_NETNS`.
    pub netns_path: String,
    /// Addresses of `prevResult` that belong to this interface.
    pub addresses: Vec<Address>,
    /// The pod end's hardware address in `prevResult`.
    #[serde(default)]
    pub mac: Option<String>,
}

/// A request of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE")]
pub enum Request {
    /// Attach a pod's interface; carries the namespace's descriptor.
    Add(AddRequest),
    /// Give an interface the addresses of `delegated` that was attached before
    /// they were known; carries the descriptor. Answered as ADD, which it
    /// completes: when it fails, the interface is gone.
    Address(AddRequest),
    /// Detach; succeeds when nothing is there.
    Del(Attachment),
    /// Compare the world with what was attached; carries the descriptor.
    Check(CheckRequest),
    /// Remove the attachments of one network that `keep` does not name.
    Gc {
        /// Name of the network; others are left alone.
        network: String,
        /// `cni.dev/valid-attachments`.
        keep: Vec<Attachment>,
    },
    /// Can ADD be served now?
    Status {
        /// `segment` of the network configuration, which must be known.
        #[serde(default)]
        segment: Option<String>,
        /// Whether addresses come from delegated IPAM: then an exhausted pool
        /// here is no failure.
        #[serde(default)]
        delegated: bool,
    },
}

/// A CNI error object without its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Code of the specification (section "Error"), or 100 and above.
    pub code: u32,
    /// What failed on which object.
    pub msg: String,
    /// Why, and what to do.
    #[serde(default)]
    pub details: String,
}

/// Codes that Spinlane's answers use.
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Unsupported field in the network configuration.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Container unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Invalid necessary environment variables.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// I/O failure.
    pub const IO_FAILURE: u32 = 5;
    /// Failed to decode content.
    pub const DECODING_FAILURE: u32 = 6;
    /// Invalid network configuration.
    pub const INVALID_CONFIG: u32 = 7;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin is not available: ADD cannot be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Not available, and existing containers have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Spinlane's own: addresses, frames or ports are exhausted.
    pub const EXHAUSTED: u32 = 100;
    /// Spinlane's own: the world differs from what was attached (CHECK).
    pub const DIFFERS: u32 = 101;
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Answer to ADD.
    Added(AddResult),
    /// DEL, CHECK, GC or STATUS succeeded.
    Done,
    /// It did not; the code goes into the CNI error object.
    Failed(Failure),
}

/// `CNI_ARGS` as a map; pairs without `=` are refused by the caller.
pub type Args = BTreeMap<String, String>;
