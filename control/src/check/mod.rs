//! Preflight: what this machine has for each feature, what will be used
//! instead of what it lacks, and whether the agent can run at all.
//!
//! What can be tried is tried, in a namespace of its own; the rest is read
//! from the kernel's version and files.

pub mod capabilities;
mod probe;
mod shared;
mod uplink;

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::config::{Config, allowed_cores};

/// How far a feature can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Without it, or with something in its place.
    Degraded,
    /// Essential, and not there.
    Missing,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What.
    pub name: String,
    /// How far it can be used.
    pub state: State,
    /// What will be used, or why not.
    pub detail: String,
}

fn item(name: impl Into<String>, state: State, detail: impl Into<String>) -> Item {
    Item {
        name: name.into(),
        state,
        detail: detail.into().replace('\n', "; "),
    }
}

/// What `spinlane check` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing essential is missing.
    pub ok: bool,
    /// One by one.
    pub items: Vec<Item>,
}

/// Checks the machine, and a configuration file when one is named.
pub fn run(config: Option<&Path>) -> Report {
    let release = read("/proc/sys/kernel/osrelease");
    let mut items = kernel(&release);
    let missing = capabilities::missing();
    items.push(match missing.is_empty() {
        true => item("capabilities", State::Ok, "all that the agent needs"),
        false => item(
            "capabilities",
            State::Missing,
            format!("{} missing: run as root", missing.join(", ")),
        ),
    });
    if missing.is_empty() {
        items.extend(probe::run());
    }
    items.extend([btf(), jit(), hugepages(), cpus(), ipv6()]);
    items.extend(config.into_iter().flat_map(configuration));
    let ok = items.iter().all(|item| item.state != State::Missing);
    Report { ok, items }
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// A feature that came with a kernel version.
struct Since {
    name: &'static str,
    version: (u32, u32),
    essential: bool,
    with: &'static str,
    without: &'static str,
}

const FEATURES: &[Since] = &[
    Since {
        name: "AF_XDP with shared memory",
        version: (5, 10),
        essential: true,
        with: "one frame memory for all ports",
        without: "the switch cannot run",
    },
    Since {
        name: "multi-buffer AF_XDP",
        version: (6, 6),
        essential: true,
        with: "frames of 64 KiB in chains of descriptors",
        without: "the switch cannot run",
    },
    Since {
        name: "transmit metadata",
        version: (6, 8),
        essential: true,
        with: "nobody sums payloads between local pods",
        without: "the frame memory cannot be registered with room for it",
    },
    Since {
        name: "multi-buffer in generic mode",
        version: (6, 9),
        essential: false,
        with: "super-frames stay on in pods",
        without: "pods get native mode and segments of the path's MTU",
    },
    Since {
        name: "transmit budget",
        version: (6, 18),
        essential: false,
        with: "512 descriptors a system call",
        without: "32 descriptors a system call: slower, not wrong",
    },
];

fn kernel(release: &str) -> Vec<Item> {
    let Some(version) = parse_version(release) else {
        let detail = format!("its release {release:?} is not readable: features are probed");
        return vec![item("kernel", State::Degraded, detail)];
    };
    let mut items = vec![item("kernel", State::Ok, release)];
    items.extend(FEATURES.iter().map(|feature| {
        let (major, minor) = feature.version;
        if version >= feature.version {
            return item(feature.name, State::Ok, feature.with);
        }
        let state = match feature.essential {
            true => State::Missing,
            false => State::Degraded,
        };
        let detail = format!("needs Linux {major}.{minor}: {}", feature.without);
        item(feature.name, state, detail)
    }));
    items
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn btf() -> Item {
    match Path::new("/sys/kernel/btf/vmlinux").exists() {
        true => item("BPF type information", State::Ok, "/sys/kernel/btf/vmlinux"),
        false => item(
            "BPF type information",
            State::Ok,
            "absent, and not needed: the programs carry what they use",
        ),
    }
}

fn jit() -> Item {
    match read("/proc/sys/net/core/bpf_jit_enable").as_str() {
        "0" => item(
            "BPF compiler",
            State::Degraded,
            "off: programs are interpreted; set net.core.bpf_jit_enable = 1",
        ),
        _ => item("BPF compiler", State::Ok, "on"),
    }
}

fn hugepages() -> Item {
    let info = read("/proc/meminfo");
    let free = info
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"))
        .and_then(|pages| pages.trim().parse::<u64>().ok())
        .unwrap_or(0);
    match free {
        0 => item(
            "huge pages",
            State::Ok,
            "none free: the frame memory is of 4 KiB pages",
        ),
        free => item(
            "huge pages",
            State::Ok,
            format!("{free} free: used for the frame memory"),
        ),
    }
}

fn cpus() -> Item {
    let cores = allowed_cores();
    match cores.len() {
        0 | 1 => item(
            "CPUs",
            State::Degraded,
            "one: the lane shares it with control and the pods",
        ),
        several => item(
            "CPUs",
            State::Ok,
            format!("{several} allowed, one lane a core in lanes.cores"),
        ),
    }
}

fn ipv6() -> Item {
    match Path::new("/proc/sys/net/ipv6").is_dir() {
        true => item("IPv6", State::Ok, "available to pods and the node"),
        false => item(
            "IPv6",
            State::Degraded,
            "the kernel has none: only IPv4 pod ranges can be used",
        ),
    }
}

/// The file, and the way out that it names.
fn configuration(path: &Path) -> Vec<Item> {
    let name = format!("configuration {}", path.display());
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return vec![item(name, State::Missing, error.to_string())],
    };
    let mut items = vec![match config.warnings().is_empty() {
        true => item(name, State::Ok, "valid"),
        false => item(name, State::Degraded, config.warnings().join("; ")),
    }];
    items.extend(uplink::run(&config));
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_follow_the_kernels_version() {
        let state = |release: &str, name: &str| {
            kernel(release)
                .into_iter()
                .find(|item| item.name == name)
                .map(|item| item.state)
        };
        let generic = "multi-buffer in generic mode";
        assert_eq!(state("6.18.44-x", generic), Some(State::Ok));
        assert_eq!(state("6.9.0", generic), Some(State::Ok));
        assert_eq!(state("6.8.12-amd64", generic), Some(State::Degraded));
        assert_eq!(state("6.6.1", "transmit metadata"), Some(State::Missing));
        assert_eq!(state("10.0", generic), Some(State::Ok));
        assert_eq!(state("odd", "kernel"), Some(State::Degraded));
    }

    #[test]
    fn a_bad_configuration_is_essential_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, "[network]\nmut = 1").unwrap();
        let found = &configuration(&path)[0];
        assert_eq!(found.state, State::Missing);
        assert!(
            found.detail.ends_with(
                "c.toml:2: unknown key `network.mut`; the nearest known one is `network.mtu`"
            ),
            "{}",
            found.detail
        );
        fs::write(&path, "[network]\nmode = 'routed'").unwrap();
        assert_eq!(configuration(&path)[0].state, State::Ok);
    }
}
