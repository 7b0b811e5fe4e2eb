//! The way between the node and its pods: a veth pair of the agent's own
//! namespace. The kernel routes to pods through [`HOST_SIDE`]; the switch
//! holds [`SWITCH_SIDE`] as the port of role `Host`.
//!
//! Routes name the switch as the next hop, so strict reverse-path filtering
//! finds the packets of pods coming from where it would send to them. The
//! next hop's neighbour entry is permanent: the switch's MAC is known.
//!
//! In mode `l2` the node is a station of the pods' segment by the uplink's
//! addresses, and nothing is routed here: programs at tc pass frames between
//! the uplink and this pair (`bpf/uplink.bpf.c` of the data path).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;

use spinlane_api::cni::Attachment;
use spinlane_dataplane::types::is_routable;

use super::Core;
use super::bound::{BoundHost, BoundPort};
use super::endpoint::ALIAS_PREFIX;
use super::error::AttachError;
use super::link::{self, LinkError, Veth};
use super::netlink::{Netlink, NetlinkError, delete_link};
use super::netns::{self, NetnsError};
use super::routes::{self, host_prefix_len};
use super::setup::hashed_mac;

/// The host's side: routes and addresses.
pub const HOST_SIDE: &str = "spinlane0";
/// The switch's side: a port.
pub const SWITCH_SIDE: &str = "spinlane1";

/// Why there is no host port.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// Not made or set up.
    #[error("cannot make the host port: {0}")]
    Link(#[from] LinkError),
    /// Not bound.
    #[error("cannot attach the host port: {0}")]
    Attach(#[from] AttachError),
}

impl From<NetlinkError> for HostPortError {
    fn from(error: NetlinkError) -> Self {
        HostPortError::Link(error.into())
    }
}

impl From<NetnsError> for HostPortError {
    fn from(error: NetnsError) -> Self {
        HostPortError::Link(error.into())
    }
}

impl Core {
    /// Makes the host port, or takes over the one that is there, and routes
    /// the pods' ranges through it.
    pub(crate) fn start_host_port(&self) -> Result<(), HostPortError> {
        let mut netlink = Netlink::open()?;
        let alias = format!("{ALIAS_PREFIX}host port");
        let mac = hashed_mac(format!("{HOST_SIDE} {}", self.setup().name).as_bytes());
        let queues = self.switch.veth_queues();
        let mtu = self.setup().device_mtu();
        let fits = |link: &super::netlink::Link| link.mtu == mtu && link.rx_queues == queues;
        let (host, switch) = (netlink.link(HOST_SIDE)?, netlink.link(SWITCH_SIDE)?);
        let switch_index = match (&host, &switch) {
            (Some(host), Some(switch))
                if fits(host) && fits(switch) && host.mac == mac.0 && switch.alias == alias =>
            {
                switch.index
            }
            _ => {
                netlink.batch(vec![
                    delete_link(SWITCH_SIDE).tolerate(&[libc::ENODEV]),
                    delete_link(HOST_SIDE).tolerate(&[libc::ENODEV]),
                ])?;
                let veth = Veth {
                    host: SWITCH_SIDE,
                    alias: &alias,
                    pod: HOST_SIDE,
                    mac,
                    mtu,
                    queues,
                    used_queues: queues,
                };
                link::create(&mut netlink, veth, netns::own()?.as_fd())?
            }
        };
        // No attachment of a pod has an empty name, so none is found under it.
        let nobody = Attachment {
            network: String::new(),
            container_id: String::new(),
            ifname: String::new(),
        };
        let port = self.bind(&nobody, SWITCH_SIDE, switch_index)?;
        let mut raise = || -> Result<u32, HostPortError> {
            link::raise_host(&mut netlink, SWITCH_SIDE, switch_index)?;
            let host = netlink.link(HOST_SIDE)?;
            let host = host.ok_or_else(|| LinkError::Vanished(HOST_SIDE.to_owned()))?;
            Ok(host.index)
        };
        let ifindex = raise().inspect_err(|_| self.let_go(port))?;
        self.inventory().host = Some(BoundHost { port, mac, ifindex });
        self.set_up_host_side(&mut netlink, ifindex)?;
        self.refresh_local_addresses(&mut netlink)?;
        self.inventory().touch();
        Ok(())
    }

    /// Lets go of a host port whose interfaces vanished, and makes it anew.
    pub(crate) fn restore_host_port(&self) -> Result<(), HostPortError> {
        let gone = self.inventory().host.take();
        if let Some(host) = gone {
            self.inventory().touch();
            self.publish();
            self.let_go(host.port);
        }
        self.start_host_port()?;
        if self.setup().shared_segment().is_some() {
            // It knows the host port's interfaces.
            self.release_uplink();
            self.follow_kernel()?;
        }
        Ok(())
    }

    fn let_go(&self, port: BoundPort) {
        if let Err(error) = self.switch.detach(port.id) {
            tracing::warn!(%error, "cannot detach the vanished host port");
        }
        self.steered().remove(&port.id);
        self.inventory().ids.give_back(port.id);
    }

    fn set_up_host_side(&self, netlink: &mut Netlink, ifindex: u32) -> Result<(), HostPortError> {
        let ipv6 = netns::has_ipv6(HOST_SIDE);
        if self.setup().shared_segment().is_some() {
            if ipv6 {
                netns::set(&format!("ipv6/conf/{HOST_SIDE}/disable_ipv6"), "1")?;
            }
        } else if ipv6 {
            for (key, value) in [
                ("disable_ipv6", "0"),
                ("accept_dad", "0"),
                ("accept_ra", "0"),
            ] {
                netns::set(&format!("ipv6/conf/{HOST_SIDE}/{key}"), value)?;
            }
        }
        let queues = self.switch.veth_queues();
        link::use_pod_queues(HOST_SIDE, queues, queues)?;
        link::set_offloads(HOST_SIDE, self.setup().offloads).map_err(LinkError::from)?;
        netlink.request(link::set_up(HOST_SIDE, ifindex))?;
        link::wait_operational(netlink, HOST_SIDE)?;
        self.adjust_host_side(netlink, ifindex)
    }

    /// Brings MTU, addresses and routes of the host's side in line with the
    /// settings.
    fn adjust_host_side(&self, netlink: &mut Netlink, ifindex: u32) -> Result<(), HostPortError> {
        let setup = self.setup();
        let ipv6 = netns::has_ipv6(HOST_SIDE);
        for name in [HOST_SIDE, SWITCH_SIDE] {
            let mtu = setup.device_mtu();
            if let Some(link) = netlink.link(name)?.filter(|link| link.mtu != mtu) {
                netlink.request(link::set_mtu(name, link.index, mtu))?;
            }
        }
        let (key, mtu) = (
            format!("ipv6/conf/{HOST_SIDE}/mtu"),
            setup.path_mtu.to_string(),
        );
        let is_v6_used = ipv6 && setup.shared_segment().is_none();
        if is_v6_used && setup.path_mtu >= 1280 && netns::get(&key).ok().as_ref() != Some(&mtu) {
            netns::set(&key, &mtu)?;
        }
        let held = netlink.addresses()?;
        let is_elsewhere = |wanted: &IpAddr| {
            let mut held = held.iter();
            held.any(|(index, address, _)| *index != ifindex && address == wanted)
        };
        let own = match setup.shared_segment() {
            // The node is there by the uplink's addresses.
            Some(_) => &[][..],
            None => &setup.addresses,
        };
        let own = own.iter().copied();
        let wanted: BTreeSet<IpAddr> = own
            .filter(|address| (ipv6 || address.is_ipv4()) && !is_elsewhere(address))
            .collect();
        let ours = held.iter().filter(|(index, address, len)| {
            *index == ifindex && is_deliverable(*address) && *len == host_prefix_len(*address)
        });
        let ours: BTreeSet<IpAddr> = ours.map(|(_, address, _)| *address).collect();
        let len = |address: &IpAddr| (*address, host_prefix_len(*address));
        let mut batch = Vec::new();
        for (address, len) in wanted.difference(&ours).map(len) {
            batch.push(routes::add_address(HOST_SIDE, ifindex, address, len));
        }
        for (address, len) in ours.difference(&wanted).map(len) {
            batch.push(routes::delete_address(HOST_SIDE, ifindex, address, len));
        }
        netlink.batch(batch)?;
        self.sync_host_routes()?;
        Ok(())
    }

    /// Sets up the host's side again when somebody took it down, or took
    /// addresses or routes away; follows the settings.
    pub(crate) fn mend_host_side(&self) -> Result<(), HostPortError> {
        let Some(host) = self.inventory().host else {
            return Ok(());
        };
        let mut netlink = Netlink::open()?;
        let up = |name: &str, netlink: &mut Netlink| {
            netlink.link(name).map(|link| link.is_some_and(|l| l.up))
        };
        if up(HOST_SIDE, &mut netlink)? && up(SWITCH_SIDE, &mut netlink)? {
            return self.adjust_host_side(&mut netlink, host.ifindex);
        }
        tracing::warn!("{HOST_SIDE} lost its link; setting it up again");
        link::raise_host(&mut netlink, SWITCH_SIDE, host.port.ifindex)?;
        self.set_up_host_side(&mut netlink, host.ifindex)
    }

    /// Follows which addresses the kernel holds. Returns whether forwarding
    /// changes.
    pub(crate) fn refresh_local_addresses(
        &self,
        netlink: &mut Netlink,
    ) -> Result<bool, NetlinkError> {
        let local: BTreeSet<IpAddr> = netlink
            .addresses()?
            .into_iter()
            .map(|(_, address, _)| address)
            .filter(|address| is_deliverable(*address))
            .collect();
        let mut inventory = self.inventory();
        if inventory.local == local {
            return Ok(false);
        }
        inventory.local = local;
        inventory.touch();
        Ok(true)
    }
}

/// Whether pods may reach the host under that address.
fn is_deliverable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    is_routable(address) && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reachable_addresses_are_delivered() {
        for (text, expect) in [
            ("192.0.2.1", true),
            ("169.254.20.10", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("fe80::5", false),
        ] {
            assert_eq!(is_deliverable(text.parse().unwrap()), expect, "{text}");
        }
    }
}
