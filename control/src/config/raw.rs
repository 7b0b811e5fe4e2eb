//! The configuration file as serde reads it: every key optional, nothing
//! checked but types. Defaults and meaning belong to the validated form.

use serde::Deserialize;
use toml::Value;

/// Which keys a table may have; a leaf has none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape(&'static [(&'static str, Shape)]);

impl Shape {
    const LEAF: Shape = Shape(&[]);

    pub(super) fn get(&self, key: &str) -> Option<&'static Shape> {
        self.0
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, shape)| shape)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }
}

/// One table of keys: the raw struct that serde fills and the shape that the
/// document is walked with, from one list.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($key:literal $field:ident: $kind:ty $(=> $shape:expr)?,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $(#[serde(rename = $key, default)] pub(super) $field: $kind,)*
        }

        impl $name {
            pub(super) const SHAPE: Shape =
                Shape(&[$(($key, table!(@shape $($shape)?)),)*]);
        }
    };
    (@shape $shape:expr) => { $shape };
    (@shape) => { Shape::LEAF };
}

table! {
    /// The whole file.
    RawConfig {
        "node" node: RawNode => RawNode::SHAPE,
        "network" network: RawNetwork => RawNetwork::SHAPE,
        "lanes" lanes: RawLanes => RawLanes::SHAPE,
        "segments" segments: Vec<RawSegment> => RawSegment::SHAPE,
        "source" source: RawSource => RawSource::SHAPE,
        "metrics" metrics: RawMetrics => RawMetrics::SHAPE,
    }
}

table! {
    /// `[node]`
    RawNode {
        "name" name: Option<String>,
        "address" address: Option<String>,
        "addresses" addresses: Option<Vec<String>>,
        "uplink" uplink: Option<String>,
        "pod-cidrs" pod_cidrs: Option<Vec<String>>,
    }
}

table! {
    /// `[network]`
    RawNetwork {
        "mode" mode: Option<String>,
        "cluster-cidrs" cluster_cidrs: Option<Vec<String>>,
        "service-cidrs" service_cidrs: Option<Vec<String>>,
        "vni" vni: Option<i64>,
        "vxlan-port" vxlan_port: Option<i64>,
        "mtu" mtu: Option<Value>,
        "masquerade" masquerade: Option<bool>,
        "masquerade-exclude" masquerade_exclude: Option<Vec<String>>,
        "masquerade-ports" masquerade_ports: Option<String>,
        "egress-addresses" egress_addresses: Option<Vec<String>>,
        "cross-subnet" cross_subnet: Option<bool>,
        "gateway" gateway: Option<String>,
        "gateways" gateways: Option<Vec<String>>,
    }
}

table! {
    /// `[lanes]`
    RawLanes {
        "cores" cores: Option<Value>,
        "poll" poll: Option<String>,
        "frames" frames: Option<Value>,
        "xdp-mode" xdp_mode: Option<String>,
        "offloads" offloads: Option<String>,
    }
}

table! {
    /// `[[segments]]`
    RawSegment {
        "name" name: Option<String>,
        "vni" vni: Option<i64>,
        "cidrs" cidrs: Option<Vec<String>>,
        "guard" guard: Option<bool>,
        "static" stations: Option<Vec<RawStation>> => RawStation::SHAPE,
    }
}

table! {
    /// An entry of a segment's `static`.
    RawStation {
        "mac" mac: Option<String>,
        "port" port: Option<String>,
        "vtep" vtep: Option<String>,
    }
}

table! {
    /// `[source]`
    RawSource {
        "kind" kind: Option<String>,
        "path" path: Option<String>,
    }
}

table! {
    /// `[metrics]`
    RawMetrics {
        "listen" listen: Option<String>,
    }
}
