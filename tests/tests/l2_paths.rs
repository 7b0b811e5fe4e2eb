//! Mode `l2`, where the way carries less than the pods' own network. Senders
//! find out by themselves, but their super-frames have to be cut accordingly.

use std::net::IpAddr;

use spinlane_tests::lan::{HOST, Lan, OUTSIDE, ROUTER};
use spinlane_tests::{LabError, Namespace, Pod, probe, root_or_skip, traffic};

const MEGABYTE: usize = 1 << 20;

/// Longest packet that passes.
const NARROW: u32 = 1400;

/// Bulk TCP both ways, also by a connection that knows the path already.
fn streams(pod: &Pod, to: &Namespace, address: IpAddr) -> Result<(), LabError> {
    traffic::reach(pod.namespace(), address)?;
    for _ in 0..2 {
        traffic::tcp_both_ways(pod.namespace(), to, address, 4 * MEGABYTE)?;
    }
    Ok(())
}

#[test]
fn pods_stream_over_a_narrow_link_behind_the_router() -> Result<(), LabError> {
    if !root_or_skip("pods_stream_over_a_narrow_link_behind_the_router") {
        return Ok(());
    }
    let lan = Lan::start(1, |_| {})?;
    lan.router().ip(&format!("link set away mtu {NARROW}"))?;
    let pod = Pod::attach(&lan.nodes()[0], "a")?;
    let routers = lan.addresses(ROUTER);
    for (address, router) in OUTSIDE.iter().zip(routers) {
        let address = address.parse().expect("an address");
        streams(&pod, lan.outside(), address)?;
        let path = probe::tracepath(pod.namespace(), address)?;
        let hops = vec![router.to_string(), address.to_string()];
        let expect = probe::Path {
            hops,
            mtu: NARROW,
            is_reached: true,
        };
        assert_eq!(path, expect);
    }
    Ok(())
}

#[test]
fn pods_stream_to_a_station_that_takes_less() -> Result<(), LabError> {
    if !root_or_skip("pods_stream_to_a_station_that_takes_less") {
        return Ok(());
    }
    let lan = Lan::start(1, |_| {})?;
    lan.host().ip(&format!("link set eth0 mtu {NARROW}"))?;
    let pod = Pod::attach(&lan.nodes()[0], "a")?;
    for address in lan.addresses(HOST) {
        streams(&pod, lan.host(), address)?;
    }
    Ok(())
}
