//! ADD, and STATUS, which says whether it could be served.
//!
//! ADD reads top to bottom and undoes itself when a step fails or panics, by
//! what DEL does ([`super::detach`]). A kill between two steps leaves a record
//! that says how far it came, or an interface whose alias says whose it is;
//! [`super::reconcile`] repairs both.

use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use spinlane_api::cni::{AddRequest, AddResult, Attachment, Interface, Route};
use spinlane_dataplane::types::MacAddr;

use super::addressing::{choose_addresses, give_back, pod_routes};
use super::bound::BoundPort;
use super::endpoint::{Endpoint, SUPER_FRAME_MTU, State, host_ifname};
use super::error::AttachError;
use super::inventory::{Inventory, Lead, Live};
use super::ipam::{IpamError, ScopeName};
use super::link::{self, Veth};
use super::netlink::Netlink;
use super::netns;
use super::setup::pod_mac;
use super::shared::OnLink;
use super::steering::{self, Ends};
use super::store::Change;
use super::{Core, unix_s};

impl Core {
    /// ADD.
    pub(crate) fn add(
        &self,
        request: &AddRequest,
        netns: BorrowedFd<'_>,
    ) -> Result<AddResult, AttachError> {
        if self.stopping() {
            return Err(AttachError::Stopping);
        }
        validate(&request.attachment)?;
        let request = &self.in_segment(request);
        if request.addresses_follow && request.segment.is_none() {
            return Err(AttachError::Invalid(
                "addresses of the network itself need one that the pod is a station of: join a segment, or use mode \"l2\"".into(),
            ));
        }
        let _adding = self.precedence.add();
        let _held = self.locks.lock(&request.attachment);
        self.clear_leftovers(&request.attachment)?;
        let endpoint = self.take_addresses(request)?;
        let mut undo = Undo {
            core: self,
            attachment: &request.attachment,
            armed: true,
        };
        let recorded = self.store.begin(self.recording(&endpoint));
        self.wire(&endpoint, netns, recorded)?;
        self.publish();
        self.route_stranger(&endpoint);
        let result = result(self.finish(&request.attachment)?, request);
        undo.armed = false;
        Ok(result)
    }

    fn in_segment(&self, request: &AddRequest) -> AddRequest {
        AddRequest {
            segment: self.setup().segment_of(request.segment.as_ref()),
            ..request.clone()
        }
    }

    /// Completes an ADD whose addresses had to wait for the interface. Undoes
    /// all of it when a step fails.
    pub(crate) fn give_addresses(
        &self,
        request: &AddRequest,
        netns: BorrowedFd<'_>,
    ) -> Result<AddResult, AttachError> {
        let request = &self.in_segment(request);
        let attachment = &request.attachment;
        let _adding = self.precedence.add();
        let _held = self.locks.lock(attachment);
        let known = self.inventory().endpoints.get(attachment).cloned();
        let waits = |live: &Live| live.endpoint.addresses.is_empty() && live.port.is_some();
        let Some(before) = known.filter(waits).map(|live| live.endpoint) else {
            return Err(AttachError::Invalid(format!(
                "interface {} of container {} does not wait for addresses: ADD it",
                attachment.ifname, attachment.container_id
            )));
        };
        let mut undo = Undo {
            core: self,
            attachment,
            armed: true,
        };
        let endpoint = {
            let mut inventory = self.inventory();
            let setup = self.setup();
            let is_shared = request.segment == setup.segment_of(None);
            let on_link = is_shared.then(|| OnLink::of(&setup, &inventory));
            let on_link = (request, on_link.as_ref());
            let addresses = choose_addresses(&mut inventory.ipam, &setup, on_link, unix_s())?;
            let endpoint = Endpoint {
                routes: pod_routes(&addresses, (request, is_shared), before.mtu),
                addresses,
                delegated: true,
                ..before
            };
            if let Some(live) = inventory.endpoints.get_mut(attachment) {
                live.endpoint = endpoint.clone();
            }
            endpoint
        };
        let routes = netns::run(netns, || link::configure_pod(&endpoint))?;
        if let Some(live) = self.inventory().endpoints.get_mut(attachment) {
            live.endpoint.routes = routes;
        }
        self.inventory().touch();
        self.publish();
        let result = result(self.finish(attachment)?, request);
        undo.armed = false;
        Ok(result)
    }

    /// Removes what an ADD that was interrupted left; refuses a second ADD of
    /// a living attachment.
    fn clear_leftovers(&self, attachment: &Attachment) -> Result<(), AttachError> {
        let known = self.inventory().endpoints.get(attachment).cloned();
        let name = host_ifname(attachment);
        let link = Netlink::open()?.link(&name)?;
        match (known, link) {
            (None, None) => Ok(()),
            (
                Some(Live {
                    endpoint,
                    port: Some(port),
                    ..
                }),
                Some(link),
            ) if endpoint.state == State::Attached && link.index == port.ifindex => {
                Err(AttachError::AlreadyAttached {
                    network: attachment.network.clone(),
                    container: attachment.container_id.clone(),
                    ifname: attachment.ifname.clone(),
                })
            }
            _ => self.dismantle(attachment),
        }
    }

    /// Chooses addresses and everything else that ADD decides, and puts the
    /// endpoint into the inventory, without a port.
    fn take_addresses(&self, request: &AddRequest) -> Result<Endpoint, AttachError> {
        // The settings change under this lock only.
        let mut inventory = self.inventory();
        let setup = self.setup();
        let path_mtu = setup.path_mtu_in(request.segment.as_deref());
        let mtu = request.mtu.unwrap_or(path_mtu);
        if !(68..=SUPER_FRAME_MTU).contains(&mtu) {
            return Err(AttachError::Invalid(format!(
                "mtu {mtu} of the network configuration is not between 68 and {SUPER_FRAME_MTU}"
            )));
        }
        let scope: ScopeName = request.segment.clone();
        if let Some(name) = &scope
            && Inventory::segment_id(&setup, name).is_none()
        {
            return Err(AttachError::Invalid(format!(
                "segment {name:?} of the network configuration is not in spinlane.toml: add it there or correct the name"
            )));
        }
        let mac = request
            .mac
            .as_deref()
            .map(|text| text.parse::<MacAddr>().map_err(|e| e.to_string()))
            .transpose()
            .map_err(AttachError::Invalid)?;
        if mac.is_some_and(|mac| !mac.is_unicast()) {
            return Err(AttachError::Invalid(
                "the mac capability asks for a group or zero address: give a unicast one".into(),
            ));
        }
        let is_shared = scope.is_some() && scope == setup.segment_of(None);
        let on_link = is_shared.then(|| OnLink::of(&setup, &inventory));
        let addresses = choose_addresses(
            &mut inventory.ipam,
            &setup,
            (request, on_link.as_ref()),
            unix_s(),
        );
        let addresses = addresses.map_err(|error| match error {
            AttachError::Ipam(IpamError::NoRanges(_))
                if scope.is_none() && setup.follows_pod_cidrs =>
            {
                AttachError::NoRangesYet(setup.name.clone())
            }
            other => other,
        })?;
        // Without routes of ours only the device says how long packets may be.
        let is_self_configured = is_shared && addresses.is_empty() && !request.addresses_follow;
        if mtu < 1280 && addresses.iter().any(|a| a.address.is_ipv6()) {
            give_back(&mut inventory.ipam, &scope, &addresses);
            return Err(AttachError::Invalid(format!(
                "mtu {mtu} of the network configuration is less than the 1280 that IPv6 needs"
            )));
        }
        let identity = host_ifname(&request.attachment);
        let ips = addresses.iter().map(|a| a.address);
        let mac = mac.unwrap_or_else(|| pod_mac(ips, identity.as_bytes()));
        let offloads = setup.offloads;
        let super_frames = offloads && !is_self_configured && request.super_frames.unwrap_or(true);
        let endpoint = Endpoint {
            attachment: request.attachment.clone(),
            pod: request.pod.clone(),
            state: State::Adding,
            host_ifname: identity,
            netns_path: request.netns_path.clone(),
            segment: scope,
            mac: mac.to_string(),
            routes: pod_routes(&addresses, (request, is_shared), mtu),
            addresses,
            delegated: request.delegated.is_some(),
            device_mtu: if super_frames { SUPER_FRAME_MTU } else { mtu },
            mtu,
            follows_path_mtu: request.mtu.is_none(),
            offloads,
            super_frames,
            segment_mtu: mtu,
            is_self_configured,
        };
        inventory.endpoints.insert(
            request.attachment.clone(),
            Live {
                endpoint: endpoint.clone(),
                port: None,
                lead: Lead::Settled,
            },
        );
        Ok(endpoint)
    }

    fn recording(&self, endpoint: &Endpoint) -> Vec<Change> {
        let mut changes = vec![Change::Put(Box::new(endpoint.clone()))];
        if endpoint.delegated {
            return changes;
        }
        let setup = self.setup();
        let ranges: &[IpNet] = match &endpoint.segment {
            None => &setup.pod_cidrs,
            Some(name) => Inventory::segment_id(&setup, name)
                .map(|id| &*setup.segments[id.index()].cidrs)
                .unwrap_or_default(),
        };
        for address in endpoint.ips() {
            if let Some(range) = ranges.iter().find(|r| r.contains(&address)) {
                changes.push(Change::Given {
                    scope: endpoint.segment.clone(),
                    range: range.network(),
                    address,
                });
            }
        }
        changes
    }

    /// Makes the interface, binds it and sets it up; the record is on the
    /// disk when this returns. The endpoint in the inventory gets its port.
    fn wire(
        &self,
        endpoint: &Endpoint,
        netns: BorrowedFd<'_>,
        recorded: super::store::Pending,
    ) -> Result<(), AttachError> {
        let attachment = &endpoint.attachment;
        let mut netlink = Netlink::open()?;
        let veth = Veth {
            host: &endpoint.host_ifname,
            alias: &endpoint.alias(),
            pod: &endpoint.attachment.ifname,
            mac: endpoint.mac.parse().unwrap_or_default(),
            mtu: endpoint.device_mtu,
            queues: link::queues_with_room(self.switch.veth_queues()),
            used_queues: self.switch.veth_queues(),
        };
        let ifindex = link::create(&mut netlink, veth, netns)?;
        // First: native mode wants as many queues as the pod's end sends by.
        netns::run(netns, || {
            link::use_pod_queues(veth.pod, veth.queues, veth.used_queues)
        })?;
        let port = self.bind(&endpoint.attachment, &endpoint.host_ifname, ifindex)?;
        let mut endpoint = endpoint.clone();
        if port.binding.native {
            without_offloads(&mut endpoint);
        }
        link::raise_host(&mut netlink, &endpoint.host_ifname, ifindex)?;
        let routes = netns::run(netns, || link::configure_pod(&endpoint))?;
        self.steer_out(port.id, veth.pod, netns)?;
        recorded.wait()?;
        let mut inventory = self.inventory();
        if let Some(live) = inventory.endpoints.get_mut(attachment) {
            if endpoint.sends_super_frames() {
                live.lead = Lead::Due;
            }
            live.endpoint = Endpoint { routes, ..endpoint };
            live.port = Some(port);
        }
        inventory.fix_stations(&self.setup(), attachment, self.now_s());
        inventory.touch();
        Ok(())
    }

    /// Binds an interface that is down, and steers it. The endpoint has the
    /// port from here on, so that undoing finds it.
    pub(crate) fn bind(
        &self,
        attachment: &Attachment,
        name: &str,
        ifindex: u32,
    ) -> Result<BoundPort, AttachError> {
        let limit = spinlane_dataplane::types::PortId::LIMIT;
        let id = self
            .inventory()
            .ids
            .take()
            .ok_or(AttachError::NoPort(limit))?;
        let queues = self.switch.veth_queues();
        let cpus = &self.setup().receive_cpus;
        let bound = steering::steer_in(&self.sysfs, name, ifindex, queues, cpus)
            .map_err(AttachError::from)
            .and_then(|way_in| {
                self.steered().insert(id, Ends::new(way_in));
                self.switch
                    .attach(id, ifindex, name)
                    .map_err(|source| AttachError::Switch {
                        interface: name.to_owned(),
                        source,
                    })
            });
        let mut inventory = self.inventory();
        match bound {
            Ok(binding) => {
                let port = BoundPort {
                    id,
                    ifindex,
                    binding,
                };
                if let Some(live) = inventory.endpoints.get_mut(attachment) {
                    live.port = Some(port);
                }
                Ok(port)
            }
            Err(error) => {
                self.steered().remove(&id);
                inventory.ids.give_back(id);
                Err(error)
            }
        }
    }

    /// Marks the endpoint as attached, durably.
    fn finish(&self, attachment: &Attachment) -> Result<Endpoint, AttachError> {
        let endpoint = {
            let mut inventory = self.inventory();
            let live = inventory
                .endpoints
                .get_mut(attachment)
                .ok_or(AttachError::Stopping)?;
            live.endpoint.state = State::Attached;
            live.endpoint.clone()
        };
        self.store
            .write(vec![Change::Put(Box::new(endpoint.clone()))])?;
        Ok(endpoint)
    }

    /// STATUS: could ADD be served?
    pub(crate) fn status(
        &self,
        segment: Option<&String>,
        delegated: bool,
    ) -> Result<(), AttachError> {
        if self.stopping() {
            return Err(AttachError::NotAvailable("the agent is stopping".into()));
        }
        // Whether it still is so: nobody else writes while STATUS says no.
        if self.store.trouble().is_some() {
            let tried = self.store.write(Vec::new());
            tried.map_err(|why| AttachError::NotAvailable(why.to_string()))?;
        }
        if let Some(name) = segment
            && Inventory::segment_id(&self.setup(), name).is_none()
        {
            return Err(AttachError::NotAvailable(format!(
                "segment {name:?} is not in spinlane.toml: add it there or correct the name"
            )));
        }
        let scope: ScopeName = self.setup().segment_of(segment);
        let mut inventory = self.inventory();
        if delegated || (scope.is_some() && !inventory.ipam.has_ranges(&scope)) {
            return Ok(());
        }
        inventory
            .ipam
            .available(&scope, unix_s())
            .map_err(|error| AttachError::NotAvailable(error.to_string()))
    }
}

/// Undoes an ADD that fails or panics.
struct Undo<'a> {
    core: &'a Core,
    attachment: &'a Attachment,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = self.core.dismantle(self.attachment) {
            tracing::error!(
                container = self.attachment.container_id,
                %error,
                "cannot undo a failed ADD; the next start repairs it"
            );
        }
    }
}

/// A driver's XDP program takes segmentation from the pod's end, and nobody
/// carries checksums across: such a pod lives with plain packets.
fn without_offloads(endpoint: &mut Endpoint) {
    endpoint.offloads = false;
    endpoint.super_frames = false;
    endpoint.device_mtu = endpoint.mtu;
}

fn validate(attachment: &Attachment) -> Result<(), AttachError> {
    let ifname = &attachment.ifname;
    let bad_char = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if ifname.is_empty()
        || ifname.len() > 15
        || ifname.contains(bad_char)
        || ifname == "."
        || ifname == ".."
    {
        return Err(AttachError::Invalid(format!(
            "CNI_IFNAME {ifname:?} is no interface name: at most 15 bytes, no slash, colon or space"
        )));
    }
    for (what, text) in [
        ("CNI_CONTAINERID", &attachment.container_id),
        ("the network's name", &attachment.network),
    ] {
        if text.is_empty() || text.contains('\0') {
            return Err(AttachError::Invalid(format!(
                "{what} is empty or holds a zero byte: the runtime must name it"
            )));
        }
    }
    Ok(())
}

fn result(endpoint: Endpoint, request: &AddRequest) -> AddResult {
    AddResult {
        interfaces: vec![
            host_end(&endpoint.host_ifname),
            Interface {
                name: endpoint.attachment.ifname.clone(),
                mac: endpoint.mac.clone(),
                mtu: Some(endpoint.device_mtu),
                sandbox: Some(request.netns_path.clone()),
            },
        ],
        addresses: endpoint.addresses,
        routes: endpoint
            .routes
            .iter()
            .map(|route| Route {
                dst: route.to.to_string(),
                gw: route.via,
                mtu: Some(route.mtu),
            })
            .collect(),
    }
}

/// The host's end as the kernel has it; nothing is known of one that is gone.
fn host_end(name: &str) -> Interface {
    let link = Netlink::open().and_then(|mut netlink| netlink.link(name));
    let link = link.ok().flatten();
    let mac = link
        .as_ref()
        .and_then(|link| <[u8; 6]>::try_from(link.mac.as_slice()).ok());
    Interface {
        name: name.to_owned(),
        mac: mac.map(|mac| MacAddr(mac).to_string()).unwrap_or_default(),
        mtu: link.map(|link| link.mtu),
        sandbox: None,
    }
}
