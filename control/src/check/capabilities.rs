//! What the kernel lets this process do, by `/proc/self/status`.

use std::fs;

/// A capability that the agent cannot do without.
struct Capability {
    name: &'static str,
    /// Bit in the effective set (capabilities(7)).
    bit: u32,
    /// Older capability that includes it.
    or_bit: Option<u32>,
}

const SYS_ADMIN: u32 = 21;

const NEEDED: &[Capability] = &[
    // Links, addresses, routes, XDP.
    Capability {
        name: "CAP_NET_ADMIN",
        bit: 12,
        or_bit: None,
    },
    // AF_XDP and packet sockets.
    Capability {
        name: "CAP_NET_RAW",
        bit: 13,
        or_bit: None,
    },
    // Programs and maps.
    Capability {
        name: "CAP_BPF",
        bit: 39,
        or_bit: Some(SYS_ADMIN),
    },
    // Entering pods' namespaces.
    Capability {
        name: "CAP_SYS_ADMIN",
        bit: SYS_ADMIN,
        or_bit: None,
    },
];

/// Names of the needed capabilities that the process lacks.
pub fn missing() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing_of(effective(&status))
}

fn missing_of(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    NEEDED
        .iter()
        .filter(|needed| !has(needed.bit) && !needed.or_bit.is_some_and(has))
        .map(|needed| needed.name)
        .collect()
}

fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_follows_the_effective_set() {
        let of = |line: &str| missing_of(effective(line));
        assert_eq!(of("Name:\tx\nCapEff:\t000001ffffffffff\n"), [""; 0]);
        let all = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_SYS_ADMIN"];
        assert_eq!(of("CapEff:\t0000000000000000\n"), all);
        assert_eq!(of("no such line"), all);
        // Before Linux 5.8 CAP_SYS_ADMIN stood for CAP_BPF.
        let old = 1u64 << 12 | 1 << 13 | 1 << 21;
        assert_eq!(missing_of(old), [""; 0]);
    }
}
