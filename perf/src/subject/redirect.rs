//! A tc program that hands frames from one pod's host end into the other
//! pod by `bpf_redirect_peer`: what a CNI plugin whose datapath is eBPF in
//! the kernel does, without its lookups. It knows one destination and asks
//! for no policy and no connection, so it is the floor of what such a
//! datapath costs.

use std::net::{Ipv4Addr, Ipv6Addr};

use nix::net::if_::if_nametoindex;

use crate::bpf::assembly::{
    Assembler, Condition, Helper, Instruction, R0, R1, R2, R3, R4, R5, R6, R7, R10, Width,
};
use crate::bpf::context::{ETHERTYPE_V4, ETHERTYPE_V6, SKB_PROTOCOL, TCX_NEXT};
use crate::bpf::{Attachment, Program, ProgramType};
use crate::measure::{MeasureError, io_error};
use crate::packet::Mac;
use crate::path::device_mac;
use crate::subject::peer::Peer;
use crate::subject::{Kind, kernel_settings, routed, setting};

const DESTINATION_V4_AT: i32 = 30;
const DESTINATION_V6_AT: i32 = 38;

/// A program in its place; dropping it takes it out.
#[derive(Debug)]
pub(super) struct Redirection {
    _attachment: Attachment,
    _program: Program,
}

/// A pod that frames are handed to.
struct Destination {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    /// Its own device's, and its host end's: the new Ethernet addresses.
    macs: [Mac; 2],
    host_end: u32,
}

/// Two pods, their host ends redirecting to each other.
pub(super) fn set_up() -> Result<Peer, MeasureError> {
    let mut peer = routed::forwarding(Kind::TcRedirect)?;
    for (from, to) in [(0, 1), (1, 0)] {
        let redirection = redirect(&peer, from, to)?;
        peer.redirections.push(redirection);
    }
    peer.settings = kernel_settings(&peer, 1500)?;
    peer.settings.push(setting(
        "program",
        "one destination by its address, no policy, no connections",
    ));
    Ok(peer)
}

fn redirect(peer: &Peer, from: usize, to: usize) -> Result<Redirection, MeasureError> {
    let (node, pod) = (&peer.nodes[0], &peer.pods[to]);
    let macs = [
        device_mac(&pod.namespace, "eth0")?,
        device_mac(node, &pod.host_end)?,
    ];
    let (std::net::IpAddr::V4(v4), std::net::IpAddr::V6(v6)) = (pod.v4, pod.v6) else {
        return Err(MeasureError::Unexpected {
            what: "addresses of a pod".to_owned(),
            detail: format!("{} and {}", pod.v4, pod.v6),
        });
    };
    node.enter(|| {
        let index = |name: &str| {
            if_nametoindex(name)
                .map_err(std::io::Error::from)
                .map_err(io_error(format!("looking for the device {name}")))
        };
        let code = code(&Destination {
            v4,
            v6,
            macs,
            host_end: index(&pod.host_end)?,
        });
        let program = Program::load(ProgramType::Tc, "redirect", &code)?;
        let attachment = program.attach_ingress(index(&peer.pods[from].host_end)?)?;
        Ok(Redirection {
            _attachment: attachment,
            _program: program,
        })
    })?
}

/// Rewrites the Ethernet addresses of what goes to the destination and
/// redirects it; the rest (neighbour discovery, the gateway) is the stack's.
fn code(to: &Destination) -> Vec<Instruction> {
    let mut program = Assembler::new();
    let [v4, v6, ours, pass] = std::array::from_fn(|_| program.label());
    program.copy(R6, R1);
    program.load(Width::Word, R7, R6, SKB_PROTOCOL);
    program.jump_if(R7, Condition::Equal, ETHERTYPE_V4.to_be().into(), v4);
    program.jump_if(R7, Condition::Equal, ETHERTYPE_V6.to_be().into(), v6);
    program.jump_to(pass);
    program.place(v4);
    program.load_packet(Width::Word, DESTINATION_V4_AT);
    program.jump_if_word_not_equal(R0, to.v4.to_bits().cast_signed(), pass);
    program.jump_to(ours);
    program.place(v6);
    for (number, word) in words(to.v6).into_iter().enumerate() {
        program.load_packet(Width::Word, DESTINATION_V6_AT + 4 * number as i32);
        program.jump_if_word_not_equal(R0, word, pass);
    }
    program.place(ours);
    for (number, word) in ethernet_words(to.macs).into_iter().enumerate() {
        program.set(R1, word);
        program.store(Width::Word, R1, R10, -12 + 4 * number as i16);
    }
    program.copy(R1, R6);
    program.set(R2, 0);
    program.copy(R3, R10);
    program.add(R3, -12);
    program.set(R4, 12);
    program.set(R5, 0);
    program.call(Helper::SkbStoreBytes);
    program.set(R1, to.host_end.cast_signed());
    program.set(R2, 0);
    program.call(Helper::RedirectPeer);
    program.exit();
    program.place(pass);
    program.set(R0, TCX_NEXT);
    program.exit();
    program.finish()
}

/// An address in the words that a packet load gives.
fn words(address: Ipv6Addr) -> [i32; 4] {
    let bits = address.to_bits();
    [96, 64, 32, 0].map(|shift| ((bits >> shift) as u32).cast_signed())
}

/// Destination and source as they stand in memory.
fn ethernet_words(macs: [Mac; 2]) -> [i32; 3] {
    let mut bytes = [0u8; 12];
    bytes[..6].copy_from_slice(&macs[0].0);
    bytes[6..].copy_from_slice(&macs[1].0);
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1, 2].map(|number| i32::from_ne_bytes(words[number]))
}
