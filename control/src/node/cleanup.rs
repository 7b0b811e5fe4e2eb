//! Removes everything that an agent ever made on this node.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use spinlane_api::{API_SOCKET, CNI_SOCKET, CONNECTIONS_FILE, PENDING_DELETIONS_DIR};

use super::netlink::{Netlink, NetlinkError, delete_link};
use super::{host_routes, reconcile, reserved_ports, store, uplink};

/// Why something stayed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// An agent uses it all.
    #[error("an agent answers at {0}: stop it first")]
    AgentRuns(String),
    /// An interface.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Ports that masquerade kept from the node.
    #[error(transparent)]
    Ports(#[from] reserved_ports::ReserveError),
    /// A file.
    #[error("cannot remove {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Removes the interfaces of the calling thread's namespace that carry our
/// alias (their addresses, routes and settings go with them), the store and
/// the sockets. Says what it removed; doing it again removes nothing.
pub fn cleanup(run_dir: &Path, state_dir: &Path) -> Result<Vec<String>, CleanupError> {
    for name in [CNI_SOCKET, API_SOCKET] {
        let socket = run_dir.join(name);
        if UnixStream::connect(&socket).is_ok() {
            return Err(CleanupError::AgentRuns(socket.display().to_string()));
        }
    }
    let mut removed = Vec::new();
    let names = reconcile::our_links()?;
    let mut netlink = Netlink::open()?;
    for name in names {
        netlink.request(delete_link(&name).tolerate(&[libc::ENODEV]))?;
        removed.push(format!("interface {name}"));
    }
    for link in netlink.links()? {
        if let Some(name) = uplink::release(&link) {
            removed.push(format!("XDP program of {name}"));
        }
    }
    let routes = host_routes::remove_all(&mut netlink)?;
    if routes > 0 {
        removed.push(format!("{routes} routes"));
    }
    if reserved_ports::release(state_dir)? {
        removed.push("reserved ports".to_owned());
    }
    let files = [
        store::path(state_dir),
        run_dir.join(CNI_SOCKET),
        run_dir.join(API_SOCKET),
        run_dir.join(CONNECTIONS_FILE),
        // Half made by a start that was killed.
        run_dir.join(CONNECTIONS_FILE).with_extension("new"),
    ];
    for path in files {
        if gone(&path, std::fs::remove_file(&path))? {
            removed.push(path.display().to_string());
        }
    }
    let pending = run_dir.join(PENDING_DELETIONS_DIR);
    if gone(&pending, std::fs::remove_dir_all(&pending))? {
        removed.push(pending.display().to_string());
    }
    for dir in [run_dir, state_dir] {
        // Somebody else's files keep it.
        if std::fs::remove_dir(dir).is_ok() {
            removed.push(dir.display().to_string());
        }
    }
    Ok(removed)
}

fn gone(path: &Path, result: io::Result<()>) -> Result<bool, CleanupError> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CleanupError::File {
            path: path.display().to_string(),
            source,
        }),
    }
}
