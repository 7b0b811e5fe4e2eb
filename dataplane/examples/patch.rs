//! temp perf trial: patch IFACE=IP=MAC ... --
use spinlane_dataplane::{engine::*, snapshot::*, types::*};
use std::sync::Arc;
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let poll = match std::env::var("POLL").as_deref() {
        Ok("busy") => PollMode::Busy,
        Ok("interrupt") => PollMode::Interrupt,
        _ => PollMode::Adaptive,
    };
    let xdp = match std::env::var("XDP").as_deref() {
        Ok("native") => XdpChoice::Native,
        _ => XdpChoice::Generic,
    };
    let e = Engine::start(EngineConfig {
        cores: vec![1],
        poll,
        frames: 16384,
        xdp,
    })
    .unwrap();
    let mut s = Snapshot::default();
    let mut ports = vec![];
    let mut hosts = AddressMap::default();
    for (i, a) in args.iter().enumerate() {
        let f: Vec<&str> = a.split('=').collect();
        let ifindex: u32 = std::fs::read_to_string(format!("/sys/class/net/{}/ifindex", f[0]))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let id = PortId(i as u16);
        println!(
            "{:?}",
            e.attach(PortSpec {
                id,
                ifindex,
                name: f[0].into()
            })
            .unwrap()
        );
        let ip: std::net::Ipv4Addr = f[1].parse().unwrap();
        ports.push(Some(PortEntry {
            id,
            role: Role::Pod,
            mac: f[2].parse().unwrap(),
            addresses: vec![ip.into()],
            mtu: 1500,
            super_frames: true,
            segment_mtu: 1500,
            partial_checksums: true,
        }));
        hosts.insert(ip, Destination::Pod(id));
    }
    s.ports = Arc::new(ports);
    s.hosts_v4 = Arc::new(hosts);
    s.gateway = Arc::new(Gateway {
        mac: "0a:58:0a:63:00:fe".parse().unwrap(),
        ..Default::default()
    });
    e.publish(s);
    println!("ready");
    let secs: u64 = std::env::var("SECS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(10);
    std::thread::sleep(std::time::Duration::from_secs(secs));
    let st = e.stats();
    println!(
        "{:?} {:?} sleeps {} busy {}",
        st.frames,
        (st.lanes[0].rx_packets, st.lanes[0].tx_packets),
        st.lanes[0].sleeps,
        st.lanes[0].busy_ratio
    );
    for (r, c) in spinlane_dataplane::drops::DropReason::ALL
        .iter()
        .zip(st.drops)
    {
        if c > 0 {
            println!("{} {}", r.name(), c);
        }
    }
    for i in 0..args.len() {
        println!("{:?}", e.port_stats(PortId(i as u16)));
    }
    let t = std::time::Instant::now();
    e.stop();
    println!("stop {:?} {:?}", t.elapsed(), e.stats().frames);
}
