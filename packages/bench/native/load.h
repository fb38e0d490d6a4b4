/*
 * The load, the same as in packages/bench/src/load.ts, over the functions of one format: included at the end of split.c and of
 * packed.c, so that the compiler may inline whatever it likes.
 *
 *     twin BATCH THREADS SEGMENTS INDIRECT QUEUES
 *
 * For each line of standard input, a number of buffers, it passes that many through the rings and prints the nanoseconds it took.
 */
#include <pthread.h>
#include <sched.h>
#include <time.h>

enum { QUEUE_SIZE = 256, MEMORY = 16 << 20, BUFFER = 64, STALLED = 1 << 28 };

struct load {
	uint32_t batch, threads, segments, queues;
	struct driver *driver;
	struct device *device;
	uint32_t *lists; /* (address, length) of each segment of each slot */
};

static _Atomic bool running;
static uint64_t doorbells;

static void
doorbell(struct driver *q, uint32_t next)
{
	(void)q, (void)next;
	doorbells++;
}

static void
die(const char *what)
{
	fprintf(stderr, "twin: %s\n", what);
	exit(1);
}

static uint64_t
now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* The driver's half of a batch: fill and notify. */
static void
submit(const struct load *load, struct driver *q)
{
	uint32_t readable = load->segments - 1;
	for (uint32_t slot = 0; slot < load->batch; slot++)
		if (enqueue(q, (int32_t)slot, &load->lists[slot * load->segments * 2], readable, 1) != 0)
			die("enqueue failed");
	notify(q);
}

/* The device's half: everything that is available comes back, its writable bytes written. */
static void
serve(struct device *q)
{
	struct chain *chain;
	while ((chain = take(q)) != NULL)
		if (give(q, chain, chain->writable_length) != 0)
			die("give failed");
	if (wants_interrupt(q))
		die("an interrupt nobody asked for");
}

/* Takes back what is used, which has to be the slots from `expected` on; returns the next slot to come. */
static uint32_t
collect(struct driver *q, uint32_t expected)
{
	int32_t cookie;
	while ((cookie = dequeue(q)) >= 0) {
		if ((uint32_t)cookie != expected || q->used_length != BUFFER)
			die("a used buffer is wrong");
		expected++;
	}
	return expected;
}

static void
run_one_thread(const struct load *load, uint64_t buffers)
{
	for (uint64_t done = 0; done < buffers;)
		for (uint32_t i = 0; i < load->queues; i++) {
			submit(load, &load->driver[i]);
			serve(&load->device[i]);
			if (collect(&load->driver[i], 0) != load->batch)
				die("buffers are missing");
			done += load->batch;
		}
}

static void *
serve_until_told(void *argument)
{
	const struct load *load = argument;
	while (atomic_load_explicit(&running, memory_order_relaxed))
		for (uint32_t i = 0; i < load->queues; i++)
			serve(&load->device[i]);
	return NULL;
}

static void
run_two_threads(const struct load *load, uint64_t buffers)
{
	for (uint64_t done = 0; done < buffers;)
		for (uint32_t i = 0; i < load->queues; i++) {
			uint32_t slots = 0;
			submit(load, &load->driver[i]);
			for (uint32_t tries = 0; slots < load->batch; tries++) {
				if (tries == STALLED)
					die("the device thread does not answer");
				slots = collect(&load->driver[i], slots);
			}
			done += load->batch;
		}
}

int
main(int argc, char **argv)
{
	if (argc != 6)
		die("usage: twin BATCH THREADS SEGMENTS INDIRECT QUEUES");
	struct load load = {
		.batch = (uint32_t)atoi(argv[1]),
		.threads = (uint32_t)atoi(argv[2]),
		.segments = (uint32_t)atoi(argv[3]),
		.queues = (uint32_t)atoi(argv[5]),
	};
	struct region region = {.address = 0, .length = MEMORY, .bytes = aligned_alloc(4096, MEMORY)};
	if (region.bytes == NULL)
		die("no memory");
	memset(region.bytes, 0, MEMORY);
	struct options options = {
		.size = QUEUE_SIZE,
		.max_segments = load.segments,
		.indirect = atoi(argv[4]) != 0,
		.event_idx = false,
		.base = region.bytes,
		.at = 4096,
		.memory = {.regions = &region, .count = 1},
	};
	shared_memory = load.threads > 1;
	load.driver = zeroed(load.queues, sizeof(struct driver));
	load.device = zeroed(load.queues, sizeof(struct device));
	for (uint32_t i = 0; i < load.queues; i++) {
		options.at = make(&load.driver[i], &load.device[i], &options);
		load.driver[i].doorbell = doorbell;
		disable_notify(&load.device[i]);
	}
	load.lists = zeroed(load.batch * load.segments * 2, sizeof(uint32_t));
	for (uint32_t i = 0; i < load.batch * load.segments; i++) {
		load.lists[2 * i] = align_up(options.at, 64) + i * BUFFER;
		load.lists[2 * i + 1] = BUFFER;
	}

	unsigned long long buffers;
	while (scanf("%llu", &buffers) == 1) {
		pthread_t device;
		uint64_t began = now();
		if (load.threads == 1)
			run_one_thread(&load, buffers);
		else {
			atomic_store(&running, true);
			if (pthread_create(&device, NULL, serve_until_told, &load) != 0)
				die("no thread");
			run_two_threads(&load, buffers);
			atomic_store(&running, false);
			pthread_join(device, NULL);
		}
		printf("%llu\n", (unsigned long long)(now() - began));
		fflush(stdout);
	}
	return 0;
}
