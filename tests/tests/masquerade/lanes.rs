//! One lane opens a connection, the answers come to another.

use std::net::IpAddr;

use serde_json::Value;
use spinlane_tests::{LabError, Pod, root_or_skip, traffic};

use super::outside::{FAR, Outside};

/// Lanes of the flows that enter by ports whose names `is_it` knows, by the
/// port outside.
fn lanes(flows: &[Value], port: impl Fn(&Value) -> Option<u64>) -> Vec<(u64, u64)> {
    let lane = |flow: &Value| Some((port(flow)?, flow["lane"].as_u64()?));
    flows.iter().filter_map(lane).collect()
}

#[test]
fn answers_may_come_to_another_lane() -> Result<(), LabError> {
    if !root_or_skip("answers_may_come_to_another_lane") {
        return Ok(());
    }
    let mut outside = Outside::prepare(|config| config.cores = "[0, 1]".to_owned())?;
    // A queue for each lane. What comes from the link comes by the first.
    let uplink = outside.node().namespace();
    uplink.run(&["ethtool", "-L", "eth0", "rx", "2", "tx", "2"])?;
    outside.node_mut().start_agent()?;
    let pod = Pod::attach(outside.node(), "web")?;
    for to in FAR {
        traffic::reach(pod.namespace(), to)?;
    }
    let side_by_side = |talk: &(dyn Fn(IpAddr) -> Result<(), LabError> + Sync)| {
        std::thread::scope(|scope| {
            let talks = (0..24).map(|number| scope.spawn(move || talk(FAR[number % 2])));
            let talks: Vec<_> = talks.collect();
            talks
                .into_iter()
                .try_for_each(|talk| talk.join().expect("no panic"))
        })
    };
    let (inside, far) = (pod.namespace(), &outside.far);
    side_by_side(&|to| traffic::tcp_both_ways(inside, far, to, 256 << 10))?;
    side_by_side(&|to| {
        let whole = traffic::udp_echo(inside, far, to, 10, 200)?;
        assert_eq!(whole, 10, "datagrams to {to}");
        Ok(())
    })?;
    // Both directions of one connection, on different lanes.
    let flows = outside.node().cli(&["flows"])?;
    let rows = outside.node().cli(&["connections"])?;
    let (flows, rows) = (
        flows.as_array().expect("a list"),
        rows.as_array().expect("a list"),
    );
    let is_crossed = |row: &Value| {
        let snat = row["snat"].as_str()?;
        let outside: u64 = snat.rsplit(':').next()?.parse().ok()?;
        let there = lanes(flows, |flow| {
            let key = &flow["key"];
            (key["sport"] == row["sport"] && key["dport"] == row["dport"]).then_some(outside)
        });
        let back = lanes(flows, |flow| {
            let key = &flow["key"];
            let port = key["dport"].as_u64()?;
            (port == outside && key["sport"] == row["dport"]).then_some(port)
        });
        Some(
            there
                .iter()
                .any(|(_, out)| back.iter().any(|(_, lane)| lane != out)),
        )
    };
    let crossed = rows
        .iter()
        .filter(|row| is_crossed(row) == Some(true))
        .count();
    assert!(crossed > 0, "no connection was crossed: {rows:?}");
    assert_eq!(outside.node().drops()?["no_connection"], 0);
    outside.nothing_leaked()
}
