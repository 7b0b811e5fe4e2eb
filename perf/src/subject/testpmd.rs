//! DPDK's testpmd between two veths, by its AF_XDP driver: frames go from
//! one device to the other, with no switching at all.

use std::fs;
use std::time::Duration;

use spinlane_tests::{Process, lab_dir, wait_for};

use crate::measure::{MeasureError, io_error};
use crate::subject::peer::Peer;
use crate::subject::veth::Addressing;
use crate::subject::{Kind, LANE_CORE, needs, package_version, setting, xdp_mode};

const PROGRAM: &str = "dpdk-testpmd";

/// A testpmd with two pods.
pub(super) fn set_up() -> Result<Peer, MeasureError> {
    needs(Kind::TestpmdAfxdp, &[PROGRAM], "dpdk-dev")?;
    let mut peer = Peer::on_one_node(Kind::TestpmdAfxdp, Addressing::Segment)?;
    for pod in &peer.pods {
        pod.complete_checksums()?;
    }
    let node = &peer.nodes[0];
    let dir = lab_dir()?.join(node.name());
    fs::create_dir_all(&dir).map_err(io_error(format!("create {}", dir.display())))?;
    let mut command = node.command(PROGRAM);
    // Ordinary memory, so that it runs where no huge pages are set aside; the
    // main thread sleeps between its statistics.
    command.env("RUNTIME_DIRECTORY", &dir).args([
        "--lcores",
        &format!("0@{LANE_CORE},1@{LANE_CORE}"),
        "--no-huge",
        "-m",
        "512",
        "--no-pci",
        "--no-telemetry",
        "--vdev",
        &format!("net_af_xdp0,iface={}", peer.pods[0].host_end),
        "--vdev",
        &format!("net_af_xdp1,iface={}", peer.pods[1].host_end),
        "--",
        "--forward-mode=io",
        "--auto-start",
        "--stats-period=86400",
        "--total-num-mbufs=16384",
    ]);
    let mut process = Process::spawn(command)?;
    let attached = wait_for("testpmd's XDP programs", Duration::from_secs(90), || {
        if !process.is_running() {
            return Some(false);
        }
        let all = peer
            .pods
            .iter()
            .all(|pod| xdp_mode(node, &pod.host_end).is_ok_and(|mode| mode != "none"));
        all.then_some(true)
    })?;
    if !attached {
        let output = process.wait(Duration::from_secs(1))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let reason = text.lines().rev().find(|line| line.contains("Cause:"));
        return Err(MeasureError::Missing {
            name: Kind::TestpmdAfxdp.name(),
            reason: format!(
                "{PROGRAM} ended: {}; its AF_XDP driver is in librte-net-af-xdp23",
                reason.unwrap_or("without a reason").trim()
            ),
        });
    }
    let mode = xdp_mode(node, &peer.pods[0].host_end)?;
    peer.settings = vec![
        setting("version", package_version("dpdk-dev")),
        setting("XDP mode", mode),
        setting("polling thread", format!("core {LANE_CORE}, never sleeps")),
        setting("memory", "no huge pages"),
        setting("route MTU", "1500"),
        setting("pod TX checksum, GSO", "off"),
        setting("switching", "none, two devices are joined"),
    ];
    peer.forwarding.push(process);
    Ok(peer)
}
