//! Where results go. What cannot be written is said before anything is
//! measured, not after.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process;

use clap::{Args, ValueEnum};
use serde::Serialize;
use spinlane_perf::measure::{MeasureError, io_error};
use spinlane_perf::terminal::say;

/// Where the result goes besides standard output.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Write the result as JSON too; `-` for standard output instead of text
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What standard output gets
    #[arg(
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        value_enum,
        default_value = "table"
    )]
    format: Format,
}

impl Output {
    /// Whether standard output gets JSON alone.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json || self.json.as_deref() == Some(Path::new("-"))
    }

    fn file(&self) -> Option<&Path> {
        self.json.as_deref().filter(|path| *path != Path::new("-"))
    }

    /// Whether it will take the result.
    pub(crate) fn check(&self) -> Result<(), MeasureError> {
        self.file().map_or(Ok(()), check_file)
    }
}

/// Where a result goes as a report for readers.
#[derive(Debug, Args)]
pub(crate) struct Reports {
    /// Write the result as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write the result as one HTML page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Reports {
    /// Whether they will be written.
    pub(crate) fn check(&self) -> Result<(), MeasureError> {
        let files = [&self.markdown, &self.html];
        files
            .into_iter()
            .flatten()
            .try_for_each(|path| check_file(path))
    }

    /// Writes those that were asked for.
    pub(crate) fn write(
        &self,
        markdown: impl FnOnce() -> String,
        html: impl FnOnce() -> String,
    ) -> Result<(), MeasureError> {
        if let Some(path) = &self.markdown {
            put(path, &markdown())?;
        }
        if let Some(path) = &self.html {
            put(path, &html())?;
        }
        Ok(())
    }
}

/// What a result is printed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text for a reader.
    Table,
    /// A document.
    Json,
}

/// A result as JSON.
pub(crate) fn json(result: &impl Serialize) -> Result<String, MeasureError> {
    serde_json::to_string_pretty(result).map_err(|error| MeasureError::Unexpected {
        what: "writing the result as JSON".to_owned(),
        detail: error.to_string(),
    })
}

/// Prints a document that says its version itself.
pub(crate) fn print(
    output: &Output,
    result: &impl Serialize,
    text: &str,
) -> Result<(), MeasureError> {
    let written = output
        .file()
        .map_or(Ok(()), |path| put(path, &(json(result)? + "\n")));
    // A full disk does not keep what was measured from being shown.
    let said = match output.is_json() {
        true => json(result).and_then(|json| say(&json)),
        false => say(text),
    };
    written.and(said)
}

/// Writes a file.
pub(crate) fn put(path: &Path, text: &str) -> Result<(), MeasureError> {
    fs::write(path, text).map_err(cannot_write(path))
}

fn cannot_write(path: &Path) -> impl FnOnce(std::io::Error) -> MeasureError {
    io_error(format!("writing {}", path.display()))
}

/// Whether a file can be written; it stays as it is.
fn check_file(path: &Path) -> Result<(), MeasureError> {
    let found = fs::metadata(path);
    let is_new = found.is_err();
    // The reader of a pipe would take its closing for the end.
    if found.is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).open(path);
    opened.map_err(cannot_write(path))?;
    if is_new {
        // A link that led nowhere stays, what it leads to does not.
        let made = fs::canonicalize(path).map_err(cannot_write(path))?;
        fs::remove_file(made).map_err(cannot_write(path))?;
    }
    Ok(())
}

/// Whether files can be written into a directory, which is made later.
pub(crate) fn check_directory(path: &Path) -> Result<(), MeasureError> {
    let there = path.ancestors().find(|path| path.exists());
    let probe = format!(".spinlane-perf-{}", process::id());
    check_file(&there.unwrap_or(Path::new("")).join(probe)).map_err(|error| match error {
        MeasureError::Io { source, .. } => cannot_write(path)(source),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_cannot_be_written_and_leaves_the_rest_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept.json");
        fs::write(&kept, "kept").unwrap();
        let new = dir.path().join("new.json");
        for path in [&*kept, &*new, Path::new("/dev/null")] {
            check_file(path).unwrap();
        }
        assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
        assert!(!new.exists());
        // A link to what is not there yet.
        let link = dir.path().join("link.json");
        std::os::unix::fs::symlink(&new, &link).unwrap();
        check_file(&link).unwrap();
        assert!(link.is_symlink() && !new.exists());
        for path in [dir.path(), &dir.path().join("none/new.json")] {
            let error = check_file(path).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn directories_that_are_made_later_are_checked_too() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        check_directory(dir.path()).unwrap();
        check_directory(&below).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(dir.path().join("a"), "").unwrap();
        let error = check_directory(&below).unwrap_err().to_string();
        assert!(error.contains(&below.display().to_string()), "{error}");
    }
}
