//! How a call fails, and the CNI error object that says so.

use std::io;
use std::path::PathBuf;

use rscni_plugin::error::Error as CniError;
use spinlane_api::cni::{Failure, code};

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key of the network configuration has a value that cannot be.
    #[error("network configuration: {0}")]
    Config(String),
    /// A key of the network configuration asks for what is not there.
    #[error("network configuration: {0}")]
    Unsupported(String),
    /// A variable of the environment has a value that cannot be.
    #[error("{0}")]
    Environment(String),
    /// The container's namespace is gone.
    #[error("{0}")]
    NoContainer(String),
    /// A file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried on which object.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Nobody listens on the agent's socket, or it went away.
    #[error("no agent answers on {}: {reason}", socket.display())]
    NoAgent {
        /// The agent's socket.
        socket: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The agent's answer cannot be understood.
    #[error("the agent at {} answered {answer}", socket.display())]
    Answer {
        /// The agent's socket.
        socket: PathBuf,
        /// What is wrong with the answer.
        answer: String,
    },
    /// The agent or a delegated plugin refused; its words and code.
    #[error("{}: {}", .0.msg, .0.details)]
    Refused(Failure),
}

impl Error {
    /// An [`Error::Io`] maker for `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether the agent could not be asked at all.
    #[must_use]
    pub fn is_no_agent(&self) -> bool {
        matches!(self, Self::NoAgent { .. })
    }

    /// Whether the agent answered that it cannot answer now.
    #[must_use]
    pub fn is_try_again(&self) -> bool {
        matches!(self, Self::Refused(failure) if failure.code == code::TRY_AGAIN)
    }

    /// The error as an answer to STATUS: whatever keeps pods from being
    /// attached is called "not available". What the agent or a plugin answered
    /// stays as it is.
    #[must_use]
    pub fn of_status(self) -> Self {
        let details = match self {
            Self::Refused(failure) => return Self::Refused(failure),
            Self::NoAgent { .. } => format!("{self}; {START_IT}"),
            other => other.to_string(),
        };
        Self::Refused(Failure {
            code: code::NOT_AVAILABLE,
            msg: "pods cannot be attached".to_owned(),
            details,
        })
    }
}

/// What a reader of "no agent" can do.
const START_IT: &str = "start `spinlane agent`, or set runDir to its run directory";

impl From<Error> for CniError {
    fn from(error: Error) -> Self {
        let details = error.to_string();
        match error {
            Error::Config(_) => Self::InvalidNetworkConfig(details),
            Error::Unsupported(_) => Self::UnsupportedNetworkConfiguration(details),
            Error::Environment(_) => Self::InvalidEnvValue(details),
            Error::NoContainer(_) => Self::NotExist(details),
            Error::Io { .. } => Self::IOFailure(details),
            Error::NoAgent { .. } => Self::TryAgainLater(format!("{details}; {START_IT}")),
            Error::Answer { .. } => Self::FailedToDecode(details),
            // Custom carries code, message and details to the output as they are.
            Error::Refused(failure) => Self::Custom(failure.code, failure.msg, failure.details),
        }
    }
}
