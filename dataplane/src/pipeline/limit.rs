//! How many ICMP errors the switch sends (RFC 1812 section 4.3.2.8, RFC 4443
//! section 2.4 f): a token bucket for each port, so that one pod's errors are
//! not at another's cost.

use crate::types::{Nanos, PortId};

/// Errors that a port gets in one go.
const BURST: u64 = 50;
/// Errors per second after that.
const RATE: u64 = 200;
/// Buckets; ports that share one share its rate.
const BUCKETS: usize = 256;

const NANOS_PER_TOKEN: u64 = 1_000_000_000 / RATE;

/// The buckets.
#[derive(Debug)]
pub(super) struct ErrorLimit {
    /// The time at which each bucket would be full.
    full_at: Box<[Nanos; BUCKETS]>,
}

impl ErrorLimit {
    pub(super) fn new() -> ErrorLimit {
        ErrorLimit {
            full_at: Box::new([Nanos(0); BUCKETS]),
        }
    }

    /// Whether one more error may go to this port now.
    pub(super) fn allow(&mut self, port: PortId, now: Nanos) -> bool {
        let full_at = &mut self.full_at[port.index() % BUCKETS];
        let after = full_at.0.max(now.0) + NANOS_PER_TOKEN;
        let allowed = after - now.0 <= BURST * NANOS_PER_TOKEN;
        if allowed {
            *full_at = Nanos(after);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_then_a_burst_again() {
        let mut limit = ErrorLimit::new();
        let start = Nanos(7_000_000_000);
        let passed = |limit: &mut ErrorLimit, now, tries| {
            (0..tries).filter(|_| limit.allow(PortId(3), now)).count() as u64
        };
        assert_eq!(passed(&mut limit, start, 1000), BURST);
        let tenth = Nanos(start.0 + 100_000_000);
        assert_eq!(passed(&mut limit, tenth, 1000), RATE / 10);
        let rested = Nanos(start.0 + 10_000_000_000);
        assert_eq!(passed(&mut limit, rested, 1000), BURST);
        assert!(limit.allow(PortId(4), rested), "another port has its own");
    }
}
