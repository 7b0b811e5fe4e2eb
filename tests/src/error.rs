//! What can go wrong in the lab.

/// Shorthand for the lab's results.
pub type Result<T> = std::result::Result<T, LabError>;

/// A step of the lab that failed, in words that name the object.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A system call or file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried on which object.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` ended with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// What it printed, standard error first.
        output: String,
    },
    /// A program of the workspace is not there.
    #[error(
        "{name} is not in {}: run `cargo build --workspace` or set SPINLANE_BIN_DIR",
        dir.display()
    )]
    NoProgram {
        /// Name of the program.
        name: String,
        /// Where it was looked for.
        dir: std::path::PathBuf,
    },
    /// Something that was waited for did not come.
    #[error("waited {seconds:.1} s for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long, in seconds.
        seconds: f64,
    },
    /// An answer was not what its reader understands.
    #[error("{what}: {detail}")]
    Unexpected {
        /// What was looked at.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl LabError {
    /// An [`LabError::Io`] maker for `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// An [`LabError::Unexpected`].
    pub fn unexpected(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Unexpected {
            what: what.into(),
            detail: detail.into(),
        }
    }
}
