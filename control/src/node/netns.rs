//! Work inside another network namespace.
//!
//! A thread enters the namespace, works and ends; it never comes back, so a
//! panic or a failed return cannot leave a thread of the agent in a pod's
//! namespace. Per-thread namespaces also decide what `/proc/sys/net` shows,
//! in whatever mount namespace the agent runs. `/sys` does not follow the
//! thread: there a detached mount of sysfs is made in the namespace, which
//! nobody else sees.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why work in a namespace did not happen.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path does not lead to a namespace.
    #[error("cannot open network namespace {path}: {source}")]
    Open {
        /// The path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The descriptor is none of a network namespace, or we may not enter.
    #[error("cannot enter the pod's network namespace: {0}")]
    Enter(#[source] io::Error),
    /// No thread to enter it with.
    #[error("cannot start a thread for the pod's network namespace: {0}")]
    Thread(#[source] io::Error),
    /// The work panicked.
    #[error("work inside the pod's network namespace panicked")]
    Panicked,
    /// A setting could not be written.
    #[error("cannot set {key} to {value}: {source}")]
    Setting {
        /// Path below `/proc/sys/net`.
        key: String,
        /// What was to be written.
        value: String,
        /// Why not.
        source: io::Error,
    },
    /// No view of sysfs.
    #[error("cannot open sysfs of the network namespace: {0}")]
    Sysfs(#[source] io::Error),
}

/// Opens the namespace at a path.
pub fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
        NetnsError::Open {
            path: path.display().to_string(),
            source: e.into(),
        }
    })
}

/// The calling thread's own namespace.
pub fn own() -> Result<OwnedFd, NetnsError> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// What tells one namespace from another: device and inode.
pub fn identity(netns: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(netns)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Runs `work` on a thread inside the namespace.
pub fn run<T, E, F>(netns: BorrowedFd<'_>, work: F) -> Result<T, E>
where
    F: FnOnce() -> Result<T, E> + Send,
    T: Send,
    E: From<NetnsError> + Send,
{
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(512 * 1024)
            .spawn_scoped(scope, move || {
                move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                    .map_err(|e| NetnsError::Enter(e.into()))?;
                work()
            })
            .map_err(NetnsError::Thread)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(NetnsError::Panicked.into()))
    })
}

/// Writes `/proc/sys/net/KEY` of the calling thread's namespace.
pub fn set(key: &str, value: &str) -> Result<(), NetnsError> {
    std::fs::write(format!("/proc/sys/net/{key}"), value).map_err(|source| NetnsError::Setting {
        key: key.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Reads `/proc/sys/net/KEY` of the calling thread's namespace.
pub fn get(key: &str) -> io::Result<String> {
    std::fs::read_to_string(format!("/proc/sys/net/{key}")).map(|text| text.trim().to_owned())
}

/// Whether an interface of the calling thread's namespace has IPv6 settings:
/// not without IPv6 in the kernel, nor with an MTU below 1280.
pub fn has_ipv6(interface: &str) -> bool {
    Path::new("/proc/sys/net/ipv6/conf")
        .join(interface)
        .is_dir()
}

/// All mounts of one namespace's sysfs share what runtimes set when they mount
/// it for a container: read-only. That is taken off here; the container's own
/// mount keeps being read-only by itself.
fn make_writable(mount: BorrowedFd<'_>) -> io::Result<()> {
    let is_read_only = rustix::fs::fstatvfs(mount)?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY);
    if is_read_only {
        let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
        let filesystem = rustix::mount::fspick(mount, "", flags)?;
        rustix::mount::fsconfig_set_flag(filesystem.as_fd(), "rw")?;
        rustix::mount::fsconfig_reconfigure(filesystem.as_fd())?;
    }
    Ok(())
}

/// The sysfs of one namespace, on a mount that stands in no tree.
#[derive(Debug)]
pub struct Sysfs(OwnedFd);

impl Sysfs {
    /// Opens the sysfs of the calling thread's namespace.
    pub fn open() -> Result<Sysfs, NetnsError> {
        let mount = || -> io::Result<OwnedFd> {
            let filesystem = rustix::mount::fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_create(filesystem.as_fd())?;
            let mount = rustix::mount::fsmount(
                filesystem.as_fd(),
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::empty(),
            )?;
            make_writable(mount.as_fd())?;
            Ok(mount)
        };
        mount().map(Sysfs).map_err(NetnsError::Sysfs)
    }

    /// Names in a directory below its root.
    pub fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.0, path, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// Receive queues that an interface has in use; it may have been made
    /// with more.
    pub fn receive_queues(&self, interface: &str) -> Option<u32> {
        let names = self.list(&format!("class/net/{interface}/queues")).ok()?;
        let queues = names.iter().filter(|name| name.starts_with("rx-")).count();
        u32::try_from(queues).ok().filter(|queues| *queues > 0)
    }

    /// Opens a file below its root. It leads to the same place from any
    /// namespace, and to nothing once what it is of is gone.
    pub fn open_file(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, path, flags, Mode::empty())?)
    }

    /// Writes a file below its root.
    pub fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let file = self.open_file(path)?;
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    }
}
