//! A port from the engine's side: its XDP program, and the part that one lane
//! gets.
//!
//! The program is loaded once for each port, with a socket map of its own:
//! its entry point then needs no look-up of the device, and removing the port
//! closes everything that belongs to it and nothing else. It stays on the device
//! when the port or the process goes, and so do the programs at tc hooks of a
//! pod's interface (`tcx`), since the kernel waits for its readers whenever one
//! comes, goes or is replaced. The next process puts its sockets into the map
//! that the program has. Without a socket a port's hands everything to the
//! kernel, whose tc hook then drops it; the uplink's knows better
//! (`uplink::attachment`).

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use aya::maps::{Array, Map, MapData, MapError, XskMap};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, ProgramFd, SchedClassifier, TcAttachType, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use crossbeam::utils::CachePadded;

use crate::counters::PortCounters;
use crate::group_socket::GroupSocket;
use crate::packet_socket::PacketSocket;
use crate::stream_socket::{Behind, StreamSocket};
use crate::tcx::{self, Hook};
use crate::types::PortId;
use crate::umem::OwnerTag;
use crate::uplink_way::UplinkWay;
use crate::xdp_link::{self, Old, XdpMode};
use crate::xsk::queue::Queue;
use crate::xsk::socket::{KernelDrops, kernel_drops};

/// The compiled `bpf/port.bpf.c`, `bpf/pod.bpf.c` and `bpf/uplink.bpf.c`.
pub(crate) static PORT: &[u8] = aya::include_bytes_aligned!("../bpf/port.bpf.o");
pub(crate) static POD: &[u8] = aya::include_bytes_aligned!("../bpf/pod.bpf.o");
static UPLINK: &[u8] = aya::include_bytes_aligned!("../bpf/uplink.bpf.o");
const SOCKETS: &str = "sockets";
const TAKEN: &str = "spinlane_taken";
const LEAD: &str = "spinlane_lead";

/// Which program a port gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Takes every frame.
    Port,
    /// Takes what is the switch's.
    Uplink,
}

impl Kind {
    fn object(self) -> &'static [u8] {
        match self {
            Kind::Port => PORT,
            Kind::Uplink => UPLINK,
        }
    }

    pub(crate) fn program(self) -> &'static str {
        match self {
            Kind::Port => "spinlane_port",
            Kind::Uplink => "spinlane_uplink",
        }
    }
}

/// Which XDP modes to try on pod ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpChoice {
    /// Generic, because the pod keeps its offloads; native where the kernel
    /// lacks generic mode for chains of buffers.
    #[default]
    Auto,
    /// Generic only.
    Generic,
    /// Native first, generic where the driver refuses.
    Native,
    /// Native or not at all.
    NativeOnly,
}

impl XdpChoice {
    pub(crate) fn attempts(self) -> &'static [XdpMode] {
        match self {
            XdpChoice::Auto => &[XdpMode::Generic, XdpMode::Native],
            XdpChoice::Generic => &[XdpMode::Generic],
            XdpChoice::Native => &[XdpMode::Native, XdpMode::Generic],
            XdpChoice::NativeOnly => &[XdpMode::Native],
        }
    }
}

/// The XDP program could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The object does not load.
    #[error("the XDP program does not load: {0}; it needs Linux 6.6 and CAP_BPF")]
    Load(#[from] aya::EbpfError),
    /// The kernel refused the program, the map entry or the attachment.
    #[error("the kernel refused a program of the port: {0}")]
    Program(#[from] aya::programs::ProgramError),
    /// The kernel refused to attach an XDP program, or to say which one is
    /// there.
    #[error("cannot attach the XDP program: {0}; `ip link show` names one that is there already")]
    Attach(#[source] std::io::Error),
    /// The socket map refused a socket.
    #[error("the socket map of the XDP program refused a socket: {0}")]
    Map(#[from] aya::maps::MapError),
    /// The object lacks what it should have.
    #[error("the XDP program's object has no {0:?}: rebuild it with `make bpf`")]
    Missing(&'static str),
    /// The program at a pod's end is not as it should be.
    #[error("{0}; it needs Linux 6.6")]
    Lead(#[from] tcx::TcxError),
    /// A map's memory cannot be shared.
    #[error("cannot map the XDP program's echo identifiers: {0}; it needs Linux 5.5")]
    Share(std::io::Error),
}

/// Loads port programs. Kept for the process, because a fresh loader parses
/// the kernel's type information, which takes tens of milliseconds.
pub(crate) struct ProgramLoader {
    loader: Mutex<EbpfLoader<'static>>,
    /// The program of pods' ends, once a pod had need of it.
    pod: Mutex<Option<Ebpf>>,
    /// What an earlier process left on ports, by the kernel's number.
    earlier: OnceLock<HashMap<u32, Earlier>>,
}

/// A port's program of an earlier process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Earlier {
    /// Tells its instructions from others.
    tag: u64,
    /// The kernel's number of its map of sockets.
    sockets: u32,
}

impl Earlier {
    /// Has it hand frames to these sockets.
    fn take(&self, sockets: &[Queue]) -> Result<(), MapError> {
        let mut map = Map::from_map_data(MapData::from_id(self.sockets)?)?;
        put(sockets, &mut map)
    }
}

/// The ports' programs that the kernel has; none where it does not tell.
fn earlier_programs() -> HashMap<u32, Earlier> {
    let programs = loaded_programs().filter_map(Result::ok);
    let ports = programs.filter(|info| info.name_as_str() == Some(Kind::Port.program()));
    let with_map = ports.filter_map(|info| match info.map_ids().ok()??[..] {
        [sockets] => {
            let tag = info.tag();
            Some((info.id(), Earlier { tag, sockets }))
        }
        _ => None,
    });
    with_map.collect()
}

impl ProgramLoader {
    pub(crate) fn new() -> ProgramLoader {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        ProgramLoader {
            loader: Mutex::new(loader),
            pod: Mutex::default(),
            earlier: OnceLock::new(),
        }
    }

    /// What an earlier process left on ports. Asked first before there is any
    /// port of this one.
    pub(crate) fn earlier(&self) -> &HashMap<u32, Earlier> {
        self.earlier.get_or_init(earlier_programs)
    }

    /// A program with sockets in its map, not yet attached.
    pub(crate) fn load(&self, kind: Kind, sockets: &[Queue]) -> Result<Program, ProgramError> {
        let mut loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ebpf = loader.load(kind.object())?;
        drop(loader);
        let map = ebpf.map_mut(SOCKETS);
        put(sockets, map.ok_or(ProgramError::Missing(SOCKETS))?)?;
        Ok(Program { kind, ebpf })
    }

    /// Puts `bpf/pod.bpf.c` on an interface of the calling thread's network
    /// namespace, where it stays, unless it is there.
    pub(crate) fn lead_streams(&self, interface: tcx::Interface<'_>) -> Result<(), ProgramError> {
        self.with_lead(|lead| tcx::keep_one(interface, Hook::Egress, lead))
    }

    /// Whether `bpf/pod.bpf.c` is there.
    pub(crate) fn leads_streams(
        &self,
        interface: tcx::Interface<'_>,
    ) -> Result<bool, ProgramError> {
        self.with_lead(|lead| tcx::stands(interface, Hook::Egress, lead))
    }

    fn with_lead<T>(
        &self,
        work: impl FnOnce(&SchedClassifier) -> Result<T, tcx::TcxError>,
    ) -> Result<T, ProgramError> {
        let mut pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
        let ebpf = match &mut *pod {
            Some(ebpf) => ebpf,
            none => {
                let mut loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner);
                none.insert(load_lead(&mut loader, POD)?)
            }
        };
        Ok(work(lead(ebpf)?)?)
    }
}

/// Puts sockets into a map of sockets.
fn put(sockets: &[Queue], map: &mut Map) -> Result<(), MapError> {
    let mut map = XskMap::try_from(map)?;
    for (queue, socket) in sockets.iter().enumerate() {
        map.set(queue as u32, socket.fd().as_raw_fd(), 0)?;
    }
    Ok(())
}

/// Gives the kernel the program of pods' ends.
pub(crate) fn load_lead(loader: &mut EbpfLoader<'_>, object: &[u8]) -> Result<Ebpf, ProgramError> {
    let mut ebpf = loader.load(object)?;
    let program = ebpf.program_mut(LEAD).ok_or(ProgramError::Missing(LEAD))?;
    let classifier: &mut SchedClassifier = program.try_into()?;
    classifier.load()?;
    Ok(ebpf)
}

/// The program of pods' ends.
pub(crate) fn lead(ebpf: &Ebpf) -> Result<&SchedClassifier, ProgramError> {
    let program = ebpf.program(LEAD).ok_or(ProgramError::Missing(LEAD))?;
    Ok(program.try_into()?)
}

/// A loaded program.
pub(crate) struct Program {
    kind: Kind,
    ebpf: Ebpf,
}

impl Program {
    /// Attaches to a device that is the switch's alone, in the first mode that
    /// it takes, in the place of whatever it has. An earlier process' program
    /// that does the same stays, and gets the sockets.
    pub(crate) fn attach(
        &mut self,
        ifindex: u32,
        choice: XdpChoice,
        (sockets, earlier): (&[Queue], &HashMap<u32, Earlier>),
    ) -> Result<XdpMode, ProgramError> {
        self.load()?;
        let held = xdp_link::held(ifindex).map_err(ProgramError::Attach)?;
        if let Some(held) = held
            && choice.attempts().first() == Some(&held.mode)
            && let Some(earlier) = earlier.get(&held.program)
            && earlier.tag == self.xdp()?.info()?.tag()
            && earlier.take(sockets).is_ok()
        {
            return Ok(held.mode);
        }
        let mut held = held.map(|held| held.mode);
        let program = self.load()?.as_fd();
        let mut refused = None;
        for &mode in choice.attempts() {
            if let Some(other) = held.take_if(|held| *held != mode) {
                // No two modes at once.
                xdp_link::detach(ifindex, other, Old::Any).map_err(ProgramError::Attach)?;
            }
            match xdp_link::attach(ifindex, program, mode, Old::Any) {
                Ok(()) => return Ok(mode),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.map_or(ProgramError::Missing("XDP mode"), ProgramError::Attach))
    }

    /// Keeps what the port's stream socket gets from the host's own protocols.
    /// It stays with the interface: the kernel takes one away so slowly, and one
    /// after the other, that an agent with many pods would not end for seconds.
    pub(crate) fn keep_from_host(
        &mut self,
        interface: tcx::Interface<'_>,
    ) -> Result<(), ProgramError> {
        let program = self.ebpf.program_mut(TAKEN);
        let program = program.ok_or(ProgramError::Missing(TAKEN))?;
        let classifier: &mut SchedClassifier = program.try_into()?;
        classifier.load()?;
        Ok(tcx::keep_one(interface, Hook::Ingress, classifier)?)
    }

    /// Joins the node itself to the segment of a bridged uplink: frames pass
    /// between the uplink and the host port as `bpf/uplink.bpf.c` says. It ends
    /// with the program.
    pub(crate) fn join_node(
        &mut self,
        uplink: &PortSpec,
        host: &HostSide,
    ) -> Result<(), ProgramError> {
        let mut joint: Array<&mut MapData, [u32; 2]> = Array::try_from(self.map_mut("joint")?)?;
        joint.set(0, [uplink.ifindex, host.port_ifindex], 0)?;
        // The mark is taken off before anything is sent that has it.
        let hooks = [
            ("node_unmark", &uplink.name, TcAttachType::Ingress),
            ("node_in", &host.far_end, TcAttachType::Ingress),
            ("node_out", &uplink.name, TcAttachType::Egress),
        ];
        for (name, device, hook) in hooks {
            let program = self.ebpf.program_mut(name);
            let program = program.ok_or(ProgramError::Missing(name))?;
            let classifier: &mut SchedClassifier = program.try_into()?;
            classifier.load()?;
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            classifier.attach_with_options(device, hook, order)?;
        }
        Ok(())
    }

    fn xdp(&mut self) -> Result<&mut Xdp, ProgramError> {
        let name = self.kind.program();
        let program = self.ebpf.program_mut(name);
        let program = program.ok_or(ProgramError::Missing(name))?;
        Ok(program.try_into()?)
    }

    /// Gives it to the kernel, unless that has it.
    pub(crate) fn load(&mut self) -> Result<&ProgramFd, ProgramError> {
        let xdp = self.xdp()?;
        if xdp.fd().is_err() {
            xdp.load()?;
        }
        Ok(xdp.fd()?)
    }

    /// A map of the program.
    pub(crate) fn map_mut(&mut self, name: &'static str) -> Result<&mut Map, ProgramError> {
        self.ebpf.map_mut(name).ok_or(ProgramError::Missing(name))
    }
}

/// The part of a port that one lane holds.
#[derive(Debug)]
pub(crate) struct LanePort {
    pub(crate) id: PortId,
    /// The one that it sends by.
    pub(crate) queue: Queue,
    /// More that it only receives from: an uplink has its own number.
    pub(crate) more: Vec<Queue>,
    pub(crate) counters: Arc<CachePadded<PortCounters>>,
    /// The way out for super-frames; absent where the kernel refused it.
    pub(crate) bulk: Option<PacketSocket>,
    /// The way out for datagrams of the overlay that leave together: an
    /// uplink's.
    pub(crate) overlay: Option<UplinkWay>,
    /// The way out for super-frames without an overlay: an uplink's.
    pub(crate) segments: Option<UplinkWay>,
    /// Where copies of group frames come from: on one lane of a bridged
    /// uplink.
    pub(crate) groups: Option<GroupSocket>,
    /// Where a pod's TCP comes from.
    pub(crate) stream: Option<StreamSocket>,
    /// It has packets.
    pub(crate) stream_waits: bool,
    /// Packets that are asked of it in a round.
    pub(crate) stream_burst: usize,
    /// One of its packets, behind what the ring still has.
    pub(crate) behind: Behind,
    /// Descriptors wait for a flush.
    pub(crate) dirty: bool,
    /// The device is gone or down: what was sent may never be completed.
    pub(crate) gone: bool,
    /// The kernel refuses its next descriptor for ever.
    pub(crate) wedged: bool,
    /// Packets came since the last housekeeping.
    pub(crate) active: bool,
}

impl LanePort {
    pub(crate) fn new(id: PortId, queue: Queue, bulk: Option<PacketSocket>) -> LanePort {
        LanePort {
            id,
            queue,
            more: Vec::new(),
            groups: None,
            overlay: None,
            segments: None,
            stream: None,
            stream_waits: false,
            stream_burst: 1,
            behind: Behind::new(),
            bulk,
            counters: Arc::default(),
            dirty: false,
            gone: false,
            wedged: false,
            active: false,
        }
    }
}

impl LanePort {
    /// Its queues, the one that it sends by first.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &Queue> {
        std::iter::once(&self.queue).chain(&self.more)
    }

    /// As [`LanePort::queues`].
    pub(crate) fn queues_mut(&mut self) -> impl Iterator<Item = &mut Queue> {
        std::iter::once(&mut self.queue).chain(&mut self.more)
    }
}

/// What the engine keeps of an attached port.
pub(crate) struct PortHandle {
    pub(crate) spec: PortSpec,
    /// Its programs and their maps.
    pub(crate) program: Program,
    pub(crate) sockets: Vec<Arc<OwnedFd>>,
    /// The device reads and writes the frame memory by itself.
    pub(crate) zero_copy: bool,
    /// Its queues as the owner table knows them, lane by lane.
    pub(crate) tags: Vec<OwnerTag>,
    pub(crate) counters: Vec<Arc<CachePadded<PortCounters>>>,
}

impl PortHandle {
    /// A port whose lanes' parts are not made yet.
    pub(crate) fn new(spec: PortSpec, program: Program, queues: &[Queue]) -> PortHandle {
        PortHandle {
            spec,
            program,
            sockets: queues.iter().map(|q| Arc::clone(q.shared_fd())).collect(),
            zero_copy: false,
            tags: queues.iter().map(Queue::tag).collect(),
            counters: Vec::new(),
        }
    }

    /// What the kernel dropped before a lane could see it.
    pub(crate) fn kernel_drops(&self) -> KernelDrops {
        let mut sum = KernelDrops::default();
        for socket in &self.sockets {
            // A socket whose device is gone still answers; anything else is
            // not worth failing a statistic for.
            let drops = kernel_drops(socket.as_fd()).unwrap_or_default();
            sum.fill_empty += drops.fill_empty;
            sum.ring_full += drops.ring_full;
        }
        sum
    }

    /// One of its sockets, for another port that copies to share the memory
    /// with.
    pub(crate) fn copying_socket(&self) -> Option<Arc<OwnedFd>> {
        self.sockets.first().filter(|_| !self.zero_copy).cloned()
    }
}

/// A port to attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its number, not in use.
    pub id: PortId,
    /// The device: the host end of a veth, in the process's network namespace.
    pub ifindex: u32,
    /// The device's name, for messages.
    pub name: String,
}

/// The uplink to attach: an interface of the node, which the kernel goes on
/// using. It is neither moved nor renamed nor set up or down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkSpec {
    /// Number, device and name.
    pub port: PortSpec,
    /// Receive queues of the device; one socket is bound to each.
    pub queues: u32,
    /// Descriptors of each of its receive rings; 0 where it has none.
    pub receive_ring: u32,
    /// Whether to let it read and write the frame memory by itself, if its
    /// driver can.
    pub zero_copy: bool,
    /// XDP modes to try.
    pub xdp: XdpChoice,
    /// Whether the device cuts UDP datagrams that are handed to it together
    /// (`tx-udp-segmentation`); the kernel does if not.
    pub cuts_datagrams: bool,
    /// Whether it cuts TCP super-frames (`tx-tcp-segmentation` and
    /// `tx-tcp6-segmentation`); the kernel does if not.
    pub cuts_segments: bool,
    /// Whether the switch wants frames to other MAC addresses than the
    /// interface's own, and copies of group frames (layer 2).
    pub is_bridged: bool,
    /// Of a bridged uplink, what joins the node itself to the segment; without
    /// it the node and its own pods do not reach each other.
    pub host_side: Option<HostSide>,
}

/// The host port's veth pair, in the process's network namespace. Neither end
/// needs an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSide {
    /// Index of the port's own end.
    pub port_ifindex: u32,
    /// Name of the other end.
    pub far_end: String,
}

/// What an attached port uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// Whether the device and the frame memory share frames without a copy.
    pub zero_copy: bool,
    /// Lanes that hold a queue of it.
    pub lanes: usize,
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn object_was_built_from_the_source_beside_it() {
        let programs: [(&str, &[u8], &str); 3] = [
            (
                "port",
                include_bytes!("../bpf/port.bpf.c"),
                include_str!("../bpf/port.bpf.sha256"),
            ),
            (
                "pod",
                include_bytes!("../bpf/pod.bpf.c"),
                include_str!("../bpf/pod.bpf.sha256"),
            ),
            (
                "uplink",
                include_bytes!("../bpf/uplink.bpf.c"),
                include_str!("../bpf/uplink.bpf.sha256"),
            ),
        ];
        // In the order in which `make bpf` puts them together.
        let headers = [
            include_str!("../bpf/headers.h"),
            include_str!("../bpf/kernel.h"),
            include_str!("../bpf/sockets.h"),
        ]
        .concat();
        for (name, source, recorded) in programs {
            let mut sha256sum = Command::new("sha256sum")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("sha256sum (coreutils) is installed");
            let sources = [headers.as_bytes(), source].concat();
            let mut stdin = sha256sum.stdin.take().unwrap();
            stdin.write_all(&sources).unwrap();
            drop(stdin);
            let output = sha256sum.wait_with_output().unwrap().stdout;
            assert_eq!(
                String::from_utf8_lossy(&output).split_whitespace().next(),
                Some(recorded.trim()),
                "bpf/{name}.bpf.c or a header changed: rebuild the object with `make bpf`"
            );
        }
    }
}
