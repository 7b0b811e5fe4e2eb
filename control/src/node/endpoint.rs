//! What the agent remembers of one attachment: the record in the store.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use spinlane_api::cni::{Address, Attachment, Pod};

/// Longest MTU of a veth that a frame of 64 KiB passes.
pub const SUPER_FRAME_MTU: u32 = 65535;

/// How far an attachment has come. A record in another state than
/// [`Attached`](State::Attached) was interrupted, and the next start repairs
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// ADD has begun: addresses are taken, links may exist. Undone at start.
    Adding,
    /// ADD was answered, or is about to be.
    Attached,
    /// DEL has begun. Finished at start.
    Deleting,
}

/// A route in the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Destination.
    pub to: ipnet::IpNet,
    /// Next hop; on-link when absent.
    pub via: Option<IpAddr>,
    /// Path MTU in bytes.
    pub mtu: u32,
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which attachment.
    pub attachment: Attachment,
    /// Whose.
    pub pod: Pod,
    /// How far.
    pub state: State,
    /// Name of the host's end.
    pub host_ifname: String,
    /// `CNI_NETNS` at ADD.
    pub netns_path: String,
    /// Segment that it belongs to; routed when absent.
    pub segment: Option<String>,
    /// MAC of the pod's end.
    pub mac: String,
    /// Addresses, with the prefix length and the gateway of the result.
    pub addresses: Vec<Address>,
    /// Whether the addresses came from delegated IPAM: then they are not
    /// this agent's to lease.
    pub delegated: bool,
    /// Routes that ADD set in the pod.
    pub routes: Vec<PodRoute>,
    /// MTU of the device in bytes.
    pub device_mtu: u32,
    /// Path MTU in bytes.
    pub mtu: u32,
    /// Whether that is the node's, which may change.
    #[serde(default)]
    pub follows_path_mtu: bool,
    /// Whether the pod keeps its offloads.
    pub offloads: bool,
    /// Whether super-frames are delivered whole.
    pub super_frames: bool,
    /// Longest packet after segmentation, in bytes.
    pub segment_mtu: u32,
    /// Whether the pod finds addresses and routes by itself, by DHCP and from
    /// routers, on the network that it shares with the node.
    #[serde(default)]
    pub is_self_configured: bool,
}

impl Endpoint {
    /// The addresses alone.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|a| a.address)
    }

    /// Whose it is, for an operator: the pod, or the container where the runtime
    /// named no pod.
    pub fn owner(&self) -> String {
        owner(&self.pod, &self.attachment)
    }

    /// Whether its interface was made for super-frames: a pod that forwards for
    /// others still sends them.
    pub fn sends_super_frames(&self) -> bool {
        self.offloads && self.device_mtu == SUPER_FRAME_MTU
    }

    /// The alias of the host's end; it tells our interfaces from others'.
    pub fn alias(&self) -> String {
        alias(&self.pod, &self.attachment)
    }
}

fn owner(pod: &Pod, attachment: &Attachment) -> String {
    match pod.name.is_empty() {
        true => format!("container {}", attachment.container_id),
        false => format!("pod {}/{}", pod.namespace, pod.name),
    }
}

/// Begins the alias of every interface that the agent makes.
pub const ALIAS_PREFIX: &str = "spinlane ";
/// Begins the name of every pod's host end.
pub const NAME_PREFIX: &str = "sl";

/// `spinlane NAMESPACE/POD IFNAME CONTAINER`, at most 255 bytes.
pub fn alias(pod: &Pod, attachment: &Attachment) -> String {
    let mut text = format!(
        "{ALIAS_PREFIX}{}/{} {} {}",
        pod.namespace, pod.name, attachment.ifname, attachment.container_id
    );
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Name of the host's end: always the same for one attachment.
pub fn host_ifname(attachment: &Attachment) -> String {
    let hash = fnv1a(&[
        attachment.network.as_bytes(),
        attachment.container_id.as_bytes(),
        attachment.ifname.as_bytes(),
    ]);
    format!("{NAME_PREFIX}{:011x}", hash & 0xfff_ffff_ffff)
}

/// FNV-1a over parts and their borders: the same on every machine and in
/// every version, which a name that outlives the agent needs.
pub fn fnv1a(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for &byte in part.iter().chain(&[0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(network: &str, container: &str, ifname: &str) -> Attachment {
        Attachment {
            network: network.into(),
            container_id: container.into(),
            ifname: ifname.into(),
        }
    }

    #[test]
    fn names_fit_and_differ() {
        let names: std::collections::HashSet<_> = [
            attachment("a", "bc", "eth0"),
            attachment("ab", "c", "eth0"),
            attachment("a", "bc", "eth1"),
        ]
        .iter()
        .map(host_ifname)
        .collect();
        assert_eq!(names.len(), 3);
        for name in names {
            assert!(name.len() == 13 && name.starts_with(NAME_PREFIX), "{name}");
        }
    }

    #[test]
    fn a_container_stands_for_a_pod_without_a_name() {
        let attachment = attachment("pods", "c1", "eth0");
        let mut pod = Pod::default();
        assert_eq!(owner(&pod, &attachment), "container c1");
        (pod.namespace, pod.name) = ("shop".into(), "web".into());
        assert_eq!(owner(&pod, &attachment), "pod shop/web");
    }

    #[test]
    fn name_never_changes() {
        // Veths of an older agent must be found again.
        assert_eq!(fnv1a(&[b"a"]), {
            let step = |h: u64, b: u64| (h ^ b).wrapping_mul(0x0100_0000_01b3);
            step(step(0xcbf2_9ce4_8422_2325, 0x61), 0)
        });
    }

    #[test]
    fn alias_is_cut_at_a_character() {
        let pod = Pod {
            namespace: "ä".repeat(200),
            ..Pod::default()
        };
        let text = alias(&pod, &attachment("n", "c", "eth0"));
        assert!(text.len() <= 255 && text.starts_with(ALIAS_PREFIX));
    }
}
