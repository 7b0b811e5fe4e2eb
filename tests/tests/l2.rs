//! Mode `l2`: pods are stations of the node's own network, beside plain Linux.

use std::time::Duration;

use spinlane_tests::lan::Lan;
use spinlane_tests::{LabError, Pod, root_or_skip, traffic, wait_for};

#[test]
fn pods_nodes_and_plain_hosts_share_one_network() -> Result<(), LabError> {
    if !root_or_skip("pods_nodes_and_plain_hosts_share_one_network") {
        return Ok(());
    }
    let lan = Lan::start(2, |_| {})?;
    let pods = [
        Pod::attach(&lan.nodes()[0], "a")?,
        Pod::attach(&lan.nodes()[0], "b")?,
        Pod::attach(&lan.nodes()[1], "c")?,
    ];
    for (name, from, to, address) in lan.pairs(&pods)? {
        wait_for(&format!("ping {name}"), Duration::from_secs(5), || {
            let pings = traffic::ping(from, address, 1);
            pings.ok().filter(traffic::Pings::all)
        })?;
        traffic::tcp_both_ways(from, to, address, 300 << 10)?;
        for size in [18, 1400] {
            let whole = traffic::udp_echo(from, to, address, 3, size)?;
            assert_eq!(whole, 3, "{name}: UDP of {size} bytes");
        }
    }
    Ok(())
}
