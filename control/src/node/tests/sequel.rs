//! What comes after the answer to an ADD.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use spinlane_api::cni::Request;

use super::super::cni_server::{Counted, exchange};
use super::super::inventory::Lead;
use super::super::sequel::{NAMESPACES, Sequel};
use super::*;

fn lead_of(node: &Node, add: &AddRequest) -> Lead {
    node.core.inventory().endpoints[&add.attachment].lead
}

fn begin(node: &Node, add: &AddRequest, pod: &OwnedFd) -> Sequel {
    let netns = pod.try_clone().unwrap();
    Sequel::begin(&node.core, &add.attachment, netns).unwrap()
}

#[test]
fn a_sequel_leaves_another_adds_pod_alone() {
    in_fresh_netns("a_sequel_leaves_another_adds_pod_alone", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        let (add, first, second) = (request("c1", "eth0"), new_netns(), new_netns());
        let begin = |pod: &OwnedFd| begin(&node, &add, pod);
        node.core.add(&add, first.as_fd()).unwrap();
        let late = begin(&first);
        node.core.delete(&add.attachment).unwrap();
        let result = node.core.add(&add, second.as_fd()).unwrap();
        late.finish(&node.core);
        assert_eq!(lead_of(&node, &add), Lead::Due);
        assert!(switch.state.lock().unwrap().led.is_empty());
        begin(&second).finish(&node.core);
        assert_eq!(lead_of(&node, &add), Lead::Settled);
        node.core
            .check(&check_of(&add, &result), second.as_fd())
            .unwrap();
    });
}

#[test]
fn a_lead_that_fails_is_named_and_tried_again() {
    in_fresh_netns("a_lead_that_fails_is_named_and_tried_again", || {
        let dir = tempfile::tempdir().unwrap();
        let switch = Recorder::new();
        let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
        switch.state.lock().unwrap().refuse_lead = true;
        let (mut add, pod) = (request("c1", "eth0"), new_netns());
        add.netns_path = format!("/proc/self/fd/{}", pod.as_raw_fd());
        let result = node.core.add(&add, pod.as_fd()).unwrap();
        begin(&node, &add, &pod).finish(&node.core);
        let check = || node.core.check(&check_of(&add, &result), pod.as_fd());
        let error = check().unwrap_err();
        assert!(error.to_string().contains("spinlane_lead"), "{error}");
        switch.state.lock().unwrap().refuse_lead = false;
        eventually("leading again", || lead_of(&node, &add) == Lead::Settled);
        check().unwrap();
    });
}

#[test]
fn a_long_mtu_alone_has_a_pod_led() {
    in_fresh_netns("a_long_mtu_alone_has_a_pod_led", || {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(setup(dir.path()), None, Recorder::new() as _).unwrap();
        let (mut add, pod) = (request("c1", "eth0"), new_netns());
        add.mtu = Some(65535);
        add.super_frames = Some(false);
        let result = node.core.add(&add, pod.as_fd()).unwrap();
        let check = || node.core.check(&check_of(&add, &result), pod.as_fd());
        check().unwrap();
        begin(&node, &add, &pod).finish(&node.core);
        check().unwrap();
    });
}

/// A plugin's end of a call that asks for a pod, and the agent's.
fn call(add: &AddRequest, pod: &OwnedFd) -> (UnixStream, UnixStream) {
    let (plugin, agent) = UnixStream::pair().unwrap();
    let line = serde_json::to_string(&Request::Add(add.clone())).unwrap() + "\n";
    let descriptors = [pod.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let text = [IoSlice::new(line.as_bytes())];
    sendmsg(&plugin, &text, &mut control, SendFlags::empty()).unwrap();
    (plugin, agent)
}

/// What is left to do waits; neither threads nor places of calls do.
#[test]
fn calls_that_are_answered_have_no_thread_and_no_place() {
    in_fresh_netns(
        "calls_that_are_answered_have_no_thread_and_no_place",
        || {
            let dir = tempfile::tempdir().unwrap();
            let switch = Recorder::new();
            let node = Node::start(setup(dir.path()), None, Arc::clone(&switch) as _).unwrap();
            let pods: Vec<OwnedFd> = (0..3 * NAMESPACES).map(|_| new_netns()).collect();
            let adds = pods.iter().enumerate().map(|(number, pod)| AddRequest {
                netns_path: format!("/proc/self/fd/{}", pod.as_raw_fd()),
                ..request(&format!("c{number}"), "eth0")
            });
            let adds: Vec<AddRequest> = adds.collect();
            let places = Arc::new(AtomicUsize::new(0));
            std::thread::scope(|scope| {
                let leading = switch.leading.lock().unwrap();
                for (add, pod) in adds.iter().zip(&pods) {
                    let (mut plugin, agent) = call(add, pod);
                    let place = Counted::begin(&places);
                    let call = scope.spawn(|| exchange(&node.core, agent, place));
                    let mut answer = String::new();
                    plugin.read_to_string(&mut answer).unwrap();
                    assert!(answer.contains("10.244.1."), "{answer}");
                    eventually("the end of a call", || call.is_finished());
                    call.join().unwrap().unwrap();
                }
                assert_eq!(places.load(Ordering::Acquire), 0);
                assert!(adds.iter().all(|add| lead_of(&node, add) == Lead::Due));
                drop(leading);
            });
            let is_settled = |add| lead_of(&node, add) == Lead::Settled;
            eventually("leading all", || adds.iter().all(is_settled));
        },
    );
}
