#!/usr/bin/python3
"""Writes overlay.txt: what crosses the node's border, by scapy.

One line a case: name | port | request | verdict | bytes that leave.
The node is the one of world.rs with its underlay. The UDP source port of an
outer packet is the switch's to choose; here it is 49152. Run it again after a
change:
    /usr/bin/python3 overlay.py > overlay.txt
"""
import logging
logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.all import *
from scapy.layers.inet6 import *
from scapy.layers.vxlan import VXLAN

A, BLUE_A, UPLINK = 1, 10, 25
GW_MAC, POD_MAC, BLUE_MAC = "0a:58:0a:f4:01:01", "0a:58:0a:f4:01:02", "0a:58:0a:32:00:0a"
UP_MAC, NEAR_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
VTEP_MAC, FAR_MAC = "0a:58:ac:1f:00:01", "0a:58:ac:1f:00:02"
NODE4, FAR4, NODE6, FAR6 = "172.31.0.1", "172.31.0.2", "fd00:1f::1", "fd00:1f::2"
POD4, POD6, GW4, GW6 = "10.244.1.2", "fd00:1::2", "10.244.1.1", "fd00:1::1"


def line(name, port, request, verdict, expect=b""):
    print(f"{name} | {port} | {bytes(request).hex()} | {verdict} | {bytes(expect).hex()}")


def drop(name, request, reason, port=UPLINK):
    line(name, port, request, f"drop {reason}")


def over4(inner, vni=7, tos=0, **kw):
    return (Ether(src=UP_MAC, dst=NEAR_MAC)
            / IP(src=NODE4, dst=FAR4, ttl=64, id=0, flags="DF", tos=tos)
            / UDP(sport=49152, dport=4789, chksum=0) / VXLAN(vni=vni, flags=8) / inner)


def over6(inner, vni=7, tos=0):
    return (Ether(src=UP_MAC, dst=NEAR_MAC)
            / IPv6(src=NODE6, dst=FAR6, hlim=64, tc=tos)
            / UDP(sport=49152, dport=4789) / VXLAN(vni=vni, flags=8) / inner)


def from4(inner, vni=7, tos=0, src=FAR4, flags=8, **udp):
    return (Ether(src=NEAR_MAC, dst=UP_MAC) / IP(src=src, dst=NODE4, tos=tos, ttl=61, id=77)
            / UDP(**{"sport": 50000, "dport": 4789, "chksum": 0, **udp})
            / VXLAN(vni=vni, flags=flags) / inner)


def from6(inner, tos=0):
    return (Ether(src=NEAR_MAC, dst=UP_MAC) / IPv6(src=FAR6, dst=NODE6, tc=tos, hlim=61)
            / UDP(sport=50000, dport=4789) / VXLAN(vni=7, flags=8) / inner)


def sent(ip):
    return Ether(src=POD_MAC, dst=GW_MAC) / ip


def far(ip):
    return Ether(src=VTEP_MAC, dst=FAR_MAC) / ip


def came(ip):
    return Ether(src=FAR_MAC, dst=VTEP_MAC) / ip


def local(ip):
    return Ether(src=GW_MAC, dst=POD_MAC) / ip


def patched(packet, at, new):
    b = bytearray(bytes(packet))
    b[at:at + len(new)] = new
    return bytes(b)


def partial(packet, transport, field):
    """The pseudo-header's sum alone stands in the field."""
    b = bytearray(bytes(packet))
    length = len(b) - transport
    pseudo = bytes(b[26:34]) + bytes([0, b[23]]) + length.to_bytes(2, "big")
    total = sum(int.from_bytes(pseudo[i:i + 2], "big") for i in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    b[transport + field:transport + field + 2] = total.to_bytes(2, "big")
    return bytes(b)


L4 = UDP(sport=1234, dport=53) / Raw(b"hello, remote pod")

# Out.
for tos in (0, 0x01, 0x02, 0x03, 0xb8, 0xbb):
    for name, dst, outer in (("v4", "10.244.2.9", over4), ("v6", "10.244.3.9", over6)):
        ip = lambda ttl: IP(src=POD4, dst=dst, ttl=ttl, id=5, tos=tos) / L4
        line(f"out: IPv4 over {name}, class {tos:#x}", A, sent(ip(64)),
             "forward 25 -", outer(far(ip(63)), tos=tos))
    ip = lambda hops: IPv6(src=POD6, dst="fd00:2::9", hlim=hops, tc=tos) / L4
    line(f"out: IPv6 over v4, class {tos:#x}", A, sent(ip(64)),
         "forward 25 -", over4(far(ip(63)), tos=tos))
tcp = lambda ttl: IP(src=POD4, dst="10.244.2.9", ttl=ttl, id=6) / TCP(sport=9, dport=80, seq=1, flags="PA") / Raw(b"x" * 101)
line("out: a partial checksum is finished", A, partial(sent(tcp(64)), 34, 16), "forward 25 -", over4(far(tcp(63))))
tcp = lambda ttl: IP(src=POD4, dst="10.244.3.9", ttl=ttl, id=6) / TCP(sport=9, dport=80, seq=1, flags="PA") / Raw(b"x" * 101)
line("out: a partial checksum is finished, over v6", A, partial(sent(tcp(64)), 34, 16), "forward 25 -", over6(far(tcp(63))))
full = lambda ttl, dst: IP(src=POD4, dst=dst, ttl=ttl, flags="DF", id=8) / UDP(sport=7, dport=7) / Raw(b"y" * (1450 - 28))
line("out: as long as the path takes", A, sent(full(64, "10.244.2.9")), "forward 25 -", over4(far(full(63, "10.244.2.9"))))
ip = IP(src=POD4, dst="10.244.4.9", ttl=64, id=5) / L4
line("out: by a neighbour", A, sent(ip), "forward 25 -",
     Ether(src=UP_MAC, dst=NEAR_MAC) / IP(src=POD4, dst="10.244.4.9", ttl=63, id=5) / L4)
line("out: by a neighbour, partial", A, partial(sent(ip), 34, 6), "forward 25 -",
     Ether(src=UP_MAC, dst=NEAR_MAC) / IP(src=POD4, dst="10.244.4.9", ttl=63, id=5) / L4)
waits = sent(IP(src=POD4, dst="10.244.5.9") / L4)
line("out: by a neighbour that is not resolved", A, waits, "wait 2", waits)
big = sent(full(64, "10.244.3.9"))
line("out: too long for the path over v6", A, big, "reply too_big",
     Ether(src=GW_MAC, dst=POD_MAC) / IP(src=GW4, dst=POD4, ttl=64, id=0, tos=0xc0, flags="DF")
     / ICMP(type=3, code=4, nexthopmtu=1430) / Raw(bytes(big)[14:14 + 548]))
line("out: hops ran out", A, sent(IP(src=POD4, dst="10.244.2.9", ttl=1, id=5) / L4), "reply ttl_exceeded",
     Ether(src=GW_MAC, dst=POD_MAC) / IP(src=GW4, dst=POD4, ttl=64, id=0, tos=0xc0, flags="DF")
     / ICMP(type=11, code=0) / Raw(bytes(IP(src=POD4, dst="10.244.2.9", ttl=1, id=5) / L4)))

# In.
ip4 = lambda ttl, tos=0: IP(src="10.244.2.9", dst=POD4, ttl=ttl, id=5, tos=tos) / L4
ip43 = lambda ttl, tos=0: IP(src="10.244.3.9", dst=POD4, ttl=ttl, id=5, tos=tos) / L4
ip6 = lambda hops, tos=0: IPv6(src="fd00:2::9", dst=POD6, hlim=hops, tc=tos) / L4
# RFC 6040, figure 4: the mark that leaves, by outer and inner mark.
figure = {(o, i): i for o in range(4) for i in range(4)}
figure.update({(3, 0): None, (3, 1): 3, (3, 2): 3, (1, 2): 1})
for (outer, inner), out in figure.items():
    for name, ip, over in (("IPv4 over v4", ip4, from4), ("IPv4 over v6", ip43, from6), ("IPv6 over v4", ip6, from4)):
        request = over(came(ip(64, 0xb8 | inner)), tos=0x28 | outer)
        case = f"in: {name}, mark {outer} over {inner}"
        if out is None:
            drop(case, request, "ecn_not_capable")
        else:
            line(case, UPLINK, request, "forward 1 -", local(ip(63, 0xb8 | out)))
line("in: padded", UPLINK, bytes(from4(came(ip4(64)))) + bytes(9), "forward 1 -", local(ip4(63)))
line("in: other flags and reserved bits are ignored", UPLINK, patched(from4(came(ip4(64))), 42, b"\x8f\1\2\3"), "forward 1 -", local(ip4(63)))
good = from4(came(ip4(64)))
drop("in: another VNI", from4(came(ip4(64)), vni=8), "wrong_vni")
drop("in: no VNI", from4(came(ip4(64)), flags=0), "bad_vxlan")
drop("in: a stranger", from4(came(ip4(64)), src="172.31.0.66"), "unknown_vtep")
drop("in: UDP longer than IP", from4(came(ip4(64)), len=200), "bad_outer_length")
drop("in: UDP shorter than IP", from4(came(ip4(64)), len=60), "bad_outer_length")
drop("in: UDP without a VXLAN header", Ether(src=NEAR_MAC, dst=UP_MAC) / IP(src=FAR4, dst=NODE4) / UDP(sport=50000, dport=4789, chksum=0) / Raw(b"abc"), "bad_outer_length")
drop("in: cut off", bytes(good)[:-3], "bad_outer_length")
drop("in: outer checksum", patched(good, 22, b"\x07"), "bad_checksum")
drop("in: nothing inside", from4(Raw(b"short")), "bad_inner_length")
drop("in: an inner packet longer than its frame", from4(Ether(src=FAR_MAC, dst=VTEP_MAC, type=0x800) / Raw(patched(IP(src="10.244.2.9", dst=POD4, len=255) / L4, 0, b""))), "bad_length")
drop("in: an inner frame to another MAC", from4(Ether(src=FAR_MAC, dst=FAR_MAC) / ip4(64)), "wrong_mac")
drop("in: a source behind another end", from4(came(ip43(64))), "spoofed")
drop("in: a source of this node", from4(came(IP(src="10.244.1.3", dst=POD4) / L4)), "spoofed")
drop("in: to another node", from4(came(IP(src="10.244.2.9", dst="10.244.3.9") / L4)), "split_horizon")
drop("in: to a neighbour", from4(came(IP(src="10.244.2.9", dst="10.244.4.9") / L4)), "split_horizon")
drop("in: by the underlay, from a pod of this node", Ether(src=NEAR_MAC, dst=UP_MAC) / IP(src="10.244.1.3", dst=POD4) / L4, "spoofed")
line("in: by the underlay", UPLINK, Ether(src=NEAR_MAC, dst=UP_MAC) / IP(src="10.244.4.9", dst=POD4, ttl=64, id=1) / L4, "forward 1 -", local(IP(src="10.244.4.9", dst=POD4, ttl=63, id=1) / L4))

# Answers through the overlay.
ask = Ether(src=FAR_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=FAR_MAC, psrc="10.244.2.1", pdst=POD4)
say = Ether(src=VTEP_MAC, dst=FAR_MAC) / ARP(op=2, hwsrc=VTEP_MAC, psrc=POD4, hwdst=FAR_MAC, pdst="10.244.2.1")
line("in: who has the pod", UPLINK, from4(ask), "reply", over4(say))
ask = Ether(src=FAR_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=FAR_MAC, psrc="10.244.2.1", pdst="10.244.3.9")
drop("in: who has a pod elsewhere", from4(ask), "neighbor_ignored")
ns = Ether(src=FAR_MAC, dst="33:33:ff:00:00:02") / IPv6(src="fd00:2::1", dst="ff02::1:ff00:2", hlim=255) / ICMPv6ND_NS(tgt=POD6) / ICMPv6NDOptSrcLLAddr(lladdr=FAR_MAC)
na = Ether(src=VTEP_MAC, dst=FAR_MAC) / IPv6(src=POD6, dst="fd00:2::1", hlim=255) / ICMPv6ND_NA(tgt=POD6, R=1, S=1, O=0) / ICMPv6NDOptDstLLAddr(lladdr=VTEP_MAC)
line("in: who has the pod, IPv6", UPLINK, from4(ns), "reply", over4(na))
echo = lambda src, dst, kind, ttl: IP(src=src, dst=dst, ttl=ttl, id=5) / ICMP(type=kind, id=1, seq=2) / Raw(b"ping")
line("in: echo to the gateway", UPLINK, from4(came(echo("10.244.2.9", GW4, 8, 9))), "reply",
     over4(far(echo(GW4, "10.244.2.9", 0, 64))))
line("in: hops ran out", UPLINK, from4(came(ip4(1))), "reply ttl_exceeded",
     over4(far(IP(src=GW4, dst="10.244.2.9", ttl=64, id=0, tos=0xc0, flags="DF") / ICMP(type=11, code=0) / Raw(bytes(ip4(1)))), tos=0xc0))

# News of the underlay.
outer = bytes(over4(far(ip4(64))))[14:14 + 28]
drop("in: the path over the underlay is narrower",
     Ether(src=NEAR_MAC, dst=UP_MAC) / IP(src="172.31.0.254", dst=NODE4) / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(outer), "outer_undelivered")
outer = bytes(over6(far(ip4(64))))[14:14 + 48]
drop("in: the path over the underlay is narrower, IPv6",
     Ether(src=NEAR_MAC, dst=UP_MAC) / IPv6(src="fd00:1f::fe", dst=NODE6) / ICMPv6PacketTooBig(mtu=1380) / Raw(outer), "outer_undelivered")
outer = bytes(IP(src=NODE4, dst="172.31.0.66") / UDP(sport=50000, dport=4789) / Raw(b"12345678"))
drop("in: an error about a packet to a stranger",
     Ether(src=NEAR_MAC, dst=UP_MAC) / IP(src="172.31.0.254", dst=NODE4) / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(outer), "unknown_vtep")
drop("in: an error about somebody else's packet",
     Ether(src=NEAR_MAC, dst=UP_MAC) / IP(src="172.31.0.254", dst=NODE4) / ICMP(type=3, code=4, nexthopmtu=1400)
     / Raw(bytes(IP(src=NODE4, dst=FAR4) / UDP(sport=1, dport=53) / Raw(b"12345678"))), "no_endpoint")

# Segment 0.
frame = Ether(src=FAR_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=FAR_MAC, psrc="10.50.0.99", pdst="10.50.0.10")
line("in: a segment's broadcast", UPLINK, from4(frame, vni=100), "flood 0", frame)
frame = Ether(src=BLUE_MAC, dst=FAR_MAC) / IP(src="10.50.0.10", dst="10.50.0.99") / L4
line("out: a segment's unknown station", BLUE_A, frame, "flood 0", frame)
