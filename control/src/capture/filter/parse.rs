//! Text to expression, with errors that show the word and what fits there.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::IpNet;
use spinlane_dataplane::drops::DropReason;
use spinlane_dataplane::types::MacAddr;

use super::decode::{ICMP, ICMP6, SCTP, TCP, UDP};
use super::{Direction, Expression, Network, Primitive, Scope};

/// An expression that means nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {text:?}: {what}")]
pub struct FilterError {
    text: String,
    what: String,
}

/// Parentheses and negations that may be open at once; deeper expressions
/// would take the parser's stack.
const DEEPEST: usize = 64;

/// Port names that everybody types.
const PORT_NAMES: &[(&str, u16)] = &[
    ("domain", 53),
    ("http", 80),
    ("https", 443),
    ("ssh", 22),
    ("bootps", 67),
    ("bootpc", 68),
    ("ntp", 123),
];

pub(super) fn parse(text: &str) -> Result<Expression, FilterError> {
    let mut parser = Parser {
        words: words(text),
        at: 0,
        depth: 0,
        last: None,
    };
    let parsed = parser
        .expression()
        .and_then(|expression| match parser.peek() {
            None => Ok(expression),
            Some(")") => Err("a closing parenthesis without an opening one".to_owned()),
            Some(word) => Err(format!(
                "{word:?} where \"and\", \"or\" or the end was expected"
            )),
        });
    parsed.map_err(|what| FilterError {
        text: text.to_owned(),
        what,
    })
}

fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '(' | ')' => 1,
            '!' => 1,
            '&' | '|' if rest[1..].starts_with(first) => 2,
            _ => rest
                .find(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '!' | '&' | '|'))
                .unwrap_or(rest.len())
                .max(first.len_utf8()),
        };
        words.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    words
}

/// What the value that comes next is, by the words before it.
#[derive(Debug, Clone, Copy)]
struct Qualifiers {
    scope: Option<Qualifier>,
    direction: Direction,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Qualifier {
    Ether,
    Of(Scope),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Host,
    Net,
    Port,
    PortRange,
    Proto,
}

type Parsed<T> = Result<T, String>;

struct Parser<'t> {
    words: Vec<&'t str>,
    at: usize,
    depth: usize,
    last: Option<Qualifiers>,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<&'t str> {
        self.words.get(self.at).copied()
    }

    fn next(&mut self, expected: &str) -> Parsed<&'t str> {
        let word = self
            .peek()
            .ok_or_else(|| format!("it ends where {expected} was expected"))?;
        self.at += 1;
        Ok(word)
    }

    fn accept(&mut self, words: &[&str]) -> bool {
        let found = self.peek().is_some_and(|word| words.contains(&word));
        self.at += usize::from(found);
        found
    }

    /// `and` and `or` bind equally, from the left.
    fn expression(&mut self) -> Parsed<Expression> {
        let mut left = self.term()?;
        loop {
            if self.accept(&["and", "&&"]) {
                left = Expression::And(Box::new(left), Box::new(self.term()?));
            } else if self.accept(&["or", "||"]) {
                left = Expression::Or(Box::new(left), Box::new(self.term()?));
            } else {
                return Ok(left);
            }
        }
    }

    fn term(&mut self) -> Parsed<Expression> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!(
                "more than {DEEPEST} parentheses and negations are open"
            ));
        }
        let term = if self.accept(&["not", "!"]) {
            Expression::Not(Box::new(self.term()?))
        } else if self.accept(&["("]) {
            let inner = self.expression()?;
            if !self.accept(&[")"]) {
                return Err("a parenthesis is not closed".to_owned());
            }
            inner
        } else {
            Expression::Is(self.primitive()?)
        };
        self.depth -= 1;
        Ok(term)
    }

    fn primitive(&mut self) -> Parsed<Primitive> {
        let word = self
            .peek()
            .ok_or("it ends where a condition was expected, as in \"host 10.244.1.2\"")?;
        if let Some(simple) = self.simple(word)? {
            return Ok(simple);
        }
        let start = self.at;
        let scope = self.scope();
        if let Some(group) = self.group(scope)? {
            return Ok(group);
        }
        let direction = self.direction();
        let kind = self.kind();
        if kind.is_none() && direction.is_none() {
            match scope {
                Some(Qualifier::Of(scope)) if !self.value_follows() => return Ok(alone(scope)),
                None => return self.bare(),
                _ => {}
            }
        }
        let qualifiers = Qualifiers {
            scope,
            direction: direction.unwrap_or(Direction::Either),
            kind: kind.unwrap_or(Kind::Host),
        };
        debug_assert!(self.at > start, "qualifiers without a word");
        self.last = Some(qualifiers);
        self.value(qualifiers)
    }

    /// Conditions that take no qualifiers.
    fn simple(&mut self, word: &str) -> Parsed<Option<Primitive>> {
        let at = self.at;
        self.at += 1;
        Ok(Some(match word {
            "broadcast" => Primitive::Broadcast,
            "multicast" => Primitive::EtherMulticast,
            "inbound" => Primitive::Inbound,
            "outbound" => Primitive::Outbound,
            "less" => Primitive::Less(self.number("a length in bytes")?),
            "greater" => Primitive::Greater(self.number("a length in bytes")?),
            "vlan" => Primitive::Vlan(self.vlan()?),
            "dropped" => Primitive::Dropped(self.reason()),
            _ => {
                self.at = at;
                return Ok(None);
            }
        }))
    }

    fn number<T: FromStr>(&mut self, expected: &str) -> Parsed<T> {
        let word = self.next(expected)?;
        word.parse()
            .map_err(|_| format!("{word:?} where {expected} was expected"))
    }

    fn vlan(&mut self) -> Parsed<Option<u16>> {
        let numeric = |word: &str| word.bytes().all(|c| c.is_ascii_digit());
        if !self.peek().is_some_and(numeric) {
            return Ok(None);
        }
        let id: u16 = self.number("a VLAN from 0 to 4095")?;
        match id {
            0..=4095 => Ok(Some(id)),
            _ => Err(format!("VLAN {id} where one from 0 to 4095 was expected")),
        }
    }

    fn reason(&mut self) -> Option<&'static str> {
        let word = self.peek()?;
        let reason = DropReason::ALL.iter().find(|r| r.name() == word)?;
        self.at += 1;
        Some(reason.name())
    }

    fn scope(&mut self) -> Option<Qualifier> {
        let scope = match self.peek()? {
            "ether" => Qualifier::Ether,
            "ip" => Qualifier::Of(Scope::Network(Network::V4)),
            "ip6" => Qualifier::Of(Scope::Network(Network::V6)),
            "arp" => Qualifier::Of(Scope::Network(Network::Arp)),
            name => Qualifier::Of(Scope::Transport(transport(name)?)),
        };
        self.at += 1;
        Some(scope)
    }

    /// `ether broadcast`, `ip multicast` and their like.
    fn group(&mut self, scope: Option<Qualifier>) -> Parsed<Option<Primitive>> {
        let found = match (scope, self.peek()) {
            (Some(Qualifier::Ether), Some("broadcast")) => Primitive::Broadcast,
            (Some(Qualifier::Ether), Some("multicast")) => Primitive::EtherMulticast,
            (
                Some(Qualifier::Of(Scope::Network(network @ (Network::V4 | Network::V6)))),
                Some("multicast"),
            ) => Primitive::IpMulticast(network),
            (Some(_), Some(word @ ("broadcast" | "multicast"))) => {
                return Err(format!("{word:?} goes with ether, ip or ip6"));
            }
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(found))
    }

    fn direction(&mut self) -> Option<Direction> {
        let first = self.peek()?;
        if first != "src" && first != "dst" {
            return None;
        }
        self.at += 1;
        let second = self.words.get(self.at..self.at + 2);
        match second {
            Some([joint, other]) if *other != first && (*other == "src" || *other == "dst") => {
                let both = match *joint {
                    "or" => Direction::Either,
                    "and" => Direction::Both,
                    _ => return Some(one(first)),
                };
                // `src host A and dst host B` has a kind or a value before the
                // joint; here the two directions stand side by side.
                self.at += 2;
                Some(both)
            }
            _ => Some(one(first)),
        }
    }

    fn kind(&mut self) -> Option<Kind> {
        let kind = match self.peek()? {
            "host" => Kind::Host,
            "net" => Kind::Net,
            "port" => Kind::Port,
            "portrange" => Kind::PortRange,
            "proto" => Kind::Proto,
            _ => return None,
        };
        self.at += 1;
        Some(kind)
    }

    fn value_follows(&self) -> bool {
        self.peek()
            .is_some_and(|word| word.parse::<IpNet>().is_ok() || word.parse::<IpAddr>().is_ok())
    }

    /// A value alone: of the kind before, else a host or a net.
    fn bare(&mut self) -> Parsed<Primitive> {
        let word = self.peek().unwrap_or_default();
        let is_value = word.parse::<IpAddr>().is_ok()
            || word.parse::<IpNet>().is_ok()
            || word.parse::<MacAddr>().is_ok()
            || word.bytes().all(|c| c.is_ascii_digit() || c == b'-');
        if !is_value {
            return Err(format!(
                "{word:?} is no condition: write one as in \"host 10.244.1.2\", \"tcp port 80\" or \"dropped\""
            ));
        }
        let default = Qualifiers {
            scope: None,
            direction: Direction::Either,
            kind: if word.contains('/') {
                Kind::Net
            } else {
                Kind::Host
            },
        };
        let qualifiers = self.last.unwrap_or(default);
        self.value(qualifiers)
    }

    fn value(&mut self, q: Qualifiers) -> Parsed<Primitive> {
        let scope = match q.scope {
            Some(Qualifier::Ether) => return self.ether_value(q),
            Some(Qualifier::Of(scope)) => Some(scope),
            None => None,
        };
        match q.kind {
            Kind::Host => {
                let word = self.next("an address")?;
                let net = word
                    .parse::<IpAddr>()
                    .map(IpNet::from)
                    .or_else(|_| word.parse::<IpNet>())
                    .map_err(|_| {
                        format!("{word:?} where an address was expected, as in \"host 10.244.1.2\"")
                    })?;
                Ok(Primitive::Address(scope, q.direction, net.trunc()))
            }
            Kind::Net => Ok(Primitive::Address(scope, q.direction, self.net()?)),
            Kind::Port => {
                let port = self.port()?;
                Ok(Primitive::Port(port_scope(scope)?, q.direction, port, port))
            }
            Kind::PortRange => {
                let (first, last) = self.port_range()?;
                Ok(Primitive::Port(
                    port_scope(scope)?,
                    q.direction,
                    first,
                    last,
                ))
            }
            Kind::Proto => match scope {
                None => self.protocol(None),
                Some(Scope::Network(network @ (Network::V4 | Network::V6))) => {
                    self.protocol(Some(network))
                }
                Some(_) => Err("\"proto\" goes with ether, ip or ip6".to_owned()),
            },
        }
    }

    fn ether_value(&mut self, q: Qualifiers) -> Parsed<Primitive> {
        match q.kind {
            Kind::Host => {
                let word = self.next("a MAC address")?;
                let mac = word.parse().map_err(|_| {
                    format!("{word:?} where a MAC address was expected, as in \"ether host 0a:58:0a:f4:01:02\"")
                })?;
                Ok(Primitive::Mac(q.direction, mac))
            }
            Kind::Proto => {
                let word = self.next("an EtherType")?;
                let parsed = match word {
                    "ip" => Some(0x0800),
                    "arp" => Some(0x0806),
                    "ip6" => Some(0x86dd),
                    _ => match word.strip_prefix("0x") {
                        Some(digits) => u16::from_str_radix(digits, 16).ok(),
                        None => word.parse().ok(),
                    },
                };
                parsed.map(Primitive::EtherType).ok_or_else(|| {
                    format!(
                        "{word:?} where an EtherType was expected, as in \"ether proto 0x0800\""
                    )
                })
            }
            Kind::Net | Kind::Port | Kind::PortRange => {
                Err("\"ether\" goes with host, proto, src or dst".to_owned())
            }
        }
    }

    fn net(&mut self) -> Parsed<IpNet> {
        let word = self.next("a prefix")?;
        let refuse =
            || format!("{word:?} where a prefix was expected, as in \"net 10.244.1.0/24\"");
        if let Ok(net) = word.parse::<IpNet>() {
            return Ok(net.trunc());
        }
        let address: IpAddr = word.parse().map_err(|_| refuse())?;
        if !self.accept(&["mask"]) {
            return Ok(address.into());
        }
        let mask: Ipv4Addr = self.number("a mask, as in 255.255.255.0")?;
        IpNet::with_netmask(address, mask.into())
            .map(|net| net.trunc())
            .map_err(|_| format!("{mask} where a mask was expected, as in 255.255.255.0"))
    }

    fn port(&mut self) -> Parsed<u16> {
        let word = self.next("a port")?;
        port(word).ok_or_else(|| format!("{word:?} where a port from 0 to 65535 was expected"))
    }

    fn port_range(&mut self) -> Parsed<(u16, u16)> {
        let word = self.next("a range of ports")?;
        word.split_once('-')
            .and_then(|(first, last)| Some((port(first)?, port(last)?)))
            .filter(|(first, last)| first <= last)
            .ok_or_else(|| {
                format!(
                    "{word:?} where a range of ports was expected, as in \"portrange 8000-8080\""
                )
            })
    }

    fn protocol(&mut self, network: Option<Network>) -> Parsed<Primitive> {
        let word = self.next("a protocol")?;
        // tcpdump wants names that are its own words quoted: `ip proto \tcp`.
        let name = word.trim_start_matches('\\');
        transport(name)
            .or_else(|| name.parse().ok())
            .map(|protocol| Primitive::Protocol(network, protocol))
            .ok_or_else(|| {
                format!("{word:?} where a protocol was expected: tcp, udp, sctp, icmp, icmp6 or a number")
            })
    }
}

fn transport(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(TCP),
        "udp" => Some(UDP),
        "sctp" => Some(SCTP),
        "icmp" => Some(ICMP),
        "icmp6" => Some(ICMP6),
        _ => None,
    }
}

fn one(word: &str) -> Direction {
    match word {
        "src" => Direction::Src,
        _ => Direction::Dst,
    }
}

fn alone(scope: Scope) -> Primitive {
    match scope {
        Scope::Network(network) => Primitive::Network(network),
        Scope::Transport(protocol) => Primitive::Protocol(None, protocol),
    }
}

fn port_scope(scope: Option<Scope>) -> Parsed<Option<u8>> {
    match scope {
        None => Ok(None),
        Some(Scope::Transport(protocol @ (TCP | UDP | SCTP))) => Ok(Some(protocol)),
        Some(_) => Err("ports go with tcp, udp or sctp".to_owned()),
    }
}

fn port(word: &str) -> Option<u16> {
    PORT_NAMES
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, port)| *port)
        .or_else(|| word.parse().ok())
}
