// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
// The AF_XDP sockets of a port, by the queue that they are bound to.
#pragma once

#include "kernel.h"

// As many as a port can have queues.
struct {
	int (*type)[BPF_MAP_TYPE_XSKMAP];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} sockets SEC(".maps");
