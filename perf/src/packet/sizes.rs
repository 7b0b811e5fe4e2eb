//! Frame sizes: one, or a mix in fixed shares.

use std::fmt;
use std::str::FromStr;

use super::FCS_BYTES;

/// Places of a mix; its shares are told apart by a bit mask of 64 places.
const MAX_PLACES: usize = 64;

/// What sizes frames have, in order; a mix is a pattern that repeats. Sizes
/// count the frame check sequence. `64`, `imix`, or `64:7,594:4,1518:1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes on the device, without the frame check sequence.
    places: Vec<usize>,
}

impl Sizes {
    /// All of one size.
    #[must_use]
    pub fn one(frame_bytes: usize) -> Sizes {
        Sizes {
            places: vec![frame_bytes.saturating_sub(FCS_BYTES)],
        }
    }

    /// The simple IMIX: 7 of 64, 4 of 594, 1 of 1518 bytes.
    #[must_use]
    pub fn imix() -> Sizes {
        Sizes::spread(&[(64, 7), (594, 4), (1518, 1)])
    }

    /// Sizes with their shares, each spread as evenly as its share allows.
    #[must_use]
    pub fn spread(shares: &[(usize, usize)]) -> Sizes {
        let total: usize = shares.iter().map(|(_, share)| share).sum();
        let mut given = vec![0usize; shares.len()];
        let mut places = Vec::with_capacity(total);
        for place in 1..=total {
            // The size that is furthest behind its share has this place.
            let behind = |number: usize| {
                (shares[number].1 * place) as f64 / total as f64 - given[number] as f64
            };
            let next = (0..shares.len())
                .max_by(|a, b| behind(*a).total_cmp(&behind(*b)))
                .unwrap_or(0);
            given[next] += 1;
            places.push(shares[next].0 - FCS_BYTES);
        }
        Sizes { places }
    }

    /// The pattern, in bytes on the device.
    #[must_use]
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// The largest, in bytes on the device.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.places.iter().copied().max().unwrap_or(0)
    }

    /// The smallest, in bytes on the device.
    #[must_use]
    pub fn smallest(&self) -> usize {
        self.places.iter().copied().min().unwrap_or(0)
    }

    /// Mean, in bytes of a frame with its check sequence.
    #[must_use]
    pub fn mean_frame_bytes(&self) -> f64 {
        let sum: usize = self.places.iter().sum();
        sum as f64 / self.places.len().max(1) as f64 + FCS_BYTES as f64
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let wrong =
            || format!("{text:?} is no size such as 64, no mix such as 64:7,1518:1, and not imix");
        if text.eq_ignore_ascii_case("imix") {
            return Ok(Sizes::imix());
        }
        let mut shares = Vec::new();
        for part in text.split(',') {
            let (size, share) = part.split_once(':').unwrap_or((part, "1"));
            let size: usize = size.parse().map_err(|_| wrong())?;
            let share: usize = share.parse().map_err(|_| wrong())?;
            if size < 64 || share == 0 {
                return Err(format!(
                    "{part:?}: frames have 64 bytes or more, shares 1 or more"
                ));
            }
            shares.push((size, share));
        }
        let places = shares
            .iter()
            .try_fold(0usize, |sum, (_, share)| sum.checked_add(*share));
        match places {
            Some(places) if places <= MAX_PLACES => Ok(Sizes::spread(&shares)),
            _ => Err(format!(
                "{text:?}: the shares add up to more than {MAX_PLACES}"
            )),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Sizes::imix() {
            return f.write_str("imix");
        }
        let mut sizes = self.places.clone();
        sizes.sort_unstable();
        sizes.dedup();
        let one = sizes.len() == 1;
        for (number, size) in sizes.iter().enumerate() {
            let share = self.places.iter().filter(|place| *place == size).count();
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{}", size + FCS_BYTES)?;
            if !one {
                write!(f, ":{share}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_has_its_shares_and_spreads_them() {
        let imix: Sizes = "imix".parse().unwrap();
        let of = |size| imix.places().iter().filter(|place| **place == size).count();
        assert_eq!((of(60), of(590), of(1514)), (7, 4, 1));
        // No more than two small frames follow one another before a larger.
        let longest = imix
            .places()
            .split(|size| *size != 60)
            .map(<[usize]>::len)
            .max();
        assert!(longest <= Some(2), "{imix:?}");
        assert_eq!(imix.mean_frame_bytes().round(), 362.0);
    }

    #[test]
    fn sizes_read_as_they_are_written() {
        for text in ["64", "1518", "9018", "imix", "64:1,128:2"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "63",
            "64:0",
            "x",
            "64:65",
            "64,",
            "64:18446744073709551615,65:2",
        ] {
            assert!(wrong.parse::<Sizes>().is_err(), "{wrong}");
        }
    }
}
