//! Subjects that are set up and take turns.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::compare::document::{Comparison, Outcome, Participant, SCHEMA_VERSION};
use crate::compare::machine::{Machine, commit};
use crate::compare::plan::Plan;
use crate::cpu;
use crate::measure::MeasureError;
use crate::progress::Progress;
use crate::scenario::{Run, Sample, Scenario};
use crate::stop::Stop;
use crate::subject::{Kind, LANE_CORE, SENDER_CORE, Subject, Topology};

/// What a lane or a polling thread needs to find its pace after a pause.
const SETTLE: Duration = Duration::from_millis(100);

/// Details of every sample: [`cpu::step_ns`] of a core just before it.
pub const CORE_SPEEDS: [(&str, usize); 2] = [
    ("sender_core_step_ns", SENDER_CORE),
    ("lane_core_step_ns", LANE_CORE),
];

/// Subjects that are set up, each paused unless it is measured.
pub struct Field {
    subjects: Vec<Box<dyn Subject>>,
    participants: Vec<Participant>,
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.kinds()).finish()
    }
}

impl Field {
    /// Sets up every subject. One that is not on this machine, or that cannot
    /// be set up, is named missing with the reason, and the others go on.
    ///
    /// # Errors
    /// On Ctrl-C.
    pub fn set_up(plan: &Plan, progress: &Progress) -> Result<Field, MeasureError> {
        let mut field = Field::of(Vec::new());
        for kind in plan.subjects() {
            if crate::stop::interrupted() {
                return Err(MeasureError::Interrupted);
            }
            progress.says(&format!("setting up {}", kind.name()));
            match kind.set_up(plan.services) {
                Ok(subject) => field.add(subject),
                Err(MeasureError::Interrupted) => return Err(MeasureError::Interrupted),
                Err(error) => {
                    let reason = match error {
                        MeasureError::Missing { reason, .. } => reason,
                        other => format!("it could not be set up: {other}"),
                    };
                    progress.note(&format!("{} is missing: {reason}", kind.name()));
                    field.participants.push(Participant {
                        name: kind.name().to_owned(),
                        missing: Some(reason),
                        settings: Vec::new(),
                    });
                }
            }
            progress.step();
        }
        Ok(field)
    }

    /// Subjects that are set up already.
    #[must_use]
    pub fn of(subjects: Vec<Box<dyn Subject>>) -> Field {
        let mut field = Field {
            subjects: Vec::new(),
            participants: Vec::new(),
        };
        for subject in subjects {
            field.add(subject);
        }
        field
    }

    /// Lets a subject go on outside of measurements.
    pub fn resume(&mut self, kind: Kind) -> Option<&dyn Subject> {
        let at = self.subjects.iter().position(|s| s.kind() == kind)?;
        self.subjects[at].resume();
        Some(self.subjects[at].as_ref())
    }

    /// Adds a subject that is set up, and pauses it.
    fn add(&mut self, mut subject: Box<dyn Subject>) {
        subject.pause();
        self.participants.push(Participant {
            name: subject.kind().name().to_owned(),
            missing: None,
            settings: subject.settings().to_vec(),
        });
        self.subjects.push(subject);
    }

    fn kinds(&self) -> Vec<Kind> {
        self.subjects.iter().map(|subject| subject.kind()).collect()
    }

    /// Runs the plan in turns. Ctrl-C ends it early: what was measured until
    /// then is the result, marked as not complete. A subject that fails a
    /// scenario is left out of its other rounds, and the result says why.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    pub fn run(
        &mut self,
        plan: &Plan,
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Comparison, MeasureError> {
        let began = Instant::now();
        let mut comparison = Comparison {
            schema_version: SCHEMA_VERSION,
            started_at_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            took_s: 0.0,
            complete: true,
            commit: commit(),
            machine: Machine::look()?,
            pairs: plan.pairs,
            seconds: plan.run.duration.as_secs_f64(),
            warm_up_seconds: plan.run.warm_up.as_secs_f64(),
            v6: plan.run.v6,
            sender_core: SENDER_CORE,
            lane_core: LANE_CORE,
            sockets_pinned: plan.run.pin_sockets,
            method: method(plan),
            subjects: self.participants.clone(),
            scenarios: Vec::new(),
            micro: None,
        };
        let mut outcomes: Vec<Outcome> = plan.entries.iter().map(Outcome::nothing_yet).collect();
        // Every scenario once, then again: what changes in minutes is in the
        // differences of a scenario's rounds, and so in its interval.
        'rounds: for round in 1..=plan.pairs {
            for (outcome, entry) in outcomes.iter_mut().zip(&plan.entries) {
                for kind in &entry.subjects {
                    if !self.take_turn(outcome, (*kind, round), (plan, progress, stop)) {
                        comparison.complete = false;
                        break 'rounds;
                    }
                }
            }
        }
        for (outcome, entry) in outcomes.iter_mut().zip(&plan.entries) {
            outcome.judge(&entry.subjects);
        }
        outcomes.retain(|outcome| !outcome.results.is_empty());
        comparison.scenarios = outcomes;
        comparison.took_s = began.elapsed().as_secs_f64();
        Ok(comparison)
    }

    /// One more sample of a subject, or why there is none; `false` when it was
    /// interrupted.
    fn take_turn(
        &mut self,
        outcome: &mut Outcome,
        (kind, round): (Kind, usize),
        (plan, progress, stop): (&Plan, &Progress, &Stop),
    ) -> bool {
        let Some(subject) = self.subjects.iter_mut().find(|s| s.kind() == kind) else {
            progress.step(); // named missing already
            return !stop.is_set();
        };
        let (scenario, name) = (outcome.scenario, kind.name());
        let result = outcome.results.entry(name.to_owned()).or_default();
        if result.failure.is_none() {
            progress.says(&format!(
                "{} {name} {round}/{}",
                scenario.name(),
                plan.pairs
            ));
            match measure(scenario, subject.as_mut(), &plan.run, stop) {
                Ok(sample) => result.samples.push(sample),
                Err(MeasureError::Interrupted) => return false,
                Err(error) => {
                    progress.note(&format!("{} {name}: {error}", scenario.name()));
                    result.failure = Some(error.to_string());
                }
            }
        }
        progress.step();
        !stop.is_set()
    }
}

/// One measurement of one subject, which runs for as long as that takes.
fn measure(
    scenario: Scenario,
    subject: &mut dyn Subject,
    run: &Run,
    stop: &Stop,
) -> Result<Sample, MeasureError> {
    let speeds = core_speeds();
    subject.resume();
    let mut measured = || {
        if scenario.fills_connections() {
            subject.forget_connections()?;
        }
        if !subject.pids().is_empty() {
            thread::sleep(SETTLE);
            subject.reach()?;
        }
        scenario.measure(&*subject, run, stop)
    };
    let result = measured();
    subject.pause();
    if stop.is_set() {
        return Err(MeasureError::Interrupted);
    }
    let mut sample = result?;
    sample.details.extend(speeds);
    Ok(sample)
}

/// How fast the cores are that generators and lanes use, while every subject
/// stands still. A machine without one of them has nothing to say of it.
fn core_speeds() -> Vec<(String, f64)> {
    CORE_SPEEDS
        .into_iter()
        .filter_map(|(name, core)| Some((name.to_owned(), cpu::step_ns(core).ok()?)))
        .collect()
}

/// What makes it fair, in words.
fn method(plan: &Plan) -> Vec<String> {
    let ends = if plan.run.pin_sockets {
        format!("sending and asking sockets on core {SENDER_CORE}")
    } else {
        "sockets wherever the scheduler puts them, as in pods".to_owned()
    };
    let mut notes = vec![
        format!(
            "Subjects take turns, A B A B, {} rounds; each round gives one ratio. A round goes \
             through all scenarios, so the rounds of one are as far apart as the run is long. \
             Verdicts are the ratios' median with the interval of order statistics that holds it \
             with 95 %, and, from nine rounds on, the median of another such run with 95 %; a bar \
             passes by the interval's worse end.",
            plan.pairs
        ),
        "Who is not measured stands still (SIGSTOP).".to_owned(),
        "All have the same two pods: a namespace each, a veth with MTU 1500 (1450 where a tunnel \
         needs room), IPv4 and IPv6."
            .to_owned(),
        format!(
            "The generator sends from core {SENDER_CORE}; lanes and polling threads are on core \
             {LANE_CORE} unless a subject's settings say otherwise; {ends}."
        ),
        "Offloads are those that the subject's users run; its settings name them.".to_owned(),
        "One sink for all: a program at tc ingress of the receiving pod, or the process that reads \
         the stream. What a generator claims is no rate."
            .to_owned(),
        "For frames from the in-kernel generator, generic receive offload is on at the host's end \
         of the sending pod's veth, for all alike."
            .to_owned(),
        "How fast both cores are is looked at before every measurement, while all stand still."
            .to_owned(),
        "CPU time is that of all cores, softirqs, generator and receiver included (/proc/stat)."
            .to_owned(),
        format!(
            "Round trips under load run beside {} datagrams a second from another socket.",
            crate::scenario::LOAD_PER_SECOND
        ),
    ];
    let takes_part = |topology: Topology| {
        let subjects = plan.subjects();
        subjects.iter().any(|kind| kind.topology() == topology)
    };
    if takes_part(Topology::TwoNodes) {
        notes.extend(
            [
                "Uplinks between two nodes work as a network card without tunnel offload does: what \
                 leaves was segmented before (TSO, GSO, UDP and tunnel segmentation are off), what comes \
                 may be merged (GRO is on). linux-vxlan-offload is the exception, for scale.",
                "Encapsulation is counted, decapsulation fed, at the far end of the first node's \
                 uplink, past the link's bridge; the second node's switch stands still meanwhile.",
            ]
            .map(str::to_owned),
        );
    }
    if takes_part(Topology::Outside) {
        notes.push(format!(
            "New connections by masquerade are flows of one packet each, sent at full speed to \
             subjects that have just forgotten all others, until {} have come; the host outside \
             counts each flow once, from the first to the last that comes.",
            crate::scenario::BURST
        ));
    }
    if takes_part(Topology::Forwarded) {
        notes.push(
            "A pod that forwards has a namespace behind it, which its kernel translates for (DNAT) \
             over a second veth; the receiver is there."
                .to_owned(),
        );
    }
    notes
}
