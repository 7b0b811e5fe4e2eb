//! What an ADD leaves for when the plugin has its answer.
//!
//! A pod works without it, and the kernel makes whoever does it wait for all of
//! its readers: for the socket that announced the pod to close, which the call's
//! own thread does, and for the program that leads the pod's bulk TCP
//! ([`spinlane_dataplane`]'s `tcx`), for which pods stand in a queue that one
//! thread works off. An agent that ends before has its next start put the
//! program there ([`super::reconcile`]).

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spinlane_api::cni::Attachment;
use spinlane_dataplane::frame::LONGEST_SUPER_FRAME;

use super::bound::BoundPort;
use super::endpoint::Endpoint;
use super::error::AttachError;
use super::inventory::{Lead, Live};
use super::link::open_netns;
use super::netlink::Netlink;
use super::netns::{self, NetnsError};
use super::{Core, announce, link};

/// How long the rest of one ADD waits for others that are not answered yet.
const PRECEDENCE: Duration = Duration::from_millis(250);
/// Most namespaces that are kept open for pods in the queue; those of further
/// pods are opened by their paths.
pub(super) const NAMESPACES: usize = if cfg!(test) { 4 } else { 256 };

/// ADDs go before what others left to be done: the kernel makes changes of
/// interfaces one after the other.
#[derive(Debug, Default)]
pub(crate) struct Precedence {
    adding: Mutex<usize>,
    none: Condvar,
}

/// An ADD that is not answered yet.
#[derive(Debug)]
pub(crate) struct Adding<'a>(&'a Precedence);

impl Precedence {
    /// An ADD begins; it ends with the value.
    pub(crate) fn add(&self) -> Adding<'_> {
        *lock(&self.adding) += 1;
        Adding(self)
    }

    /// Waits, until then at most, for a moment without ADDs.
    fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = self
            .none
            .wait_timeout_while(lock(&self.adding), left, |adding| *adding > 0);
        drop(wait);
    }
}

impl Drop for Adding<'_> {
    fn drop(&mut self) {
        let mut adding = lock(&self.0.adding);
        *adding -= 1;
        if *adding == 0 {
            self.0.none.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts and queues are right whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pods whose bulk TCP is to be led, in the order of their answers. Whoever
/// leaves one here goes on at once.
#[derive(Debug, Default)]
pub(crate) struct Sequels {
    waiting: Mutex<Waiting>,
    some: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Sequel>,
    is_closed: bool,
}

impl Sequels {
    /// The plugin has its answer.
    pub(crate) fn leave(&self, mut sequel: Sequel) {
        drop(sequel.announcer.take());
        sequel.deadline = Instant::now() + PRECEDENCE;
        let mut waiting = lock(&self.waiting);
        if waiting.queue.len() >= NAMESPACES {
            sequel.netns = None;
        }
        waiting.queue.push_back(sequel);
        self.some.notify_one();
    }

    /// The next one; `None` for good once the node stops.
    fn next(&self) -> Option<Sequel> {
        let is_idle = |waiting: &mut Waiting| waiting.queue.is_empty() && !waiting.is_closed;
        let waiting = self.some.wait_while(lock(&self.waiting), is_idle);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        (!waiting.is_closed).then(|| waiting.queue.pop_front())?
    }

    /// What is left is the next start's.
    pub(crate) fn close(&self) {
        lock(&self.waiting).is_closed = true;
        self.some.notify_all();
    }
}

/// Does what ADDs left to do, until the node stops.
pub(super) fn run(core: &Core) {
    while let Some(sequel) = core.sequels.next() {
        let interface = sequel.attachment.ifname.clone();
        let container = sequel.attachment.container_id.clone();
        if catch_unwind(AssertUnwindSafe(|| sequel.finish(core))).is_err() {
            tracing::error!(interface, container, "leading a pod's bulk TCP panicked");
        }
    }
}

/// What is left of an ADD that is answered soon.
#[derive(Debug)]
#[must_use = "the pod's bulk TCP is led by whoever takes it from the queue"]
pub(crate) struct Sequel {
    attachment: Attachment,
    /// Tells the pod from another that the same attachment becomes.
    port: BoundPort,
    /// The pod's, as it came with the call; where it is not kept, the path leads
    /// to it.
    netns: Option<OwnedFd>,
    /// Closing it takes milliseconds.
    announcer: Option<OwnedFd>,
    /// Until when it waits for ADDs.
    deadline: Instant,
}

impl Sequel {
    /// Tells the neighbours of the pod. The answer comes next. Nothing is left
    /// for a pod that is gone again.
    pub(crate) fn begin(core: &Core, attachment: &Attachment, netns: OwnedFd) -> Option<Sequel> {
        let live = core.inventory().endpoints.get(attachment).cloned()?;
        Some(Sequel {
            attachment: attachment.clone(),
            port: live.port?,
            announcer: core.announce(&live.endpoint, netns.as_fd()),
            netns: Some(netns),
            deadline: Instant::now(),
        })
    }

    /// Has the pod's bulk TCP led, unless the pod is gone again.
    pub(crate) fn finish(self, core: &Core) {
        if self.due(core).is_none() {
            return;
        }
        core.precedence.wait(self.deadline);
        let _held = core.locks.lock(&self.attachment);
        if core.stopping() {
            return;
        }
        let Some(endpoint) = self.due(core) else {
            return;
        };
        match &self.netns {
            Some(netns) => {
                let led = core.lead(&endpoint, self.port, netns.as_fd());
                core.settle_lead(&endpoint, self.port, led);
            }
            None => core.lead_again(&endpoint, self.port),
        }
    }

    /// The pod that was added, while its bulk TCP is to be led.
    fn due(&self, core: &Core) -> Option<Endpoint> {
        let inventory = core.inventory();
        let live = inventory.endpoints.get(&self.attachment)?;
        let is_due = live.lead == Lead::Due && live.port == Some(self.port);
        is_due.then(|| live.endpoint.clone())
    }
}

impl Core {
    /// Tells the neighbours; a pod works without it, so failing is no error.
    fn announce(&self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Option<OwnedFd> {
        let addresses: Vec<IpAddr> = endpoint.ips().collect();
        let mac = endpoint.mac.parse().ok()?;
        if addresses.is_empty() {
            return None;
        }
        let sent: Result<OwnedFd, NetnsError> = netns::run(netns, || {
            announce::announce(&endpoint.attachment.ifname, mac, &addresses)
                .map_err(NetnsError::Enter)
        });
        let warn = |error: &NetnsError| {
            tracing::warn!(interface = endpoint.host_ifname, %error, "cannot announce a pod's addresses");
        };
        sent.inspect_err(warn).ok()
    }

    /// Has a pod's TCP take the way that is made for it, where an earlier
    /// version made the pod or somebody took that away since.
    pub(crate) fn lead_again(&self, endpoint: &Endpoint, port: BoundPort) {
        let led = open_netns(endpoint)
            .map_err(AttachError::from)
            .and_then(|netns| self.lead(endpoint, port, netns.as_fd()));
        self.settle_lead(endpoint, port, led);
    }

    /// Tries the pods again whose TCP could not be led.
    pub(crate) fn lead_where_it_failed(&self) {
        let failed = |(attachment, live): (&Attachment, &Live)| {
            (live.lead == Lead::Failed).then(|| attachment.clone())
        };
        let failed: Vec<Attachment> = {
            let inventory = self.inventory();
            inventory.endpoints.iter().filter_map(failed).collect()
        };
        for attachment in failed {
            if self.stopping() {
                return;
            }
            let _held = self.locks.lock(&attachment);
            let live = self.inventory().endpoints.get(&attachment).cloned();
            if let Some(Live {
                endpoint,
                port: Some(port),
                lead: Lead::Failed,
            }) = live
            {
                self.lead_again(&endpoint, port);
            }
        }
    }

    /// Has a pod's TCP take the way that is made for it, and both ends let
    /// through what that takes. Mends what is not so any more.
    fn lead(
        &self,
        endpoint: &Endpoint,
        port: BoundPort,
        netns: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        let (host, pod) = (&endpoint.host_ifname, &endpoint.attachment.ifname);
        let bytes = LONGEST_SUPER_FRAME as u32;
        Netlink::open()?.request(link::set_super_frame_len(host, port.ifindex, bytes))?;
        let lead = |index| {
            let led = self.switch.lead_streams(pod, index);
            led.map_err(|source| AttachError::Switch {
                interface: pod.to_owned(),
                source,
            })
        };
        netns::run(netns, || link::lengthen_super_frames(pod, lead))
    }

    /// Notes whether a pod's TCP is led. One that is not has another way, and
    /// is tried again.
    fn settle_lead(&self, endpoint: &Endpoint, port: BoundPort, led: Result<(), AttachError>) {
        let lead = match led {
            Ok(()) => Lead::Settled,
            Err(_) => Lead::Failed,
        };
        let before = {
            let mut inventory = self.inventory();
            let live = inventory.endpoints.get_mut(&endpoint.attachment);
            let live = live.filter(|live| live.port == Some(port));
            live.map(|live| std::mem::replace(&mut live.lead, lead))
        };
        let (interface, container) = (&endpoint.host_ifname, &endpoint.attachment.container_id);
        match (led, before) {
            // Said before.
            (Err(_), Some(Lead::Failed)) => {}
            (Err(error), _) => tracing::warn!(
                interface,
                container,
                %error,
                "a pod's bulk TCP takes the slower way; it is tried again every few seconds"
            ),
            (Ok(()), Some(Lead::Failed)) => {
                tracing::info!(interface, container, "a pod's bulk TCP is led now");
            }
            (Ok(()), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wait_as_long_as_one() {
        let precedence = Precedence::default();
        let _adding = precedence.add();
        let began = Instant::now();
        let deadlines = [began + PRECEDENCE; 16];
        for deadline in deadlines {
            precedence.wait(deadline);
        }
        let took = began.elapsed();
        assert!((PRECEDENCE..PRECEDENCE * 4).contains(&took), "{took:?}");
    }
}
