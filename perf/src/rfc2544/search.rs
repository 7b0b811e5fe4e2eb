//! The search for throughput: several loss ratios at once, in trials that
//! grow longer, after the MLRsearch draft (draft-ietf-bmwg-mlrsearch).
//!
//! It is pure: it says which trial to make next and takes its outcome. A load
//! is a *lower bound* of a goal when enough trials at it kept the goal's loss
//! ratio, an *upper bound* when too many did not. One bad trial among several
//! does not decide: the goal's exceed ratio says how many may be bad.

use serde::Serialize;

/// Length of the trials of each phase, as a share of the final one.
const PHASES: [f64; 3] = [0.25, 0.5, 1.0];
/// How much wider than the goal the interval may be after each phase.
const WIDENING: [f64; 3] = [4.0, 2.0, 1.0];
/// Trials of a search at most; one that needs more is irregular.
const MAX_TRIALS: usize = 60;

/// What is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goal {
    /// Name in reports.
    pub name: &'static str,
    /// Loss ratio that a good trial keeps.
    pub loss_ratio: f64,
    /// Share of the time that may be in bad trials.
    pub exceed_ratio: f64,
    /// Seconds of a full trial.
    pub trial_seconds: f64,
    /// Seconds of full trials that decide about a load.
    pub sum_seconds: f64,
    /// Width of the final interval, relative to its upper end.
    pub width: f64,
}

/// A trial that was made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Intended packets a second.
    pub load: f64,
    /// Intended seconds.
    pub seconds: f64,
    /// Share of the intended packets that did not arrive.
    pub loss_ratio: f64,
}

/// What is known of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The goal is kept.
    Lower,
    /// The goal is missed.
    Upper,
    /// More trials are needed.
    Undecided,
}

/// What a goal came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Throughput {
    /// The goal.
    pub goal: Goal,
    /// Highest load that keeps it and has no missing one below; packets a
    /// second.
    pub lower: Option<f64>,
    /// Lowest load that misses it; none when not even the most does.
    pub upper: Option<f64>,
    /// What is forwarded at the lower bound in the worst of the trials that
    /// count (conditional throughput); packets a second.
    pub conditional: Option<f64>,
}

/// A search that goes on.
#[derive(Debug, Clone)]
pub struct Search {
    goals: Vec<Goal>,
    /// Bounds of loads, in packets a second.
    least: f64,
    most: f64,
    trials: Vec<Trial>,
}

impl Search {
    /// For `goals`, the loosest first, between two loads.
    #[must_use]
    pub fn new(goals: &[Goal], least: f64, most: f64) -> Search {
        Search {
            goals: goals.to_vec(),
            least: least.min(most),
            most,
            trials: Vec::new(),
        }
    }

    /// Takes the outcome of a trial.
    pub fn add(&mut self, trial: Trial) {
        self.trials.push(trial);
    }

    /// The trials so far.
    #[must_use]
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// Load and seconds of the next trial; `None` when all goals are found.
    #[must_use]
    pub fn next(&self) -> Option<(f64, f64)> {
        if self.trials.len() >= MAX_TRIALS {
            return None;
        }
        (0..PHASES.len()).find_map(|phase| {
            self.goals.iter().find_map(|goal| {
                let goal = in_phase(goal, phase);
                let load = self.next_load(&goal)?;
                Some((load, goal.trial_seconds))
            })
        })
    }

    /// Whether it ended without finding every goal.
    #[must_use]
    pub fn is_irregular(&self) -> bool {
        self.trials.len() >= MAX_TRIALS
    }

    /// The load to try for a goal of a phase, if it is not found yet.
    fn next_load(&self, goal: &Goal) -> Option<f64> {
        let (lower, upper) = self.bounds(goal);
        let candidate = match (lower, upper) {
            (Some(lower), Some(upper)) => {
                if upper - lower <= goal.width * upper * 1.000_001 {
                    return None;
                }
                f64::midpoint(lower, upper)
            }
            (Some(lower), None) => {
                if lower >= self.most {
                    return None;
                }
                self.missed_above(goal, lower).unwrap_or(self.most)
            }
            (None, Some(upper)) => {
                if upper <= self.least {
                    return None;
                }
                let kept = self.kept(goal).filter(|kept| *kept < upper);
                kept.unwrap_or(upper / 2.0).max(self.least)
            }
            (None, None) => self.kept(goal).unwrap_or(self.most),
        };
        // A load that was begun is decided before another is.
        let inside = |load: &f64| {
            lower.is_none_or(|lower| *load > lower) && upper.is_none_or(|upper| *load < upper)
        };
        self.loads()
            .find(|load| inside(load) && self.is_begun(goal, *load))
            .or(Some(candidate))
    }

    /// The lowest load above `lower` at which shorter trials missed the goal.
    fn missed_above(&self, goal: &Goal, lower: f64) -> Option<f64> {
        self.trials
            .iter()
            .filter(|trial| trial.load > lower && trial.loss_ratio > goal.loss_ratio)
            .map(|trial| trial.load)
            .min_by(f64::total_cmp)
    }

    /// The highest load at which shorter trials kept the goal; without one
    /// what was forwarded at the lowest load.
    fn kept(&self, goal: &Goal) -> Option<f64> {
        let kept = self
            .trials
            .iter()
            .filter(|trial| trial.loss_ratio <= goal.loss_ratio)
            .map(|trial| trial.load)
            .filter(|load| self.classify(goal, *load) != Bound::Upper)
            .max_by(f64::total_cmp);
        kept.or_else(|| {
            let lowest = self
                .trials
                .iter()
                .min_by(|a, b| a.load.total_cmp(&b.load))?;
            Some(lowest.load * (1.0 - lowest.loss_ratio) * (1.0 - goal.width))
        })
        .map(|load| load.clamp(self.least, self.most))
    }

    /// Whether full trials were made at a load without deciding.
    fn is_begun(&self, goal: &Goal, load: f64) -> bool {
        let full = |trial: &&Trial| trial.load == load && trial.seconds >= goal.trial_seconds;
        self.trials.iter().any(|trial| full(&trial))
            && self.classify(goal, load) == Bound::Undecided
    }

    fn loads(&self) -> impl Iterator<Item = f64> {
        let mut loads: Vec<f64> = self.trials.iter().map(|trial| trial.load).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        loads.into_iter()
    }

    /// Relevant bounds: the lowest upper one, and the highest lower one below.
    fn bounds(&self, goal: &Goal) -> (Option<f64>, Option<f64>) {
        let upper = self
            .loads()
            .find(|load| self.classify(goal, *load) == Bound::Upper);
        let lower = self
            .loads()
            .filter(|load| upper.is_none_or(|upper| *load < upper))
            .filter(|load| self.classify(goal, *load) == Bound::Lower)
            .max_by(f64::total_cmp);
        (lower, upper)
    }

    /// What the trials at a load say (the draft's load classification).
    #[must_use]
    pub fn classify(&self, goal: &Goal, load: f64) -> Bound {
        let (mut full_good, mut full_bad, mut short_good, mut short_bad) = (0.0, 0.0, 0.0, 0.0);
        for trial in self.trials.iter().filter(|trial| trial.load == load) {
            let good = trial.loss_ratio <= goal.loss_ratio;
            let full = trial.seconds >= goal.trial_seconds;
            *match (full, good) {
                (true, true) => &mut full_good,
                (true, false) => &mut full_bad,
                (false, true) => &mut short_good,
                (false, false) => &mut short_bad,
            } += trial.seconds;
        }
        // Short bad trials count as far as short good ones do not balance them.
        let balancing = short_good * goal.exceed_ratio / (1.0 - goal.exceed_ratio);
        let bad: f64 = full_bad + f64::max(0.0, short_bad - balancing);
        let measured = bad + full_good;
        let whole = measured.max(goal.sum_seconds);
        let missing = whole - measured;
        if bad / whole > goal.exceed_ratio {
            Bound::Upper
        } else if (bad + missing) / whole <= goal.exceed_ratio {
            Bound::Lower
        } else {
            Bound::Undecided
        }
    }

    /// What is forwarded at a load: the loss is that of the worst trial of
    /// those that have to be good (the draft's conditional throughput).
    fn conditional(&self, goal: &Goal, load: f64) -> f64 {
        let mut full: Vec<&Trial> = self
            .trials
            .iter()
            .filter(|trial| trial.load == load && trial.seconds >= goal.trial_seconds)
            .collect();
        full.sort_by(|a, b| a.loss_ratio.total_cmp(&b.loss_ratio));
        let measured: f64 = full.iter().map(|trial| trial.seconds).sum();
        let mut remaining = measured.max(goal.sum_seconds) * (1.0 - goal.exceed_ratio);
        let mut loss = None;
        for trial in full {
            if loss.is_some() && remaining <= 0.0 {
                break;
            }
            loss = Some(trial.loss_ratio);
            remaining -= trial.seconds;
        }
        let loss = if remaining > 0.0 {
            1.0
        } else {
            loss.unwrap_or(1.0)
        };
        load * (1.0 - loss)
    }

    /// What has been found so far.
    #[must_use]
    pub fn found(&self) -> Vec<Throughput> {
        self.goals
            .iter()
            .map(|goal| {
                let (lower, upper) = self.bounds(goal);
                Throughput {
                    goal: *goal,
                    lower,
                    upper,
                    conditional: lower.map(|load| self.conditional(goal, load)),
                }
            })
            .collect()
    }
}

/// A goal as a phase searches for it: one shorter trial, a wider interval.
fn in_phase(goal: &Goal, phase: usize) -> Goal {
    if phase + 1 == PHASES.len() {
        return *goal;
    }
    let seconds = goal.trial_seconds * PHASES[phase];
    Goal {
        trial_seconds: seconds,
        sum_seconds: seconds,
        width: goal.width * WIDENING[phase],
        ..*goal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NDR: Goal = Goal {
        name: "NDR",
        loss_ratio: 0.0,
        exceed_ratio: 0.5,
        trial_seconds: 1.0,
        sum_seconds: 3.0,
        width: 0.01,
    };
    const PDR: Goal = Goal {
        name: "PDR",
        loss_ratio: 0.005,
        ..NDR
    };

    /// Searches on a device that loses what `loss` says.
    fn search(loss: impl Fn(f64, usize) -> f64) -> Search {
        let mut search = Search::new(&[PDR, NDR], 1_000.0, 1_000_000.0);
        while let Some((load, seconds)) = search.next() {
            assert!((1_000.0..=1_000_000.0).contains(&load), "{load}");
            let loss_ratio = loss(load, search.trials().len());
            search.add(Trial {
                load,
                seconds,
                loss_ratio,
            });
        }
        search
    }

    fn over(load: f64, capacity: f64) -> f64 {
        (1.0 - capacity / load).max(0.0)
    }

    #[test]
    fn finds_what_a_steady_device_carries() {
        for capacity in [1_500.0, 77_777.0, 432_100.0, 999_000.0] {
            let search = search(|load, _| over(load, capacity));
            assert!(!search.is_irregular(), "{capacity}");
            let [pdr, ndr] = search.found()[..] else {
                panic!("two goals")
            };
            let at = ndr.lower.unwrap();
            assert!(
                (capacity * 0.99..=capacity).contains(&at),
                "{capacity}: {ndr:?}"
            );
            assert_eq!(ndr.conditional, ndr.lower, "no loss at it");
            // A load that loses 0.5 % is 1 / 0.995 of the capacity.
            let partial = capacity / 0.995;
            let at = pdr.lower.unwrap();
            assert!(
                (partial * 0.99..=partial).contains(&at),
                "{capacity}: {pdr:?}"
            );
            assert!(pdr.conditional <= pdr.lower);
            assert!(search.trials().len() < 50, "{}", search.trials().len());
        }
    }

    #[test]
    fn a_device_without_limits_is_the_generators_limit() {
        let search = search(|_, _| 0.0);
        for found in search.found() {
            assert_eq!((found.lower, found.upper), (Some(1_000_000.0), None));
        }
    }

    #[test]
    fn a_device_that_carries_nothing_has_no_throughput() {
        let search = search(|_, _| 1.0);
        for found in search.found() {
            assert_eq!((found.lower, found.conditional), (None, None));
        }
        assert!(!search.is_irregular());
    }

    #[test]
    fn one_bad_trial_in_five_does_not_decide() {
        let noisy = |load, number: usize| {
            let hiccup = if number % 5 == 4 { 0.001 } else { 0.0 };
            f64::max(over(load, 500_000.0), hiccup)
        };
        let found = search(noisy).found();
        let ndr = found[1].lower.unwrap();
        assert!(ndr > 300_000.0 && ndr <= 500_000.0, "{found:?}");
    }

    /// Worked by hand from the draft's definitions.
    #[test]
    fn loads_are_classified_as_the_draft_says() {
        let mut search = Search::new(&[NDR], 1.0, 100.0);
        let add = |search: &mut Search, seconds, loss_ratio| {
            search.add(Trial {
                load: 10.0,
                seconds,
                loss_ratio,
            });
            search.classify(&NDR, 10.0)
        };
        assert_eq!(add(&mut search, 1.0, 0.0), Bound::Undecided);
        assert_eq!(add(&mut search, 1.0, 0.1), Bound::Undecided);
        // Two good seconds of three: at most a third can be bad.
        assert_eq!(add(&mut search, 1.0, 0.0), Bound::Lower);
        // The worst of the good half of three seconds lost nothing.
        assert_eq!(search.conditional(&NDR, 10.0), 10.0);
        let mut short = Search::new(&[NDR], 1.0, 100.0);
        // A good short trial balances a bad one, and says nothing more.
        assert_eq!(add(&mut short, 0.5, 0.2), Bound::Undecided);
        assert_eq!(add(&mut short, 0.5, 0.0), Bound::Undecided);
        for _ in 0..2 {
            add(&mut short, 1.0, 0.3);
        }
        assert_eq!(short.classify(&NDR, 10.0), Bound::Upper);
        assert_eq!(short.conditional(&NDR, 10.0), 7.0);
    }
}
