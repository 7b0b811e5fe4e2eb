//! The Linux bridge, as the bridge CNI plugin sets it up: one bridge, a veth
//! for each pod, every offload on.

use spinlane_tests::Namespace;

use crate::measure::MeasureError;
use crate::subject::{Kind, PeerPod, Pod, Subject, feature, on_off, setting};

const HOST_ENDS: [&str; 2] = ["p1", "p2"];

/// A bridge with two pods.
#[derive(Debug)]
pub struct LinuxBridge {
    pods: [PeerPod; 2],
    node: Namespace,
    settings: Vec<(String, String)>,
}

impl LinuxBridge {
    /// Makes it from nothing.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub fn set_up() -> Result<LinuxBridge, MeasureError> {
        let node = Namespace::create("bridge")?;
        node.ip("link add br0 type bridge")?;
        // Packet filters on bridged frames would only slow the peer down.
        for table in ["iptables", "ip6tables", "arptables"] {
            let key = format!("net.bridge.bridge-nf-call-{table}");
            let _ = node.sysctl(&key, "0"); // absent without br_netfilter
        }
        node.ip("link set br0 up")?;
        let pods = [
            PeerPod::create(&node, HOST_ENDS[0], 1)?,
            PeerPod::create(&node, HOST_ENDS[1], 2)?,
        ];
        for end in HOST_ENDS {
            node.ip(&format!("link set {end} master br0"))?;
        }
        let pod = &pods[0].namespace;
        let settings = vec![
            setting("route MTU", "1500"),
            setting(
                "pod GSO",
                on_off(feature(pod, "eth0", "generic-segmentation-offload")?),
            ),
            setting(
                "pod TX checksum",
                on_off(feature(pod, "eth0", "tx-checksumming")?),
            ),
            setting("bridge netfilter", "off"),
        ];
        Ok(LinuxBridge {
            pods,
            node,
            settings,
        })
    }
}

impl Subject for LinuxBridge {
    fn kind(&self) -> Kind {
        Kind::LinuxBridge
    }

    fn pods(&self) -> [Pod<'_>; 2] {
        [self.pods[0].pod(), self.pods[1].pod()]
    }

    fn node(&self) -> &Namespace {
        &self.node
    }

    fn host_end(&self) -> &str {
        HOST_ENDS[0]
    }

    fn pids(&self) -> Vec<u32> {
        Vec::new()
    }

    fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    fn pause(&mut self) {}

    fn resume(&mut self) {}
}
