//! The run directory and its lock: one agent, or one cleanup, at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

const LOCK_FILE: &str = "agent.lock";

/// The directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Somebody has it.
    #[error(
        "{dir} belongs to the running agent {holder}: stop that one, or name another --run-dir"
    )]
    Taken {
        /// The run directory.
        dir: PathBuf,
        /// Process number of who has it, as far as known.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot use the directory {dir}: {source}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

/// A locked run directory; the lock ends with the value or the process.
#[derive(Debug)]
pub struct RunDir {
    lock: Flock<File>,
    path: PathBuf,
}

impl RunDir {
    /// Makes a directory for root alone unless it is there.
    pub fn make(dir: &Path) -> Result<(), RunDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| RunDirError::Io {
                dir: dir.to_owned(),
                source,
            })
    }

    /// Makes the directory if need be and takes its lock.
    pub fn lock(dir: &Path) -> Result<RunDir, RunDirError> {
        RunDir::make(dir)?;
        let refuse = |source| RunDirError::Io {
            dir: dir.to_owned(),
            source,
        };
        let path = dir.join(LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(refuse)?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut holder);
                return Err(RunDirError::Taken {
                    dir: dir.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err((_, errno)) => return Err(refuse(errno.into())),
        };
        lock.set_len(0).map_err(refuse)?;
        writeln!(lock, "{}", std::process::id()).map_err(refuse)?;
        Ok(RunDir { lock, path })
    }

    /// Removes the lock's file and, when nothing else is in it, the directory.
    pub fn remove(self) {
        // Best effort: a file that stays is taken over by the next lock.
        let _ = fs::remove_file(&self.path);
        if let Some(dir) = self.path.parent() {
            let _ = fs::remove_dir(dir);
        }
        drop(self.lock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let first = RunDir::lock(&dir).unwrap();
        let error = RunDir::lock(&dir).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(
            error.contains(&format!("the running agent {pid}:")),
            "{error}"
        );
        drop(first);
        RunDir::lock(&dir).unwrap().remove();
        assert!(!dir.exists());
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("file");
        fs::write(&path, "").unwrap();
        let error = RunDir::lock(&path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}
