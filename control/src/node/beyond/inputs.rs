//! What the planner of ways beyond the node works from.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use spinlane_dataplane::snapshot::Prefix;
use spinlane_dataplane::types::PortId;

use crate::node::bound::BoundUplink;
use crate::node::kernel::Kernel;
use crate::node::setup::Setup;
use crate::source;

/// Everything that the tables follow from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Configuration.
    pub setup: &'a Setup,
    /// The cluster's nodes, this one among them.
    pub nodes: &'a [Arc<source::Node>],
    /// The kernel's tables.
    pub kernel: &'a Kernel,
    /// The uplink, when it is attached.
    pub uplink: Option<BoundUplink>,
    /// The host port and the interface at its other end.
    pub host: Option<(PortId, u32)>,
    /// What the underlay said of the longest packet to an address.
    pub path_mtus: &'a HashMap<IpAddr, u32>,
}

/// As the data path has it.
pub fn prefix(net: IpNet) -> Prefix {
    Prefix {
        address: net.network(),
        len: net.prefix_len(),
    }
}
