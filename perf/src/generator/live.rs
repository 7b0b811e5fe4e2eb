//! What live frames need of a device.

use nix::net::if_::if_nametoindex;
use spinlane_tests::Namespace;

use crate::measure::{MeasureError, io_error};

/// GRO on at a device for as long as this lives: a veth's far end takes live
/// frames only while it runs NAPI, which GRO (or native XDP) brings.
pub(crate) struct LiveFrames<'a> {
    namespace: &'a Namespace,
    device: String,
    turned_on: bool,
}

impl<'a> LiveFrames<'a> {
    /// Switches it on, where it is off.
    pub(crate) fn allow(
        (namespace, device): (&'a Namespace, &str),
    ) -> Result<LiveFrames<'a>, MeasureError> {
        let features = namespace.run(&["ethtool", "-k", device])?;
        let is_on = features
            .lines()
            .any(|line| line.trim().starts_with("generic-receive-offload: on"));
        if !is_on {
            namespace.run(&["ethtool", "-K", device, "gro", "on"])?;
        }
        Ok(LiveFrames {
            namespace,
            device: device.to_owned(),
            turned_on: !is_on,
        })
    }
}

impl Drop for LiveFrames<'_> {
    fn drop(&mut self) {
        if self.turned_on {
            let off = ["ethtool", "-K", &self.device, "gro", "off"];
            let _ = self.namespace.run(&off);
        }
    }
}

/// The index of a device of the namespace that the thread is in.
pub(crate) fn device_index(name: &str) -> Result<u32, MeasureError> {
    if_nametoindex(name).map_err(|errno| io_error(format!("looking for {name}"))(errno.into()))
}
