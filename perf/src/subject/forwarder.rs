//! The forwarder on the `afxdp` crate ([`crate::forwarder`]), in a process of
//! its own between two pods.

use nix::sys::signal::Signal;
use spinlane_tests::{Namespace, Process};

use crate::measure::{MeasureError, io_error};
use crate::subject::{Kind, PeerPod, Pod, Subject, setting};

const HOST_ENDS: [&str; 2] = ["p1", "p2"];

/// A forwarder with two pods.
#[derive(Debug)]
pub struct Forwarder {
    process: Process,
    pods: [PeerPod; 2],
    node: Namespace,
    settings: Vec<(String, String)>,
}

impl Forwarder {
    /// Makes it from nothing, with this program itself as the forwarder.
    ///
    /// # Errors
    /// [`MeasureError::Missing`] when it was not built in; others when a step
    /// fails.
    pub fn set_up() -> Result<Forwarder, MeasureError> {
        if !cfg!(feature = "afxdp-baseline") {
            return Err(MeasureError::Missing {
                name: Kind::AfxdpCrate.name(),
                reason: "build with `--features spinlane-perf/afxdp-baseline`".to_owned(),
            });
        }
        let node = Namespace::create("forward")?;
        let pods = [
            PeerPod::create(&node, HOST_ENDS[0], 1)?,
            PeerPod::create(&node, HOST_ENDS[1], 2)?,
        ];
        for pod in &pods {
            pod.namespace.run(&["ethtool", "-K", "eth0", "tx", "off"])?;
        }
        let program = std::env::current_exe().map_err(io_error("finding this program"))?;
        let mut command = node.command(program);
        command.arg("forward").args(HOST_ENDS);
        Ok(Forwarder {
            process: Process::spawn(command)?,
            pods,
            node,
            settings: vec![
                setting("XDP mode", "native"),
                setting("polling thread", "core 1, never sleeps"),
                setting("route MTU", "1500"),
                setting("pod TX checksum, GSO", "off"),
                setting("switching", "none, two devices are joined"),
            ],
        })
    }
}

impl Subject for Forwarder {
    fn kind(&self) -> Kind {
        Kind::AfxdpCrate
    }

    fn pods(&self) -> [Pod<'_>; 2] {
        [self.pods[0].pod(), self.pods[1].pod()]
    }

    fn node(&self) -> &Namespace {
        &self.node
    }

    fn host_end(&self) -> &str {
        HOST_ENDS[0]
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.process.id()]
    }

    fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    fn pause(&mut self) {
        self.process.signal(Signal::SIGSTOP);
    }

    fn resume(&mut self) {
        self.process.signal(Signal::SIGCONT);
    }
}
