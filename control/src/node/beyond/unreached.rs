//! Nodes whose pods are out of reach, and why: for whoever looks at the status.

use std::collections::{BTreeMap, BTreeSet};

/// Names that a notice holds at most.
const MOST_NAMES: usize = 8;

/// Why pods here do not reach a node's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its object has no address.
    NoAddress,
    /// The overlay needs an address of one family at both ends.
    NoCommonFamily,
    /// The kernel has no route to its address, or one that refuses.
    NoRoute,
    /// The kernel reaches its address by another interface than the uplink.
    AnotherInterface,
    /// Its range is one of this node's own.
    OurRange,
    /// This node's address is in its range: following it would cut this node
    /// off.
    OurAddress,
    /// A node whose name comes before has the range, too.
    TakenRange,
}

impl Why {
    /// What is wrong, and what to do about it.
    fn text(self) -> &'static str {
        match self {
            Why::NoAddress => "have no address: their objects need one of type InternalIP",
            Why::NoCommonFamily => {
                "have no address of a family that this node has one of: give both ends one of the same"
            }
            Why::NoRoute => "have addresses that this node has no route to: add one by the uplink",
            Why::AnotherInterface => {
                "are reached by another interface than the uplink: correct the route or node.uplink"
            }
            Why::OurRange => "have a range of this node's own pods: correct their spec.podCIDRs",
            Why::OurAddress => {
                "have a range that this node's own address is in: correct their spec.podCIDRs"
            }
            Why::TakenRange => {
                "have a range that another node has, too: correct the spec.podCIDRs of one of them"
            }
        }
    }
}

/// Names of nodes by what keeps them out of reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unreached(BTreeMap<Why, BTreeSet<String>>);

impl Unreached {
    /// Counts a node in.
    pub fn add(&mut self, why: Why, name: &str) {
        self.0.entry(why).or_default().insert(name.to_owned());
    }

    /// One line for each cause.
    pub fn notices(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(why, names)| {
            let first: Vec<&str> = names.iter().take(MOST_NAMES).map(String::as_str).collect();
            let more = match names.len() - first.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let (first, text) = (first.join(", "), why.text());
            format!("pods of nodes {first}{more} are out of reach: the nodes {text}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_cluster_makes_a_short_notice() {
        let mut unreached = Unreached::default();
        assert_eq!(unreached.notices().count(), 0);
        for number in 10..30 {
            unreached.add(Why::NoRoute, &format!("n{number}"));
        }
        unreached.add(Why::NoAddress, "young");
        let notices: Vec<_> = unreached.notices().collect();
        assert_eq!(notices.len(), 2);
        assert!(notices[0].contains(" young are "), "{}", notices[0]);
        assert!(
            notices[1].contains(" n16, n17 and 12 more are "),
            "{}",
            notices[1]
        );
    }
}
