//! A ClusterIP in front of the receiving pod: `linux-routed` with rules of
//! the shape that kube-proxy writes, in its nftables and in its iptables mode,
//! for as many services as asked for. Each has two backends, the measured one
//! has one, the receiving pod, and stands in the middle of the list.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use spinlane_tests::{Namespace, lab_dir};

use crate::measure::{MeasureError, io_error};
use crate::subject::peer::Peer;
use crate::subject::{
    BULK_PORT, CONNECTION_PORT, Kind, ROUND_TRIP_PORT, SINK_PORT, ServiceAddress, kernel_settings,
    needs, package_version, routed, setting,
};

/// What clients of the measured service ask for.
const PORTS: [(&str, u16); 5] = [
    ("udp", SINK_PORT),
    ("tcp", BULK_PORT),
    ("tcp", ROUND_TRIP_PORT),
    ("udp", ROUND_TRIP_PORT),
    ("tcp", CONNECTION_PORT),
];
/// kube-proxy's mark on what has to be masqueraded.
const MASQUERADE_MARK: &str = "0x4000";

/// One port of a service and where it leads.
struct ServicePort {
    /// Tells it from the others in names of chains.
    name: String,
    address: IpAddr,
    protocol: &'static str,
    port: u16,
    backends: Vec<(IpAddr, u16)>,
}

/// Rules of kube-proxy's nftables mode.
pub(super) fn set_up_nft(services: usize) -> Result<Peer, MeasureError> {
    needs(Kind::NftProxy, &["nft"], "nftables")?;
    let peer = routed::forwarding(Kind::NftProxy)?;
    let node = &peer.nodes[0];
    for (family, v6) in [("ip", false), ("ip6", true)] {
        let rules = nft_rules(family, &service_ports(&peer, services, v6));
        load(node, &rules, &["nft", "-f"])?;
    }
    finish(peer, services, "nftables")
}

/// Rules of kube-proxy's iptables mode.
pub(super) fn set_up_iptables(services: usize) -> Result<Peer, MeasureError> {
    let programs = ["iptables-restore", "ip6tables-restore"];
    needs(Kind::IptablesProxy, &programs, "iptables")?;
    let peer = routed::forwarding(Kind::IptablesProxy)?;
    for (program, v6) in programs.into_iter().zip([false, true]) {
        let rules = iptables_rules(&service_ports(&peer, services, v6));
        load(&peer.nodes[0], &rules, &[program])?;
    }
    finish(peer, services, "iptables")
}

fn finish(mut peer: Peer, services: usize, package: &str) -> Result<Peer, MeasureError> {
    peer.service = Some(ServiceAddress {
        v4: cluster_address(services / 2, false),
        v6: cluster_address(services / 2, true),
        answers_pings: false,
    });
    peer.settings = kernel_settings(&peer, 1500)?;
    peer.settings.extend([
        setting(package, package_version(package)),
        setting("services", services.to_string()),
        setting("the measured one", "in the middle, one backend"),
    ]);
    Ok(peer)
}

/// Hands rules to a program by a file of ours.
fn load(node: &Namespace, rules: &str, program: &[&str]) -> Result<(), MeasureError> {
    let file = lab_dir()?.join(format!("{}.rules", node.name()));
    fs::write(&file, rules).map_err(io_error(format!("writing {}", file.display())))?;
    let path = file.display().to_string();
    node.run(&[program, &[&path]].concat())?;
    Ok(())
}

/// 10.96.x.y or fd96::x:y.
fn cluster_address(number: usize, v6: bool) -> IpAddr {
    let number = number as u32 + 1;
    if v6 {
        let base = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0);
        Ipv6Addr::from_bits(base.to_bits() + u128::from(number)).into()
    } else {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number).into()
    }
}

/// A backend that nobody asks for.
fn absent_backend(number: usize, v6: bool) -> IpAddr {
    let number = number as u32 + 1;
    if v6 {
        let base = Ipv6Addr::new(0xfd98, 0, 0, 0, 0, 0, 0, 0);
        Ipv6Addr::from_bits(base.to_bits() + u128::from(number)).into()
    } else {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 98, 0, 0).to_bits() + number).into()
    }
}

fn service_ports(peer: &Peer, services: usize, v6: bool) -> Vec<ServicePort> {
    let receiver = &peer.pods[1];
    let backend = if v6 { receiver.v6 } else { receiver.v4 };
    let mut ports = Vec::new();
    for number in 0..services {
        let address = cluster_address(number, v6);
        if number == services / 2 {
            ports.extend(PORTS.map(|(protocol, port)| ServicePort {
                name: format!("MEASURED{}{port}", protocol.to_uppercase()),
                address,
                protocol,
                port,
                backends: vec![(backend, port)],
            }));
        } else {
            ports.push(ServicePort {
                name: format!("{number:012X}"),
                address,
                protocol: "tcp",
                port: 80,
                backends: [2 * number, 2 * number + 1]
                    .map(|backend| (absent_backend(backend, v6), 8080))
                    .into(),
            });
        }
    }
    ports
}

/// `10.0.0.1:80` or `[fd00::1]:80`.
fn endpoint((address, port): (IpAddr, u16)) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// Tables `nat` and `filter` for iptables-restore: a list of services, a
/// chain for each, a chain for each of its backends.
fn iptables_rules(ports: &[ServicePort]) -> String {
    let mut chains = String::from("*nat\n");
    let mut rules = String::from(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n",
    );
    let _ = write!(
        rules,
        "-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE_MARK}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE_MARK}\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
    );
    for name in ["SERVICES", "MARK-MASQ", "POSTROUTING"] {
        let _ = writeln!(chains, ":KUBE-{name} - [0:0]");
    }
    for service in ports {
        let (name, protocol, port) = (&service.name, service.protocol, service.port);
        let _ = writeln!(chains, ":KUBE-SVC-{name} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -d {} -p {protocol} -m comment --comment \"default/{name} cluster IP\" \
             -m {protocol} --dport {port} -j KUBE-SVC-{name}",
            service.address
        );
        for (index, backend) in service.backends.iter().enumerate() {
            let _ = writeln!(chains, ":KUBE-SEP-{name}{index} - [0:0]");
            let left = service.backends.len() - index;
            let choice = match left {
                1 => String::new(),
                _ => format!(
                    "-m statistic --mode random --probability {:.10} ",
                    1.0 / left as f64
                ),
            };
            let _ = writeln!(
                rules,
                "-A KUBE-SVC-{name} -m comment --comment \"default/{name} -> {to}\" {choice}-j KUBE-SEP-{name}{index}\n\
                 -A KUBE-SEP-{name}{index} -s {from} -m comment --comment \"default/{name}\" -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{name}{index} -p {protocol} -m comment --comment \"default/{name}\" \
                 -m {protocol} -j DNAT --to-destination {to}",
                to = endpoint(*backend),
                from = backend.0,
            );
        }
    }
    chains
        + &rules
        + "COMMIT\n*filter\n:KUBE-FORWARD - [0:0]\n\
           -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
           -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
           -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
           -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
}

/// Table `kube-proxy` of a family: a verdict map of services, a chain for
/// each, a chain for each of its backends.
fn nft_rules(family: &str, ports: &[ServicePort]) -> String {
    let address_type = if family == "ip6" {
        "ipv6_addr"
    } else {
        "ipv4_addr"
    };
    let mut endpoints = String::new();
    let mut services = String::new();
    let mut elements = Vec::new();
    for service in ports {
        let (name, protocol) = (&service.name, service.protocol);
        let mut choices = Vec::new();
        for (index, backend) in service.backends.iter().enumerate() {
            let _ = write!(
                endpoints,
                "chain endpoint-{name}-{index} {{\n{family} saddr {} jump mark-for-masquerade\n\
                 meta l4proto {protocol} dnat to {}\n}}\n",
                backend.0,
                endpoint(*backend)
            );
            choices.push(format!("{index} : goto endpoint-{name}-{index}"));
        }
        let _ = write!(
            services,
            "chain service-{name} {{\nnumgen random mod {} vmap {{ {} }}\n}}\n",
            choices.len(),
            choices.join(", ")
        );
        elements.push(format!(
            "{} . {protocol} . {} : goto service-{name}",
            service.address, service.port
        ));
    }
    format!(
        "table {family} kube-proxy {{\n\
         chain mark-for-masquerade {{\nmeta mark set meta mark or {MASQUERADE_MARK}\n}}\n\
         chain masquerading {{\nmeta mark and {MASQUERADE_MARK} == 0 return\n\
         meta mark set meta mark xor {MASQUERADE_MARK}\nmasquerade fully-random\n}}\n\
         {endpoints}{services}\
         map service-ips {{\ntype {address_type} . inet_proto . inet_service : verdict\n\
         elements = {{ {} }}\n}}\n\
         chain services {{\n{family} daddr . meta l4proto . th dport vmap @service-ips\n}}\n\
         chain nat-prerouting {{\ntype nat hook prerouting priority dstnat;\njump services\n}}\n\
         chain nat-output {{\ntype nat hook output priority -100;\njump services\n}}\n\
         chain nat-postrouting {{\ntype nat hook postrouting priority srcnat;\njump masquerading\n}}\n\
         chain filter-forward {{\ntype filter hook forward priority -110;\n\
         ct state invalid drop\n}}\n}}\n",
        elements.join(",\n")
    )
}
