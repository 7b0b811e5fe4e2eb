//! The node's way out: attached while its interface exists, followed through
//! whatever the kernel does with it. The kernel goes on using the interface;
//! nothing of it is changed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spinlane_dataplane::engine::release_uplink;
use spinlane_dataplane::snapshot::Location;
use spinlane_dataplane::types::{MacAddr, NextHopId, PortId};

use super::Core;
use super::bound::{BoundPort, BoundUplink, Offer};
use super::device;
use super::kernel::{self, Kernel};
use super::netlink::{Link, Netlink, NetlinkError};
use super::offload;
use super::reconcile;
use super::surroundings::UplinkState;
use super::switch::WayOut;
use crate::config::Uplink;
use crate::source;

/// What a device has to cut that is handed super-frames; one that takes less
/// leaves them to the kernel.
const LONGEST_PORTION: u32 = 1 << 16;

/// How long news of a path's MTU holds (RFC 1191, section 6.3).
const PATH_MTU_LIFE: Duration = Duration::from_secs(600);
/// Destinations whose MTU is remembered at most.
const MOST_PATH_MTUS: usize = 4096;
/// Neighbours that the kernel is asked for at once.
const MOST_QUESTIONS: usize = 256;

impl Core {
    /// Reads the kernel's tables and follows them. Returns whether forwarding
    /// changes.
    pub(crate) fn follow_kernel(&self) -> Result<bool, NetlinkError> {
        let kernel = Kernel::read(&mut Netlink::open()?)?;
        let has_moved = self.follow_uplink(&kernel);
        if has_moved {
            let mut inventory = self.inventory();
            inventory.surroundings.version += 1;
            inventory.touch();
        }
        let is_new = self.take_kernel(kernel);
        if has_moved {
            let setup = self.setup();
            self.inventory().fix_node_stations(&setup, self.now_s());
        }
        Ok(self.follow_own() || has_moved || is_new)
    }

    /// Remembers the kernel's tables. Returns whether they are others.
    pub(crate) fn take_kernel(&self, kernel: Kernel) -> bool {
        let mut inventory = self.inventory();
        if *inventory.surroundings.kernel == kernel {
            return false;
        }
        inventory.surroundings.kernel = Arc::new(kernel);
        inventory.surroundings.version += 1;
        inventory.touch();
        true
    }

    /// Other nodes came, went or changed.
    pub(crate) fn set_nodes(&self, nodes: Vec<Arc<source::Node>>) {
        let mut inventory = self.inventory();
        if *inventory.surroundings.nodes != nodes {
            inventory.surroundings.nodes = Arc::new(nodes);
            inventory.surroundings.version += 1;
            inventory.touch();
        }
    }

    /// Attaches the uplink that should be, detaches one that is gone. Returns
    /// whether anything changed.
    fn follow_uplink(&self, kernel: &Kernel) -> bool {
        let held = self.inventory().surroundings.uplink;
        let index = held.map(|held| held.port.ifindex);
        let wanted = wanted_uplink(&self.setup().uplink, kernel, index);
        let mut changed = false;
        if held.is_some() && index != wanted.map(|link| link.index) {
            self.release_uplink();
            changed = true;
        }
        let held = held.filter(|_| !changed);
        let Some(link) = wanted else {
            let is_wanted = self.setup().uplink != Uplink::None;
            let state = is_wanted.then_some(UplinkState::Missing);
            return self.note_uplink(state.unwrap_or_default()) | changed;
        };
        let state = match (link.up, link.has_carrier) {
            (false, _) => UplinkState::Down,
            (true, false) => UplinkState::NoCarrier,
            (true, true) => UplinkState::Up,
        };
        let offer = self.offer_of(link);
        if held.is_some_and(|held| held.offer == offer) {
            return self.note_uplink(state) | self.refresh_uplink(link);
        }
        match self.bind_uplink(link, offer, held.map(|held| held.port.id)) {
            Ok(uplink) => {
                self.inventory().surroundings.uplink = Some(uplink);
                self.note_uplink(state);
                true
            }
            Err(why) => {
                if held.is_some() {
                    self.release_uplink();
                    changed = true;
                }
                self.note_uplink(UplinkState::Refused(why)) | changed
            }
        }
    }

    /// What the device has now. One that does not tell of its offloads has
    /// none: the kernel does their work.
    fn offer_of(&self, link: &Link) -> Offer {
        let in_use = self.sysfs.receive_queues(&link.name);
        let features = offload::active(&link.name).unwrap_or_default();
        Offer {
            queues: in_use.unwrap_or(link.rx_queues),
            cuts_datagrams: features.contains(offload::UDP_SEGMENTATION),
            cuts_segments: link.longest_offload >= LONGEST_PORTION
                && offload::SUPER_FRAMES
                    .iter()
                    .all(|name| features.contains(*name)),
        }
    }

    /// Says how the uplink is, when it is not as it was. Returns whether it
    /// is not.
    fn note_uplink(&self, state: UplinkState) -> bool {
        let name = self.setup().uplink.name().to_owned();
        let mut inventory = self.inventory();
        let surroundings = &mut inventory.surroundings;
        if surroundings.state == state {
            return false;
        }
        match state.notice(&name) {
            Some(notice) => tracing::warn!("{notice}"),
            None => tracing::info!(uplink = name, "the uplink is {}", state.name()),
        }
        surroundings.state = state;
        true
    }

    /// Whether the uplink is worth a look although the kernel tells no news
    /// of it: it was refused, or its device has other queues or offloads.
    pub(crate) fn is_uplink_due(&self) -> bool {
        let (held, kernel) = {
            let inventory = self.inventory();
            let surroundings = &inventory.surroundings;
            if matches!(surroundings.state, UplinkState::Refused(_)) {
                return true;
            }
            (surroundings.uplink, Arc::clone(&surroundings.kernel))
        };
        let link = held.and_then(|held| Some((held, kernel.link(held.port.ifindex)?)));
        link.is_some_and(|(held, link)| held.offer != self.offer_of(link))
    }

    /// Attaches the uplink, anew where it is held by the number `held`.
    fn bind_uplink(
        &self,
        link: &Link,
        offer: Offer,
        held: Option<PortId>,
    ) -> Result<BoundUplink, String> {
        let name = &link.name;
        let (id, host) = {
            let mut inventory = self.inventory();
            (held.or_else(|| inventory.ids.take()), inventory.host)
        };
        let id = id.ok_or_else(|| format!("cannot attach the uplink {name}: no port is free"))?;
        let is_shared = self.setup().shared_segment().is_some();
        let way_out = WayOut {
            ifindex: link.index,
            name,
            offer,
            receive_ring: device::rings(name).map_or(0, |rings| rings.rx),
            is_veth: link.is_veth,
            is_bridged: is_shared,
            host: host.filter(|_| is_shared),
        };
        match self.switch.attach_uplink(id, way_out) {
            Ok(binding) => {
                tracing::info!(
                    uplink = name,
                    queues = offer.queues,
                    native = binding.native,
                    cuts_datagrams = offer.cuts_datagrams,
                    cuts_segments = offer.cuts_segments,
                    "attached"
                );
                let port = BoundPort {
                    id,
                    ifindex: link.index,
                    binding,
                };
                Ok(bound(port, link, offer))
            }
            Err(error) => {
                // One that was held goes as a whole.
                if held.is_none() {
                    self.inventory().ids.give_back(id);
                }
                Err(format!("cannot attach the uplink {name}: {error}"))
            }
        }
    }

    /// Takes over what may change while the interface stays.
    fn refresh_uplink(&self, link: &Link) -> bool {
        let mut inventory = self.inventory();
        let Some(held) = &mut inventory.surroundings.uplink else {
            return false;
        };
        let now = bound(held.port, link, held.offer);
        let changed = *held != now;
        *held = now;
        changed
    }

    /// Lets go of the uplink; the kernel has all of its frames again.
    pub(crate) fn release_uplink(&self) {
        let gone = {
            let mut inventory = self.inventory();
            let gone = inventory.surroundings.uplink.take();
            if let Some(uplink) = gone {
                inventory.fdb.remove(Location::Port(uplink.port.id));
            }
            inventory.surroundings.version += 1;
            inventory.touch();
            gone
        };
        let Some(uplink) = gone else { return };
        self.publish();
        if let Err(error) = self.switch.detach(uplink.port.id) {
            tracing::warn!(%error, "cannot detach the uplink");
        }
        self.inventory().ids.give_back(uplink.port.id);
    }

    /// Gives the kernel back what an earlier process' program keeps on
    /// interfaces that are not the uplink now.
    pub(crate) fn release_former_uplinks(&self) -> Result<(), NetlinkError> {
        let held = self.inventory().surroundings.uplink;
        let held = held.map(|uplink| uplink.port.ifindex);
        for link in Netlink::open()?.links()? {
            if Some(link.index) != held
                && let Some(name) = release(&link)
            {
                tracing::info!(interface = name, "no longer the uplink");
            }
        }
        Ok(())
    }

    /// A packet waits for a neighbour.
    pub(crate) fn neighbour_missing(&self, id: NextHopId) {
        let tables = self.tables();
        if let Some(Some(next_hop)) = tables.next_hops.get(id.index()) {
            self.ask(&[next_hop.address]);
        }
    }

    /// Asks the kernel for every neighbour in use that it has not resolved,
    /// or has not heard of for a while: it alone would never ask, since it
    /// sends them nothing.
    pub(crate) fn refresh_neighbours(&self, stale_too: bool) {
        let tables = self.tables();
        let (kernel, uplink) = {
            let inventory = self.inventory();
            let surroundings = &inventory.surroundings;
            (Arc::clone(&surroundings.kernel), surroundings.uplink)
        };
        let Some(uplink) = uplink else { return };
        let wanted: Vec<IpAddr> = tables
            .next_hops
            .iter()
            .flatten()
            .filter(|next_hop| {
                let known = kernel
                    .neighbours
                    .get(&(uplink.port.ifindex, next_hop.address));
                known.is_none_or(|n| stale_too && n.is_stale)
            })
            .map(|next_hop| next_hop.address)
            .take(MOST_QUESTIONS)
            .collect();
        self.ask(&wanted);
    }

    /// Asks the kernel for neighbours on the uplink.
    pub(crate) fn ask(&self, addresses: &[IpAddr]) {
        let Some(uplink) = self.inventory().surroundings.uplink else {
            return;
        };
        if addresses.is_empty() {
            return;
        }
        let requests = addresses
            .iter()
            .map(|address| kernel::resolve(uplink.port.ifindex, *address))
            .collect();
        if let Err(error) = Netlink::open().and_then(|mut netlink| netlink.batch(requests)) {
            tracing::warn!(%error, "cannot ask for a neighbour");
        }
    }

    /// The underlay told how long packets to an address may be.
    pub(crate) fn learn_path_mtu(&self, destination: IpAddr, mtu: u32) {
        let floor = if destination.is_ipv6() { 1280 } else { 576 };
        let mtu = mtu.max(floor);
        let mut inventory = self.inventory();
        let surroundings = &mut inventory.surroundings;
        let known = surroundings.path_mtus.get(&destination);
        if known.is_some_and(|(known, _)| *known <= mtu)
            || known.is_none() && surroundings.path_mtus.len() >= MOST_PATH_MTUS
        {
            return;
        }
        let until = Instant::now() + PATH_MTU_LIFE;
        surroundings.path_mtus.insert(destination, (mtu, until));
        surroundings.version += 1;
        inventory.touch();
        drop(inventory);
        tracing::info!(%destination, mtu, "the underlay carries shorter packets only");
        self.publish();
    }

    /// Forgets what the underlay told too long ago.
    pub(crate) fn age_path_mtus(&self) {
        let now = Instant::now();
        let mut inventory = self.inventory();
        let surroundings = &mut inventory.surroundings;
        let before = surroundings.path_mtus.len();
        surroundings.path_mtus.retain(|_, (_, until)| *until > now);
        if surroundings.path_mtus.len() != before {
            surroundings.version += 1;
            inventory.touch();
            drop(inventory);
            self.publish();
        }
    }
}

/// Takes the uplink's program off an interface; its name when there was one.
pub(super) fn release(link: &Link) -> Option<&str> {
    if reconcile::is_pod_end(link) {
        return None;
    }
    match release_uplink(link.index) {
        Ok(was_there) => was_there.then_some(link.name.as_str()),
        Err(error) => {
            tracing::warn!(interface = link.name, %error, "cannot look for a program of ours");
            None
        }
    }
}

fn bound(port: BoundPort, link: &Link, offer: Offer) -> BoundUplink {
    BoundUplink {
        port,
        mac: <[u8; 6]>::try_from(&link.mac[..])
            .map(MacAddr)
            .unwrap_or_default(),
        mtu: link.mtu,
        is_veth: link.is_veth,
        offer,
    }
}

/// The interface that should be the uplink, where `held` is attached.
pub fn wanted_uplink<'k>(
    uplink: &Uplink,
    kernel: &'k Kernel,
    held: Option<u32>,
) -> Option<&'k Link> {
    match uplink {
        Uplink::None => None,
        Uplink::Named(name) => kernel.link_named(name),
        // A default route that moves elsewhere does not cut the tunnels.
        Uplink::Auto => held
            .and_then(|index| kernel.link(index))
            .or_else(|| kernel.default_route()),
    }
}
