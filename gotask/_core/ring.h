/* Frames on their way to a worker. The dispatcher alone fills slots and rings; a worker claims by one compare-and-swap.

   put     slot word FREE -> READY after the body decides; then the hint; then a wake if somebody sleeps
   claim   CAS READY -> TAKEN(me) decides; then the head, moved by whoever sees it behind
   recall  CAS READY -> FREE, generation + 1
   free    CAS TAKEN | REPORTED | LOST -> FREE, generation + 1

   The rings hold hints: a stale one fails its compare-and-swap, a missing one is made good by gt_adopt. */
#ifndef GT_RING_H
#define GT_RING_H

#include <stdlib.h>

#include "segment.h"

typedef struct {
    const uint8_t *body;
    uint64_t length, ring, limit, grace, expires;
} gt_frame;

/* The dispatcher's own memory: no worker can scribble on it, and a successor rebuilds it from the slots. */
typedef struct {
    uint64_t tails[GT_RINGS], heads[GT_RINGS]; /* tails run ahead of the shared ones inside a batch */
    uint64_t *cursors, *kept;                  /* per lane: drained up to, and the head as last stored */
    uint64_t *put_at;                          /* per slot */
    uint32_t *chains, *next;                   /* per slot its first block; per block the one after it */
    uint32_t *free_slots;
    uint32_t free_count, free_block, free_blocks, lane;
    uint64_t judged, losses;
} gt_desk;

static inline void gt_desk_close(gt_desk *d) {
    free(d->cursors);
    memset(d, 0, sizeof *d);
}

/* One allocation, the widest members first. 0 when there is no memory. */
static inline int gt_desk_open(const gt_seg *s, gt_desk *d) {
    uint64_t lanes = s->shape.workers, slots = s->shape.slots, blocks = s->shape.blocks;
    memset(d, 0, sizeof *d);
    d->cursors = calloc(1, (2 * lanes + slots) * 8 + (2 * slots + blocks) * 4);
    if (!d->cursors)
        return 0;
    d->kept = d->cursors + lanes;
    d->put_at = d->kept + lanes;
    d->chains = (uint32_t *)(d->put_at + slots);
    d->free_slots = d->chains + slots;
    d->next = d->free_slots + slots;
    return 1;
}

/* ---- the dispatcher: in ---- */

static inline void gt_block_push(gt_desk *d, uint32_t block) {
    d->next[block] = d->free_block;
    d->free_block = block;
    d->free_blocks++;
}

static inline void gt_slot_push(gt_desk *d, uint32_t slot) {
    for (uint32_t b = d->chains[slot], after; b != GT_NONE; b = after) {
        after = d->next[b];
        gt_block_push(d, b);
    }
    d->chains[slot] = GT_NONE;
    d->free_slots[d->free_count++] = slot;
}

static inline int gt_hint_stands(const gt_seg *s, uint64_t hint) {
    uint64_t word;
    return gt_stay(s, hint, &word) && gt_word_state(word) == GT_READY;
}

/* Is there a place in the ring? Stale hints at its head are passed over first: with no worker awake nobody else does. */
static inline int gt_ring_has_room(const gt_seg *s, gt_desk *d, uint64_t ring, uint64_t limit) {
    gt_word *head = &s->header->heads[ring];
    if (d->tails[ring] - d->heads[ring] < limit)
        return 1;
    for (;;) {
        uint64_t h = d->heads[ring] = gt_load(head);
        if (d->tails[ring] - h < limit)
            return 1;
        if (d->tails[ring] - h > s->capacity) {
            gt_cas(head, h, d->tails[ring]); /* scribbled on; what it named is recalled by its age */
            continue;
        }
        if (gt_hint_stands(s, gt_load(gt_hint_at(s, ring, h))))
            return 0;
        gt_cas(head, h, h + 1);
    }
}

static inline void gt_hint(const gt_seg *s, gt_desk *d, uint64_t ring, uint64_t ticket) {
    gt_store(gt_hint_at(s, ring, d->tails[ring]++), ticket);
}

static inline void gt_publish_tails(const gt_seg *s, gt_desk *d) {
    for (uint64_t r = 0; r < GT_RINGS; r++)
        if (gt_load(&s->header->tails[r]) != d->tails[r])
            gt_store(&s->header->tails[r], d->tails[r]);
}

static inline void gt_fill_body(const gt_seg *s, gt_desk *d, uint32_t i, const gt_frame *f, uint32_t need) {
    uint8_t *to = gt_slot_body(gt_slot_at(s, i));
    if (!need) {
        memcpy(to, f->body, f->length);
        return;
    }
    uint64_t done = 0, size = s->shape.block_bytes;
    for (uint32_t k = 0; k < need; k++, done += size) {
        uint32_t block = d->free_block;
        d->free_block = d->next[block];
        d->free_blocks--;
        d->next[block] = d->chains[i];
        d->chains[i] = block;
        memcpy(to + 4 * k, &block, 4);
        memcpy(gt_block_at(s, block), f->body + done, f->length - done < size ? f->length - done : size);
    }
}

/* The ticket of a frame that is READY and hinted (but see gt_publish_tails), or 0 for want of slot, ring or blocks. */
static inline uint64_t gt_put(const gt_seg *s, gt_desk *d, const gt_frame *f, uint64_t now) {
    uint32_t need = gt_blocks_for(s, f->length);
    if (need > d->free_blocks || !gt_ring_has_room(s, d, f->ring, s->capacity - s->shape.slots))
        return 0;
    while (d->free_count) {
        uint32_t i = d->free_slots[--d->free_count];
        gt_slot *slot = gt_slot_at(s, i);
        uint64_t word = gt_load(&slot->word);
        if (gt_word_state(word) != GT_FREE)
            continue; /* scribbled on: never used again, which costs a slot and no more */
        gt_fill_body(s, d, i, f, need);
        gt_store(&slot->expires, f->expires);
        gt_store(&slot->length, f->length);
        gt_store(&slot->ring, f->ring);
        gt_store(&slot->started, 0);
        gt_store(&slot->limit, f->limit);
        gt_store(&slot->cancel_by, 0);
        gt_store(&slot->grace, f->grace);
        d->put_at[i] = now;
        uint64_t ticket = gt_ticket_of(gt_word_generation(word), i);
        gt_store(&slot->word, gt_word_of(gt_word_generation(word), GT_READY, 0));
        gt_hint(s, d, f->ring, ticket);
        return ticket;
    }
    return 0;
}

/* How many of the frames found room; their tickets. Tails go out in small batches: a store per frame would have the
   line of tails travel between the cores for each. */
static inline uint64_t gt_put_many(const gt_seg *s, gt_desk *d, const gt_frame *f, uint64_t count, uint64_t *tickets) {
    uint64_t now = gt_now(), done = 0, alone = 0;
    for (; done < count; done++) {
        if (!(tickets[done] = gt_put(s, d, f + done, now)))
            break;
        alone |= f[done].ring == GT_ALONE;
        if (done % 32 == 31)
            gt_publish_tails(s, d);
        if (done == 31) /* the first may start while the rest is written */
            gt_wake_sleepers(&s->header->ready, 32);
    }
    gt_publish_tails(s, d);
    /* Not every sleeper may take from ALONE, so one of them would not do. */
    if (done)
        gt_wake_sleepers(&s->header->ready, alone ? INT_MAX : done);
    return done;
}

/* Ends the stay if nobody has claimed it; READY -> FREE. */
static inline int gt_recall_slot(const gt_seg *s, gt_desk *d, uint32_t i, uint64_t word) {
    if (gt_word_state(word) != GT_READY || !gt_cas(&gt_slot_at(s, i)->word, word, gt_freed(word)))
        return 0;
    gt_slot_push(d, i);
    return 1;
}

/* How many tickets were taken back from those put at or before `before`. `tickets` has room for every slot. */
static inline uint64_t gt_recall(const gt_seg *s, gt_desk *d, uint64_t before, uint64_t *tickets) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < s->shape.slots; i++) {
        uint64_t word = gt_load(&gt_slot_at(s, i)->word);
        if (gt_word_state(word) == GT_READY && d->put_at[i] <= before && gt_recall_slot(s, d, i, word))
            tickets[count++] = gt_ticket_of(gt_word_generation(word), i);
    }
    return count;
}

/* 1: somebody holds it, or its end is on the way. 0: it was recalled, or its stay was over. */
static inline int gt_cancel(const gt_seg *s, gt_desk *d, uint64_t ticket, uint64_t by) {
    uint64_t word;
    gt_slot *slot = gt_stay(s, ticket, &word);
    if (!slot || gt_word_state(word) == GT_FREE || gt_recall_slot(s, d, gt_ticket_slot(ticket), word))
        return 0;
    word = gt_load(&slot->word);
    gt_store(&slot->cancel_by, by);
    if (gt_owner_index(gt_word_owner(word)) < s->shape.workers)
        gt_wake(&gt_lane_at(s, gt_owner_index(gt_word_owner(word)))->attention, INT_MAX);
    return 1;
}

/* Ends a stay that was claimed. The loop: the arbiter may be moving TAKEN on to REPORTED or LOST. */
static inline int gt_free(const gt_seg *s, gt_desk *d, uint64_t ticket) {
    uint64_t word;
    gt_slot *slot;
    while ((slot = gt_stay(s, ticket, &word)) && gt_word_state(word) > GT_READY) {
        if (gt_cas(&slot->word, word, gt_freed(word))) {
            gt_slot_push(d, gt_ticket_slot(ticket));
            return 1;
        }
    }
    return 0;
}

/* ---- the dispatcher: taking over ---- */

/* Chains the blocks a slot names; 0 when it names one that does not exist or that another slot has. */
static inline int gt_adopt_blocks(const gt_seg *s, gt_desk *d, uint32_t i, uint8_t *used) {
    gt_slot *slot = gt_slot_at(s, i);
    uint32_t need = gt_blocks_for(s, gt_load(&slot->length)), block;
    if (need == GT_NONE)
        return 0;
    for (uint32_t k = 0; k < need; k++) {
        memcpy(&block, gt_slot_body(slot) + 4 * k, 4);
        if (block >= s->shape.blocks || used[block])
            return 0;
        used[block] = 1;
        d->next[block] = d->chains[i];
        d->chains[i] = block;
    }
    return 1;
}

/* Marks the slots that a ready ring names at this moment. */
static inline void gt_adopt_hints(const gt_seg *s, gt_desk *d, uint8_t *named) {
    for (uint64_t r = 0; r < GT_RINGS; r++) {
        uint64_t at = d->heads[r] = gt_load(&s->header->heads[r]), tail = d->tails[r] = gt_load(&s->header->tails[r]);
        if (tail - at > s->capacity) {
            gt_cas(&s->header->heads[r], at, tail); /* scribbled on */
            at = d->heads[r] = tail;
        }
        for (; at != tail; at++) {
            uint64_t hint = gt_load(gt_hint_at(s, r, at));
            if (gt_hint_stands(s, hint) && gt_load(&gt_slot_at(s, gt_ticket_slot(hint))->ring) == r)
                named[gt_ticket_slot(hint)] = 1;
        }
    }
}

static inline void gt_adopt_slot(const gt_seg *s, gt_desk *d, uint32_t i, uint8_t *used, int named, uint64_t now) {
    gt_slot *slot = gt_slot_at(s, i);
    uint64_t word = gt_load(&slot->word), ring = gt_load(&slot->ring);
    d->chains[i] = GT_NONE;
    d->put_at[i] = now;
    if (gt_word_state(word) == GT_FREE) {
        gt_slot_push(d, i);
        return;
    }
    gt_adopt_blocks(s, d, i, used);
    if (gt_word_state(word) == GT_READY && !named && ring < GT_RINGS && gt_ring_has_room(s, d, ring, s->capacity))
        gt_hint(s, d, ring, gt_ticket_of(gt_word_generation(word), i));
}

/* Builds the desk anew from what the slots say, and hints every READY slot that no ring names. 0 without memory. */
static inline int gt_adopt(const gt_seg *s, gt_desk *d) {
    uint8_t *marks = calloc(1, s->shape.slots + s->shape.blocks + 1);
    if (!marks)
        return 0;
    uint64_t now = gt_now();
    d->free_count = d->free_blocks = 0;
    d->free_block = GT_NONE;
    d->judged = GT_NEVER;
    gt_adopt_hints(s, d, marks);
    for (uint32_t i = 0; i < s->shape.slots; i++)
        gt_adopt_slot(s, d, i, marks + s->shape.slots, marks[i], now);
    for (uint32_t b = 0; b < s->shape.blocks; b++)
        if (!marks[s->shape.slots + b])
            gt_block_push(d, b);
    for (uint32_t i = 0; i < s->shape.workers; i++)
        d->cursors[i] = d->kept[i] = gt_load(&gt_lane_at(s, i)->head) & ~7ull;
    gt_store(&s->header->reports.waiters, 0);
    free(marks);
    gt_publish_tails(s, d);
    gt_wake(&s->header->ready, INT_MAX);
    return 1;
}

/* ---- a worker ---- */

typedef struct {
    gt_slot *slot;
    uint64_t ticket, length;
} gt_claim;

/* A lane's owner word is the arbiter's; an owner that differs from it is dead, or was never. */
static inline int gt_lives(const gt_seg *s, uint64_t owner) {
    return gt_owner_index((uint32_t)owner) < s->shape.workers && gt_owner_life((uint32_t)owner) != 0 &&
           gt_load(&gt_lane_at(s, gt_owner_index((uint32_t)owner))->owner) == owner;
}

static inline int gt_take(gt_slot *slot, uint64_t hint, uint32_t owner, uint64_t now) {
    uint64_t generation = gt_ticket_generation(hint), ready = gt_word_of(generation, GT_READY, 0);
    if (gt_load(&slot->word) != ready || now > gt_load(&slot->expires))
        return 0;
#ifdef GT_CLAIM_TWICE /* the sweep's control: an owner written after the claim */
    if (!gt_cas(&slot->word, ready, gt_word_of(generation, GT_TAKEN, 0)))
        return 0;
    gt_store(&slot->word, gt_word_of(generation, GT_TAKEN, owner));
    return 1;
#else
    return gt_cas(&slot->word, ready, gt_word_of(generation, GT_TAKEN, owner));
#endif
}

static inline int gt_claim_from(const gt_seg *s, uint64_t ring, uint32_t owner, uint64_t now, gt_claim *out) {
    gt_word *head = &s->header->heads[ring];
    for (;;) {
        uint64_t at = gt_load(head);
        uint64_t waiting = gt_load(&s->header->tails[ring]) - at;
        if (!waiting || waiting > s->capacity)
            return 0;
        uint64_t hint = gt_load(gt_hint_at(s, ring, at));
        gt_slot *slot = gt_ticket_slot(hint) < s->shape.slots ? gt_slot_at(s, gt_ticket_slot(hint)) : NULL;
        int mine = slot && gt_take(slot, hint, owner, now);
        if (mine)
            gt_store(&slot->started, now);
        /* Taken, stale or expired: this position is done with, whoever did it. */
        gt_cas(head, at, at + 1);
        if (mine) {
            *out = (gt_claim){slot, hint, gt_load(&slot->length)};
            return 1;
        }
    }
}

/* The most urgent frame. A worker that holds one from ALONE gets nothing beside it. */
static inline int gt_claim_any(const gt_seg *s, uint32_t owner, int idle, gt_claim *out) {
    gt_lane *lane = gt_lane_at(s, gt_owner_index(owner));
    if (gt_load(&lane->alone) == owner || gt_load(&lane->stop) == owner)
        return 0;
    uint64_t now = gt_now();
    int got = 0;
    if (idle && (got = gt_claim_from(s, GT_ALONE, owner, now, out)))
        gt_store(&lane->alone, owner);
    for (uint64_t r = GT_ALONE; r-- > 0 && !got;)
        got = gt_claim_from(s, r, owner, now, out);
    if (got)
        gt_store(&lane->claimed, gt_load(&lane->claimed) + 1);
    return got;
}

/* The arbiter learns from `asleep` how many of a dead worker's threads still count as sleepers. Its order: dying between
   the two costs a needless system call, never a missed wake. */
static inline void gt_lie_down(const gt_seg *s, gt_lane *lane) {
    gt_sign_up(&s->header->ready);
    gt_add(&lane->asleep, 1);
}

static inline void gt_get_up(const gt_seg *s, gt_lane *lane) {
    gt_add(&lane->asleep, UINT64_MAX);
    gt_sign_off(&s->header->ready);
}

#endif
