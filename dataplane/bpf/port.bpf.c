// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// The XDP program of a port: every frame goes to the AF_XDP socket of the
// queue that it arrived on. Where no socket stands, the kernel keeps the frame.
//
// Rebuild with `make bpf`, which also records a hash of this file and of the
// headers beside the object; a test compares the two.
#include "sockets.h"

SEC("xdp.frags")
int spinlane_port(struct xdp_md *ctx)
{
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}

// What the XDP program did not see went to a packet socket (pod.bpf.c); the
// kernel itself has no use for it.
SEC("classifier")
int spinlane_taken(struct __sk_buff *skb)
{
	return TCX_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
