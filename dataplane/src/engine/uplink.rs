//! The uplink's way into the engine: an existing interface of the node.

use std::sync::Arc;

use super::{Attached, Inner, PortError, PortSpec, UplinkSpec, XdpChoice, lock};
use crate::port::{Kind, PortHandle, Program, ProgramError};
use crate::snapshot::Snapshot;
use crate::types::PortId;
use crate::uplink::{Filter, attachment, echoes};
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

/// What becomes of what the uplink's program was told before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Lanes go by it for another moment.
    InForce,
    /// The next snapshot alone counts.
    Gone,
}

/// The uplink, and what its program was told to take.
pub(super) struct Uplink {
    spec: UplinkSpec,
    told: Filter,
    /// XDP modes to try.
    choice: XdpChoice,
    /// Whether its program is in force. If not, an earlier process' one is,
    /// which knows better what to keep from the kernel until there is a
    /// snapshot.
    is_attached: bool,
}

impl Inner {
    pub(super) fn attach_uplink(&self, spec: UplinkSpec) -> Result<Attached, PortError> {
        self.admit(&spec.port)?;
        let mut refused = None;
        for &transfer in transfers(&spec) {
            match self.attach_uplink_by(&spec, transfer) {
                Ok(attached) => return Ok(attached),
                // Somebody has the queue, whatever the way.
                Err(error) if error.is_busy() => return Err(error),
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
        let snapshot = self.snapshot.load();
        let told = Filter::of(&snapshot);
        told.write(&Filter::default(), &mut program)
            .map_err(failed)?;
        let shared = echoes(&mut program).map_err(failed)?;
        self.connections.show_echoes(shared);
        let choice = match transfer {
            Transfer::Copy => spec.xdp,
            // A program in the stack would never see the device's frames.
            Transfer::ZeroCopy { .. } => XdpChoice::NativeOnly,
        };
        let ifindex = spec.port.ifindex;
        let earlier = attachment::own(ifindex).map_err(failed)?;
        let earlier = earlier.filter(|own| {
            let is_blank = snapshot.underlay.uplink != Some(spec.port.id);
            is_blank && choice.attempts().first() == Some(&own.mode)
        });
        let is_attached = earlier.is_none();
        let mode = match earlier {
            Some(own) => own.mode,
            None => attachment::attach(&mut program, ifindex, choice).map_err(failed)?,
        };
        *lock(&self.uplink) = Some(Uplink {
            spec: spec.clone(),
            told,
            choice,
            is_attached,
        });
        if let Some(host) = spec.host_side.as_ref().filter(|_| spec.is_bridged) {
            program.join_node(&spec.port, host).map_err(failed)?;
        }
        let mut handle = PortHandle::new(spec.port.clone(), program, &queues);
        handle.zero_copy = transfer != Transfer::Copy;
        let attached = self.join(handle, queues, mode)?;
        // A snapshot may have been published meanwhile.
        let mut uplink = lock(&self.uplink);
        self.filter(&mut uplink, &self.snapshot.load(), Before::Gone);
        Ok(attached)
    }

    /// The specification of the uplink, when the port is one.
    pub(super) fn uplink_spec(&self, id: PortId) -> Option<UplinkSpec> {
        let uplink = lock(&self.uplink);
        let spec = uplink.as_ref().map(|uplink| &uplink.spec);
        spec.filter(|spec| spec.port.id == id).cloned()
    }

    /// Forgets the uplink when the port is one, and takes its program off the
    /// device.
    pub(super) fn forget_uplink(&self, id: PortId) {
        let gone = lock(&self.uplink).take_if(|uplink| uplink.spec.port.id == id);
        if let Some(uplink) = gone {
            uplink.release();
        }
    }

    /// As [`Inner::forget_uplink`], when the process ends: the program stays
    /// where the kernel must not see what it takes.
    pub(super) fn leave_uplink(&self) {
        let gone = lock(&self.uplink).take();
        if let Some(uplink) = gone.filter(|uplink| !uplink.told.outlives()) {
            uplink.release();
        }
    }

    /// Has lanes go by a snapshot; gives the one before. What the uplink's
    /// program takes grows before that and shrinks after it: from the first
    /// packet on that lanes send by the new one, they and not the kernel get
    /// the answers.
    pub(super) fn put_in_force(&self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        let mut uplink = lock(&self.uplink);
        self.filter(&mut uplink, &snapshot, Before::InForce);
        let before = self.snapshot.swap(Arc::clone(&snapshot));
        self.filter(&mut uplink, &snapshot, Before::Gone);
        before
    }

    /// Tells the uplink's program what a snapshot takes.
    fn filter(&self, uplink: &mut Option<Uplink>, snapshot: &Snapshot, before: Before) {
        let Some(uplink) = uplink else {
            return;
        };
        let mut ports = lock(&self.ports);
        let Some(handle) = ports.get_mut(&uplink.spec.port.id) else {
            return;
        };
        if let Err(error) = uplink.follow(snapshot, before, &mut handle.program) {
            tracing::error!(uplink = %handle.spec.name, %error, "the uplink takes what it took before");
        }
    }

    pub(super) fn outer_fragments(&self) -> u64 {
        let Some(id) = lock(&self.uplink).as_ref().map(|u| u.spec.port.id) else {
            return 0;
        };
        let mut ports = lock(&self.ports);
        let handle = ports.get_mut(&id);
        handle.map_or(0, |handle| {
            crate::uplink::outer_fragments(&mut handle.program)
        })
    }
}

impl Uplink {
    fn follow(
        &mut self,
        snapshot: &Snapshot,
        before: Before,
        program: &mut Program,
    ) -> Result<(), ProgramError> {
        let mut wanted = Filter::of(snapshot);
        if before == Before::InForce {
            wanted.keep(&self.told);
        }
        if wanted != self.told {
            wanted.write(&self.told, program)?;
            self.told = wanted;
        }
        let is_next = before == Before::Gone;
        if !self.is_attached && is_next && snapshot.underlay.uplink == Some(self.spec.port.id) {
            attachment::attach(program, self.spec.port.ifindex, self.choice)?;
            self.is_attached = true;
        }
        Ok(())
    }

    fn release(&self) {
        let PortSpec { ifindex, name, .. } = &self.spec.port;
        if let Err(error) = attachment::release(*ifindex) {
            tracing::warn!(uplink = name, %error, "its XDP program stays; `ip link set {name} xdp off` removes it");
        }
    }
}
