//! Cleaning up after a lab process that was killed.
//!
//! `Drop` removes what a test made when it ends or panics, but nothing runs
//! after Ctrl-C or SIGKILL. So the first object of a process starts a small
//! shell in a process group of its own whose standard input is a pipe from
//! us. However this process ends, the kernel closes the pipe; the shell then
//! kills what still runs in namespaces with this process's prefix, deletes
//! them and removes the lab's directory.

use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use std::os::unix::process::CommandExt;

use crate::error::{LabError, Result};

/// The watcher; held for as long as the process lives.
static WATCHER: Mutex<Option<Child>> = Mutex::new(None);

const SCRIPT: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for ns in $(ip netns list 2>/dev/null | cut -d' ' -f1 | grep "^$1-"); do
  pids=$(ip netns pids "$ns" 2>/dev/null) && [ -n "$pids" ] && kill -9 $pids 2>/dev/null
  ip netns delete "$ns" 2>/dev/null
done
rm -rf "$2"
"#;

/// Prefix of every namespace of this process, without the dash after it.
pub(crate) fn prefix() -> String {
    format!("sl{}", std::process::id())
}

/// Starts the watcher unless it runs already.
pub(crate) fn start() -> Result<()> {
    let mut watcher = WATCHER
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if watcher.is_some() {
        return Ok(());
    }
    let dir = std::env::temp_dir().join(format!("spinlane-lab-{}", std::process::id()));
    let child = Command::new("sh")
        .arg("-c")
        .arg(SCRIPT)
        .arg("spinlane-lab-watch")
        .arg(prefix())
        .arg(&dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(LabError::io("start the lab's watcher (sh)"))?;
    *watcher = Some(child);
    Ok(())
}

/// Has the watcher take away what is left of this process's lab, and waits
/// until it has: from then on nothing of it is there, not even the watcher.
/// For who says so; without it the same happens a moment after the process.
pub fn finish() {
    let watcher = WATCHER
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    if let Some(mut child) = watcher {
        // Waiting closes its standard input first, which is what it waits for.
        let _ = child.wait();
    }
}
