use super::*;
use crate::config::Environment;
use crate::node::samples;

fn config(network: &str) -> Config {
    let text = format!(
        "[node]\nname = \"n1\"\nuplink = \"eth0\"\n[network]\ncluster-cidrs = [\"10.244.0.0/16\"]\n{network}\n[lanes]\ncores = [0, 1]\n"
    );
    let environment = Environment {
        allowed_cores: vec![0, 1],
        ..Environment::default()
    };
    Config::parse(&text, "test", &environment).unwrap()
}

fn facts() -> Facts {
    Facts {
        link: Some(Link {
            name: "eth0".into(),
            rx_queues: 4,
            ..samples::link(2)
        }),
        addresses: 1,
        queues: 4,
        xdp: Some(XdpFeatures {
            native: true,
            zero_copy: true,
            multi_buffer: true,
        }),
        rings: Some(Rings {
            rx: 1024,
            rx_max: 4096,
            tx: 1024,
            tx_max: 4096,
        }),
        routes: vec![(route("0.0.0.0/0"), "eth0".into())],
        ip_forward: "0".into(),
        rp_filter: "1".into(),
        ports: [(22, "tcp")].into(),
        overlays: vec![],
    }
}

fn route(to: &str) -> KernelRoute {
    samples::route(to, None, 2)
}

#[test]
fn a_good_machine_has_nothing_to_complain_of() {
    let found = items(&config(""), &facts());
    let odd: Vec<_> = found.iter().filter(|i| i.state != State::Ok).collect();
    assert!(odd.is_empty(), "{odd:?}");
    let names: Vec<_> = found.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "uplink",
            "uplink's driver",
            "uplink's queues",
            "uplink's rings",
            "MTU",
            "VXLAN port",
            "masquerade's ports",
            "forwarding",
            "rp_filter",
            "routes to pods",
        ]
    );
}

/// What is wrong, with what it makes of which item, and words of the advice.
struct Case {
    network: &'static str,
    spoil: fn(&mut Facts),
    name: &'static str,
    state: State,
    words: &'static [&'static str],
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let cases = [
        Case {
            network: "",
            spoil: |f| f.link = None,
            name: "uplink",
            state: State::Degraded,
            words: &["no interface eth0", "node.uplink"],
        },
        Case {
            network: "",
            spoil: |f| f.link.as_mut().unwrap().up = false,
            name: "uplink",
            state: State::Degraded,
            words: &["down", "ip link set eth0 up"],
        },
        Case {
            network: "",
            spoil: |f| f.link.as_mut().unwrap().has_carrier = false,
            name: "uplink",
            state: State::Degraded,
            words: &["no carrier"],
        },
        Case {
            network: "",
            spoil: |f| f.addresses = 0,
            name: "uplink",
            state: State::Degraded,
            words: &["no address", "node.address"],
        },
        Case {
            network: "",
            spoil: |f| f.xdp.as_mut().unwrap().native = false,
            name: "uplink's driver",
            state: State::Degraded,
            words: &["generic mode"],
        },
        Case {
            network: "",
            spoil: |f| f.xdp = None,
            name: "uplink's driver",
            state: State::Degraded,
            words: &["native mode is tried"],
        },
        Case {
            network: "",
            spoil: |f| f.queues = 1,
            name: "uplink's queues",
            state: State::Missing,
            words: &["1 receive queues for 2 lanes", "ethtool -L eth0 combined 2"],
        },
        Case {
            network: "",
            spoil: |f| f.rings.as_mut().unwrap().rx = 128,
            name: "uplink's rings",
            state: State::Degraded,
            words: &["ethtool -G eth0 rx 4096"],
        },
        Case {
            network: "mtu = 9000",
            spoil: |_| (),
            name: "MTU",
            state: State::Degraded,
            words: &["network.mtu = 9000", "1500"],
        },
        Case {
            network: "",
            spoil: |f| f.link.as_mut().unwrap().mtu = 600,
            name: "MTU",
            state: State::Degraded,
            words: &["mode vxlan leaves 550 bytes"],
        },
        Case {
            network: "",
            spoil: |f| {
                f.ports.insert((4789, "udp"));
                f.overlays.push("flannel.1".into());
            },
            name: "VXLAN port",
            state: State::Degraded,
            words: &["4789", "by flannel.1", "network.vxlan-port"],
        },
        Case {
            network: "",
            spoil: |f| {
                f.ports.insert((62_000, "tcp"));
            },
            name: "masquerade's ports",
            state: State::Degraded,
            words: &["62000/tcp", "network.masquerade-ports"],
        },
        Case {
            network: "",
            spoil: |f| f.routes.push((route("192.168.9.0/24"), "eth1".into())),
            name: "forwarding",
            state: State::Degraded,
            words: &["behind eth1", "net.ipv4.ip_forward = 1"],
        },
        Case {
            network: "mode = \"routed\"",
            spoil: |f| f.routes.push((route("10.244.1.0/24"), "cni0".into())),
            name: "routes to pods",
            state: State::Degraded,
            words: &["10.244.1.0/24 dev cni0", "ip route delete"],
        },
    ];
    for case in cases {
        let mut facts = facts();
        (case.spoil)(&mut facts);
        let found = items(&config(case.network), &facts);
        let item = found.iter().find(|item| item.name == case.name).unwrap();
        assert_eq!(item.state, case.state, "{item:?}");
        for word in case.words {
            assert!(item.detail.contains(word), "{word:?} is not in {item:?}");
        }
    }
}

#[test]
fn local_ports_are_read_as_the_kernel_writes_them() {
    let table = "  sl  local_address rem_address   st\n   0: 00000000:0016 00000000:0000 0A\n   1: 0100007F:F230 0100007F:0016 01\n";
    assert_eq!(local_ports(table), [22, 62_000].into());
    assert!(local_ports("").is_empty());
}
