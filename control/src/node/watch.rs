//! Follows what happens after ADD: what lanes saw, what the kernel says about
//! interfaces and addresses, and the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use spinlane_dataplane::event::Event;
use spinlane_dataplane::snapshot::Location;
use spinlane_dataplane::types::PortId;

use super::endpoint::State;
use super::host_port::{HOST_SIDE, SWITCH_SIDE};
use super::inventory::Live;
use super::link::{LinkError, in_pod};
use super::netlink::{Link, Netlink, NetlinkError};
use super::qdiscs::Qdisc;
use super::routes;
use super::store::Change;
use super::{Core, offload};

/// `RTNLGRP_LINK`, `RTNLGRP_NEIGH`, `RTNLGRP_TC`, `RTNLGRP_IPV4_IFADDR`,
/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_IPV6_ROUTE`,
/// `RTNLGRP_NEXTHOP`.
const GROUPS: [u32; 8] = [1, 3, 4, 5, 7, 9, 11, 32];
/// Pause after reading the kernel's tables, so that a storm of news is read
/// in lots.
const KERNEL_PAUSE: Duration = Duration::from_millis(3);
/// How often neighbours in use are confirmed.
const CONFIRM: Duration = Duration::from_secs(15);
/// How often an uplink that was refused is tried again, and to lead a pod's
/// bulk TCP where that failed.
const RETRY: Duration = Duration::from_secs(3);
/// How often ages and pending deletions are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Pause between two publications for stations, so that a storm of them is
/// published in lots.
const STATION_PAUSE: Duration = Duration::from_millis(5);

/// How long the node's kernel counts as one that forwards: a super-frame every
/// so often tells whether it still does, or somebody only said so in its name.
const FORWARDING: Duration = Duration::from_secs(600);

/// The watching thread's state.
pub struct Watch {
    core: Arc<Core>,
    netlink: Netlink,
    last_tick: Instant,
    last_confirmation: Instant,
    last_try: Instant,
    events: Vec<Event>,
}

impl Watch {
    /// Subscribes to the kernel's news.
    pub(crate) fn subscribe(core: Arc<Core>) -> Result<Watch, NetlinkError> {
        Ok(Watch {
            core,
            netlink: Netlink::subscribe(&GROUPS)?,
            last_tick: Instant::now(),
            last_confirmation: Instant::now(),
            last_try: Instant::now(),
            events: Vec::new(),
        })
    }

    /// Watches until the node stops.
    pub fn run(mut self) {
        let core = Arc::clone(&self.core);
        while !core.stopping() {
            let wait = TICK.saturating_sub(self.last_tick.elapsed());
            let timeout = Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: i64::from(wait.subsec_nanos()),
            };
            let event_fd = core.switch.event_fd();
            let mut fds = [
                PollFd::new(&core.stop, PollFlags::IN),
                PollFd::new(&event_fd, PollFlags::IN),
                PollFd::new(&self.netlink, PollFlags::IN),
            ];
            if let Err(error) = poll(&mut fds, Some(&timeout))
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "cannot wait for events of the node");
                std::thread::sleep(TICK);
            }
            let ready = fds.map(|fd| !fd.revents().is_empty());
            if ready[1] {
                self.take_events();
            }
            if ready[2] {
                self.take_news();
            }
            if self.last_tick.elapsed() >= TICK {
                self.last_tick = Instant::now();
                self.tick();
            }
        }
    }

    fn take_events(&mut self) {
        self.events.clear();
        self.core.switch.drain_events(&mut self.events);
        let now_s = self.core.now_s();
        let mut changed = false;
        for event in self.events.drain(..) {
            match event {
                Event::Station { segment, mac, at } => {
                    let mut inventory = self.core.inventory();
                    // A port that went away meanwhile holds no stations.
                    let exists = match at {
                        Location::Port(port) => {
                            let uplink = inventory.surroundings.uplink;
                            inventory.by_port(port).is_some()
                                || uplink.is_some_and(|uplink| uplink.port.id == port)
                                || inventory.host.is_some_and(|host| host.port.id == port)
                        }
                        Location::Vtep(_) => true,
                    };
                    if exists && inventory.fdb.learn(segment, mac, at, now_s) {
                        if inventory.fdb.is_held(segment, mac) {
                            let port = inventory.fdb.place(segment, mac);
                            let port = port.and_then(|at| inventory.place_name(at));
                            let elsewhere = inventory.place_name(at);
                            tracing::warn!(%mac, port, elsewhere, "a station moves to and fro, a loop or an address used twice; it is held where it is for a minute");
                        }
                        inventory.touch();
                        changed = true;
                    }
                }
                Event::StationWanted { address } => self.core.ask(&[address]),
                Event::NeighborMissing { next_hop } => self.core.neighbour_missing(next_hop),
                Event::PathMtu { destination, mtu } => {
                    self.core.learn_path_mtu(destination, mtu);
                }
                Event::Forwarder {
                    port,
                    mtu,
                    destination,
                } => {
                    self.core.segment_for_forwarder(port, mtu, &destination);
                }
            }
        }
        if changed {
            self.core.publish();
            std::thread::sleep(STATION_PAUSE);
        }
    }

    fn take_news(&mut self) {
        let news = match self.netlink.listen() {
            Ok(news) => news,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                tracing::warn!("the kernel dropped news about interfaces; reading all anew");
                self.core.resynchronize();
                return;
            }
            Err(error) => {
                tracing::error!(%error, "cannot read news about interfaces");
                std::thread::sleep(Duration::from_millis(100));
                return;
            }
        };
        let (mut addresses, mut host, mut ways) = (false, false, news.next_hops);
        for message in &news.messages {
            match message {
                RouteNetlinkMessage::DelLink(_) => {
                    ways = true;
                    if let Some(link) = Link::from_message(message) {
                        self.core.link_vanished(&link);
                    }
                }
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                    addresses = true;
                    ways = true;
                }
                RouteNetlinkMessage::NewLink(link) => {
                    let inventory = self.core.inventory();
                    host |= inventory.is_host_port(link.header.index);
                    ways |= inventory.by_ifindex(link.header.index).is_none();
                }
                RouteNetlinkMessage::NewRoute(_) => ways = true,
                RouteNetlinkMessage::DelRoute(route) => {
                    ways = true;
                    host |= routes::is_ours(route);
                }
                RouteNetlinkMessage::NewQueueDiscipline(_) => {
                    let qdisc = Qdisc::from_message(message);
                    if let Some(notice) = qdisc.and_then(|q| self.core.qdisc_notice(&q)) {
                        tracing::warn!("{notice}");
                    }
                }
                RouteNetlinkMessage::NewNeighbour(neighbour)
                | RouteNetlinkMessage::DelNeighbour(neighbour) => {
                    let uplink = self.core.inventory().surroundings.uplink;
                    let index = neighbour.header.ifindex;
                    ways |= uplink.is_some_and(|uplink| uplink.port.ifindex == index);
                }
                _ => {}
            }
        }
        if (host || addresses)
            && let Err(error) = self.core.mend_host_side()
        {
            tracing::error!(%error, "nodes and pods do not reach each other");
        }
        if addresses {
            self.core.follow_addresses();
        }
        if ways {
            self.core.follow_ways();
            std::thread::sleep(KERNEL_PAUSE);
        }
    }

    fn tick(&mut self) {
        let now_s = self.core.now_s();
        let aged = {
            let mut inventory = self.core.inventory();
            let aged = inventory.fdb.age(now_s);
            if aged {
                inventory.touch();
            }
            aged
        };
        if aged {
            self.core.publish();
        }
        self.core.carry_out_pending_deletions();
        self.core.age_path_mtus();
        self.core.forget_forwarding(Instant::now());
        if self.last_try.elapsed() >= RETRY {
            self.last_try = Instant::now();
            if self.core.is_uplink_due() {
                self.core.follow_ways();
            }
            self.core.lead_where_it_failed();
            if self.core.inventory().host.is_none() {
                self.core.make_host_port_anew();
            }
        }
        if self.last_confirmation.elapsed() >= CONFIRM {
            self.last_confirmation = Instant::now();
            self.core.refresh_neighbours(true);
        }
    }
}

impl Core {
    /// An interface is gone: let go of its port.
    fn link_vanished(&self, link: &Link) {
        let (attachment, host) = {
            let inventory = self.inventory();
            let attachment = inventory
                .by_ifindex(link.index)
                .map(|live| live.endpoint.attachment.clone());
            (attachment, inventory.is_host_port(link.index))
        };
        if let Some(attachment) = attachment {
            tracing::info!(
                interface = link.name,
                container = attachment.container_id,
                "a pod's interface vanished"
            );
            self.unbind(&attachment);
        }
        if host && !self.stopping() {
            tracing::warn!("{HOST_SIDE} or {SWITCH_SIDE} was deleted; making the host port anew");
            self.make_host_port_anew();
        }
    }

    fn make_host_port_anew(&self) {
        match self.restore_host_port() {
            Ok(()) => self.publish(),
            Err(error) => {
                tracing::error!(%error, "nodes and pods do not reach each other; it is tried again");
            }
        }
    }

    fn follow_addresses(&self) {
        let followed =
            Netlink::open().and_then(|mut netlink| self.refresh_local_addresses(&mut netlink));
        match followed {
            Ok(true) => self.publish(),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cannot follow the host's addresses"),
        }
    }

    /// Compares all ports with the interfaces that exist.
    fn resynchronize(&self) {
        let links = match Netlink::open().and_then(|mut netlink| netlink.links()) {
            Ok(links) => links,
            Err(error) => {
                tracing::error!(%error, "cannot read the interfaces anew");
                return;
            }
        };
        let held: Vec<u32> = {
            let inventory = self.inventory();
            let pods = inventory.endpoints.values().filter_map(|live| live.port);
            let host = inventory.host.map(|host| host.port);
            pods.chain(host).map(|port| port.ifindex).collect()
        };
        for index in held {
            if !links.iter().any(|link| link.index == index) {
                self.link_vanished(&Link {
                    index,
                    ..Link::default()
                });
            }
        }
        self.follow_addresses();
        self.follow_ways();
    }

    /// Follows the kernel's routes, neighbours and the uplink.
    fn follow_ways(&self) {
        match self.follow_kernel() {
            Ok(true) => self.take_effect(),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cannot follow the kernel's routes"),
        }
    }

    /// The node's kernel forwards for others: from now on it is told where to
    /// cut what it gets. A path that takes less its senders find out themselves,
    /// as it is not everybody's.
    fn segment_for_kernel(&self, destination: &std::net::IpAddr) {
        {
            let mut inventory = self.inventory();
            let until = Instant::now() + FORWARDING;
            if inventory.host_forwards.replace(until).is_some() {
                return;
            }
            inventory.touch();
        }
        self.publish();
        tracing::info!(
            %destination,
            "the node's kernel forwards for pods: super-frames to it are marked for cutting from now on; nothing needs doing"
        );
    }

    /// Takes the node's kernel for one that does not forward when it said so
    /// long ago. One that does will refuse a super-frame again.
    pub(super) fn forget_forwarding(&self, now: Instant) {
        {
            let mut inventory = self.inventory();
            if inventory.host_forwards.is_none_or(|until| until > now) {
                return;
            }
            inventory.host_forwards = None;
            inventory.touch();
        }
        self.publish();
    }

    /// A pod forwards for others: from now on it is told where to cut what it
    /// gets.
    fn segment_for_forwarder(&self, port: PortId, quoted: u32, destination: &std::net::IpAddr) {
        let host = self.inventory().host;
        if host.is_some_and(|host| host.port.id == port) {
            return self.segment_for_kernel(destination);
        }
        // An absurd quote must not shred its traffic.
        let floor = if destination.is_ipv6() { 1280 } else { 576 };
        let attachment = {
            let inventory = self.inventory();
            let live = inventory.by_port(port);
            live.map(|live| live.endpoint.attachment.clone())
        };
        let Some(attachment) = attachment else { return };
        let _held = self.locks.lock(&attachment);
        let endpoint = {
            let mut inventory = self.inventory();
            let live = inventory.endpoints.get_mut(&attachment);
            let is_it = |live: &&mut Live| {
                let bound = live.port.is_some_and(|bound| bound.id == port);
                bound && live.endpoint.state == State::Attached
            };
            let Some(live) = live.filter(is_it) else {
                return;
            };
            let endpoint = &mut live.endpoint;
            let segment_mtu = quoted.max(floor).min(endpoint.segment_mtu);
            if !endpoint.super_frames && segment_mtu == endpoint.segment_mtu {
                return;
            }
            endpoint.super_frames = false;
            endpoint.segment_mtu = segment_mtu;
            let endpoint = endpoint.clone();
            inventory.touch();
            endpoint
        };
        self.publish();
        tracing::warn!(
            namespace = endpoint.pod.namespace,
            pod = endpoint.pod.name,
            interface = endpoint.host_ifname,
            %destination,
            segment_mtu = endpoint.segment_mtu,
            "this pod forwards for others: its super-frames are marked for cutting at segment_mtu from now on; nothing needs doing"
        );
        let change = Change::Put(Box::new(endpoint.clone()));
        if let Err(error) = self.store.write(vec![change]) {
            tracing::error!(%error, "a forwarding pod will be found out again after a restart");
        }
        let ifname = &endpoint.attachment.ifname;
        let merged = in_pod(&endpoint, || {
            offload::set(ifname, offload::RECEIVE_MERGE, &[]).map_err(LinkError::from)
        });
        if let Err(error) = merged {
            tracing::warn!(%error, "cannot let a forwarding pod merge what it receives");
        }
    }
}
