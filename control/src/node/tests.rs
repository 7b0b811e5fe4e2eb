//! The node against the kernel, without a data path: a switch that only
//! writes down what it is told.

mod many;
mod recorder;
mod sequel;

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spinlane_api::cni::{
    AddRequest, AddResult, Address, CheckRequest, Delegated, Pod, Route, code,
};
use spinlane_dataplane::event::Event;
use spinlane_dataplane::snapshot::{Destination, Location, Role};
use spinlane_dataplane::types::{MacAddr, SegmentId};

use super::netlink::Netlink;
use super::routes;
use super::{Node, Setup, link, netns, samples};
use crate::config::Segment;
use recorder::Recorder;

/// A namespace that lives as long as its descriptor.
fn new_netns() -> OwnedFd {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        netns::own().unwrap()
    })
    .join()
    .unwrap()
}

/// Runs a test in a fresh namespace, as the agent's.
fn in_fresh_netns(name: &str, test: impl FnOnce() + Send + 'static) {
    if !spinlane_tests::root_or_skip(name) {
        return;
    }
    let agent = new_netns();
    std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(agent.as_fd(), None).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap();
        netlink.request(link::set_up("lo", lo.index)).unwrap();
        test();
    })
    .join()
    .unwrap();
}

fn setup(dir: &Path) -> Setup {
    Setup {
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        pod_cidrs: vec![
            "10.244.1.0/24".parse().unwrap(),
            "fd00:10:244:1::/64".parse().unwrap(),
        ],
        segments: vec![Segment {
            name: "blue".into(),
            vni: None,
            cidrs: vec!["10.50.0.0/24".parse().unwrap()],
            guard: false,
            stations: vec![],
        }],
        receive_cpus: vec![0],
        spare_cpus: vec![0],
        run_dir: dir.join("run"),
        state_dir: dir.join("state"),
        ..samples::setup()
    }
}

fn request(container: &str, ifname: &str) -> AddRequest {
    let mut request = samples::request(container);
    request.attachment.ifname = ifname.into();
    request.pod = Pod {
        namespace: "default".into(),
        name: container.into(),
        uid: String::new(),
    };
    request.netns_path = "/proc/thread-self/ns/net".into();
    request
}

fn check_of(request: &AddRequest, result: &AddResult) -> CheckRequest {
    CheckRequest {
        attachment: request.attachment.clone(),
        netns_path: request.netns_path.clone(),
        addresses: result.addresses.clone(),
        mac: Some(result.interfaces[1].mac.clone()),
    }
}

fn host_ends() -> Vec<String> {
    let mut names = super::reconcile::our_links().unwrap();
    names.retain(|name| name.starts_with("sl") && name != "spinlane0" && name != "spinlane1");
    names
}

fn run(command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let status = std::process::Command::new(words[0])
        .args(&words[1..])
        .status()
        .unwrap();
    assert!(status.success(), "{command}");
}

fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if probe() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not happen within 30 s");
}

#[test]
fn an_attachment_comes_and_goes() {
    in_fresh_netns("an_attachment_comes_and_goes", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        let pod = new_netns();
        let add = request("c1", "eth0");
        let result = node.core.add(&add, pod.as_fd()).unwrap();
        let addresses: Vec<String> = result
            .addresses
            .iter()
            .map(|a| format!("{}/{}", a.address, a.prefix_len))
            .collect();
        assert_eq!(addresses, ["10.244.1.2/32", "fd00:10:244:1::2/128"]);
        assert_eq!(result.interfaces[1].mac, "0a:58:0a:f4:01:02");
        let routes: Vec<&str> = result.routes.iter().map(|r| r.dst.as_str()).collect();
        assert_eq!(
            routes,
            ["10.244.1.1/32", "0.0.0.0/0", "fd00:10:244:1::1/128", "::/0"]
        );
        let snapshot = switch.snapshot();
        let to = |text: &str| snapshot.host(text.parse().unwrap());
        assert!(matches!(to("10.244.1.2"), Some(Destination::Pod(_))));
        assert!(matches!(to("fd00:10:244:1::2"), Some(Destination::Pod(_))));
        assert!(matches!(to("192.0.2.1"), Some(Destination::Host(_))));
        let check = check_of(&add, &result);
        node.core.check(&check, pod.as_fd()).unwrap();
        let again = node.core.add(&add, pod.as_fd()).unwrap_err();
        assert_eq!(again.failure().code, code::INVALID_ENVIRONMENT, "{again}");
        node.core.delete(&add.attachment).unwrap();
        node.core.delete(&add.attachment).unwrap();
        assert!(host_ends().is_empty());
        assert_eq!(switch.ports(), ["spinlane1"]);
        let gone = node.core.check(&check, pod.as_fd()).unwrap_err();
        assert_eq!(gone.failure().code, code::DIFFERS, "{gone}");
        let next = node.core.add(&add, pod.as_fd()).unwrap();
        assert_eq!(next.addresses[0].address.to_string(), "10.244.1.3");
    });
}

#[test]
fn check_sees_each_difference() {
    in_fresh_netns("check_sees_each_difference", || {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(setup(dir.path()), None, Recorder::new() as _).unwrap();
        let changes: [(&str, &str); 5] = [
            ("address", "ip address del 10.244.1.2/32 dev eth0"),
            ("route", "ip route del default"),
            (
                "route",
                "ip -6 route change default via fe80::1 dev eth0 mtu 9000",
            ),
            ("MTU", "ip link set eth0 mtu 1400"),
            ("MAC", "ip link set eth0 address 02:00:00:00:00:01"),
        ];
        for (number, (word, command)) in changes.into_iter().enumerate() {
            let pod = new_netns();
            let add = request(&format!("c{number}"), "eth0");
            let result = node.core.add(&add, pod.as_fd()).unwrap();
            let command = command.replace("10.244.1.2", &result.addresses[0].address.to_string());
            netns::run(pod.as_fd(), || {
                run(&command);
                Ok::<(), netns::NetnsError>(())
            })
            .unwrap();
            let error = node
                .core
                .check(&check_of(&add, &result), pod.as_fd())
                .unwrap_err();
            assert_eq!(error.failure().code, code::DIFFERS, "{command}: {error}");
            assert!(error.to_string().contains(word), "{command}: {error}");
        }
    });
}

#[test]
fn a_failed_add_leaves_nothing() {
    in_fresh_netns("a_failed_add_leaves_nothing", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        let pod = new_netns();
        let add = request("c1", "eth0");
        switch.state.lock().unwrap().refuse = true;
        let error = node.core.add(&add, pod.as_fd()).unwrap_err();
        assert_eq!(error.failure().code, code::EXHAUSTED, "{error}");
        assert!(host_ends().is_empty());
        switch.state.lock().unwrap().refuse = false;
        switch.state.lock().unwrap().panic = true;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            drop(node.core.add(&add, pod.as_fd()));
        }));
        assert!(panicked.is_err());
        assert!(host_ends().is_empty());
        switch.state.lock().unwrap().panic = false;
        node.core.add(&add, pod.as_fd()).unwrap();
        // The pod has an eth0 now, made for another attachment.
        let other = request("c2", "eth0");
        let error = node.core.add(&other, pod.as_fd()).unwrap_err();
        assert_eq!(error.failure().code, code::INVALID_ENVIRONMENT, "{error}");
        assert!(error.to_string().contains("eth0"), "{error}");
        assert_eq!(host_ends().len(), 1);
        assert_eq!(node.endpoints(), 1);
        let mut taken = request("c3", "eth0");
        taken.ips = vec!["10.244.1.44".into()];
        node.core.add(&taken, new_netns().as_fd()).unwrap();
        taken.attachment.container_id = "c4".into();
        let error = node.core.add(&taken, new_netns().as_fd()).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
    });
}

#[test]
fn a_restart_finds_its_pods_and_repairs_the_rest() {
    in_fresh_netns("a_restart_finds_its_pods_and_repairs_the_rest", || {
        let dir = tempfile::tempdir().unwrap();
        let pods: Vec<OwnedFd> = (0..4).map(|_| new_netns()).collect();
        let adds: Vec<AddRequest> = (0..4).map(|n| request(&format!("c{n}"), "eth0")).collect();
        {
            let mut node = Node::start(setup(dir.path()), None, Recorder::new() as _).unwrap();
            for (add, pod) in adds.iter().zip(&pods) {
                node.core.add(add, pod.as_fd()).unwrap();
            }
            // As a kill in the middle of an ADD and of a DEL leaves them.
            for (index, state) in [
                (1, super::endpoint::State::Adding),
                (2, super::endpoint::State::Deleting),
            ] {
                let mut endpoint = node.core.inventory().endpoints[&adds[index].attachment]
                    .endpoint
                    .clone();
                endpoint.state = state;
                let change = super::store::Change::Put(Box::new(endpoint));
                node.core.store.write(vec![change]).unwrap();
            }
            node.stop();
        }
        // The third is deleted while nobody answers.
        let pending = dir
            .path()
            .join("run")
            .join(spinlane_api::PENDING_DELETIONS_DIR);
        std::fs::create_dir_all(&pending).unwrap();
        let text = serde_json::to_vec(&adds[3].attachment).unwrap();
        std::fs::write(pending.join("x.json"), text).unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        assert_eq!(node.endpoints(), 1);
        assert_eq!(host_ends().len(), 1);
        assert_eq!(switch.ports().len(), 2);
        assert_eq!(std::fs::read_dir(&pending).unwrap().count(), 0);
        let snapshot = switch.snapshot();
        let address = "10.244.1.2".parse().unwrap();
        assert!(matches!(snapshot.host(address), Some(Destination::Pod(_))));
        // What was freed rests.
        let next = node
            .core
            .add(&request("c9", "eth0"), new_netns().as_fd())
            .unwrap();
        assert_eq!(next.addresses[0].address.to_string(), "10.244.1.6");
    });
}

#[test]
fn vanished_interfaces_lose_their_port() {
    in_fresh_netns("vanished_interfaces_lose_their_port", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        let pod = new_netns();
        let add = request("c1", "eth0");
        node.core.add(&add, pod.as_fd()).unwrap();
        // The namespace goes, and its end of the veth with it.
        drop(pod);
        eventually("letting go of the port", || switch.ports().len() == 1);
        let address = "10.244.1.2".parse().unwrap();
        eventually("forgetting the address", || {
            switch.snapshot().host(address).is_none()
        });
        node.core.delete(&add.attachment).unwrap();
        // Somebody takes the host's side down: its routes come back.
        let netlink = &mut Netlink::open().unwrap();
        let routed = || {
            let routes = routes::list(&mut Netlink::open().unwrap()).unwrap();
            routes.iter().any(|r| r.to.to_string() == "10.244.1.0/24")
        };
        let host = netlink.link("spinlane0").unwrap().unwrap();
        run("ip link set spinlane0 down");
        eventually("bringing the host's side up again", || {
            routed()
                && Netlink::open()
                    .unwrap()
                    .link("spinlane0")
                    .unwrap()
                    .unwrap()
                    .up
        });
        run("ip address del 192.0.2.1/32 dev spinlane0");
        eventually("setting the node's address again", || {
            let addresses = Netlink::open().unwrap().addresses().unwrap();
            let node: IpAddr = "192.0.2.1".parse().unwrap();
            routed() && addresses.iter().any(|a| (a.0, a.1) == (host.index, node))
        });
        // Somebody deletes the host port: it comes back.
        super::detach::delete_ours("spinlane0").unwrap();
        eventually("making the host port anew", || {
            switch.ports() == ["spinlane1"] && routed()
        });
    });
}

#[test]
fn segments_delegation_and_several_interfaces() {
    in_fresh_netns("segments_delegation_and_several_interfaces", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        let pod = new_netns();
        let first = node.core.add(&request("c1", "eth0"), pod.as_fd()).unwrap();
        let mut blue = request("c1", "net1");
        blue.segment = Some("blue".into());
        blue.mac = Some("02:00:00:00:00:77".into());
        let second = node.core.add(&blue, pod.as_fd()).unwrap();
        assert_eq!(second.addresses[0].address.to_string(), "10.50.0.2");
        assert_eq!(second.addresses[0].prefix_len, 24);
        assert_eq!(second.interfaces[1].mac, "02:00:00:00:00:77");
        let mut third = request("c1", "net2");
        third.delegated = Some(Delegated {
            plugin: "host-local".into(),
            addresses: vec![Address {
                address: "10.244.1.99".parse().unwrap(),
                prefix_len: 24,
                gateway: Some("10.244.1.1".parse().unwrap()),
            }],
            routes: vec![Route {
                dst: "0.0.0.0/0".into(),
                gw: None,
                mtu: None,
            }],
        });
        let result = node.core.add(&third, pod.as_fd()).unwrap();
        assert!(result.routes.is_empty(), "eth0 has them: {result:?}");
        let checks = [
            (&request("c1", "eth0"), &first),
            (&blue, &second),
            (&third, &result),
        ];
        for (add, result) in checks {
            node.core
                .check(&check_of(add, result), pod.as_fd())
                .unwrap();
        }
        let snapshot = switch.snapshot();
        let ports: Vec<_> = snapshot.ports.iter().flatten().collect();
        let segment = ports
            .iter()
            .find(|p| p.role == Role::SegmentPod(SegmentId(0)));
        let members = &snapshot.segment(SegmentId(0)).unwrap().members;
        assert_eq!(**members, [segment.unwrap().id]);
        let nine: IpAddr = "10.244.1.99".parse().unwrap();
        let routed = ports.iter().filter(|p| p.role == Role::Pod);
        assert!(routed.clone().count() == 2 && routed.clone().all(|p| p.addresses.contains(&nine)));
        // Only the network's own attachments are collected.
        node.core.collect("other", &[]).unwrap();
        assert_eq!(node.endpoints(), 3);
        node.core
            .collect("pods", &[blue.attachment.clone()])
            .unwrap();
        assert_eq!(node.endpoints(), 1);
    });
}

#[test]
fn events_reach_the_snapshot() {
    in_fresh_netns("events_reach_the_snapshot", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        let mut blue = request("c1", "eth0");
        blue.segment = Some("blue".into());
        let pod = new_netns();
        node.core.add(&blue, pod.as_fd()).unwrap();
        let port = node.ports()[1].0;
        let mac = MacAddr([2, 0, 0, 0, 0, 5]);
        switch.say(Event::Station {
            segment: SegmentId(0),
            mac,
            at: Location::Port(port),
        });
        eventually("learning a station", || {
            let snapshot = switch.snapshot();
            let segment = snapshot.segment(SegmentId(0)).unwrap();
            segment
                .fdb
                .get(&mac)
                .is_some_and(|t| t.at == Location::Port(port))
        });
        assert_eq!(node.fdb().len(), 1);
        switch.say(Event::Forwarder {
            port,
            mtu: 1400,
            destination: "10.0.0.1".parse().unwrap(),
        });
        eventually("segmenting for a forwarder", || {
            let entry = switch.snapshot().port(port).cloned().unwrap();
            !entry.super_frames && entry.segment_mtu == 1400
        });
        let host = node.core.inventory().host.unwrap().port.id;
        let entry = || switch.snapshot().port(host).cloned().unwrap();
        let whole = entry();
        assert_eq!((whole.super_frames, whole.segment_mtu), (true, whole.mtu));
        for mtu in [1450, 1, 1500] {
            switch.say(Event::Forwarder {
                port: host,
                mtu,
                destination: "10.0.0.1".parse().unwrap(),
            });
            eventually("segmenting for the kernel", || !entry().super_frames);
            assert_eq!(entry().segment_mtu, whole.mtu);
        }
        // Anybody may have said so in its name: it is asked again some day.
        let in_minutes = |minutes: u64| Instant::now() + Duration::from_secs(minutes * 60);
        node.core.forget_forwarding(in_minutes(9));
        assert!(!entry().super_frames);
        eventually("super-frames for the kernel", || {
            node.core.forget_forwarding(in_minutes(11));
            entry().super_frames
        });
        node.core.delete(&blue.attachment).unwrap();
        assert!(node.fdb().is_empty());
    });
}

#[test]
fn a_thread_that_ended_is_named() {
    in_fresh_netns("a_thread_that_ended_is_named", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        assert_eq!(node.ended(), [""; 0]);
        switch.state.lock().unwrap().panic_on_events = true;
        let address = "192.0.2.7".parse().unwrap();
        switch.say(Event::StationWanted { address });
        eventually("the end", || node.ended() == ["watch"]);
    });
}

#[test]
fn cleanup_removes_everything_once() {
    in_fresh_netns("cleanup_removes_everything_once", || {
        let dir = tempfile::tempdir().unwrap();
        let (run, state) = (dir.path().join("run"), dir.path().join("state"));
        let mut node = Node::start(setup(dir.path()), None, Recorder::new() as _).unwrap();
        let pod = new_netns();
        node.core.add(&request("c1", "eth0"), pod.as_fd()).unwrap();
        let refused = super::cleanup::cleanup(&run, &state).unwrap_err();
        assert!(refused.to_string().contains("stop it first"), "{refused}");
        node.stop();
        drop(node);
        let removed = super::cleanup::cleanup(&run, &state).unwrap();
        assert!(removed.len() >= 4, "{removed:?}");
        assert!(super::reconcile::our_links().unwrap().is_empty());
        assert!(!run.exists() && !state.exists());
        assert!(super::cleanup::cleanup(&run, &state).unwrap().is_empty());
    });
}

#[test]
fn a_native_port_goes_without_super_frames() {
    in_fresh_netns("a_native_port_goes_without_super_frames", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        switch.state.lock().unwrap().native = true;
        let (add, pod) = (request("c1", "eth0"), new_netns());
        let result = node.core.add(&add, pod.as_fd()).unwrap();
        assert_eq!(result.interfaces[1].mtu, Some(1450));
        node.core
            .check(&check_of(&add, &result), pod.as_fd())
            .unwrap();
        let (id, row) = node.ports().pop().unwrap();
        assert!(!row.super_frames);
        assert!(!switch.snapshot().port(id).unwrap().super_frames);
        let active = netns::run(pod.as_fd(), || {
            Ok::<_, netns::NetnsError>(super::offload::active("eth0").unwrap())
        });
        let active = active.unwrap();
        for name in super::offload::NEEDED {
            assert!(!active.contains(*name), "{name} is on in {active:?}");
        }
    });
}

#[test]
fn pods_follow_another_number_of_lanes() {
    in_fresh_netns("pods_follow_another_number_of_lanes", || {
        let dir = tempfile::tempdir().unwrap();
        let (mut add, pod) = (request("c1", "eth0"), new_netns());
        add.netns_path = format!("/proc/self/fd/{}", pod.as_raw_fd());
        let mut result = None;
        // One more than the machine's CPUs is always there.
        for more in [0, 1, 0] {
            let switch = Recorder::new();
            switch.state.lock().unwrap().more_queues = more;
            let mut node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
            let result = result
                .get_or_insert_with(|| node.core.add(&add, pod.as_fd()).unwrap())
                .clone();
            assert_eq!(node.endpoints(), 1);
            assert_eq!(switch.ports().len(), 2);
            let host = &result.interfaces[0].name;
            assert_eq!(super::offload::queues_in_use(host).unwrap(), 2 + more);
            let inside = netns::run(pod.as_fd(), || {
                Ok::<_, netns::NetnsError>(super::offload::queues_in_use("eth0").unwrap())
            });
            assert_eq!(inside.unwrap(), 2 + more);
            node.core
                .check(&check_of(&add, &result), pod.as_fd())
                .unwrap();
            node.stop();
        }
    });
}

#[test]
fn pods_made_for_other_lanes_are_not_half_attached() {
    in_fresh_netns("pods_made_for_other_lanes_are_not_half_attached", || {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::start(setup(dir.path()), None, Recorder::new() as _).unwrap();
        let (add, pod) = (request("c1", "eth0"), new_netns());
        node.core.add(&add, pod.as_fd()).unwrap();
        node.stop();
        drop(node);
        let switch = Recorder::new();
        switch.state.lock().unwrap().more_queues = 20;
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        // The host port is made anew with the queues that it needs now.
        assert_eq!(switch.ports(), ["spinlane1"]);
        assert_eq!(node.endpoints(), 0);
        node.core.delete(&add.attachment).unwrap();
        let add = request("c2", "eth0");
        let result = node.core.add(&add, pod.as_fd()).unwrap();
        node.core
            .check(&check_of(&add, &result), pod.as_fd())
            .unwrap();
    });
}

#[test]
fn limits_that_do_nothing_are_named() {
    in_fresh_netns("limits_that_do_nothing_are_named", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        let pod = new_netns();
        node.core.add(&request("web", "eth0"), pod.as_fd()).unwrap();
        let host = host_ends().remove(0);
        let before = node.notices();
        let new = || -> Vec<String> {
            let now = node.notices().into_iter();
            now.filter(|notice| !before.contains(notice)).collect()
        };
        // One that is no pod's concerns nobody.
        run("tc qdisc add dev lo root tbf rate 1mbit burst 32kbit latency 400ms");
        assert_eq!(new(), [""; 0]);
        for (place, kind) in [
            ("root tbf rate 1mbit burst 32kbit latency 400ms", "tbf"),
            ("ingress", "ingress"),
        ] {
            run(&format!("tc qdisc add dev {host} {place}"));
            let [notice] = &new()[..] else {
                panic!("{:?}", new());
            };
            let begin = format!("pod default/web: queue discipline {kind} on {host} ");
            assert!(notice.starts_with(&begin), "{notice}");
            // It says how to be rid of it.
            let command = notice.split('`').nth(1).unwrap();
            run(command);
            assert_eq!(new(), [""; 0]);
        }
    });
}
