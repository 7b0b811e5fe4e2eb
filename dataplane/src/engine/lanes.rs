//! Starting the lanes, and asking them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{EngineError, Inner, lock};
use crate::counters::LaneCounters;
use crate::lane::{Alarm, Command, Lane, LaneParts, LaneShared, Streams, Wedged};
use crate::pipeline::{FlowCapacity, LaneState};
use crate::types::LaneId;
use crate::umem::FramePool;

/// Events that wait for control at most, for each lane.
const EVENT_QUEUE: usize = 4096;

/// How long a lane may take to answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often somebody who waits for a lane looks whether it still lives.
const ANSWER_PAUSE: Duration = Duration::from_millis(50);

/// What a lane said.
pub(super) enum Answer<T> {
    Got(T),
    /// Nothing in time.
    Late,
    /// It has ended; it will never answer.
    Dead,
}

impl Inner {
    /// Starts a lane on each CPU.
    pub(super) fn start_lanes(&mut self, wedged: &Sender<Wedged>) -> Result<(), EngineError> {
        let epoch = self.epoch;
        for (index, &core) in self.config.cores.iter().enumerate() {
            let failed = |source| EngineError::Lane {
                lane: index,
                source,
            };
            let (producer, consumer) = rtrb::RingBuffer::new(EVENT_QUEUE);
            let counters = Arc::new(LaneCounters::new());
            let shared = Arc::new(LaneShared {
                commands: Default::default(),
                alarm: Alarm::new().map_err(failed)?,
                counters: Arc::clone(&counters),
                epoch,
            });
            let id = LaneId(index as u8);
            let lane = Lane::new(LaneParts {
                poll: self.config.poll,
                umem: Arc::clone(&self.umem),
                owners: Arc::clone(&self.owners),
                pool: FramePool::new(Arc::clone(&self.depot)),
                snapshot: Arc::clone(&self.snapshot),
                state: LaneState::new(
                    id,
                    counters,
                    producer,
                    FlowCapacity::default(),
                    Arc::clone(&self.connections),
                ),
                shared: Arc::clone(&shared),
                events: Arc::clone(&self.event_alarm),
                wedged: wedged.clone(),
                streams: Streams::new().map_err(failed)?,
            });
            let thread = std::thread::Builder::new()
                .name(format!("lane-{index}"))
                .spawn(move || {
                    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
                        tracing::warn!(lane = index, core, "cannot pin the lane to its CPU");
                    }
                    lane.run()
                })
                .map_err(failed)?;
            lock(&self.threads).push(thread);
            lock(&self.events).push(consumer);
            self.lanes.push(shared);
        }
        Ok(())
    }

    /// Asks every lane the same.
    pub(super) fn ask<T>(&self, command: impl Fn(Sender<T>) -> Command) -> Vec<Receiver<T>> {
        self.ask_each(|reply| Some(command(reply)))
    }

    pub(super) fn ask_each<T>(
        &self,
        mut command: impl FnMut(Sender<T>) -> Option<Command>,
    ) -> Vec<Receiver<T>> {
        self.lanes
            .iter()
            .map(|lane| {
                let (reply, answer) = channel();
                if let Some(command) = command(reply) {
                    lane.tell(command);
                }
                answer
            })
            .collect()
    }

    /// Waits for a lane's answer, for as long as the lane lives.
    pub(super) fn answer<T>(
        &self,
        lane: usize,
        answer: &Receiver<T>,
        deadline: Instant,
    ) -> Answer<T> {
        loop {
            // Asked first: what a lane said before it ended still counts.
            let is_dead = self.is_dead(lane);
            let left = deadline.saturating_duration_since(Instant::now());
            match answer.recv_timeout(left.min(ANSWER_PAUSE)) {
                Ok(said) => return Answer::Got(said),
                Err(RecvTimeoutError::Disconnected) => return Answer::Dead,
                Err(RecvTimeoutError::Timeout) if is_dead => return Answer::Dead,
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Answer::Late,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Whether a lane's thread has ended although nobody stopped it.
    pub(super) fn is_dead(&self, lane: usize) -> bool {
        let threads = lock(&self.threads);
        threads.get(lane).is_some_and(JoinHandle::is_finished)
    }
}
