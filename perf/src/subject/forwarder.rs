//! The forwarder on the `afxdp` crate (`crate::forwarder`), in a process of
//! its own between two pods.

use spinlane_tests::Process;

use crate::measure::{MeasureError, io_error};
use crate::subject::peer::Peer;
use crate::subject::veth::Addressing;
use crate::subject::{Kind, LANE_CORE, setting};

/// A forwarder with two pods, this program itself being the forwarder.
pub(super) fn set_up() -> Result<Peer, MeasureError> {
    if !cfg!(feature = "afxdp-baseline") {
        return Err(MeasureError::Missing {
            name: Kind::AfxdpCrate.name(),
            reason: "build with `--features spinlane-perf/afxdp-baseline`".to_owned(),
        });
    }
    let mut peer = Peer::on_one_node(Kind::AfxdpCrate, Addressing::Segment)?;
    let program = std::env::current_exe().map_err(io_error("finding this program"))?;
    let mut command = peer.nodes[0].command(program);
    command.arg("forward");
    for pod in &peer.pods {
        pod.complete_checksums()?;
        command.arg(&pod.host_end);
    }
    peer.forwarding.push(Process::spawn(command)?);
    peer.settings = vec![
        setting("XDP mode", "native"),
        setting("polling thread", format!("core {LANE_CORE}, never sleeps")),
        setting("route MTU", "1500"),
        setting("pod TX checksum, GSO", "off"),
        setting("switching", "none, two devices are joined"),
    ];
    Ok(peer)
}
