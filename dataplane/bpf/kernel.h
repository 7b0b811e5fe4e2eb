// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// The kernel's own of what the programs here use (include/uapi/linux/bpf.h), so
// that they compile without its headers.
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline
#define HELPER static __attribute__((unused))

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

// The beginning of the kernel's, which is never shortened.
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

#define XDP_DROP 1
#define XDP_PASS 2
#define TCX_NEXT -1
#define TCX_DROP 2

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11
#define BPF_MAP_TYPE_XSKMAP 17
#define BPF_F_NO_PREALLOC 1
#define BPF_F_MMAPABLE 1024
#define BPF_F_INGRESS 1

HELPER void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
HELPER long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
HELPER long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
HELPER long (*bpf_clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) = (void *)13;
HELPER long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
HELPER long (*bpf_skb_load_bytes)(const struct __sk_buff *skb, __u32 offset, void *to, __u32 len) = (void *)26;
HELPER __u32 (*bpf_get_hash_recalc)(struct __sk_buff *skb) = (void *)34;
HELPER __u64 (*bpf_get_socket_cookie)(struct __sk_buff *skb) = (void *)46;
HELPER long (*bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;
