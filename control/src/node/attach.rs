//! ADD, DEL, GC and STATUS.
//!
//! ADD reads top to bottom and undoes itself when a step fails or panics; DEL
//! tolerates that everything is gone already. A kill between two steps leaves
//! a record that says how far it came, or an interface whose alias says whose
//! it is; [`super::reconcile`] repairs both.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use spinlane_api::cni::{
    AddRequest, AddResult, Address, Attachment, Failure, Interface, Route, code,
};
use spinlane_dataplane::types::{MacAddr, is_routable};

use super::endpoint::{Endpoint, PodRoute, State, host_ifname};
use super::inventory::{BoundPort, Inventory, Live};
use super::ipam::{IpamError, Lease, ScopeName};
use super::link::{self, LinkError, SUPER_FRAME_MTU, Veth, host_prefix_len};
use super::netlink::{Netlink, NetlinkError, delete_link};
use super::netns::{self, NetnsError};
use super::plan::GATEWAY_LINK_LOCAL;
use super::setup::pod_mac;
use super::steering::{self, POD_END, PodEnd, SteeringError};
use super::store::{Change, StoreError};
use super::switch::SwitchError;
use super::{Core, announce, unix_s};

/// Gateway of a routed pod whose node has no range of that family: any
/// address that nobody else uses does, the switch answers for it.
const FALLBACK_GATEWAY_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 1, 1));

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The request contradicts itself or the configuration.
    #[error("{0}")]
    Invalid(String),
    /// The runtime repeats an ADD.
    #[error(
        "interface {ifname} of container {container} is attached to network {network} already: delete that attachment first"
    )]
    AlreadyAttached {
        /// Its network.
        network: String,
        /// Its container.
        container: String,
        /// Its interface.
        ifname: String,
    },
    /// No port left.
    #[error("all {0} ports of the switch are in use: delete pods")]
    NoPort(usize),
    /// No address.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// Not recorded.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not wired.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Not steered.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// Not bound.
    #[error("cannot bind interface {interface} to the switch: {source}")]
    Switch {
        /// The host's end.
        interface: String,
        /// Why not.
        source: SwitchError,
    },
    /// CHECK found a difference.
    #[error("{0}")]
    Differs(String),
    /// The agent is on its way out.
    #[error("the agent is stopping: try again")]
    Stopping,
    /// ADD could not be served (STATUS).
    #[error("no pod can be attached: {0}")]
    NotAvailable(String),
}

impl From<NetlinkError> for AttachError {
    fn from(error: NetlinkError) -> Self {
        AttachError::Link(error.into())
    }
}

impl From<NetnsError> for AttachError {
    fn from(error: NetnsError) -> Self {
        AttachError::Link(error.into())
    }
}

impl AttachError {
    /// As the plugin reports it.
    pub fn failure(&self) -> Failure {
        let code = match self {
            AttachError::Invalid(_) => code::INVALID_CONFIG,
            AttachError::AlreadyAttached { .. } | AttachError::Link(LinkError::NameTaken(_)) => {
                code::INVALID_ENVIRONMENT
            }
            AttachError::NoPort(_)
            | AttachError::Ipam(IpamError::Exhausted { .. })
            | AttachError::Switch {
                source: SwitchError::Exhausted(_),
                ..
            } => code::EXHAUSTED,
            AttachError::Ipam(_) => code::INVALID_CONFIG,
            AttachError::Link(LinkError::Netns(NetnsError::Open { .. } | NetnsError::Enter(_))) => {
                code::UNKNOWN_CONTAINER
            }
            AttachError::Store(StoreError::Closed) | AttachError::Stopping => code::TRY_AGAIN,
            AttachError::Store(_)
            | AttachError::Link(_)
            | AttachError::Steering(_)
            | AttachError::Switch { .. } => code::IO_FAILURE,
            AttachError::Differs(_) => code::DIFFERS,
            AttachError::NotAvailable(_) => code::NOT_AVAILABLE,
        };
        // "What: why": the first part is the message, the rest the details.
        let text = self.to_string();
        let (msg, details) = text.split_once(": ").unwrap_or((&text, ""));
        Failure {
            code,
            msg: msg.to_owned(),
            details: details.to_owned(),
        }
    }
}

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
        let result = result(self.finish(&request.attachment)?, request);
        self.announce(&request.attachment, netns);
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
        let mtu = request.mtu.unwrap_or(self.setup.path_mtu);
        if !(68..=SUPER_FRAME_MTU).contains(&mtu) {
            return Err(AttachError::Invalid(format!(
                "mtu {mtu} of the network configuration is not between 68 and {SUPER_FRAME_MTU}"
            )));
        }
        let scope: ScopeName = request.segment.clone();
        if let Some(name) = &scope
            && Inventory::segment_id(&self.setup, name).is_none()
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
        let mut inventory = self.inventory();
        let addresses = choose_addresses(&mut inventory, request, &scope)?;
        let addresses = self.with_gateways(addresses, request);
        if mtu < 1280 && addresses.iter().any(|a| a.address.is_ipv6()) {
            for address in &addresses {
                inventory.ipam.release(&scope, address.address, 0);
            }
            return Err(AttachError::Invalid(format!(
                "mtu {mtu} of the network configuration is less than the 1280 that IPv6 needs"
            )));
        }
        let identity = host_ifname(&request.attachment);
        let ips = addresses.iter().map(|a| a.address);
        let mac = mac.unwrap_or_else(|| pod_mac(ips, identity.as_bytes()));
        let offloads = self.setup.offloads;
        let super_frames = offloads && request.super_frames.unwrap_or(true);
        let endpoint = Endpoint {
            attachment: request.attachment.clone(),
            pod: request.pod.clone(),
            state: State::Adding,
            host_ifname: identity,
            netns_path: request.netns_path.clone(),
            segment: scope,
            mac: mac.to_string(),
            routes: pod_routes(&addresses, request, mtu),
            addresses,
            delegated: request.delegated.is_some(),
            device_mtu: if super_frames { SUPER_FRAME_MTU } else { mtu },
            mtu,
            offloads,
            super_frames,
            segment_mtu: mtu,
        };
        inventory.endpoints.insert(
            request.attachment.clone(),
            Live {
                endpoint: endpoint.clone(),
                port: None,
            },
        );
        Ok(endpoint)
    }

    /// On the routed network the switch is the gateway, whatever a delegated
    /// plugin says; in a segment the plugin's word stands.
    fn with_gateways(&self, mut addresses: Vec<Address>, request: &AddRequest) -> Vec<Address> {
        if request.segment.is_some() {
            return addresses;
        }
        for address in &mut addresses {
            address.prefix_len = host_prefix_len(address.address);
            let fallback = if address.address.is_ipv6() {
                GATEWAY_LINK_LOCAL.into()
            } else {
                FALLBACK_GATEWAY_V4
            };
            let ours = self.setup.gateway(address.address.is_ipv6());
            address.gateway = ours.or(address.gateway).or(Some(fallback));
        }
        addresses
    }

    fn recording(&self, endpoint: &Endpoint) -> Vec<Change> {
        let mut changes = vec![Change::Put(Box::new(endpoint.clone()))];
        if endpoint.delegated {
            return changes;
        }
        let ranges: Vec<IpNet> = match &endpoint.segment {
            None => self.setup.pod_cidrs.clone(),
            Some(name) => Inventory::segment_id(&self.setup, name)
                .map(|id| self.setup.segments[id.index()].cidrs.clone())
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
        let mut netlink = Netlink::open()?;
        let veth = Veth {
            host: &endpoint.host_ifname,
            alias: &endpoint.alias(),
            pod: &endpoint.attachment.ifname,
            mac: endpoint.mac.parse().unwrap_or_default(),
            mtu: endpoint.device_mtu,
            queues: self.switch.veth_queues(),
        };
        let ifindex = link::create(&mut netlink, veth, netns)?;
        let port = self.bind(&endpoint.attachment, &endpoint.host_ifname, ifindex)?;
        link::raise_host(&mut netlink, &endpoint.host_ifname, ifindex)?;
        let steering = match POD_END {
            PodEnd::Unsteered => None,
            PodEnd::LaneCores => Some((veth.queues, self.setup.lane_cores.as_slice())),
        };
        let routes = netns::run(netns, || link::configure_pod(endpoint, steering))?;
        recorded.wait()?;
        let mut inventory = self.inventory();
        if let Some(live) = inventory.endpoints.get_mut(&endpoint.attachment) {
            live.endpoint.routes = routes;
            live.port = Some(port);
        }
        inventory.fix_stations(&self.setup, &endpoint.attachment, self.now_s());
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
        let bound = steering::apply(&self.sysfs, name, queues, &self.setup.lane_cores)
            .map_err(AttachError::from)
            .and_then(|()| {
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

    /// Tells the neighbours; a pod works without it, so failing is no error.
    fn announce(&self, attachment: &Attachment, netns: BorrowedFd<'_>) {
        let Some(live) = self.inventory().endpoints.get(attachment).cloned() else {
            return;
        };
        let endpoint = live.endpoint;
        let addresses: Vec<IpAddr> = endpoint.ips().collect();
        let Ok(mac) = endpoint.mac.parse() else {
            return;
        };
        let sent: Result<(), NetnsError> = netns::run(netns, || {
            announce::announce(&endpoint.attachment.ifname, mac, &addresses)
                .map_err(NetnsError::Enter)
        });
        if let Err(error) = sent {
            tracing::warn!(interface = endpoint.host_ifname, %error, "cannot announce a pod's addresses");
        }
    }

    /// DEL.
    pub(crate) fn delete(&self, attachment: &Attachment) -> Result<(), AttachError> {
        let _held = self.locks.lock(attachment);
        self.dismantle(attachment)
    }

    /// Takes an attachment apart, whatever is left of it. The caller holds
    /// its lock.
    pub(crate) fn dismantle(&self, attachment: &Attachment) -> Result<(), AttachError> {
        let name = host_ifname(attachment);
        let live = {
            let mut inventory = self.inventory();
            if let Some(live) = inventory.endpoints.get_mut(attachment) {
                live.endpoint.state = State::Deleting;
            }
            inventory.endpoints.get(attachment).cloned()
        };
        let Some(live) = live else {
            return delete_ours(&name);
        };
        let endpoint = live.endpoint;
        self.store
            .write(vec![Change::Put(Box::new(endpoint.clone()))])?;
        self.unbind(attachment);
        delete_ours(&name)?;
        let mut changes = vec![Change::Remove(attachment.clone())];
        if !endpoint.delegated {
            changes.extend(endpoint.ips().map(|address| Change::Released {
                scope: endpoint.segment.clone(),
                address,
                at_s: unix_s(),
            }));
        }
        self.store.write(changes)?;
        let mut inventory = self.inventory();
        inventory.endpoints.remove(attachment);
        for address in endpoint.ips() {
            inventory.ipam.release(&endpoint.segment, address, unix_s());
        }
        Ok(())
    }

    /// Lets go of an endpoint's port, if it has one.
    pub(crate) fn unbind(&self, attachment: &Attachment) {
        let port = {
            let mut inventory = self.inventory();
            let port = inventory
                .endpoints
                .get_mut(attachment)
                .and_then(|live| live.port.take());
            if let Some(port) = port {
                inventory.fdb.remove_port(port.id);
                inventory.touch();
            }
            port
        };
        let Some(port) = port else { return };
        // No new packet is sent there before its frames are called home.
        self.publish();
        if let Err(error) = self.switch.detach(port.id) {
            tracing::warn!(container = attachment.container_id, %error, "cannot detach a pod's port");
        }
        self.inventory().ids.give_back(port.id);
    }

    /// GC: removes what one network has and `keep` does not name.
    pub(crate) fn collect(&self, network: &str, keep: &[Attachment]) -> Result<(), AttachError> {
        let stale: Vec<Attachment> = self
            .inventory()
            .endpoints
            .keys()
            .filter(|a| {
                let named = |k: &Attachment| {
                    // Runtimes name attachments by container and interface;
                    // the network is that of the request.
                    k.container_id == a.container_id && k.ifname == a.ifname
                };
                a.network == network && !keep.iter().any(named)
            })
            .cloned()
            .collect();
        let mut failed = None;
        for attachment in &stale {
            tracing::info!(
                container = attachment.container_id,
                interface = attachment.ifname,
                network,
                "removing an attachment that the runtime no longer knows"
            );
            if let Err(error) = self.delete(attachment) {
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(()), Err)
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
        if let Some(name) = segment
            && Inventory::segment_id(&self.setup, name).is_none()
        {
            return Err(AttachError::NotAvailable(format!(
                "segment {name:?} is not in spinlane.toml: add it there or correct the name"
            )));
        }
        let scope: ScopeName = segment.cloned();
        let mut inventory = self.inventory();
        if delegated || (segment.is_some() && !inventory.ipam.has_ranges(&scope)) {
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

/// Deletes an interface of ours; fine when there is none.
pub(crate) fn delete_ours(name: &str) -> Result<(), AttachError> {
    Netlink::open()?.request(delete_link(name).tolerate(&[libc::ENODEV]))?;
    Ok(())
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

/// Holds the addresses of a request; all or none.
fn choose_addresses(
    inventory: &mut Inventory,
    request: &AddRequest,
    scope: &ScopeName,
) -> Result<Vec<Address>, AttachError> {
    let mut chosen: Vec<Address> = Vec::new();
    let outcome = hold_addresses(inventory, request, scope, &mut chosen);
    if let Err(error) = outcome {
        for address in &chosen {
            inventory.ipam.release(scope, address.address, 0);
        }
        return Err(error);
    }
    Ok(chosen)
}

fn hold_addresses(
    inventory: &mut Inventory,
    request: &AddRequest,
    scope: &ScopeName,
    chosen: &mut Vec<Address>,
) -> Result<(), AttachError> {
    let from_lease = |lease: Lease| Address {
        address: lease.address,
        prefix_len: lease.range.prefix_len(),
        gateway: None,
    };
    if let Some(delegated) = &request.delegated {
        for address in &delegated.addresses {
            usable(address.address)?;
            inventory.ipam.hold(scope, address.address)?;
            chosen.push(address.clone());
        }
        return Ok(());
    }
    let ranges = inventory.ipam.has_ranges(scope);
    for text in &request.ips {
        let (address, len) = parse_ip(text)?;
        usable(address)?;
        if ranges {
            chosen.push(from_lease(inventory.ipam.request(scope, address)?));
        } else {
            inventory.ipam.hold(scope, address)?;
            chosen.push(Address {
                address,
                prefix_len: len,
                gateway: None,
            });
        }
    }
    if !ranges && (scope.is_some() || !chosen.is_empty()) {
        // A segment without ranges is a plain wire.
        return Ok(());
    }
    let missing: Vec<bool> = [false, true]
        .into_iter()
        .filter(|v6| chosen.iter().all(|a| a.address.is_ipv6() != *v6))
        .collect();
    let leases = inventory
        .ipam
        .allocate_families(scope, &missing, unix_s())?;
    chosen.extend(leases.into_iter().map(from_lease));
    Ok(())
}

fn usable(address: IpAddr) -> Result<(), AttachError> {
    if is_routable(address) {
        return Ok(());
    }
    Err(AttachError::Invalid(format!(
        "address {address} is loopback, multicast, unspecified or reserved: no pod can have it"
    )))
}

fn parse_ip(text: &str) -> Result<(IpAddr, u8), AttachError> {
    let refuse = || {
        AttachError::Invalid(format!(
            "{text:?} of the ips capability is no address: write 10.244.1.5 or 10.244.1.5/24"
        ))
    };
    match text.parse::<IpNet>() {
        Ok(net) => Ok((net.addr(), net.prefix_len())),
        Err(_) => {
            let address: IpAddr = text.parse().map_err(|_| refuse())?;
            Ok((address, host_prefix_len(address)))
        }
    }
}

/// The routes that a pod gets.
fn pod_routes(addresses: &[Address], request: &AddRequest, mtu: u32) -> Vec<PodRoute> {
    let mut routes: Vec<PodRoute> = Vec::new();
    let mut push = |to: IpNet, via: Option<IpAddr>| {
        if !routes.iter().any(|r| r.to == to) {
            routes.push(PodRoute { to, via, mtu });
        }
    };
    for address in addresses {
        if request.segment.is_some() {
            if address.prefix_len < host_prefix_len(address.address)
                && let Ok(net) = IpNet::new(address.address, address.prefix_len)
            {
                push(net.trunc(), None);
            }
            continue;
        }
        let Some(gateway) = address.gateway else {
            continue;
        };
        let next_hop = if gateway.is_ipv6() {
            GATEWAY_LINK_LOCAL.into()
        } else {
            gateway
        };
        if gateway != IpAddr::V6(GATEWAY_LINK_LOCAL) {
            push(IpNet::from(gateway), None);
        }
        push(default_net(gateway.is_ipv6()), Some(next_hop));
    }
    let delegated = request.delegated.as_ref();
    for route in delegated.map(|d| d.routes.as_slice()).unwrap_or_default() {
        let Ok(to) = route.dst.parse::<IpNet>() else {
            continue;
        };
        let v6 = matches!(to, IpNet::V6(_));
        let of_family = |a: &&Address| a.address.is_ipv6() == v6;
        let Some(address) = addresses.iter().find(of_family) else {
            continue;
        };
        let via = match request.segment {
            // Every next hop of a routed pod is the switch.
            None if v6 => Some(GATEWAY_LINK_LOCAL.into()),
            None => address.gateway,
            Some(_) => route.gw.or(address.gateway),
        };
        push(to.trunc(), via);
    }
    routes
}

fn default_net(v6: bool) -> IpNet {
    if v6 {
        IpNet::V6(ipnet::Ipv6Net::default())
    } else {
        IpNet::V4(ipnet::Ipv4Net::default())
    }
}

fn result(endpoint: Endpoint, request: &AddRequest) -> AddResult {
    AddResult {
        interfaces: vec![
            Interface {
                name: endpoint.host_ifname.clone(),
                mac: host_mac(&endpoint.host_ifname),
                mtu: Some(endpoint.device_mtu),
                sandbox: None,
            },
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

/// MAC of the host's end as the kernel chose it; empty when it is gone.
fn host_mac(name: &str) -> String {
    let link = Netlink::open().and_then(|mut netlink| netlink.link(name));
    link.ok()
        .flatten()
        .and_then(|link| <[u8; 6]>::try_from(link.mac).ok())
        .map(|mac| MacAddr(mac).to_string())
        .unwrap_or_default()
}

/// Opens the namespace of a stored endpoint.
pub(crate) fn open_netns(endpoint: &Endpoint) -> Result<std::os::fd::OwnedFd, NetnsError> {
    netns::open(std::path::Path::new(&endpoint.netns_path))
}

/// Runs work in the namespace of a stored endpoint.
pub(crate) fn in_pod<T: Send>(
    endpoint: &Endpoint,
    work: impl FnOnce() -> Result<T, LinkError> + Send,
) -> Result<T, LinkError> {
    let netns = open_netns(endpoint)?;
    netns::run(netns.as_fd(), work)
}
