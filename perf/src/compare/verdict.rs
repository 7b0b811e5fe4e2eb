//! Who is held against whom, and what the bars say.

use crate::compare::document::{Outcome, SubjectResult, Verdict};
use crate::scenario::{Bar, Figure};
use crate::stats::{Median, ratios};
use crate::subject::{Kind, Topology};

/// Who is compared with whom: Spinlane with every peer; without Spinlane the
/// first subject with the others; each only with those of its own topology. A
/// proxy is held against `linux-routed`, which is the same without its rules.
fn couples(subjects: &[Kind]) -> Vec<(Kind, Kind)> {
    let mut couples = Vec::new();
    for topology in Topology::ALL {
        if topology == Topology::Service {
            continue;
        }
        let alike: Vec<Kind> = subjects
            .iter()
            .copied()
            .filter(|kind| kind.topology() == topology)
            .collect();
        let mut firsts: Vec<Kind> = alike.iter().copied().filter(|k| k.is_ours()).collect();
        if firsts.is_empty() {
            firsts.extend(alike.first());
        }
        for first in &firsts {
            let peers = alike.iter().filter(|peer| !firsts.contains(peer));
            couples.extend(peers.map(|peer| (*first, *peer)));
        }
    }
    if subjects.contains(&Kind::LinuxRouted) {
        let proxies = subjects
            .iter()
            .filter(|kind| kind.topology() == Topology::Service);
        couples.extend(proxies.map(|proxy| (*proxy, Kind::LinuxRouted)));
    }
    couples
}

impl Outcome {
    /// Sums up every subject's samples and judges them.
    pub(crate) fn judge(&mut self, subjects: &[Kind]) {
        for result in self.results.values_mut() {
            result.sum_up();
        }
        self.verdicts.clear();
        let couples = couples(subjects);
        for figure in self.scenario.figures() {
            for (subject, peer) in &couples {
                self.verdicts.extend(self.ratio(&figure, *subject, *peer));
            }
        }
        self.verdicts.extend(self.own_bar());
    }

    fn figures_of(&self, kind: Kind, name: &str) -> Vec<f64> {
        self.results
            .get(kind.name())
            .map(|result: &SubjectResult| result.figures(name))
            .unwrap_or_default()
    }

    fn ratio(&self, figure: &Figure, subject: Kind, peer: Kind) -> Option<Verdict> {
        let median = Median::of(&ratios(
            &self.figures_of(subject, figure.name),
            &self.figures_of(peer, figure.name),
        ))?;
        let bar = subject
            .has_bars()
            .then(|| self.scenario.bar(figure, peer))
            .flatten();
        Some(Verdict {
            figure: figure.name.to_owned(),
            title: figure.title.to_owned(),
            unit: figure.unit.to_owned(),
            better: figure.better,
            subject: subject.name().to_owned(),
            peer: Some(peer.name().to_owned()),
            median,
            bar,
            pass: judged(bar, &median),
        })
    }

    fn own_bar(&self) -> Option<Verdict> {
        let (figure, bar) = self.scenario.own_bar()?;
        let median = Median::of(&self.figures_of(Kind::Spinlane, figure.name))?;
        Some(Verdict {
            figure: figure.name.to_owned(),
            title: figure.title.to_owned(),
            unit: figure.unit.to_owned(),
            better: figure.better,
            subject: Kind::Spinlane.name().to_owned(),
            peer: None,
            median,
            bar: Some(bar),
            pass: judged(Some(bar), &median),
        })
    }
}

/// Whether the bar is reached; nothing is said of it when there were too few
/// rounds for an interval of 95 %.
fn judged(bar: Option<Bar>, median: &Median) -> Option<bool> {
    bar.filter(|_| median.is_certain())
        .map(|bar| bar.passes(median.interval))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::scenario::{PER_CPU_SECOND, Sample, Scenario};

    #[test]
    fn spinlane_is_compared_with_every_peer_of_its_kind() {
        use Kind::{
            IptablesProxy, LinuxBridge, LinuxRouted, LinuxVxlan, OvsAfxdp, OvsAfxdpVxlan, Spinlane,
            SpinlaneBusy,
        };
        assert_eq!(
            couples(&[LinuxBridge, SpinlaneBusy, Spinlane, OvsAfxdp]),
            [
                (SpinlaneBusy, LinuxBridge),
                (SpinlaneBusy, OvsAfxdp),
                (Spinlane, LinuxBridge),
                (Spinlane, OvsAfxdp)
            ]
        );
        assert_eq!(couples(&[LinuxBridge, OvsAfxdp]), [(LinuxBridge, OvsAfxdp)]);
        assert_eq!(couples(&[Spinlane, SpinlaneBusy]), []);
        assert_eq!(
            couples(&[
                Spinlane,
                LinuxRouted,
                IptablesProxy,
                LinuxVxlan,
                OvsAfxdpVxlan
            ]),
            [
                (Spinlane, LinuxRouted),
                (LinuxVxlan, OvsAfxdpVxlan),
                (IptablesProxy, LinuxRouted)
            ]
        );
    }

    fn result(values: &[f64]) -> SubjectResult {
        SubjectResult {
            samples: values
                .iter()
                .map(|value| Sample {
                    value: *value,
                    details: BTreeMap::from([(PER_CPU_SECOND.to_owned(), value / 2.0)]),
                    cores_busy: vec![0.5, *value],
                    latency: None,
                })
                .collect(),
            ..SubjectResult::default()
        }
    }

    fn outcome(ours: &[f64], bridge: &[f64]) -> Outcome {
        let scenario = Scenario::Frames64;
        let mut outcome = Outcome {
            scenario,
            unit: scenario.unit().to_owned(),
            better: scenario.better(),
            results: BTreeMap::from([
                ("spinlane".to_owned(), result(ours)),
                ("linux-bridge".to_owned(), result(bridge)),
            ]),
            verdicts: Vec::new(),
        };
        outcome.judge(&[Kind::Spinlane, Kind::LinuxBridge]);
        outcome
    }

    #[test]
    fn a_bar_is_passed_by_the_worse_end_of_the_interval() {
        let bridge = [2.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0];
        let low = outcome(&[3.0, 1.7, 6.0, 4.0, 4.0, 4.0, 4.0], &bridge);
        let [rate, per_cpu] = &low.verdicts[..] else {
            panic!("{:?}", low.verdicts)
        };
        assert_eq!(rate.median.value, 2.0);
        assert_eq!(rate.median.interval, (1.5, 3.0));
        // 1.6 is asked for, and the median itself would be enough.
        assert_eq!(rate.pass, Some(false));
        assert_eq!(per_cpu.figure, PER_CPU_SECOND);
        assert_eq!(per_cpu.median.interval, (1.5, 3.0));
        assert_eq!(per_cpu.pass, Some(true), "1.0 is asked for");
        let high = outcome(&[3.2, 1.7, 6.0, 4.0, 4.0, 4.0, 4.0], &bridge);
        assert_eq!(high.verdicts[0].pass, Some(true));
        let few = outcome(&[6.0; 5], &[2.0; 5]);
        assert_eq!(few.verdicts[0].pass, None, "five rounds say nothing");
    }

    #[test]
    fn results_are_summed_up() {
        let outcome = outcome(&[3.0, 1.0, 6.0], &[2.0, 1.0, 2.0]);
        let spinlane = &outcome.results["spinlane"];
        assert_eq!(spinlane.median.unwrap().value, 3.0);
        assert_eq!(spinlane.figure(PER_CPU_SECOND).unwrap().value, 1.5);
        assert_eq!(spinlane.figure("absent"), None);
        assert_eq!(spinlane.cores_busy(), [0.5, 3.0]);
    }

    #[test]
    fn a_figure_may_have_a_bar_of_its_own() {
        let mut samples = result(&[10.0; 7]);
        for (number, sample) in samples.samples.iter_mut().enumerate() {
            let again = if number == 3 { 1.0 } else { 0.0 };
            sample.details.insert("retransmits".to_owned(), again);
        }
        let mut outcome = Outcome {
            scenario: Scenario::Tcp,
            unit: "bit/s".to_owned(),
            better: Scenario::Tcp.better(),
            results: BTreeMap::from([("spinlane".to_owned(), samples)]),
            verdicts: Vec::new(),
        };
        outcome.judge(&[Kind::Spinlane]);
        let [verdict] = &outcome.verdicts[..] else {
            panic!("{:?}", outcome.verdicts)
        };
        assert_eq!((verdict.peer.as_ref(), verdict.pass), (None, Some(false)));
    }
}
