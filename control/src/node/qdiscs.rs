//! Queue disciplines that somebody put on pods' host ends, as a chained
//! `bandwidth` plugin does. What the switch takes and sends passes them by, so
//! they limit nothing, and nobody would know.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::Core;
use super::endpoint::Endpoint;
use super::netlink::{Netlink, NetlinkError};

/// A queue discipline of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// Index of the interface.
    pub ifindex: u32,
    /// `tbf`, for example.
    pub kind: String,
    /// Of what comes, not of what leaves.
    pub is_ingress: bool,
}

impl Qdisc {
    /// Reads a `RTM_NEWQDISC`; `None` for anything else, for one within
    /// another, and for what every veth has.
    pub fn from_message(message: &RouteNetlinkMessage) -> Option<Qdisc> {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = message else {
            return None;
        };
        let is_ingress = message.header.parent == TcHandle::INGRESS;
        let kind = message.attributes.iter().find_map(|a| match a {
            TcAttribute::Kind(kind) if kind != "noqueue" => Some(kind.clone()),
            _ => None,
        })?;
        (is_ingress || message.header.parent == TcHandle::ROOT).then_some(Qdisc {
            ifindex: u32::try_from(message.header.index).ok()?,
            kind,
            is_ingress,
        })
    }

    /// What it does not do to a pod, and what to do.
    fn notice(&self, endpoint: &Endpoint) -> String {
        let Qdisc { kind, .. } = self;
        let host = &endpoint.host_ifname;
        let (does, place) = match self.is_ingress {
            true => ("sees nothing that it sends", kind.as_str()),
            false => ("limits nothing that it receives", "root"),
        };
        format!(
            "{}: queue discipline {kind} on {host} {does}, since the switch passes the host's queues by; `tc qdisc del dev {host} {place}`, and limit inside the pod",
            endpoint.owner()
        )
    }
}

/// Every queue discipline of the namespace.
fn list() -> Result<Vec<Qdisc>, NetlinkError> {
    let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let answers = Netlink::open()?.dump("list the queue disciplines", message)?;
    Ok(answers.iter().filter_map(Qdisc::from_message).collect())
}

impl Core {
    /// What is wrong with a queue discipline; none where it is no pod's.
    pub(crate) fn qdisc_notice(&self, qdisc: &Qdisc) -> Option<String> {
        let inventory = self.inventory();
        let live = inventory.by_ifindex(qdisc.ifindex)?;
        Some(qdisc.notice(&live.endpoint))
    }

    /// What is wrong with those that there are.
    pub(crate) fn qdisc_notices(&self) -> Vec<String> {
        match list() {
            Ok(qdiscs) => qdiscs.iter().filter_map(|q| self.qdisc_notice(q)).collect(),
            Err(error) => vec![error.to_string()],
        }
    }
}
