//! What mode `l2` needs: a network that pods can share with the uplink, its
//! gateway, and an uplink that takes frames for several stations.

use ipnet::IpNet;

use super::{Item, State, item};
use crate::config::{Config, Mode};
use crate::node::netlink::Link;
use crate::node::routes::KernelRoute;

/// Bytes of an Ethernet address.
const ETHERNET: usize = 6;

/// Everything about the network that pods are to share; nothing in other
/// modes.
pub(super) fn items(
    config: &Config,
    link: Option<&Link>,
    routes: &[(KernelRoute, String)],
) -> Vec<Item> {
    let Some(link) = link.filter(|_| config.network().mode == Mode::L2) else {
        return Vec::new();
    };
    let of_link = || routes.iter().map(|(route, _)| route);
    let networks = of_link().filter(|route| route.is_network_of(link.index));
    let networks: Vec<IpNet> = networks.map(|route| route.to).collect();
    let hops = of_link()
        .filter(|route| route.to.prefix_len() == 0 && route.oif == Some(link.index))
        .filter_map(|route| route.via);
    let configured = &config.network().gateways;
    let gateways: Vec<String> = match configured.is_empty() {
        true => hops.map(|hop| hop.to_string()).collect(),
        false => configured.iter().map(ToString::to_string).collect(),
    };
    vec![
        stations(link),
        network(config, link, &networks),
        gateway(link, &gateways),
        addresses(config),
    ]
}

fn stations(link: &Link) -> Item {
    let name = &link.name;
    match link.mac.len() {
        ETHERNET => item(
            "several stations",
            State::Ok,
            format!(
                "{name} becomes promiscuous while the agent runs; what it is plugged into must let every pod's MAC address pass (hypervisors and clouds often do not)"
            ),
        ),
        _ => item(
            "several stations",
            State::Missing,
            format!("{name} is no Ethernet: choose another node.uplink or network.mode"),
        ),
    }
}

fn network(config: &Config, link: &Link, networks: &[IpNet]) -> Item {
    let known = networks.iter().chain(&config.network().cluster_cidrs);
    let known: Vec<String> = known.map(ToString::to_string).collect();
    let (state, detail) = match known.is_empty() {
        true => (
            State::Degraded,
            format!(
                "{} is in no network: give the node an address there, or name the network in network.cluster-cidrs",
                link.name
            ),
        ),
        false => (
            State::Ok,
            format!("pods are stations of {}", known.join(", ")),
        ),
    };
    item("pods' network", state, detail)
}

fn gateway(link: &Link, gateways: &[String]) -> Item {
    match gateways.is_empty() {
        true => item(
            "pods' gateway",
            State::Degraded,
            format!(
                "no default route leads by {}: pods reach their own network only; add one, or write network.gateways",
                link.name
            ),
        ),
        false => item("pods' gateway", State::Ok, gateways.join(", ")),
    }
}

fn addresses(config: &Config) -> Item {
    let ranges = config.node().pod_cidrs.iter().map(ToString::to_string);
    let ranges: Vec<String> = ranges.collect();
    let detail = match ranges.is_empty() {
        true => "no node.pod-cidrs: pods have those that an `ipam` section or the Node object's ranges inside that network give, else they ask the network (DHCP, router advertisements)".to_owned(),
        false => format!("from {}, which must be this node's alone", ranges.join(", ")),
    };
    item("pods' addresses", State::Ok, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::node::samples;

    fn config(network: &str) -> Config {
        let text = format!("[node]\nuplink = \"eth0\"\n[network]\n{network}");
        let environment = Environment {
            host_name: "n1".into(),
            allowed_cores: vec![0],
            ..Environment::default()
        };
        Config::parse(&text, "test", &environment).unwrap()
    }

    fn link(mac: Vec<u8>) -> Link {
        Link {
            name: "eth0".into(),
            mac,
            ..samples::link(2)
        }
    }

    fn route(to: &str, via: Option<&str>) -> (KernelRoute, String) {
        (samples::route(to, via, 2), "eth0".into())
    }

    fn found(network: &str, mac: usize, routes: &[(KernelRoute, String)]) -> Vec<(State, String)> {
        let items = items(&config(network), Some(&link(vec![2; mac])), routes);
        items.into_iter().map(|i| (i.state, i.detail)).collect()
    }

    #[test]
    fn what_the_network_lacks_is_named() {
        let all = [
            route("192.0.2.0/24", None),
            route("0.0.0.0/0", Some("192.0.2.1")),
        ];
        let good = found("mode = \"l2\"", 6, &all);
        assert!(
            good.iter().all(|(state, _)| *state == State::Ok),
            "{good:?}"
        );
        assert!(good[1].1.contains("192.0.2.0/24") && good[2].1 == "192.0.2.1");
        let bare = found("mode = \"l2\"", 6, &[]);
        let states: Vec<_> = bare.iter().map(|(state, _)| *state).collect();
        let degraded = State::Degraded;
        assert_eq!(states, [State::Ok, degraded, degraded, State::Ok]);
        let named = "mode = \"l2\"\ncluster-cidrs = [\"192.0.2.0/24\"]\ngateway = \"192.0.2.9\"";
        let named = found(named, 6, &[]);
        assert!(
            named.iter().all(|(state, _)| *state == State::Ok),
            "{named:?}"
        );
        assert_eq!(found("mode = \"l2\"", 4, &all)[0].0, State::Missing);
        assert!(found("mode = \"routed\"", 6, &all).is_empty());
    }
}
