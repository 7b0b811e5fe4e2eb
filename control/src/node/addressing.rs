//! Which addresses, next hops and routes an ADD asks for. Nothing here
//! touches the kernel.
//!
//! A routed pod has host addresses (/32, /128) and the switch as the gateway,
//! whatever a delegated plugin says of gateways. A pod in a segment has the
//! segment's prefix, and what the plugin says stands. A pod in the segment that
//! is the uplink's own network has that network's prefix and gateway.

use std::net::IpAddr;

use ipnet::IpNet;
use spinlane_api::cni::{AddRequest, Address};
use spinlane_dataplane::types::is_routable;

use super::endpoint::PodRoute;
use super::error::AttachError;
use super::ipam::{Ipam, Lease, ScopeName};
use super::routes::{default_net, host_prefix_len};
use super::setup::{GATEWAY_LINK_LOCAL, Setup};
use super::shared::OnLink;

/// Gateway of a routed pod whose node has no IPv4 range: any address that
/// nobody else uses does, the switch answers for it.
const FALLBACK_GATEWAY_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 1, 1));

/// Holds the addresses of a request; all or none.
pub(crate) fn choose_addresses(
    ipam: &mut Ipam,
    setup: &Setup,
    (request, on_link): (&AddRequest, Option<&OnLink>),
    now_s: u64,
) -> Result<Vec<Address>, AttachError> {
    let mut chosen: Vec<Address> = Vec::new();
    if let Some(on_link) = on_link {
        let (taken, seen) = (on_link.taken.clone(), on_link.seen.clone());
        ipam.set_others(&request.segment, taken, seen);
    }
    if let Err(error) = hold_addresses(ipam, request, now_s, &mut chosen) {
        give_back(ipam, &request.segment, &chosen);
        return Err(error);
    }
    match on_link {
        Some(on_link) => set_on_link(&mut chosen, request, on_link),
        None if request.segment.is_none() => set_gateways(&mut chosen, setup),
        None => {}
    }
    Ok(chosen)
}

/// Gives addresses back that nobody has seen yet: they need no rest.
pub(crate) fn give_back(ipam: &mut Ipam, scope: &ScopeName, addresses: &[Address]) {
    for address in addresses {
        ipam.release(scope, address.address, 0);
    }
}

/// The shared network's own prefix and gateway, but for what a delegated plugin
/// said.
fn set_on_link(addresses: &mut [Address], request: &AddRequest, on_link: &OnLink) {
    for address in addresses {
        if request.delegated.is_none() {
            address.prefix_len = on_link.prefix_len(address.address, address.prefix_len);
        }
        let gateway = on_link.gateway(address.address.is_ipv6());
        address.gateway = address.gateway.or(gateway);
    }
}

fn set_gateways(addresses: &mut [Address], setup: &Setup) {
    for address in addresses {
        address.prefix_len = host_prefix_len(address.address);
        let fallback = if address.address.is_ipv6() {
            GATEWAY_LINK_LOCAL.into()
        } else {
            FALLBACK_GATEWAY_V4
        };
        let ours = setup.gateway(address.address.is_ipv6());
        address.gateway = ours.or(address.gateway).or(Some(fallback));
    }
}

fn hold_addresses(
    ipam: &mut Ipam,
    request: &AddRequest,
    now_s: u64,
    chosen: &mut Vec<Address>,
) -> Result<(), AttachError> {
    let scope = &request.segment;
    let from_lease = |lease: Lease| Address {
        address: lease.address,
        prefix_len: lease.range.prefix_len(),
        gateway: None,
    };
    if let Some(delegated) = &request.delegated {
        for address in &delegated.addresses {
            usable(address.address)?;
            ipam.hold(scope, address.address)?;
            chosen.push(address.clone());
        }
        return Ok(());
    }
    if request.addresses_follow {
        return Ok(());
    }
    let ranges = ipam.has_ranges(scope);
    for text in &request.ips {
        let (address, len) = parse_ip(text)?;
        usable(address)?;
        if ranges {
            chosen.push(from_lease(ipam.request(scope, address)?));
        } else {
            ipam.hold(scope, address)?;
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
    let leases = ipam.allocate_families(scope, &missing, now_s)?;
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
pub(crate) fn pod_routes(
    addresses: &[Address],
    (request, is_shared): (&AddRequest, bool),
    mtu: u32,
) -> Vec<PodRoute> {
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
    // In the shared network there is a way out, whoever gave the address.
    for address in addresses.iter().filter(|_| is_shared) {
        if address.gateway.is_some() {
            push(default_net(address.address.is_ipv6()), address.gateway);
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::samples;
    use spinlane_api::cni::{Delegated, Route};

    fn request() -> AddRequest {
        samples::request("c")
    }

    fn setup(ranges: &[&str]) -> Setup {
        Setup {
            pod_cidrs: ranges.iter().map(|r| r.parse().unwrap()).collect(),
            ..samples::setup()
        }
    }

    /// Addresses and routes as text: `ADDRESS/LEN via GATEWAY`, `TO via HOP`.
    fn decide(setup: &Setup, request: &AddRequest) -> Result<(Vec<String>, Vec<String>), String> {
        decide_on(setup, request, None)
    }

    fn decide_on(
        setup: &Setup,
        request: &AddRequest,
        on_link: Option<&OnLink>,
    ) -> Result<(Vec<String>, Vec<String>), String> {
        let blue = (
            Some("blue".to_owned()),
            vec!["10.50.0.0/24".parse().unwrap()],
        );
        let wire = (Some("wire".to_owned()), vec![]);
        let shared = (Some("l2".to_owned()), setup.pod_cidrs.clone());
        let mut ipam = Ipam::new([(None, setup.pod_cidrs.clone()), blue, wire, shared]);
        let addresses =
            choose_addresses(&mut ipam, setup, (request, on_link), 0).map_err(|e| e.to_string())?;
        let via = |hop: Option<IpAddr>| hop.map_or(String::new(), |hop| format!(" via {hop}"));
        let routes = pod_routes(&addresses, (request, on_link.is_some()), 1450)
            .iter()
            .map(|r| format!("{}{}", r.to, via(r.via)))
            .collect();
        let addresses = addresses
            .iter()
            .map(|a| format!("{}/{}{}", a.address, a.prefix_len, via(a.gateway)))
            .collect();
        Ok((addresses, routes))
    }

    fn host_local(address: &str, gateway: &str, routes: &[(&str, Option<&str>)]) -> Delegated {
        let net: IpNet = address.parse().unwrap();
        Delegated {
            plugin: "host-local".into(),
            addresses: vec![Address {
                address: net.addr(),
                prefix_len: net.prefix_len(),
                gateway: Some(gateway.parse().unwrap()),
            }],
            routes: routes
                .iter()
                .map(|(dst, gw)| Route {
                    dst: (*dst).to_owned(),
                    gw: gw.map(|gw| gw.parse().unwrap()),
                    mtu: None,
                })
                .collect(),
        }
    }

    struct Case {
        name: &'static str,
        ranges: &'static [&'static str],
        change: fn(&mut AddRequest),
        addresses: &'static [&'static str],
        routes: &'static [&'static str],
    }

    #[test]
    fn each_kind_of_pod_gets_its_addresses_and_routes() {
        let cases = [
            Case {
                name: "dual stack",
                ranges: &["10.244.1.0/24", "fd00:1::/64"],
                change: |_| {},
                addresses: &[
                    "10.244.1.2/32 via 10.244.1.1",
                    "fd00:1::2/128 via fd00:1::1",
                ],
                routes: &[
                    "10.244.1.1/32",
                    "0.0.0.0/0 via 10.244.1.1",
                    "fd00:1::1/128",
                    "::/0 via fe80::1",
                ],
            },
            Case {
                name: "one address asked for, the other family chosen",
                ranges: &["10.244.1.0/24", "fd00:1::/64"],
                change: |r| r.ips = vec!["10.244.1.77/24".into()],
                addresses: &[
                    "10.244.1.77/32 via 10.244.1.1",
                    "fd00:1::2/128 via fd00:1::1",
                ],
                routes: &[
                    "10.244.1.1/32",
                    "0.0.0.0/0 via 10.244.1.1",
                    "fd00:1::1/128",
                    "::/0 via fe80::1",
                ],
            },
            Case {
                name: "delegated, routed: the switch stays the gateway",
                ranges: &["10.244.1.0/24"],
                change: |r| {
                    r.delegated = Some(host_local(
                        "10.244.1.9/24",
                        "10.244.1.254",
                        &[("0.0.0.0/0", None), ("10.9.0.0/16", Some("10.244.1.254"))],
                    ));
                },
                addresses: &["10.244.1.9/32 via 10.244.1.1"],
                routes: &[
                    "10.244.1.1/32",
                    "0.0.0.0/0 via 10.244.1.1",
                    "10.9.0.0/16 via 10.244.1.1",
                ],
            },
            Case {
                name: "delegated where the node has no range",
                ranges: &[],
                change: |r| {
                    r.delegated = Some(host_local("10.7.0.9/24", "10.7.0.1", &[]));
                },
                addresses: &["10.7.0.9/32 via 10.7.0.1"],
                routes: &["10.7.0.1/32", "0.0.0.0/0 via 10.7.0.1"],
            },
            Case {
                name: "segment",
                ranges: &["10.244.1.0/24"],
                change: |r| r.segment = Some("blue".into()),
                addresses: &["10.50.0.2/24"],
                routes: &["10.50.0.0/24"],
            },
            Case {
                name: "delegated in a segment: its gateway stands",
                ranges: &[],
                change: |r| {
                    r.segment = Some("blue".into());
                    r.delegated = Some(host_local(
                        "10.50.0.9/24",
                        "10.50.0.254",
                        &[("0.0.0.0/0", None)],
                    ));
                },
                addresses: &["10.50.0.9/24 via 10.50.0.254"],
                routes: &["10.50.0.0/24", "0.0.0.0/0 via 10.50.0.254"],
            },
            Case {
                name: "a plain wire",
                ranges: &[],
                change: |r| r.segment = Some("wire".into()),
                addresses: &[],
                routes: &[],
            },
            Case {
                name: "a plain wire with an address asked for",
                ranges: &[],
                change: |r| {
                    r.segment = Some("wire".into());
                    r.ips = vec!["10.60.0.5/16".into()];
                },
                addresses: &["10.60.0.5/16"],
                routes: &["10.60.0.0/16"],
            },
        ];
        for case in cases {
            let mut request = request();
            (case.change)(&mut request);
            let (addresses, routes) = decide(&setup(case.ranges), &request).unwrap();
            assert_eq!(addresses, case.addresses, "{}", case.name);
            assert_eq!(routes, case.routes, "{}", case.name);
        }
    }

    /// The node's network as the kernel has it: pods get some of its addresses.
    fn on_link() -> OnLink {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        OnLink {
            networks: vec!["172.31.0.0/24".parse().unwrap()],
            gateways: vec![address("172.31.0.254"), address("fe80::9")],
            taken: [address("172.31.0.66")].into(),
            seen: [address("172.31.0.67")].into(),
        }
    }

    #[test]
    fn pods_of_the_shared_network_have_its_prefix_and_gateways() {
        let setup = setup(&["172.31.0.64/27", "fd31::/64"]);
        let mut ask = request();
        ask.segment = Some("l2".into());
        let decided = |ask: &AddRequest| decide_on(&setup, ask, Some(&on_link())).unwrap();
        let (addresses, routes) = decided(&ask);
        assert_eq!(
            addresses,
            ["172.31.0.68/24 via 172.31.0.254", "fd31::2/64 via fe80::9"]
        );
        assert_eq!(
            routes,
            [
                "172.31.0.0/24",
                "fd31::/64",
                "0.0.0.0/0 via 172.31.0.254",
                "::/0 via fe80::9"
            ]
        );
        let delegated = |address: &str, gateway: Option<&str>, routes: &[_]| {
            let mut given = host_local(address, "172.31.0.1", routes);
            given.addresses[0].gateway = gateway.map(|gateway| gateway.parse().unwrap());
            AddRequest {
                delegated: Some(given),
                ..ask.clone()
            }
        };
        let (addresses, routes) = decided(&delegated("172.31.0.9/16", None, &[]));
        assert_eq!(addresses, ["172.31.0.9/16 via 172.31.0.254"]);
        assert_eq!(routes, ["172.31.0.0/16", "0.0.0.0/0 via 172.31.0.254"]);
        let own = [("10.0.0.0/8", None), ("0.0.0.0/0", Some("172.31.0.253"))];
        let (_, routes) = decided(&delegated("172.31.0.9/24", Some("172.31.0.1"), &own));
        let expect = [
            "172.31.0.0/24",
            "10.0.0.0/8 via 172.31.0.1",
            "0.0.0.0/0 via 172.31.0.253",
        ];
        assert_eq!(routes, expect);
        ask.ips = vec!["172.31.0.66".into()];
        let refused = decide_on(&setup, &ask, Some(&on_link())).unwrap_err();
        assert!(refused.contains("another station"), "{refused}");
        ask.ips = vec!["172.31.0.67".into()];
        assert!(decide_on(&setup, &ask, Some(&on_link())).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let mut ask = request();
        for (ips, word) in [
            ("10.244.1.1", "gateway"),
            ("10.99.0.1", "none of the ranges"),
            ("127.0.0.1", "loopback"),
            ("ten", "is no address"),
        ] {
            ask.ips = vec![ips.into()];
            let error = decide(&setup(&["10.244.1.0/24"]), &ask).unwrap_err();
            assert!(error.contains(word), "{ips}: {error}");
        }
        let error = decide(&setup(&[]), &request()).unwrap_err();
        assert!(error.contains("no address ranges"), "{error}");
    }

    #[test]
    fn a_refused_request_holds_nothing() {
        let setup = setup(&["10.244.1.0/24"]);
        let mut ipam = Ipam::new([(None, setup.pod_cidrs.clone())]);
        let mut ask = request();
        ask.ips = vec!["10.244.1.9".into(), "10.244.1.1".into()];
        assert!(choose_addresses(&mut ipam, &setup, (&ask, None), 100).is_err());
        ask.ips = vec!["10.244.1.9".into()];
        assert!(choose_addresses(&mut ipam, &setup, (&ask, None), 100).is_ok());
    }
}
