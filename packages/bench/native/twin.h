/*
 * What both formats share: the memory that driver and device see, the chain in the device's hands, the order of a run.
 * Written to be read beside packages/ring/src: the same names, the same records, the same checks in the same places.
 *
 * CHECKED=1 is the safe twin. CHECKED=0 leaves the checks of what the other end wrote (and of what the caller passed) out, and
 * nothing else.
 */
#ifndef TWIN_H
#define TWIN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef CHECKED
#define CHECKED 1
#endif

/* A check of the ring's code: `CHECK(it is wrong, what follows)`. */
#if CHECKED
#define CHECK(wrong, consequence) \
	do {                          \
		if (wrong)                \
			consequence;          \
	} while (0)
#else
#define CHECK(wrong, consequence) \
	do {                          \
	} while (0)
#endif

/* Flags of a descriptor (virtio 1.4 2.7.5, 2.8.5). */
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4, DESC_AVAIL = 1 << 7, DESC_USED = 1 << 15 };

enum { DESC_WORDS = 4, DESC_SIZE = 16, INVALID = -22, NO_SPACE = -28, TOO_LONG = -90, BROKEN = -5 };

/* The ordered accesses. A full fence stands only where a store must be seen before a later load is done. */
static inline uint16_t
load_index(const uint16_t *at)
{
	return atomic_load_explicit((const _Atomic uint16_t *)at, memory_order_acquire);
}

static inline void
store_index(uint16_t *at, uint16_t value)
{
	atomic_store_explicit((_Atomic uint16_t *)at, value, memory_order_release);
}

/* Whether another thread sees the memory. One thread that is both ends needs no fence, and the rings in TypeScript have none then. */
static bool shared_memory;

static inline void
full_fence(void)
{
	if (shared_memory)
		atomic_thread_fence(memory_order_seq_cst);
}

/* Guest memory of several regions; every address that the driver wrote goes through locate(). */
struct region {
	uint64_t address;
	uint64_t length;
	uint8_t *bytes;
};

struct guest_memory {
	struct region *regions;
	int count;
};

/* The region that holds [address, address+length) whole, or -1. */
static inline int
locate(const struct guest_memory *memory, uint32_t low, uint32_t high, uint32_t length)
{
#if CHECKED
	if (high >= 0x200000)
		return -1;
	uint64_t address = (uint64_t)high << 32 | low;
	for (int i = 0; i < memory->count; i++) {
		const struct region *r = &memory->regions[i];
		if (length <= r->length && address >= r->address && address - r->address <= r->length - length)
			return i;
	}
	return -1;
#else
	(void)memory, (void)low, (void)high, (void)length;
	return 0;
#endif
}

static inline uint64_t
offset_in(const struct region *region, uint32_t low, uint32_t high)
{
	return ((uint64_t)high << 32 | low) - region->address;
}

/* One segment of a chain in the device's hands. */
struct segment {
	uint64_t region;
	uint64_t offset;
	uint64_t length;
};

/* One chain in the device's hands, used again after it was given back. */
struct chain {
	uint32_t head;
	uint32_t descriptors;
	uint64_t readable_length;
	uint64_t writable_length;
	bool held;
	uint32_t count;
	uint32_t readable_count;
	uint32_t capacity;
	struct segment *segments;
	uint32_t *table;
	uint32_t table_bytes;
};

static inline void
chain_begin(struct chain *chain)
{
	chain->readable_length = 0;
	chain->writable_length = 0;
	chain->count = 0;
	chain->readable_count = 0;
}

static inline void
chain_add(struct chain *chain, int region, uint64_t offset, uint32_t length, bool writable)
{
	if (chain->count == chain->capacity) {
		chain->capacity = chain->capacity == 0 ? 4 : 2 * chain->capacity;
		chain->segments = realloc(chain->segments, chain->capacity * sizeof(struct segment));
		if (chain->segments == NULL)
			abort();
	}
	struct segment *s = &chain->segments[chain->count++];
	s->region = (uint64_t)region;
	s->offset = offset;
	s->length = length;
	if (writable)
		chain->writable_length += length;
	else {
		chain->readable_length += length;
		chain->readable_count++;
	}
}

/* A private copy of an indirect table, so that what is checked is what is used. */
static inline const uint32_t *
chain_copy_table(struct chain *chain, const struct region *region, uint64_t offset, uint32_t length)
{
	if (chain->table_bytes < length) {
		chain->table = realloc(chain->table, length);
		if (chain->table == NULL)
			abort();
		chain->table_bytes = length;
	}
	memcpy(chain->table, region->bytes + offset, length);
	return chain->table;
}

/* What a queue of either end is made with. */
struct options {
	uint32_t size;
	uint32_t max_segments;
	bool indirect;
	bool event_idx;
	uint8_t *base;             /* of guest memory */
	uint32_t at;               /* first byte that the queue may use */
	struct guest_memory memory;
};

static inline uint32_t
align_up(uint32_t value, uint32_t to)
{
	return (value + to - 1) / to * to;
}

static inline void *
zeroed(size_t count, size_t size)
{
	void *p = calloc(count, size);
	if (p == NULL)
		abort();
	return p;
}

#endif
