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
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

// The first fields of the kernel's structure (include/uapi/linux/bpf.h).
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
};

#define SEC(name) __attribute__((section(name), used))
#define TCX_NEXT -1
#define PROTOCOL_TCP 6
// Marks what comes by a second time; taken off then.
#define LED 0x5b1d

// Bytes of frame from which on a packet is long.
#define LONG 16384
#define BPF_MAP_TYPE_LRU_HASH 9

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static __u32 (*bpf_get_hash_recalc)(struct __sk_buff *skb) = (void *)34;
static __u64 (*bpf_get_socket_cookie)(struct __sk_buff *skb) = (void *)46;

// Connections that are led.
struct {
	int (*type)[BPF_MAP_TYPE_LRU_HASH];
	int (*max_entries)[16384];
	__u64 *key;
	__u8 *value;
} bulk SEC(".maps");

SEC("classifier")
int spinlane_lead(struct __sk_buff *skb)
{
	const __u8 *data = (const __u8 *)(long)skb->data;
	const __u8 *end = (const __u8 *)(long)skb->data_end;

	if (skb->tc_index == LED) {
		skb->tc_index = 0;
		return TCX_NEXT;
	}
	if (data + 34 > end)
		return TCX_NEXT;
	__u8 protocol;
	if (data[12] == 0x08 && data[13] == 0x00)
		protocol = data[23];
	else if (data[12] == 0x86 && data[13] == 0xdd)
		protocol = data[20];
	else
		return TCX_NEXT;
	if (protocol != PROTOCOL_TCP)
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
