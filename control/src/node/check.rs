//! CHECK: compares the world with what ADD made.

use std::os::fd::BorrowedFd;

use spinlane_api::cni::CheckRequest;
use spinlane_dataplane::types::MacAddr;

use super::endpoint::{Endpoint, State};
use super::error::AttachError;
use super::inventory::{Inventory, Lead};
use super::link;
use super::netlink::Netlink;
use super::routes::{self, KernelRoute};
use super::{Core, netns, offload};

impl Core {
    /// CHECK.
    pub(crate) fn check(
        &self,
        request: &CheckRequest,
        netns: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        let _held = self.locks.lock(&request.attachment);
        let differs = |text: String| Err(AttachError::Differs(text));
        let name = &request.attachment.ifname;
        let Some(live) = self
            .inventory()
            .endpoints
            .get(&request.attachment)
            .filter(|live| live.endpoint.state == State::Attached)
            .cloned()
        else {
            return differs(format!(
                "interface {name} of container {} is not attached to network {}: ADD it",
                request.attachment.container_id, request.attachment.network
            ));
        };
        let endpoint = live.endpoint;
        if let Some(segment) = &endpoint.segment
            && Inventory::segment_id(&self.setup(), segment).is_none()
        {
            return differs(format!(
                "segment {segment:?} of interface {name} is no longer in spinlane.toml: put it back, or delete the attachment"
            ));
        }
        let Some(port) = live.port else {
            return differs(format!(
                "interface {} vanished: delete and add the attachment again",
                endpoint.host_ifname
            ));
        };
        match Netlink::open()?.link(&endpoint.host_ifname)? {
            Some(link) if link.index == port.ifindex && link.up => {}
            found => {
                return differs(format!(
                    "host end {} is missing, replaced or down: {found:?}",
                    endpoint.host_ifname
                ));
            }
        }
        for address in &request.addresses {
            if !endpoint.ips().any(|ip| ip == address.address) {
                return differs(format!(
                    "the runtime says that {name} has {}: it was attached with {}",
                    address.address,
                    list(endpoint.ips())
                ));
            }
        }
        if let Some(mac) = &request.mac
            && mac.parse::<MacAddr>().ok() != endpoint.mac.parse().ok()
        {
            return differs(format!(
                "the runtime says that {name} has MAC address {mac}: it was attached with {}",
                endpoint.mac
            ));
        }
        let is_led =
            endpoint.sends_super_frames() && !port.binding.native && live.lead != Lead::Due;
        netns::run(netns, || {
            let index = check_pod(&endpoint)?;
            match is_led {
                true => self.check_lead(&endpoint, index),
                false => Ok(()),
            }
        })
    }

    /// Whether the pod's bulk TCP is led; runs inside its namespace.
    fn check_lead(&self, endpoint: &Endpoint, index: u32) -> Result<(), AttachError> {
        let name = &endpoint.attachment.ifname;
        match self.switch.leads_streams(name, index) {
            Ok(true) => Ok(()),
            Ok(false) => Err(AttachError::Differs(format!(
                "program spinlane_lead is missing at the egress hook of {name} in the pod: bulk TCP is slow and sent again without it; restart the agent, which puts it back, or delete and add the attachment again"
            ))),
            Err(source) => Err(AttachError::Switch {
                interface: name.clone(),
                source,
            }),
        }
    }
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    let texts: Vec<String> = items.map(|item| item.to_string()).collect();
    texts.join(", ")
}

/// The pod's side; runs on a thread inside its namespace. Gives the index of
/// the pod's interface.
fn check_pod(endpoint: &Endpoint) -> Result<u32, AttachError> {
    let name = &endpoint.attachment.ifname;
    let differs = |text: String| Err(AttachError::Differs(text));
    let mut netlink = Netlink::open()?;
    let Some(found) = netlink.link(name)? else {
        return differs(format!("interface {name} is missing in the pod"));
    };
    let mac = <[u8; 6]>::try_from(found.mac.as_slice()).map(MacAddr);
    if mac.ok() != endpoint.mac.parse().ok() {
        return differs(format!(
            "interface {name} has another MAC address than {}",
            endpoint.mac
        ));
    }
    if found.mtu != endpoint.device_mtu || !found.up {
        return differs(format!(
            "interface {name} has MTU {} and is {}: it should have {} and be up",
            found.mtu,
            if found.up { "up" } else { "down" },
            endpoint.device_mtu
        ));
    }
    let addresses = netlink.addresses()?;
    for ip in endpoint.ips() {
        if !addresses
            .iter()
            .any(|(index, address, _)| *index == found.index && *address == ip)
        {
            return differs(format!("address {ip} is missing on {name}"));
        }
    }
    check_routes(endpoint, found.index, &routes::list(&mut netlink)?)?;
    for (key, value) in link::settings(endpoint)
        .into_iter()
        .chain(link::ipv6_mtu(endpoint))
    {
        let now = netns::get(&key).unwrap_or_default();
        if now != value {
            return differs(format!(
                "net.{} is {now:?}: it should be {value}",
                key.replace('/', ".")
            ));
        }
    }
    check_offloads(endpoint)?;
    Ok(found.index)
}

fn check_routes(
    endpoint: &Endpoint,
    index: u32,
    routes: &[KernelRoute],
) -> Result<(), AttachError> {
    for wanted in &endpoint.routes {
        let is_found = |route: &KernelRoute| route.oif == Some(index) && route.is_as(wanted);
        let found = routes.iter().any(is_found);
        if !found {
            return Err(AttachError::Differs(format!(
                "route {} with MTU {} is missing on {}",
                wanted.to, wanted.mtu, endpoint.attachment.ifname
            )));
        }
    }
    Ok(())
}

fn check_offloads(endpoint: &Endpoint) -> Result<(), AttachError> {
    let name = &endpoint.attachment.ifname;
    let active = offload::active(name).map_err(link::LinkError::from)?;
    let wrong = |names: &[&str]| {
        names
            .iter()
            .find(|n| active.contains(**n))
            .map(|n| format!("offload {n} of {name} is on: the switch cannot carry it"))
    };
    // A pod may turn off what it was left with; it may not turn on what
    // would be lost on the way.
    match wrong(offload::UNSUITED) {
        Some(text) => Err(AttachError::Differs(text)),
        None => Ok(()),
    }
}
