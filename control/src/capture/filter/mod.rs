//! Filter expressions: a subset of pcap-filter(7), evaluated in the agent.
//!
//! ```text
//! expression := term { ("and" | "&&" | "or" | "||") term }
//! term       := ("not" | "!") term | "(" expression ")" | primitive
//! primitive  := [protocol] [direction] ["host"] ADDRESS
//!             | [protocol] [direction] "net" PREFIX ["mask" MASK]
//!             | [tcp|udp|sctp] [direction] ("port" PORT | "portrange" A-B)
//!             | "ether" [direction] ["host"] MAC | "ether" "proto" N
//!             | ["ip"|"ip6"] "proto" NAME | ["ether"|"ip"|"ip6"] "multicast"
//!             | ["ether"] "broadcast" | "vlan" [ID] | "less" N | "greater" N
//!             | "inbound" | "outbound" | "dropped" [REASON] | protocol
//! protocol   := ip | ip6 | arp | tcp | udp | sctp | icmp | icmp6
//! direction  := src | dst | "src or dst" | "src and dst"
//! ```
//!
//! As in pcap-filter(7), `and` and `or` bind equally and from the left, and a
//! value alone repeats the qualifiers of the one before (`port 80 or 443`), or is
//! a host when there is none.
//! Unlike there, `vlan` does not shift what follows: tags are looked through.

mod decode;
mod parse;

use std::net::IpAddr;

use ipnet::IpNet;
use spinlane_dataplane::types::MacAddr;

use crate::views::Packet;
use decode::Headers;
pub use parse::FilterError;

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Expression);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Not(Box<Expression>),
    Is(Primitive),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Primitive {
    Network(Network),
    Protocol(Option<Network>, u8),
    Address(Option<Scope>, Direction, IpNet),
    Port(Option<u8>, Direction, u16, u16),
    Mac(Direction, MacAddr),
    EtherType(u16),
    Broadcast,
    EtherMulticast,
    IpMulticast(Network),
    Vlan(Option<u16>),
    Less(usize),
    Greater(usize),
    Inbound,
    Outbound,
    Dropped(Option<&'static str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    V4,
    V6,
    Arp,
}

/// What may stand before an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Network(Network),
    Transport(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Src,
    Dst,
    Either,
    Both,
}

impl Direction {
    fn holds<T>(self, src: T, dst: T, is: impl Fn(T) -> bool) -> bool {
        match self {
            Direction::Src => is(src),
            Direction::Dst => is(dst),
            Direction::Either => is(src) || is(dst),
            Direction::Both => is(src) && is(dst),
        }
    }
}

impl Filter {
    /// Parses an expression; an empty one is refused.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        parse::parse(text).map(Filter)
    }

    /// Whether a packet is wanted.
    pub fn matches(&self, packet: &Packet) -> bool {
        self.0.holds(packet, &Headers::of(&packet.data))
    }
}

impl Expression {
    fn holds(&self, packet: &Packet, headers: &Headers) -> bool {
        match self {
            Expression::And(a, b) => a.holds(packet, headers) && b.holds(packet, headers),
            Expression::Or(a, b) => a.holds(packet, headers) || b.holds(packet, headers),
            Expression::Not(a) => !a.holds(packet, headers),
            Expression::Is(primitive) => primitive.holds(packet, headers),
        }
    }
}

impl Primitive {
    fn holds(&self, packet: &Packet, headers: &Headers) -> bool {
        match *self {
            Primitive::Network(network) => headers.network == Some(network),
            Primitive::Protocol(network, protocol) => {
                headers.protocol == Some(protocol)
                    && network.is_none_or(|network| headers.network == Some(network))
            }
            Primitive::Address(scope, direction, net) => {
                let in_scope = match scope {
                    None => true,
                    Some(Scope::Network(network)) => headers.network == Some(network),
                    Some(Scope::Transport(protocol)) => headers.protocol == Some(protocol),
                };
                in_scope
                    && headers
                        .addresses
                        .is_some_and(|(src, dst)| direction.holds(src, dst, |a| net.contains(&a)))
            }
            Primitive::Port(protocol, direction, first, last) => {
                protocol.is_none_or(|protocol| headers.protocol == Some(protocol))
                    && headers.ports.is_some_and(|(src, dst)| {
                        direction.holds(src, dst, |p| (first..=last).contains(&p))
                    })
            }
            Primitive::Mac(direction, mac) => headers
                .macs
                .is_some_and(|(src, dst)| direction.holds(src, dst, |m| m == mac)),
            Primitive::EtherType(ethertype) => headers.ethertype == Some(ethertype),
            Primitive::Broadcast => headers
                .macs
                .is_some_and(|(_, dst)| dst == MacAddr::BROADCAST),
            Primitive::EtherMulticast => headers.macs.is_some_and(|(_, dst)| dst.is_multicast()),
            Primitive::IpMulticast(network) => {
                headers.network == Some(network)
                    && headers
                        .addresses
                        .is_some_and(|(_, dst): (IpAddr, IpAddr)| dst.is_multicast())
            }
            Primitive::Vlan(None) => headers.vlan.is_some(),
            Primitive::Vlan(id) => headers.vlan == id,
            Primitive::Less(len) => packet.len <= len,
            Primitive::Greater(len) => packet.len >= len,
            Primitive::Inbound => packet.inbound,
            Primitive::Outbound => !packet.inbound,
            Primitive::Dropped(None) => packet.drop.is_some(),
            Primitive::Dropped(reason) => packet.drop == reason,
        }
    }
}

#[cfg(test)]
mod tests;
