// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// What leads a pod's bulk TCP past generic XDP, at the egress hook of the pod's own
// interface.
//
// Generic XDP copies every TCP packet into pages of its own before a program
// sees it, because TCP's buffers are clones, and refuses what is longer than
// some 64 KiB. It leaves alone what was redirected (`skb_is_redirected`,
// net/core/dev.c). So it is redirected here, to the interface that it leaves
// by anyway, and a packet socket on the host's end takes it (port.bpf.c).
//
// A connection is led from its first long packet on, and then whole, so that
// it keeps its order. One of short packets stays with XDP, whose way is
// shorter.
//
// Rebuild with `make bpf`, as port.bpf.c says.
#include "headers.h"

// Marks what comes by a second time; taken off then.
#define LED 0x5b1d

// Bytes of frame from which on a packet is long.
#define LONG 16384

// Connections that are led.
struct {
	int (*type)[BPF_MAP_TYPE_LRU_HASH];
	int (*max_entries)[16384];
	__u64 *key;
	__u8 *value;
} bulk SEC(".maps");

INLINE int is_tcp(struct __sk_buff *skb)
{
	void *end = (void *)(__u64)skb->data_end;
	struct ethernet *ethernet = FIELD(struct ethernet, (void *)(__u64)skb->data, end);
	struct ipv4 *v4;
	struct ipv6 *v6;

	if (!ethernet)
		return 0;
	switch (ethernet->type) {
	case ETHERTYPE_IPV4:
		v4 = FIELD(struct ipv4, ethernet + 1, end);
		return v4 && v4->protocol == TCP;
	case ETHERTYPE_IPV6:
		v6 = FIELD(struct ipv6, ethernet + 1, end);
		return v6 && v6->next_header == TCP;
	}
	return 0;
}

SEC("classifier")
int spinlane_lead(struct __sk_buff *skb)
{
	if (skb->tc_index == LED) {
		skb->tc_index = 0;
		return TCX_NEXT;
	}
	if (!is_tcp(skb))
		return TCX_NEXT;
	// What the pod forwards for others has no socket.
	__u64 connection = bpf_get_socket_cookie(skb);
	if (!connection)
		connection = 1ULL << 63 | bpf_get_hash_recalc(skb);
	if (!bpf_map_lookup_elem(&bulk, &connection)) {
		if (skb->len < LONG)
			return TCX_NEXT;
		__u8 led = 1;
		bpf_map_update_elem(&bulk, &connection, &led, 0);
	}
	skb->tc_index = LED;
	return bpf_redirect(skb->ifindex, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
