//! What an ADD leaves for when the plugin has its answer.
//!
//! A pod works without it, and the kernel makes whoever does it wait for all of
//! its readers: for the socket that announced the pod to close, and for the
//! program that leads the pod's bulk TCP ([`spinlane_dataplane`]'s `tcx`). An
//! agent that ends before has its next start put the program there
//! ([`super::reconcile`]).

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spinlane_api::cni::Attachment;
use spinlane_dataplane::frame::LONGEST_SUPER_FRAME;

use super::attach::{AttachError, open_netns};
use super::endpoint::Endpoint;
use super::inventory::BoundPort;
use super::netlink::Netlink;
use super::netns::{self, NetnsError};
use super::{Core, announce, link};

/// How long the rest of one ADD waits for others that are not answered yet.
const PRECEDENCE: Duration = Duration::from_millis(250);

/// ADDs go before what others left to be done: the kernel makes changes of
/// interfaces one after the other.
#[derive(Debug, Default)]
pub(crate) struct Precedence {
    adding: Mutex<usize>,
    none: Condvar,
    /// One rest after the other.
    turn: Mutex<()>,
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

    /// Waits for one's turn, and a while for a moment without ADDs.
    fn turn(&self) -> MutexGuard<'_, ()> {
        let turn = lock(&self.turn);
        let wait = self
            .none
            .wait_timeout_while(lock(&self.adding), PRECEDENCE, |adding| *adding > 0);
        drop(wait);
        turn
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
    // A count and a turn are right whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An ADD that is answered soon.
#[derive(Debug)]
#[must_use = "the pod's bulk TCP is led by finish"]
pub(crate) struct Sequel<'a> {
    attachment: &'a Attachment,
    netns: BorrowedFd<'a>,
    /// Closing it takes milliseconds.
    announcer: Option<OwnedFd>,
}

impl<'a> Sequel<'a> {
    /// Tells the neighbours of the pod. The answer comes next.
    pub(crate) fn begin(
        core: &Core,
        attachment: &'a Attachment,
        netns: BorrowedFd<'a>,
    ) -> Sequel<'a> {
        Sequel {
            attachment,
            netns,
            announcer: core.announce(attachment, netns),
        }
    }

    /// Does the rest, unless the pod is gone again.
    pub(crate) fn finish(self, core: &Core) {
        drop(self.announcer);
        let _turn = core.precedence.turn();
        let _held = core.locks.lock(self.attachment);
        if core.stopping() {
            return;
        }
        let (endpoint, port) = {
            let mut inventory = core.inventory();
            let Some(live) = inventory.endpoints.get_mut(self.attachment) else {
                return;
            };
            let (true, Some(port)) = (std::mem::take(&mut live.lead_is_due), live.port) else {
                return;
            };
            (live.endpoint.clone(), port)
        };
        core.tell_unled(&endpoint, core.lead(&endpoint, port, self.netns));
    }
}

impl Core {
    /// Tells the neighbours; a pod works without it, so failing is no error.
    fn announce(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Option<OwnedFd> {
        let live = self.inventory().endpoints.get(attachment).cloned()?;
        let endpoint = live.endpoint;
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
        self.tell_unled(endpoint, led);
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

    /// A pod whose TCP is not led has another way.
    fn tell_unled(&self, endpoint: &Endpoint, led: Result<(), AttachError>) {
        if let Err(error) = led {
            tracing::warn!(
                interface = endpoint.host_ifname,
                container = endpoint.attachment.container_id,
                %error,
                "a pod's bulk TCP takes the slower way; make the pod anew"
            );
        }
    }
}
