//! What tests begin with: one of each, from which a test changes what it is
//! about.

use std::net::IpAddr;

use spinlane_api::cni::{AddRequest, Attachment, Pod};

use super::endpoint::{Endpoint, State};
use super::netlink::Link;
use super::routes::KernelRoute;
use super::setup::Setup;
use crate::config::{Config, Environment, Network, Uplink};

/// The network that these lines describe.
pub(crate) fn network(lines: &str) -> Network {
    let text = format!("[node]\nname = \"x\"\nuplink = \"none\"\n[network]\n{lines}\n");
    let environment = Environment::of_this_process();
    let config = Config::parse(&text, "test", &environment).unwrap();
    config.network().clone()
}

/// A node without addresses, pods and an uplink.
pub(crate) fn setup() -> Setup {
    Setup {
        name: "node-a".into(),
        addresses: vec![],
        follows_addresses: false,
        pod_cidrs: vec![],
        follows_pod_cidrs: false,
        refusals: vec![],
        uplink: Uplink::None,
        network: network(""),
        segments: vec![],
        path_mtu: 1450,
        offloads: true,
        receive_cpus: vec![],
        spare_cpus: vec![],
        run_dir: "/nowhere".into(),
        state_dir: "/nowhere".into(),
    }
}

/// A first interface of a pod that asks for nothing in particular.
pub(crate) fn request(container: &str) -> AddRequest {
    AddRequest {
        attachment: Attachment {
            network: "pods".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
        },
        pod: Pod::default(),
        netns_path: String::new(),
        segment: None,
        mtu: None,
        super_frames: None,
        mac: None,
        ips: vec![],
        delegated: None,
        addresses_follow: false,
    }
}

/// An interface that works.
pub(crate) fn link(index: u32) -> Link {
    Link {
        index,
        name: format!("eth{index}"),
        mac: vec![2, 0, 0, 0, 0, index as u8],
        mtu: 1500,
        up: true,
        operational: true,
        has_carrier: true,
        rx_queues: 1,
        ..Link::default()
    }
}

/// A route by one hop.
pub(crate) fn route(to: &str, via: Option<&str>, oif: u32) -> KernelRoute {
    let via: Option<IpAddr> = via.map(|via| via.parse().unwrap());
    KernelRoute {
        to: to.parse().unwrap(),
        via,
        oif: Some(oif),
        mtu: None,
        source: None,
        priority: 0,
        hops: vec![],
        is_ours: false,
    }
}

/// A routed container without addresses, which no pod is known of.
pub(crate) fn endpoint(container: &str, state: State) -> Endpoint {
    Endpoint {
        attachment: Attachment {
            network: "pods".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
        },
        pod: Pod::default(),
        state,
        host_ifname: "sl0".into(),
        netns_path: "/run/netns/a".into(),
        segment: None,
        mac: "0a:58:0a:f4:01:02".into(),
        addresses: vec![],
        delegated: false,
        routes: vec![],
        device_mtu: 65535,
        mtu: 1450,
        follows_path_mtu: true,
        offloads: true,
        super_frames: true,
        segment_mtu: 1450,
        is_self_configured: false,
    }
}
