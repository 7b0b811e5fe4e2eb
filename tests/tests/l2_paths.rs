//! Mode `l2`, where the way carries less than the pods' own network. Senders
//! find out by themselves, but their super-frames have to be cut accordingly.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use spinlane_tests::capture::Recording;
use spinlane_tests::cluster::UPLINK;
use spinlane_tests::lan::{HOST, Lan, OUTSIDE, ROUTER};
use spinlane_tests::{
    LabError, Namespace, PATIENCE, Pod, capture, probe, root_or_skip, traffic, wait_for,
};

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

/// The next packets of a pod's streams, as the link carries them: none longer
/// than the station takes.
fn segments_fit(lan: &Lan, pod: &Pod, when: &str) -> Result<(), LabError> {
    let own = pod
        .namespace()
        .run(&["cat", "/sys/class/net/eth0/address"])?;
    let of_pod = format!("ether src {} and tcp", own.trim());
    let file = lan.nodes()[0].run_dir().join("segments.pcap");
    let _ = std::fs::remove_file(&file);
    let options = ["-s", "200", "-c", "2000"];
    Recording::start((lan.link(), "p1"), &options, &of_pod, &file)?.finish()?;
    let long = format!("ip.len > {NARROW} || ipv6.plen > {}", NARROW - 40);
    let (long, all) = (
        capture::fields(&file, &long, &["_ws.col.Info"])?,
        capture::count(&file, "tcp.len > 1000")?,
    );
    match long.is_empty() && all > 500 {
        true => Ok(()),
        false => {
            let first = long.first();
            let seen = format!("{} of {all} are too long, as {first:?}", long.len());
            Err(LabError::unexpected(when, seen))
        }
    }
}

/// A station says how much it takes when a connection begins, and not again.
#[test]
fn streams_keep_their_segments_over_a_restart() -> Result<(), LabError> {
    if !root_or_skip("streams_keep_their_segments_over_a_restart") {
        return Ok(());
    }
    let lan = Lan::start(1, |_| {})?;
    lan.host().ip(&format!("link set eth0 mtu {NARROW}"))?;
    let node = &lan.nodes()[0];
    node.namespace().cut_before_the_wire(UPLINK)?;
    let pod = Pod::attach(node, "a")?;
    let addresses = lan.addresses(HOST);
    let (rounds, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    let goes_on = || {
        rounds.fetch_add(1, Ordering::Relaxed);
        !is_over.load(Ordering::Relaxed)
    };
    std::thread::scope(|scope| {
        let streams: Vec<_> = addresses
            .iter()
            .map(|&address| {
                traffic::reach(pod.namespace(), address)?;
                let (pod, host) = (pod.namespace(), lan.host());
                Ok(scope.spawn(move || traffic::tcp_lasting(pod, host, address, goes_on)))
            })
            .collect::<Result<_, LabError>>()?;
        let outcome = (|| {
            wait_for("the streams", PATIENCE, || {
                (rounds.load(Ordering::Relaxed) > 20).then_some(())
            })?;
            for is_crash in [false, true] {
                node.bounce(is_crash)?;
                segments_fit(&lan, &pod, &format!("after a crash: {is_crash}"))?;
            }
            Ok(())
        })();
        is_over.store(true, Ordering::Relaxed);
        for stream in streams {
            stream.join().expect("no stream panics")?;
        }
        outcome
    })
}
