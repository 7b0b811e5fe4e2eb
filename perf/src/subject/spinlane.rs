//! Spinlane: the real agent with its default configuration, pods attached by
//! the real CNI plugin; on one node, or on two with VXLAN between them.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use spinlane_api::CONNECTIONS_FILE;
use spinlane_api::view::{PortKind, XdpMode};
use spinlane_tests::cluster::{Families, UPLINK, Underlay};
use spinlane_tests::{Cluster, Namespace, Node, NodeConfig, program, wait_for};

use crate::measure::{MeasureError, io_error};
use crate::node;
use crate::path::Path as Route;
use crate::subject::peer::{UPLINK_SETTING, uplinks_without_tunnel_offload};
use crate::subject::veth::VethPod;
use crate::subject::{
    Kind, LANE_CORE, Pod, SENDER_CORE, Subject, Wire, feature, forwarding, masquerade, on_off,
    setting, signal,
};

/// Pods of one node have a route MTU of 1500 then, as the peers' have: the
/// overlay's 50 bytes are in the underlay's.
const ROUTE_MTU_1500: &str = "mtu = 1550";
/// How long the agent may take to notice a pod that forwards.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);

/// An agent with two pods.
#[derive(Debug)]
pub struct Spinlane {
    kind: Kind,
    /// What the second pod forwards for.
    behind: Option<VethPod>,
    pods: Vec<AttachedPod>,
    /// Where pods send to, when not to each other.
    outside: Option<VethPod>,
    nodes: Nodes,
    host_end: String,
    settings: Vec<(String, String)>,
}

/// Where the pods are.
#[derive(Debug)]
enum Nodes {
    One(Box<Node>),
    /// The first pod is on the first one.
    Two(Cluster),
}

impl Nodes {
    fn start(kind: Kind) -> Result<Nodes, MeasureError> {
        if kind == Kind::SpinlaneVxlan {
            // Two lanes that poll get in each other's way on one core, so the
            // receiving node's has the generator's, as Open vSwitch's has.
            let mut cluster = Cluster::prepare(2, Families::V4, |config| {
                let core = match config.name.as_str() {
                    "n1" => LANE_CORE,
                    _ => SENDER_CORE,
                };
                config.cores = format!("[{core}]");
            })?;
            let nodes = [0, 1].map(|at| cluster.nodes()[at].namespace());
            uplinks_without_tunnel_offload(cluster.underlay(), nodes)?;
            for node in cluster.nodes_mut() {
                node.start_agent()?;
            }
            return Ok(Nodes::Two(cluster));
        }
        let mut config = NodeConfig::new("spinlane");
        ROUTE_MTU_1500.clone_into(&mut config.network);
        if kind == Kind::SpinlaneBusy {
            "busy".clone_into(&mut config.poll);
        }
        Ok(Nodes::One(Box::new(Node::start(&config)?)))
    }

    /// A node that masquerades, and a host outside.
    fn start_with_uplink() -> Result<(Nodes, Option<VethPod>), MeasureError> {
        let mut config = NodeConfig::new("masquerade");
        UPLINK.clone_into(&mut config.uplink);
        let mut node = Node::prepare(&config)?;
        let outside = masquerade::outside_of(node.namespace())?;
        node.start_agent()?;
        Ok((Nodes::One(Box::new(node)), Some(outside)))
    }

    fn all(&self) -> &[Node] {
        match self {
            Nodes::One(node) => std::slice::from_ref(node),
            Nodes::Two(cluster) => cluster.nodes(),
        }
    }

    fn first(&self) -> &Node {
        &self.all()[0]
    }

    fn last(&self) -> &Node {
        &self.all()[self.all().len() - 1]
    }
}

#[derive(Debug)]
struct AttachedPod {
    pod: spinlane_tests::Pod,
    /// How long the plugin took.
    took: Duration,
    v4: IpAddr,
    v6: IpAddr,
}

impl AttachedPod {
    fn attach(node: &Node, name: &str) -> Result<AttachedPod, MeasureError> {
        let mut pod = spinlane_tests::Pod::bare(name)?;
        let network = node.network("pods", json!({}));
        let answer = pod
            .call("ADD", "eth0", network.clone())
            .invoke(node.namespace())?;
        let took = answer.elapsed;
        pod.remember(answer, "eth0", &network)?;
        Ok(AttachedPod {
            took,
            v4: pod.v4()?,
            v6: pod.v6()?,
            pod,
        })
    }

    fn pod(&self) -> Pod<'_> {
        Pod {
            namespace: self.pod.namespace(),
            v4: self.v4,
            v6: self.v6,
            service: None,
        }
    }
}

impl Spinlane {
    /// Makes it from nothing, the lanes polling as `kind` says.
    ///
    /// # Errors
    /// [`MeasureError::Missing`] without the programs; others when the agent
    /// or the plugin fails.
    pub fn set_up(kind: Kind) -> Result<Spinlane, MeasureError> {
        for name in ["spinlane", "spinlane-cni"] {
            program(name).map_err(|error| MeasureError::Missing {
                name: "spinlane",
                reason: error.to_string(),
            })?;
        }
        let (nodes, outside) = match kind {
            Kind::SpinlaneMasquerade => Nodes::start_with_uplink()?,
            _ => (Nodes::start(kind)?, None),
        };
        let mut pods = vec![AttachedPod::attach(nodes.first(), "pod1")?];
        if outside.is_none() {
            pods.push(AttachedPod::attach(nodes.last(), "pod2")?);
        }
        let host_end = nodes
            .first()
            .ports()?
            .into_iter()
            .find(|port| port.kind == PortKind::Pod && port.pod == pods[0].pod.name())
            .map(|port| port.name)
            .ok_or_else(|| MeasureError::Unexpected {
                what: "`spinlane ports`".to_owned(),
                detail: "the first pod's port is not among them".to_owned(),
            })?;
        let behind = match kind {
            Kind::SpinlaneForwarding => Some(forwarding::behind(pods[1].pod.namespace())?),
            _ => None,
        };
        let mut subject = Spinlane {
            kind,
            behind,
            pods,
            outside,
            nodes,
            host_end,
            settings: Vec::new(),
        };
        if subject.behind.is_some() {
            subject.wait_until_noticed()?;
        }
        subject.settings = subject.read_settings()?;
        Ok(subject)
    }

    /// Sends through the second pod until the agent knows that it forwards.
    fn wait_until_noticed(&self) -> Result<(), MeasureError> {
        self.reach()?;
        forwarding::stream(&self.pods())?;
        let agent = self.nodes.first();
        wait_for(
            "the agent to notice a forwarding pod",
            NOTICE_TIMEOUT,
            || {
                let ports = agent.ports().ok()?;
                let name = self.pods[1].pod.name();
                let port = ports.into_iter().find(|port| port.pod == name)?;
                (!port.super_frames).then_some(())
            },
        )?;
        Ok(())
    }

    /// How long the plugin took to attach each pod, process start included.
    #[must_use]
    pub fn attach_times(&self) -> Vec<Duration> {
        self.pods.iter().map(|pod| pod.took).collect()
    }

    /// What the shipped default came to here.
    fn read_settings(&self) -> Result<Vec<(String, String)>, MeasureError> {
        let agent = self.nodes.first();
        let status = agent.status()?;
        let ports = agent.ports()?;
        let port = ports.iter().find(|port| port.name == self.host_end);
        let node = agent.namespace();
        let cores: Vec<String> = status.lanes.iter().map(|l| l.core.to_string()).collect();
        let pods = self.pods();
        let mut settings = vec![
            setting("poll", status.poll),
            setting("lanes on cores", cores.join(", ")),
        ];
        if let Some(port) = port {
            let mode = match port.xdp_mode {
                XdpMode::Native => "native",
                XdpMode::Generic => "generic",
            };
            settings.push(setting("XDP mode", mode));
            settings.push(setting("super-frames", on_off(port.super_frames)));
        }
        if self.behind.is_some() {
            settings.push(setting("the forwarding pod", "noticed"));
        }
        let steering = [
            ("host end", node, self.host_end.as_str()),
            ("pod", pods[0].namespace, "eth0"),
        ];
        for (end, namespace, device) in steering {
            let cpus = steering_of(namespace, device)?;
            settings.push(setting(&format!("{end} RPS"), cpus));
            let gro = feature(namespace, device, "generic-receive-offload")?;
            settings.push(setting(&format!("{end} GRO"), on_off(gro)));
        }
        let route = Route::resolve(&pods[0], pods[1].pinged(false))?;
        settings.push(setting("route MTU", route.mtu.to_string()));
        if self.kind == Kind::SpinlaneVxlan {
            let core = SENDER_CORE.to_string();
            settings.push(setting("the receiving node's lane on core", core));
            settings.push(UPLINK_SETTING.map(str::to_owned).into());
        }
        Ok(settings)
    }
}

impl Subject for Spinlane {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn pods(&self) -> [Pod<'_>; 2] {
        let receiver = match (&self.outside, &self.behind) {
            (Some(host), _) => host.pod(),
            (None, Some(behind)) => Pod {
                service: Some(forwarding::service(&self.pods[1].pod())),
                ..behind.pod()
            },
            (None, None) => self.pods[1].pod(),
        };
        [self.pods[0].pod(), receiver]
    }

    fn entrance(&self) -> (&Namespace, &str) {
        (self.nodes.first().namespace(), &self.host_end)
    }

    fn agent(&self) -> Option<&Node> {
        Some(self.nodes.first())
    }

    fn wire(&self) -> Option<Wire<'_>> {
        match &self.nodes {
            Nodes::One(_) => None,
            Nodes::Two(cluster) => Some(Wire {
                node: self.nodes.first().namespace(),
                namespace: cluster.underlay().namespace(),
                port: Underlay::port(1),
                far_pids: self.nodes.last().agent_pid().into_iter().collect(),
            }),
        }
    }

    fn pids(&self) -> Vec<u32> {
        let agents = self.nodes.all().iter();
        agents.filter_map(Node::agent_pid).collect()
    }

    fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    fn cycle_pod(&self) -> Result<[Duration; 2], MeasureError> {
        node::cycle_pod(self.nodes.first(), "cycled")
    }

    fn forget_connections(&mut self) -> Result<(), MeasureError> {
        match &mut self.nodes {
            Nodes::One(node) => forget(node)?,
            Nodes::Two(cluster) => cluster.nodes_mut().iter_mut().try_for_each(forget)?,
        }
        match &self.outside {
            Some(host) => masquerade::forget_outside(&host.namespace),
            None => Ok(()),
        }
    }

    fn pause(&mut self) {
        signal(&self.pids(), Signal::SIGSTOP);
    }

    fn resume(&mut self) {
        signal(&self.pids(), Signal::SIGCONT);
    }
}

/// Restarts an agent without the connections that it would go on with.
fn forget(node: &mut Node) -> Result<(), MeasureError> {
    node.stop()?;
    let file = node.run_dir().join(CONNECTIONS_FILE);
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(format!("removing {}", file.display()))(error));
        }
        _ => {}
    }
    node.start_agent()?;
    Ok(())
}

/// Receive packet steering of a device's queues, `off` where none is set.
fn steering_of(namespace: &Namespace, device: &str) -> Result<String, MeasureError> {
    let glob = Path::new("/sys/class/net").join(device).join("queues");
    let script = format!("cat {}/rx-*/rps_cpus", glob.display());
    let masks = namespace.sh(&script)?;
    let mut masks: Vec<&str> = masks
        .lines()
        .map(|mask| mask.trim_start_matches(['0', ',']))
        .collect();
    masks.dedup();
    Ok(match masks[..] {
        [] | [""] => "off".to_owned(),
        _ => format!("CPU mask {}", masks.join(" ")),
    })
}
