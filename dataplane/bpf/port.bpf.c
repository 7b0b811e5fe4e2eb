// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// The XDP program of a port: every frame goes to the AF_XDP socket of the
// queue that it arrived on. Where no socket stands, the kernel keeps the frame.
//
// Rebuild with `make bpf`, which also records this file's hash beside the
// object; a test compares the two.
typedef unsigned int __u32;

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

#define SEC(name) __attribute__((section(name), used))
#define BPF_MAP_TYPE_XSKMAP 17
#define XDP_PASS 2

static long (*bpf_redirect_map)(void *map, unsigned long long key, unsigned long long flags) = (void *)51;

// As many sockets as a port can have queues.
struct {
	int (*type)[BPF_MAP_TYPE_XSKMAP];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} sockets SEC(".maps");

SEC("xdp.frags")
int spinlane_port(struct xdp_md *ctx)
{
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}

// What the XDP program did not see went to a packet socket (pod.bpf.c); the
// kernel itself has no use for it.
#define TCX_DROP 2

SEC("classifier")
int spinlane_taken(void *skb)
{
	return TCX_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
