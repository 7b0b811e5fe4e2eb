//! Where the workspace's programs and the lab's files are.

use std::path::{Path, PathBuf};

use crate::error::{LabError, Result};

/// Path of one of the workspace's programs: `SPINLANE_BIN_DIR`, else beside
/// the running executable (for a test, one directory above `deps`).
///
/// # Errors
/// [`LabError::NoProgram`] when it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("SPINLANE_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => beside_executable()?,
    };
    let path = dir.join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(LabError::NoProgram {
        name: name.to_owned(),
        dir,
    })
}

fn beside_executable() -> Result<PathBuf> {
    let executable =
        std::env::current_exe().map_err(LabError::io("find the running executable"))?;
    let dir = executable.parent().unwrap_or(Path::new("/"));
    let is_test = dir.file_name().is_some_and(|name| name == "deps");
    Ok(if is_test {
        dir.parent().unwrap_or(dir).to_owned()
    } else {
        dir.to_owned()
    })
}

/// Directory of this process's lab files, made when it is not there. The
/// watcher removes it when the process is gone.
///
/// # Errors
/// When the directory cannot be made.
pub fn lab_dir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("spinlane-lab-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(LabError::io(format!("create {}", dir.display())))?;
    crate::watch::start()?;
    Ok(dir)
}
