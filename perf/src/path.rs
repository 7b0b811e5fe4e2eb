//! How a pod reaches an address: the Ethernet addresses of both ends of its
//! first hop, and the MTU.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use spinlane_tests::{Namespace, wait_for};

use crate::measure::MeasureError;
use crate::packet::Mac;
use crate::subject::{Pod, ping};

/// The way from a pod's `eth0` to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Address of the pod's own device.
    pub source_mac: Mac,
    /// Address of the next hop.
    pub next_hop_mac: Mac,
    /// MTU of the route, or of the device when the route has none.
    pub mtu: u64,
}

impl Path {
    /// Asks the pod's kernel, after a ping so that it knows the next hop.
    ///
    /// # Errors
    /// When there is no route or nobody answers.
    pub fn resolve(from: &Pod<'_>, to: IpAddr) -> Result<Path, MeasureError> {
        let namespace = from.namespace;
        let route = first(&namespace.ip(&format!("-j route get {to}"))?)?;
        let link = link(namespace, "eth0")?;
        let next_hop = next_hop(&route, to)?;
        let hop_mac = wait_for(
            &format!("the Ethernet address of {next_hop}"),
            Duration::from_secs(5),
            || {
                let _ = ping(namespace, to);
                let shown = namespace
                    .ip(&format!("-j neigh show to {next_hop} dev eth0"))
                    .ok()?;
                first(&shown).ok()?["lladdr"].as_str()?.parse::<Mac>().ok()
            },
        )?;
        Ok(Path {
            source_mac: address_of(&link)?,
            next_hop_mac: hop_mac,
            mtu: mtu(&route)
                .or_else(|| link["mtu"].as_u64())
                .unwrap_or_default(),
        })
    }
}

/// Ethernet address of a device.
///
/// # Errors
/// When there is no such device.
pub fn device_mac(namespace: &Namespace, device: &str) -> Result<Mac, MeasureError> {
    address_of(&link(namespace, device)?)
}

fn link(namespace: &Namespace, device: &str) -> Result<Value, MeasureError> {
    first(&namespace.ip(&format!("-j link show {device}"))?)
}

fn address_of(link: &Value) -> Result<Mac, MeasureError> {
    link["address"]
        .as_str()
        .unwrap_or_default()
        .parse()
        .map_err(|detail| unexpected("the address of a device", detail))
}

/// The address that the neighbour table has to know.
fn next_hop(route: &Value, to: IpAddr) -> Result<IpAddr, MeasureError> {
    let gateway = route["gateway"]
        .as_str()
        .or_else(|| route["via"]["host"].as_str());
    match gateway {
        None => Ok(to),
        Some(text) => text
            .parse()
            .map_err(|_| unexpected("the gateway of a route", text.to_owned())),
    }
}

/// What the route to an address says of its MTU, in the namespace of the
/// calling thread; `None` when it says nothing, or there is no route.
#[must_use]
pub fn route_mtu(to: IpAddr) -> Option<u64> {
    let mut ip = Command::new("ip");
    let output = ip.args(["-j", "route", "get", &to.to_string()]).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    mtu(&first(&text).ok()?)
}

fn mtu(route: &Value) -> Option<u64> {
    route["metrics"]
        .as_array()?
        .iter()
        .find_map(|metric| metric["mtu"].as_u64())
}

/// The first object of a list that `ip -j` printed.
fn first(text: &str) -> Result<Value, MeasureError> {
    let parsed: Value = serde_json::from_str(text)
        .map_err(|error| unexpected("what `ip -j` printed", error.to_string()))?;
    match parsed {
        Value::Array(mut list) if !list.is_empty() => Ok(list.swap_remove(0)),
        other => Err(unexpected("what `ip -j` printed", other.to_string())),
    }
}

fn unexpected(what: &str, detail: String) -> MeasureError {
    MeasureError::Unexpected {
        what: what.to_owned(),
        detail,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_routes_as_iproute2_prints_them() {
        let to: IpAddr = "10.244.1.3".parse().unwrap();
        let on_link = json!({"dst": "10.99.0.2", "dev": "eth0"});
        assert_eq!(next_hop(&on_link, to).unwrap(), to);
        assert_eq!(mtu(&on_link), None);
        let routed = json!({"gateway": "10.244.1.1", "metrics": [{"mtu": 1450}]});
        assert_eq!(next_hop(&routed, to).unwrap().to_string(), "10.244.1.1");
        assert_eq!(mtu(&routed), Some(1450));
        let mixed = json!({"via": {"family": "inet6", "host": "fe80::1"}});
        assert_eq!(next_hop(&mixed, to).unwrap().to_string(), "fe80::1");
        assert!(first("[]").is_err() && first("[{}]").is_ok());
    }
}
