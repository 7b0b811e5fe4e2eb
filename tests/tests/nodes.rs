//! Pods of several nodes, and the nodes themselves, reach each other.

use spinlane_tests::cluster::Families;
use spinlane_tests::{Cluster, LabError, Pod, root_or_skip, traffic};

#[test]
fn pods_of_two_nodes_ping_each_other_through_vxlan() -> Result<(), LabError> {
    if !root_or_skip("pods_of_two_nodes_ping_each_other_through_vxlan") {
        return Ok(());
    }
    let cluster = Cluster::start(2, Families::V4, |_| {})?;
    let [one, two] = cluster.nodes() else {
        unreachable!("two were asked for");
    };
    let (a, b) = (Pod::attach(one, "a")?, Pod::attach(two, "b")?);
    for (from, to) in [(&a, &b), (&b, &a)] {
        for address in [to.v4()?, to.v6()?] {
            let pings = traffic::ping(from.namespace(), address, 3)?;
            assert!(pings.all(), "{} to {address}: {}", from.name(), pings.text);
        }
    }
    Ok(())
}
