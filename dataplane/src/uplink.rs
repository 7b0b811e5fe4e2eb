//! What the uplink's XDP program takes, as its maps say it.
//!
//! [`Filter::of`] reads it off a snapshot; [`Filter::write`] changes only what
//! differs from before, so that a new pod costs one entry. The layouts are
//! those of `bpf/uplink.bpf.c`.

pub(crate) mod attachment;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};

use crate::mapped_bytes::MappedBytes;
use crate::port::{Program, ProgramError};
use crate::snapshot::{Location, Prefix, Role, Snapshot};
use crate::tables::connection::echoes::IDENTIFIERS;
use crate::types::MacAddr;

const VXLAN: u32 = 1;
const ROUTED: u32 = 2;
const LAYER_2: u32 = 4;
const MASQUERADE: u32 = 8;

const TUNNEL_END: u32 = 1;
const EGRESS: u32 = 2;

/// `struct config` of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
struct Config {
    modes: u32,
    /// In network order.
    vxlan_port: [u8; 2],
    ports_low: u16,
    ports_high: u16,
    mac: [u8; 6],
}

const _: () = assert!(size_of::<Config>() == 16);

#[allow(unsafe_code)]
// SAFETY: plain integers without padding (4 + 2 + 2 + 2 + 6 bytes).
unsafe impl Pod for Config {}

/// What the program is to take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    config: Config,
    own: BTreeMap<[u8; 16], u32>,
    pods_v4: BTreeSet<([u8; 4], u8)>,
    pods_v6: BTreeSet<([u8; 16], u8)>,
    stations: BTreeSet<[u8; 8]>,
}

impl Filter {
    /// What a snapshot wants taken. A snapshot without an uplink takes
    /// nothing.
    pub(crate) fn of(snapshot: &Snapshot) -> Filter {
        let mut filter = Filter::default();
        let underlay = &snapshot.underlay;
        if underlay.uplink.is_none() {
            return filter;
        }
        let config = &mut filter.config;
        config.mac = underlay.mac.0;
        if underlay.vxlan_port != 0 {
            config.modes |= VXLAN;
            config.vxlan_port = underlay.vxlan_port.to_be_bytes();
            for &address in &underlay.addresses {
                *filter.own.entry(octets(address)).or_default() |= TUNNEL_END;
            }
        }
        let masquerade = &snapshot.masquerade;
        let v4 = masquerade.egress_v4.iter().map(|&a| IpAddr::V4(a));
        let v6 = masquerade.egress_v6.iter().map(|&a| IpAddr::V6(a));
        for address in v4.chain(v6) {
            config.modes |= MASQUERADE;
            config.ports_low = *masquerade.ports.start();
            config.ports_high = *masquerade.ports.end();
            *filter.own.entry(octets(address)).or_default() |= EGRESS;
        }
        if underlay.is_routed {
            config.modes |= ROUTED;
            for &Prefix { address, len } in &snapshot.gateway.pod_cidrs {
                match address {
                    IpAddr::V4(v4) => filter.pods_v4.insert((v4.octets(), len)),
                    IpAddr::V6(v6) => filter.pods_v6.insert((v6.octets(), len)),
                };
            }
        }
        if underlay.segment.is_some() {
            config.modes |= LAYER_2;
            filter.stations = stations(snapshot);
        }
        filter
    }

    /// Takes what was taken before, too; where both cannot be, as with two
    /// ports of the overlay, what is new.
    pub(crate) fn keep(&mut self, told: &Filter) {
        let only_before = told.config.modes & !self.config.modes;
        if only_before & VXLAN != 0 {
            self.config.vxlan_port = told.config.vxlan_port;
        }
        if only_before & MASQUERADE != 0 {
            self.config.ports_low = told.config.ports_low;
            self.config.ports_high = told.config.ports_high;
        }
        if self.config.modes == 0 {
            self.config.mac = told.config.mac;
        }
        self.config.modes |= told.config.modes;
        for (address, role) in &told.own {
            *self.own.entry(*address).or_default() |= role;
        }
        self.pods_v4.extend(&told.pods_v4);
        self.pods_v6.extend(&told.pods_v6);
        self.stations.extend(&told.stations);
    }

    /// Whether the kernel must not see some of it, even when no process takes
    /// it.
    pub(crate) fn outlives(&self) -> bool {
        self.config.modes & MASQUERADE != 0
    }

    /// Changes the program's maps from what they say now, `told`.
    pub(crate) fn write(&self, told: &Filter, program: &mut Program) -> Result<(), ProgramError> {
        let mut own: HashMap<&mut MapData, [u8; 16], u32> =
            HashMap::try_from(program.map_mut("own")?)?;
        for (address, role) in &self.own {
            if told.own.get(address) != Some(role) {
                own.insert(address, role, 0)?;
            }
        }
        for address in told.own.keys().filter(|a| !self.own.contains_key(*a)) {
            own.remove(address)?;
        }
        trie(program, "pods_v4", &self.pods_v4, &told.pods_v4)?;
        trie(program, "pods_v6", &self.pods_v6, &told.pods_v6)?;
        let mut stations: HashMap<&mut MapData, [u8; 8], u32> =
            HashMap::try_from(program.map_mut("stations")?)?;
        for mac in self.stations.difference(&told.stations) {
            stations.insert(mac, 1, 0)?;
        }
        for mac in told.stations.difference(&self.stations) {
            stations.remove(mac)?;
        }
        if self.config != told.config {
            let mut config: Array<&mut MapData, Config> =
                Array::try_from(program.map_mut("config")?)?;
            config.set(0, self.config, 0)?;
        }
        Ok(())
    }
}

/// An address as the program keys it: IPv4 mapped into IPv6.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// MAC addresses on this side of the segment that uplink and pods share: the
/// pods' own, and those learned behind them. What is behind the host port is
/// the kernel's.
fn stations(snapshot: &Snapshot) -> BTreeSet<[u8; 8]> {
    let underlay = &snapshot.underlay;
    let Some(id) = underlay.segment else {
        return BTreeSet::new();
    };
    let padded = |MacAddr([a, b, c, d, e, f]): MacAddr| [a, b, c, d, e, f, 0, 0];
    let ports = snapshot.ports.iter().flatten();
    let pods = ports.filter(|port| port.role == Role::SegmentPod(id));
    let mut stations: BTreeSet<_> = pods.map(|port| padded(port.mac)).collect();
    let Some(segment) = snapshot.segment(id) else {
        return stations;
    };
    for (&mac, target) in segment.fdb.iter() {
        let role = match target.at {
            Location::Port(port) => snapshot.port(port).map(|port| port.role),
            Location::Vtep(_) => None,
        };
        if role == Some(Role::SegmentPod(id)) {
            stations.insert(padded(mac));
        }
    }
    stations
}

fn trie<const N: usize>(
    program: &mut Program,
    name: &'static str,
    wanted: &BTreeSet<([u8; N], u8)>,
    told: &BTreeSet<([u8; N], u8)>,
) -> Result<(), ProgramError>
where
    [u8; N]: Pod,
{
    let mut trie: LpmTrie<&mut MapData, [u8; N], u32> = LpmTrie::try_from(program.map_mut(name)?)?;
    for &(address, len) in wanted.difference(told) {
        trie.insert(&Key::new(u32::from(len), address), 1, 0)?;
    }
    for &(address, len) in told.difference(wanted) {
        trie.remove(&Key::new(u32::from(len), address))?;
    }
    Ok(())
}

/// The bytes that tell the program which echo identifiers are given out.
pub(crate) fn echoes(program: &mut Program) -> Result<MappedBytes, ProgramError> {
    let Map::Array(map) = program.map_mut("echoes")? else {
        return Err(ProgramError::Missing("echoes"));
    };
    MappedBytes::new(map.fd().as_fd(), IDENTIFIERS).map_err(ProgramError::Share)
}

/// Fragments of the overlay's outer packets that the program left to the
/// kernel; 0 when it cannot tell.
pub(crate) fn outer_fragments(program: &mut Program) -> u64 {
    let mut count = || -> Option<u64> {
        let map = program.map_mut("fragments").ok()?;
        let counters: PerCpuArray<&mut MapData, u64> = PerCpuArray::try_from(map).ok()?;
        Some(counters.get(&0, 0).ok()?.iter().sum())
    };
    count().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_a_moment_both_are_taken() {
        let filter = |modes, own: &[([u8; 16], u32)], pods: &[([u8; 4], u8)]| Filter {
            config: Config {
                modes,
                ..Config::default()
            },
            own: own.iter().copied().collect(),
            pods_v4: pods.iter().copied().collect(),
            stations: BTreeSet::from([[modes as u8; 8]]),
            ..Filter::default()
        };
        let mut told = filter(
            VXLAN,
            &[([1; 16], TUNNEL_END), ([2; 16], EGRESS)],
            &[([9; 4], 24)],
        );
        let mut next = filter(
            MASQUERADE,
            &[([1; 16], EGRESS), ([3; 16], EGRESS)],
            &[([8; 4], 24)],
        );
        next.config.ports_low = 7;
        told.config.vxlan_port = [0x12, 0xb5];
        told.config.ports_low = 9;
        next.keep(&told);
        let mut both = filter(
            VXLAN | MASQUERADE,
            &[
                ([1; 16], TUNNEL_END | EGRESS),
                ([2; 16], EGRESS),
                ([3; 16], EGRESS),
            ],
            &[([8; 4], 24), ([9; 4], 24)],
        );
        both.config.ports_low = 7;
        both.config.vxlan_port = [0x12, 0xb5];
        both.stations = BTreeSet::from([[VXLAN as u8; 8], [MASQUERADE as u8; 8]]);
        assert_eq!(next, both);
    }
}
