//! The order in which the ports of a range are tried.
//!
//! Pods' kernels choose ports side by side, and ends keep theirs, so the free
//! ones may be far from where a search begins. It goes around the range by a
//! stride of some 0.618 of it, so that each port comes once and those that were
//! tried lie about evenly at any time. Euclid's algorithm tells: its quotients
//! for range and stride are small where that is so, as they are all 1 for the
//! golden section, and a large one means a cluster.

use super::words::Words;

/// The largest quotient. Every range has a stride soon after 0.618 of it.
const QUOTIENT: usize = 6;

/// The stride of the range that was asked for last, with that range. One word
/// has both, so the access is relaxed.
#[derive(Debug)]
pub(super) struct Stride(Words);

impl Stride {
    pub(super) fn new() -> Stride {
        Stride(Words::new(1))
    }

    /// The stride for so many ports.
    pub(super) fn of(&self, range: usize) -> usize {
        let known = self.0.get(0);
        if known >> 32 == range as u64 {
            return known as u32 as usize;
        }
        let stride = choose(range);
        self.0.set(0, (range as u64) << 32 | stride as u64);
        stride
    }
}

fn choose(range: usize) -> usize {
    let golden = (range * 618 / 1000).max(1);
    let mut strides = golden..range;
    // One port is left to a range of one.
    strides.find(|&s| scatters(s, range)).unwrap_or(1)
}

fn scatters(stride: usize, range: usize) -> bool {
    let (mut whole, mut part) = (range, stride);
    while part != 0 {
        if whole / part > QUOTIENT {
            return false;
        }
        (whole, part) = (part, whole % part);
    }
    whole == 1
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const ALL: usize = 65_536;
    const TRIES: usize = 16_384;

    /// For these a stride that is the same for all ranges, 2 654 435 761, goes
    /// from port to port.
    const LINEAR: [usize; 6] = [63_240, 62_961, 57_660, 54_160, 49_011, 46_128];

    fn divisor(a: usize, b: usize) -> usize {
        match b {
            0 => a,
            _ => divisor(b, a % b),
        }
    }

    /// How far apart, at most, `tries` places lie that are `stride` apart on a
    /// circle. They lie two distances apart, or the sum of both; the next place
    /// that is nearer to the first one cuts the longer by the shorter.
    fn largest_gap(stride: usize, range: usize, tries: usize) -> usize {
        let (mut after, mut before) = ((stride, 1), (range - stride, 1));
        while after.1 + before.1 < tries {
            match after.0 > before.0 {
                true => after = (after.0 - before.0, after.1 + before.1),
                false => before = (before.0 - after.0, after.1 + before.1),
            }
        }
        after.0 + before.0
    }

    #[test]
    fn every_range_is_gone_around_evenly() {
        let stride = Stride::new();
        for range in 1..=ALL {
            let chosen = stride.of(range);
            assert_eq!(stride.of(range), chosen, "{range}: told again");
            assert_eq!(divisor(range, chosen), 1, "{range}: each comes once");
            for tries in [64, 1024, TRIES] {
                if range > tries {
                    let gap = largest_gap(chosen, range, tries);
                    let even = range.div_ceil(tries);
                    assert!(gap <= 4 * even, "{range}: {gap} after {tries}");
                }
            }
        }
    }

    /// The places themselves, counted.
    #[test]
    fn no_port_is_far_from_one_that_was_tried() {
        let stride = Stride::new();
        for range in LINEAR.into_iter().chain([16_385, 32_768, 63_921, 64_512]) {
            let chosen = stride.of(range);
            let mut tried: Vec<usize> = (0..TRIES).map(|step| step * chosen % range).collect();
            tried.sort_unstable();
            tried.push(range);
            let gap = tried.windows(2).map(|pair| pair[1] - pair[0]).max();
            let told = largest_gap(chosen, range, TRIES);
            assert!(gap.is_some_and(|gap| 0 < gap && gap <= told), "{range}");
            assert!(told < 64, "{range}: {told}");
        }
        for range in LINEAR {
            assert!(!scatters(2_654_435_761 % range, range), "{range}");
        }
    }
}
