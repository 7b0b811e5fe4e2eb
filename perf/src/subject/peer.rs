//! What the peers have in common: namespaces, pods, and the processes that
//! stand still while others are measured.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spinlane_tests::cluster::{Families, UPLINK, Underlay};
use spinlane_tests::{Namespace, Process, lab_dir};

use crate::measure::MeasureError;
use crate::subject::redirect::Redirection;
use crate::subject::veth::{Addressing, VethPod};
use crate::subject::{Kind, Pod, ServiceAddress, Subject, Wire, masquerade};

/// A peer that is set up. Fields go in this order: processes before the
/// namespaces that they run in.
#[derive(Debug)]
pub(super) struct Peer {
    kind: Kind,
    /// Forward frames; paused unless the peer is measured.
    pub(super) forwarding: Vec<Process>,
    /// Keep the books (a database), never paused.
    pub(super) attending: Vec<Process>,
    pub(super) redirections: Vec<Redirection>,
    /// What the second pod forwards for.
    pub(super) behind: Option<VethPod>,
    pub(super) pods: [VethPod; 2],
    /// Of the first pod and, when it is another, of the second.
    pub(super) nodes: Vec<Namespace>,
    /// Between two nodes.
    underlay: Option<Underlay>,
    /// Where the receiving pod is reached, when not at its own addresses.
    pub(super) service: Option<ServiceAddress>,
    pub(super) settings: Vec<(String, String)>,
}

impl Peer {
    /// One node with two pods.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub(super) fn on_one_node(kind: Kind, addressing: Addressing) -> Result<Peer, MeasureError> {
        let node = Namespace::create(kind.name())?;
        let pods = [
            VethPod::create(&node, 1, addressing)?,
            VethPod::create(&node, 2, addressing)?,
        ];
        Ok(Peer::of(kind, vec![node], pods))
    }

    /// Two nodes with a pod each, on one segment, and the lab's link between
    /// them: [`UPLINK`] on both, 172.31.0.1 and 172.31.0.2.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub(super) fn on_two_nodes(kind: Kind) -> Result<Peer, MeasureError> {
        let nodes = [
            Namespace::create(&format!("{}-1", kind.name()))?,
            Namespace::create(&format!("{}-2", kind.name()))?,
        ];
        let underlay = Underlay::new(Families::V4)?;
        for (number, node) in (1..).zip(&nodes) {
            underlay.plug(node, number)?;
        }
        if kind != Kind::LinuxVxlanOffload {
            uplinks_without_tunnel_offload(&underlay, [&nodes[0], &nodes[1]])?;
        }
        let pods = [
            VethPod::create(&nodes[0], 1, Addressing::Segment)?,
            VethPod::create(&nodes[1], 2, Addressing::Segment)?,
        ];
        for (pod, node) in pods.iter().zip(&nodes) {
            pod.set_mtu(node, TUNNELLED_MTU)?;
        }
        let mut peer = Peer::of(kind, nodes.into(), pods);
        peer.underlay = Some(underlay);
        Ok(peer)
    }

    pub(super) fn of(kind: Kind, nodes: Vec<Namespace>, pods: [VethPod; 2]) -> Peer {
        Peer {
            kind,
            forwarding: Vec::new(),
            attending: Vec::new(),
            redirections: Vec::new(),
            behind: None,
            pods,
            nodes,
            underlay: None,
            service: None,
            settings: Vec::new(),
        }
    }
}

/// How readers are told of [`uplinks_without_tunnel_offload`].
pub(super) const UPLINK_SETTING: [&str; 2] = [
    "uplinks",
    "segmentation before the wire (TSO, GSO, UDP and tunnel segmentation off), GRO on",
];

/// Makes both uplinks work as a network card without tunnel offload does:
/// what leaves was segmented before, what comes may be merged again. A veth
/// merges only what comes from an end that does not segment.
///
/// # Errors
/// When ethtool refuses.
pub(super) fn uplinks_without_tunnel_offload(
    underlay: &Underlay,
    nodes: [&Namespace; 2],
) -> Result<(), MeasureError> {
    for (number, node) in (1..).zip(nodes) {
        let port = Underlay::port(number);
        let off = [
            "ethtool",
            "-K",
            UPLINK,
            "tso",
            "off",
            "gso",
            "off",
            "tx-udp-segmentation",
            "off",
            "tx-udp_tnl-segmentation",
            "off",
            "tx-udp_tnl-csum-segmentation",
            "off",
            "gro",
            "on",
        ];
        node.run(&off)?;
        let wire = underlay.namespace();
        wire.run(&["ethtool", "-K", &port, "tso", "off"])?;
    }
    Ok(())
}

/// What VXLAN over IPv4 leaves of 1500 bytes.
pub(super) const TUNNELLED_MTU: u16 = 1450;

impl Subject for Peer {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn pods(&self) -> [Pod<'_>; 2] {
        let receiver = Pod {
            service: self.service,
            ..self.behind.as_ref().unwrap_or(&self.pods[1]).pod()
        };
        [self.pods[0].pod(), receiver]
    }

    fn entrance(&self) -> (&Namespace, &str) {
        (&self.nodes[0], &self.pods[0].host_end)
    }

    fn wire(&self) -> Option<Wire<'_>> {
        let underlay = self.underlay.as_ref()?;
        Some(Wire {
            node: &self.nodes[0],
            namespace: underlay.namespace(),
            port: Underlay::port(1),
            far_pids: self.forwarding.iter().skip(1).map(Process::id).collect(),
        })
    }

    fn pids(&self) -> Vec<u32> {
        self.forwarding.iter().map(Process::id).collect()
    }

    fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    fn cycle_pod(&self) -> Result<[Duration; 2], MeasureError> {
        let plugin = match self.kind {
            Kind::LinuxBridge => json!({"type": "bridge", "bridge": "br0"}),
            Kind::LinuxRouted => json!({"type": "ptp"}),
            _ => {
                return Err(MeasureError::Missing {
                    name: self.kind.name(),
                    reason: "no CNI plugin for it is at hand".to_owned(),
                });
            }
        };
        cycle(&self.nodes[0], plugin)
    }

    fn forget_connections(&mut self) -> Result<(), MeasureError> {
        match self.kind {
            Kind::NftMasquerade => {
                masquerade::forget(&self.nodes[0])?;
                masquerade::forget_outside(&self.pods[1].namespace)
            }
            _ => Ok(()),
        }
    }

    fn pause(&mut self) {
        for process in &mut self.forwarding {
            process.signal(Signal::SIGSTOP);
        }
    }

    fn resume(&mut self) {
        for process in &mut self.forwarding {
            process.signal(Signal::SIGCONT);
        }
    }
}

/// Adds and removes a pod by one of the reference plugins, addresses from
/// `host-local`.
fn cycle(node: &Namespace, mut config: Value) -> Result<[Duration; 2], MeasureError> {
    let pod = spinlane_tests::Pod::bare("cycled")?;
    config["cniVersion"] = json!("1.0.0");
    config["name"] = json!("pods");
    config["ipam"] = json!({
        "type": "host-local",
        "dataDir": lab_dir()?.join(node.name()),
        "subnet": "10.99.1.0/24",
    });
    let program = Path::new("/usr/lib/cni").join(config["type"].as_str().unwrap_or_default());
    let call = |command: &str| {
        let answer = pod
            .call(command, "eth0", config.clone())
            .invoke_program(&program, node)?;
        let took = answer.elapsed;
        answer.success(&format!("{command} by {}", program.display()))?;
        Ok::<_, MeasureError>(took)
    };
    Ok([call("ADD")?, call("DEL")?])
}
