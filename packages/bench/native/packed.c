/*
 * The packed virtqueue's twin (virtio 1.4 2.8): driver end as in packages/ring/src/packed-queue.ts, device end as in
 * packages/ring/src/packed-device-queue.ts.
 */
#include "twin.h"

/* Word 3 of a descriptor: id in the low half, flags in the high half. */
#define FLAG(flag) ((uint32_t)(flag) << 16)
enum { OWNER = DESC_AVAIL | DESC_USED, EVENT_DISABLE = 1, EVENT_DESC = 2, WRAP = 0x8000 };

struct ring {
	uint32_t *descriptors;
	uint32_t *driver_event; /* desc, flags: the device reads */
	uint32_t *device_event; /* desc, flags: the driver reads */
};

/* The driver's private record of a buffer id. */
struct record {
	uint32_t next;  /* the next free id */
	uint32_t count; /* descriptors in the ring; 0: the device does not have it */
	uint32_t writable;
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
	uint32_t free_id, free, chains;
	uint32_t next, next_wrap, used_at, used_wrap, added;
	int32_t held_head; /* the first head of what is not published, or -1 */
	uint32_t held_word;
	uint32_t used_length;
	uint64_t buffers, kicks, kicks_suppressed, high_water;
	void (*doorbell)(struct driver *, uint32_t next);
};

struct device {
	struct ring ring;
	uint32_t size;
	bool indirect, event_idx, broken;
	struct guest_memory memory;
	struct chain **chains; /* by buffer id, 65536 of them */
	uint32_t held, held_descriptors;
	uint32_t next, next_wrap, used_at, used_wrap, given;
};

static inline uint32_t
load_word(const uint32_t *at)
{
	return atomic_load_explicit((const _Atomic uint32_t *)at, memory_order_acquire);
}

static inline void
store_word(uint32_t *at, uint32_t value)
{
	atomic_store_explicit((_Atomic uint32_t *)at, value, memory_order_release);
}

static inline uint32_t
available_bits(uint32_t wrap)
{
	return FLAG(wrap ? DESC_AVAIL : DESC_USED);
}

static inline uint32_t
used_bits(uint32_t wrap)
{
	return wrap ? FLAG(OWNER) : 0;
}

/* Whether an event lies in the `added` descriptors that end before place `now` in the lap of `wrap` (2.8.10). */
static inline bool
passes(uint32_t event, uint32_t now, uint32_t wrap, uint32_t added, uint32_t size)
{
	uint32_t at = event & 0x7fff;
	if (event >> 15 != wrap)
		at -= size;
	return (uint16_t)(now - at - 1) < added;
}

/* --- driver end --- */

static int
commit(struct driver *q, int32_t cookie, uint32_t id, uint32_t count, uint32_t writable, uint32_t head_word, uint32_t place)
{
	struct record *r = &q->record[id];
	uint32_t head = q->next;
	q->free_id = r->next;
	r->count = count;
	r->writable = writable;
	r->cookie = cookie;
	if (q->held_head < 0) {
		q->held_head = (int32_t)head;
		q->held_word = head_word;
	} else
		q->ring.descriptors[head * DESC_WORDS + 3] = head_word;
	if (place <= head)
		q->next_wrap ^= 1;
	q->next = place;
	q->free -= count;
	q->chains++;
	q->added += count;
	uint32_t in_flight = q->size - q->free;
	if (in_flight > q->high_water)
		q->high_water = in_flight;
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

	uint32_t id = q->free_id, writable_bytes = 0, place = q->next;
	if (direct) {
		uint32_t bits = available_bits(q->next_wrap), head_word = 0;
		for (uint32_t k = 0; k < total; k++) {
			uint32_t length = segments[2 * k + 1];
			CHECK(length == 0, return INVALID);
			uint32_t word = bits | id | (k + 1 < total ? FLAG(DESC_NEXT) : 0);
			if (k >= readable) {
				word |= FLAG(DESC_WRITE);
				writable_bytes += length;
			}
			uint32_t *d = &q->ring.descriptors[place * DESC_WORDS];
			d[0] = segments[2 * k];
			d[1] = 0;
			d[2] = length;
			/* The head's flags come last: they expose the list (2.8.17). */
			if (k == 0)
				head_word = word;
			else
				d[3] = word;
			if (++place == q->size) {
				place = 0;
				bits ^= FLAG(OWNER);
			}
		}
		return commit(q, cookie, id, total, writable_bytes, head_word, place);
	}
	uint32_t first = id * q->max_indirect;
	for (uint32_t k = 0; k < total; k++) {
		uint32_t length = segments[2 * k + 1];
		CHECK(length == 0, return INVALID);
		uint32_t *d = &q->tables[(first + k) * DESC_WORDS];
		d[0] = segments[2 * k];
		d[1] = 0;
		d[2] = length;
		d[3] = k >= readable ? FLAG(DESC_WRITE) : 0;
		if (k >= readable)
			writable_bytes += length;
	}
	uint32_t *d = &q->ring.descriptors[place * DESC_WORDS];
	d[0] = q->tables_address + first * DESC_SIZE;
	d[1] = 0;
	d[2] = total * DESC_SIZE;
	uint32_t word = available_bits(q->next_wrap) | id | FLAG(DESC_INDIRECT);
	return commit(q, cookie, id, 1, writable_bytes, word, place + 1 == q->size ? 0 : place + 1);
}

static void
publish(struct driver *q)
{
	if (q->held_head < 0)
		return;
	/* The device looks in ring order: this one word exposes the whole batch (2.8.21.1.1). */
	store_word(&q->ring.descriptors[q->held_head * DESC_WORDS + 3], q->held_word);
	q->held_head = -1;
}

static void
notify(struct driver *q)
{
	publish(q);
	uint32_t added = q->added;
	if (added == 0 || q->broken)
		return;
	/* The flags are stored before what the device wants is read (2.8.21.3.1). */
	full_fence();
	uint32_t event = load_word(q->ring.device_event), kind = event >> 16 & 3;
	bool wanted = q->event_idx && kind == EVENT_DESC ? passes(event & 0xffff, q->next, q->next_wrap, added, q->size)
	                                                 : kind != EVENT_DISABLE;
	q->added = 0;
	if (wanted) {
		q->kicks++;
		q->doorbell(q, q->next | (q->next_wrap ? WRAP : 0));
	} else
		q->kicks_suppressed++;
}

static int32_t
dequeue(struct driver *q)
{
	CHECK(q->broken, return -1);
	const uint32_t *d = &q->ring.descriptors[q->used_at * DESC_WORDS];
	uint32_t word = load_word(&d[3]);
	if ((word & FLAG(OWNER)) != used_bits(q->used_wrap))
		return -1;
	CHECK(q->chains == 0 || (int32_t)q->used_at == q->held_head, return (q->broken = true, -1));
	uint32_t id = word & 0xffff, length = word & FLAG(DESC_WRITE) ? d[2] : 0;
	CHECK(id >= q->size, return (q->broken = true, -1));
	struct record *r = &q->record[id];
	uint32_t count = r->count;
	CHECK(count == 0, return (q->broken = true, -1));
	CHECK(length > r->writable, return (q->broken = true, -1));
	r->next = q->free_id;
	r->count = 0;
	q->free_id = id;
	q->free += count;
	q->chains--;
	q->used_at += count;
	if (q->used_at >= q->size) {
		q->used_at -= q->size;
		q->used_wrap ^= 1;
	}
	q->buffers++;
	q->used_length = length;
	return r->cookie;
}

static void
disable_interrupt(struct driver *q)
{
	store_word(q->ring.driver_event, EVENT_DISABLE << 16);
}

/* --- device end --- */

static inline bool
refuse(struct device *q)
{
	q->broken = true;
	return false;
}

/* Adds one element as a descriptor has it. */
static bool
add(struct device *q, struct chain *chain, uint32_t low, uint32_t high, uint32_t length, bool writable)
{
	CHECK(length == 0, return refuse(q));
	int region = locate(&q->memory, low, high, length);
	CHECK(region < 0, return refuse(q));
	CHECK(!writable && chain->writable_length > 0, return refuse(q));
	chain_add(chain, region, offset_in(&q->memory.regions[region], low, high), length, writable);
	CHECK(chain->readable_length + chain->writable_length > 0x100000000, return refuse(q));
	return true;
}

static bool
walk_table(struct device *q, struct chain *chain, uint32_t low, uint32_t high, uint32_t length)
{
	CHECK(!q->indirect, return refuse(q));
	CHECK(length == 0 || length % DESC_SIZE != 0 || length > q->size * DESC_SIZE, return refuse(q));
	int at = locate(&q->memory, low, high, length);
	CHECK(at < 0, return refuse(q));
	const struct region *region = &q->memory.regions[at];
	const uint32_t *table = chain_copy_table(chain, region, offset_in(region, low, high), length);
	for (const uint32_t *d = table; d < table + length / 4; d += DESC_WORDS) {
		uint32_t flags = d[3] >> 16;
		CHECK(flags & ~(uint32_t)DESC_WRITE, return refuse(q));
		if (!add(q, chain, d[0], d[1], d[2], flags & DESC_WRITE))
			return false;
	}
	return true;
}

static bool
walk(struct device *q, struct chain *chain, uint32_t count)
{
	uint32_t place = q->next;
	for (uint32_t k = 0; k < count; k++) {
		const volatile uint32_t *d = &q->ring.descriptors[place * DESC_WORDS]; /* each word is read once */
		uint32_t low = d[0], high = d[1], length = d[2], flags = d[3] >> 16;
		if (flags & DESC_INDIRECT) {
			CHECK(count > 1, return refuse(q));
			return walk_table(q, chain, low, high, length);
		}
		if (!add(q, chain, low, high, length, flags & DESC_WRITE))
			return false;
		place = place + 1 == q->size ? 0 : place + 1;
	}
	return true;
}

static struct chain *
take(struct device *q)
{
	CHECK(q->broken, return NULL);
	uint32_t place = q->next, bits = available_bits(q->next_wrap), count = 0;
	uint32_t word = load_word(&q->ring.descriptors[place * DESC_WORDS + 3]);
	if ((word & FLAG(OWNER)) != bits)
		return NULL;
	/* The id stands in the last descriptor of the list (2.8.17). */
	for (;;) {
		++count;
		CHECK(count + q->held_descriptors > q->size, return (refuse(q), NULL));
		if (++place == q->size) {
			place = 0;
			bits ^= FLAG(OWNER);
		}
		if (!(word & FLAG(DESC_NEXT)))
			break;
		word = *(const volatile uint32_t *)&q->ring.descriptors[place * DESC_WORDS + 3];
		CHECK((word & FLAG(OWNER)) != bits, return (refuse(q), NULL));
	}
	uint32_t id = word & 0xffff;
	struct chain *chain = q->chains[id];
	if (chain == NULL) {
		chain = q->chains[id] = zeroed(1, sizeof(*chain));
		chain->head = id;
	}
	CHECK(chain->held, return (refuse(q), NULL));
	chain_begin(chain);
	chain->descriptors = count;
	if (!walk(q, chain, count))
		return NULL;
	chain->held = true;
	q->held++;
	q->held_descriptors += count;
	if (place <= q->next)
		q->next_wrap ^= 1;
	q->next = place;
	return chain;
}

static int
give(struct device *q, struct chain *chain, uint64_t written)
{
	CHECK(!chain->held, return INVALID);
	CHECK(written > chain->writable_length, return INVALID);
	chain->held = false;
	q->held--;
	uint32_t count = chain->descriptors;
	q->held_descriptors -= count;
	uint32_t *d = &q->ring.descriptors[q->used_at * DESC_WORDS];
	d[2] = (uint32_t)written;
	store_word(&d[3], used_bits(q->used_wrap) | chain->head | (written > 0 ? FLAG(DESC_WRITE) : 0));
	q->given += count;
	q->used_at += count;
	if (q->used_at >= q->size) {
		q->used_at -= q->size;
		q->used_wrap ^= 1;
	}
	return 0;
}

static bool
wants_interrupt(struct device *q)
{
	uint32_t given = q->given;
	if (given == 0)
		return false;
	q->given = 0;
	/* The used descriptors are stored before what the driver wants is read (2.8.22). */
	full_fence();
	uint32_t event = load_word(q->ring.driver_event), kind = event >> 16 & 3;
	return q->event_idx && kind == EVENT_DESC ? passes(event & 0xffff, q->used_at, q->used_wrap, given, q->size)
	                                          : kind != EVENT_DISABLE;
}

static void
disable_notify(struct device *q)
{
	store_word(q->ring.device_event, EVENT_DISABLE << 16);
}

/* --- both --- */

/* Lays the queue out; returns the first byte after it. */
static uint32_t
make(struct driver *driver, struct device *device, const struct options *o)
{
	uint32_t at = align_up(o->at, DESC_SIZE), events = at + o->size * DESC_SIZE, end = events + DESC_SIZE;
	struct ring ring = {
		.descriptors = (uint32_t *)(o->base + at),
		.driver_event = (uint32_t *)(o->base + events),
		.device_event = (uint32_t *)(o->base + events + 4),
	};
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
		.next_wrap = 1,
		.used_wrap = 1,
		.held_head = -1,
	};
	for (uint32_t i = 0; i < o->size; i++)
		driver->record[i].next = i + 1;
	*device = (struct device){
		.ring = ring,
		.size = o->size,
		.indirect = o->indirect,
		.event_idx = o->event_idx,
		.memory = o->memory,
		.chains = zeroed(65536, sizeof(struct chain *)),
		.next_wrap = 1,
		.used_wrap = 1,
	};
	disable_interrupt(driver);
	return end + o->size * max_indirect * DESC_SIZE;
}

#include "load.h"
