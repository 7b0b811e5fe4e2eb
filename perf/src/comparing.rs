//! `compare`, `baseline` and `report`: their arguments, and what is done with
//! a comparison once it is there.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use spinlane_perf::compare::baseline::Baseline;
use spinlane_perf::compare::machine::date;
use spinlane_perf::compare::plan::{Entry, Plan};
use spinlane_perf::compare::{Comparison, Field};
use spinlane_perf::measure::{MeasureError, io_error};
use spinlane_perf::micro;
use spinlane_perf::progress::Progress;
use spinlane_perf::report::{html, markdown, text};
use spinlane_perf::scenario::Scenario;
use spinlane_perf::stop::Stop;
use spinlane_perf::subject::Kind;
use spinlane_perf::terminal::{say, warn};

use crate::args::Measured;
use crate::commands::{run_of, show};
use crate::output::{Output, Reports, check_directory, print, put};

/// Who takes part when only scenarios are named.
const SUBJECTS: [Kind; 4] = [
    Kind::Spinlane,
    Kind::LinuxBridge,
    Kind::OvsAfxdp,
    Kind::SpinlaneBusy,
];
/// What is measured when only subjects are named.
const SCENARIOS: [Scenario; 5] = [
    Scenario::Frames64,
    Scenario::Tcp,
    Scenario::UdpRr,
    Scenario::TcpRr,
    Scenario::Idle,
];
/// What the standard comparison measures of the packet logic by itself.
const MICRO: micro::Plan = micro::Plan {
    only: String::new(),
    rounds: 31,
    with_peer: true,
    with_instructions: false,
};
/// What that takes, about.
const MICRO_TIME: Duration = Duration::from_secs(30);

/// `compare`.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// Who takes part; without subjects and scenarios, the standard comparison
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) subjects: Vec<Kind>,
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) scenarios: Vec<Scenario>,
    /// Rounds; below six there is no 95 % interval, from nine on it also holds
    /// another run's median with 95 %
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) pairs: u16,
    /// Services of nft-proxy and iptables-proxy
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) services: u16,
    #[command(flatten)]
    pub(crate) measured: Measured,
    /// Fail when a bar is missed
    #[arg(long)]
    pub(crate) enforce: bool,
    /// Only say what would be measured, and how long that takes
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) files: Files,
}

/// Where reports go.
#[derive(Debug, Args)]
pub(crate) struct Files {
    #[command(flatten)]
    pub(crate) reports: Reports,
    /// Write DATE-COMMIT.json, .md and .html into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) results: Option<PathBuf>,
}

impl Files {
    /// Whether they will be written.
    pub(crate) fn check(&self) -> Result<(), MeasureError> {
        self.reports.check()?;
        self.results.as_deref().map_or(Ok(()), check_directory)
    }
}

/// `baseline`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing became worse beyond noise, 1 something did or a \
                        file cannot be read, 2 wrong usage."
)]
pub(crate) struct BaselineFiles {
    /// The earlier result of `compare --json`
    pub(crate) before: PathBuf,
    /// The later one
    pub(crate) after: PathBuf,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `report`.
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// A result of `compare --json`
    pub(crate) file: PathBuf,
    /// Print the table of the README instead
    #[arg(long)]
    pub(crate) readme: bool,
    #[command(flatten)]
    pub(crate) files: Files,
}

/// Measures, and writes what came out, also after Ctrl-C.
pub(crate) fn compare(arguments: &Compare, stop: &Stop) -> Result<ExitCode, MeasureError> {
    let plan = plan(arguments)?;
    let is_standard = arguments.subjects.is_empty() && arguments.scenarios.is_empty();
    if arguments.dry_run {
        say(&text::plan(&plan, is_standard.then_some(MICRO_TIME)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut comparison = {
        let progress = Progress::expecting(plan.steps(), plan.estimate());
        let mut field = Field::set_up(&plan, &progress)?;
        field.run(&plan, &progress, stop)?
        // Everything that was set up goes here, before the result is shown.
    };
    if is_standard && comparison.complete {
        match micro::run(&MICRO, stop) {
            Ok(micro) => {
                comparison.complete = micro.is_complete();
                comparison.micro = Some(micro);
            }
            Err(MeasureError::Interrupted) => comparison.complete = false,
            // What took minutes is kept.
            Err(error) => warn(&format!(
                "the packet logic by itself could not be measured: {error}"
            )),
        }
    }
    let written = write(&comparison, &arguments.files);
    print(
        &arguments.output,
        &comparison,
        &text::comparison(&comparison),
    )?;
    written?;
    if !comparison.complete {
        return Err(MeasureError::Partial);
    }
    if !comparison.has_samples() {
        return Err(MeasureError::Unexpected {
            what: "compare".to_owned(),
            detail: "nothing was measured; each subject's line says why".to_owned(),
        });
    }
    Ok(match arguments.enforce && comparison.misses_a_bar() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Every subject by every scenario, and says which do not suit each other.
fn crossed(subjects: &[Kind], scenarios: &[Scenario]) -> Vec<Entry> {
    for scenario in scenarios {
        for kind in subjects.iter().filter(|kind| !scenario.suits(**kind)) {
            let (scenario, kind) = (scenario.name(), kind.name());
            warn(&format!(
                "{scenario} leaves {kind} out, which it does not suit"
            ));
        }
    }
    Plan::crossed(subjects, scenarios)
}

fn plan(arguments: &Compare) -> Result<Plan, MeasureError> {
    let (subjects, scenarios) = (&arguments.subjects[..], &arguments.scenarios[..]);
    let entries = match (subjects, scenarios) {
        ([], []) => Plan::standard(),
        ([], _) => crossed(&SUBJECTS, scenarios),
        (_, []) => crossed(subjects, &SCENARIOS),
        _ => crossed(subjects, scenarios),
    };
    if entries.is_empty() {
        return Err(MeasureError::Unexpected {
            what: "compare".to_owned(),
            detail: "none of the scenarios suits any of the subjects (perf/README.md says what \
                     each is about)"
                .to_owned(),
        });
    }
    Ok(Plan {
        entries,
        pairs: arguments.pairs.into(),
        run: run_of(&arguments.measured),
        services: arguments.services.into(),
    })
}

fn write(comparison: &Comparison, files: &Files) -> Result<(), MeasureError> {
    files.reports.write(
        || markdown::comparison(comparison),
        || html::page(comparison),
    )?;
    if let Some(dir) = &files.results {
        fs::create_dir_all(dir).map_err(io_error(format!("making {}", dir.display())))?;
        let name = format!("{}-{}", date(comparison.started_at_s), comparison.commit);
        let json = serde_json::to_string(comparison).map_err(|error| {
            io_error("writing the result as JSON")(io::Error::other(error.to_string()))
        })?;
        put(&dir.join(format!("{name}.json")), &(json + "\n"))?;
        put(
            &dir.join(format!("{name}.md")),
            &markdown::comparison(comparison),
        )?;
        put(&dir.join(format!("{name}.html")), &html::page(comparison))?;
    }
    Ok(())
}

/// Says what changed from one run to another.
pub(crate) fn baseline(arguments: &BaselineFiles) -> Result<ExitCode, MeasureError> {
    let baseline = Baseline::of(
        &Comparison::read(&arguments.before)?,
        &Comparison::read(&arguments.after)?,
    );
    show(&arguments.output, &baseline, &text::baseline(&baseline))?;
    Ok(match baseline.is_worse() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Shows a result that was kept.
pub(crate) fn report(arguments: &Report) -> Result<(), MeasureError> {
    let comparison = Comparison::read(&arguments.file)?;
    write(&comparison, &arguments.files)?;
    match arguments.readme {
        true => say(markdown::readme(&comparison).trim_end())?,
        false => say(&text::comparison(&comparison))?,
    }
    Ok(())
}
