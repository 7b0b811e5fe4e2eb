//! A host outside of the cluster, and the peer that reaches it with the node's
//! address: `linux-routed` with the rule that kube-proxy's and CNI plugins'
//! masquerade comes down to.
//!
//! ```text
//! pod ── node 172.31.0.1 ──(veth)── 172.31.0.9 outside
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use spinlane_tests::cluster::UPLINK;
use spinlane_tests::{Namespace, veth};

use crate::measure::MeasureError;
use crate::subject::peer::Peer;
use crate::subject::routed::forward;
use crate::subject::veth::{Addressing, VethPod};
use crate::subject::{Kind, kernel_settings, needs, setting};

/// The node's addresses on its uplink.
const NODE: [IpAddr; 2] = addresses(1);
/// The host's.
const OUTSIDE: [IpAddr; 2] = addresses(9);

const fn addresses(number: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(172, 31, 0, number)),
        IpAddr::V6(Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, number as u16)),
    ]
}

/// A host at the other end of the node's new uplink, which knows the node's
/// addresses only. It stands where a receiving pod does.
pub(super) fn outside_of(node: &Namespace) -> Result<VethPod, MeasureError> {
    let host = Namespace::create("outside")?;
    veth((node, UPLINK), (&host, "eth0"))?;
    for (namespace, device, addresses) in [(node, UPLINK, NODE), (&host, "eth0", OUTSIDE)] {
        let [v4, v6] = addresses;
        namespace.ip(&format!("address add {v4}/24 dev {device}"))?;
        namespace.ip(&format!("address add {v6}/64 dev {device} nodad"))?;
    }
    let [v4, v6] = OUTSIDE;
    Ok(VethPod {
        namespace: host,
        host_end: UPLINK.to_owned(),
        v4,
        v6,
    })
}

/// A forwarding kernel with a pod, a host outside and nftables' masquerade.
pub(super) fn set_up_nft() -> Result<Peer, MeasureError> {
    needs(
        Kind::NftMasquerade,
        &["nft", "conntrack"],
        "nftables and conntrack",
    )?;
    let node = Namespace::create(Kind::NftMasquerade.name())?;
    let pod = VethPod::create(&node, 1, Addressing::Routed)?;
    let outside = outside_of(&node)?;
    let mut peer = Peer::of(Kind::NftMasquerade, vec![node], [pod, outside]);
    let node = &peer.nodes[0];
    forward(node, &["p1", UPLINK])?;
    node.sh(&format!(
        "nft add table inet nat; \
         nft 'add chain inet nat post {{ type nat hook postrouting priority srcnat; }}'; \
         nft add rule inet nat post oifname {UPLINK} masquerade"
    ))?;
    peer.settings = kernel_settings(&peer, 1500)?;
    peer.settings
        .push(setting("rules", "inet nat postrouting, masquerade"));
    Ok(peer)
}

/// Empties the connection table of a node's kernel.
pub(super) fn forget(node: &Namespace) -> Result<(), MeasureError> {
    node.run(&["conntrack", "-F"])?;
    Ok(())
}

/// Has a host outside forget the connections that it closed first (`TIME_WAIT`,
/// for a minute). A switch which has just forgotten them does not know which
/// ports those went by, and gives them to others that the host then takes for
/// the old ones.
pub(super) fn forget_outside(host: &Namespace) -> Result<(), MeasureError> {
    host.run(&["ss", "--kill", "--tcp", "state", "time-wait"])?;
    Ok(())
}
