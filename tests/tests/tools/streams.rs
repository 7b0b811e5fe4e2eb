//! Streams between all, and captures on the link between nodes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use spinlane_tests::capture::{ODD, Recording, TCP_COMPLAINTS};
use spinlane_tests::cluster::Underlay;
use spinlane_tests::site::{Site, Station};
use spinlane_tests::talk::Pair;
use spinlane_tests::{LabError, Namespace, PATIENCE, Result, capture, probe, talk, wait_for};

/// A machine that does much else loses something now and then.
const ATTEMPTS: u32 = 12;
/// What the next attempt waits longer than the one before.
const PAUSE: Duration = Duration::from_millis(50);
/// DSCP "expedited forwarding", as a byte of the IP header.
const CLASS: u32 = 0xb8;

/// iperf3 over TCP and UDP between every two stations that can talk, as many
/// of them at once as there are stations.
pub(crate) fn between_every_pair(stations: &[Station<'_>]) -> Result<()> {
    let mut serving = Vec::new();
    for station in stations {
        for address in &station.addresses {
            let server = ["iperf3", "-s", "-B", &address.to_string()];
            serving.push(station.namespace.spawn(&server)?);
        }
        wait_for("iperf3 to listen", PATIENCE, || {
            let list = ["ss", "-Htln", "sport = :5201"];
            let listening = station.namespace.run(&list).ok()?.lines().count();
            (listening >= station.addresses.len()).then_some(())
        })?;
    }
    let mut rounds: Vec<Vec<Pair<'_>>> = Vec::new();
    for pair in talk::pairs(stations) {
        let is_free = |round: &&mut Vec<Pair<'_>>| {
            let mut taken = round.iter();
            taken.all(|other| other.from.name != pair.from.name && other.to.name != pair.to.name)
        };
        match rounds.iter_mut().find(is_free) {
            Some(round) => round.push(pair),
            None => rounds.push(vec![pair]),
        }
    }
    for round in rounds {
        std::thread::scope(|scope| {
            let streams: Vec<_> = round
                .iter()
                .map(|pair| scope.spawn(|| stream(pair)))
                .collect();
            let mut outcomes = streams
                .into_iter()
                .map(|stream| stream.join().expect("no panic"));
            outcomes.try_for_each(|outcome| outcome)
        })?;
    }
    drop(serving);
    Ok(())
}

/// A few hundred kilobytes of TCP, and datagrams of which all arrive.
fn stream(pair: &Pair<'_>) -> Result<()> {
    let address = pair.address.to_string();
    let tcp = ["-n", "300K"];
    // The end that receives counts to the end only where it is the client.
    let back = ["-n", "300K", "-R"];
    let udp = ["-u", "-b", "4M", "-l", "1200", "-n", "60K"];
    for options in [&tcp[..], &back[..], &udp[..]] {
        let line = [&["iperf3", "-J", "-c", &address][..], options].concat();
        let mut last = String::new();
        let is_whole = (0..ATTEMPTS).any(|attempt| {
            // A server that has just served somebody is busy for a moment.
            std::thread::sleep(PAUSE * attempt);
            last = match pair.from.namespace.run(&line) {
                Ok(text) => text,
                Err(error) => error.to_string(),
            };
            serde_json::from_str(&last).is_ok_and(|report| is_whole(&report))
        });
        if !is_whole {
            return Err(LabError::unexpected(format!("{pair}, {options:?}"), last));
        }
    }
    Ok(())
}

/// Whether all that iperf3 sent arrived.
fn is_whole(report: &Value) -> bool {
    let end = &report["end"];
    match end["sum"]["packets"].as_u64() {
        Some(packets) => packets >= 50 && end["sum"]["lost_packets"] == 0,
        None => {
            let bytes = |side: &str| end[side]["bytes"].as_u64();
            let is_back = report["start"]["test_start"]["reverse"] == 1;
            let counted = if is_back { "sum_received" } else { "sum_sent" };
            bytes(counted) >= Some(300 << 10) && bytes("sum_received") > Some(0)
        }
    }
}

/// Streams at a rate that loses nothing, both ways, then datagrams; the
/// capture of it on the first node's link.
pub(crate) fn look_right(
    site: &Site,
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
) -> Result<()> {
    let link = site.cluster().underlay().namespace();
    // A machine that stands still for a while makes senders impatient, and
    // that is nobody's fault.
    let class = CLASS.to_string();
    let mut complaints = String::new();
    for _ in 0..ATTEMPTS {
        let file = site.node(1).run_dir().join("link.pcap");
        let _ = std::fs::remove_file(&file);
        let recording = Recording::start((link, &Underlay::port(1)), &["-s", "2000"], "", &file)?;
        let mut few = false;
        let tcp = ["-S", &class, "-t", "1", "-P", "3", "-b", "5M"];
        for options in [&tcp[..], &[&tcp[..], &["-R"]].concat()] {
            let report = probe::iperf3(from, to, address, options)?;
            let bytes = report["end"]["sum_received"]["bytes"].as_u64();
            few |= bytes < Some(1 << 20);
        }
        let udp = ["-u", "-S", &class, "-t", "1", "-b", "5M", "-l", "1300"];
        let report = probe::iperf3(from, to, address, &udp)?;
        let sum = &report["end"]["sum"];
        few |= sum["packets"].as_u64() < Some(201);
        let missed = recording.stop()?;
        if missed > 0 || few {
            complaints = format!("tcpdump missed {missed} packets; too few were sent: {few}");
            continue;
        }
        assert_eq!(
            capture::fields(&file, ODD, &["_ws.col.Info"])?,
            [[""; 0]; 0]
        );
        assert!(capture::count(&file, "tcp")? > 1000);
        assert!(capture::count(&file, "udp.length > 1300")? > 200);
        outer_headers(site, &file)?;
        let odd = capture::fields(&file, TCP_COMPLAINTS, &["frame.number", "_ws.col.Info"])?;
        let lost = sum["lost_packets"].as_u64();
        if odd.is_empty() && lost == Some(0) {
            return Ok(());
        }
        let few: Vec<_> = odd.iter().take(9).collect();
        complaints = format!("{lost:?} datagrams lost, TCP: {few:?}");
    }
    let what = format!("{ATTEMPTS} runs to {address}, one of them without loss");
    Err(LabError::unexpected(what, complaints))
}

/// Outer headers of all tunnelled packets in a capture.
fn outer_headers(site: &Site, file: &Path) -> Result<()> {
    let names = [
        "ip.ttl",
        "ip.dsfield",
        "ipv6.hlim",
        "ipv6.tclass",
        "ip.flags.df",
        "udp.srcport",
        "udp.dstport",
        "tcp.srcport",
        "tcp.dstport",
    ];
    let is_outer_v6 = site.cluster().addresses(1)[0].is_ipv6();
    let is_behind_router = site.router().is_some();
    let mut classified = 0;
    let mut ports: HashMap<[String; 2], String> = HashMap::new();
    for row in capture::fields(file, "vxlan && tcp", &names)? {
        let all = |at: usize| row[at].split(',').filter(|value| !value.is_empty());
        let first = |at: usize| all(at).next().unwrap_or_default().to_owned();
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        // The outer one comes first where both are of one family; a router on
        // the way takes a hop.
        let hops = first(if is_outer_v6 { 2 } else { 0 });
        assert!(hops == "64" || is_behind_router && hops == "63", "{row:?}");
        let classes: Vec<_> = all(1).chain(all(3)).filter_map(number).collect();
        assert!(
            classes.len() == 2 && classes[0] == classes[1],
            "outer and inner: {row:?}"
        );
        classified += u32::from(classes[0] == CLASS | 2);
        if !is_outer_v6 {
            assert_eq!(first(4), "1", "outer packets are not fragmented: {row:?}");
        }
        assert_eq!(first(6), "4789", "{row:?}");
        assert!(number(&first(5)) >= Some(49152), "{row:?}");
        let known = ports
            .entry([first(7), first(8)])
            .or_insert_with(|| first(5));
        assert_eq!(
            *known,
            first(5),
            "one source port for a connection: {row:?}"
        );
    }
    assert!(
        ports.is_empty() || classified > 500,
        "{classified} with class and mark"
    );
    Ok(())
}
