//! The engine on a real kernel, in a network namespace of the test's own.

use std::io::Write;
use std::process::Command as Program;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;
use crate::frame::Frame;
use crate::lane::{Lane, Wedged};

/// Runs a test in a fresh network namespace; the lanes that it starts live
/// there too. Without root it says so loudly and passes, except where
/// `CI=true` forbids that.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "this test needs root, and CI=true forbids skipping it"
        );
        // Not eprintln!: the harness would swallow the line of a passing test.
        let _ = std::io::stderr().write_all(b"\n!!! SKIPPED: an engine's test needs root\n");
        return;
    }
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            // The kernel's own packets (neighbour and listener discovery)
            // would be counted among the test's.
            let quiet = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
            std::fs::write(quiet, "1").unwrap();
            test();
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub(crate) fn ip(arguments: &str) {
    let done = Program::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// A veth pair, up; the port on its one end. The other is called `NAMEp`.
pub(crate) fn veth(name: &str, id: u16) -> PortSpec {
    veth_with_queues(name, id, 4)
}

/// The same with so many queues at each end.
pub(crate) fn veth_with_queues(name: &str, id: u16, queues: u32) -> PortSpec {
    let queues = format!("numrxqueues {queues} numtxqueues {queues}");
    ip(&format!(
        "link add name {name} {queues} type veth peer name {name}p {queues}"
    ));
    ip(&format!("link set dev {name} up"));
    ip(&format!("link set dev {name}p up"));
    PortSpec {
        id: PortId(id),
        ifindex: nix::net::if_::if_nametoindex(name).unwrap(),
        name: name.to_owned(),
    }
}

pub(crate) fn engine(lanes: usize, frames: usize) -> Engine {
    Engine::start(EngineConfig {
        cores: (0..lanes).collect(),
        poll: PollMode::Adaptive,
        frames,
        xdp: XdpChoice::Generic,
        connections: None,
    })
    .unwrap()
}

/// How long a test waits for what is to come: long enough for a machine that
/// does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// Has a lane do something, and waits for it.
pub(crate) fn on_lane<T: Send + 'static>(
    engine: &Engine,
    lane: usize,
    work: impl FnOnce(&mut Lane) -> T + Send + 'static,
) -> T {
    let (done, answer) = channel();
    engine.inner.lanes[lane].tell(Command::Run(Box::new(move |lane| {
        let _ = done.send(work(lane));
    })));
    answer.recv_timeout(PATIENCE).unwrap()
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Has lane 0 send a frame that asks for a checksum behind its end.
fn wedge(engine: &Engine, id: PortId, frame: Frame) {
    on_lane(engine, 0, move |lane| lane.send_spoiled(id, frame));
}

fn tag(engine: &Engine, id: PortId) -> Option<crate::umem::OwnerTag> {
    let ports = lock(&engine.inner.ports);
    ports.get(&id).map(|handle| handle.tags[0])
}

fn is_all_home(engine: &Engine) -> bool {
    let frames = engine.stats().frames;
    frames.free == frames.total
}

/// Takes every free frame of a lane and the depot.
fn hoard(engine: &Engine, lane: usize) -> Vec<Frame> {
    on_lane(engine, lane, |lane| {
        std::iter::from_fn(|| lane.pool.alloc()).collect()
    })
}

fn give_back(engine: &Engine, lane: usize, frames: Vec<Frame>) {
    on_lane(engine, lane, |lane| {
        frames.into_iter().for_each(|frame| lane.pool.free(frame));
    });
}

#[test]
fn a_socket_that_the_kernel_refuses_to_serve_is_rebuilt_once() {
    in_namespace(|| {
        let engine = engine(1, 512);
        let port = veth("a", 0);
        let id = port.id;
        engine.attach(port).unwrap();
        let old = tag(&engine, id).unwrap();
        let frame = on_lane(&engine, 0, |lane| lane.pool.alloc()).unwrap();
        wedge(&engine, id, frame);
        wait_until("the port is rebuilt", || engine.stats().rebuilds == 1);
        let new = tag(&engine, id).unwrap();
        assert_ne!(old, new);
        // A second report about the old socket comes too late.
        engine.inner.rebuild(Wedged { port: id, tag: old });
        assert_eq!(tag(&engine, id), Some(new));
        assert_eq!(engine.port_fault(id), None);
        engine.detach(id).unwrap();
        wait_until("every frame is home", || is_all_home(&engine));
    });
}

#[test]
fn a_port_that_cannot_be_rebuilt_says_so_and_is_tried_again() {
    in_namespace(|| {
        let engine = engine(1, 512);
        let (port, other) = (veth("a", 0), veth("b", 1));
        let (id, other_id) = (port.id, other.id);
        engine.attach(port).unwrap();
        engine.attach(other).unwrap();
        // Nothing is left to post on a fresh socket.
        let mut hoarded = hoard(&engine, 0);
        wedge(&engine, id, hoarded.pop().unwrap());
        wait_until("the fault is known", || engine.port_fault(id).is_some());
        let fault = engine.port_fault(id).unwrap();
        assert!(fault.contains("port a: "), "{fault}");
        assert_eq!(engine.stats().rebuilds, 0);
        give_back(&engine, 0, hoarded);
        wait_until("the port is rebuilt", || engine.stats().rebuilds == 1);
        assert_eq!(engine.port_fault(id), None);
        // One that is detached while it waits is left alone.
        let mut hoarded = hoard(&engine, 0);
        wedge(&engine, other_id, hoarded.pop().unwrap());
        wait_until("the fault is known", || {
            engine.port_fault(other_id).is_some()
        });
        engine.detach(other_id).unwrap();
        assert_eq!(engine.port_fault(other_id), None);
        give_back(&engine, 0, hoarded);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(engine.stats().rebuilds, 1);
        engine.detach(id).unwrap();
        wait_until("every frame is home", || is_all_home(&engine));
    });
}

#[test]
fn a_late_lane_keeps_no_frames_of_a_removed_port() {
    in_namespace(|| {
        let engine = engine(2, 512);
        let port = veth("a", 0);
        let id = port.id;
        engine.attach(port).unwrap();
        let (release, held) = channel::<()>();
        engine.inner.lanes[1].tell(Command::Run(Box::new(move |_| {
            let _ = held.recv();
        })));
        assert!(matches!(engine.detach(id), Err(PortError::Lane(_))));
        assert!(!is_all_home(&engine));
        drop(release);
        wait_until("every frame is home", || is_all_home(&engine));
        assert!(lock(&engine.inner.closing).is_empty());
    });
}

#[test]
fn a_lane_that_ended_is_noticed_and_its_frames_come_home() {
    in_namespace(|| {
        let engine = engine(2, 512);
        let (port, next) = (veth("a", 0), veth("b", 1));
        let id = port.id;
        engine.attach(port).unwrap();
        assert!(engine.stats().lanes.iter().all(|lane| lane.is_running));
        engine.inner.lanes[1].tell(Command::Run(Box::new(|_| {
            panic!("a lane's end, on purpose")
        })));
        wait_until("the lane has ended", || !engine.stats().lanes[1].is_running);
        assert!(engine.stats().lanes[0].is_running);
        assert!(matches!(engine.attach(next), Err(PortError::Lane(_))));
        engine.detach(id).unwrap();
        let depot = &engine.inner.depot;
        let kept = || engine.inner.lanes[0].counters.frames_free.get();
        wait_until("every frame is home", || depot.free() + kept() == 512);
        assert_eq!(engine.flows().len(), 0);
    });
}

#[test]
fn a_port_without_chunks_on_a_lane_is_refused_by_name() {
    in_namespace(|| {
        let engine = engine(2, 600);
        let port = veth("a", 0);
        let id = port.id;
        let mut hoarded = hoard(&engine, 0);
        // Enough by the accounts, but in the hands of one lane.
        let kept = hoarded.split_off(200);
        assert!(kept.len() < 512, "a lane keeps them all");
        give_back(&engine, 0, kept);
        wait_until("the lane's count is known", || {
            engine.inner.lanes[0].counters.frames_free.get() > 300
        });
        let error = engine.attach(port.clone()).unwrap_err();
        assert!(matches!(error, PortError::Frames { .. }), "{error}");
        assert!(error.to_string().starts_with("port a: "), "{error}");
        assert_eq!(engine.port_stats(id), None);
        give_back(&engine, 0, hoarded);
        engine.attach(port).unwrap();
    });
}

#[test]
fn lanes_that_started_end_when_a_later_one_does_not_start() {
    // Descriptors are the process's: a fresh one with few of them does it.
    const FEW: &str = "SPINLANE_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(FEW).is_some() {
        return start_with_few_descriptors();
    }
    let few = Program::new("prlimit")
        .arg("--nofile=24:24")
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "engine::tests::lanes_that_started_end_when_a_later_one_does_not_start",
        ])
        .env(FEW, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&few.stdout);
    assert!(few.status.success() && said.contains("1 passed"), "{said}");
}

fn start_with_few_descriptors() {
    let config = EngineConfig {
        cores: vec![0; 60],
        poll: PollMode::Interrupt,
        frames: 512,
        xdp: XdpChoice::Generic,
        connections: None,
    };
    let error = Engine::start(config).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, EngineError::Lane { lane: 1.., .. }),
        "{error}"
    );
    let lanes = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let name = task.as_ref().unwrap().path().join("comm");
            std::fs::read_to_string(name).is_ok_and(|name| name.starts_with("lane-"))
        });
    assert_eq!(lanes.count(), 0);
}

/// Chunks posted on an uplink of one lane, whose device has a receive ring of
/// that size.
fn posted(frames: usize, receive_ring: u32) -> u32 {
    let engine = engine(1, frames);
    let port = veth(&format!("u{frames}"), 0);
    let id = port.id;
    let uplink = UplinkSpec {
        port,
        queues: 1,
        receive_ring,
        zero_copy: false,
        xdp: XdpChoice::Auto,
        cuts_datagrams: true,
        cuts_segments: true,
        is_bridged: false,
        host_side: None,
    };
    engine.attach_uplink(uplink).unwrap();
    let posted = on_lane(&engine, 0, move |lane| {
        lane.ports.get(id).unwrap().queue.posted()
    });
    engine.detach(id).unwrap();
    wait_until("every frame is home", || is_all_home(&engine));
    posted
}

#[test]
fn an_uplink_posts_what_its_device_fills_at_once() {
    in_namespace(|| {
        // As long as the device's ring, which may be longer than a pod's,
        assert_eq!(posted(32_768, 4000), 4000);
        // up to a share of the frames, and not less than a pod's port.
        assert_eq!(posted(4096, 4000), 512);
        assert_eq!(posted(512, 0), FILL_MIN);
        // A device without a ring fills as much as one with the usual one.
        assert_eq!(posted(16_384, 0), 512);
    });
}

#[test]
fn generations_never_repeat_across_the_wrap() {
    let engine = engine(1, 512);
    engine
        .inner
        .generation
        .store(u32::MAX - 1, Ordering::Relaxed);
    let published: Vec<u32> = (0..3)
        .map(|_| engine.publish(Snapshot::default()).0)
        .collect();
    assert_eq!(published, [u32::MAX, 1, 2]);
}
