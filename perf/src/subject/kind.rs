//! Which switches there are.

use serde::Serialize;

use crate::measure::MeasureError;
use crate::subject::{
    Spinlane, Subject, bridge, forwarder, masquerade, ovs, proxy, redirect, routed, testpmd,
};

/// Which switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Spinlane as shipped.
    Spinlane,
    /// Spinlane with `poll = "busy"`.
    SpinlaneBusy,
    /// The kernel's bridge.
    LinuxBridge,
    /// The kernel's forwarding, a host route for each pod.
    LinuxRouted,
    /// A tc program with `bpf_redirect_peer`.
    TcRedirect,
    /// Open vSwitch's userspace datapath on AF_XDP.
    OvsAfxdp,
    /// DPDK's testpmd on AF_XDP, without any switching.
    TestpmdAfxdp,
    /// A forwarder on the `afxdp` crate, without any switching.
    AfxdpCrate,
    /// `linux-routed` with kube-proxy's nftables rules, to a ClusterIP.
    NftProxy,
    /// `linux-routed` with kube-proxy's iptables rules, to a ClusterIP.
    IptablesProxy,
    /// Spinlane as shipped, two nodes and VXLAN between them.
    SpinlaneVxlan,
    /// The kernel's bridge and vxlan device, two nodes whose uplinks have no
    /// tunnel offload.
    LinuxVxlan,
    /// The same over uplinks that take super-frames whole.
    LinuxVxlanOffload,
    /// Open vSwitch's userspace datapath on AF_XDP with VXLAN, two nodes.
    OvsAfxdpVxlan,
    /// Spinlane as shipped, a node with an uplink to a host outside.
    SpinlaneMasquerade,
    /// `linux-routed` with nftables' masquerade, to a host outside.
    NftMasquerade,
    /// Spinlane as shipped, to behind a pod that forwards for others.
    SpinlaneForwarding,
    /// The kernel's bridge, to behind a pod that forwards for others.
    LinuxBridgeForwarding,
}

/// What frames have to cross: only like is compared with like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// From pod to pod on one node.
    OneNode,
    /// From pod to pod over a tunnel.
    TwoNodes,
    /// From a pod to a service's address on one node.
    Service,
    /// From a pod to a host that knows of no pods.
    Outside,
    /// From a pod to behind another of the same node, which translates and
    /// forwards.
    Forwarded,
}

impl Topology {
    /// In the order of reports.
    pub const ALL: [Topology; 5] = [
        Topology::OneNode,
        Topology::Service,
        Topology::Forwarded,
        Topology::TwoNodes,
        Topology::Outside,
    ];

    /// What it is, for a reader.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Topology::OneNode => "Pod to pod on a node",
            Topology::TwoNodes => "Pod to pod over VXLAN",
            Topology::Service => "Pod to a service on a node",
            Topology::Outside => "Pod to a host outside",
            Topology::Forwarded => "Pod to behind a pod that forwards",
        }
    }
}

impl Kind {
    /// The kind of a name in a document.
    #[must_use]
    pub fn named(name: &str) -> Option<Kind> {
        let kinds = <Kind as clap::ValueEnum>::value_variants();
        kinds.iter().copied().find(|kind| kind.name() == name)
    }

    /// The name in tables and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Spinlane => "spinlane",
            Kind::SpinlaneBusy => "spinlane-busy",
            Kind::LinuxBridge => "linux-bridge",
            Kind::LinuxRouted => "linux-routed",
            Kind::TcRedirect => "tc-redirect",
            Kind::OvsAfxdp => "ovs-afxdp",
            Kind::TestpmdAfxdp => "testpmd-afxdp",
            Kind::AfxdpCrate => "afxdp-crate",
            Kind::NftProxy => "nft-proxy",
            Kind::IptablesProxy => "iptables-proxy",
            Kind::SpinlaneVxlan => "spinlane-vxlan",
            Kind::LinuxVxlan => "linux-vxlan",
            Kind::LinuxVxlanOffload => "linux-vxlan-offload",
            Kind::OvsAfxdpVxlan => "ovs-afxdp-vxlan",
            Kind::SpinlaneMasquerade => "spinlane-masquerade",
            Kind::NftMasquerade => "nft-masquerade",
            Kind::SpinlaneForwarding => "spinlane-forwarding",
            Kind::LinuxBridgeForwarding => "linux-bridge-forwarding",
        }
    }

    /// What frames have to cross in it.
    #[must_use]
    pub fn topology(self) -> Topology {
        match self {
            Kind::NftProxy | Kind::IptablesProxy => Topology::Service,
            Kind::SpinlaneVxlan
            | Kind::LinuxVxlan
            | Kind::LinuxVxlanOffload
            | Kind::OvsAfxdpVxlan => Topology::TwoNodes,
            Kind::SpinlaneMasquerade | Kind::NftMasquerade => Topology::Outside,
            Kind::SpinlaneForwarding | Kind::LinuxBridgeForwarding => Topology::Forwarded,
            _ => Topology::OneNode,
        }
    }

    /// Whether it is this project's own.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(
            self,
            Kind::Spinlane
                | Kind::SpinlaneBusy
                | Kind::SpinlaneVxlan
                | Kind::SpinlaneMasquerade
                | Kind::SpinlaneForwarding
        )
    }

    /// Whether bars are about it: this project's own, configured as shipped.
    #[must_use]
    pub fn has_bars(self) -> bool {
        self.is_ours() && self != Kind::SpinlaneBusy
    }

    /// Whether a CNI plugin for it is at hand.
    #[must_use]
    pub fn has_plugin(self) -> bool {
        (self.is_ours() && self.topology() == Topology::OneNode)
            || matches!(self, Kind::LinuxBridge | Kind::LinuxRouted)
    }

    /// Sets the subject up, both pods reaching each other; a proxy with so
    /// many services.
    ///
    /// # Errors
    /// [`MeasureError::Missing`] when it is not on this machine; others when
    /// a step fails.
    pub fn set_up(self, services: usize) -> Result<Box<dyn Subject>, MeasureError> {
        let peer = match self {
            Kind::Spinlane
            | Kind::SpinlaneBusy
            | Kind::SpinlaneVxlan
            | Kind::SpinlaneMasquerade
            | Kind::SpinlaneForwarding => {
                let subject = Spinlane::set_up(self)?;
                subject.reach()?;
                return Ok(Box::new(subject));
            }
            Kind::LinuxBridge => bridge::set_up()?,
            Kind::LinuxBridgeForwarding => bridge::set_up_forwarding()?,
            Kind::LinuxRouted => routed::set_up()?,
            Kind::TcRedirect => redirect::set_up()?,
            Kind::OvsAfxdp => ovs::set_up()?,
            Kind::TestpmdAfxdp => testpmd::set_up()?,
            Kind::AfxdpCrate => forwarder::set_up()?,
            Kind::NftProxy => proxy::set_up_nft(services)?,
            Kind::IptablesProxy => proxy::set_up_iptables(services)?,
            Kind::LinuxVxlan | Kind::LinuxVxlanOffload => bridge::set_up_vxlan(self)?,
            Kind::OvsAfxdpVxlan => ovs::set_up_vxlan()?,
            Kind::NftMasquerade => masquerade::set_up_nft()?,
        };
        peer.reach()?;
        Ok(Box::new(peer))
    }
}
