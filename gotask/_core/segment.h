/* What lies where in the shared memory. Offsets, never pointers; every offset is computed from the shape that a process
   inherited in its private gt_seg, so that a scribbled header misleads nobody.

     header | ready rings | slots | lanes (one per worker, its report ring behind it) | blocks for large frames        */
#ifndef GT_SEGMENT_H
#define GT_SEGMENT_H

#include <string.h>

#include "futex.h"

#define GT_MAGIC 0x4b5341544f47ull /* "GOTASK" */
#define GT_LAYOUT 1ull             /* raise it with any change of a struct below: a process of another layout refuses */
#define GT_RINGS 11u               /* priorities 0..9, and ALONE */
#define GT_ALONE 10u
#define GT_BUCKETS 64u
#define GT_MAX_SLOTS (1u << 20)
#define GT_MAX_WORKERS (1u << 12)
#define GT_NONE UINT32_MAX

/* A slot's word: generation (32) | state (4) | owner (28). An owner: life (16) | worker index (12). A ticket, and a hint
   in a ready ring: generation (32) | slot (24). */
enum gt_state { GT_FREE, GT_READY, GT_TAKEN, GT_REPORTED, GT_LOST, GT_STATES };
enum gt_verdict { GT_SUSPECT = 1, GT_SUSPECT_ALONE, GT_OVERDUE, GT_INNOCENT };

#define GT_INDEX_BITS 12
#define GT_LIFE_MASK 0xffffu

static inline uint64_t gt_word_of(uint64_t generation, uint64_t state, uint64_t owner) {
    return generation << 32 | state << 28 | owner;
}
static inline uint64_t gt_ticket_of(uint64_t generation, uint64_t slot) { return generation << 24 | slot; }
static inline uint64_t gt_word_generation(uint64_t word) { return word >> 32; }
static inline uint32_t gt_word_state(uint64_t word) { return word >> 28 & 0xf; }
static inline uint32_t gt_word_owner(uint64_t word) { return word & 0xfffffff; }
static inline uint64_t gt_ticket_generation(uint64_t ticket) { return ticket >> 24; }
static inline uint32_t gt_ticket_slot(uint64_t ticket) { return ticket & 0xffffff; }
static inline uint32_t gt_owner_index(uint32_t owner) { return owner & (GT_MAX_WORKERS - 1); }
static inline uint32_t gt_owner_life(uint32_t owner) { return owner >> GT_INDEX_BITS & GT_LIFE_MASK; }

typedef struct {
    _Alignas(64) gt_word word; /* the first line is all that a claim and a report touch, beside the body */
    gt_word expires;           /* nobody claims past it */
    gt_word length;
    gt_word ring;
    gt_word started;   /* 0 between put and claim */
    gt_word ended;     /* the generation whose final report is out: a hint for overdue and stuck, never for recover */
    gt_word limit;     /* 0: none */
    gt_word cancel_by; /* 0: not asked; else when the grace of the cancellation is over */
    _Alignas(64) gt_word grace;
    gt_word verdict;
    gt_word code;
} gt_slot; /* the body follows; when it does not fit, a list of block numbers (uint32_t) does */

_Static_assert(sizeof(gt_slot) % 64 == 0, "slots share no cache line");

/* Lines are grouped by who writes them. Words that hold an owner mean that life only and so need no reset. */
typedef struct {
    _Alignas(64) gt_word owner; /* arbiter: who lives here */
    gt_word recovered;          /* arbiter: the last life that was */
    gt_word stop;               /* arbiter: this life takes no more */
    gt_word torn;               /* dispatcher: this life wrote nonsense */
    _Alignas(64) gt_word tail;  /* worker: the store that publishes a report */
    gt_word seen;               /* worker: the report ring's head when it last looked */
    gt_word alone;              /* worker: holds a frame from ALONE */
    gt_word asleep;             /* worker: how many of its threads are counted in ready.waiters */
    _Alignas(64) gt_word head;  /* dispatcher: reports before it may be overwritten */
    gt_event attention;
    gt_event space;
    _Alignas(64) gt_word claimed;
    gt_word done;
    gt_word busy;
    gt_word buckets[GT_BUCKETS];
} gt_lane; /* its report ring follows */

#define GT_LANE_BYTES ((sizeof(gt_lane) + 127) / 128 * 128)

typedef struct {
    uint64_t slots, workers, slot_bytes, report_bytes, blocks, block_bytes;
} gt_shape;

typedef struct {
    uint64_t magic, layout, size;
    gt_shape shape;
    gt_event ready;
    gt_event reports;
    _Alignas(64) gt_word recoveries;
    _Alignas(64) gt_word tails[16]; /* dispatcher; a claim looks at all of them, so they lie together */
    _Alignas(64) gt_word heads[16]; /* whoever sees one behind */
} gt_header;

/* Private to a process: where the segment is mapped and what shape it has. */
typedef struct {
    uint8_t *base;
    gt_header *header;
    gt_shape shape;
    uint64_t capacity, slot_stride, lane_stride;
    uint64_t rings_at, slots_at, lanes_at, blocks_at, size;
} gt_seg;

static inline uint64_t gt_round(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static inline uint64_t gt_power(uint64_t n) {
    uint64_t p = 1;
    while (p < n)
        p <<= 1;
    return p;
}

/* Every member but base and header; the caller has bounded the shape, so nothing here overflows. */
static inline void gt_plan(gt_seg *s, const gt_shape *shape) {
    s->shape = *shape;
    s->shape.slot_bytes = gt_round(shape->slot_bytes, 64);
    s->shape.report_bytes = gt_power(shape->report_bytes);
    s->shape.block_bytes = gt_round(shape->block_bytes, 64);
    /* Half a ring for what is put, half for what a successor hints again. */
    s->capacity = gt_power(2 * shape->slots);
    s->slot_stride = sizeof(gt_slot) + s->shape.slot_bytes;
    s->lane_stride = GT_LANE_BYTES + s->shape.report_bytes;
    s->rings_at = gt_round(sizeof(gt_header), 128);
    s->slots_at = gt_round(s->rings_at + GT_RINGS * s->capacity * 8, 128);
    s->lanes_at = gt_round(s->slots_at + shape->slots * s->slot_stride, 128);
    s->blocks_at = gt_round(s->lanes_at + shape->workers * s->lane_stride, 128);
    s->size = gt_round(s->blocks_at + shape->blocks * s->shape.block_bytes, 4096);
}

static inline gt_slot *gt_slot_at(const gt_seg *s, uint64_t i) {
    return (gt_slot *)(void *)(s->base + s->slots_at + i * s->slot_stride);
}
static inline uint8_t *gt_slot_body(gt_slot *slot) { return (uint8_t *)(slot + 1); }
static inline gt_lane *gt_lane_at(const gt_seg *s, uint64_t i) {
    return (gt_lane *)(void *)(s->base + s->lanes_at + i * s->lane_stride);
}
static inline uint8_t *gt_lane_bytes(gt_lane *lane) { return (uint8_t *)lane + GT_LANE_BYTES; }
static inline gt_word *gt_hint_at(const gt_seg *s, uint64_t ring, uint64_t position) {
    return (gt_word *)(void *)(s->base + s->rings_at) + ring * s->capacity + (position & (s->capacity - 1));
}
static inline uint8_t *gt_block_at(const gt_seg *s, uint64_t i) {
    return s->base + s->blocks_at + i * s->shape.block_bytes;
}

/* `base` is zeroed memory of s->size bytes that no other process sees yet. */
static inline void gt_format(gt_seg *s, uint8_t *base) {
    s->base = base;
    s->header = (gt_header *)(void *)base;
    s->header->layout = GT_LAYOUT;
    s->header->size = s->size;
    s->header->shape = s->shape;
    for (uint64_t i = 0; i < s->shape.slots; i++)
        gt_store(&gt_slot_at(s, i)->word, gt_word_of(1, GT_FREE, 0));
    s->header->magic = GT_MAGIC;
}

/* How many blocks a frame of this length needs; GT_NONE if no slot could ever name them. */
static inline uint32_t gt_blocks_for(const gt_seg *s, uint64_t length) {
    if (length <= s->shape.slot_bytes)
        return 0;
    uint64_t need = length / s->shape.block_bytes + (length % s->shape.block_bytes != 0);
    return need > s->shape.blocks || need * 4 > s->shape.slot_bytes ? GT_NONE : (uint32_t)need;
}

/* Copies a frame out of its slot (and blocks); 0 when the slot names what does not exist. */
static inline int gt_copy_body(const gt_seg *s, gt_slot *slot, uint64_t length, uint8_t *to) {
    uint32_t need = gt_blocks_for(s, length), number;
    if (need == GT_NONE)
        return 0;
    if (!need)
        return memcpy(to, gt_slot_body(slot), length), 1;
    for (uint32_t i = 0; i < need; i++) {
        uint64_t done = i * s->shape.block_bytes;
        uint64_t part = length - done < s->shape.block_bytes ? length - done : s->shape.block_bytes;
        memcpy(&number, gt_slot_body(slot) + 4 * i, 4);
        if (number >= s->shape.blocks)
            return 0;
        memcpy(to + done, gt_block_at(s, number), part);
    }
    return 1;
}

/* The slot of a ticket while its stay lasts, with its word as just read; NULL when over, or no ticket at all. */
static inline gt_slot *gt_stay(const gt_seg *s, uint64_t ticket, uint64_t *word) {
    if (gt_ticket_slot(ticket) >= s->shape.slots)
        return NULL;
    gt_slot *slot = gt_slot_at(s, gt_ticket_slot(ticket));
    *word = gt_load(&slot->word);
    return gt_word_generation(*word) == gt_ticket_generation(ticket) ? slot : NULL;
}

/* Generations have 32 bits: a hand must be late by four billion stays of one slot before it could meet a twin. */
static inline uint64_t gt_freed(uint64_t word) {
    return gt_word_of((gt_word_generation(word) + 1) & 0xffffffff, GT_FREE, 0);
}

#endif
