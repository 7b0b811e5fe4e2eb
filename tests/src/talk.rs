//! Everybody talks to everybody.

use std::net::IpAddr;

use crate::error::{LabError, Result};
use crate::site::{Kind, Station};
use crate::traffic;

/// Bytes that TCP carries each way.
const TCP_BYTES: usize = 200 << 10;

/// Ping, TCP and UDP between every two stations that can, over every address of the
/// target that the source has a family for. The target sees the source's own
/// address; the host outside sees the address of the pod's node.
///
/// # Errors
/// Everything that failed, in one [`LabError::Unexpected`].
pub fn every_pair(stations: &[Station<'_>]) -> Result<()> {
    let mut failures = Vec::new();
    for pair in pairs(stations) {
        if let Err(error) = talks(&pair) {
            failures.push(format!("{pair}: {error}"));
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(LabError::unexpected("who talks", failures.join("\n"))),
    }
}

/// Two stations, of which the first can begin to talk to the second.
#[derive(Debug, Clone)]
pub struct Pair<'a> {
    /// Who begins.
    pub from: &'a Station<'a>,
    /// With whom.
    pub to: &'a Station<'a>,
    /// At which address.
    pub address: IpAddr,
    /// Addresses that the target may see the source come from.
    pub seen: Vec<IpAddr>,
}

impl std::fmt::Display for Pair<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} to {} ({})",
            self.from.name, self.to.name, self.address
        )
    }
}

/// Every two stations that can talk, with every address of the second that the
/// first has a family for.
#[must_use]
pub fn pairs<'a>(stations: &'a [Station<'a>]) -> Vec<Pair<'a>> {
    let mut pairs = Vec::new();
    for from in stations {
        for to in stations {
            for &address in &to.addresses {
                let seen = seen(stations, from, to.kind, address.is_ipv6());
                if from.name != to.name && !seen.is_empty() && can_begin(from.kind, to.kind) {
                    pairs.push(Pair {
                        from,
                        to,
                        address,
                        seen,
                    });
                }
            }
        }
    }
    pairs
}

/// Whether one may begin to talk to the other: the host outside knows pods'
/// addresses only where they are routed, a plain node hides none of its own,
/// and what stays on it proves nothing.
fn can_begin(from: Kind, to: Kind) -> bool {
    let is_pod = |kind| matches!(kind, Kind::Pod(_) | Kind::PlainPod);
    let is_plain = |kind| matches!(kind, Kind::PlainPod | Kind::PlainNode);
    let is_known = from != Kind::Outside { knows_pods: false } || !is_pod(to);
    let is_hidden = from != Kind::PlainPod || !matches!(to, Kind::Outside { .. });
    is_known && is_hidden && !(is_plain(from) && is_plain(to))
}

/// The addresses that the target may see the source come from.
fn seen(stations: &[Station<'_>], from: &Station<'_>, to: Kind, v6: bool) -> Vec<IpAddr> {
    let source = match (from.kind, to) {
        (Kind::Pod(number), Kind::Outside { .. }) => {
            let mut nodes = stations.iter();
            nodes.find(|station| station.kind == Kind::Node(number))
        }
        _ => Some(from),
    };
    let addresses = source
        .into_iter()
        .flat_map(|source| source.addresses.iter().chain(&source.aliases));
    addresses.copied().filter(|a| a.is_ipv6() == v6).collect()
}

fn talks(pair: &Pair<'_>) -> Result<()> {
    let (from, to, address, own) = (pair.from, pair.to, pair.address, &pair.seen);
    traffic::reach(from.namespace, address)?;
    let source = traffic::tcp_seen_from(from.namespace, to.namespace, address)?;
    if !own.contains(&source) {
        let detail = format!("{source}, not {own:?}");
        return Err(LabError::unexpected("the address it comes from", detail));
    }
    traffic::tcp_both_ways(from.namespace, to.namespace, address, TCP_BYTES)?;
    for size in [18, 1300] {
        let whole = traffic::udp_echo(from.namespace, to.namespace, address, 3, size)?;
        if whole != 3 {
            let detail = format!("{whole} of 3 came back whole");
            return Err(LabError::unexpected(format!("UDP of {size} bytes"), detail));
        }
    }
    Ok(())
}
