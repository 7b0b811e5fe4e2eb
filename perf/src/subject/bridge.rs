//! The Linux bridge, as the bridge CNI plugin sets it up: one bridge, a veth
//! for each pod, every offload on; and the same on two nodes with a vxlan
//! device between them, as flannel sets it up.

use spinlane_tests::Namespace;
use spinlane_tests::cluster::UPLINK;

use crate::measure::MeasureError;
use crate::subject::peer::{Peer, TUNNELLED_MTU, UPLINK_SETTING};
use crate::subject::veth::Addressing;
use crate::subject::{Kind, forwarding, kernel_settings, needs, setting};

/// A bridge with two pods.
pub(super) fn set_up() -> Result<Peer, MeasureError> {
    on_one_node(Kind::LinuxBridge)
}

/// The same to behind the second pod.
pub(super) fn set_up_forwarding() -> Result<Peer, MeasureError> {
    needs(Kind::LinuxBridgeForwarding, &["nft"], "nftables")?;
    let mut peer = on_one_node(Kind::LinuxBridgeForwarding)?;
    let pod = peer.pods[1].pod();
    let service = forwarding::service(&pod);
    peer.behind = Some(forwarding::behind(pod.namespace)?);
    peer.service = Some(service);
    Ok(peer)
}

fn on_one_node(kind: Kind) -> Result<Peer, MeasureError> {
    let mut peer = Peer::on_one_node(kind, Addressing::Segment)?;
    bridge(&peer.nodes[0], &["p1", "p2"])?;
    peer.settings = kernel_settings(&peer, 1500)?;
    peer.settings.push(setting("bridge netfilter", "off"));
    Ok(peer)
}

/// A bridge with one pod on each of two nodes, and VXLAN between them; over
/// uplinks without tunnel offload, or with it.
pub(super) fn set_up_vxlan(kind: Kind) -> Result<Peer, MeasureError> {
    let mut peer = Peer::on_two_nodes(kind)?;
    for (index, node) in peer.nodes.iter().enumerate() {
        let (own, other) = (index + 1, 2 - index);
        node.ip(&format!(
            "link add vxlan1 type vxlan id 1 dstport 4789 dev {UPLINK} \
             local 172.31.0.{own} remote 172.31.0.{other}"
        ))?;
        node.ip(&format!("link set vxlan1 mtu {TUNNELLED_MTU} up"))?;
        bridge(node, &[&format!("p{own}"), "vxlan1"])?;
    }
    peer.settings = kernel_settings(&peer, TUNNELLED_MTU)?;
    peer.settings.push(setting("bridge netfilter", "off"));
    let [name, segmented] = UPLINK_SETTING;
    let uplinks = match kind {
        Kind::LinuxVxlanOffload => "super-frames pass whole, as with tunnel offload",
        _ => segmented,
    };
    peer.settings.push(setting(name, uplinks));
    Ok(peer)
}

fn bridge(node: &Namespace, members: &[&str]) -> Result<(), MeasureError> {
    node.ip("link add br0 type bridge")?;
    // Packet filters on bridged frames would only slow the peer down.
    for table in ["iptables", "ip6tables", "arptables"] {
        let key = format!("net.bridge.bridge-nf-call-{table}");
        let _ = node.sysctl(&key, "0"); // absent without br_netfilter
    }
    node.ip("link set br0 up")?;
    for member in members {
        node.ip(&format!("link set {member} master br0"))?;
    }
    Ok(())
}
