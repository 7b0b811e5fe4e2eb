//! What the node has: endpoints, addresses, links and the store that outlives
//! the agent; and the plan that turns them into the snapshot of the lanes.
//!
//! The way of an ADD: [`cni_server`] reads the request and the pod's
//! namespace → [`attach`] takes addresses ([`addressing`], [`ipam`]) and a port, records the
//! endpoint ([`store`]), makes and sets up the interface ([`link`],
//! [`offload`], [`steering`]), binds it to the data path ([`switch`]),
//! publishes the snapshot ([`inventory`] → [`plan`]) and answers. [`watch`]
//! follows what happens afterwards: stations, forwarding pods, vanished
//! interfaces, the host's addresses. [`reconcile`] brings a restarted agent
//! up to what it finds, [`cleanup`] removes everything.
//!
//! Everything here blocks and runs on threads of its own. Threads that enter
//! a pod's namespace never come back from it ([`netns`]).

pub mod addressing;
pub mod announce;
pub mod attach;
mod balancer;
pub mod beyond;
pub mod bound;
pub mod check;
pub mod cleanup;
pub mod cni_server;
pub mod detach;
pub mod device;
pub mod endpoint;
pub mod error;
pub mod fdb;
mod genetlink;
pub mod host_port;
pub mod host_routes;
pub mod inventory;
pub mod ipam;
pub mod kernel;
pub mod link;
pub mod locks;
mod masquerade;
pub mod metrics;
pub mod netlink;
pub mod netns;
pub mod offload;
mod own;
pub mod plan;
pub mod qdiscs;
pub mod reconcile;
mod reserved_ports;
pub mod routes;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod sequel;
pub mod setup;
pub mod shared;
pub mod steering;
pub mod store;
pub mod surroundings;
pub mod switch;
#[cfg(test)]
mod tests;
pub mod uplink;
pub mod view;
pub mod watch;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use spinlane_dataplane::snapshot::Snapshot;
use spinlane_dataplane::types::PortId;

use beyond::{Beyond, Tables};
use inventory::Inventory;
use kernel::Kernel;
use locks::Locks;
use metrics::Metrics;
use netlink::Netlink;
use netns::Sysfs;
pub use setup::Setup;

use crate::source;
use steering::Ends;
use store::Store;
use switch::Switch;

/// How long a stop waits for requests under way.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// Why the node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The namespace's sysfs.
    #[error(transparent)]
    Netns(#[from] netns::NetnsError),
    /// Links that were there.
    #[error(transparent)]
    Netlink(#[from] netlink::NetlinkError),
    /// Masquerade's ports.
    #[error(transparent)]
    Ports(#[from] reserved_ports::ReserveError),
    /// The host port.
    #[error(transparent)]
    HostPort(#[from] host_port::HostPortError),
    /// The socket of the CNI plugin.
    #[error(transparent)]
    Server(#[from] cni_server::ServerError),
    /// A thread or another resource of the process.
    #[error("cannot start {what}: {source}")]
    Process {
        /// What for.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Collectors.
    #[error("cannot make the node's metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// The node: answers the CNI plugin and keeps the snapshot true.
pub struct Node {
    core: Arc<Core>,
    threads: Vec<JoinHandle<()>>,
}

/// What the node's threads share.
pub(crate) struct Core {
    /// Replaced whole, under the inventory's lock.
    setup: ArcSwap<Setup>,
    switch: Arc<dyn Switch>,
    store: Store,
    inventory: Mutex<Inventory>,
    published: Mutex<Published>,
    locks: Locks,
    precedence: sequel::Precedence,
    sequels: sequel::Sequels,
    sysfs: Sysfs,
    /// Where the receive work of ports lands.
    steered: Mutex<HashMap<PortId, Ends>>,
    /// How reading the cluster's objects goes; none where nothing is read.
    source: Option<source::SharedHealth>,
    metrics: Metrics,
    started: Instant,
    /// Readable once the node is to stop, and for good.
    stop: OwnedFd,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Published {
    version: u64,
    snapshot: Snapshot,
    /// Counts what `beyond` follows.
    surroundings: u64,
    beyond: Beyond,
}

impl Node {
    /// Opens the store, repairs what a kill interrupted, attaches the pods
    /// that are there, and begins to answer the plugin. When it returns, pods
    /// can attach. Call it in the namespace that the agent works in.
    pub fn start(
        setup: Setup,
        source: Option<source::Watch>,
        switch: Arc<dyn Switch>,
    ) -> Result<Node, StartError> {
        let process = |what| move |source| StartError::Process { what, source };
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
            .map_err(|e| process("the stop event")(e.into()))?;
        let (store, contents) = Store::open(&setup.state_dir)?;
        if masquerade::is_wanted(&setup) {
            let ports = setup.network.masquerade_ports;
            reserved_ports::reserve(ports.first..=ports.last, &setup.state_dir)?;
        } else {
            reserved_ports::release(&setup.state_dir)?;
        }
        let core = Arc::new(Core {
            sysfs: Sysfs::open()?,
            steered: Mutex::default(),
            source: source.as_ref().map(source::Watch::health),
            metrics: Metrics::new()?,
            inventory: Mutex::default(),
            published: Mutex::default(),
            locks: Locks::default(),
            precedence: sequel::Precedence::default(),
            sequels: sequel::Sequels::default(),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            setup: ArcSwap::from_pointee(setup),
            switch,
            store,
            stop,
        });
        // Subscribed first, so that nothing that changes from now on is
        // missed.
        let watch = watch::Watch::subscribe(Arc::clone(&core))?;
        if let Some(source) = &source {
            core.set_nodes(source.cluster().nodes().cloned().collect());
        }
        core.take_kernel(Kernel::read(&mut Netlink::open()?)?);
        core.follow_own();
        // First, because the node needs its port more than any one pod does,
        // should the frames not suffice for all.
        core.start_host_port()?;
        core.follow_kernel()?;
        core.reconcile(contents)?;
        for notice in core.qdisc_notices() {
            tracing::warn!("{notice}");
        }
        core.align_pods();
        core.publish();
        core.switch.settle();
        core.release_former_uplinks()?;
        core.sync_host_routes()?;
        core.follow_gateways();
        core.refresh_neighbours(false);
        core.carry_out_pending_deletions();
        let server = cni_server::Server::bind(Arc::clone(&core))?;
        let spawn = |name: &'static str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map_err(process(name))
        };
        let mut threads = vec![
            spawn("watch", Box::new(move || watch.run()))?,
            spawn("cni-server", Box::new(move || server.run()))?,
        ];
        let followed = Arc::clone(&core);
        threads.push(spawn("sequel", Box::new(move || sequel::run(&followed)))?);
        let balanced = Arc::clone(&core);
        threads.push(spawn(
            "balancer",
            Box::new(move || balancer::run(&balanced)),
        )?);
        if let Some(source) = source {
            let core = Arc::clone(&core);
            let follow = move || source.run(core.stop.as_fd(), &*core);
            threads.push(spawn("source", Box::new(follow))?);
        }
        Ok(Node { core, threads })
    }

    /// The node's collectors.
    pub fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// Threads that have ended although nobody stopped the node.
    pub fn ended(&self) -> Vec<String> {
        let is_stopping = self.core.stopping();
        let threads = self.threads.iter();
        let threads = threads.filter(|thread| !is_stopping && thread.is_finished());
        let names = threads.filter_map(|thread| thread.thread().name());
        names.map(str::to_owned).collect()
    }

    /// Stops answering and waits for requests under way. Interfaces,
    /// addresses and the store stay as they are.
    pub fn stop(&mut self) {
        self.core.stopping.store(true, Ordering::Release);
        // An eventfd with room for a one always takes it.
        let _ = rustix::io::write(&self.core.stop, &1u64.to_ne_bytes());
        self.core.sequels.close();
        let deadline = Instant::now() + STOP_PATIENCE;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() && thread.join().is_err() {
                tracing::error!("a thread of the node panicked");
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

impl source::Sink for Core {
    fn changed(&self, cluster: &source::Cluster, change: source::Change) {
        if !change.nodes {
            return;
        }
        self.set_nodes(cluster.nodes().cloned().collect());
        self.follow_own();
        self.take_effect();
    }
}

impl Core {
    fn inventory(&self) -> MutexGuard<'_, Inventory> {
        self.inventory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the inventory in force. Whoever comes while another publishes
    /// waits and mostly finds its change published along.
    fn publish(&self) {
        let mut published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let follow = {
            let inventory = self.inventory();
            let surroundings = &inventory.surroundings;
            if inventory.version == published.version
                && surroundings.version == published.surroundings
            {
                return;
            }
            (surroundings.version != published.surroundings)
                .then(|| (surroundings.version, surroundings.view(inventory.host)))
        };
        if let Some((version, view)) = follow {
            published.beyond.follow(&view.inputs(&self.setup()));
            published.surroundings = version;
        }
        let (desired, version) = {
            let mut inventory = self.inventory();
            // Numbers of remote ends are given again.
            let vteps = &published.beyond.tables().vteps;
            inventory
                .fdb
                .retain_remote(|id| matches!(vteps.get(id.index()), Some(Some(_))));
            (inventory.desired(&self.setup()), inventory.version)
        };
        let snapshot = plan::plan(&desired, published.beyond.tables(), &published.snapshot);
        published.version = version;
        // Every generation makes the lanes look at each flow again.
        if plan::is_same(&snapshot, &published.snapshot) {
            return;
        }
        self.switch.publish(snapshot.clone());
        published.snapshot = snapshot;
    }

    /// Puts in force what changed beyond the pods, in the lanes and in the
    /// kernel.
    fn take_effect(&self) {
        self.publish();
        self.refresh_neighbours(false);
        if let Err(error) = self.mend_host_side() {
            tracing::error!(%error, "nodes and pods do not reach each other");
        }
        self.follow_gateways();
    }

    /// The snapshot in force.
    fn published_snapshot(&self) -> Snapshot {
        let published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        published.snapshot.clone()
    }

    /// What lies beyond this node, as published.
    fn tables(&self) -> Tables {
        let published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        published.beyond.tables().clone()
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Seconds since the start, for ages.
    fn now_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Unix seconds, for what outlives the process.
fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
