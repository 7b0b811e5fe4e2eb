//! Pods of the peers: a namespace with one half of a veth, whose other half
//! is in the node's namespace.

use std::net::IpAddr;

use spinlane_tests::Namespace;

use crate::measure::MeasureError;
use crate::subject::Pod;

/// The gateway of pods that have no neighbours, as Calico and others have it.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";

/// How a pod sees its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addressing {
    /// Both on one segment.
    Segment,
    /// By itself behind a gateway, with a host route in the node.
    Routed,
}

/// A pod of a peer.
#[derive(Debug)]
pub(super) struct VethPod {
    pub(super) namespace: Namespace,
    pub(super) host_end: String,
    pub(super) v4: IpAddr,
    pub(super) v6: IpAddr,
}

impl VethPod {
    /// Addresses 10.99.0.`number` and fd99::`number`; the node's half is
    /// `p` and the number.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub(super) fn create(
        node: &Namespace,
        number: u8,
        addressing: Addressing,
    ) -> Result<VethPod, MeasureError> {
        let namespace = Namespace::create(&format!("pod{number}"))?;
        let host_end = format!("p{number}");
        node.ip(&format!(
            "link add {host_end} type veth peer name eth0 netns {}",
            namespace.name()
        ))?;
        let pod = VethPod {
            namespace,
            host_end,
            v4: IpAddr::from([10, 99, 0, number]),
            v6: IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, u16::from(number)]),
        };
        let (v4_bits, v6_bits) = match addressing {
            Addressing::Segment => (24, 64),
            Addressing::Routed => (32, 128),
        };
        let inside = &pod.namespace;
        inside.ip(&format!("addr add {}/{v4_bits} dev eth0", pod.v4))?;
        inside.ip(&format!("addr add {}/{v6_bits} dev eth0 nodad", pod.v6))?;
        inside.ip("link set eth0 up")?;
        node.ip(&format!("link set {} up", pod.host_end))?;
        if addressing == Addressing::Routed {
            pod.route(node)?;
        }
        Ok(pod)
    }

    /// The default route inside, the gateway's addresses and the host routes
    /// outside.
    fn route(&self, node: &Namespace) -> Result<(), MeasureError> {
        let (inside, end) = (&self.namespace, &self.host_end);
        inside.ip(&format!("route add {GATEWAY_V4} dev eth0 scope link"))?;
        inside.ip(&format!("route add default via {GATEWAY_V4} dev eth0"))?;
        inside.ip(&format!("-6 route add default via {GATEWAY_V6} dev eth0"))?;
        node.ip(&format!("addr add {GATEWAY_V4}/32 dev {end}"))?;
        node.ip(&format!("addr add {GATEWAY_V6}/64 dev {end} nodad"))?;
        node.ip(&format!("route add {}/32 dev {end}", self.v4))?;
        node.ip(&format!("-6 route add {}/128 dev {end}", self.v6))?;
        Ok(())
    }

    /// Turns off what the pod's device would leave to the other end: an
    /// AF_XDP socket passes on what it reads, so a checksum that the pod left
    /// to its device would never be made.
    pub(super) fn complete_checksums(&self) -> Result<(), MeasureError> {
        self.namespace
            .run(&["ethtool", "-K", "eth0", "tx", "off"])?;
        Ok(())
    }

    /// Makes room for an outer header.
    pub(super) fn set_mtu(&self, node: &Namespace, mtu: u16) -> Result<(), MeasureError> {
        self.namespace.ip(&format!("link set eth0 mtu {mtu}"))?;
        node.ip(&format!("link set {} mtu {mtu}", self.host_end))?;
        Ok(())
    }

    pub(super) fn pod(&self) -> Pod<'_> {
        Pod {
            namespace: &self.namespace,
            v4: self.v4,
            v6: self.v6,
            service: None,
        }
    }
}
