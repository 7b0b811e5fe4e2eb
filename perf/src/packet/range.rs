//! Ranges of header fields.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Ports from the first to the last, both counted. `9` or `5000-5999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// One port.
    #[must_use]
    pub fn one(port: u16) -> PortRange {
        PortRange {
            first: port,
            last: port,
        }
    }

    /// `count` ports from `first` on, as many as there are.
    #[must_use]
    pub fn from(first: u16, count: u32) -> PortRange {
        let last = u32::from(first) + count.max(1) - 1;
        PortRange {
            first,
            last: last.min(u16::MAX.into()) as u16,
        }
    }

    /// The first port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Whether it holds a port.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<PortRange, String> {
        let wrong = || format!("{text:?} is no port and no range of ports such as 5000-5999");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first = first.parse().map_err(|_| wrong())?;
        let last = last.parse().map_err(|_| wrong())?;
        if first > last {
            return Err(format!("{text:?} ends before it begins"));
        }
        Ok(PortRange { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last > self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

/// Addresses from the first on; only their last 32 bits differ.
/// `10.0.0.1`, `10.0.0.1-10.0.0.9` or `fd00::1-fd00::ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    count: u32,
}

impl AddressRange {
    /// One address.
    #[must_use]
    pub fn one(address: IpAddr) -> AddressRange {
        AddressRange {
            first: address,
            count: 1,
        }
    }

    /// The first address.
    #[must_use]
    pub fn first(self) -> IpAddr {
        self.first
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// The last 32 bits of the first address.
    #[must_use]
    pub(crate) fn low(self) -> u32 {
        match self.first {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => address.to_bits() as u32,
        }
    }

    /// The address number `index`, from 0.
    #[must_use]
    pub fn address(self, index: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(index)).into(),
            IpAddr::V6(first) => {
                Ipv6Addr::from_bits(first.to_bits().wrapping_add(index.into())).into()
            }
        }
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<AddressRange, String> {
        let wrong = || format!("{text:?} is no address and no range such as 10.0.0.1-10.0.0.9");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: IpAddr = first.parse().map_err(|_| wrong())?;
        let last: IpAddr = last.parse().map_err(|_| wrong())?;
        let span = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                last.to_bits().checked_sub(first.to_bits()).map(u128::from)
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits().checked_sub(first.to_bits()),
            _ => return Err(format!("{text:?} mixes address families")),
        };
        let span = span.ok_or_else(|| format!("{text:?} ends before it begins"))?;
        let count = u32::try_from(span)
            .ok()
            .and_then(|span| span.checked_add(1))
            .ok_or_else(|| format!("{text:?} holds more than 4294967295 addresses"))?;
        let range = AddressRange { first, count };
        if range.low().checked_add(count - 1).is_none() {
            return Err(format!("{text:?}: only the last 32 bits may differ"));
        }
        Ok(range)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.count > 1 {
            write!(f, "-{}", self.address(self.count - 1))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_as_they_are_written() {
        for text in ["9", "5000-5999", "0-65535"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        assert_eq!("0-65535".parse::<PortRange>().unwrap().count(), 65_536);
        assert_eq!(PortRange::from(65_000, 1000).last(), u16::MAX);
        for wrong in ["", "-", "9-", "10-9", "65536", "a"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong}");
        }
        for text in ["10.0.0.1", "10.0.0.250-10.0.1.5", "fd00::1-fd00::ff"] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), text);
        }
        let range: AddressRange = "10.0.0.250-10.0.1.5".parse().unwrap();
        assert_eq!(range.count(), 12);
        for wrong in [
            "",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-fd00::1",
            "fd00::-fd01::",
            "fd00::ffff:ffff-fd00::1:0:1",
        ] {
            assert!(wrong.parse::<AddressRange>().is_err(), "{wrong}");
        }
    }
}
