//! Generators: what sends.
//!
//! What a generator says it sent is only that; a rate is what a
//! [sink](crate::sink) counts at the other end.

pub mod socket;
pub mod xdp;

use std::thread;
use std::time::{Duration, Instant};

use crate::stop::Stop;

/// When a generator ends and how fast it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// Longest time; endless without.
    pub duration: Option<Duration>,
    /// Most packets; endless without.
    pub count: Option<u64>,
    /// Packets per second; as fast as it goes without.
    pub rate: Option<u64>,
}

/// What a generator did.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Sent {
    /// Packets handed to the kernel.
    pub packets: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Length of the slices in which a paced generator sends.
const SLICE: Duration = Duration::from_millis(2);

/// Walks a generator through its [`Limit`]: how many packets may go now.
#[derive(Debug)]
struct Pace<'a> {
    limit: Limit,
    stop: &'a Stop,
    began: Instant,
    sent: u64,
}

impl<'a> Pace<'a> {
    fn new(limit: Limit, stop: &'a Stop) -> Pace<'a> {
        Pace {
            limit,
            stop,
            began: Instant::now(),
            sent: 0,
        }
    }

    /// Waits until packets are due and says how many, at most `most`; `None`
    /// at the end.
    fn next(&self, most: u64) -> Option<u64> {
        loop {
            let elapsed = self.began.elapsed();
            if self.stop.is_set() || self.limit.duration.is_some_and(|limit| elapsed >= limit) {
                return None;
            }
            let left = self.limit.count.map_or(u64::MAX, |count| count - self.sent);
            if left == 0 {
                return None;
            }
            let due = self.limit.rate.map_or(u64::MAX, |rate| {
                ((elapsed + SLICE).as_secs_f64() * rate as f64) as u64
            });
            match due.saturating_sub(self.sent).min(left).min(most) {
                0 => thread::sleep(SLICE),
                packets => return Some(packets),
            }
        }
    }

    fn add(&mut self, packets: u64) {
        self.sent += packets;
    }

    fn finish(self) -> Sent {
        Sent {
            packets: self.sent,
            seconds: self.began.elapsed().as_secs_f64(),
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
            count: None,
        };
        let mut pace = Pace::new(limit, &stop);
        while let Some(packets) = pace.next(64) {
            pace.add(packets);
        }
        let sent = pace.finish();
        // A late wake-up makes up for itself; only the end may be short.
        assert!((800..=1030).contains(&sent.packets), "{sent:?}");
    }

    #[test]
    fn ends_when_told() {
        let stop = Stop::new();
        stop.set();
        assert_eq!(Pace::new(Limit::default(), &stop).next(1), None);
    }
}
