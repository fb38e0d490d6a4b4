/*
 * The split virtqueue's twin (virtio 1.4 2.7): driver end as in packages/ring/src/split-queue.ts, device end as in
 * packages/ring/src/split-device-queue.ts.
 */
#include "twin.h"

/* Words of the ring's memory (virtio 1.4 2.7). */
struct ring {
	uint32_t *descriptors;
	uint16_t *available; /* flags, idx, ring[size], used_event */
	uint16_t *used;      /* flags, idx, (id, len)[size], avail_event */
	uint32_t *used_entries;
};

/* The driver's private record of a descriptor. */
struct record {
	uint32_t next;     /* the next free descriptor, or the next one of its chain */
	uint32_t shape;    /* of a head: descriptors << 16 | last; 0: no chain begins here */
	uint32_t writable; /* of a head: device-writable bytes */
	int32_t cookie;
};

struct driver {
	struct ring ring;
	uint32_t size;
	bool event_idx;
	bool broken;
	uint32_t max_indirect;
	uint32_t *tables;
	uint32_t tables_address;
	struct record *record;
	uint32_t free_head, free, chains;
	uint16_t next_available, published, notified, consumed, used_seen;
	uint32_t used_length;
	uint64_t buffers, kicks, kicks_suppressed, high_water;
	void (*doorbell)(struct driver *, uint32_t next);
};

struct device {
	struct ring ring;
	uint32_t size;
	bool indirect, event_idx, broken;
	struct guest_memory memory;
	struct chain **chains;
	uint16_t taken, used_stored, signalled;
	uint32_t held;
};

/* --- driver end --- */

static int
commit(struct driver *q, int32_t cookie, uint32_t head, uint32_t last, uint32_t after, uint32_t count, uint32_t writable)
{
	struct record *r = &q->record[head];
	r->shape = count << 16 | last;
	r->writable = writable;
	r->cookie = cookie;
	q->free_head = after;
	q->free -= count;
	q->chains++;
	uint32_t in_flight = q->size - q->free;
	if (in_flight > q->high_water)
		q->high_water = in_flight;
	q->ring.available[2 + (q->next_available & (q->size - 1))] = (uint16_t)head;
	q->next_available++;
	return 0;
}

static int
enqueue(struct driver *q, int32_t cookie, const uint32_t *segments, uint32_t readable, uint32_t writable)
{
	CHECK(q->broken, return BROKEN);
	uint32_t total = readable + writable;
	CHECK(total < 1, return INVALID);
	CHECK(q->free == 0, return NO_SPACE);
	bool direct = total < 2 || total > q->max_indirect;
	CHECK(direct && total > q->free, return TOO_LONG);

	uint32_t head = q->free_head, last = head, after = q->record[head].next, writable_bytes = 0;
	if (direct) {
		uint32_t i = head;
		for (uint32_t k = 0; k < total; k++) {
			uint32_t length = segments[2 * k + 1];
			CHECK(length == 0, return INVALID);
			after = q->record[i].next;
			uint32_t flags = k + 1 < total ? DESC_NEXT | after << 16 : 0;
			if (k >= readable) {
				flags |= DESC_WRITE;
				writable_bytes += length;
			}
			uint32_t *d = &q->ring.descriptors[i * DESC_WORDS];
			d[0] = segments[2 * k];
			d[1] = 0;
			d[2] = length;
			d[3] = flags;
			last = i;
			i = after;
		}
	} else {
		uint32_t first = head * q->max_indirect;
		for (uint32_t k = 0; k < total; k++) {
			uint32_t length = segments[2 * k + 1];
			CHECK(length == 0, return INVALID);
			uint32_t flags = k + 1 < total ? DESC_NEXT | (k + 1) << 16 : 0;
			if (k >= readable) {
				flags |= DESC_WRITE;
				writable_bytes += length;
			}
			uint32_t *d = &q->tables[(first + k) * DESC_WORDS];
			d[0] = segments[2 * k];
			d[1] = 0;
			d[2] = length;
			d[3] = flags;
		}
		uint32_t *d = &q->ring.descriptors[head * DESC_WORDS];
		d[0] = q->tables_address + first * DESC_SIZE;
		d[1] = 0;
		d[2] = total * DESC_SIZE;
		d[3] = DESC_INDIRECT;
	}
	return commit(q, cookie, head, last, after, direct ? total : 1, writable_bytes);
}

static void
publish(struct driver *q)
{
	if (q->published == q->next_available)
		return;
	store_index(&q->ring.available[1], q->next_available);
	q->published = q->next_available;
}

static void
notify(struct driver *q)
{
	publish(q);
	uint16_t now = q->published, added = (uint16_t)(now - q->notified);
	if (added == 0 || q->broken)
		return;
	/* The index is stored before what the device wants is read (2.7.13.4.1). */
	full_fence();
	bool wanted = q->event_idx ? (uint16_t)(now - load_index(&q->ring.used[2 + 4 * q->size]) - 1) < added
	                           : (load_index(&q->ring.used[0]) & 1) == 0;
	q->notified = now;
	if (wanted) {
		q->kicks++;
		q->doorbell(q, now);
	} else
		q->kicks_suppressed++;
}

static bool
look(struct driver *q)
{
	CHECK(q->broken, return false);
	uint16_t seen = load_index(&q->ring.used[1]), ahead = (uint16_t)(seen - q->consumed);
	if (ahead == 0)
		return false;
	CHECK(ahead > q->chains, return !(q->broken = true));
	q->used_seen = seen;
	return true;
}

static int32_t
dequeue(struct driver *q)
{
	uint16_t consumed = q->consumed;
	if (consumed == q->used_seen && !look(q))
		return -1;
	CHECK(q->broken, return -1);
	const uint32_t *entry = &q->ring.used_entries[1 + 2 * (consumed & (q->size - 1))];
	uint32_t id = entry[0], length = entry[1];
	CHECK(id >= q->size, return (q->broken = true, -1));
	struct record *r = &q->record[id];
	uint32_t shape = r->shape;
	CHECK(shape == 0, return (q->broken = true, -1));
	CHECK(length > r->writable, return (q->broken = true, -1));
	q->record[shape & 0xffff].next = q->free_head;
	r->shape = 0;
	q->free_head = id;
	q->free += shape >> 16;
	q->chains--;
	q->consumed = (uint16_t)(consumed + 1);
	q->buffers++;
	q->used_length = length;
	return r->cookie;
}

static void
disable_interrupt(struct driver *q)
{
	if (q->event_idx)
		store_index(&q->ring.available[2 + q->size], (uint16_t)(q->consumed - q->size - 1));
	else
		store_index(&q->ring.available[0], 1);
}

/* --- device end --- */

static inline bool
refuse(struct device *q)
{
	q->broken = true;
	return false;
}

static bool
walk(struct device *q, struct chain *chain, uint32_t head)
{
	const uint32_t *table = q->ring.descriptors;
	uint32_t entries = q->size, i = head, seen = 0;
	bool in_table = false;
	for (;;) {
		CHECK(++seen > q->size, return refuse(q));
		const volatile uint32_t *d = &table[i * DESC_WORDS]; /* each word is read once */
		uint32_t low = d[0], high = d[1], length = d[2], flags_next = d[3];
		if (flags_next & DESC_INDIRECT) {
			CHECK(in_table || !q->indirect || (flags_next & DESC_NEXT), return refuse(q));
			CHECK(length == 0 || length % DESC_SIZE != 0 || length > q->size * DESC_SIZE, return refuse(q));
			int at = locate(&q->memory, low, high, length);
			CHECK(at < 0, return refuse(q));
			const struct region *region = &q->memory.regions[at];
			table = chain_copy_table(chain, region, offset_in(region, low, high), length);
			entries = length / DESC_SIZE;
			in_table = true;
			i = 0;
			seen--;
			continue;
		}
		CHECK(length == 0, return refuse(q));
		int region = locate(&q->memory, low, high, length);
		CHECK(region < 0, return refuse(q));
		bool writable = flags_next & DESC_WRITE;
		CHECK(!writable && chain->writable_length > 0, return refuse(q));
		chain_add(chain, region, offset_in(&q->memory.regions[region], low, high), length, writable);
		CHECK(chain->readable_length + chain->writable_length > 0x100000000, return refuse(q));
		if (!(flags_next & DESC_NEXT))
			return true;
		i = flags_next >> 16;
		CHECK(i >= entries, return refuse(q));
	}
}

static struct chain *
take(struct device *q)
{
	CHECK(q->broken, return NULL);
	uint16_t taken = q->taken;
	uint16_t waiting = (uint16_t)(load_index(&q->ring.available[1]) - taken);
	if (waiting == 0)
		return NULL;
	CHECK(waiting + q->held > q->size, return (refuse(q), NULL));
	uint32_t head = *(const volatile uint16_t *)&q->ring.available[2 + (taken & (q->size - 1))];
	CHECK(head >= q->size, return (refuse(q), NULL));
	struct chain *chain = q->chains[head];
	if (chain == NULL) {
		chain = q->chains[head] = zeroed(1, sizeof(*chain));
		chain->head = head;
	}
	CHECK(chain->held, return (refuse(q), NULL));
	chain_begin(chain);
	if (!walk(q, chain, head))
		return NULL;
	chain->held = true;
	q->held++;
	q->taken = (uint16_t)(taken + 1);
	return chain;
}

static int
give(struct device *q, struct chain *chain, uint64_t written)
{
	CHECK(!chain->held, return INVALID);
	CHECK(written > chain->writable_length, return INVALID);
	chain->held = false;
	q->held--;
	uint32_t *entry = &q->ring.used_entries[1 + 2 * (q->used_stored & (q->size - 1))];
	entry[0] = chain->head;
	entry[1] = (uint32_t)written;
	store_index(&q->ring.used[1], ++q->used_stored);
	return 0;
}

static bool
wants_interrupt(struct device *q)
{
	uint16_t now = q->used_stored, added = (uint16_t)(now - q->signalled);
	if (added == 0)
		return false;
	q->signalled = now;
	/* The used index is stored before what the driver wants is read (2.7.10). */
	full_fence();
	return q->event_idx ? (uint16_t)(now - load_index(&q->ring.available[2 + q->size]) - 1) < added
	                    : (load_index(&q->ring.available[0]) & 1) == 0;
}

static void
disable_notify(struct device *q)
{
	if (q->event_idx)
		store_index(&q->ring.used[2 + 4 * q->size], (uint16_t)(q->taken - 1));
	else
		store_index(&q->ring.used[0], 1);
}

/* --- both --- */

/* Lays the queue out, as splitLayout() does; returns the first byte after it. */
static uint32_t
make(struct driver *driver, struct device *device, const struct options *o)
{
	uint32_t at = align_up(o->at, 4096), available = at + o->size * DESC_SIZE;
	uint32_t used = align_up(available + 6 + 2 * o->size, 4096);
	struct ring ring = {
		.descriptors = (uint32_t *)(o->base + at),
		.available = (uint16_t *)(o->base + available),
		.used = (uint16_t *)(o->base + used),
		.used_entries = (uint32_t *)(o->base + used),
	};
	uint32_t end = align_up(used + 6 + 8 * o->size, 16);
	uint32_t max_indirect = o->indirect && o->max_segments > 1 ? o->max_segments : 0;
	*driver = (struct driver){
		.ring = ring,
		.size = o->size,
		.event_idx = o->event_idx,
		.max_indirect = max_indirect,
		.tables = (uint32_t *)(o->base + end),
		.tables_address = end,
		.record = zeroed(o->size, sizeof(struct record)),
		.free = o->size,
	};
	for (uint32_t i = 0; i < o->size; i++)
		driver->record[i].next = i + 1;
	*device = (struct device){
		.ring = ring,
		.size = o->size,
		.indirect = o->indirect,
		.event_idx = o->event_idx,
		.memory = o->memory,
		.chains = zeroed(o->size, sizeof(struct chain *)),
	};
	disable_interrupt(driver);
	return end + o->size * max_indirect * DESC_SIZE;
}

#include "load.h"
