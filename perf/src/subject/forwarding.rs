//! A namespace behind a pod, as a container or virtual machine inside it, that
//! others reach at the pod's addresses: the pod's kernel translates and
//! forwards.
//!
//! ```text
//! pod ── switch ── eth0 pod in0 ──(veth)── 192.168.77.2 behind
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use spinlane_tests::{Namespace, veth};

use crate::measure::MeasureError;
use crate::stop::Stop;
use crate::subject::routed::forward;
use crate::subject::veth::VethPod;
use crate::subject::{Pod, ServiceAddress};
use crate::tcp::{Bulk, bulk};

/// The pod's end.
const INSIDE: &str = "in0";

/// What comes to the pod's own addresses is for the namespace behind it.
const RULES: &str = "table inet nat { chain pre { \
    type nat hook prerouting priority dstnat; \
    iifname eth0 meta nfproto ipv4 meta l4proto { tcp, udp } dnat ip to 192.168.77.2; \
    iifname eth0 icmp type echo-request dnat ip to 192.168.77.2; \
    iifname eth0 meta nfproto ipv6 meta l4proto { tcp, udp } dnat ip6 to fd77::2; \
    iifname eth0 icmpv6 type echo-request dnat ip6 to fd77::2; }; }";

/// Makes a pod forward for a new namespace.
pub(super) fn behind(pod: &Namespace) -> Result<VethPod, MeasureError> {
    let namespace = Namespace::create("behind")?;
    veth((pod, INSIDE), (&namespace, "eth0"))?;
    for (end, device, number) in [(pod, INSIDE, 1), (&namespace, "eth0", 2)] {
        end.ip(&format!("address add 192.168.77.{number}/24 dev {device}"))?;
        end.ip(&format!("address add fd77::{number}/64 dev {device} nodad"))?;
    }
    namespace.ip("route add default via 192.168.77.1")?;
    namespace.ip("-6 route add default via fd77::1")?;
    forward(pod, &["eth0", INSIDE])?;
    pod.sh(&format!("nft '{RULES}'"))?;
    Ok(VethPod {
        namespace,
        host_end: INSIDE.to_owned(),
        v4: IpAddr::V4(Ipv4Addr::new(192, 168, 77, 2)),
        v6: IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2)),
    })
}

/// Where others reach what is behind a pod.
pub(super) fn service(pod: &Pod<'_>) -> ServiceAddress {
    ServiceAddress {
        v4: pod.v4,
        v6: pod.v6,
        answers_pings: true,
    }
}

/// A moment of bulk TCP.
pub(super) fn stream([from, to]: &[Pod<'_>; 2]) -> Result<(), MeasureError> {
    let what = Bulk {
        streams: 1,
        warm_up: Duration::from_millis(1),
        duration: Duration::from_millis(300),
        sender_core: None,
        v6: false,
    };
    bulk(from, to, &what, &Stop::new())?;
    Ok(())
}
