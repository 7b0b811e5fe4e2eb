//! The data path that these tests have: none.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use spinlane_dataplane::engine::Traffic;
use spinlane_dataplane::event::Event;
use spinlane_dataplane::snapshot::Snapshot;
use spinlane_dataplane::types::PortId;

use crate::node::bound::Binding;
use crate::node::switch::{Switch, SwitchError, WayOut};

/// A switch that only writes down what it is told.
pub(super) struct Recorder {
    events: OwnedFd,
    pub(super) state: Mutex<Recorded>,
    /// Whoever holds it keeps pods' streams from being led.
    pub(super) leading: Mutex<()>,
}

#[derive(Default)]
pub(super) struct Recorded {
    ports: BTreeMap<u16, String>,
    snapshot: Snapshot,
    waiting: Vec<Event>,
    pub(super) refuse: bool,
    pub(super) panic: bool,
    pub(super) native: bool,
    pub(super) more_queues: u32,
    pub(super) panic_on_events: bool,
    pub(super) refuse_lead: bool,
    pub(super) led: BTreeSet<u32>,
}

impl Recorder {
    pub(super) fn new() -> Arc<Recorder> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Arc::new(Recorder {
            events: rustix::event::eventfd(0, flags).unwrap(),
            state: Mutex::default(),
            leading: Mutex::default(),
        })
    }

    pub(super) fn say(&self, event: Event) {
        self.state.lock().unwrap().waiting.push(event);
        rustix::io::write(&self.events, &1u64.to_ne_bytes()).unwrap();
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.state.lock().unwrap().snapshot.clone()
    }

    pub(super) fn ports(&self) -> Vec<String> {
        self.state.lock().unwrap().ports.values().cloned().collect()
    }
}

impl Switch for Recorder {
    fn veth_queues(&self) -> u32 {
        2 + self.state.lock().unwrap().more_queues
    }

    fn attach(&self, id: PortId, _ifindex: u32, name: &str) -> Result<Binding, SwitchError> {
        let (refuse, panic, native) = {
            let state = self.state.lock().unwrap();
            (state.refuse, state.panic, state.native)
        };
        assert!(!panic, "the switch was told to panic");
        if refuse {
            return Err(SwitchError::Exhausted("no frames are left".into()));
        }
        let before = self.state.lock().unwrap().ports.insert(id.0, name.into());
        assert_eq!(before, None, "port {id:?} is attached twice");
        Ok(Binding {
            native,
            zero_copy: false,
            lanes: 1,
        })
    }

    fn attach_uplink(&self, id: PortId, way_out: WayOut<'_>) -> Result<Binding, SwitchError> {
        self.attach(id, way_out.ifindex, way_out.name)
    }

    fn lead_streams(&self, _: &str, ifindex: u32) -> Result<(), SwitchError> {
        let _leading = self.leading.lock().unwrap();
        let mut state = self.state.lock().unwrap();
        if state.refuse_lead {
            return Err(SwitchError::Exhausted("no memory is left".into()));
        }
        state.led.insert(ifindex);
        Ok(())
    }

    fn leads_streams(&self, _: &str, ifindex: u32) -> Result<bool, SwitchError> {
        Ok(self.state.lock().unwrap().led.contains(&ifindex))
    }

    fn detach(&self, id: PortId) -> Result<(), SwitchError> {
        self.state.lock().unwrap().ports.remove(&id.0);
        Ok(())
    }

    fn publish(&self, snapshot: Snapshot) {
        self.state.lock().unwrap().snapshot = snapshot;
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn settle(&self) {}

    fn drops(&self, _: PortId) -> u64 {
        0
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn drain_events(&self, out: &mut Vec<Event>) {
        let _ = rustix::io::read(&self.events, &mut [0u8; 8]);
        let is_to_panic = self.state.lock().unwrap().panic_on_events;
        assert!(!is_to_panic, "the switch was told to panic");
        out.append(&mut self.state.lock().unwrap().waiting);
    }
}
