//! What is measured: kinds of packets through the batch function.

use serde::{Deserialize, Serialize};
use spinlane_dataplane::bench::Rig;
use spinlane_dataplane::frame::{MAX_CHAIN, Verdict};
use spinlane_dataplane::pipeline::FlowCapacity;
use spinlane_dataplane::wire::checksum::checksum;

use super::packets::{self, IN_PORT, MTU, UPLINK, Way};
use super::{allocations, clock};
use crate::measure::MeasureError;

/// Rounds in a row on the same packets, before hop counts are put back (the
/// packets begin with 64).
const ROUNDS: u32 = 50;
/// Packets that pass before a sample, so that caches hold what they will.
const WARM_UP: u64 = 20_000;
/// Flows of a case that decides each packet anew.
const CLASSIFIED_FLOWS: u32 = 1024;
/// New connections before the table forgets them: of the same ends towards
/// another port each time, and fewer than a pod may have.
const CONNECTIONS: u32 = 48 * packets::ENDS;
/// As many flows as there are packets.
pub(super) const ENDLESS: u32 = u32::MAX;
/// Bytes that are summed: the payload of a full segment.
const SUMMED: usize = 1448;

/// A stage of the walk, or what a packet needs besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// A known pair of stations of a segment.
    L2Hit,
    /// A known routed flow.
    L3Hit,
    /// The same, its checksum left to the receiver.
    L3Partial,
    /// A known flow whose snapshot is no longer in force.
    Classify,
    /// A new flow with every packet.
    Churn,
    /// A known flow into VXLAN over IPv4.
    VxlanOut,
    /// A known flow out of VXLAN over IPv4.
    VxlanIn,
    /// A known flow that leaves with the node's address.
    Masquerade,
    /// A new connection with every packet, from ends that have ports already.
    MasqueradeNew,
    /// A super-frame into segments; the unit is a segment.
    Segmentation,
    /// Neighbouring segments out of VXLAN into a super-frame; the unit is a
    /// segment.
    Coalescing,
    /// The sum over the payload of a full segment.
    Checksum,
}

impl Work {
    /// The name in tables and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Work::L2Hit => "l2-hit",
            Work::L3Hit => "l3-hit",
            Work::L3Partial => "l3-partial",
            Work::Classify => "classify",
            Work::Churn => "churn",
            Work::VxlanOut => "vxlan-out",
            Work::VxlanIn => "vxlan-in",
            Work::Masquerade => "masquerade",
            Work::MasqueradeNew => "masquerade-new",
            Work::Segmentation => "segmentation",
            Work::Coalescing => "coalescing",
            Work::Checksum => "checksum",
        }
    }

    /// What the figures are counted by.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Work::Segmentation | Work::Coalescing => "segment",
            Work::Checksum => "1448 bytes",
            _ => "packet",
        }
    }

    /// Whether the same bytes cannot go through twice.
    const fn needs_a_fresh_batch(self) -> bool {
        let has_one_round = matches!(self, Work::Classify | Work::Masquerade);
        has_one_round || self.is_new() || self.is_tunneled()
    }

    /// Whether every packet is the first one of its flow.
    pub(super) const fn is_new(self) -> bool {
        matches!(self, Work::Churn | Work::MasqueradeNew)
    }

    /// Whether the batch function moves where the packet begins.
    const fn is_tunneled(self) -> bool {
        matches!(self, Work::VxlanOut | Work::VxlanIn | Work::Coalescing)
    }
}

/// One row of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// What.
    pub work: Work,
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// Packets in a call.
    pub batch: usize,
    /// Flows that take turns; the most there can be where each packet has one.
    pub flows: u32,
}

impl Case {
    /// A name that tells the case from all others.
    #[must_use]
    pub fn name(&self) -> String {
        format!(
            "{}/{}/{}-flows/batch-{}",
            self.work.name(),
            if self.v6 { "ipv6" } else { "ipv4" },
            match self.flows {
                ENDLESS => "new".to_owned(),
                flows => flows.to_string(),
            },
            self.batch
        )
    }
}

/// The rows of a run: sizes of batch with one flow, numbers of flows with
/// batches of 32, and the other kinds of work.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |work, v6, batch, flows| {
        cases.push(Case {
            work,
            v6,
            batch,
            flows,
        });
    };
    for (work, v6) in [
        (Work::L3Hit, false),
        (Work::L3Hit, true),
        (Work::L2Hit, false),
    ] {
        for batch in [1, 4, 8, 16, 32, 64] {
            add(work, v6, batch, 1);
        }
        for flows in [100, 10_000, 100_000, 1_000_000] {
            add(work, v6, 32, flows);
        }
    }
    for v6 in [false, true] {
        add(Work::L3Partial, v6, 32, 1);
        add(Work::Classify, v6, 32, CLASSIFIED_FLOWS);
        add(Work::Churn, v6, 32, ENDLESS);
        add(Work::VxlanOut, v6, 32, 1);
        add(Work::VxlanIn, v6, 32, 1);
        add(Work::Masquerade, v6, 32, 1);
        add(Work::MasqueradeNew, v6, 32, ENDLESS);
        add(Work::Segmentation, v6, 1, 1);
        add(Work::Coalescing, v6, 32, 1);
    }
    add(Work::Checksum, false, 1, 1);
    cases
}

/// What one sample gave.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    pub(super) ticks: u64,
    pub(super) units: u64,
}

/// A case that is set up.
pub(super) struct Bench {
    case: Case,
    rig: Rig,
    template: Vec<u8>,
    /// The packets of a batch, where they are not all alike.
    segments: Vec<Vec<u8>>,
    next_flow: u32,
    /// Connections that the packets opened since the table forgot them.
    opened: usize,
    units: u64,
    /// Hits and misses of setting up.
    before: [u64; 2],
}

impl Bench {
    /// Sets the node up, and makes its flows known.
    pub(super) fn set_up(case: Case) -> Result<Bench, MeasureError> {
        let mut template = match case.work {
            Work::Segmentation | Work::Coalescing => packets::super_frame(case.v6)?,
            Work::Checksum => vec![0x5a; SUMMED],
            _ => packets::datagram(case.v6)?,
        };
        if case.work == Work::L3Partial {
            packets::make_partial(&mut template, case.v6);
        }
        let from =
            |snapshot| Rig::new(snapshot, capacity(&case)).map_err(|error| failed(&case, error));
        let half = |has_first, way| {
            let half = packets::half(has_first, false, way);
            half.ok_or_else(|| failed(&case, "the addresses do not fit"))
        };
        let mut segments = Vec::new();
        let rig = match case.work {
            Work::L2Hit => from(packets::node(true, true))?,
            Work::Segmentation => from(packets::node(false, false))?,
            Work::VxlanOut => from(half(true, Way::Overlay)?)?,
            Work::Masquerade | Work::MasqueradeNew => from(half(true, Way::Masquerade)?)?,
            Work::VxlanIn => {
                // What the other node makes of the packet.
                let mut other = from(half(true, Way::Overlay)?)?;
                if other.load(IN_PORT, &template) {
                    other.process();
                    template = other.head(0).to_vec();
                }
                from(half(false, Way::Overlay)?)?
            }
            Work::Coalescing => {
                let mut cutter = from(packets::node(false, false))?;
                if cutter.load(IN_PORT, &template) {
                    cutter.process();
                }
                let pieces = cutter.pieces(0);
                segments = pieces.map_err(|reason| failed(&case, reason.name()))?;
                // What the other node makes of each.
                let mut other = from(half(true, Way::Overlay)?)?;
                for segment in &mut segments {
                    if other.load(IN_PORT, segment) {
                        other.process();
                        *segment = other.head(0).to_vec();
                    }
                    other.unload();
                }
                from(half(false, Way::Overlay)?)?
            }
            _ => from(packets::node(false, true))?,
        };
        let mut bench = Bench {
            case,
            rig,
            template,
            segments,
            next_flow: 0,
            opened: 0,
            units: 0,
            before: [0; 2],
        };
        bench.load()?;
        if case.work == Work::MasqueradeNew {
            bench.open_ends();
        }
        if !case.work.is_new() {
            // Twice: a flow that saw two packets is not pushed out.
            for _ in 0..(case.flows as usize).div_ceil(case.batch) * 2 {
                bench.refresh()?;
                bench.round()?;
            }
        }
        bench.before = bench.looked_up();
        Ok(bench)
    }

    /// Share of packets whose flow was known, since the case was set up.
    /// `None` when none was looked for.
    pub(super) fn hit_share(&self) -> Option<f64> {
        let [hits, misses] = self.looked_up();
        let (hits, misses) = (hits - self.before[0], misses - self.before[1]);
        (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64)
    }

    fn looked_up(&self) -> [u64; 2] {
        let counters = self.rig.counters();
        [counters.flow_hits.get(), counters.flow_misses.get()]
    }

    /// Works until `ticks` were spent on it.
    pub(super) fn sample(&mut self, ticks: u64, overhead: u64) -> Result<Sample, MeasureError> {
        let warm_up = WARM_UP.min(u64::from(self.case.flows) * 4);
        let mut passed = 0;
        while passed < warm_up {
            self.refresh()?;
            self.round()?;
            passed += self.case.batch as u64;
        }
        let rounds = match self.case.flows {
            1 if !self.case.work.needs_a_fresh_batch() => ROUNDS,
            _ => 1,
        };
        let mut sample = Sample::default();
        while sample.ticks < ticks {
            self.refresh()?;
            let allocated = allocations::count();
            let done = self.units;
            let before = clock::now();
            for _ in 0..rounds {
                self.round()?;
            }
            let spent = clock::now() - before;
            if allocations::count() != allocated {
                return Err(failed(&self.case, "memory was allocated for a packet"));
            }
            sample.ticks += spent.saturating_sub(overhead);
            sample.units += self.units - done;
        }
        self.check()?;
        Ok(sample)
    }

    /// So many rounds, for who counts instructions.
    pub(super) fn run(&mut self, rounds: u32) -> Result<(), MeasureError> {
        for _ in 0..rounds {
            self.refresh()?;
            self.round()?;
        }
        self.check()
    }

    /// Units that passed since the start.
    pub(super) fn units(&self) -> u64 {
        self.units
    }

    /// The measured part: one call. Keeps its name in the binary, by which
    /// callgrind knows it.
    #[inline(never)]
    pub(super) fn round(&mut self) -> Result<(), MeasureError> {
        self.units += match self.case.work {
            Work::Checksum => {
                let bytes = std::hint::black_box(&self.template[..]);
                std::hint::black_box(checksum(bytes));
                1
            }
            Work::Segmentation => {
                self.rig.process();
                let pieces = self.rig.segment(0, MTU);
                pieces.map_err(|reason| failed(&self.case, reason.name()))? as u64
            }
            Work::Coalescing => {
                self.rig.process();
                self.rig.coalesce();
                self.case.batch as u64
            }
            _ => {
                self.rig.process();
                self.case.batch as u64
            }
        };
        Ok(())
    }

    /// Makes the batch ready for the next flows.
    pub(super) fn refresh(&mut self) -> Result<(), MeasureError> {
        let work = self.case.work;
        if work.is_tunneled() {
            self.rig.unload();
            return self.load();
        }
        if work == Work::Classify {
            self.rig.publish();
        }
        if work == Work::MasqueradeNew && self.next_flow.is_multiple_of(CONNECTIONS) {
            self.open_ends();
        }
        self.write();
        Ok(())
    }

    /// Begins with an empty table, and gives the ends their ports; not counted
    /// as work.
    fn open_ends(&mut self) {
        self.rig.forget(IN_PORT);
        self.opened = 0;
        while self.opened < packets::ENDS as usize {
            self.write();
            self.rig.process();
        }
    }

    /// Writes each packet of the batch anew.
    fn write(&mut self) {
        let Case {
            work, v6, flows, ..
        } = self.case;
        for index in 0..self.rig.batch_len() {
            let head = self.rig.head(index);
            let len = head.len();
            head.copy_from_slice(&self.template[..len]);
            match work {
                Work::MasqueradeNew => packets::set_connection(head, v6, self.next_flow),
                _ if flows > 1 => {
                    packets::set_flow(head, work == Work::L2Hit, v6, self.next_flow);
                }
                _ => {}
            }
            self.next_flow = (self.next_flow + 1) % flows;
        }
        if work == Work::MasqueradeNew {
            self.opened += self.case.batch;
        }
    }

    /// Fills the batch.
    fn load(&mut self) -> Result<(), MeasureError> {
        let port = match self.case.work {
            Work::VxlanIn | Work::Coalescing => UPLINK,
            _ => IN_PORT,
        };
        for number in 0..self.case.batch {
            let packet = self.segments.get(number).unwrap_or(&self.template);
            if !self.rig.load(port, packet) {
                return Err(failed(&self.case, "the frames ran out"));
            }
        }
        Ok(())
    }

    /// Every packet has to be forwarded in the way that its case is about, and
    /// to open a connection where it is about that.
    fn check(&self) -> Result<(), MeasureError> {
        let open = self.rig.connections();
        if self.case.work == Work::MasqueradeNew && open != self.opened {
            let detail = format!("{open} connections of {} are open", self.opened);
            return Err(failed(&self.case, detail));
        }
        for index in 0..self.rig.batch_len() {
            let verdict = self.rig.verdict(index);
            let is_right = match (self.case.work, verdict) {
                (Work::Checksum, _) => true,
                (Work::L2Hit, Verdict::Flood { .. }) => true,
                (Work::L3Partial, Verdict::Forward { checksum, .. }) => checksum.is_some(),
                (Work::L3Hit | Work::Classify | Work::Churn, Verdict::Forward { .. }) => true,
                (
                    Work::VxlanOut | Work::Masquerade | Work::MasqueradeNew,
                    Verdict::Forward { out, .. },
                ) => out == UPLINK,
                (Work::VxlanIn, Verdict::Forward { out, .. }) => out != UPLINK,
                (Work::Segmentation, Verdict::Segment { .. }) => true,
                // As many in one as a chain of frames holds.
                (Work::Coalescing, Verdict::Segment { .. }) => {
                    self.rig.batch_len() == self.case.batch.div_ceil(MAX_CHAIN)
                }
                _ => false,
            };
            if !is_right {
                return Err(failed(&self.case, format!("a packet ended as {verdict:?}")));
            }
        }
        Ok(())
    }
}

/// Room for twice the flows, and as a lane has it at least.
fn capacity(case: &Case) -> FlowCapacity {
    let usual = FlowCapacity::default();
    let flows = match case.work {
        Work::Churn | Work::MasqueradeNew => 0,
        _ => case.flows as usize * 2,
    };
    FlowCapacity {
        v4: usual.v4.max(flows),
        v6: usual.v6.max(flows),
        l2: usual.l2.max(flows),
    }
}

fn failed(case: &Case, detail: impl ToString) -> MeasureError {
    MeasureError::Unexpected {
        what: format!("micro {}", case.name()),
        detail: detail.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_work_does_what_it_says() {
        for case in cases() {
            let small = Case {
                flows: match case.work.is_new() {
                    true => case.flows,
                    false => case.flows.min(2048),
                },
                ..case
            };
            let mut bench = Bench::set_up(small).unwrap();
            let before = bench.units();
            bench.run(4).unwrap();
            assert!(bench.units() >= before + 4, "{}", small.name());
            let is_decided = matches!(case.work, Work::Classify | Work::Checksum);
            if !is_decided && !case.work.is_new() {
                let rounds = bench.rig.counters().flow_hits.get();
                bench.run(4).unwrap();
                let hits = bench.rig.counters().flow_hits.get() - rounds;
                assert_eq!(hits, 4 * small.batch as u64, "{}", small.name());
            }
        }
    }

    #[test]
    fn every_packet_of_new_flows_is_one() {
        for case in cases().into_iter().filter(|case| case.work.is_new()) {
            let mut bench = Bench::set_up(case).unwrap();
            // Also over a border where the table forgets.
            for next_flow in [bench.next_flow, CONNECTIONS - case.batch as u32] {
                bench.next_flow = next_flow;
                let (units, open) = (bench.units(), bench.rig.connections());
                let [hits, misses] = bench.looked_up();
                bench.run(1).unwrap();
                let passed = bench.units() - units;
                assert_eq!(passed, case.batch as u64, "{}", case.name());
                assert_eq!(
                    bench.looked_up(),
                    [hits, misses + passed],
                    "{}",
                    case.name()
                );
                let opened = match case.work {
                    Work::MasqueradeNew => passed as usize,
                    _ => 0,
                };
                assert_eq!(bench.rig.connections(), open + opened, "{}", case.name());
            }
            bench.run(1).unwrap();
            assert_eq!(bench.hit_share(), Some(0.0), "{}", case.name());
        }
    }

    #[test]
    fn a_case_has_a_name_of_its_own() {
        let mut names: Vec<String> = cases().iter().map(Case::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
