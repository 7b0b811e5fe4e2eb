//! A start brings the node up to what it finds: stored endpoints against the
//! interfaces that exist.
//!
//! | stored | interface | then |
//! |---|---|---|
//! | attached | there | its port is attached |
//! | attached | gone | forgotten, addresses released |
//! | adding or deleting | any | removed, addresses released |
//! | nothing | with our alias | removed |

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use spinlane_api::PENDING_DELETIONS_DIR;
use spinlane_api::cni::Attachment;
use spinlane_dataplane::types::PortId;

use super::detach::delete_ours;
use super::endpoint::{ALIAS_PREFIX, Endpoint, NAME_PREFIX, State};
use super::error::AttachError;
use super::inventory::{Lead, Live};
use super::ipam::{Ipam, ScopeName};
use super::link::{self, LinkError, in_pod, open_netns};
use super::netlink::{Link, Netlink, NetlinkError};
use super::offload;
use super::store::Contents;
use super::{Core, StartError};

/// Ports attached at the same time.
const PARALLEL: usize = 8;

/// What is to be done with what was found.
#[derive(Debug, Default)]
pub struct Repair {
    /// Endpoints to attach, with their interface.
    pub attach: Vec<(Endpoint, Link)>,
    /// Endpoints to take apart.
    pub remove: Vec<Endpoint>,
    /// Interfaces of ours that no endpoint stands for.
    pub orphans: Vec<String>,
}

/// Compares stored endpoints with the interfaces that exist. Pure.
pub fn compare(endpoints: Vec<Endpoint>, links: Vec<Link>) -> Repair {
    let mut by_name: HashMap<String, Link> = links
        .into_iter()
        .filter(is_pod_end)
        .map(|link| (link.name.clone(), link))
        .collect();
    let mut repair = Repair::default();
    for endpoint in endpoints {
        match (endpoint.state, by_name.remove(&endpoint.host_ifname)) {
            (State::Attached, Some(link)) => repair.attach.push((endpoint, link)),
            (State::Attached | State::Adding | State::Deleting, _) => repair.remove.push(endpoint),
        }
    }
    repair.orphans = by_name.into_keys().collect();
    repair.orphans.sort();
    repair
}

/// Whether an interface is the host's end of a pod of ours.
pub fn is_pod_end(link: &Link) -> bool {
    link.name.starts_with(NAME_PREFIX) && link.alias.starts_with(ALIAS_PREFIX)
}

impl Core {
    pub(crate) fn reconcile(&self, contents: Contents) -> Result<(), StartError> {
        self.restore_addresses(&contents);
        let links = Netlink::open()?.links()?;
        let repair = compare(contents.endpoints, links);
        for name in &repair.orphans {
            tracing::info!(
                interface = name,
                "removing an interface that nothing stands for"
            );
            if let Err(error) = delete_ours(name) {
                tracing::error!(interface = name, %error, "cannot remove an orphan");
            }
        }
        for endpoint in &repair.remove {
            tracing::info!(
                container = endpoint.attachment.container_id,
                interface = endpoint.host_ifname,
                state = ?endpoint.state,
                "removing an endpoint that is gone or was interrupted"
            );
            if let Err(error) = self.dismantle(&endpoint.attachment) {
                tracing::error!(container = endpoint.attachment.container_id, %error, "cannot remove an endpoint");
            }
        }
        self.attach_all(&repair.attach);
        Ok(())
    }

    /// Fills the inventory with every stored endpoint and the addresses'
    /// history.
    fn restore_addresses(&self, contents: &Contents) {
        let mut inventory = self.inventory();
        let setup = self.setup();
        let segments = setup.segments.iter();
        let segments = segments.map(|s| (Some(s.name.clone()), s.cidrs.clone()));
        let routed: (ScopeName, _) = (None, setup.pod_cidrs.clone());
        inventory.ipam = Ipam::new(std::iter::once(routed).chain(segments));
        for endpoint in &contents.endpoints {
            for address in endpoint.ips() {
                if let Err(error) = inventory.ipam.hold(&endpoint.segment, address) {
                    tracing::error!(container = endpoint.attachment.container_id, %error, "two endpoints share an address");
                }
            }
            inventory.endpoints.insert(
                endpoint.attachment.clone(),
                Live {
                    endpoint: endpoint.clone(),
                    port: None,
                    lead: Lead::Settled,
                },
            );
        }
        for (scope, address, at) in &contents.released {
            inventory.ipam.restore_rest(scope, *address, *at);
        }
        for (scope, address) in &contents.cursors {
            inventory.ipam.restore_cursor(scope, *address);
        }
    }

    fn attach_all(&self, found: &[(Endpoint, Link)]) {
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(0usize);
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(found.len()) {
                scope.spawn(|| {
                    // Only the count matters, no other memory hangs on it.
                    while let Some((endpoint, link)) =
                        found.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        if let Err(error) = self.attach_again(endpoint, link) {
                            tracing::error!(
                                interface = link.name,
                                container = endpoint.attachment.container_id,
                                %error,
                                "cannot attach a pod again: it has no network until it is deleted and made anew"
                            );
                            if let Ok(mut failed) = failed.lock() {
                                *failed += 1;
                            }
                        }
                    }
                });
            }
        });
        if !found.is_empty() {
            let failed = failed.into_inner().unwrap_or_default();
            tracing::info!(
                pods = found.len() - failed,
                failed,
                "attached the pods that were there"
            );
        }
    }

    fn attach_again(&self, endpoint: &Endpoint, link: &Link) -> Result<(), AttachError> {
        let needs = self.switch.veth_queues();
        if link.rx_queues < needs {
            // A lane would have no way to the pod.
            return Err(AttachError::Queues {
                interface: link.name.clone(),
                has: link.rx_queues,
                needs,
            });
        }
        // With more in use than lanes read, some of the pod's packets would
        // find no lane. The host's end comes last: it tells that both are done.
        if offload::queues_in_use(&link.name).map_err(LinkError::from)? != needs {
            let ifname = &endpoint.attachment.ifname;
            in_pod(endpoint, || {
                link::use_pod_queues(ifname, link.rx_queues, needs)
            })?;
            offload::use_queues(&link.name, needs).map_err(LinkError::from)?;
        }
        let port = self.bind(&endpoint.attachment, &link.name, link.index)?;
        if !link.up {
            link::raise_host(&mut Netlink::open()?, &link.name, link.index)?;
        }
        if endpoint.sends_super_frames() && !port.binding.native {
            self.lead_again(endpoint, port);
        }
        self.steer_again(endpoint, link, port.id);
        let mut inventory = self.inventory();
        inventory.fix_stations(&self.setup(), &endpoint.attachment, self.now_s());
        inventory.touch();
        Ok(())
    }

    /// Has a pod's protocol stack work beside the lanes. It works anyway.
    fn steer_again(&self, endpoint: &Endpoint, link: &Link, port: PortId) {
        let steered = open_netns(endpoint)
            .map_err(AttachError::from)
            .and_then(|netns| self.steer_out(port, &endpoint.attachment.ifname, netns.as_fd()));
        if let Err(error) = steered {
            tracing::warn!(
                interface = link.name,
                container = endpoint.attachment.container_id,
                %error,
                "a pod's protocol stack works on the lane's CPU; make the pod anew"
            );
        }
    }

    /// Carries out the deletions that the plugin recorded while no agent
    /// answered.
    pub(crate) fn carry_out_pending_deletions(&self) {
        for (path, attachment) in pending_deletions(&self.setup().run_dir) {
            tracing::info!(
                container = attachment.container_id,
                interface = attachment.ifname,
                "carrying out a deletion that was recorded while no agent answered"
            );
            match self.delete(&attachment) {
                Ok(()) => {
                    if let Err(error) = std::fs::remove_file(&path) {
                        tracing::warn!(path = %path.display(), %error, "cannot remove a carried out deletion");
                    }
                }
                Err(error) => {
                    tracing::error!(container = attachment.container_id, %error, "cannot delete");
                }
            }
        }
    }
}

/// Recorded deletions; files under construction begin with a dot.
fn pending_deletions(run_dir: &Path) -> Vec<(std::path::PathBuf, Attachment)> {
    let Ok(entries) = std::fs::read_dir(run_dir.join(PENDING_DELETIONS_DIR)) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".json") && !name.starts_with('.')
        })
        .filter_map(|path| {
            let bytes = std::fs::read(&path).ok()?;
            match serde_json::from_slice(&bytes) {
                Ok(attachment) => Some((path, attachment)),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "setting an unreadable deletion aside");
                    // Read no more than once a second for ever.
                    let _ = std::fs::rename(&path, path.with_extension("unreadable"));
                    None
                }
            }
        })
        .collect()
}

/// Names of the interfaces that the agent made in this namespace.
pub(crate) fn our_links() -> Result<Vec<String>, NetlinkError> {
    let links = Netlink::open()?.links()?;
    let names: HashSet<String> = links
        .into_iter()
        .filter(|link| link.is_veth && link.alias.starts_with(ALIAS_PREFIX))
        .map(|link| link.name)
        .collect();
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::samples;
    use spinlane_api::cni::Pod;

    fn endpoint(name: &str, state: State) -> Endpoint {
        Endpoint {
            attachment: Attachment {
                network: "pods".into(),
                container_id: name.into(),
                ifname: "eth0".into(),
            },
            pod: Pod::default(),
            state,
            host_ifname: name.into(),
            netns_path: String::new(),
            segment: None,
            mac: String::new(),
            addresses: vec![],
            delegated: false,
            routes: vec![],
            device_mtu: 0,
            mtu: 0,
            follows_path_mtu: true,
            offloads: true,
            super_frames: true,
            segment_mtu: 0,
            is_self_configured: false,
        }
    }

    fn link(name: &str, alias: &str) -> Link {
        Link {
            name: name.into(),
            alias: alias.into(),
            is_veth: true,
            ..samples::link(7)
        }
    }

    #[test]
    fn every_combination_has_its_repair() {
        let endpoints = vec![
            endpoint("sl-there", State::Attached),
            endpoint("sl-gone", State::Attached),
            endpoint("sl-adding", State::Adding),
            endpoint("sl-early", State::Adding),
            endpoint("sl-deleting", State::Deleting),
        ];
        let ours = "spinlane ns/pod eth0 c";
        let links = vec![
            link("sl-there", ours),
            link("sl-adding", ours),
            link("sl-orphan", ours),
            link("sleepy0", "somebody else's"),
            link("spinlane1", "spinlane host port"),
            link("eth0", ""),
        ];
        let repair = compare(endpoints, links);
        let attached: Vec<_> = repair.attach.iter().map(|(_, l)| l.name.as_str()).collect();
        assert_eq!(attached, ["sl-there"]);
        let removed: Vec<_> = repair
            .remove
            .iter()
            .map(|e| e.host_ifname.as_str())
            .collect();
        assert_eq!(removed, ["sl-gone", "sl-adding", "sl-early", "sl-deleting"]);
        assert_eq!(repair.orphans, ["sl-orphan"]);
    }

    #[test]
    fn deletions_are_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let pending = dir.path().join(PENDING_DELETIONS_DIR);
        std::fs::create_dir(&pending).unwrap();
        let attachment = endpoint("c", State::Attached).attachment;
        let text = serde_json::to_vec(&attachment).unwrap();
        std::fs::write(pending.join("a.json"), &text).unwrap();
        std::fs::write(pending.join(".a.json.12"), &text).unwrap();
        std::fs::write(pending.join("b.json"), b"{").unwrap();
        let found = pending_deletions(dir.path());
        assert_eq!(found, vec![(pending.join("a.json"), attachment)]);
        assert!(pending.join("b.unreadable").exists());
    }
}
