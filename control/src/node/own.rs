//! Who this node is, as far as the configuration leaves it open: its
//! addresses, its pods' ranges and the path's MTU follow the node's own
//! object and the uplink at any time, without a restart.
//!
//! | setting | first of |
//! |---|---|
//! | addresses | the file; of the Node object those that the kernel holds; the uplink's first global ones; without an uplink all of the Node object |
//! | pods' ranges | the file; the Node object; what they were before |
//! | path MTU | `network.mtu`; the uplink's; what it was before |
//!
//! Pods stay as they are when ranges change: an address that lies in no range
//! any more is kept until its pod goes, and named.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Core;
use super::endpoint::{Endpoint, State};
use super::inventory::Inventory;
use super::kernel::Kernel;
use super::link::{self, LinkError};
use super::netlink::{Link, Netlink};
use super::setup::Setup;
use super::store::Change;
use super::uplink::wanted_uplink;
use crate::config::{Uplink, is_global};
use crate::source;

impl Setup {
    /// The settings by what is known now.
    fn follow(&self, known: Known<'_>) -> Setup {
        let mut now = self.clone();
        let Known { own, uplink, .. } = known;
        let is_out_of_order = match (&self.uplink, uplink) {
            (Uplink::None, _) => false,
            (_, None) => !self.addresses.is_empty(),
            (_, Some(link)) => !link.up,
        };
        // An uplink that is down or missing is no news of who the node is.
        if self.follows_addresses && !is_out_of_order {
            now.addresses = known.addresses();
        }
        if self.follows_pod_cidrs
            && let Some(own) = own
        {
            let networks = known.networks();
            let refused = |cidr: &IpNet| {
                let why = now.network.refuses_pods(cidr, &now.addresses);
                why.or_else(|| now.network.is_beyond_link(cidr, &networks))
            };
            let ranges = own.pod_cidrs.iter();
            let good: Vec<_> = ranges.filter(|c| refused(c).is_none()).copied().collect();
            now.refusals = own.pod_cidrs.iter().filter_map(refused).collect();
            if !good.is_empty() {
                now.set_pod_cidrs(good);
            }
        }
        let underlay = match (&self.uplink, uplink) {
            (Uplink::None, _) => Some(None),
            // A missing uplink is no news of the path.
            (_, uplink) => uplink.map(|link| Some(link.mtu)),
        };
        let has_lost_all = now.addresses.is_empty() && !self.addresses.is_empty();
        if let Some(mtu) = underlay
            && !has_lost_all
        {
            now.path_mtu = now.network.path_mtu(mtu, &now.addresses);
        }
        now
    }
}

/// What tells of this node.
#[derive(Clone, Copy)]
struct Known<'a> {
    /// Its own object.
    own: Option<&'a source::Node>,
    kernel: &'a Kernel,
    uplink: Option<&'a Link>,
    /// Index of the host port's interface, whose addresses prove nothing.
    host: Option<u32>,
}

impl Known<'_> {
    /// One of each family. Other nodes know this one by its object alone: of a
    /// family that is not there, no end of the overlay can be.
    fn addresses(&self) -> Vec<IpAddr> {
        let one = |v6: bool| {
            let is_told = |v6: bool| self.told().any(|address| address.is_ipv6() == v6);
            if is_told(!v6) && !is_told(v6) {
                return None;
            }
            let of_family = move |address: &IpAddr| address.is_ipv6() == v6;
            let told = self.told().filter(|at| self.is_held(*at)).find(of_family);
            let on_uplink = || self.on_uplink().find(of_family);
            let at_last = || self.told().find(of_family);
            told.or_else(on_uplink)
                .or_else(|| at_last().filter(|_| self.uplink.is_none()))
        };
        [false, true].into_iter().filter_map(one).collect()
    }

    /// Networks that the uplink is in.
    fn networks(&self) -> Vec<IpNet> {
        let routes = self.kernel.routes.iter();
        let own = routes.filter(|route| {
            let mut uplink = self.uplink.into_iter();
            uplink.any(|link| route.is_network_of(link.index))
        });
        own.map(|route| route.to).collect()
    }

    fn told(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.own.into_iter();
        own.flat_map(|own| own.addresses.iter().copied())
    }

    fn is_held(&self, address: IpAddr) -> bool {
        let mut held = self.kernel.addresses.iter();
        held.any(|(index, at)| Some(*index) != self.host && *at == address)
    }

    fn on_uplink(&self) -> impl Iterator<Item = IpAddr> {
        let index = self.uplink.map(|link| link.index);
        let held = self.kernel.addresses.iter();
        held.filter(move |(at, address)| Some(*at) == index && is_global(*address))
            .map(|(_, address)| *address)
    }
}

impl Core {
    /// The settings in force.
    pub(crate) fn setup(&self) -> Arc<Setup> {
        self.setup.load_full()
    }

    /// Takes over what the node's own object and the kernel say of this node.
    /// Returns whether anything changed.
    pub(crate) fn follow_own(&self) -> bool {
        let (before, now, strangers) = {
            let mut inventory = self.inventory();
            let before = self.setup();
            let surroundings = &inventory.surroundings;
            let mut nodes = surroundings.nodes.iter();
            let own = nodes.find(|node| node.name == before.name);
            let held = surroundings.uplink.map(|held| held.port.ifindex);
            let now = before.follow(Known {
                own: own.map(|own| &**own),
                kernel: &surroundings.kernel,
                uplink: wanted_uplink(&before.uplink, &surroundings.kernel, held),
                host: inventory.host.map(|host| host.ifindex),
            });
            if now == *before {
                return false;
            }
            // Under the lock, so that an ADD sees one or the other.
            let scope = now.segment_of(None);
            inventory.ipam.set_ranges(&scope, &now.pod_cidrs);
            self.setup.store(Arc::new(now.clone()));
            inventory.surroundings.version += 1;
            inventory.touch();
            let strangers = inventory.strangers(&now);
            (before, now, strangers)
        };
        tell(&before, &now, &strangers);
        if before.path_mtu != now.path_mtu {
            self.align_pods();
        }
        true
    }

    /// Gives every pod whose MTU nobody chose the path's.
    pub(crate) fn align_pods(&self) {
        let pods: Vec<_> = {
            let inventory = self.inventory();
            let live = inventory.endpoints.values();
            live.map(|live| live.endpoint.attachment.clone()).collect()
        };
        for attachment in pods {
            let _held = self.locks.lock(&attachment);
            let endpoint = match self.inventory().endpoints.get(&attachment) {
                Some(live) => live.endpoint.clone(),
                None => continue,
            };
            let mtu = self.setup().path_mtu_in(endpoint.segment.as_deref());
            let is_due = endpoint.follows_path_mtu && endpoint.mtu != mtu;
            if is_due
                && endpoint.state == State::Attached
                && let Err(error) = self.align(endpoint, mtu)
            {
                tracing::warn!(
                    container = attachment.container_id,
                    %error,
                    "cannot tell a pod the path's MTU {mtu}: packets that are too big are answered one by one"
                );
            }
        }
    }

    /// The caller holds the attachment's lock.
    fn align(&self, mut endpoint: Endpoint, mtu: u32) -> Result<(), LinkError> {
        let before = endpoint.mtu;
        endpoint.mtu = mtu;
        for route in endpoint.routes.iter_mut().filter(|r| r.mtu == before) {
            route.mtu = mtu;
        }
        if endpoint.segment_mtu == before || endpoint.segment_mtu > mtu {
            endpoint.segment_mtu = mtu;
        }
        if endpoint.device_mtu == before {
            endpoint.device_mtu = mtu;
            let mut netlink = Netlink::open()?;
            let name = &endpoint.host_ifname;
            if let Some(host) = netlink.link(name)? {
                netlink.request(link::set_mtu(name, host.index, mtu))?;
            }
        }
        link::in_pod(&endpoint, || link::set_pod_mtu(&endpoint))?;
        if let Some(live) = self.inventory().endpoints.get_mut(&endpoint.attachment) {
            live.endpoint = endpoint.clone();
        }
        self.inventory().touch();
        let recorded = self.store.write(vec![Change::Put(Box::new(endpoint))]);
        if let Err(error) = recorded {
            tracing::error!(%error, "a pod's MTU will be set again after a restart");
        }
        Ok(())
    }
}

impl Inventory {
    /// Routed pods with an address that lies in no range of this node.
    pub fn strangers(&self, setup: &Setup) -> Vec<String> {
        if setup.pod_cidrs.is_empty() {
            return Vec::new();
        }
        let live = self.endpoints.values().map(|live| &live.endpoint);
        let mut names: Vec<String> = live
            .filter(|endpoint| !endpoint.delegated)
            .flat_map(|endpoint| {
                let outside = setup.outside(endpoint);
                outside.map(|at| format!("{} ({at})", endpoint.owner()))
            })
            .collect();
        names.sort();
        names
    }
}

impl Setup {
    /// Addresses of a routed endpoint that lie in no range of this node.
    pub fn outside<'a>(&'a self, endpoint: &'a Endpoint) -> impl Iterator<Item = IpAddr> + 'a {
        let is_routed = endpoint.segment.is_none();
        let inside = |at: &IpAddr| self.pod_cidrs.iter().any(|range| range.contains(at));
        endpoint.ips().filter(move |at| is_routed && !inside(at))
    }
}

/// What strangers mean.
pub(super) fn strangers_notice(strangers: &[String]) -> Option<String> {
    (!strangers.is_empty()).then(|| {
        format!(
            "{} pods keep addresses of ranges that this node no longer has, which other nodes do not route here; delete them and have them made anew: {}",
            strangers.len(),
            strangers.join(", ")
        )
    })
}

fn tell(before: &Setup, now: &Setup, strangers: &[String]) {
    if before.addresses != now.addresses {
        tracing::info!(before = ?before.addresses, now = ?now.addresses, "the node's addresses changed");
    }
    if before.pod_cidrs != now.pod_cidrs {
        tracing::info!(before = ?before.pod_cidrs, now = ?now.pod_cidrs, "the node's pod ranges changed");
        if let Some(notice) = strangers_notice(strangers) {
            tracing::warn!("{notice}");
        }
    }
    if before.path_mtu != now.path_mtu {
        tracing::info!(
            before = before.path_mtu,
            now = now.path_mtu,
            "the path's MTU changed"
        );
    }
    for refusal in now.refusals.iter().filter(|r| !before.refusals.contains(r)) {
        tracing::error!("the node's own object: spec.podCIDRs: {refusal}");
    }
}

#[cfg(test)]
mod tests {
    use spinlane_api::cni::Address;

    use super::*;
    use crate::node::endpoint::State;
    use crate::node::inventory::{Lead, Live};
    use crate::node::samples::{self, network};

    const HOST: u32 = 9;

    struct Case {
        name: &'static str,
        uplink: Uplink,
        link: Option<(bool, u32)>,
        /// Addresses of the uplink (2) and the host port's interface.
        held: &'static [(u32, &'static str)],
        told: &'static [&'static str],
        before: (&'static [&'static str], u32),
        expect: (&'static [&'static str], u32),
    }

    fn all(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn setup(case: &Case) -> Setup {
        Setup {
            name: "n1".into(),
            addresses: all(case.before.0),
            follows_addresses: true,
            follows_pod_cidrs: true,
            uplink: case.uplink.clone(),
            network: network("cluster-cidrs = [\"10.244.0.0/16\"]"),
            path_mtu: case.before.1,
            ..samples::setup()
        }
    }

    fn node(addresses: &[&str], ranges: &[&str]) -> source::Node {
        source::Node {
            name: "n1".into(),
            addresses: all(addresses),
            pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            vtep_mac: None,
        }
    }

    fn follow(setup: &Setup, case: &Case, own: Option<&source::Node>) -> Setup {
        let link = case.link.map(|(up, mtu)| Link {
            name: "eth0".into(),
            mtu,
            up,
            operational: up,
            has_carrier: up,
            is_veth: true,
            ..samples::link(2)
        });
        let held = case.held.iter();
        let kernel = Kernel {
            addresses: held
                .map(|(at, text)| (*at, text.parse().unwrap()))
                .collect(),
            ..Kernel::default()
        };
        setup.follow(Known {
            own,
            kernel: &kernel,
            uplink: link.as_ref(),
            host: Some(HOST),
        })
    }

    #[test]
    fn addresses_and_mtu_follow_what_tells_most() {
        let eth0 = || Uplink::Named("eth0".into());
        let cases = [
            Case {
                name: "the uplink's first global ones",
                uplink: eth0(),
                link: Some((true, 1500)),
                held: &[
                    (2, "fe80::1"),
                    (2, "192.0.2.1"),
                    (2, "192.0.2.2"),
                    (2, "2001:db8::1"),
                ],
                told: &[],
                before: (&[], 1450),
                expect: (&["192.0.2.1", "2001:db8::1"], 1450),
            },
            Case {
                name: "of several, the one that the others are told",
                uplink: eth0(),
                link: Some((true, 9000)),
                held: &[(2, "192.0.2.1"), (2, "192.0.2.2")],
                told: &["192.0.2.2"],
                before: (&["192.0.2.1"], 1450),
                expect: (&["192.0.2.2"], 8950),
            },
            Case {
                name: "none of a family that the others are not told of",
                uplink: eth0(),
                link: Some((true, 1500)),
                held: &[(2, "192.0.2.1"), (2, "2001:db8::1")],
                told: &["2001:db8::1"],
                before: (&["192.0.2.1", "2001:db8::1"], 1450),
                expect: (&["2001:db8::1"], 1430),
            },
            Case {
                name: "not one that only the host port holds",
                uplink: eth0(),
                link: Some((true, 1500)),
                held: &[(HOST, "192.0.2.9"), (2, "192.0.2.1")],
                told: &["192.0.2.9"],
                before: (&["192.0.2.9"], 1450),
                expect: (&["192.0.2.1"], 1450),
            },
            Case {
                name: "an uplink that is down is no news",
                uplink: eth0(),
                link: Some((false, 1500)),
                held: &[(2, "192.0.2.1")],
                told: &[],
                before: (&["192.0.2.1", "2001:db8::1"], 1450),
                expect: (&["192.0.2.1", "2001:db8::1"], 1450),
            },
            Case {
                name: "nor one that is missing",
                uplink: eth0(),
                link: None,
                held: &[],
                told: &["192.0.2.2"],
                before: (&["192.0.2.1"], 8950),
                expect: (&["192.0.2.1"], 8950),
            },
            Case {
                name: "without an uplink the Node object knows",
                uplink: Uplink::None,
                link: None,
                held: &[],
                told: &["192.0.2.2", "192.0.2.3"],
                before: (&[], 1450),
                expect: (&["192.0.2.2"], 1450),
            },
            Case {
                name: "over IPv6 alone, the headers are longer",
                uplink: eth0(),
                link: Some((true, 1500)),
                held: &[(2, "2001:db8::1")],
                told: &[],
                before: (&[], 1450),
                expect: (&["2001:db8::1"], 1430),
            },
            Case {
                name: "an address that goes takes no bytes along",
                uplink: eth0(),
                link: Some((true, 1500)),
                held: &[],
                told: &["2001:db8::1"],
                before: (&["2001:db8::1"], 1430),
                expect: (&[], 1430),
            },
        ];
        for case in cases {
            let own = (!case.told.is_empty()).then(|| node(case.told, &[]));
            let now = follow(&setup(&case), &case, own.as_ref());
            assert_eq!(now.addresses, all(case.expect.0), "{}", case.name);
            assert_eq!(now.path_mtu, case.expect.1, "{}", case.name);
        }
    }

    #[test]
    fn ranges_follow_the_node_object_as_far_as_they_are_good() {
        let case = Case {
            name: "",
            uplink: Uplink::Named("eth0".into()),
            link: Some((true, 1500)),
            held: &[(2, "10.244.9.1")],
            told: &[],
            before: (&[], 1450),
            expect: (&[], 0),
        };
        let nothing = setup(&case);
        assert_eq!(follow(&nothing, &case, None).pod_cidrs, []);
        let late = follow(
            &nothing,
            &case,
            Some(&node(&[], &["10.244.1.0/24", "fd00::/64"])),
        );
        assert_eq!(late.pod_cidrs.len(), 2);
        // An object that is gone, or says nothing, takes nothing away.
        assert_eq!(follow(&late, &case, None).pod_cidrs, late.pod_cidrs);
        let silent = follow(&late, &case, Some(&node(&[], &[])));
        assert_eq!(silent.pod_cidrs, late.pod_cidrs);
        let odd = [
            "10.9.0.0/24",
            "10.244.9.0/24",
            "10.244.1.0/31",
            "10.244.2.0/24",
        ];
        let now = follow(&late, &case, Some(&node(&[], &odd)));
        assert_eq!(now.pod_cidrs, ["10.244.2.0/24".parse().unwrap()]);
        let words = ["outside network.cluster-cidrs", "own address", "no room"];
        assert_eq!(now.refusals.len(), words.len());
        for (refusal, word) in now.refusals.iter().zip(words) {
            assert!(refusal.contains(word), "{refusal}");
        }
        let fixed = Setup {
            follows_pod_cidrs: false,
            ..late
        };
        assert_eq!(follow(&fixed, &case, Some(&node(&[], &odd))), fixed);
    }

    #[test]
    fn strangers_are_named_by_pod_or_container() {
        let setup = Setup {
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            ..samples::setup()
        };
        let mut inventory = Inventory::default();
        for (container, name, address) in [
            ("c1", "old", "10.244.1.8"),
            ("c2", "", "10.244.1.9"),
            ("c3", "new", "10.244.2.2"),
        ] {
            let mut endpoint = samples::endpoint(container, State::Attached);
            endpoint.pod.namespace = "default".into();
            endpoint.pod.name = name.into();
            endpoint.addresses = vec![Address {
                address: address.parse().unwrap(),
                prefix_len: 24,
                gateway: None,
            }];
            let live = Live {
                endpoint,
                port: None,
                lead: Lead::Settled,
            };
            let attachment = live.endpoint.attachment.clone();
            inventory.endpoints.insert(attachment, live);
        }
        let expect = ["container c2 (10.244.1.9)", "pod default/old (10.244.1.8)"];
        assert_eq!(inventory.strangers(&setup), expect);
    }
}
