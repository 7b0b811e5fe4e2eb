//! What the defaults of the configuration depend on outside the file: the
//! host's name, the CPUs that this process may use, and the network
//! interfaces of the namespace it runs in.
//!
//! Gathered once, read only; validation itself is a pure function of the text
//! and this value.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use spinlane_dataplane::types::is_routable;

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

fn interfaces() -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else {
        return found;
    };
    let with_default_route = default_route_interfaces();
    for entry in addresses {
        let name = entry.interface_name;
        let at = match found.iter().position(|i| i.name == name) {
            Some(at) => at,
            None => {
                found.push(Interface {
                    mtu: mtu(&name),
                    default_route: with_default_route.contains(&name),
                    name,
                    addresses: Vec::new(),
                });
                found.len() - 1
            }
        };
        let address = entry.address.and_then(|a| {
            if let Some(v4) = a.as_sockaddr_in() {
                return Some(IpAddr::V4(v4.ip()));
            }
            a.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
        });
        found[at]
            .addresses
            .extend(address.filter(|a| is_global(*a)));
    }
    found
}

fn is_global(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    is_routable(address) && !link_local
}

/// The interface's MTU by rtnetlink's answer in getifaddrs would need the raw
/// link data; the ioctl-backed file says the same. 0 when it is not readable:
/// sysfs shows the namespace it was mounted in, which may be another one.
fn mtu(name: &str) -> u32 {
    fs::read_to_string(format!("/sys/class/net/{name}/mtu"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Interfaces of the default routes of both families, by procfs, which shows
/// the namespace of the reading thread.
fn default_route_interfaces() -> Vec<String> {
    let mut names = Vec::new();
    if let Ok(text) = fs::read_to_string("/proc/thread-self/net/route") {
        names.extend(text.lines().filter_map(default_route_v4));
    }
    if let Ok(text) = fs::read_to_string("/proc/thread-self/net/ipv6_route") {
        names.extend(text.lines().filter_map(default_route_v6));
    }
    names
}

fn default_route_v4(line: &str) -> Option<String> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [name, destination, _, flags, _, _, _, mask, ..] = fields[..] else {
        return None;
    };
    let up = u32::from_str_radix(flags, 16).ok()? & 1 == 1;
    (up && destination == "00000000" && mask == "00000000").then(|| name.to_owned())
}

fn default_route_v6(line: &str) -> Option<String> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [destination, len, _, _, _, _, _, _, _, name] = fields[..] else {
        return None;
    };
    let address = u128::from_str_radix(destination, 16).ok()?;
    (Ipv6Addr::from(address).is_unspecified() && len == "00" && name != "lo")
        .then(|| name.to_owned())
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
    fn default_routes_are_told_from_others() {
        let v4 = "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0";
        assert_eq!(default_route_v4(v4), Some("eth0".to_owned()));
        let subnet = "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        assert_eq!(default_route_v4(subnet), None);
        let v6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0";
        assert_eq!(default_route_v6(v6), Some("eth0".to_owned()));
        let reject = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                      00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo";
        assert_eq!(default_route_v6(reject), None);
        for odd in ["", "Iface Destination", "a b c d e f g h i j"] {
            assert_eq!(default_route_v4(odd), None);
            assert_eq!(default_route_v6(odd), None);
        }
    }
}
