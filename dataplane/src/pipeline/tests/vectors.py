#!/usr/bin/python3
"""Writes vectors.txt: what goes in, and what must come out, by scapy.

One line a case: name | port | request | verdict | bytes that leave.
The node is the one of world.rs. Run it again after a change:
    /usr/bin/python3 vectors.py > vectors.txt
"""
import logging
logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.all import *
from scapy.layers.inet6 import *
from scapy.contrib.geneve import GENEVE

GW_MAC, GW4, GW6, GWL = "0a:58:0a:f4:01:01", "10.244.1.1", "fd00:1::1", "fe80::1"
A, B, SMALL, HOST = 1, 2, 3, 9
MTU = 1450
NODE4, NODE6 = "172.31.0.1", "fd00:1f::1"


def v4(p):
    return NODE4 if p == HOST else f"10.244.1.{p + 1}"


def v6(p):
    return "fd00:31::1" if p == HOST else f"fd00:1::{p + 1}"


def mac(p):
    a, b, c, d = (int(x) for x in v4(p).split("."))
    return f"0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}"


def link(p):
    m = [int(x, 16) for x in mac(p).split(":")]
    m[0] ^= 2
    return "fe80::%x:%x:%x:%x" % (m[0] << 8 | m[1], m[2] << 8 | 0xff, 0xfe00 | m[3], m[4] << 8 | m[5])


def line(name, port, request, verdict, expect=b""):
    print(f"{name} | {port} | {bytes(request).hex()} | {verdict} | {bytes(expect).hex()}")


def E(p=A, dst=GW_MAC, **kw):
    return Ether(src=mac(p), dst=dst, **kw)


def D(p=B):
    return Ether(src=GW_MAC, dst=mac(p))


def drop(name, packet, reason, port=A):
    line(name, port, packet, f"drop {reason}")


def patched(packet, at, new):
    b = bytearray(bytes(packet))
    b[at:at + len(new)] = new
    return bytes(b)


def rechecked(b):
    """The IPv4 header's checksum made right again."""
    b = bytearray(b)
    n = (b[14] & 15) * 4
    b[24:26] = b"\0\0"
    b[24:26] = struct.pack("!H", checksum(bytes(b[14:14 + n])))
    return bytes(b)


# ---- forwarded
def forward():
    for name, ours, theirs, upper in [
        ("udp", v4(A), v4(B), UDP(sport=7, dport=9) / b"hello"),
        ("tcp", v4(A), v4(B), TCP(sport=7, dport=9, flags="PA") / b"odd"),
        ("icmp echo to a pod", v4(A), v4(B), ICMP(id=5, seq=1) / b"ping"),
        ("gre that is not a tunnel of ours", v4(A), v4(B), GRE(proto=0x88be) / b"x"),
        ("sctp", v4(A), v4(B), SCTP(sport=7, dport=9)),
        ("esp", v4(A), v4(B), Raw(b"\1\2\3\4\5\6\7\10")),
    ]:
        kw = {"proto": 50} if name == "esp" else {}
        line(f"v4 {name}", A, E() / IP(src=ours, dst=theirs, ttl=64, id=77, **kw) / upper,
             f"forward {B} -", D() / IP(src=ours, dst=theirs, ttl=63, id=77, **kw) / upper)
    for name, upper in [
        ("udp", UDP(sport=7, dport=9) / b"hello"),
        ("tcp", TCP(sport=7, dport=9, flags="S", options=[("MSS", 1390)])),
        ("echo", ICMPv6EchoRequest(id=3, data=b"ping")),
        ("hop by hop", IPv6ExtHdrHopByHop(options=[RouterAlert()]) / UDP(sport=7, dport=9) / b"hello"),
        ("destination options", IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) / TCP(sport=7, dport=9)),
        ("no next header", Raw(b"")),
    ]:
        kw = {"nh": 59} if name == "no next header" else {}
        line(f"v6 {name}", A, E() / IPv6(src=v6(A), dst=v6(B), hlim=64, **kw) / upper,
             f"forward {B} -", D() / IPv6(src=v6(A), dst=v6(B), hlim=63, **kw) / upper)
    p = IP(src=v4(A), dst=v4(B), ttl=64) / UDP(sport=7, dport=9) / b"x"
    q = IP(src=v4(A), dst=v4(B), ttl=63) / UDP(sport=7, dport=9) / b"x"
    line("padding of a short frame is cut", A, bytes(E() / p) + bytes(60 - 43), f"forward {B} -", D() / q)
    line("padding that is not zero is cut", A, bytes(E() / p) + b"\xaa" * 30, f"forward {B} -", D() / q)
    p = TCP(sport=7, dport=9, flags="A")
    line("exactly 60 bytes", A, E() / IP(src=v4(A), dst=v4(B), ttl=2, options=[IPOption_NOP()]) / p / b"ab",
         f"forward {B} -", D() / IP(src=v4(A), dst=v4(B), ttl=1, options=[IPOption_NOP()]) / p / b"ab")
    rr = [IPOption_RR(routers=["0.0.0.0"])]
    line("record route passes", A, E() / IP(src=v4(A), dst=v4(B), options=rr) / UDP(sport=7, dport=9),
         f"forward {B} -", D() / IP(src=v4(A), dst=v4(B), ttl=63, options=rr) / UDP(sport=7, dport=9))
    for off, mf, name, size in [(0, 1, "first", 64), (8, 1, "middle", 64), (16, 0, "last", 5)]:
        ip = dict(src=v4(A), dst=v4(B), proto=17, id=9, frag=off, flags="MF" if mf else 0)
        data = bytes(range(size))
        line(f"v4 {name} fragment", A, E() / IP(ttl=64, **ip) / data, f"forward {B} -", D() / IP(ttl=63, **ip) / data)
        frag = IPv6ExtHdrFragment(offset=off, m=mf, nh=17, id=1)
        line(f"v6 {name} fragment", A, E() / IPv6(src=v6(A), dst=v6(B), hlim=64) / frag / data,
             f"forward {B} -", D() / IPv6(src=v6(A), dst=v6(B), hlim=63) / frag / data)
    frag = IPv6ExtHdrFragment(offset=0, m=0, nh=17, id=1)
    line("v6 atomic fragment", A, E() / IPv6(src=v6(A), dst=v6(B)) / frag / UDP(sport=7, dport=9) / b"x",
         f"forward {B} -", D() / IPv6(src=v6(A), dst=v6(B), hlim=63) / frag / UDP(sport=7, dport=9) / b"x")
    line("pod to the node", A, E() / IP(src=v4(A), dst=NODE4) / UDP(sport=7, dport=9),
         f"forward {HOST} -", D(HOST) / IP(src=v4(A), dst=NODE4, ttl=63) / UDP(sport=7, dport=9))
    line("node to a pod", HOST, E(HOST) / IP(src=NODE4, dst=v4(A)) / UDP(sport=7, dport=9),
         f"forward {A} -", D(A) / IP(src=NODE4, dst=v4(A), ttl=63) / UDP(sport=7, dport=9))
    line("another node's address by the host port", HOST, E(HOST) / IP(src="192.0.2.9", dst=v4(A)) / UDP(sport=7, dport=9),
         f"forward {A} -", D(A) / IP(src="192.0.2.9", dst=v4(A), ttl=63) / UDP(sport=7, dport=9))


# ---- partial checksums
def pseudo4(src, dst, proto, n):
    s = checksum(inet_aton(src) + inet_aton(dst) + struct.pack("!HH", proto, n))
    return struct.pack("!H", ~s & 0xffff)


def pseudo6(src, dst, proto, n):
    s = checksum(inet_pton(socket.AF_INET6, src) + inet_pton(socket.AF_INET6, dst) + struct.pack("!II", n, proto))
    return struct.pack("!H", ~s & 0xffff)


def partial():
    def both(name, ip, at, off, field):
        one = patched(E() / ip, at + off, field)
        if IPv6 in ip and ip.name == "IPv6":
            two = patched(one, 21, b"\x3f")
        else:
            two = rechecked(patched(one, 22, b"\x3f"))
        two = patched(two, 0, bytes(D())[:12])
        line(name, A, one, f"forward {B} {at}+{off}", two)

    ip = IP(src=v4(A), dst=v4(B), ttl=64)
    both("v4 tcp partial", ip / TCP() / b"abc", 34, 16, pseudo4(v4(A), v4(B), 6, 23))
    both("v4 udp partial", ip / UDP() / b"abc", 34, 6, pseudo4(v4(A), v4(B), 17, 11))
    nop = IP(src=v4(A), dst=v4(B), ttl=64, options=[IPOption_NOP()])
    both("v4 tcp partial behind options", nop / TCP() / b"abc", 38, 16, pseudo4(v4(A), v4(B), 6, 23))
    ip6 = IPv6(src=v6(A), dst=v6(B), hlim=64)
    both("v6 tcp partial", ip6 / TCP() / b"abc", 54, 16, pseudo6(v6(A), v6(B), 6, 23))
    both("v6 tcp partial behind an extension", ip6 / IPv6ExtHdrDestOpt() / TCP() / b"abc", 62, 16, pseudo6(v6(A), v6(B), 6, 23))
    i4 = IP(src="10.9.0.1", dst="10.9.0.2")
    i6 = IPv6(src="fd09::1", dst="fd09::2")
    f4, f6 = pseudo4("10.9.0.1", "10.9.0.2", 6, 23), pseudo6("fd09::1", "fd09::2", 6, 23)
    ie = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    t = TCP() / b"abc"
    both("vxlan, inner v4 partial", ip / UDP(dport=4789, chksum=0) / VXLAN() / ie / i4 / t, 34 + 16 + 14 + 20, 16, f4)
    both("vxlan on linux's port, inner v6 partial", ip / UDP(dport=8472, chksum=0) / VXLAN() / ie / i6 / t, 34 + 16 + 14 + 40, 16, f6)
    both("vxlan with an inner vlan tag", ip / UDP(dport=4789, chksum=0) / VXLAN() / ie / Dot1Q(vlan=5) / i4 / t, 34 + 16 + 18 + 20, 16, f4)
    both("vxlan over v6", ip6 / UDP(dport=4789) / VXLAN() / ie / i4 / t, 54 + 16 + 14 + 20, 16, f4)
    both("geneve", ip / UDP(dport=6081, chksum=0) / GENEVE() / ie / i4 / t, 34 + 16 + 14 + 20, 16, f4)
    both("gre", ip / GRE() / i4 / t, 34 + 4 + 20, 16, f4)
    both("gre with a key", ip / GRE(key_present=1, key=7) / i6 / t, 34 + 8 + 40, 16, f6)
    both("ipip", ip / i4 / t, 34 + 20, 16, f4)
    both("6in4", ip / i6 / t, 34 + 40, 16, f6)
    both("4in6", ip6 / i4 / t, 54 + 20, 16, f4)
    whole = ip / UDP(dport=4789, chksum=0) / VXLAN() / ie / i4 / t
    line("vxlan, inner complete", A, E() / whole, f"forward {B} -", D() / IP(src=v4(A), dst=v4(B), ttl=63) / whole[UDP])
    frag = patched(E() / IP(src=v4(A), dst=v4(B), flags="MF", proto=6) / (bytes(TCP() / (b"x" * 20))), 50, pseudo4(v4(A), v4(B), 6, 40))
    two = patched(rechecked(patched(frag, 22, b"\x3f")), 0, bytes(D())[:12])
    line("a fragment is never partial", A, frag, f"forward {B} -", two)


# ---- answered
def answers():
    bc = "ff:ff:ff:ff:ff:ff"

    def arp(name, target, p=A):
        ask = Ether(src=mac(p), dst=bc) / ARP(op=1, hwsrc=mac(p), psrc=v4(p), hwdst="00:00:00:00:00:00", pdst=target)
        line(name, p, bytes(ask) + bytes(18), "reply", Ether(src=GW_MAC, dst=mac(p)) / ARP(op=2, hwsrc=GW_MAC, psrc=target, hwdst=mac(p), pdst=v4(p)))
    arp("arp for the gateway", GW4)
    arp("arp for another pod", v4(B))
    arp("arp for a pod address that nobody holds", "10.244.1.99")
    arp("arp for the node", NODE4)
    arp("the node's arp for a pod", v4(A), HOST)
    ask = Ether(src=mac(A), dst=GW_MAC) / ARP(op=1, hwsrc=mac(A), psrc=v4(A), hwdst=GW_MAC, pdst=GW4)
    line("arp, unicast", A, ask, "reply", Ether(src=GW_MAC, dst=mac(A)) / ARP(op=2, hwsrc=GW_MAC, psrc=GW4, hwdst=mac(A), pdst=v4(A)))

    probe = Ether(src=mac(A), dst=bc) / ARP(op=1, hwsrc=mac(A), psrc="0.0.0.0", hwdst="00:00:00:00:00:00", pdst=GW4)
    line("arp probe for the gateway", A, probe, "reply", Ether(src=GW_MAC, dst=mac(A)) / ARP(op=2, hwsrc=GW_MAC, psrc=GW4, hwdst=mac(A), pdst="0.0.0.0"))

    def ns(name, src, target, own, p=A, lladdr=True, dst=None):
        sol = dst or inet_ntop(socket.AF_INET6, in6_getnsma(inet_pton(socket.AF_INET6, target)))
        dmac = GW_MAC if dst else in6_getnsmac(in6_getnsma(inet_pton(socket.AF_INET6, target)))
        ask = Ether(src=mac(p), dst=dmac) / IPv6(src=src, dst=sol, hlim=255) / ICMPv6ND_NS(tgt=target)
        if lladdr:
            ask = ask / ICMPv6NDOptSrcLLAddr(lladdr=mac(p))
        say = Ether(src=GW_MAC, dst=mac(p)) / IPv6(src=target, dst=src, hlim=255) / ICMPv6ND_NA(R=1, S=1, O=own, tgt=target) / ICMPv6NDOptDstLLAddr(lladdr=GW_MAC)
        line(name, p, ask, "reply", say)
    ns("nd for the gateway", v6(A), GW6, 1)
    ns("nd for the link-local gateway from link-local", link(A), GWL, 1)
    ns("nd for another pod", v6(A), v6(B), 0)
    ns("nd for a pod address that nobody holds", v6(A), "fd00:1::99", 0)
    ns("nd, unicast without option", v6(A), GW6, 1, lladdr=False, dst=GW6)
    ns("the node's nd for a pod", v6(HOST), v6(A), 0, HOST)
    for name, target, p in [("the gateway", GW6, A), ("the link-local gateway", GWL, A), ("the gateway by the node", GW6, HOST)]:
        group = in6_getnsma(inet_pton(socket.AF_INET6, target))
        ask = Ether(src=mac(p), dst=in6_getnsmac(group)) / IPv6(src="::", dst=inet_ntop(socket.AF_INET6, group), hlim=255) / ICMPv6ND_NS(tgt=target)
        say = Ether(src=GW_MAC, dst="33:33:00:00:00:01") / IPv6(src=target, dst="ff02::1", hlim=255) / ICMPv6ND_NA(R=1, S=0, O=1, tgt=target) / ICMPv6NDOptDstLLAddr(lladdr=GW_MAC)
        line(f"duplicate address detection of {name}", p, ask, "reply", say)

    line("echo of the gateway", A, E() / IP(src=v4(A), dst=GW4, id=3, ttl=1) / ICMP(id=5, seq=6) / b"abc",
         "reply", Ether(src=GW_MAC, dst=mac(A)) / IP(src=GW4, dst=v4(A), id=3, ttl=64) / ICMP(type=0, id=5, seq=6) / b"abc")
    line("echo of the gateway, nothing but zeros", A, E() / IP(src=v4(A), dst=GW4) / ICMP() / bytes(6),
         "reply", Ether(src=GW_MAC, dst=mac(A)) / IP(src=GW4, dst=v4(A)) / ICMP(type=0) / bytes(6))
    line("echo of the gateway, short and padded", A, bytes(E() / IP(src=v4(A), dst=GW4) / ICMP(id=5)) + bytes(18),
         "reply", Ether(src=GW_MAC, dst=mac(A)) / IP(src=GW4, dst=v4(A)) / ICMP(type=0, id=5))
    for name, data in [("", b"abcdefgh" * 4), (", nothing but zeros", bytes(24))]:
        line("first piece of an echo of the gateway" + name, A, E() / IP(src=v4(A), dst=GW4, id=3, flags="MF") / ICMP() / data,
             "reply", Ether(src=GW_MAC, dst=mac(A)) / IP(src=GW4, dst=v4(A), id=3, flags="MF") / ICMP(type=0) / data)
    line("first piece of an echo of the gateway over v6", A, E() / IPv6(src=v6(A), dst=GW6, hlim=9) / IPv6ExtHdrFragment(m=1, id=7) / ICMPv6EchoRequest(data=bytes(1024)),
         "reply", Ether(src=GW_MAC, dst=mac(A)) / IPv6(src=GW6, dst=v6(A), hlim=64) / IPv6ExtHdrFragment(m=1, id=7) / ICMPv6EchoReply(data=bytes(1024)))
    line("echo of the gateway over v6", A, E() / IPv6(src=v6(A), dst=GW6, hlim=9) / ICMPv6EchoRequest(id=1, seq=2, data=b"abcde"),
         "reply", Ether(src=GW_MAC, dst=mac(A)) / IPv6(src=GW6, dst=v6(A), hlim=64) / ICMPv6EchoReply(id=1, seq=2, data=b"abcde"))
    line("echo of the link-local gateway", A, E() / IPv6(src=link(A), dst=GWL) / ICMPv6EchoRequest(id=1, data=b"abcde"),
         "reply", Ether(src=GW_MAC, dst=mac(A)) / IPv6(src=GWL, dst=link(A), hlim=64) / ICMPv6EchoReply(id=1, data=b"abcde"))


# ---- refused by ICMP
def refusals():
    def icmp4(name, bad, kind, code, reason, mtu=0, port=A, quoted=None):
        raw = bytes(bad)
        err = Ether(src=GW_MAC, dst=mac(port)) / IP(src=GW4, dst=bad[IP].src, tos=0xc0, id=0, flags="DF", ttl=64) / \
            ICMP(type=kind, code=code, nexthopmtu=mtu) if kind == 3 and code == 4 else \
            Ether(src=GW_MAC, dst=mac(port)) / IP(src=GW4, dst=bad[IP].src, tos=0xc0, id=0, flags="DF", ttl=64) / ICMP(type=kind, code=code)
        line(name, port, raw, f"reply {reason}", err / (quoted or raw)[14:14 + 548])

    def icmp6(name, bad, msg, reason, port=A, src=GW6):
        raw = bytes(bad)
        line(name, port, raw, f"reply {reason}",
             Ether(src=GW_MAC, dst=mac(port)) / IPv6(src=src, dst=bad[IPv6].src, hlim=64) / msg / Raw(raw[14:14 + 1232]))
    u = UDP(sport=7, dport=9) / b"hello"
    for ttl in (0, 1):
        icmp4(f"ttl {ttl}", E() / IP(src=v4(A), dst=v4(B), ttl=ttl) / u, 11, 0, "ttl_exceeded")
        icmp6(f"hop limit {ttl}", E() / IPv6(src=v6(A), dst=v6(B), hlim=ttl) / u, ICMPv6TimeExceeded(), "ttl_exceeded")
    icmp4("no route", E() / IP(src=v4(A), dst="192.0.2.1") / u, 3, 0, "no_route")
    icmp6("no route v6", E() / IPv6(src=v6(A), dst="2001:db8::1") / u, ICMPv6DestUnreach(code=0), "no_route")
    icmp4("no endpoint", E() / IP(src=v4(A), dst="10.244.1.99") / u, 3, 1, "no_endpoint")
    icmp6("no endpoint v6", E() / IPv6(src=v6(A), dst="fd00:1::99") / u, ICMPv6DestUnreach(code=3), "no_endpoint")
    icmp4("udp to the gateway", E() / IP(src=v4(A), dst=GW4) / u, 3, 3, "gateway_unserved")
    icmp6("udp to the gateway v6", E() / IPv6(src=v6(A), dst=GW6) / u, ICMPv6DestUnreach(code=4), "gateway_unserved")
    icmp6("udp to the link-local gateway", E() / IPv6(src=link(A), dst=GWL) / u, ICMPv6DestUnreach(code=4), "gateway_unserved", src=GWL)
    big = UDP(sport=7, dport=9) / bytes(i % 251 for i in range(1500))
    icmp4("too big with DF", E() / IP(src=v4(A), dst=v4(B), flags="DF") / big, 3, 4, "too_big", mtu=MTU)
    icmp6("too big v6", E() / IPv6(src=v6(A), dst=v6(B)) / big, ICMPv6PacketTooBig(mtu=MTU), "too_big")
    t = TCP(sport=7, dport=9) / bytes(2000)
    icmp4("a complete tcp checksum is no super-frame", E() / IP(src=v4(A), dst=v4(B), flags="DF") / t, 3, 4, "too_big", mtu=MTU)
    full = E() / IP(src=v4(A), dst="192.0.2.1") / TCP() / b"abc"
    part = patched(full, 50, pseudo4(v4(A), "192.0.2.1", 6, 23))
    line("a quoted partial checksum is completed", A, part, "reply no_route",
         Ether(src=GW_MAC, dst=mac(A)) / IP(src=GW4, dst=v4(A), tos=0xc0, id=0, flags="DF", ttl=64) / ICMP(type=3, code=0) / bytes(full)[14:])
    q = E() / IP(src=v4(A), dst=v4(B), ttl=1, flags="MF", proto=17) / bytes(16)
    icmp4("first fragment", q, 11, 0, "ttl_exceeded")


# ---- dropped in silence
def silence():
    bc = "ff:ff:ff:ff:ff:ff"
    u = UDP(sport=7, dport=9) / b"hello"
    ok = E() / IP(src=v4(A), dst=v4(B)) / u
    for n in (0, 1, 13, 14, 33):
        drop(f"{n} bytes", bytes(ok)[:n], "runt")
    drop("ip ends before udp", E() / IP(src=v4(A), dst=v4(B), proto=17) / b"1234567", "runt")
    drop("ip ends before tcp", E() / IP(src=v4(A), dst=v4(B), proto=6) / bytes(19), "runt")
    drop("v6 of 53 bytes", bytes(E() / IPv6(src=v6(A), dst=v6(B)))[:53], "runt")
    drop("v6 ends before udp", E() / IPv6(src=v6(A), dst=v6(B), nh=17) / b"1234567", "runt")
    drop("arp cut short", bytes(E(dst=bc, type=0x806)) + bytes(27), "runt")
    drop("total length beyond the frame", E() / IP(src=v4(A), dst=v4(B), len=200) / u, "bad_length")
    drop("total length below the header", E() / IP(src=v4(A), dst=v4(B), len=19) / u, "bad_length")
    drop("v6 length beyond the frame", E() / IPv6(src=v6(A), dst=v6(B), plen=200) / u, "bad_length")
    drop("wrong header checksum", E() / IP(src=v4(A), dst=v4(B), chksum=1) / u, "bad_checksum")
    drop("version 5 as v4", rechecked(patched(ok, 14, b"\x55")), "bad_header")
    drop("header of 4 words", rechecked(patched(ok, 14, b"\x44")), "bad_header")
    drop("version 4 as v6", patched(E() / IPv6(src=v6(A), dst=v6(B)) / u, 14, b"\x40"), "bad_header")
    drop("tcp header of 4 words", E() / IP(src=v4(A), dst=v4(B)) / TCP(dataofs=4), "bad_header")
    drop("header beyond the frame", rechecked(patched(E() / IP(src=v4(A), dst=v4(B), proto=50) / b"1234", 14, b"\x4f")), "bad_length")
    drop("loose source route", E() / IP(src=v4(A), dst=v4(B), options=[IPOption_LSRR(routers=["1.2.3.4"])]) / u, "bad_options")
    drop("strict source route", E() / IP(src=v4(A), dst=v4(B), options=[IPOption_SSRR(routers=["1.2.3.4"])]) / u, "bad_options")
    drop("routing type 0", E() / IPv6(src=v6(A), dst=v6(B)) / IPv6ExtHdrRouting(type=0, addresses=[v6(B)]) / u, "bad_extension")
    drop("hop by hop not first", E() / IPv6(src=v6(A), dst=v6(B)) / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / u, "bad_extension")
    many = IPv6(src=v6(A), dst=v6(B))
    for _ in range(9):
        many = many / IPv6ExtHdrDestOpt()
    drop("nine extension headers", E() / many / u, "bad_extension")
    drop("extension beyond the packet", E() / IPv6(src=v6(A), dst=v6(B), nh=60) / b"\x11\x05\x01\x04\0\0\0\0", "bad_extension")
    drop("option beyond its header", E() / IPv6(src=v6(A), dst=v6(B), nh=60) / b"\x11\x00\x01\x09\0\0\0\0" / u, "bad_extension")
    drop("two fragment headers", E() / IPv6(src=v6(A), dst=v6(B)) / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrFragment(m=1) / bytes(16), "bad_extension")
    f = dict(src=v4(A), dst=v4(B))
    drop("tiny first tcp fragment", E() / IP(**f, flags="MF", proto=6) / bytes(8), "bad_fragment")
    drop("tcp fragment at offset 8", E() / IP(**f, frag=1, proto=6) / bytes(8), "bad_fragment")
    drop("fragment of odd length", E() / IP(**f, flags="MF", proto=17) / bytes(21), "bad_fragment")
    drop("empty fragment", E() / IP(**f, flags="MF", proto=17), "bad_fragment")
    drop("ping of death", E() / IP(**f, frag=8191, proto=1) / bytes(40), "bad_fragment")
    drop("v6 fragment of odd length", E() / IPv6(src=v6(A), dst=v6(B)) / IPv6ExtHdrFragment(m=1, nh=17) / bytes(21), "bad_fragment")
    drop("v6 fragment beyond 65535", E() / IPv6(src=v6(A), dst=v6(B)) / IPv6ExtHdrFragment(offset=8191, nh=17) / bytes(40), "bad_fragment")
    drop("tiny first v6 tcp fragment", E() / IPv6(src=v6(A), dst=v6(B)) / IPv6ExtHdrFragment(m=1, nh=6) / bytes(8), "bad_fragment")
    drop("nd in a fragment", E() / IPv6(src=v6(A), dst=v6(B), hlim=255) / IPv6ExtHdrFragment(m=1, nh=58) / (b"\x87" + bytes(31)), "bad_fragment")
    for src, dst in [("127.0.0.1", v4(B)), (v4(A), "127.0.0.1"), ("0.0.0.0", v4(B)), (v4(A), "0.0.0.1"), (v4(A), "240.0.0.1"), ("224.0.0.1", v4(B)), ("255.255.255.255", v4(B))]:
        drop(f"martian {src} to {dst}", E() / IP(src=src, dst=dst) / u, "martian")
    for src, dst in [("::1", v6(B)), (v6(A), "::1"), ("::", v6(B)), ("ff02::1", v6(B)), ("::ffff:10.244.1.2", v6(B)), (link(A), v6(B)), (v6(A), link(B))]:
        drop(f"martian {src} to {dst}", E() / IPv6(src=src, dst=dst) / u, "martian")
    drop("land", E() / IP(src=v4(A), dst=v4(A)) / TCP(sport=7, dport=7, flags="S"), "self_addressed")
    drop("land v6", E() / IPv6(src=v6(A), dst=v6(A)) / TCP(sport=7, dport=7, flags="S"), "self_addressed")
    drop("another pod's source", E() / IP(src=v4(B), dst=v4(SMALL)) / u, "spoofed")
    drop("foreign source", E() / IP(src="192.0.2.1", dst=v4(B)) / u, "spoofed")
    drop("another pod's source v6", E() / IPv6(src=v6(B), dst=v6(SMALL)) / u, "spoofed")
    drop("another's link-local source", E() / IPv6(src=link(B), dst=GWL) / u, "spoofed")
    drop("the node with a pod's source", E(HOST) / IP(src=v4(A), dst=v4(B)) / u, "spoofed", HOST)
    drop("the node with a free pod address", E(HOST) / IP(src="10.244.1.77", dst=v4(B)) / u, "spoofed", HOST)
    drop("the node with the gateway's source", E(HOST) / IP(src=GW4, dst=v4(B)) / u, "spoofed", HOST)
    drop("the node to itself", E(HOST) / IP(src="192.0.2.9", dst=NODE4) / u, "same_port", HOST)
    drop("another's mac", Ether(src=mac(B), dst=GW_MAC) / IP(src=v4(A), dst=v4(B)) / u, "spoofed_mac")
    drop("to another pod's mac", E(dst=mac(B)) / IP(src=v4(A), dst=v4(B)) / u, "wrong_mac")
    drop("unicast address in a broadcast frame", E(dst=bc) / IP(src=v4(A), dst=v4(B)) / u, "wrong_mac")
    drop("vlan tag", E() / Dot1Q(vlan=3) / IP(src=v4(A), dst=v4(B)) / u, "unknown_ethertype")
    drop("802.3 length", E(type=0x0026) / bytes(40), "unknown_ethertype")
    drop("mdns", E(dst="01:00:5e:00:00:fb") / IP(src=v4(A), dst="224.0.0.251", ttl=1) / u, "multicast")
    drop("dhcp", E(dst=bc) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / bytes(240), "multicast")
    drop("mld report", E(dst="33:33:00:00:00:16") / IPv6(src="::", dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLReport2(), "multicast")
    arp = dict(hwsrc=mac(A), hwdst="00:00:00:00:00:00")
    drop("arp probe for another's", E(dst=bc) / ARP(psrc="0.0.0.0", pdst=v4(B), **arp), "neighbor_ignored")
    drop("arp probe with another's hardware address", E(dst=bc) / ARP(hwsrc=mac(B), psrc="0.0.0.0", pdst=GW4, hwdst="00:00:00:00:00:00"), "spoofed_neighbor")
    drop("arp probe for its own", E(dst=bc) / ARP(psrc="0.0.0.0", pdst=v4(A), **arp), "neighbor_ignored")
    drop("gratuitous arp", E(dst=bc) / ARP(psrc=v4(A), pdst=v4(A), **arp), "neighbor_ignored")
    drop("gratuitous arp reply", E(dst=bc) / ARP(op=2, psrc=v4(A), pdst=v4(A), **arp), "neighbor_ignored")
    drop("arp for a foreign address", E(dst=bc) / ARP(psrc=v4(A), pdst="192.0.2.1", **arp), "neighbor_ignored")
    drop("arp of another kind", E(dst=bc) / ARP(hwtype=6, psrc=v4(A), pdst=GW4, **arp), "neighbor_ignored")
    drop("arp in another's name", E(dst=bc) / ARP(psrc=v4(B), pdst=GW4, **arp), "spoofed_neighbor")
    drop("gratuitous arp for another's address", E(dst=bc) / ARP(op=2, psrc=v4(B), pdst=v4(B), **arp), "spoofed_neighbor")
    drop("arp reply that claims the gateway", E(dst=bc) / ARP(op=2, psrc=GW4, pdst=v4(B), **arp), "spoofed_neighbor")
    drop("arp with another's hardware address", E(dst=bc) / ARP(hwsrc=mac(B), psrc=v4(A), pdst=GW4, hwdst="00:00:00:00:00:00"), "spoofed_neighbor")
    drop("the node's arp for its own", E(HOST, dst=bc) / ARP(hwsrc=mac(HOST), psrc=NODE4, pdst=NODE4, hwdst="00:00:00:00:00:00"), "neighbor_ignored", HOST)
    m = "33:33:ff:00:00:01"

    def ns(name, src, target, reason, lladdr=mac(A), hlim=255, **kw):
        p = E(dst=m) / IPv6(src=src, dst="ff02::1:ff00:1", hlim=hlim) / ICMPv6ND_NS(tgt=target, **kw)
        drop(name, p / ICMPv6NDOptSrcLLAddr(lladdr=lladdr) if lladdr else p, reason)
    ns("duplicate address detection", "::", v6(A), "neighbor_ignored", None)
    ns("duplicate address detection of another's", "::", v6(B), "neighbor_ignored", None)
    ns("duplicate address detection that names its sender", "::", GW6, "neighbor_ignored")
    drop("duplicate address detection in another group", E(dst="33:33:ff:00:00:02") / IPv6(src="::", dst="ff02::1:ff00:2", hlim=255) / ICMPv6ND_NS(tgt=GW6), "neighbor_ignored")
    drop("duplicate address detection to the gateway alone", E() / IPv6(src="::", dst=GW6, hlim=255) / ICMPv6ND_NS(tgt=GW6), "neighbor_ignored")
    ns("nd for its own", v6(A), v6(A), "neighbor_ignored")
    ns("nd for its own link-local", v6(A), link(A), "neighbor_ignored")
    ns("nd for a foreign address", v6(A), "2001:db8::1", "neighbor_ignored")
    ns("nd from beyond the link", v6(A), GW6, "neighbor_ignored", hlim=254)
    ns("nd with code 1", v6(A), GW6, "neighbor_ignored", code=1)
    ns("nd with a wrong checksum", v6(A), GW6, "bad_checksum", cksum=1)
    ns("nd in another's name", v6(B), GW6, "spoofed_neighbor")
    ns("nd with another's hardware address", v6(A), GW6, "spoofed_neighbor", mac(B))
    na = E(dst="33:33:00:00:00:01") / IPv6(src=v6(A), dst="ff02::1", hlim=255)
    drop("unsolicited na of its own", na / ICMPv6ND_NA(tgt=v6(A), R=0) / ICMPv6NDOptDstLLAddr(lladdr=mac(A)), "neighbor_ignored")
    drop("na for another's", na / ICMPv6ND_NA(tgt=v6(B)) / ICMPv6NDOptDstLLAddr(lladdr=mac(A)), "spoofed_neighbor")
    drop("na for the gateway", na / ICMPv6ND_NA(tgt=GWL) / ICMPv6NDOptDstLLAddr(lladdr=mac(A)), "spoofed_neighbor")
    drop("router solicitation", E(dst="33:33:00:00:00:02") / IPv6(src=link(A), dst="ff02::2", hlim=255) / ICMPv6ND_RS(), "neighbor_ignored")
    drop("router advertisement", na / ICMPv6ND_RA(), "spoofed_neighbor")
    drop("redirect", E() / IPv6(src=v6(A), dst=v6(B), hlim=255) / ICMPv6ND_Redirect(), "spoofed_neighbor")
    drop("tcp to the gateway", E() / IP(src=v4(A), dst=GW4) / TCP(flags="S"), "gateway_unserved")
    drop("echo reply to the gateway", E() / IP(src=v4(A), dst=GW4) / ICMP(type=0), "gateway_unserved")
    drop("fragmented datagram to the gateway", E() / IP(src=v4(A), dst=GW4, flags="MF") / UDP() / bytes(24), "gateway_fragment")
    drop("fragmented echo reply to the gateway", E() / IP(src=v4(A), dst=GW4, flags="MF", id=9) / ICMP(type=0) / bytes(24), "gateway_fragment")
    drop("later fragment to the gateway without the first", E() / IP(src=v4(A), dst=GW4, proto=1, frag=3, id=8) / bytes(24), "gateway_fragment")
    drop("later fragment to the gateway without the first v6", E() / IPv6(src=v6(A), dst=GW6) / IPv6ExtHdrFragment(nh=58, offset=3, id=8) / bytes(24), "gateway_fragment")
    # Errors are never answered by errors, nor are later fragments.
    err = ICMP(type=3, code=1) / IP(src=v4(B), dst=v4(A)) / u
    drop("icmp error without hops", E() / IP(src=v4(A), dst=v4(B), ttl=1) / err, "ttl_exceeded")
    drop("icmp error without route", E() / IP(src=v4(A), dst="192.0.2.1") / err, "no_route")
    drop("icmpv6 error without hops", E() / IPv6(src=v6(A), dst=v6(B), hlim=1) / ICMPv6DestUnreach() / IPv6(src=v6(B), dst=v6(A)) / u, "ttl_exceeded")
    drop("later fragment without hops", E() / IP(src=v4(A), dst=v4(B), ttl=1, frag=8, proto=17) / bytes(8), "ttl_exceeded")
    drop("later fragment without route", E() / IP(src=v4(A), dst="192.0.2.1", frag=8, proto=17) / bytes(8), "no_route")
    drop("no such port", ok, "port_removed", 30)


forward()
partial()
answers()
refusals()
silence()
