//! The uplink's way into the engine: an existing interface of the node.

use super::{Attached, Inner, PortError, UplinkSpec, XdpChoice, lock};
use crate::port::{Kind, PortHandle};
use crate::types::PortId;
use crate::uplink::{Filter, echoes};
use crate::xsk::socket::Transfer;

/// The ways of moving frames to try, best first.
fn transfers(spec: &UplinkSpec) -> &'static [Transfer] {
    match spec.zero_copy {
        true => &[
            Transfer::ZeroCopy { chains: true },
            Transfer::ZeroCopy { chains: false },
            Transfer::Copy,
        ],
        false => &[Transfer::Copy],
    }
}

impl Inner {
    pub(super) fn attach_uplink(&self, spec: UplinkSpec) -> Result<Attached, PortError> {
        self.admit(&spec.port)?;
        let mut refused = None;
        for &transfer in transfers(&spec) {
            match self.attach_uplink_by(&spec, transfer) {
                Ok(attached) => return Ok(attached),
                // The last one is what every device can do.
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or(PortError::Id(spec.port.id)))
    }

    fn attach_uplink_by(
        &self,
        spec: &UplinkSpec,
        transfer: Transfer,
    ) -> Result<Attached, PortError> {
        let queues = self.bind_uplink(spec, transfer)?;
        let failed = |source| PortError::program(&spec.port, source);
        let mut program = self.loader.load(Kind::Uplink, &queues).map_err(failed)?;
        // Told what to take before it takes anything.
        let wanted = Filter::of(&self.snapshot.load());
        wanted
            .write(&Filter::default(), &mut program)
            .map_err(failed)?;
        let shared = echoes(&mut program).map_err(failed)?;
        self.connections.show_echoes(shared);
        *lock(&self.uplink) = Some((spec.clone(), wanted));
        let choice = match transfer {
            Transfer::Copy => spec.xdp,
            // A program in the stack would never see the device's frames.
            Transfer::ZeroCopy { .. } => XdpChoice::NativeOnly,
        };
        let mode = program.attach(spec.port.ifindex, choice).map_err(failed)?;
        if let Some(host) = spec.host_side.as_ref().filter(|_| spec.is_bridged) {
            program.join_node(&spec.port, host).map_err(failed)?;
        }
        let mut handle = PortHandle::new(spec.port.clone(), program, &queues);
        handle.zero_copy = transfer != Transfer::Copy;
        let attached = self.join(handle, queues, mode)?;
        // A snapshot may have been published meanwhile.
        self.filter_uplink();
        Ok(attached)
    }

    /// The specification of the uplink, when the port is one.
    pub(super) fn uplink_spec(&self, id: PortId) -> Option<UplinkSpec> {
        let uplink = lock(&self.uplink);
        let spec = uplink.as_ref().map(|(spec, _)| spec);
        spec.filter(|spec| spec.port.id == id).cloned()
    }

    /// Forgets the uplink when the port is one.
    pub(super) fn forget_uplink(&self, id: PortId) {
        let mut uplink = lock(&self.uplink);
        uplink.take_if(|(spec, _)| spec.port.id == id);
    }

    /// Tells the uplink's program what the snapshot in force takes.
    pub(super) fn filter_uplink(&self) {
        let mut uplink = lock(&self.uplink);
        let Some((spec, told)) = uplink.as_mut() else {
            return;
        };
        let mut ports = lock(&self.ports);
        let Some(handle) = ports.get_mut(&spec.port.id) else {
            return;
        };
        let wanted = Filter::of(&self.snapshot.load());
        if wanted == *told {
            return;
        }
        match wanted.write(told, &mut handle.program) {
            Ok(()) => *told = wanted,
            Err(error) => {
                tracing::error!(uplink = %handle.spec.name, %error, "the uplink takes what it took before");
            }
        }
    }

    pub(super) fn outer_fragments(&self) -> u64 {
        let Some(id) = lock(&self.uplink).as_ref().map(|(spec, _)| spec.port.id) else {
            return 0;
        };
        let mut ports = lock(&self.ports);
        let handle = ports.get_mut(&id);
        handle.map_or(0, |handle| {
            crate::uplink::outer_fragments(&mut handle.program)
        })
    }
}
