//! Pods behind a gateway with a host route each, forwarded by the kernel, as
//! Calico and others set it up.

use spinlane_tests::Namespace;

use crate::measure::MeasureError;
use crate::subject::peer::Peer;
use crate::subject::veth::Addressing;
use crate::subject::{Kind, kernel_settings};

/// A forwarding kernel with two pods.
pub(super) fn set_up() -> Result<Peer, MeasureError> {
    let mut peer = forwarding(Kind::LinuxRouted)?;
    peer.settings = kernel_settings(&peer, 1500)?;
    Ok(peer)
}

/// What others put their rules or programs on.
pub(super) fn forwarding(kind: Kind) -> Result<Peer, MeasureError> {
    let peer = Peer::on_one_node(kind, Addressing::Routed)?;
    forward(&peer.nodes[0], &["p1", "p2"])?;
    Ok(peer)
}

/// Makes a namespace's kernel forward between devices.
pub(super) fn forward(node: &Namespace, devices: &[&str]) -> Result<(), MeasureError> {
    node.sysctl("net.ipv4.ip_forward", "1")?;
    node.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    for scope in ["all"].iter().chain(devices) {
        node.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
        node.sysctl(&format!("net.ipv4.conf.{scope}.send_redirects"), "0")?;
    }
    Ok(())
}
