//! Where the cluster's objects come from.
//!
//! A source keeps a [`Cluster`] true and says when it changed. [`manifests`]
//! reads a directory of Kubernetes YAML; every source gives the same
//! [`object`]s.

pub mod cluster;
mod links;
pub mod manifests;
pub mod object;
mod refusal;
mod watch;

pub use cluster::{Change, Cluster};
pub use manifests::Manifests;
pub use object::{Namespace, Node, Object, Pod};
pub use watch::{Health, SharedHealth, Sink, SourceError, Watch};
