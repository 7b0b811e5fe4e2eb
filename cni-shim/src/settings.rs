//! The network configuration's keys that are ours, checked.
//!
//! Keys that nobody knows are passed by: runtimes and other plugins of a
//! chain add theirs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

use rscni_plugin::types::{Dns, GcAttachment, NetConf};
use serde::Deserialize;
use serde_json::Value;
use spinlane_api::cni::Attachment;

use crate::arguments::Arguments;
use crate::error::Error;

/// Where an agent keeps its sockets unless told otherwise.
const DEFAULT_RUN_DIR: &str = "/run/spinlane";
/// Smallest and largest path MTU that a network may ask for, in bytes.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 576..=65535;

/// What every call needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `runDir`.
    pub run_dir: PathBuf,
    /// `segment`.
    pub segment: Option<String>,
    /// `mtu`.
    pub mtu: Option<u32>,
    /// `superFrames`.
    pub super_frames: Option<bool>,
}

impl Settings {
    /// Reads the keys that are ours.
    ///
    /// # Errors
    /// [`Error::Config`] naming a key whose value cannot be.
    pub fn read(config: &NetConf) -> Result<Self, Error> {
        let keys = &config.custom;
        Ok(Self {
            run_dir: run_dir(config)?,
            segment: text(keys, "segment")?,
            mtu: mtu(keys)?,
            super_frames: match keys.get("superFrames") {
                None | Some(Value::Null) => None,
                Some(Value::Bool(on)) => Some(*on),
                Some(other) => {
                    return Err(Error::Config(format!(
                        "superFrames is {other}, not true or false"
                    )));
                }
            },
        })
    }
}

/// `runDir` alone, which is all that DEL needs.
///
/// # Errors
/// [`Error::Config`] when it is not an absolute path.
pub fn run_dir(config: &NetConf) -> Result<PathBuf, Error> {
    let Some(text) = text(&config.custom, "runDir")? else {
        return Ok(PathBuf::from(DEFAULT_RUN_DIR));
    };
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::Config(format!(
        "runDir is {:?}, not an absolute path",
        path.display()
    )))
}

/// What the runtime wishes for this attachment: capabilities first, then
/// `args.cni`, then `CNI_ARGS`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Hardware address.
    pub mac: Option<String>,
    /// Addresses, with or without prefix length.
    pub ips: Vec<String>,
}

impl Wishes {
    /// Reads the wishes; refuses those that cannot be granted, because a pod
    /// must not silently lack what its specification promises.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for port mappings and bandwidth limits,
    /// [`Error::Config`] for addresses that are none.
    pub fn read(config: &NetConf, arguments: &Arguments) -> Result<Self, Error> {
        let empty = HashMap::new();
        let runtime = config.runtime_config.as_ref();
        let capabilities = runtime.map_or(&empty, |runtime| &runtime.custom);
        if let Some(mapping) = runtime
            .iter()
            .flat_map(|runtime| &runtime.port_mappings)
            .find(|mapping| mapping.host_port != 0)
        {
            return Err(Error::Unsupported(format!(
                "runtimeConfig.portMappings asks for host port {} to container port {}: \
                 host ports are not supported, take hostPort away or give the pod the node's \
                 own network (hostNetwork)",
                mapping.host_port, mapping.container_port
            )));
        }
        refuse_bandwidth(capabilities)?;
        let cni_args = config.args.as_ref().and_then(|args| args.get("cni"));
        let mac = text(capabilities, "mac")?
            .or_else(|| {
                cni_args
                    .and_then(|args| args.get("mac"))
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            })
            .or_else(|| arguments.mac.clone());
        if let Some(mac) = &mac {
            check_mac(mac)?;
        }
        let ips = match addresses(capabilities.get("ips"), "runtimeConfig.ips")? {
            Some(ips) => ips,
            None => addresses(cni_args.and_then(|args| args.get("ips")), "args.cni.ips")?
                .unwrap_or_else(|| arguments.ips.clone()),
        };
        for ip in &ips {
            check_address(ip)?;
        }
        Ok(Self { mac, ips })
    }
}

/// `dns` of the configuration, when it says anything.
#[must_use]
pub fn dns(config: &NetConf) -> Option<Dns> {
    config.dns.clone().filter(|dns| *dns != Dns::default())
}

/// The attachments that GC must keep.
///
/// A null list means that none is valid, as libcni writes an empty one; an
/// absent list says nothing, and nothing is deleted on a guess. The first text
/// of the specification's version 1.1.0 called the key `cni.dev/attachments`;
/// a runtime that follows it is understood, too.
///
/// # Errors
/// [`Error::Config`] when the key is absent.
pub fn valid_attachments(config: &NetConf, document: &Value) -> Result<Vec<Attachment>, Error> {
    const KEY: &str = "cni.dev/valid-attachments";
    const FIRST_KEY: &str = "cni.dev/attachments";
    let listed = match (document.get(KEY), document.get(FIRST_KEY)) {
        (Some(_), _) => config.valid_attachments.clone(),
        (None, Some(list)) => Deserialize::deserialize(list)
            .map_err(|error| Error::Config(format!("{FIRST_KEY} is {list}: {error}")))?,
        (None, None) => {
            return Err(Error::Config(format!(
                "{KEY} is missing: GC cannot know what to keep"
            )));
        }
    };
    let kept = listed.into_iter().flatten().map(|listed: GcAttachment| {
        let network = config.name.clone();
        Attachment {
            network,
            container_id: listed.container_id,
            ifname: listed.ifname,
        }
    });
    Ok(kept.collect())
}

fn text(keys: &HashMap<String, Value>, key: &str) -> Result<Option<String>, Error> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(Error::Config(format!("{key} is {other}, not a string"))),
    }
}

fn mtu(keys: &HashMap<String, Value>) -> Result<Option<u32>, Error> {
    match keys.get("mtu") {
        None | Some(Value::Null) => Ok(None),
        // The reference plugins read 0 as "the default".
        Some(value) if value.as_u64() == Some(0) => Ok(None),
        Some(value) => value
            .as_u64()
            .filter(|mtu| MTU_RANGE.contains(mtu))
            .and_then(|mtu| u32::try_from(mtu).ok())
            .map(Some)
            .ok_or_else(|| {
                Error::Config(format!(
                    "mtu is {value}, not a number from {} to {}",
                    MTU_RANGE.start(),
                    MTU_RANGE.end()
                ))
            }),
    }
}

fn refuse_bandwidth(capabilities: &HashMap<String, Value>) -> Result<(), Error> {
    let Some(limits) = capabilities.get("bandwidth") else {
        return Ok(());
    };
    let asked = ["ingressRate", "egressRate"]
        .into_iter()
        .find(|rate| limits[rate].as_f64().is_some_and(|bits| bits > 0.0));
    match asked {
        None => Ok(()),
        Some(rate) => Err(Error::Unsupported(format!(
            "runtimeConfig.bandwidth.{rate} is {}: bandwidth limits are not supported, take the \
             pod's bandwidth annotation away (a chained bandwidth plugin limits nothing: packets \
             pass the kernel's queues by)",
            limits[rate]
        ))),
    }
}

fn addresses(value: Option<&Value>, key: &str) -> Result<Option<Vec<String>>, Error> {
    let wrong = |value: &Value| Error::Config(format!("{key} is {value}, not a list of addresses"));
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map(|ips| Some(ips).filter(|ips| !ips.is_empty()))
            .ok_or_else(|| wrong(&Value::Array(items.clone()))),
        Some(other) => Err(wrong(other)),
    }
}

fn check_address(text: &str) -> Result<(), Error> {
    let (address, length) = text.split_once('/').unwrap_or((text, "0"));
    let fits = match (address.parse::<IpAddr>(), length.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(length)) => length <= 32,
        (Ok(IpAddr::V6(_)), Ok(length)) => length <= 128,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the address {text:?} that the runtime asks for is not one"
    )))
}

fn check_mac(text: &str) -> Result<(), Error> {
    let bytes: Vec<u8> = text
        .split(':')
        .filter(|part| part.len() == 2)
        .filter_map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    let usable = bytes.len() == 6
        && text.split(':').count() == 6
        && bytes[0] & 1 == 0
        && bytes.iter().any(|byte| *byte != 0);
    if usable {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the hardware address {text:?} that the runtime asks for is not a unicast MAC \
         (aa:bb:cc:dd:ee:ff)"
    )))
}

#[cfg(test)]
mod tests {
    use rscni_plugin::types::NetConf;
    use serde_json::{Value, json};

    use super::{Settings, Wishes, run_dir, valid_attachments};
    use crate::arguments::Arguments;

    fn config(mut more: Value) -> NetConf {
        more["name"] = json!("pods");
        more["type"] = json!("spinlane-cni");
        serde_json::from_value(more).unwrap()
    }

    #[test]
    fn keys_have_defaults() {
        let settings = Settings::read(&config(json!({}))).unwrap();
        assert_eq!(settings.run_dir.to_str(), Some("/run/spinlane"));
        assert_eq!(
            (settings.segment, settings.mtu, settings.super_frames),
            (None, None, None)
        );
    }

    #[test]
    fn keys_are_read() {
        let settings = Settings::read(&config(json!({
            "runDir": "/tmp/a", "segment": "blue", "mtu": 1400, "superFrames": false,
            "bridge": "unknown keys pass by",
        })))
        .unwrap();
        assert_eq!(settings.run_dir.to_str(), Some("/tmp/a"));
        assert_eq!(settings.segment.as_deref(), Some("blue"));
        assert_eq!(
            (settings.mtu, settings.super_frames),
            (Some(1400), Some(false))
        );
    }

    #[test]
    fn impossible_values_are_refused_by_key() {
        for (more, key) in [
            (json!({"runDir": "relative"}), "runDir"),
            (json!({"runDir": 5}), "runDir"),
            (json!({"segment": ["blue"]}), "segment"),
            (json!({"mtu": 100}), "mtu"),
            (json!({"mtu": "1500"}), "mtu"),
            (json!({"mtu": 70000}), "mtu"),
            (json!({"superFrames": "no"}), "superFrames"),
        ] {
            let message = Settings::read(&config(more)).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
        assert!(run_dir(&config(json!({"mtu": "DEL does not care"}))).is_ok());
    }

    #[test]
    fn capabilities_come_before_args() {
        let arguments = Arguments {
            ips: vec!["10.0.0.3".to_owned()],
            mac: Some("02:00:00:00:00:03".to_owned()),
            ..Arguments::default()
        };
        let all = json!({
            "runtimeConfig": {"ips": ["10.0.0.1/24"], "mac": "02:00:00:00:00:01"},
            "args": {"cni": {"ips": ["10.0.0.2"], "mac": "02:00:00:00:00:02"}},
        });
        let mut without = all.clone();
        without["runtimeConfig"] = json!({"ips": [], "mac": ""});
        for (config, ip, mac) in [
            (config(all), "10.0.0.1/24", "02:00:00:00:00:01"),
            (config(without), "10.0.0.2", "02:00:00:00:00:02"),
            (config(json!({})), "10.0.0.3", "02:00:00:00:00:03"),
        ] {
            let wishes = Wishes::read(&config, &arguments).unwrap();
            assert_eq!(wishes.ips, [ip]);
            assert_eq!(wishes.mac.as_deref(), Some(mac));
        }
    }

    #[test]
    fn what_cannot_be_granted_is_refused() {
        for (runtime, named) in [
            (
                json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}),
                "8080",
            ),
            (json!({"bandwidth": {"ingressRate": 1_000_000}}), "1000000"),
            (json!({"mac": "01:00:5e:00:00:01"}), "01:00:5e:00:00:01"),
            (json!({"mac": "02:00:00:00:00"}), "02:00:00:00:00"),
            (json!({"mac": "02:0:00:00:00:00:00"}), "02:0:00"),
            (json!({"mac": "00:00:00:00:00:00"}), "00:00"),
            (json!({"ips": ["10.0.0.300"]}), "10.0.0.300"),
            (json!({"ips": ["10.0.0.3/33"]}), "10.0.0.3/33"),
            (json!({"ips": "10.0.0.3"}), "10.0.0.3"),
        ] {
            let config = config(json!({"runtimeConfig": runtime}));
            let message = Wishes::read(&config, &Arguments::default())
                .unwrap_err()
                .to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn empty_wishes_are_granted() {
        for runtime in [
            json!({"portMappings": [], "bandwidth": {}, "ips": [], "mac": ""}),
            json!({"portMappings": [{"hostPort": 0, "containerPort": 80}]}),
            json!({"portMappings": null, "bandwidth": null}),
            json!({"bandwidth": {"ingressRate": 0, "egressRate": 0}}),
            json!({"dns": {}, "other": 1}),
        ] {
            let config = config(json!({"runtimeConfig": runtime}));
            assert_eq!(
                Wishes::read(&config, &Arguments::default()).unwrap(),
                Wishes::default()
            );
        }
    }

    #[test]
    fn an_absent_attachment_list_is_not_an_empty_one() {
        for (document, kept) in [
            (json!({}), None),
            (json!({"cni.dev/valid-attachments": null}), Some(0)),
            (json!({"cni.dev/valid-attachments": []}), Some(0)),
            (json!({"cni.dev/attachments": null}), Some(0)),
            (json!({"cni.dev/attachments": "all"}), None),
            (
                json!({"cni.dev/attachments": [{"containerID": "c", "ifname": "eth0"}]}),
                Some(1),
            ),
            (
                json!({"cni.dev/valid-attachments": [],
                    "cni.dev/attachments": [{"containerID": "c", "ifname": "eth0"}]}),
                Some(0),
            ),
            (
                json!({"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}]}),
                Some(1),
            ),
        ] {
            let read = valid_attachments(&config(document.clone()), &document);
            assert_eq!(read.ok().map(|list| list.len()), kept, "{document}");
        }
    }
}
