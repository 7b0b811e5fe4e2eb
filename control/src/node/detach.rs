//! DEL and GC. Both tolerate that everything is gone already.

use spinlane_api::cni::Attachment;
use spinlane_dataplane::snapshot::Location;

use super::bound::BoundPort;
use super::endpoint::{State, host_ifname};
use super::error::AttachError;
use super::netlink::{Netlink, delete_link};
use super::store::Change;
use super::{Core, unix_s};

impl Core {
    /// DEL.
    pub(crate) fn delete(&self, attachment: &Attachment) -> Result<(), AttachError> {
        let _held = self.locks.lock(attachment);
        self.dismantle(attachment)
    }

    /// Takes an attachment apart, whatever is left of it. The caller holds
    /// its lock.
    pub(crate) fn dismantle(&self, attachment: &Attachment) -> Result<(), AttachError> {
        let name = host_ifname(attachment);
        let live = {
            let mut inventory = self.inventory();
            if let Some(live) = inventory.endpoints.get_mut(attachment) {
                live.endpoint.state = State::Deleting;
            }
            inventory.endpoints.get(attachment).cloned()
        };
        let Some(live) = live else {
            return delete_ours(&name);
        };
        let endpoint = live.endpoint;
        self.store
            .write(vec![Change::Put(Box::new(endpoint.clone()))])?;
        let port = self.take_port(attachment);
        // Side by side, when a thread can be had: the kernel has both wait for
        // its readers.
        std::thread::scope(|scope| {
            if let Some(port) = port {
                let detach = move || self.detach_port(attachment, port);
                let thread = std::thread::Builder::new().name("detach".to_owned());
                if thread.spawn_scoped(scope, detach).is_err() {
                    detach();
                }
            }
            delete_ours(&name)
        })?;
        let mut changes = vec![Change::Remove(attachment.clone())];
        if !endpoint.delegated {
            changes.extend(endpoint.ips().map(|address| Change::Released {
                scope: endpoint.segment.clone(),
                address,
                at_s: unix_s(),
            }));
        }
        self.store.write(changes)?;
        let mut inventory = self.inventory();
        inventory.endpoints.remove(attachment);
        for address in endpoint.ips() {
            inventory.ipam.release(&endpoint.segment, address, unix_s());
        }
        drop(inventory);
        self.route_stranger(&endpoint);
        Ok(())
    }

    /// Lets go of an endpoint's port, if it has one.
    pub(crate) fn unbind(&self, attachment: &Attachment) {
        if let Some(port) = self.take_port(attachment) {
            self.detach_port(attachment, port);
        }
    }

    /// Takes an endpoint's port from it. No new packet is sent there from here
    /// on, before its frames are called home.
    fn take_port(&self, attachment: &Attachment) -> Option<BoundPort> {
        let port = {
            let mut inventory = self.inventory();
            let live = inventory.endpoints.get_mut(attachment)?;
            let port = live.port.take()?;
            inventory.fdb.remove(Location::Port(port.id));
            inventory.touch();
            port
        };
        self.publish();
        Some(port)
    }

    fn detach_port(&self, attachment: &Attachment, port: BoundPort) {
        if let Err(error) = self.switch.detach(port.id) {
            tracing::warn!(container = attachment.container_id, %error, "cannot detach a pod's port");
        }
        self.steered().remove(&port.id);
        self.inventory().ids.give_back(port.id);
    }

    /// GC: removes what one network has and `keep` does not name.
    pub(crate) fn collect(&self, network: &str, keep: &[Attachment]) -> Result<(), AttachError> {
        let stale: Vec<Attachment> = self
            .inventory()
            .endpoints
            .keys()
            .filter(|a| {
                let named = |k: &Attachment| {
                    // Runtimes name attachments by container and interface;
                    // the network is that of the request.
                    k.container_id == a.container_id && k.ifname == a.ifname
                };
                a.network == network && !keep.iter().any(named)
            })
            .cloned()
            .collect();
        let mut failed = None;
        for attachment in &stale {
            tracing::info!(
                container = attachment.container_id,
                interface = attachment.ifname,
                network,
                "removing an attachment that the runtime no longer knows"
            );
            if let Err(error) = self.delete(attachment) {
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Deletes an interface of ours; fine when there is none.
pub(crate) fn delete_ours(name: &str) -> Result<(), AttachError> {
    Netlink::open()?.request(delete_link(name).tolerate(&[libc::ENODEV]))?;
    Ok(())
}
