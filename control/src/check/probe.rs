//! The data path tried in earnest: a throw-away network namespace, a veth
//! pair in it, and an engine that binds to it. Nothing of the machine's own
//! is touched, and everything is gone with the namespace.

use std::sync::Arc;

use nix::sched::{CloneFlags, unshare};
use spinlane_dataplane::engine::{
    Engine, EngineConfig, HostSide, PollMode, PortSpec, UplinkSpec, XdpChoice, XdpMode,
};
use spinlane_dataplane::types::{MacAddr, PortId};

use super::{Item, State, item};
use crate::config::allowed_cores;
use crate::node::link::{self, Veth};
use crate::node::netlink::{Netlink, delete_link};
use crate::node::netns::{self, Sysfs};
use crate::node::steering;

/// Enough for one port of one lane.
const FRAMES: usize = 1024;
const HOST_END: &str = "slcheck0";
const POD_END: &str = "slcheck1";
const DEVICE_MTU: u32 = 65535;

/// Tries everything on a thread that never comes back from its namespace.
pub(super) fn run() -> Vec<Item> {
    std::thread::Builder::new()
        .name("check".to_owned())
        .spawn(probe)
        .map_err(|e| e.to_string())
        .and_then(|thread| thread.join().map_err(|_| "the probe panicked".to_owned()))
        .unwrap_or_else(|e| vec![item("AF_XDP", State::Missing, e)])
}

fn probe() -> Vec<Item> {
    let mut items = Vec::new();
    let made = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|e| format!("cannot make a network namespace: {e}"));
    items.push(report(
        "network namespaces",
        made.map(|()| "pods' interfaces are made inside theirs".to_owned()),
    ));
    let ifindex = veth();
    items.push(report(
        "veth",
        ifindex
            .clone()
            .map(|_| "pods are attached by veth pairs".to_owned()),
    ));
    if let Ok(ifindex) = ifindex {
        items.push(steering_item());
        items.extend(modes(ifindex));
        items.push(layer_2());
    }
    items
}

fn report(name: &str, result: Result<String, String>) -> Item {
    match result {
        Ok(detail) => item(name, State::Ok, detail),
        Err(detail) => item(name, State::Missing, detail),
    }
}

fn veth() -> Result<u32, String> {
    let mut netlink = Netlink::open().map_err(|e| e.to_string())?;
    let own = netns::own().map_err(|e| e.to_string())?;
    let veth = Veth {
        host: HOST_END,
        alias: "spinlane check",
        pod: POD_END,
        mac: MacAddr([0x0a, 0x58, 0, 0, 0, 1]),
        mtu: DEVICE_MTU,
        queues: 1,
        used_queues: 1,
    };
    link::create(&mut netlink, veth, std::os::fd::AsFd::as_fd(&own)).map_err(|e| e.to_string())
}

fn remove_veth() -> Result<(), String> {
    let mut netlink = Netlink::open().map_err(|e| e.to_string())?;
    let removed = netlink.request(delete_link(HOST_END));
    removed.map(drop).map_err(|e| e.to_string())
}

fn steering_item() -> Item {
    let cores: Vec<_> = allowed_cores().last().copied().into_iter().collect();
    let steered = Sysfs::open().map_err(|e| e.to_string()).and_then(|sysfs| {
        steering::steer_in(&sysfs, HOST_END, 0, 1, &cores).map_err(|e| e.to_string())
    });
    match steered {
        Ok(_) => item(
            "receive packet steering",
            State::Ok,
            "a pod's frames enter on one CPU and keep their order",
        ),
        Err(e) => item(
            "receive packet steering",
            State::Degraded,
            format!("frames of a connection may overtake each other: {e}"),
        ),
    }
}

/// Generic mode is wanted (the pod keeps its offloads), native is the way
/// around; one of them must work.
fn modes(ifindex: u32) -> [Item; 2] {
    let generic = attach(ifindex, XdpChoice::Generic);
    let native = attach(ifindex, XdpChoice::Native);
    let (generic_fails, native_fails) = match (generic.is_ok(), native.is_ok()) {
        (false, false) => (State::Missing, State::Missing),
        _ => (State::Degraded, State::Degraded),
    };
    let generic = match generic {
        Ok(_) => item(
            "AF_XDP, generic mode",
            State::Ok,
            "used for pods: super-frames and checksum offload stay on",
        ),
        Err(e) => item(
            "AF_XDP, generic mode",
            generic_fails,
            format!("pods get native mode without super-frames: {e}"),
        ),
    };
    let native = match native {
        Ok(_) => item(
            "AF_XDP, native mode",
            State::Ok,
            "available with lanes.xdp-mode = \"native\"",
        ),
        Err(e) => item(
            "AF_XDP, native mode",
            native_fails,
            format!("lanes.xdp-mode = \"native\" cannot be used: {e}"),
        ),
    };
    [generic, native]
}

/// The host's end of another pair as an uplink whose network pods share: a
/// port's program stays on the one that was a port.
fn layer_2() -> Item {
    let bridged = remove_veth().and_then(|()| veth()).and_then(|ifindex| {
        let engine = engine(XdpChoice::Auto)?;
        let attached = engine.attach_uplink(UplinkSpec {
            port: port(ifindex),
            queues: 1,
            receive_ring: 0,
            zero_copy: false,
            xdp: XdpChoice::Auto,
            cuts_datagrams: false,
            cuts_segments: false,
            is_bridged: true,
            host_side: Some(HostSide {
                port_ifindex: ifindex,
                far_end: POD_END.to_owned(),
            }),
        });
        engine.stop();
        attached.map_err(|e| e.to_string())
    });
    match bridged {
        Ok(_) => item(
            "programs at tc",
            State::Ok,
            "mode \"l2\" can be used: the node is a station beside its pods",
        ),
        Err(e) => item(
            "programs at tc",
            State::Degraded,
            format!("mode \"l2\" cannot be used: {e}"),
        ),
    }
}

fn port(ifindex: u32) -> PortSpec {
    PortSpec {
        id: PortId(0),
        ifindex,
        name: HOST_END.to_owned(),
    }
}

fn engine(xdp: XdpChoice) -> Result<Arc<Engine>, String> {
    let engine = Engine::start(EngineConfig {
        cores: allowed_cores().last().copied().into_iter().collect(),
        poll: PollMode::Interrupt,
        frames: FRAMES,
        xdp,
        connections: None,
    });
    engine.map(Arc::new).map_err(|e| e.to_string())
}

fn attach(ifindex: u32, xdp: XdpChoice) -> Result<XdpMode, String> {
    let engine = engine(xdp)?;
    let attached = engine.attach(port(ifindex));
    engine.stop();
    attached
        .map(|attached| attached.xdp_mode)
        .map_err(|e| e.to_string())
}
