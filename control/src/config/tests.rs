use proptest::prelude::*;

use super::*;

fn machine() -> Environment {
    Environment {
        node_name: None,
        host_name: "host-1".to_owned(),
        allowed_cores: vec![0, 1, 2, 3],
        interfaces: vec![
            Interface {
                name: "lo".to_owned(),
                mtu: 65536,
                ..Interface::default()
            },
            Interface {
                name: "eth0".to_owned(),
                mtu: 9000,
                default_route: true,
                addresses: ["192.0.2.7", "192.0.2.8", "2001:db8::7"]
                    .map(|a| a.parse().unwrap())
                    .to_vec(),
                networks: ["192.0.2.0/24", "2001:db8::/64"]
                    .map(|net| net.parse().unwrap())
                    .to_vec(),
            },
        ],
    }
}

fn parsed(text: &str) -> Result<Config, String> {
    Config::parse(text, "t.toml", &machine()).map_err(|e| e.to_string())
}

/// Every key that the file may have, each with a value of its own.
const WHOLE: &str = r#"
[node]
name = "node-a"
address = "172.31.0.1"
uplink = "eth0"
pod-cidrs = ["10.244.1.0/24"]
[network]
mode = "vxlan"
cluster-cidrs = ["10.244.0.0/16"]
service-cidrs = ["10.96.0.0/16"]
vni = 1
vxlan-port = 4789
mtu = "auto"
masquerade = true
masquerade-exclude = []
masquerade-ports = "61000-65535"
egress-addresses = []
cross-subnet = false
gateway = "172.31.0.254"
[lanes]
cores = "auto"
poll = "adaptive"
frames = "auto"
xdp-mode = "auto"
offloads = "auto"
[[segments]]
name = "blue"
vni = 100
cidrs = ["10.50.0.0/24"]
guard = false
static = [{mac = "02:00:00:00:00:01", port = "sl1"}, {mac = "02:00:00:00:00:02", vtep = "192.0.2.9"}]
[source]
kind = "manifests"
path = "/etc/spinlane/manifests"
[metrics]
listen = "127.0.0.1:9465"
"#;

#[test]
fn the_whole_file_is_read() {
    let config = parsed(WHOLE).unwrap();
    let node = config.node();
    assert_eq!(node.name, "node-a");
    assert_eq!(node.addresses, ["172.31.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(node.uplink, Uplink::Named("eth0".to_owned()));
    assert_eq!(node.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    let network = config.network();
    assert_eq!(network.mode, Mode::Vxlan);
    assert_eq!((network.vni, network.vxlan_port), (1, 4789));
    assert!(network.masquerade);
    assert_eq!(
        network.masquerade_ports,
        PortRange {
            first: 61000,
            last: 65535
        }
    );
    assert_eq!(
        network.gateways,
        ["172.31.0.254".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(config.path_mtu(), 9000 - VXLAN_OVERHEAD_V4);
    let lanes = config.lanes();
    assert_eq!((lanes.cores.as_slice(), lanes.frames), (&[3][..], 16384));
    assert_eq!(lanes.poll, PollMode::Adaptive);
    let [segment] = config.segments() else {
        panic!("{:?}", config.segments())
    };
    assert_eq!((segment.name.as_str(), segment.vni), ("blue", Some(100)));
    let places: Vec<_> = segment.stations.iter().map(|s| s.at.clone()).collect();
    let vtep = StationPlace::Vtep("192.0.2.9".parse().unwrap());
    assert_eq!(places, [StationPlace::Port("sl1".to_owned()), vtep]);
    assert_eq!(
        *config.source(),
        Source::Manifests("/etc/spinlane/manifests".into())
    );
    assert_eq!(config.metrics().listen, Some(Metrics::DEFAULT_LISTEN));
}

const SHIPPED: &str = include_str!("../../../deploy/spinlane.toml");

#[test]
fn the_shipped_file_holds_and_shows_every_key() {
    assert_eq!(parsed(SHIPPED).unwrap().warnings(), [""; 0]);
    let root = RawConfig::SHAPE;
    for table in root.keys().filter(|table| *table != "source") {
        for key in root.get(table).unwrap().keys() {
            let shown =
                ["addresses", "gateways"].contains(&key) || SHIPPED.contains(&format!("{key} = "));
            assert!(shown, "{table}.{key} is not shown");
        }
    }
}

/// A line that is commented out shows the default, where there is one.
#[test]
fn the_shipped_file_shows_the_defaults() {
    let defaults = parsed("").unwrap();
    let examples = ["cluster-cidrs", "service-cidrs", "gateway"];
    let mut table = "";
    let mut shown = 0;
    for line in SHIPPED.lines() {
        if line.starts_with('[') {
            table = line;
        }
        let Some(setting) = line
            .strip_prefix("# ")
            .filter(|_| ["[network]", "[lanes]", "[metrics]"].contains(&table))
        else {
            continue;
        };
        let key = setting.split(" = ").next().unwrap();
        if setting.contains("[[") || examples.contains(&key) || key == setting {
            table = if setting.contains("[[") { "" } else { table };
            continue;
        }
        let config = parsed(&format!("{table}\n{setting}")).unwrap();
        assert_eq!(config.network(), defaults.network(), "{setting}");
        assert_eq!(config.lanes(), defaults.lanes(), "{setting}");
        assert_eq!(config.metrics(), defaults.metrics(), "{setting}");
        shown += 1;
    }
    assert_eq!(shown, 14, "lines that show a default");
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = parsed("").unwrap();
    assert_eq!(config.node().name, "host-1");
    let addresses: Vec<_> = config
        .node()
        .addresses
        .iter()
        .map(IpAddr::to_string)
        .collect();
    assert_eq!(addresses, ["192.0.2.7", "2001:db8::7"]);
    assert_eq!(config.node().uplink, Uplink::Auto);
    assert_eq!(config.network().mode, Mode::Vxlan);
    assert_eq!(config.warnings(), [""; 0]);
    assert_eq!(config.underlay().unwrap().name, "eth0");
    assert_eq!(config.path_mtu(), 8950);
}

#[test]
fn the_machine_names_the_node_when_the_file_does_not() {
    let environment = Environment {
        node_name: Some("from-env".to_owned()),
        ..machine()
    };
    let config = Config::parse("", "t.toml", &environment).unwrap();
    assert_eq!(config.node().name, "from-env");
    let config = Config::parse("node.name = 'mine'", "t.toml", &environment).unwrap();
    assert_eq!(config.node().name, "mine");
}

#[test]
fn path_mtu_follows_underlay_and_mode() {
    let cases = [
        ("node.uplink = 'none'", 1450),
        ("node.uplink = 'none'\nnetwork.mode = 'routed'", 1500),
        ("node.uplink = 'none'\nnode.address = 'fd00::1'", 1430),
        ("node.uplink = 'absent0'", 1450),
        ("network.mode = 'routed'", 9000),
        ("network.mtu = 1400", 1350),
        ("network.mode = 'l2'\nnetwork.mtu = 65535", 65535),
        ("node.uplink = 'lo'\nnetwork.mode = 'routed'", 65535),
        (
            "node.uplink = 'none'\nnode.addresses = ['fd00::1', '10.0.0.1']",
            1450,
        ),
    ];
    for (text, mtu) in cases {
        assert_eq!(parsed(text).map(|c| c.path_mtu()), Ok(mtu), "{text}");
    }
}

#[test]
fn errors_name_the_line_and_the_way_out() {
    let cases = [
        (
            "[netwrok]\nmtu = 1",
            "t.toml:1: unknown key `netwrok`; the nearest known one is `network`",
        ),
        (
            "[network]\nvni = 1\nmut = 1400",
            "t.toml:3: unknown key `network.mut`; the nearest known one is `network.mtu`",
        ),
        (
            "[metrics]\nzzz = 1",
            "t.toml:2: unknown key `metrics.zzz`; the nearest known one is `metrics.listen`",
        ),
        (
            "[node]\nmtu = 1",
            "t.toml:2: unknown key `node.mtu`; the nearest known one is `network.mtu`",
        ),
        (
            "[node]\nname = {a = 1}",
            "t.toml:2: unknown key `node.name.a`; `node.name` has no keys of its own",
        ),
        (
            "[[segments]]\nname = 'a'\n[[segments]]\nname = 'b'\ngard = true",
            "t.toml:5: unknown key `segments.gard`; the nearest known one is `segments.guard`",
        ),
        (
            "[[segments]]\nname = 'a'\nstatic = [\n{mac = 'x', prot = 'y'}]",
            "t.toml:4: unknown key `segments.static.prot`; the nearest known one is `segments.static.port`",
        ),
        (
            "[network]\n\nmasquerade = 'yes'",
            "t.toml:3: network.masquerade: invalid type: string \"yes\", expected a boolean",
        ),
        (
            "[network]\nmode = \"vxlna\"",
            "t.toml:2: network.mode: \"vxlna\" is not one of \"vxlan\", \"routed\", \"l2\"; did you mean \"vxlan\"?",
        ),
        (
            "network.vni = 16777216",
            "t.toml:1: network.vni: 16777216 is no VNI: give a number from 1 to 16777215 (24 bits)",
        ),
        (
            "network.vni = 0",
            "t.toml:1: network.vni: 0 is no VNI: give a number from 1 to 16777215 (24 bits)",
        ),
        (
            "network.vxlan-port = 65536",
            "t.toml:1: network.vxlan-port: 65536 is no UDP port: give a number from 1 to 65535",
        ),
        (
            "network.mtu = 575",
            "t.toml:1: network.mtu: 575 is no MTU: write \"auto\" or a number of bytes from 576 to 65535",
        ),
        (
            "network.mtu = 'big'",
            "t.toml:1: network.mtu: \"big\" is no MTU: write \"auto\" or a number of bytes from 576 to 65535",
        ),
        (
            "network.mtu = 600",
            "t.toml:1: network.mtu: leaves 550 bytes for IPv4 packets of pods, fewer than 576: give at least 626",
        ),
        (
            "network.mtu = 1300\nnode.pod-cidrs = ['fd00:1::/64']",
            "t.toml:1: network.mtu: leaves 1250 bytes for IPv6 packets of pods, fewer than 1280: give at least 1330",
        ),
        (
            "network.masquerade-ports = '9-5'",
            "t.toml:1: network.masquerade-ports: \"9-5\" is no range of ports: write FIRST-LAST from 1024 to 65535, as in \"61000-65535\"",
        ),
        (
            "network.masquerade-ports = '61000'",
            "t.toml:1: network.masquerade-ports: \"61000\" is no range of ports: write FIRST-LAST from 1024 to 65535, as in \"61000-65535\"",
        ),
        (
            "network.masquerade-ports = '4000-5000'",
            "t.toml:1: network.masquerade-ports: network.vxlan-port 4789 is among them: choose a range without it",
        ),
        (
            "network.cross-subnet = true",
            "t.toml:1: network.cross-subnet: has no meaning in mode \"vxlan\": set network.mode = \"routed\"",
        ),
        (
            "[network]\nmode = 'l2'\ncluster-cidrs = ['10.0.0.0/24']\ngateway = '10.0.1.1'",
            "t.toml:4: network.gateway: 10.0.1.1 is in no network of eth0, nor in node.pod-cidrs or network.cluster-cidrs: pods could not reach it on their link",
        ),
        (
            "network.mode = 'l2'\nnetwork.gateways = ['fe80::1', '192.0.2.7']",
            "t.toml:2: network.gateways: 192.0.2.7 is the node's own address: name the router of eth0's network",
        ),
        (
            "network.mode = 'l2'\nnetwork.gateways = ['192.0.2.1', '192.0.2.2']",
            "t.toml:2: network.gateways: 192.0.2.1 and 192.0.2.2 are of one family: give at most one address a family",
        ),
        (
            "network.gateway = '192.0.2.1'\nnetwork.gateways = []",
            "t.toml:1: network.gateway: give either gateway or gateways, not both",
        ),
        (
            "network.mode = 'l2'\nnode.uplink = 'none'",
            "t.toml:2: node.uplink: mode \"l2\" joins pods to the uplink's network: name an interface",
        ),
        (
            "network.mode = 'l2'\nnode.pod-cidrs = ['10.244.1.0/24']",
            "t.toml:2: node.pod-cidrs: 10.244.1.0/24 is in no network of the uplink (192.0.2.0/24, 2001:db8::/64), whose addresses pods get in mode \"l2\": choose a range inside, or name its whole network in network.cluster-cidrs",
        ),
        (
            "network.mode = 'l2'\n[[segments]]\nname = 'l2'\nvni = 3",
            "t.toml:4: segments[0].vni: has no meaning in segment \"l2\", which is the uplink's own network in mode \"l2\": remove it, node.pod-cidrs says which addresses pods get there",
        ),
        (
            "network.gateway = '10.0.1.'",
            "t.toml:1: network.gateway: \"10.0.1.\" is not an IP address: write it as in 172.31.0.1 or fd00::1",
        ),
        (
            "node.address = '127.0.0.1'",
            "t.toml:1: node.address: 127.0.0.1 cannot be a station's address",
        ),
        (
            "node.address = '10.0.0.1'\nnode.addresses = []",
            "t.toml:1: node.address: give either address or addresses, not both",
        ),
        (
            "node.addresses = ['10.0.0.1', '10.0.0.2']",
            "t.toml:1: node.addresses: 10.0.0.1 and 10.0.0.2 are of one family: give at most one address a family",
        ),
        (
            "node.name = 'a b'",
            "t.toml:1: node.name: \"a b\" is no name of a node: write 1 to 253 letters, digits, '-' or '.'",
        ),
        (
            "node.uplink = 'much-too-long-a-name'",
            "t.toml:1: node.uplink: \"much-too-long-a-name\" is no interface name: write \"auto\", \"none\" or a name of 1 to 15 bytes",
        ),
        (
            "node.pod-cidrs = ['10.244.1.5/24']",
            "t.toml:1: node.pod-cidrs: 10.244.1.5/24 has bits set behind its prefix: write 10.244.1.0/24",
        ),
        (
            "node.pod-cidrs = ['10.244.1.0']",
            "t.toml:1: node.pod-cidrs: \"10.244.1.0\" is no address range: write it as in 10.244.1.0/24 or fd00:10:244:1::/64",
        ),
        (
            "node.pod-cidrs = ['10.244.0.0/16', '10.244.1.0/24']",
            "t.toml:1: node.pod-cidrs: 10.244.0.0/16 and 10.244.1.0/24 overlap: remove one",
        ),
        (
            "node.pod-cidrs = ['10.244.0.0/31']",
            "t.toml:1: node.pod-cidrs: 10.244.0.0/31 has no room for a gateway and pods: give at least a /30",
        ),
        (
            "node.pod-cidrs = ['224.0.0.0/24']",
            "t.toml:1: node.pod-cidrs: 224.0.0.0/24 is no range that pods can use",
        ),
        (
            "node.pod-cidrs = ['192.0.2.0/24']",
            "t.toml:1: node.pod-cidrs: 192.0.2.0/24 covers the node's own address 192.0.2.7: pods need a range of their own",
        ),
        (
            "node.pod-cidrs = ['10.96.1.0/24']\nnetwork.service-cidrs = ['10.96.0.0/16']",
            "t.toml:1: node.pod-cidrs: 10.96.1.0/24 and network.service-cidrs 10.96.0.0/16 overlap: give services a range of their own",
        ),
        (
            "node.pod-cidrs = ['10.1.0.0/24']\nnetwork.cluster-cidrs = ['10.2.0.0/16']",
            "t.toml:1: node.pod-cidrs: 10.1.0.0/24 lies outside network.cluster-cidrs: widen those or choose a range inside",
        ),
        (
            "[network]\ncluster-cidrs = ['10.2.0.0/16']\nservice-cidrs = ['10.0.0.0/8']",
            "t.toml:3: network.service-cidrs: 10.0.0.0/8 and network.cluster-cidrs 10.2.0.0/16 overlap: give services a range of their own",
        ),
        (
            "lanes.cores = [1, 7]",
            "t.toml:1: lanes.cores: this process may not run on CPU 7: choose among 0-3",
        ),
        (
            "lanes.cores = [1, 1]",
            "t.toml:1: lanes.cores: CPU 1 stands twice: lanes do not share a core",
        ),
        (
            "lanes.cores = []",
            "t.toml:1: lanes.cores: [] is no choice of cores: write \"auto\" or a list of 1 to 64 CPU numbers, as in [1, 2]",
        ),
        (
            "lanes.cores = [-1]",
            "t.toml:1: lanes.cores: -1 is no CPU number: write it as in [1, 2]",
        ),
        (
            "lanes.frames = 511",
            "t.toml:1: lanes.frames: 511 is no number of frames: write \"auto\" or a number from 512 to 1048576",
        ),
        (
            "lanes.frames = 1048577",
            "t.toml:1: lanes.frames: 1048577 is no number of frames: write \"auto\" or a number from 512 to 1048576",
        ),
        (
            "lanes.poll = 'adaptve'",
            "t.toml:1: lanes.poll: \"adaptve\" is not one of \"adaptive\", \"busy\", \"interrupt\"; did you mean \"adaptive\"?",
        ),
        (
            "lanes.xdp-mode = '?'",
            "t.toml:1: lanes.xdp-mode: \"?\" is not one of \"auto\", \"generic\", \"native\"",
        ),
        (
            "lanes.offloads = 'on'",
            "t.toml:1: lanes.offloads: \"on\" is not one of \"auto\", \"off\"",
        ),
        (
            "[[segments]]\nvni = 3",
            "t.toml:1: segments[0].name: a segment needs a name: write name = \"blue\"",
        ),
        (
            "[[segments]]\nname = 'a'\n[[segments]]\nname = 'a'",
            "t.toml:4: segments[1].name: two segments are named \"a\": give each a name of its own",
        ),
        (
            "[[segments]]\nname = 'a'\nvni = 3\n[[segments]]\nname = 'b'\nvni = 3",
            "t.toml:6: segments[1].vni: two segments have VNI 3: give each one of its own",
        ),
        (
            "[[segments]]\nname = 'a'\n[[segments]]\nname = 'b'\nvni = 1",
            "t.toml:5: segments[1].vni: 1 is network.vni, the pod network's own: give one of them another",
        ),
        (
            "network.vni = 7\nnetwork.mode = 'routed'\nnetwork.cross-subnet = true\n[[segments]]\nname = 'a'\nvni = 7",
            "t.toml:6: segments[0].vni: 7 is network.vni, the pod network's own: give one of them another",
        ),
        (
            "[[segments]]\nname = 'a'\ncidrs = ['10.50.0.0/31']",
            "t.toml:3: segments[0].cidrs: 10.50.0.0/31 has no room for a gateway and pods: give at least a /30",
        ),
        (
            "[[segments]]\nname = 'a'\nstatic = [{mac = '01:00:5e:00:00:01', port = 'p'}]",
            "t.toml:3: segments[0].static[0]: 01:00:5e:00:00:01 is no station's address: a group or zero",
        ),
        (
            "[[segments]]\nname = 'a'\nstatic = [{mac = '02:00:5e:00:00:01'}]",
            "t.toml:3: segments[0].static[0]: 02:00:5e:00:00:01 needs one place: write either port = \"NAME\" or vtep = \"ADDRESS\"",
        ),
        (
            "source.kind = 'manifest'",
            "t.toml:1: source.kind: \"manifest\" is not one of \"kubernetes\", \"manifests\"; did you mean \"manifests\"?",
        ),
        (
            "source.path = 'here'",
            "t.toml:1: source.path: here is relative: write the whole path from /",
        ),
        (
            "source.kind = 'kubernetes'\nsource.path = '/x'",
            "t.toml:2: source.path: kind \"kubernetes\" takes no path: remove it",
        ),
        (
            "metrics.listen = 'localhost'",
            "t.toml:1: metrics.listen: \"localhost\" is no address to listen on: write ADDRESS:PORT as in \"127.0.0.1:9465\", or \"none\"",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(parsed(text).map(|_| ()), Err(expected.to_owned()), "{text}");
    }
}

#[test]
fn broken_toml_is_one_line_with_its_place() {
    for text in ["[node\nname = 1", "a = = 1", "x = \"\n", "\u{0}"] {
        let error = parsed(text).unwrap_err();
        assert!(error.starts_with("t.toml:"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn keys_without_effect_draw_one_warning_each() {
    let config = parsed(WHOLE).unwrap();
    let keys: Vec<_> = config
        .warnings()
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let expected = ["network.service-cidrs", "network.gateway"];
    assert_eq!(keys, expected);
    let ends = [
        "is accepted but not yet in force in this version",
        "changes nothing in mode \"vxlan\"",
    ];
    for (line, end) in config.warnings().iter().zip(ends) {
        assert!(line.ends_with(end), "{line}");
    }
    let shared = "network.mode = 'l2'\nnetwork.gateway = '192.0.2.1'\n\
                  node.pod-cidrs = ['192.0.2.64/27', '2001:db8::/64']\n\
                  [[segments]]\nname = 'l2'\nstatic = [{mac = '02:00:00:00:00:01', port = 'eth0'}]";
    let config = parsed(shared).unwrap();
    assert_eq!(config.warnings(), [""; 0]);
    assert!(config.segments()[0].guard, "by default");
    // Without an overlay of its own the pod network leaves the number to segments.
    let routed = "network.mode = 'routed'\n[[segments]]\nname = 'a'\nvni = 1";
    assert!(parsed(routed).is_ok());
    let quiet = "node.uplink = 'none'\nnode.pod-cidrs = ['10.244.1.0/24']\nnetwork.mode = 'routed'\n\
                 network.mtu = 1500\nlanes.poll = 'busy'\nmetrics.listen = 'none'\nsegments = [{name = 'a'}]";
    assert_eq!(parsed(quiet).unwrap().warnings(), [""; 0]);
}

/// Lines that are nearly a configuration, so that generated files get past
/// the parser and into validation.
fn likely_line() -> impl Strategy<Value = String> {
    let tables = [
        "[node]",
        "[network]",
        "[lanes]",
        "[[segments]]",
        "[source]",
        "[metrics]",
        "[a.b]",
    ];
    let keys = [
        "name",
        "address",
        "addresses",
        "uplink",
        "pod-cidrs",
        "mode",
        "cluster-cidrs",
        "vni",
        "vxlan-port",
        "mtu",
        "masquerade-ports",
        "cores",
        "poll",
        "frames",
        "cidrs",
        "guard",
        "static",
        "kind",
        "path",
        "listen",
        "gateway",
        "cross-subnet",
        "node.name",
        "odd",
    ];
    let values = [
        "\"auto\"",
        "\"none\"",
        "1",
        "-1",
        "9223372036854775807",
        "0.5",
        "true",
        "[]",
        "[1, 2]",
        "[\"10.0.0.0/8\", \"fd00::/64\"]",
        "[\"0.0.0.0/0\"]",
        "\"10.0.0.1\"",
        "\"fd00::1\"",
        "\"vxlan\"",
        "\"l2\"",
        "\"1024-65535\"",
        "[{mac = \"02:00:00:00:00:01\", port = \"x\"}]",
        "[{}]",
        "{}",
        "1979-05-27",
        "\"\\u0000\"",
        "\"é\"",
    ];
    prop_oneof![
        1 => proptest::sample::select(tables.to_vec()).prop_map(str::to_owned),
        3 => (proptest::sample::select(keys.to_vec()), proptest::sample::select(values.to_vec()))
            .prop_map(|(key, value)| format!("{key} = {value}")),
    ]
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_an_error(text in any::<String>()) {
        one_line_or_config(&text)?;
    }

    #[test]
    fn any_likely_text_is_a_configuration_or_an_error(
        lines in proptest::collection::vec(likely_line(), 0..12)
    ) {
        one_line_or_config(&lines.join("\n"))?;
    }

    #[test]
    fn a_cut_or_dented_file_is_a_configuration_or_an_error(
        cut in 0..WHOLE.len(), dent in any::<u8>(), at in 0..WHOLE.len()
    ) {
        let mut bytes = WHOLE.as_bytes()[..cut].to_vec();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = dent;
        }
        one_line_or_config(&String::from_utf8_lossy(&bytes))?;
    }
}

fn one_line_or_config(text: &str) -> Result<(), TestCaseError> {
    match Config::parse(text, "t.toml", &machine()) {
        Ok(config) => {
            prop_assert!((576..=65535).contains(&config.path_mtu()));
            prop_assert!(!config.lanes().cores.is_empty());
        }
        Err(error) => {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
            prop_assert!(
                error
                    .line
                    .is_none_or(|line| line <= text.lines().count() + 1)
            );
        }
    }
    Ok(())
}
