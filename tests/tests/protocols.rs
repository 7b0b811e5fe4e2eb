//! Transports that the switch knows nothing of pass between pods as they are:
//! SCTP, GRE and ESP, whole and in fragments, and tunnels that pods have of
//! their own.

use std::net::IpAddr;

use spinlane_tests::cluster::{Families, UPLINK};
use spinlane_tests::{
    Cluster, LabError, Namespace, PATIENCE, Pod, Result, root_or_skip, traffic, wait_for,
};

/// Sends back what comes by sockets without a transport.
const ECHO: &str = "
import select, socket
all = {}
for protocol in (132, 47, 50):
    for family in (socket.AF_INET, socket.AF_INET6):
        all[socket.socket(family, socket.SOCK_RAW, protocol)] = family
while True:
    for end in select.select(all, [], [])[0]:
        data, sender = end.recvfrom(65535)
        if all[end] == socket.AF_INET:
            data = data[(data[0] & 15) * 4:]
        end.sendto(data, (sender[0], 0))
";

/// Sends packets of several lengths, each until it comes back; names those that
/// do not.
const ASK: &str = "
import os, socket, struct, sys, time
to = sys.argv[1]
family = socket.AF_INET6 if ':' in to else socket.AF_INET
begins = {
    132: struct.pack('>HHII', 5000, 6000, 1, 0x01020304),
    47: struct.pack('>HH', 0, 0x6558),
    50: struct.pack('>II', 256, 1),
}
for protocol, begin in begins.items():
    end = socket.socket(family, socket.SOCK_RAW, protocol)
    for length in (33, 1000, 1400, 4001, 20000):
        data = begin + os.urandom(length)
        back, until = None, time.monotonic() + 30
        while back != data and time.monotonic() < until:
            end.sendto(data, (to, 0))
            end.settimeout(1)
            try:
                back, sender = end.recvfrom(65535)
            except TimeoutError:
                continue
            if family == socket.AF_INET:
                back = back[(back[0] & 15) * 4:]
            if sender[0] != to:
                print(f'protocol {protocol} came from {sender[0]}')
        if back != data:
            print(f'{length} bytes of protocol {protocol} do not come back')
";

fn ask(from: &Namespace, to: IpAddr) -> Result<()> {
    let said = from.run(&["/usr/bin/python3", "-c", ASK, &to.to_string()])?;
    match said.is_empty() {
        true => Ok(()),
        false => Err(LabError::unexpected(
            format!("{} asks {to}", from.name()),
            said,
        )),
    }
}

/// A tunnel between two pods, and TCP through it.
fn nested(a: &Pod, b: &Pod, number: usize) -> Result<()> {
    for (pod, other, host) in [(a, b, 1), (b, a, 2)] {
        pod.namespace().ip(&format!(
            "link add tun{number} mtu 1300 type vxlan id 7 dstport {} local {} remote {}",
            4789 + number,
            pod.v4()?,
            other.v4()?
        ))?;
        pod.namespace().ip(&format!(
            "address add 192.168.{number}.{host}/24 dev tun{number}"
        ))?;
        pod.namespace().ip(&format!("link set tun{number} up"))?;
    }
    let far = format!("192.168.{number}.2").parse().expect("an address");
    traffic::reach(a.namespace(), far)?;
    let counter = |name| traffic::counter(a.namespace(), name);
    let (sent, again) = (counter("TcpOutSegs")?, counter("TcpRetransSegs")?);
    traffic::tcp_both_ways(a.namespace(), b.namespace(), far, 4 << 20)?;
    // Of broken packets nothing but retransmissions gets through.
    let (sent, again) = (
        counter("TcpOutSegs")? - sent,
        counter("TcpRetransSegs")? - again,
    );
    match again * 10 < sent {
        true => Ok(()),
        false => {
            let detail = format!("{again} of {sent} segments were sent again");
            Err(LabError::unexpected("TCP in a pod's own tunnel", detail))
        }
    }
}

#[test]
fn pods_have_transports_and_tunnels_of_their_own() -> Result<()> {
    if !root_or_skip("pods_have_transports_and_tunnels_of_their_own") {
        return Ok(());
    }
    for (mode, families) in [
        ("vxlan", Families::V4),
        ("vxlan", Families::V6),
        ("routed", Families::Dual),
    ] {
        let mut cluster = Cluster::prepare(2, families, |config| config.mode = mode.to_owned())?;
        for node in cluster.nodes_mut() {
            node.namespace().cut_before_the_wire(UPLINK)?;
            node.start_agent()?;
        }
        let [one, two] = cluster.nodes() else {
            unreachable!("two nodes");
        };
        let a = Pod::attach(one, "a")?;
        let others = [Pod::attach(one, "b")?, Pod::attach(two, "c")?];
        for (number, other) in others.iter().enumerate() {
            let _echo = other.namespace().spawn(&["/usr/bin/python3", "-c", ECHO])?;
            let sockets = || {
                let shown = other.namespace().run(&["ss", "-Hwln"]).ok()?;
                (shown.lines().count() == 6).then_some(())
            };
            wait_for("sockets that send back", PATIENCE, sockets)?;
            for to in [other.v4()?, other.v6()?] {
                traffic::reach(a.namespace(), to)?;
                ask(a.namespace(), to)?;
            }
            nested(&a, other, number)?;
        }
        for node in [one, two] {
            node.settled_frames()?;
        }
    }
    Ok(())
}
