//! Deletions that were taken while no agent answered.
//!
//! One file per attachment in `RUN_DIR/pending-deletions`; the agent carries
//! them out at its next start. A file appears whole or not at all, and is on
//! disk before DEL answers: write aside, sync, rename, sync the directory.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use spinlane_api::PENDING_DELETIONS_DIR;
use spinlane_api::cni::Attachment;

use crate::error::Error;

/// Records a deletion; recording it again changes nothing.
///
/// # Errors
/// [`Error::Io`] when it cannot be written; then DEL must fail.
pub fn record(run_dir: &Path, attachment: &Attachment) -> Result<PathBuf, Error> {
    let dir = run_dir.join(PENDING_DELETIONS_DIR);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(Error::io(format!("create {}", dir.display())))?;
    let path = dir.join(file_name(attachment));
    let aside = dir.join(format!(".{}.{}", file_name(attachment), std::process::id()));
    let written = write_synced(&aside, attachment)
        .and_then(|()| fs::rename(&aside, &path))
        .and_then(|()| File::open(&dir)?.sync_all());
    if let Err(source) = written {
        let _ = fs::remove_file(&aside);
        return Err(Error::Io {
            what: format!("record the deletion in {}", path.display()),
            source,
        });
    }
    Ok(path)
}

/// Takes a record back: the deletion is done, or the attachment is made anew.
pub fn forget(run_dir: &Path, attachment: &Attachment) {
    let path = run_dir
        .join(PENDING_DELETIONS_DIR)
        .join(file_name(attachment));
    let _ = fs::remove_file(path);
}

fn write_synced(path: &Path, attachment: &Attachment) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    serde_json::to_writer(&mut file, attachment)?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// A name that is the attachment's alone and short enough for any file
/// system: the readable parts cut, and a hash of all.
fn file_name(attachment: &Attachment) -> String {
    let Attachment {
        network,
        container_id,
        ifname,
    } = attachment;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
    for byte in [network, container_id, ifname]
        .iter()
        .flat_map(|part| part.bytes().chain([0]))
    {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let short: String = container_id.chars().take(64).collect();
    format!("{short}-{ifname}-{hash:016x}.json")
}

#[cfg(test)]
mod tests {
    use spinlane_api::cni::Attachment;

    use super::{file_name, forget, record};

    fn attachment(network: &str, container_id: &str, ifname: &str) -> Attachment {
        Attachment {
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    #[test]
    fn a_record_is_whole_alone_and_repeatable() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("not/there/yet");
        let wanted = attachment("pods", &"c".repeat(300), "eth0");
        let first = record(&run_dir, &wanted).unwrap();
        let second = record(&run_dir, &wanted).unwrap();
        assert_eq!(first, second);
        let names: Vec<_> = std::fs::read_dir(first.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let read: Attachment = serde_json::from_slice(&std::fs::read(&first).unwrap()).unwrap();
        assert_eq!(read, wanted);
        forget(&run_dir, &wanted);
        assert!(!first.exists());
    }

    #[test]
    fn names_do_not_collide() {
        let names = [
            attachment("a", "b", "c"),
            attachment("ab", "b", "c"),
            attachment("a", "b", "c2"),
            attachment("a", "b2", "c"),
        ]
        .map(|attachment| file_name(&attachment));
        for (index, name) in names.iter().enumerate() {
            assert!(!names[index + 1..].contains(name), "{name}");
        }
    }
}
