// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// The XDP program of the uplink: takes what is the switch's, leaves the rest
// to the kernel, which goes on using the interface for the node. Nothing can be
// put back on the kernel's way in, so the decision is final.
//
// Taken, when addressed to the uplink's MAC address:
// - UDP to the overlay's port at this node's end of it;
// - packets for this node's pod ranges (routed);
// - TCP and UDP to the masquerade's ports at an egress address, echo replies
//   with an identifier that was given out, and ICMP errors that quote either,
//   or an outer packet of the overlay;
// - later fragments of a datagram whose first one was taken;
// and frames to the pods' MAC addresses (layer 2). Group frames stay with the
// kernel; the switch gets copies by a packet socket.
//
// In layer 2 the node itself is a station of the pods' segment, under the
// uplink's MAC address and with the uplink's IP addresses. Three programs at tc
// join it to the switch, by the host port:
// - `node_out`, at the uplink's egress: what the kernel sends to a local pod
//   is received by the host port instead, and a copy of what it sends to a
//   group;
// - `node_in`, at the ingress of the host port's far end: what the switch sends
//   to the node is received by the uplink, marked;
// - `node_unmark`, at the uplink's ingress: takes the mark off. Before that, it
//   kept the packet socket from copying the frame to the switch again.
//
// The overlay's own fragments are left to the kernel and counted. A later
// fragment that overtakes its first one stays with the kernel.
//
// The program stays when the agent ends. Without a socket the kernel has what
// it takes, but for the masquerade's: the kernel knows nothing of those
// connections and would reset them, so they are dropped and sent again.
//
// Rebuild with `make bpf`, which also records a hash of this file and of the
// headers beside the object; a test compares the two.
#include "headers.h"
#include "sockets.h"

// On frames that the switch hands to the node; see `HOST_MARK` of the packet
// socket for group frames.
#define HOST_MARK 0x53504c32

#define VXLAN 1
#define ROUTED 2
#define LAYER_2 4
#define MASQUERADE 8

// What becomes of a packet: the kernel's; the switch's, the kernel's without
// it; the switch's alone.
#define LEFT 0
#define TAKEN 1
#define OWNED 2

// What an address of this node is for.
#define TUNNEL_END 1
#define EGRESS 2

// Written by the switch. The port of the overlay is in network order.
struct config {
	__u32 modes;
	__u16 vxlan_port;
	__u16 ports_low;
	__u16 ports_high;
	__u8 mac[6];
};

struct piece {
	struct address source;
	struct address destination;
	__u32 identification;
	__u32 protocol;
};

struct prefix_v4 {
	__u32 len;
	__u32 address;
};

struct prefix_v6 {
	__u32 len;
	struct address address;
};

struct station {
	__u8 mac[8];
};

#define ECHO_IDENTIFIERS 65536
struct identifiers {
	__u8 given[ECHO_IDENTIFIERS];
};

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	struct config *value;
} config SEC(".maps");

// This node's addresses; IPv4 ones in the last word, after 00..00 ffff.
struct {
	int (*type)[BPF_MAP_TYPE_HASH];
	int (*max_entries)[256];
	struct address *key;
	__u32 *value;
} own SEC(".maps");

struct {
	int (*type)[BPF_MAP_TYPE_LPM_TRIE];
	int (*max_entries)[64];
	int (*map_flags)[BPF_F_NO_PREALLOC];
	struct prefix_v4 *key;
	__u32 *value;
} pods_v4 SEC(".maps");

struct {
	int (*type)[BPF_MAP_TYPE_LPM_TRIE];
	int (*max_entries)[64];
	int (*map_flags)[BPF_F_NO_PREALLOC];
	struct prefix_v6 *key;
	__u32 *value;
} pods_v6 SEC(".maps");

struct {
	int (*type)[BPF_MAP_TYPE_HASH];
	int (*max_entries)[8192];
	int (*map_flags)[BPF_F_NO_PREALLOC];
	struct station *key;
	__u32 *value;
} stations SEC(".maps");

// The two interfaces that the node's programs pass frames between: the uplink
// and the host port.
struct joint {
	__u32 uplink;
	__u32 port;
};

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	struct joint *value;
} joint SEC(".maps");

// Echo identifiers that were given out; the lanes write it by its mapping.
struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	int (*map_flags)[BPF_F_MMAPABLE];
	__u32 *key;
	struct identifiers *value;
} echoes SEC(".maps");

// What became of the first fragments that were not left.
struct {
	int (*type)[BPF_MAP_TYPE_LRU_HASH];
	int (*max_entries)[4096];
	struct piece *key;
	__u32 *value;
} pieces SEC(".maps");

// Fragments of the overlay's outer packets that were left to the kernel.
struct {
	int (*type)[BPF_MAP_TYPE_PERCPU_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	__u64 *value;
} fragments SEC(".maps");

INLINE struct address mapped(__u32 v4)
{
	struct address address = { { 0, 0, 0xffff0000, v4 } };
	return address;
}

INLINE __u32 own_role(const struct address *address)
{
	__u32 *role = bpf_map_lookup_elem(&own, address);
	return role ? *role : 0;
}

INLINE int is_given(__u16 identifier)
{
	__u32 zero = 0;
	struct identifiers *map = bpf_map_lookup_elem(&echoes, &zero);
	return map && map->given[swap16(identifier)];
}

INLINE int in_range(const struct config *config, __u16 port)
{
	__u16 number = swap16(port);
	return number >= config->ports_low && number <= config->ports_high;
}

// Whether a packet that this node sent, as an ICMP error quotes it, was the
// switch's.
INLINE int was_ours(const struct config *config, __u32 role, __u8 protocol, struct transport *quoted)
{
	if (protocol == UDP && (role & TUNNEL_END) && quoted->second == config->vxlan_port)
		return 1;
	if (!(role & EGRESS))
		return 0;
	switch (protocol) {
	case TCP:
	case UDP:
		return in_range(config, quoted->first);
	case ICMP:
		return (quoted->first & 0xff) == 8 && is_given(quoted->third);
	case ICMPV6:
		return (quoted->first & 0xff) == 128 && is_given(quoted->third);
	}
	return 0;
}

// Skips up to four extension headers; gives the transport and its protocol, or
// stops at a fragment header.
struct upper {
	void *at;
	__u8 protocol;
};

INLINE struct upper walk(void *at, void *end, __u8 protocol)
{
	struct upper upper = { at, protocol };
	for (int i = 0; i < 4; i++) {
		if (upper.protocol != 0 && upper.protocol != 43 && upper.protocol != 60)
			break;
		struct transport *header = FIELD(struct transport, upper.at, end);
		if (!header)
			break;
		__u16 word = header->first;
		upper.protocol = word & 0xff;
		upper.at += 8 + ((word >> 8) & 0xff) * 8;
	}
	return upper;
}

// Whether an ICMP error about a packet of the switch. `at` is the ICMP header.
INLINE int quotes_ours(const struct config *config, void *at, void *end, int is_v6)
{
	struct transport *quoted;
	if (is_v6) {
		struct ipv6 *ip = FIELD(struct ipv6, at + 8, end);
		if (!ip)
			return 0;
		struct upper upper = walk(ip + 1, end, ip->next_header);
		if (upper.protocol == FRAGMENT) {
			struct fragment_v6 *fragment = FIELD(struct fragment_v6, upper.at, end);
			// The first fragment is what errors quote.
			if (!fragment || (swap16(fragment->offset_more) & 0xfff8))
				return 0;
			upper.protocol = fragment->next_header;
			upper.at = fragment + 1;
		}
		struct address source = ip->source;
		quoted = FIELD(struct transport, upper.at, end);
		return quoted && was_ours(config, own_role(&source), upper.protocol, quoted);
	}
	struct ipv4 *ip = FIELD(struct ipv4, at + 8, end);
	if (!ip)
		return 0;
	__u32 length = (ip->version_ihl & 15) * 4;
	// The first fragment is what errors quote.
	if (length < 20 || (ip->flags_fragment & 0xff1f))
		return 0;
	struct address source = mapped(ip->source);
	quoted = FIELD(struct transport, (void *)ip + length, end);
	return quoted && was_ours(config, own_role(&source), ip->protocol, quoted);
}

// What becomes of a packet to one of this node's addresses.
INLINE int judge(const struct config *config, __u32 role, __u8 protocol, void *at, void *end, int is_first)
{
	struct transport *transport = FIELD(struct transport, at, end);
	if (!transport)
		return LEFT;
	if (protocol == UDP && (role & TUNNEL_END) && transport->second == config->vxlan_port) {
		if (!is_first)
			return TAKEN;
		__u32 zero = 0;
		__u64 *count = bpf_map_lookup_elem(&fragments, &zero);
		if (count)
			*count += 1;
		return LEFT;
	}
	__u8 kind = transport->first & 0xff;
	switch (protocol) {
	case TCP:
	case UDP:
		return (role & EGRESS) && in_range(config, transport->second) ? OWNED : LEFT;
	case ICMP:
		if (kind == 0)
			return (role & EGRESS) && is_given(transport->third) ? OWNED : LEFT;
		return (kind == 3 || kind == 11 || kind == 12) && quotes_ours(config, at, end, 0) ? TAKEN : LEFT;
	case ICMPV6:
		if (kind == 129)
			return (role & EGRESS) && is_given(transport->third) ? OWNED : LEFT;
		return kind >= 1 && kind <= 4 && quotes_ours(config, at, end, 1) ? TAKEN : LEFT;
	}
	return LEFT;
}

// What became of a later fragment's first one.
INLINE int follow(const struct piece *piece)
{
	__u32 *first = bpf_map_lookup_elem(&pieces, piece);
	return first ? *first : LEFT;
}

// An identification comes again: what an earlier datagram became is forgotten
// then.
INLINE int lead(const struct piece *piece, __u32 became)
{
	if (became == LEFT)
		bpf_map_delete_elem(&pieces, piece);
	else
		bpf_map_update_elem(&pieces, piece, &became, 0);
	return became;
}

INLINE int takes_v4(const struct config *config, void *at, void *end)
{
	struct ipv4 *ip = FIELD(struct ipv4, at, end);
	if (!ip)
		return LEFT;
	if (config->modes & ROUTED) {
		struct prefix_v4 key = { 32, ip->destination };
		if (bpf_map_lookup_elem(&pods_v4, &key))
			return TAKEN;
	}
	struct address destination = mapped(ip->destination);
	__u32 role = own_role(&destination);
	__u32 length = (ip->version_ihl & 15) * 4;
	if (!role || length < 20)
		return LEFT;
	__u16 fragment = swap16(ip->flags_fragment) & 0x3fff;
	if (!fragment)
		return judge(config, role, ip->protocol, (void *)ip + length, end, 0);
	struct piece piece = { mapped(ip->source), destination, ip->identification, ip->protocol };
	if (fragment & 0x1fff)
		return follow(&piece);
	return lead(&piece, judge(config, role, ip->protocol, (void *)ip + length, end, 1));
}

INLINE int takes_v6(const struct config *config, void *at, void *end)
{
	struct ipv6 *ip = FIELD(struct ipv6, at, end);
	if (!ip)
		return LEFT;
	struct address destination = ip->destination;
	if (config->modes & ROUTED) {
		struct prefix_v6 key = { 128, destination };
		if (bpf_map_lookup_elem(&pods_v6, &key))
			return TAKEN;
	}
	__u32 role = own_role(&destination);
	if (!role)
		return LEFT;
	struct upper upper = walk(ip + 1, end, ip->next_header);
	if (upper.protocol != FRAGMENT)
		return judge(config, role, upper.protocol, upper.at, end, 0);
	struct fragment_v6 *fragment = FIELD(struct fragment_v6, upper.at, end);
	if (!fragment)
		return LEFT;
	__u16 offset = swap16(fragment->offset_more);
	struct piece piece = { ip->source, destination, fragment->identification, FRAGMENT };
	if (offset & 0xfff8)
		return follow(&piece);
	return lead(&piece, judge(config, role, fragment->next_header, fragment + 1, end, offset & 1));
}

INLINE int takes(struct xdp_md *ctx)
{
	void *data = (void *)(__u64)ctx->data;
	void *end = (void *)(__u64)ctx->data_end;
	__u32 zero = 0;
	struct config *now = bpf_map_lookup_elem(&config, &zero);
	struct ethernet *ethernet = FIELD(struct ethernet, data, end);
	if (!now || !ethernet || !now->modes || (ethernet->destination[0] & 1))
		return LEFT;
	if (now->modes & LAYER_2) {
		struct station station = {};
		__builtin_memcpy(station.mac, ethernet->destination, 6);
		if (bpf_map_lookup_elem(&stations, &station))
			return TAKEN;
	}
	int differs = 0;
	for (int i = 0; i < 6; i++)
		differs |= ethernet->destination[i] ^ now->mac[i];
	if (differs)
		return LEFT;
	switch (ethernet->type) {
	case ETHERTYPE_IPV4:
		return takes_v4(now, ethernet + 1, end);
	case ETHERTYPE_IPV6:
		return takes_v6(now, ethernet + 1, end);
	}
	return LEFT;
}

SEC("xdp.frags")
int spinlane_uplink(struct xdp_md *ctx)
{
	int became = takes(ctx);
	if (became == LEFT)
		return XDP_PASS;
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, became == OWNED ? XDP_DROP : XDP_PASS);
}

SEC("classifier")
int node_out(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct joint *between = bpf_map_lookup_elem(&joint, &zero);
	struct station to = {};
	if (!between || skb->vlan_present || bpf_skb_load_bytes(skb, 0, to.mac, 6))
		return TCX_NEXT;
	if (to.mac[0] & 1) {
		// The switch may lack it; the wire must not.
		bpf_clone_redirect(skb, between->port, BPF_F_INGRESS);
		return TCX_NEXT;
	}
	if (!bpf_map_lookup_elem(&stations, &to))
		return TCX_NEXT;
	// Of another device's queues, when the kernel forwards it.
	skb->queue_mapping = 0;
	return bpf_redirect(between->port, BPF_F_INGRESS);
}

SEC("classifier")
int node_in(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct joint *between = bpf_map_lookup_elem(&joint, &zero);
	if (!between)
		return TCX_DROP;
	skb->mark = HOST_MARK;
	return bpf_redirect(between->uplink, BPF_F_INGRESS);
}

SEC("classifier")
int node_unmark(struct __sk_buff *skb)
{
	if (skb->mark == HOST_MARK)
		skb->mark = 0;
	return TCX_NEXT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
