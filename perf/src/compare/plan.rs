//! Who does what, how often.

use std::time::Duration;

use crate::scenario::{Run, Scenario};
use crate::subject::Kind;

/// A scenario and who takes turns in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What.
    pub scenario: Scenario,
    /// Who, in the order of a round.
    pub subjects: Vec<Kind>,
}

/// What to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// In their order.
    pub entries: Vec<Entry>,
    /// Rounds of each.
    pub pairs: usize,
    /// How.
    pub run: Run,
    /// How many services a proxy has.
    pub services: usize,
}

/// What a measurement takes beside its own time: a subject that goes on, pings
/// through it, a sink, a device's offloads.
const AROUND: Duration = Duration::from_millis(150);
/// What it takes to set a subject up and to remove it again, on the average.
const SETTING_UP: Duration = Duration::from_millis(800);

/// Who is measured by every scenario of the standard comparison.
const CORE: [Kind; 3] = [Kind::Spinlane, Kind::LinuxBridge, Kind::OvsAfxdp];
/// Who else is measured by a few.
const FURTHER: [Kind; 5] = [
    Kind::LinuxRouted,
    Kind::TcRedirect,
    Kind::TestpmdAfxdp,
    Kind::NftProxy,
    Kind::IptablesProxy,
];
/// Over a tunnel, by the same few.
const TUNNELLED: [Kind; 3] = [Kind::SpinlaneVxlan, Kind::LinuxVxlan, Kind::OvsAfxdpVxlan];
/// Over a tunnel, for scale.
const OFFLOADED: [Kind; 1] = [Kind::LinuxVxlanOffload];

/// To a host outside.
const MASQUERADED: [Kind; 2] = [Kind::SpinlaneMasquerade, Kind::NftMasquerade];
/// To behind a pod that forwards for others.
const FORWARDED: [Kind; 2] = [Kind::SpinlaneForwarding, Kind::LinuxBridgeForwarding];

impl Plan {
    /// Every subject by every scenario that suits it.
    #[must_use]
    pub fn crossed(subjects: &[Kind], scenarios: &[Scenario]) -> Vec<Entry> {
        scenarios
            .iter()
            .map(|scenario| Entry {
                scenario: *scenario,
                subjects: subjects
                    .iter()
                    .copied()
                    .filter(|kind| scenario.suits(*kind))
                    .collect(),
            })
            .filter(|entry| !entry.subjects.is_empty())
            .collect()
    }

    /// What `make bench` runs: the bars' scenarios by the whole field, the
    /// rest by those that bars are about.
    #[must_use]
    pub fn standard() -> Vec<Entry> {
        let of = |groups: &[&[Kind]]| groups.concat();
        let whole = of(&[&CORE, &FURTHER, &TUNNELLED]);
        let groups: [(Vec<Kind>, &[Scenario]); 8] = [
            (whole.clone(), &[Scenario::Frames64]),
            (of(&[&whole, &OFFLOADED, &FORWARDED]), &[Scenario::Tcp]),
            (whole, &[Scenario::UdpRr]),
            (of(&[&CORE, &TUNNELLED]), &[Scenario::TcpRr]),
            (
                of(&[&CORE]),
                &[
                    Scenario::UdpRrLoad,
                    Scenario::TcpRrLoad,
                    Scenario::Frames512,
                    Scenario::Frames1400,
                    Scenario::Frames64Flows,
                    Scenario::Frames64FiftyThousandFlows,
                    Scenario::Churn,
                ],
            ),
            (of(&[&CORE, &MASQUERADED]), &[Scenario::Crr]),
            (of(&[&MASQUERADED]), &[Scenario::NewUdp, Scenario::NewTcp]),
            (
                of(&[&TUNNELLED]),
                &[Scenario::VxlanEncap, Scenario::VxlanDecap],
            ),
        ];
        let mut entries: Vec<Entry> = groups
            .iter()
            .flat_map(|(subjects, scenarios)| Self::crossed(subjects, scenarios))
            .collect();
        entries.extend(Self::crossed(
            &[Kind::Spinlane, Kind::LinuxBridge],
            &[Scenario::Pods],
        ));
        entries
    }

    /// Everybody who takes part, each once, in the order of appearance.
    #[must_use]
    pub fn subjects(&self) -> Vec<Kind> {
        let mut all = Vec::new();
        for kind in self.entries.iter().flat_map(|entry| &entry.subjects) {
            if !all.contains(kind) {
                all.push(*kind);
            }
        }
        all
    }

    /// Steps that setting up and running count on a
    /// [`crate::progress::Progress`].
    #[must_use]
    pub fn steps(&self) -> u64 {
        (self.subjects().len() as u64) + self.measurements()
    }

    /// Measurements in all.
    #[must_use]
    pub fn measurements(&self) -> u64 {
        let turns: usize = self.entries.iter().map(|entry| entry.subjects.len()).sum();
        (turns * self.pairs) as u64
    }

    /// How long it takes, about, subjects set up and removed included.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let round: Duration = self
            .entries
            .iter()
            .map(|entry| {
                let each = entry.scenario.takes(&self.run) + AROUND;
                each * entry.subjects.len() as u32
            })
            .sum();
        round * self.pairs as u32 + SETTING_UP * self.subjects().len() as u32
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::subject::Topology;

    #[test]
    fn the_standard_comparison_has_every_bar() {
        let standard = Plan::standard();
        let takes_part = |scenario: Scenario, kind: Kind| {
            standard
                .iter()
                .any(|entry| entry.scenario == scenario && entry.subjects.contains(&kind))
        };
        for scenario in Scenario::value_variants() {
            for figure in scenario.figures() {
                for peer in Kind::value_variants() {
                    if scenario.bar(&figure, *peer).is_some() {
                        assert!(takes_part(*scenario, *peer), "{figure:?} {peer:?}");
                        let ours = match peer.topology() {
                            Topology::OneNode => Kind::Spinlane,
                            Topology::TwoNodes => Kind::SpinlaneVxlan,
                            Topology::Outside => Kind::SpinlaneMasquerade,
                            Topology::Forwarded => Kind::SpinlaneForwarding,
                            Topology::Service => panic!("{figure:?} has a bar against {peer:?}"),
                        };
                        assert!(takes_part(*scenario, ours), "{figure:?} {ours:?}");
                        assert!(ours.has_bars(), "{ours:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn nobody_is_asked_for_what_does_not_suit() {
        let entries = Plan::crossed(
            &[Kind::NftProxy, Kind::OvsAfxdp],
            &[Scenario::Churn, Scenario::Pods],
        );
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].subjects, [Kind::OvsAfxdp]);
    }
}
