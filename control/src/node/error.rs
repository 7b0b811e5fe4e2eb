//! Why a request of the CNI plugin failed, and what the plugin says of it.

use spinlane_api::cni::{Failure, code};

use super::ipam::IpamError;
use super::link::LinkError;
use super::netlink::NetlinkError;
use super::netns::NetnsError;
use super::steering::SteeringError;
use super::store::StoreError;
use super::switch::SwitchError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The request contradicts itself or the configuration.
    #[error("{0}")]
    Invalid(String),
    /// The runtime repeats an ADD.
    #[error(
        "interface {ifname} of container {container} is attached to network {network} already: delete that attachment first"
    )]
    AlreadyAttached {
        /// Its network.
        network: String,
        /// Its container.
        container: String,
        /// Its interface.
        ifname: String,
    },
    /// No port left.
    #[error("all {0} ports of the switch are in use: delete pods")]
    NoPort(usize),
    /// No address.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// The node's own object is not there yet, or says nothing.
    #[error(
        "the node has no pod ranges yet: give Node {0} spec.podCIDRs, or write node.pod-cidrs; trying again helps then"
    )]
    NoRangesYet(String),
    /// Not recorded.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not wired.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Not steered.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// Not bound.
    #[error("cannot bind interface {interface} to the switch: {source}")]
    Switch {
        /// The host's end.
        interface: String,
        /// Why not.
        source: SwitchError,
    },
    /// The number of lanes changed since the interface was made.
    #[error(
        "interface {interface} has {has} queues and the switch needs {needs}: the number of lanes changed, delete the pod or go back to the lanes that it was made for"
    )]
    Queues {
        /// The host's end.
        interface: String,
        /// What it was made with.
        has: u32,
        /// What the lanes need.
        needs: u32,
    },
    /// CHECK found a difference.
    #[error("{0}")]
    Differs(String),
    /// The agent is on its way out.
    #[error("the agent is stopping: try again")]
    Stopping,
    /// ADD could not be served (STATUS).
    #[error("no pod can be attached: {0}")]
    NotAvailable(String),
}

impl From<NetlinkError> for AttachError {
    fn from(error: NetlinkError) -> Self {
        AttachError::Link(error.into())
    }
}

impl From<NetnsError> for AttachError {
    fn from(error: NetnsError) -> Self {
        AttachError::Link(error.into())
    }
}

impl AttachError {
    /// As the plugin reports it.
    pub fn failure(&self) -> Failure {
        let code = match self {
            AttachError::Invalid(_) => code::INVALID_CONFIG,
            AttachError::AlreadyAttached { .. } | AttachError::Link(LinkError::NameTaken(_)) => {
                code::INVALID_ENVIRONMENT
            }
            AttachError::NoPort(_)
            | AttachError::Ipam(IpamError::Exhausted { .. })
            | AttachError::Switch {
                source: SwitchError::Exhausted(_),
                ..
            } => code::EXHAUSTED,
            AttachError::Ipam(_) => code::INVALID_CONFIG,
            AttachError::Link(LinkError::Netns(NetnsError::Open { .. } | NetnsError::Enter(_))) => {
                code::UNKNOWN_CONTAINER
            }
            AttachError::NoRangesYet(_)
            | AttachError::Store(StoreError::Closed)
            | AttachError::Stopping => code::TRY_AGAIN,
            AttachError::Store(_)
            | AttachError::Link(_)
            | AttachError::Steering(_)
            | AttachError::Queues { .. }
            | AttachError::Switch { .. } => code::IO_FAILURE,
            AttachError::Differs(_) => code::DIFFERS,
            AttachError::NotAvailable(_) => code::NOT_AVAILABLE,
        };
        // "What: why": the first part is the message, the rest the details.
        let text = self.to_string();
        let (msg, details) = text.split_once(": ").unwrap_or((&text, ""));
        Failure {
            code,
            msg: msg.to_owned(),
            details: details.to_owned(),
        }
    }
}
