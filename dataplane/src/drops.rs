//! Why packets are dropped: one variant, one name, one counter.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a packet was dropped. Names are stable: they stand in metrics,
        /// in `spinlane drops` and in the comments of captured packets.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The reason's name.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than the headers it claims (Ethernet, ARP, IP or transport).
    Runt => "runt",
    /// Longer than a frame chain may be, or longer than the path and not to
    /// be fragmented.
    Oversize => "oversize",
    /// Header or total length fields contradict the frame.
    BadLength => "bad_length",
    /// Checksum of an IPv4 header or of a neighbour discovery message is
    /// wrong.
    BadChecksum => "bad_checksum",
    /// IP version or header length field is malformed.
    BadHeader => "bad_header",
    /// IPv4 options that are refused (source routing, RFC 7126) or malformed.
    BadOptions => "bad_options",
    /// IPv6 extension headers malformed or more than are walked.
    BadExtension => "bad_extension",
    /// Fragment with an impossible offset or length, or too small a first one
    /// (RFC 1858, RFC 5722).
    BadFragment => "bad_fragment",
    /// Source or destination address that may not cross a link.
    Martian => "martian",
    /// Source and destination address are the same.
    SelfAddressed => "self_addressed",
    /// Source IP address is not the pod's.
    Spoofed => "spoofed",
    /// Source MAC address is not the pod's.
    SpoofedMac => "spoofed_mac",
    /// ARP or neighbour discovery that claims an address of somebody else.
    SpoofedNeighbor => "spoofed_neighbor",
    /// Destination MAC is neither the gateway's nor a group.
    WrongMac => "wrong_mac",
    /// EtherType that routed pods have no use for.
    UnknownEthertype => "unknown_ethertype",
    /// Multicast or broadcast that nobody on a routed network wants.
    Multicast => "multicast",
    /// ARP or neighbour discovery that is not to be answered.
    NeighborIgnored => "neighbor_ignored",
    /// TTL or hop limit ran out.
    TtlExceeded => "ttl_exceeded",
    /// No route to the destination.
    NoRoute => "no_route",
    /// An address of this node's pod range that no pod holds.
    NoEndpoint => "no_endpoint",
    /// Addressed to the gateway itself with something it does not serve.
    GatewayUnserved => "gateway_unserved",
    /// A fragment for the gateway itself that is of no echo request, or whose
    /// first piece did not come; nothing is reassembled.
    GatewayFragment => "gateway_fragment",
    /// Bigger than the path takes: fragmentation-needed or packet-too-big
    /// was answered.
    TooBig => "too_big",
    /// Segment gone, or the port belongs to none.
    NoSegment => "no_segment",
    /// Destination in a segment lies behind the port it came from.
    SamePort => "same_port",
    /// Source MAC is a group address or the segment's guard refuses it.
    BadSourceMac => "bad_source_mac",
    /// Bridge protocol group (spanning tree, LLDP, pause) that no switch
    /// forwards.
    ReservedGroup => "reserved_group",
    /// A pod's fragmentation-needed about a super-frame that was delivered to
    /// it: it gets segments from now on, and the sender must not hear of it.
    SuperFrameRefused => "super_frame_refused",
    /// An outer packet whose IP or UDP length contradicts the frame.
    BadOuterLength => "bad_outer_length",
    /// An outer packet without the VNI flag.
    BadVxlan => "bad_vxlan",
    /// A VNI that this node takes no part in.
    WrongVni => "wrong_vni",
    /// An outer packet from an address that is no remote end of its network.
    UnknownVtep => "unknown_vtep",
    /// An outer packet too short for an inner frame.
    BadInnerLength => "bad_inner_length",
    /// A congestion mark that the inner packet's sender would not understand
    /// (RFC 6040, section 4.2).
    EcnNotCapable => "ecn_not_capable",
    /// No room before the packet for outer headers.
    NoHeadroom => "no_headroom",
    /// Came from another node and would have to leave to another one.
    SplitHorizon => "split_horizon",
    /// An ICMP error about an outer packet: control was told when it named the
    /// path's MTU.
    OuterUndelivered => "outer_undelivered",
    /// A neighbour on the underlay was not resolved in time.
    NeighborUnresolved => "neighbor_unresolved",
    /// More packets than may wait for a neighbour.
    NeighborQueueFull => "neighbor_queue_full",
    /// A frame of a station that moves to and fro too often.
    StationHeld => "station_held",
    /// To a masquerade port, from somebody whom the pod behind it did not
    /// address; an ICMP error about no known connection; or a pod's answer to
    /// somebody outside who did not ask.
    NoConnection => "no_connection",
    /// The uplink has no address of the family to masquerade with.
    NoMasqueradeAddress => "no_masquerade_address",
    /// Masquerade has no port left towards this destination.
    NoMasqueradePort => "no_masquerade_port",
    /// A protocol, or kind of ICMP, that masquerade does not translate.
    MasqueradeUnsupported => "masquerade_unsupported",
    /// The pod has its share of the connection table: of what it begins, or of
    /// what somebody outside begins.
    ConnectionLimit => "connection_limit",
    /// The connection table, or the part of it for what begins outside, is
    /// full of connections that are worth more.
    ConnectionTableFull => "connection_table_full",
    /// A later fragment whose first piece was not seen, so that nobody knows
    /// its port.
    FirstFragmentMissing => "first_fragment_missing",
    /// The port it should leave by is gone.
    PortGone => "port_gone",
    /// The port's transmit ring is full.
    TxRingFull => "tx_ring_full",
    /// The kernel refused the transmit (device down or gone).
    TxFailed => "tx_failed",
    /// No free frame for a copy.
    NoFrames => "no_frames",
    /// A chain of descriptors broke off or is longer than a transmit takes.
    BrokenChain => "broken_chain",
    /// The kernel found no chunk posted for filling.
    RxNoFrame => "rx_no_frame",
    /// The lane did not empty the receive ring in time.
    RxRingFull => "rx_ring_full",
    /// Its port is not in the snapshot, not yet or no more, or it was still
    /// queued when the port was removed.
    PortRemoved => "port_removed",
}

/// Where an unknown reason would land in a counter array: nowhere. Indexing by
/// `reason as usize` is always within [`DropReason::COUNT`].
impl DropReason {
    /// Index of the reason's counter.
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_fit_a_metric_label() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        for name in names {
            assert!(
                name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'),
                "{name}"
            );
        }
    }

    #[test]
    fn index_follows_all() {
        for (position, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), position);
        }
    }
}
