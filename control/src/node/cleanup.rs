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
    /// One with other directories uses it.
    #[error("the agent {0} runs in this network namespace: stop it first")]
    AgentHere(u32),
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
    if let Some(process) = agent_here() {
        return Err(CleanupError::AgentHere(process));
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

/// An agent in the calling process' network namespace, whatever its
/// directories, as far as this process sees others.
fn agent_here() -> Option<u32> {
    let own = std::fs::read_link("/proc/self/ns/net").ok()?;
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.find(|process: &u32| {
        let place = Path::new("/proc").join(process.to_string());
        let line = std::fs::read(place.join("cmdline")).unwrap_or_default();
        is_agent(&line) && std::fs::read_link(place.join("ns/net")).is_ok_and(|ns| ns == own)
    })
}

/// Whether a process was started by this command line, each word of which
/// ends with a zero, as an agent: its command is the first word that is neither
/// an option nor the value of one.
fn is_agent(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == 0);
    let program = words.next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next();
    if name != Some(b"spinlane".as_slice()) {
        return false;
    }
    while let Some(word) = words.next() {
        match word {
            b"--run-dir" | b"--output" | b"-o" => {
                words.next();
            }
            [b'-', ..] => {}
            command => return command == b"agent",
        }
    }
    false
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

#[cfg(test)]
mod tests {
    use super::is_agent;

    #[test]
    fn agents_are_told_by_their_command_line() {
        for (line, expect) in [
            (&b"/usr/bin/spinlane\0agent\0--config\0c.toml\0"[..], true),
            (b"spinlane\0--run-dir\0/r\0agent\0", true),
            (b"spinlane\0-ojson\0--run-dir=/r\0agent\0", true),
            (b"spinlane\0cleanup\0", false),
            (b"spinlane\0--run-dir\0agent\0cleanup\0", false),
            (b"spinlane\0capture\0--port\0agent\0", false),
            (b"/usr/bin/spinlane-cni\0agent\0", false),
            (b"ssh\0agent\0", false),
            (b"", false),
        ] {
            assert_eq!(is_agent(line), expect, "{}", line.escape_ascii());
        }
    }
}
