//! Generators: what sends.
//!
//! What a generator says it sent is only that; a rate is what a
//! [sink](crate::sink) counts at the other end.

pub mod afxdp;
pub(crate) mod live;
mod program;
pub mod replay;
pub mod socket;
pub mod xdp;

use std::time::{Duration, Instant};

use crate::clock;
use crate::stop::Stop;

/// When a generator ends and how fast it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Longest time; endless without.
    pub duration: Option<Duration>,
    /// Most packets; endless without.
    pub count: Option<u64>,
    /// Packets per second; as fast as it goes without.
    pub rate: Option<u64>,
    /// How late a paced packet may go and still be made up for by a burst.
    pub slack: Duration,
}

impl Limit {
    /// Most packets, also by rate and time together.
    pub(crate) fn whole(&self) -> Option<u64> {
        let by_time = self
            .rate
            .zip(self.duration)
            .map(|(rate, time)| (time.as_secs_f64() * rate as f64) as u64);
        match (self.count, by_time) {
            (Some(count), Some(by_time)) => Some(count.min(by_time)),
            (count, by_time) => count.or(by_time),
        }
    }
}

impl Default for Limit {
    fn default() -> Limit {
        Limit {
            duration: None,
            count: None,
            rate: None,
            slack: DEFAULT_SLACK,
        }
    }
}

/// Keeps the mean rate over the hiccups of a busy machine.
const DEFAULT_SLACK: Duration = Duration::from_secs(1);

/// What a generator did.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Sent {
    /// Packets handed to the kernel.
    pub packets: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Seconds that a paced generator was late and did not make up for.
    pub late_seconds: f64,
    /// Of these, or of all without a pace, seconds in which other work had the
    /// core.
    pub preempted_seconds: f64,
}

/// Waits are cut to this, so that an end that is asked for is heard.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// Walks a generator through its [`Limit`]: how many packets may go now.
#[derive(Debug)]
pub(crate) struct Pace<'a> {
    limit: Limit,
    stop: &'a Stop,
    began: Instant,
    start_ns: u64,
    lost_ns: u64,
    sent: u64,
}

impl<'a> Pace<'a> {
    pub(crate) fn new(limit: Limit, stop: &'a Stop) -> Pace<'a> {
        Pace {
            limit: Limit {
                count: limit.whole(),
                ..limit
            },
            stop,
            began: Instant::now(),
            start_ns: clock::now_ns(),
            lost_ns: 0,
            sent: 0,
        }
    }

    /// Number of the next packet.
    pub(crate) fn number(&self) -> u64 {
        self.sent
    }

    /// Waits until packets are due and says how many, at most `most`; `None`
    /// at the end.
    pub(crate) fn next(&mut self, most: u64) -> Option<u64> {
        loop {
            let over = |limit| self.began.elapsed() >= limit;
            if self.stop.is_set() || self.limit.duration.is_some_and(over) {
                return None;
            }
            let left = self.limit.count.map_or(u64::MAX, |count| count - self.sent);
            if left == 0 {
                return None;
            }
            let Some(rate) = self.limit.rate else {
                return Some(left.min(most));
            };
            let due_ns = self.due_ns(self.sent, rate);
            let now = clock::wait_until(due_ns, LONGEST_WAIT);
            if now < due_ns {
                continue;
            }
            let slack = self.limit.slack.as_nanos() as u64;
            self.lost_ns += (now - due_ns).saturating_sub(slack);
            let passed = u128::from(now - self.start_ns - self.lost_ns);
            let due = (passed * u128::from(rate) / 1_000_000_000) as u64 + 1;
            return Some(due.saturating_sub(self.sent).clamp(1, left.min(most)));
        }
    }

    /// When packet `number` is due.
    fn due_ns(&self, number: u64, rate: u64) -> u64 {
        let after = u128::from(number) * 1_000_000_000 / u128::from(rate.max(1));
        self.start_ns + self.lost_ns + after as u64
    }

    pub(crate) fn add(&mut self, packets: u64) {
        self.sent += packets;
    }

    pub(crate) fn finish(self) -> Sent {
        Sent {
            packets: self.sent,
            seconds: self.began.elapsed().as_secs_f64(),
            late_seconds: self.lost_ns as f64 / 1e9,
            preempted_seconds: 0.0, // it sleeps, so nobody can tell
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_at_the_count() {
        let stop = Stop::new();
        let limit = Limit {
            count: Some(100),
            ..Limit::default()
        };
        let mut pace = Pace::new(limit, &stop);
        let mut lots = Vec::new();
        while let Some(packets) = pace.next(64) {
            lots.push(packets);
            pace.add(packets);
        }
        assert_eq!(lots, [64, 36]);
        assert_eq!(pace.finish().packets, 100);
    }

    #[test]
    fn keeps_the_rate() {
        let stop = Stop::new();
        let limit = Limit {
            duration: Some(Duration::from_millis(100)),
            rate: Some(10_000),
            ..Limit::default()
        };
        let run = || {
            let mut pace = Pace::new(limit, &stop);
            while let Some(packets) = pace.next(64) {
                pace.add(packets);
            }
            pace.finish().packets
        };
        // A late wake-up makes up for itself; only the end may be short, on a
        // busy machine by much.
        let nearly_whole = (0..300).any(|_| {
            let packets = run();
            assert!(packets <= 1000, "{packets}");
            packets >= 700
        });
        assert!(nearly_whole);
    }

    #[test]
    fn ends_when_told() {
        let stop = Stop::new();
        stop.set();
        assert_eq!(Pace::new(Limit::default(), &stop).next(1), None);
    }
}
