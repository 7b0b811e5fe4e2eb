//! What Spinlane as shipped has to reach.

use serde::{Deserialize, Serialize};

use crate::scenario::{Better, Figure, PER_CPU_SECOND, Scenario, VALUE};
use crate::subject::Kind;

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// The ratio to a peer, or the figure itself where there is no peer.
    pub limit: f64,
    /// Which side of it passes.
    pub better: Better,
}

impl Bar {
    /// Whether an interval reaches the bar: by its lower end where higher is
    /// better, by its upper end where lower is.
    #[must_use]
    pub fn passes(&self, interval: (f64, f64)) -> bool {
        match self.better {
            Better::Higher => interval.0 >= self.limit,
            Better::Lower => interval.1 <= self.limit,
        }
    }
}

impl Scenario {
    /// What Spinlane as shipped has to reach in a figure against a peer.
    #[must_use]
    pub fn bar(self, figure: &Figure, peer: Kind) -> Option<Bar> {
        let limit = match (self, figure.name, peer) {
            (Scenario::Frames64, VALUE, Kind::LinuxBridge) => 1.6,
            (Scenario::Frames64, VALUE, Kind::OvsAfxdp) => 2.0,
            (Scenario::Frames64, PER_CPU_SECOND, Kind::LinuxBridge) => 1.0,
            (Scenario::Tcp, VALUE, Kind::LinuxBridge) => 1.0,
            (Scenario::Tcp, VALUE, Kind::OvsAfxdp | Kind::OvsAfxdpVxlan) => 5.0,
            (Scenario::Tcp, VALUE, Kind::LinuxVxlan) => 1.5,
            (Scenario::Tcp, VALUE, Kind::LinuxBridgeForwarding) => 0.5,
            (Scenario::UdpRr, VALUE, Kind::LinuxBridge) => 0.5,
            (Scenario::TcpRr, VALUE, Kind::LinuxBridge) => 0.65,
            (Scenario::UdpRr | Scenario::TcpRr, VALUE, Kind::LinuxVxlan) => 0.6,
            (Scenario::VxlanEncap, VALUE, Kind::LinuxVxlan) => 2.0,
            (Scenario::VxlanEncap, VALUE, Kind::OvsAfxdpVxlan) => 2.2,
            (Scenario::VxlanDecap, VALUE, Kind::LinuxVxlan) => 1.8,
            (Scenario::VxlanDecap, VALUE, Kind::OvsAfxdpVxlan) => 2.0,
            (Scenario::NewUdp | Scenario::NewTcp, VALUE, Kind::NftMasquerade) => 1.5,
            (Scenario::UdpRr | Scenario::TcpRr, "p99_us", Kind::LinuxBridge) => 0.9,
            _ => return None,
        };
        Some(Bar {
            limit,
            better: figure.better,
        })
    }

    /// A figure of Spinlane as shipped that has a bar of its own, whatever a
    /// peer does.
    #[must_use]
    pub fn own_bar(self) -> Option<(Figure, Bar)> {
        let figure = Figure {
            name: "retransmits",
            title: "TCP, one stream, segments sent again",
            unit: "segments",
            better: Better::Lower,
        };
        let bar = Bar {
            limit: 0.0,
            better: Better::Lower,
        };
        (self == Scenario::Tcp).then_some((figure, bar))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_pass_by_the_end_of_the_interval_that_is_worse() {
        let [rate, _] = Scenario::Frames64.figures()[..] else {
            panic!("{:?}", Scenario::Frames64.figures())
        };
        let bar = Scenario::Frames64.bar(&rate, Kind::LinuxBridge).unwrap();
        assert!(bar.passes((1.6, 2.0)) && !bar.passes((1.59, 2.0)));
        let [time, p99] = Scenario::UdpRr.figures()[..] else {
            panic!("{:?}", Scenario::UdpRr.figures())
        };
        let bar = Scenario::UdpRr.bar(&time, Kind::LinuxBridge).unwrap();
        assert!(bar.passes((0.2, 0.5)) && !bar.passes((0.2, 0.51)));
        let bar = Scenario::UdpRr.bar(&p99, Kind::LinuxBridge).unwrap();
        assert!(bar.passes((0.2, 0.9)) && !bar.passes((0.2, 0.91)));
        assert_eq!(Scenario::UdpRr.bar(&time, Kind::TcRedirect), None);
        let (_, none_again) = Scenario::Tcp.own_bar().unwrap();
        assert!(none_again.passes((0.0, 0.0)) && !none_again.passes((0.0, 1.0)));
    }
}
