//! What the defaults of the configuration depend on outside the file: the
//! host's name, the CPUs that this process may use, and the network
//! interfaces of the namespace it runs in.
//!
//! Gathered once, read only; validation itself is a pure function of the text
//! and this value.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;
use spinlane_dataplane::types::is_routable;

use crate::node::netlink::{Netlink, NetlinkError};
use crate::node::routes;

/// The machine as validation sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `$NODE_NAME`, when it is set and not empty.
    pub node_name: Option<String>,
    /// The host's name.
    pub host_name: String,
    /// CPUs that the scheduler lets this process use, ascending.
    pub allowed_cores: Vec<usize>,
    /// Interfaces of the network namespace.
    pub interfaces: Vec<Interface>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether a default route leaves by it.
    pub default_route: bool,
    /// Its addresses that others may know it by.
    pub addresses: Vec<IpAddr>,
    /// Networks whose stations are its neighbours.
    pub networks: Vec<IpNet>,
}

impl Environment {
    /// Reads the machine. What cannot be read is left out; validation then
    /// asks for the key whose default it was.
    pub fn of_this_process() -> Environment {
        Environment {
            node_name: std::env::var("NODE_NAME")
                .ok()
                .filter(|name| !name.is_empty()),
            host_name: fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim().to_owned())
                .unwrap_or_default(),
            allowed_cores: allowed_cores(),
            interfaces: interfaces(),
        }
    }
}

/// CPUs that the scheduler lets this process use, ascending.
pub fn allowed_cores() -> Vec<usize> {
    use nix::sched::{CpuSet, sched_getaffinity};
    let Ok(set) = sched_getaffinity(nix::unistd::Pid::from_raw(0)) else {
        return vec![0];
    };
    (0..CpuSet::count())
        .filter(|core| set.is_set(*core).unwrap_or(false))
        .collect()
}

/// The interfaces of this namespace; none when the kernel does not say.
fn interfaces() -> Vec<Interface> {
    read_interfaces().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look for the uplink");
        Vec::new()
    })
}

fn read_interfaces() -> Result<Vec<Interface>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let addresses = netlink.addresses()?;
    let routes = routes::list(&mut netlink)?;
    let ways_out: Vec<_> = routes
        .iter()
        .filter(|route| route.to.prefix_len() == 0)
        .filter_map(|route| route.oif)
        .collect();
    let interfaces = links.into_iter().map(|link| Interface {
        mtu: link.mtu,
        default_route: ways_out.contains(&link.index),
        addresses: addresses
            .iter()
            .filter(|(index, address, _)| *index == link.index && is_global(*address))
            .map(|(_, address, _)| *address)
            .collect(),
        networks: routes
            .iter()
            .filter(|route| route.is_network_of(link.index))
            .map(|route| route.to)
            .collect(),
        name: link.name,
    });
    Ok(interfaces.collect())
}

/// Whether others may know a station by that address.
pub fn is_global(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    is_routable(address) && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_core_and_a_name() {
        let environment = Environment::of_this_process();
        assert!(!environment.allowed_cores.is_empty());
        assert!(!environment.host_name.is_empty());
        let mut sorted = environment.allowed_cores.clone();
        sorted.sort_unstable();
        assert_eq!(environment.allowed_cores, sorted);
    }

    #[test]
    fn the_loopback_interface_is_seen_and_is_no_way_out() {
        let environment = Environment::of_this_process();
        let lo = environment.interfaces.iter().find(|i| i.name == "lo");
        let lo = lo.expect("every namespace has a loopback interface");
        assert_eq!(lo.mtu, 65536);
        assert!(!lo.default_route);
        assert!(lo.addresses.is_empty());
    }

    #[test]
    fn only_global_addresses_name_a_node() {
        let global = |text: &str| is_global(text.parse().unwrap());
        assert!(global("192.0.2.7") && global("10.0.0.1") && global("fd00::1"));
        for text in ["127.0.0.1", "169.254.1.1", "fe80::1", "::1", "0.0.0.0"] {
            assert!(!global(text), "{text}");
        }
    }
}
