//! Layer-2 segments: they learn, they flood, and nothing leaks between them.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use spinlane_tests::{LabError, Node, NodeConfig, PATIENCE, Pod, root_or_skip, traffic, wait_for};

fn config() -> NodeConfig {
    let mut config = NodeConfig::new("segments");
    config.tables = "
[[segments]]
name = \"blue\"
vni = 100
cidrs = [\"10.50.0.0/24\", \"fd50::/64\"]
[[segments]]
name = \"red\"
vni = 101
cidrs = [\"10.60.0.0/24\"]
[[segments]]
name = \"guarded\"
vni = 102
cidrs = [\"10.70.0.0/24\"]
guard = true
"
    .to_owned();
    config
}

fn node() -> Result<Node, LabError> {
    Node::start(&config())
}

fn member(node: &Node, segment: &str, name: &str) -> Result<Pod, LabError> {
    let mut pod = Pod::bare(name)?;
    let network = node.network(segment, json!({ "segment": segment }));
    pod.add(node, "eth0", &network)?;
    Ok(pod)
}

/// A member that takes no super-frames.
fn plain_member(node: &Node, segment: &str, name: &str) -> Result<Pod, LabError> {
    let mut pod = Pod::bare(name)?;
    let settings = json!({ "segment": segment, "superFrames": false });
    pod.add(node, "eth0", &node.network(segment, settings))?;
    Ok(pod)
}

/// Sends a frame with a VLAN tag whose IPv4 packet is as long as one can be.
const LONGEST_TAGGED: &str = "
import socket, struct, sys
mac = lambda text: bytes.fromhex(text.replace(':', ''))
own = open('/sys/class/net/eth0/address').read().strip()
header = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 65535, 1, 0, 64, 253, 0,
                     bytes([10, 50, 0, 200]), bytes([10, 50, 0, 201]))
total = sum(struct.unpack('>10H', header))
total = (total & 0xffff) + (total >> 16)
total = (total & 0xffff) + (total >> 16)
header = header[:10] + struct.pack('>H', total ^ 0xffff) + header[12:]
frame = mac(sys.argv[1]) + mac(own) + b'\\x81\\x00\\x00\\x05\\x08\\x00' + header + bytes(65515)
end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
end.bind(('eth0', 0))
for _ in range(4):
    end.send(frame)
";

/// Whether one of a few pings is answered soon; to prove that none is.
fn reaches(from: &Pod, to: IpAddr) -> Result<bool, LabError> {
    let pings = traffic::ping_in_vain(from.namespace(), to, 3, &["-W", "1"])?;
    Ok(pings.received > 0)
}

fn entry<'a>(fdb: &'a Value, mac: &str) -> Option<&'a Value> {
    fdb.as_array()?.iter().find(|entry| entry["mac"] == mac)
}

fn mac_of(pod: &Pod) -> Result<String, LabError> {
    Ok(pod
        .namespace()
        .run(&["cat", "/sys/class/net/eth0/address"])?
        .trim()
        .to_owned())
}

#[test]
fn a_segment_learns_where_its_stations_are() -> Result<(), LabError> {
    if !root_or_skip("a_segment_learns_where_its_stations_are") {
        return Ok(());
    }
    let node = node()?;
    let (a, b) = (member(&node, "blue", "a")?, member(&node, "blue", "b")?);
    for address in [b.v4()?, b.v6()?] {
        let pings = traffic::ping(a.namespace(), address, 3)?;
        assert!(pings.all(), "{}", pings.text);
        traffic::tcp_both_ways(a.namespace(), b.namespace(), address, 4 << 20)?;
    }
    let ports = node.ports()?;
    for pod in [&a, &b] {
        let mac = mac_of(pod)?;
        let port = ports
            .iter()
            .find(|port| port.pod == pod.name())
            .map(|port| port.name.clone());
        let fdb = node.cli(&["fdb"])?;
        let found = entry(&fdb, &mac);
        assert!(
            found.is_some_and(
                |found| found["segment"] == "blue" && found["port"].as_str() == port.as_deref()
            ),
            "{mac} of {port:?} is not in {fdb}"
        );
    }
    Ok(())
}

#[test]
fn broadcasts_reach_every_member_and_nobody_else() -> Result<(), LabError> {
    if !root_or_skip("broadcasts_reach_every_member_and_nobody_else") {
        return Ok(());
    }
    let node = node()?;
    let blue = [
        member(&node, "blue", "a")?,
        member(&node, "blue", "b")?,
        member(&node, "blue", "c")?,
    ];
    let red = member(&node, "red", "d")?;
    for pod in blue.iter().chain([&red]) {
        pod.namespace()
            .sysctl("net.ipv4.icmp_echo_ignore_broadcasts", "0")?;
    }
    // Of the same prefix, so that it would answer if the broadcast leaked.
    red.namespace().ip("addr add 10.50.0.200/24 dev eth0")?;
    let pings = traffic::ping_with(
        blue[0].namespace(),
        "10.50.0.255".parse().expect("an address"),
        3,
        &["-b"],
    )?;
    for member in &blue[1..] {
        let answer = format!("from {}:", member.v4()?);
        assert!(pings.text.contains(&answer), "{answer} {}", pings.text);
    }
    assert!(!pings.text.contains("10.50.0.200"), "{}", pings.text);
    Ok(())
}

#[test]
fn segments_and_routed_pods_are_apart() -> Result<(), LabError> {
    if !root_or_skip("segments_and_routed_pods_are_apart") {
        return Ok(());
    }
    let node = node()?;
    let blue = member(&node, "blue", "blue")?;
    let red = member(&node, "red", "red")?;
    let routed = Pod::attach(&node, "routed")?;
    // With addresses of each other's prefixes only the switch keeps them apart.
    red.namespace().ip("addr add 10.50.0.201/24 dev eth0")?;
    blue.namespace().ip("addr add 10.60.0.201/24 dev eth0")?;
    routed.namespace().ip("addr add 10.50.0.202/24 dev eth0")?;
    assert!(!reaches(&red, blue.v4()?)?, "red reaches blue");
    assert!(!reaches(&blue, red.v4()?)?, "blue reaches red");
    assert!(!reaches(&routed, blue.v4()?)?, "a routed pod reaches blue");
    blue.namespace()
        .ip(&format!("route replace {} dev eth0", routed.v4()?))?;
    assert!(!reaches(&blue, routed.v4()?)?, "blue reaches a routed pod");
    blue.namespace().ip("route replace 172.31.0.1 dev eth0")?;
    let of_node = "172.31.0.1".parse().expect("an address");
    assert!(!reaches(&blue, of_node)?, "blue reaches the node");
    Ok(())
}

#[test]
fn a_segment_that_configuration_loses_takes_its_pods_out() -> Result<(), LabError> {
    if !root_or_skip("a_segment_that_configuration_loses_takes_its_pods_out") {
        return Ok(());
    }
    let mut node = node()?;
    let (a, b) = (member(&node, "blue", "a")?, member(&node, "blue", "b")?);
    let routed = Pod::attach(&node, "c")?;
    assert!(reaches(&a, b.v4()?)?);
    node.stop()?;
    node.configure(&NodeConfig::new("segments"))?;
    node.start_agent()?;
    // A way to everybody, if the switch were to take it for a routed pod.
    let gateway = "ip route add default dev eth0";
    a.namespace().sh(gateway)?;
    assert!(!reaches(&a, b.v4()?)? && !reaches(&a, routed.v4()?)?);
    assert!(!reaches(&routed, a.v4()?)?);
    assert!(node.drops()?["no_segment"] > 0);
    let notices = node.status()?.notices;
    let named = |notice: &String| notice.contains("segment blue") && notice.contains("/a");
    assert!(notices.iter().any(named), "{notices:?}");
    let checked = a.check(&node, "eth0")?;
    let told = checked.output.to_string();
    assert_eq!(checked.exit, 1, "{told}");
    assert!(told.contains("no longer in spinlane.toml"), "{told}");
    node.stop()?;
    node.configure(&config())?;
    node.start_agent()?;
    wait_for("the segment to be back", spinlane_tests::PATIENCE, || {
        reaches(&a, b.v4().ok()?).ok()?.then_some(())
    })?;
    assert!(node.status()?.notices.is_empty());
    assert_eq!(a.check(&node, "eth0")?.exit, 0);
    node.settled_frames()?;
    Ok(())
}

#[test]
fn a_station_that_moves_is_found_again() -> Result<(), LabError> {
    if !root_or_skip("a_station_that_moves_is_found_again") {
        return Ok(());
    }
    let node = node()?;
    let watcher = member(&node, "blue", "watcher")?;
    let (old, new) = (member(&node, "blue", "old")?, member(&node, "blue", "new")?);
    // The station is a second MAC and address that one pod shows, then the
    // other: a macvlan device on its interface.
    let mac = "02:00:5e:00:53:01";
    let station: IpAddr = "10.50.0.99".parse().expect("an address");
    let show = |pod: &Pod| -> Result<(), LabError> {
        pod.namespace().ip(&format!(
            "link add station link eth0 address {mac} type macvlan mode bridge"
        ))?;
        pod.namespace().ip("link set station up")?;
        pod.namespace()
            .ip(&format!("addr add {station}/24 dev station"))?;
        Ok(())
    };
    show(&old)?;
    traffic::reach(watcher.namespace(), station)?;
    old.namespace().ip("link del station")?;
    show(&new)?;
    // One frame from the new place is enough.
    traffic::ping_with(new.namespace(), watcher.v4()?, 1, &["-I", "station"])?;
    let port = node
        .ports()?
        .into_iter()
        .find(|port| port.pod == "new")
        .map(|port| port.name);
    wait_for("the move in the FDB", Duration::from_secs(3), || {
        let fdb = node.cli(&["fdb"]).ok()?;
        (entry(&fdb, mac)?["port"].as_str() == port.as_deref()).then_some(())
    })?;
    traffic::reach(watcher.namespace(), station)?;
    Ok(())
}

#[test]
fn a_guarded_segment_holds_pods_to_their_own() -> Result<(), LabError> {
    if !root_or_skip("a_guarded_segment_holds_pods_to_their_own") {
        return Ok(());
    }
    let node = node()?;
    let (a, b) = (
        member(&node, "guarded", "a")?,
        member(&node, "guarded", "b")?,
    );
    traffic::reach(a.namespace(), b.v4()?)?;
    a.namespace().ip("addr add 10.70.0.200/24 dev eth0")?;
    let forged =
        traffic::ping_in_vain(a.namespace(), b.v4()?, 3, &["-W", "1", "-I", "10.70.0.200"])?;
    assert_eq!(forged.received, 0, "{}", forged.text);
    Ok(())
}

#[test]
fn flooded_super_frames_reach_each_member_as_it_takes_them() -> Result<(), LabError> {
    if !root_or_skip("flooded_super_frames_reach_each_member_as_it_takes_them") {
        return Ok(());
    }
    let node = node()?;
    let sender = member(&node, "blue", "sender")?;
    let receiver = plain_member(&node, "blue", "receiver")?;
    let other = member(&node, "blue", "other")?;
    // The receiver has a second MAC that it never sends from: answers go by
    // eth0, and without IPv6 the kernel has nothing to announce (no neighbour
    // solicitations, MLD reports or router solicitations). What is sent there
    // is flooded for good.
    let (mac, station) = ("02:00:5e:00:53:02", "10.50.0.98");
    let inside = receiver.namespace();
    inside.ip(&format!(
        "link add station link eth0 address {mac} type macvlan mode bridge"
    ))?;
    inside.sysctl("net.ipv6.conf.station.disable_ipv6", "1")?;
    inside.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    inside.sysctl("net.ipv4.conf.station.rp_filter", "0")?;
    inside.ip(&format!("addr add {station}/32 dev station"))?;
    inside.ip("link set station arp off up")?;
    sender
        .namespace()
        .ip(&format!("neigh replace {station} lladdr {mac} dev eth0"))?;
    let sent = |pod: &Pod| -> Result<(u64, u64), LabError> {
        let ports = node.ports()?;
        let port = ports.iter().find(|port| port.pod == pod.name());
        Ok(port.map_or((0, 0), |port| (port.tx_packets, port.tx_bytes)))
    };
    let before = (sent(&receiver)?, sent(&other)?);
    let bytes = 4 << 20;
    let address = station.parse().expect("an address");
    traffic::tcp_both_ways(sender.namespace(), inside, address, bytes)?;
    let after = (sent(&receiver)?, sent(&other)?);
    let fdb = node.cli(&["fdb"])?;
    assert!(entry(&fdb, mac).is_none(), "{mac} was learned: {fdb}");
    let segments = after.0.0 - before.0.0;
    assert!(
        segments > bytes as u64 / 1500,
        "{bytes} bytes came in {segments} packets: super-frames among them"
    );
    let (packets, size) = (after.1.0 - before.1.0, after.1.1 - before.1.1);
    assert!(size > bytes as u64, "{size} bytes were flooded");
    assert!(
        size / packets > 3000,
        "{size} bytes were flooded in {packets} packets: cut for a member that takes them whole"
    );
    Ok(())
}

/// Behind a tag the longest packet makes a frame that no port takes whole; its
/// pieces leave room for the tag.
#[test]
fn the_longest_packet_behind_a_tag_goes_in_pieces() -> Result<(), LabError> {
    if !root_or_skip("the_longest_packet_behind_a_tag_goes_in_pieces") {
        return Ok(());
    }
    let node = node()?;
    let mut pods = [Pod::bare("a")?, Pod::bare("b")?];
    let network = node.network("blue", json!({ "segment": "blue", "mtu": 65535 }));
    for pod in &mut pods {
        pod.add(&node, "eth0", &network)?;
    }
    let [a, b] = &pods;
    traffic::reach(a.namespace(), b.v4()?)?;
    let count = "nft 'add table netdev seen; \
                 add chain netdev seen in { type filter hook ingress device eth0 priority 0; }; \
                 add rule netdev seen in vlan id 5 counter'";
    b.namespace().sh(count)?;
    let send = ["/usr/bin/python3", "-c", LONGEST_TAGGED, &mac_of(b)?];
    a.namespace().run(&send)?;
    // Some may find no frames posted.
    wait_for("two pieces of one", PATIENCE, || {
        let list = ["nft", "list", "table", "netdev", "seen"];
        let seen = b.namespace().run(&list).ok()?;
        let (_, count) = seen.split_once("counter packets ")?;
        let count: u32 = count.split(' ').next()?.parse().ok()?;
        (count >= 2 && count.is_multiple_of(2)).then_some(())
    })?;
    // The lane is still there.
    traffic::reach(a.namespace(), b.v4()?)?;
    traffic::tcp_both_ways(a.namespace(), b.namespace(), b.v4()?, 1 << 20)?;
    assert!(node.status()?.ready);
    Ok(())
}
