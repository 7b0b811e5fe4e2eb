//! Between the agent's words and CNI results.

use std::net::IpAddr;

use ipnet::IpNet;
use rscni_plugin::types::{CNIResult, Dns, Interface, IpConfig, Route};
use spinlane_api::cni::{self as api, AddResult};

use crate::error::Error;

/// The result of ADD: what earlier plugins of the chain made, then ours.
///
/// # Errors
/// [`Error::Config`] when the agent or a delegated plugin named an address or
/// route that is none.
pub fn added(
    previous: Option<CNIResult>,
    made: AddResult,
    dns: Option<Dns>,
) -> Result<CNIResult, Error> {
    let mut result = previous.unwrap_or_default();
    let before = result.interfaces.len();
    // The last interface with a sandbox is the pod's end, which the addresses
    // belong to.
    let inside = made
        .interfaces
        .iter()
        .rposition(|interface| interface.sandbox.is_some())
        .and_then(|position| u32::try_from(before + position).ok());
    result
        .interfaces
        .extend(made.interfaces.into_iter().map(interface));
    for address in &made.addresses {
        result.ips.push(ip(address, inside)?);
    }
    for made in &made.routes {
        result.routes.push(route(made)?);
    }
    if dns.is_some() {
        result.dns = dns;
    }
    Ok(result)
}

/// The addresses and the hardware address that a result gives to `ifname`
/// inside the container, for CHECK.
#[must_use]
pub fn expected(result: &CNIResult, ifname: &str) -> (Vec<api::Address>, Option<String>) {
    let inside = |interface: &Interface| {
        interface.name == ifname && interface.sandbox.as_deref().is_some_and(|s| !s.is_empty())
    };
    let ours = |ip: &&IpConfig| {
        ip.interface
            .and_then(|index| result.interfaces.get(usize::try_from(index).ok()?))
            .is_some_and(inside)
    };
    let mac = result
        .interfaces
        .iter()
        .find(|interface| inside(interface))
        .map(|interface| interface.mac.clone())
        .filter(|mac| !mac.is_empty());
    (result.ips.iter().filter(ours).map(address).collect(), mac)
}

/// An address of a delegated plugin's result, for the agent.
#[must_use]
pub fn address(ip: &IpConfig) -> api::Address {
    api::Address {
        address: ip.address.addr(),
        prefix_len: ip.address.prefix_len(),
        gateway: ip.gateway,
    }
}

/// A route of a delegated plugin's result, for the agent. Without a next hop
/// it goes to the gateway of its family, as the specification allows.
#[must_use]
pub fn delegated_route(route: &Route, ips: &[IpConfig]) -> api::Route {
    let family = |gateway: &IpAddr| gateway.is_ipv4() == route.dst.addr().is_ipv4();
    api::Route {
        dst: route.dst.to_string(),
        gw: route
            .gw
            .or_else(|| ips.iter().filter_map(|ip| ip.gateway).find(family)),
        mtu: route.mtu,
    }
}

fn interface(made: api::Interface) -> Interface {
    Interface {
        name: made.name,
        mac: made.mac,
        mtu: made.mtu,
        sandbox: made.sandbox,
        socket_path: None,
        pci_id: None,
    }
}

fn ip(made: &api::Address, interface: Option<u32>) -> Result<IpConfig, Error> {
    let address = IpNet::new(made.address, made.prefix_len).map_err(|_| {
        Error::Config(format!(
            "{}/{} is not an address with its prefix length",
            made.address, made.prefix_len
        ))
    })?;
    Ok(IpConfig {
        interface,
        address,
        gateway: made.gateway,
    })
}

fn route(made: &api::Route) -> Result<Route, Error> {
    Ok(Route {
        dst: made
            .dst
            .parse()
            .map_err(|_| Error::Config(format!("route to {:?} is not a prefix", made.dst)))?,
        gw: made.gw,
        mtu: made.mtu,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    })
}

#[cfg(test)]
mod tests {
    use rscni_plugin::types::CNIResult;
    use serde_json::json;
    use spinlane_api::cni::AddResult;

    use super::{added, expected};

    fn made() -> AddResult {
        serde_json::from_value(json!({
            "interfaces": [
                {"name": "sl1234", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "0a:58:0a:f4:01:02", "mtu": 65535, "sandbox": "/run/netns/x"},
            ],
            "addresses": [
                {"address": "10.244.1.2", "prefix_len": 32, "gateway": "10.244.1.1"},
                {"address": "fd44::2", "prefix_len": 128, "gateway": "fe80::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1450}, {"dst": "::/0"}],
        }))
        .unwrap()
    }

    #[test]
    fn addresses_belong_to_the_pods_end() {
        let result = added(None, made(), None).unwrap();
        assert_eq!(
            serde_json::to_value(&result).unwrap(),
            json!({
                "interfaces": [
                    {"name": "sl1234", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "0a:58:0a:f4:01:02", "mtu": 65535,
                     "sandbox": "/run/netns/x"},
                ],
                "ips": [
                    {"interface": 1, "address": "10.244.1.2/32", "gateway": "10.244.1.1"},
                    {"interface": 1, "address": "fd44::2/128", "gateway": "fe80::1"},
                ],
                "routes": [
                    {"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1450},
                    {"dst": "::/0"},
                ],
            })
        );
        let (addresses, mac) = expected(&result, "eth0");
        assert_eq!(addresses, made().addresses);
        assert_eq!(mac.as_deref(), Some("0a:58:0a:f4:01:02"));
        assert_eq!(expected(&result, "sl1234"), (vec![], None));
    }

    #[test]
    fn a_chain_keeps_what_came_before() {
        let previous: CNIResult = serde_json::from_value(json!({
            "interfaces": [{"name": "lo", "sandbox": "/run/netns/x"}],
            "ips": [{"interface": 0, "address": "127.0.0.1/8"}],
            "dns": {"nameservers": ["10.96.0.10"]},
        }))
        .unwrap();
        let result = added(Some(previous), made(), None).unwrap();
        let indexes: Vec<_> = result.ips.iter().map(|ip| ip.interface).collect();
        assert_eq!(indexes, [Some(0), Some(2), Some(2)]);
        assert_eq!(result.dns.as_ref().unwrap().nameservers, ["10.96.0.10"]);
        assert_eq!(expected(&result, "eth0").0.len(), 2);
    }
}
