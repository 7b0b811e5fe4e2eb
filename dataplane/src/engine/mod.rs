//! The data path as control holds it: lanes, ports, snapshots, statistics.
//!
//! Every method may be called from any thread. [`Engine::attach`] and
//! [`Engine::detach`] take milliseconds (the kernel waits for its readers when
//! a socket closes); publishing takes microseconds. Lanes are only told over
//! queues; no lock is shared with them.

mod bind;
mod capture;
mod closing;
mod connections;
mod error;
mod lanes;
mod mender;
mod stats;
#[cfg(test)]
pub(crate) mod tests;
mod uplink;

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;

use closing::Closing;
use lanes::{ANSWER_TIMEOUT, Answer};

use crate::event::Event;
use crate::group_socket::GroupSocket;
use crate::lane::{Alarm, CaptureQueue, Command, LaneShared};
use crate::packet_socket::{PacketSocket, Way};
use crate::pipeline::FlowRecord;
use crate::port::{Kind, LanePort, PortHandle, ProgramLoader};
use crate::snapshot::Snapshot;
use crate::stream_socket::StreamSocket;
use crate::tables::connection::Connections;
use crate::tcx::Interface;
use crate::types::{Generation, PortId};
use crate::umem::{Depot, OwnerTable, Umem};
use crate::uplink_way::UplinkWay;
use crate::xsk::queue::{FILL_MIN, Queue};

pub use crate::lane::{CaptureSpec, CapturedPacket, Direction, PollMode};
pub use capture::Capture;
pub use connections::ConnectionCount;
pub use error::{EngineError, PortError};
pub use stats::{EngineStats, FrameStats, LaneStats, PortStats, Traffic};

pub use crate::port::{Attached, HostSide, PortSpec, ProgramError, UplinkSpec, XdpChoice};
pub use crate::uplink::attachment::release as release_uplink;
pub use crate::xdp_link::XdpMode;

/// What an engine is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// One lane is pinned to each of these CPUs.
    pub cores: Vec<usize>,
    /// How lanes wait.
    pub poll: PollMode,
    /// Chunks of the frame memory.
    pub frames: usize,
    /// XDP mode for pod ports.
    pub xdp: XdpChoice,
    /// File that connections lie in, to outlive the process; in memory
    /// (tmpfs), and nobody else's.
    pub connections: Option<PathBuf>,
}

/// The running data path.
pub struct Engine {
    inner: Arc<Inner>,
    mender: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    config: EngineConfig,
    umem: Arc<Umem>,
    connections: Arc<Connections>,
    /// Origin of the lanes' time.
    epoch: Instant,
    owners: Arc<OwnerTable>,
    depot: Arc<Depot>,
    loader: ProgramLoader,
    snapshot: Arc<ArcSwap<Snapshot>>,
    retired: Mutex<Vec<Arc<Snapshot>>>,
    generation: AtomicU32,
    lanes: Vec<Arc<LaneShared>>,
    threads: Mutex<Vec<JoinHandle<Vec<LanePort>>>>,
    ports: Mutex<HashMap<PortId, PortHandle>>,
    /// Serialises attaching and detaching of one port number.
    changes: Mutex<()>,
    captures: Mutex<Vec<Arc<CaptureQueue>>>,
    events: Mutex<Vec<rtrb::Consumer<Event>>>,
    event_alarm: Arc<Alarm>,
    kernel_drops: Mutex<KernelDropsOfGonePorts>,
    /// Ports that some lane has not handed over yet.
    closing: Mutex<Vec<Closing>>,
    /// Ports whose sockets could not be rebuilt so far.
    broken: Mutex<HashMap<PortId, mender::Broken>>,
    rebuilds: AtomicU64,
    uplink: Mutex<Option<uplink::Uplink>>,
    stopping: AtomicBool,
    /// Whether a queue was waited for in vain since one was last bound.
    is_impatient: AtomicBool,
}

/// What the kernel dropped at ports that are detached by now.
#[derive(Debug, Default)]
struct KernelDropsOfGonePorts {
    fill_empty: u64,
    ring_full: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make these tables wrong: each change is one
    // insertion or removal.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Maps the frame memory and starts the lanes; no port is attached yet.
    pub fn start(config: EngineConfig) -> Result<Engine, EngineError> {
        if config.cores.is_empty() || config.cores.len() > 63 {
            return Err(EngineError::Lanes(config.cores.len()));
        }
        let umem = Arc::new(Umem::new(config.frames)?);
        let (wedged, to_mend) = channel();
        let (connections, epoch) = connections::open(config.connections.as_deref());
        let mut inner = Inner {
            connections: Arc::new(connections),
            epoch,
            owners: Arc::new(OwnerTable::new(config.frames)),
            depot: Depot::new(config.frames),
            umem,
            loader: ProgramLoader::new(),
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
            retired: Mutex::default(),
            generation: AtomicU32::new(0),
            lanes: Vec::new(),
            threads: Mutex::default(),
            ports: Mutex::default(),
            changes: Mutex::default(),
            captures: Mutex::default(),
            events: Mutex::default(),
            event_alarm: Arc::new(
                Alarm::new().map_err(|source| EngineError::Lane { lane: 0, source })?,
            ),
            kernel_drops: Mutex::default(),
            closing: Mutex::default(),
            broken: Mutex::default(),
            rebuilds: AtomicU64::new(0),
            uplink: Mutex::default(),
            stopping: AtomicBool::new(false),
            is_impatient: AtomicBool::new(false),
            config,
        };
        let lanes = inner.start_lanes(&wedged);
        // From here on, dropping the engine stops what has started.
        let engine = Engine {
            inner: Arc::new(inner),
            mender: Mutex::default(),
        };
        lanes?;
        let mender = mender::start(Arc::clone(&engine.inner), to_mend)?;
        *lock(&engine.mender) = Some(mender);
        Ok(engine)
    }

    /// Transmit and receive queues that a veth needs for this engine. Generic
    /// mode takes the recorded transmit queue for "receive queue + 1"
    /// (net/core/dev.c, `netif_get_rxqueue`), so several lanes need one more.
    pub fn veth_queues(&self) -> u32 {
        match self.inner.lanes.len() as u32 {
            1 => 1,
            lanes => lanes + 1,
        }
    }

    /// The CPUs that lanes are pinned to, by lane.
    pub fn cores(&self) -> &[usize] {
        &self.inner.config.cores
    }

    /// Attaches a port: one socket for each lane, the XDP program, and the
    /// lanes poll it. The device may still be down.
    pub fn attach(&self, spec: PortSpec) -> Result<Attached, PortError> {
        let _change = lock(&self.inner.changes);
        self.inner.attach(spec)
    }

    /// Attaches the uplink: a socket on each of its queues, and an XDP program
    /// that leaves to the kernel what is not the switch's. What is, follows
    /// the snapshot in force. Without a process that takes them, the kernel
    /// has all frames again but those of masqueraded connections, which the
    /// program keeps from it until the next process is there;
    /// [`release_uplink`] ends that. The same holds meanwhile when the port is
    /// attached already: it gets sockets for what its device has now.
    ///
    /// When it fails there is no uplink, the one that was attached before
    /// included, and the kernel has all frames. So it is where a lane does not
    /// hand over the former sockets within five seconds ([`PortError::Lane`]):
    /// the queues are theirs until it does, and asking again succeeds after
    /// that. What the lanes handed over is closed, and its frames come home,
    /// once the last one has.
    pub fn attach_uplink(&self, spec: UplinkSpec) -> Result<Attached, PortError> {
        let _change = lock(&self.inner.changes);
        let id = spec.port.id;
        lock(&self.inner.broken).remove(&id);
        let former = self.inner.remove(id);
        let closed = former.map_or(Ok(()), |former| self.inner.close(former));
        let attached = closed.and_then(|()| self.inner.attach_uplink(spec));
        if attached.is_err() {
            self.inner.forget_uplink(id);
        }
        attached
    }

    /// Has a pod's interface, which the calling thread's network namespace
    /// holds, lead its TCP to the stream sockets of its port. It does so for
    /// as long as it exists, whatever becomes of this process; asking again
    /// mends what was changed meanwhile.
    pub fn lead_streams(&self, name: &str, index: u32) -> Result<(), ProgramError> {
        self.inner.loader.lead_streams(Interface { name, index })
    }

    /// Whether a pod's interface, which the calling thread's network namespace
    /// holds, still does what [`Engine::lead_streams`] made it do.
    pub fn leads_streams(&self, name: &str, index: u32) -> Result<bool, ProgramError> {
        self.inner.loader.leads_streams(Interface { name, index })
    }

    /// Fragments of the overlay's outer packets that were left to the kernel.
    pub fn outer_fragments(&self) -> u64 {
        self.inner.outer_fragments()
    }

    /// Detaches a port and waits until its frames are home. Does nothing when
    /// it is not attached.
    pub fn detach(&self, id: PortId) -> Result<(), PortError> {
        let closing = {
            let _change = lock(&self.inner.changes);
            lock(&self.inner.broken).remove(&id);
            self.inner.forget_uplink(id);
            let closing = self.inner.remove(id);
            self.inner.end_captures(id);
            closing
        };
        self.inner.connections.forget(id);
        // Beside other changes: each close waits for the kernel's readers.
        closing.map_or(Ok(()), |closing| self.inner.close(closing))
    }

    /// Puts a snapshot in force and returns its generation.
    pub fn publish(&self, mut snapshot: Snapshot) -> Generation {
        let mut retired = lock(&self.inner.retired);
        // Relaxed: ordered by the lock.
        let last = self.inner.generation.load(Ordering::Relaxed);
        let generation = Generation(last).next();
        self.inner.generation.store(generation.0, Ordering::Relaxed);
        snapshot.generation = generation;
        retired.push(self.inner.put_in_force(Arc::new(snapshot)));
        // Lanes never free: an old snapshot waits here until nobody else
        // holds it.
        retired.retain(|old| Arc::strong_count(old) > 1);
        generation
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.snapshot.load_full()
    }

    /// Readable while events wait.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.inner.event_alarm.fd()
    }

    /// Moves the waiting events into `out` and silences [`Engine::event_fd`].
    pub fn drain_events(&self, out: &mut Vec<Event>) {
        self.inner.event_alarm.clear();
        for queue in lock(&self.inner.events).iter_mut() {
            while let Ok(event) = queue.pop() {
                out.push(event);
            }
        }
    }

    /// The engine's figures.
    pub fn stats(&self) -> EngineStats {
        self.inner.stats()
    }

    /// A port's figures; `None` when it is not attached.
    pub fn port_stats(&self, id: PortId) -> Option<PortStats> {
        self.inner.port_stats(id)
    }

    /// What ports and lanes have done so far, for who looks often: no drops of
    /// the kernel's, which cost a system call each.
    pub fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }

    /// Why a port that control attached carries nothing at the moment.
    pub fn port_fault(&self, id: PortId) -> Option<String> {
        let broken = lock(&self.inner.broken);
        broken.get(&id).map(|port| port.fault.clone())
    }

    /// Every lane's flows. Asks the lanes and waits for their answers.
    pub fn flows(&self) -> Vec<FlowRecord> {
        if self.inner.stopping.load(Ordering::Acquire) {
            return Vec::new();
        }
        let answers = self.inner.ask(Command::Flows);
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        answers
            .iter()
            .enumerate()
            .filter_map(
                |(lane, answer)| match self.inner.answer(lane, answer, deadline) {
                    Answer::Got(flows) => Some(flows),
                    Answer::Late | Answer::Dead => None,
                },
            )
            .flatten()
            .collect()
    }

    /// Copies packets until the capture is dropped, or the one port that it is
    /// of is detached.
    pub fn capture(&self, spec: CaptureSpec) -> io::Result<Capture> {
        let queue = Arc::new(CaptureQueue::new(spec, Alarm::new()?));
        self.inner
            .change_captures(|captures| captures.push(Arc::clone(&queue)));
        Ok(Capture {
            queue,
            inner: Arc::clone(&self.inner),
        })
    }

    /// Stops the lanes and closes all ports, side by side. Later calls do
    /// nothing.
    pub fn stop(&self) {
        // AcqRel: one caller stops; what it did is visible to the others.
        if self.inner.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        self.inner.stop();
        self.inner.leave_uplink();
        // The mender ends when the last lane's sender is gone.
        if let Some(mender) = lock(&self.mender).take() {
            let _ = mender.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Opens a stream socket for each lane's part of a port.
fn open_streams(parts: &mut [LanePort], ifindex: u32) -> io::Result<()> {
    let mut sockets: Vec<StreamSocket> = Vec::with_capacity(parts.len());
    for _ in 0..parts.len() {
        let socket = StreamSocket::open(ifindex)?;
        if parts.len() > 1 {
            socket.share(sockets.first())?;
        }
        sockets.push(socket);
    }
    for (part, socket) in parts.iter_mut().zip(sockets) {
        part.stream = Some(socket);
    }
    Ok(())
}

impl Inner {
    /// Attaches a port, or the uplink again.
    fn attach(&self, spec: PortSpec) -> Result<Attached, PortError> {
        if let Some(uplink) = self.uplink_spec(spec.id) {
            return self.attach_uplink(uplink);
        }
        self.admit(&spec)?;
        let queues = (0..self.lanes.len() as u32)
            .map(|queue| self.bind(&spec, queue))
            .collect::<Result<Vec<_>, _>>()?;
        let failed = |source| PortError::program(&spec, source);
        let mut program = self.loader.load(Kind::Port, &queues).map_err(failed)?;
        let sockets = (&queues[..], self.loader.earlier());
        let xdp_mode = program
            .attach(spec.ifindex, self.config.xdp, sockets)
            .map_err(failed)?;
        let interface = Interface {
            name: &spec.name,
            index: spec.ifindex,
        };
        program.keep_from_host(interface).map_err(failed)?;
        let handle = PortHandle::new(spec, program, &queues);
        self.join(handle, queues, xdp_mode)
    }

    /// Deals the queues of a port out to the lanes and lets them poll it.
    fn join(
        &self,
        mut handle: PortHandle,
        queues: Vec<Queue>,
        xdp_mode: XdpMode,
    ) -> Result<Attached, PortError> {
        let (id, name) = (handle.spec.id, handle.spec.name.clone());
        let ifindex = handle.spec.ifindex;
        let mut parts: Vec<LanePort> = Vec::with_capacity(self.lanes.len());
        for (at, queue) in queues.into_iter().enumerate() {
            match parts.get_mut(at % self.lanes.len()) {
                Some(part) => part.more.push(queue),
                None => {
                    let bulk = PacketSocket::open(ifindex, Way::PastDiscipline).ok();
                    parts.push(LanePort::new(id, queue, bulk));
                }
            }
        }
        let uplink = self.uplink_spec(id);
        if let Some(uplink) = &uplink {
            for part in &mut parts {
                part.overlay = UplinkWay::of_datagrams(ifindex, uplink.cuts_datagrams).ok();
                part.segments = UplinkWay::of_segments(ifindex, uplink.cuts_segments).ok();
            }
        }
        if uplink.is_none() {
            let failed = |source| PortError::Streams {
                port: name.clone(),
                source,
            };
            open_streams(&mut parts, ifindex).map_err(failed)?;
        }
        if let Some(first) = parts.first_mut()
            && uplink.is_some_and(|uplink| uplink.is_bridged)
        {
            let groups = GroupSocket::open(ifindex);
            let failed = |source| PortError::Groups {
                port: name.clone(),
                source,
            };
            first.groups = Some(groups.map_err(failed)?);
        }
        let attached = Attached {
            xdp_mode,
            zero_copy: handle.zero_copy,
            lanes: parts.len(),
        };
        handle.counters = parts
            .iter()
            .map(|part| Arc::clone(&part.counters))
            .collect();
        lock(&self.ports).insert(id, handle);
        if let Err(error) = self.hand_out(name, parts) {
            if let Some(closing) = self.remove(id) {
                // Of two failures the first says more.
                let _ = self.close(closing);
            }
            return Err(error);
        }
        Ok(attached)
    }

    /// Gives each lane its part of a port and waits until chunks are posted
    /// on all of them: a packet before that would be lost.
    fn hand_out(&self, name: String, parts: Vec<LanePort>) -> Result<(), PortError> {
        let mut parts = parts.into_iter();
        let answers = self.ask_each(|reply| {
            let part = parts.next()?;
            Some(Command::AddPort(Box::new(part), reply))
        });
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        for (lane, answer) in answers.iter().enumerate() {
            match self.answer(lane, answer, deadline) {
                Answer::Got(joined) if joined.posted >= FILL_MIN => {
                    if let Some(error) = joined.unwatched {
                        tracing::warn!(port = name, lane, %error, "epoll refuses the port's stream socket, which costs the lane a system call for each look at it; raise fs.epoll.max_user_watches");
                    }
                }
                Answer::Got(_) => {
                    return Err(PortError::Frames {
                        port: name,
                        free: self.depot.free(),
                        needed: u64::from(FILL_MIN),
                    });
                }
                Answer::Late | Answer::Dead => return Err(PortError::Lane(name)),
            }
        }
        Ok(())
    }

    /// Whether another port can be had.
    fn admit(&self, spec: &PortSpec) -> Result<(), PortError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(PortError::Lane(spec.name.clone()));
        }
        let taken = lock(&self.ports).contains_key(&spec.id);
        if taken || spec.id.index() >= PortId::LIMIT {
            return Err(PortError::Id(spec.id));
        }
        let needed = u64::from(FILL_MIN) * self.lanes.len() as u64;
        let free = self.depot.free()
            + self
                .lanes
                .iter()
                .map(|l| l.counters.frames_free.get())
                .sum::<u64>();
        if free < 2 * needed {
            return Err(PortError::Frames {
                port: spec.name.clone(),
                free,
                needed,
            });
        }
        Ok(())
    }

    fn change_captures(&self, change: impl FnOnce(&mut Vec<Arc<CaptureQueue>>)) {
        let mut captures = lock(&self.captures);
        change(&mut captures);
        for lane in &self.lanes {
            lane.tell(Command::Capture(captures.clone()));
        }
    }
}
