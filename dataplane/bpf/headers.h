// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// Headers of packets, in network order, and how a program that has to prove
// every access looks at one.
#pragma once

#include "kernel.h"

#define swap16(x) __builtin_bswap16(x)

// The header of that type at a place; null where the packet ends before it.
#define FIELD(struct_type, at, end) ((void *)((struct_type *)(at) + 1) <= (end) ? (struct_type *)(at) : (struct_type *)0)

#define ETHERTYPE_IPV4 0x0008
#define ETHERTYPE_IPV6 0xdd86
#define ICMP 1
#define TCP 6
#define UDP 17
#define ICMPV6 58
#define FRAGMENT 44

struct address {
	__u32 words[4];
};

struct ethernet {
	__u8 destination[6];
	__u8 source[6];
	__u16 type;
} __attribute__((packed));

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__u16 total_length;
	__u16 identification;
	__u16 flags_fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
} __attribute__((packed));

struct ipv6 {
	__u32 version_class_flow;
	__u16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	struct address source;
	struct address destination;
} __attribute__((packed));

struct fragment_v6 {
	__u8 next_header;
	__u8 reserved;
	__u16 offset_more;
	__u32 identification;
} __attribute__((packed));

// The first 8 bytes of TCP, UDP and ICMP alike.
struct transport {
	__u16 first;
	__u16 second;
	__u16 third;
	__u16 fourth;
} __attribute__((packed));
