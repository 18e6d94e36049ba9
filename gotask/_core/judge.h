/* What the arbiter decides, and what a worker's watchdog asks: who is late, who is dead, what becomes of its frames. */
#ifndef GT_JUDGE_H
#define GT_JUDGE_H

#include "report.h"

/* The frame in slot i as held by `owner` and not yet ended: its word, or 0. */
static inline uint64_t gt_held_word(const gt_seg *s, uint32_t i, uint32_t owner) {
    gt_slot *slot = gt_slot_at(s, i);
    uint64_t word = gt_load(&slot->word), generation = gt_word_generation(word);
    if (word != gt_word_of(generation, GT_TAKEN, owner) || gt_load(&slot->ended) == generation)
        return 0;
    return word;
}

/* Past its limit, its cancellation, or (with `graced`) the grace after them. */
static inline int gt_is_late(gt_slot *slot, uint64_t now, int graced) {
    uint64_t limit = gt_load(&slot->limit), started = gt_load(&slot->started), by = gt_load(&slot->cancel_by);
    if (by && (!graced || now > by))
        return 1;
    return limit && started && now > started && now - started > limit + (graced ? gt_load(&slot->grace) : 0);
}

static inline uint64_t gt_held(const gt_seg *s, uint32_t owner) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < s->shape.slots; i++)
        count += gt_held_word(s, i, owner) != 0;
    return count;
}

/* Tickets of `owner` whose limit has passed or whose cancellation was asked; room for every slot. */
static inline uint64_t gt_overdue(const gt_seg *s, uint32_t owner, uint64_t *tickets) {
    uint64_t count = 0, now = gt_now(), word;
    for (uint32_t i = 0; i < s->shape.slots; i++)
        if ((word = gt_held_word(s, i, owner)) && gt_is_late(gt_slot_at(s, i), now, 0))
            tickets[count++] = gt_ticket_of(gt_word_generation(word), i);
    return count;
}

/* Owners that should be killed: one frame is late beyond its grace, or they wrote nonsense. `late` has a byte per lane. */
static inline void gt_stuck(const gt_seg *s, uint64_t slack, uint8_t *late) {
    uint64_t now = gt_now(), then = now > slack ? now - slack : 0;
    for (uint32_t i = 0; i < s->shape.slots; i++) {
        uint32_t owner = gt_word_owner(gt_load(&gt_slot_at(s, i)->word));
        if (gt_lives(s, owner) && gt_held_word(s, i, owner) && gt_is_late(gt_slot_at(s, i), then, 1))
            late[gt_owner_index(owner)] = 1;
    }
    for (uint32_t i = 0; i < s->shape.workers; i++) {
        uint64_t owner = gt_load(&gt_lane_at(s, i)->owner);
        if (owner && gt_load(&gt_lane_at(s, i)->torn) == owner)
            late[i] = 1;
    }
}

/* Whether no worker of a lower index takes frames: the one to make room when something must run alone. */
static inline int gt_is_first(const gt_seg *s, uint32_t owner) {
    for (uint32_t i = 0; i < gt_owner_index(owner); i++) {
        gt_lane *lane = gt_lane_at(s, i);
        uint64_t other = gt_load(&lane->owner);
        if (other && other != gt_load(&lane->recovered) && other != gt_load(&lane->stop))
            return 0;
    }
    return 1;
}

/* A new life for a lane, or 0 while the last one was not recovered. */
static inline uint32_t gt_enlist(const gt_seg *s, uint32_t index) {
    gt_lane *lane = gt_lane_at(s, index);
    uint64_t last = gt_load(&lane->owner);
    if (last != gt_load(&lane->recovered))
        return 0;
    uint32_t life = (gt_owner_life((uint32_t)last) + 1) & GT_LIFE_MASK;
    uint32_t owner = (life ? life : 1) << GT_INDEX_BITS | index;
    gt_store(&lane->attention.waiters, 0);
    gt_store(&lane->space.waiters, 0);
    gt_store(&lane->owner, owner);
    return owner;
}

static inline void gt_stop(const gt_seg *s, uint32_t owner) {
    gt_lane *lane = gt_lane_at(s, gt_owner_index(owner));
    gt_store(&lane->stop, owner);
    gt_wake(&lane->attention, INT_MAX);
    gt_wake(&s->header->ready, INT_MAX);
}

/* Frames whose final report the dead owner had published: TAKEN -> REPORTED. Reads the ring only, and stops where the
   dispatcher will give up on it: what follows nonsense is lost for both. */
static inline void gt_recover_reports(const gt_seg *s, uint32_t owner) {
    gt_lane *lane = gt_lane_at(s, gt_owner_index(owner));
    uint64_t at = gt_aligned(&lane->head), tail = gt_aligned(&lane->tail);
    gt_record r;
    for (int what; (what = gt_peek(s, lane, at, tail, &r)) == GT_RECORD || what == GT_SKIP; at += r.size) {
        if (what == GT_SKIP || !gt_record_counts(s, gt_owner_index(owner), &r))
            continue;
        if (gt_record_sum(&r, gt_lane_bytes(lane) + (at & (s->shape.report_bytes - 1)) + sizeof r) != r.sum)
            break;
        if (r.life != gt_owner_life(owner) || !gt_ends(&r))
            continue;
        uint64_t word, generation = gt_ticket_generation(r.ticket);
        gt_slot *slot = gt_stay(s, r.ticket, &word);
        if (slot && word == gt_word_of(generation, GT_TAKEN, owner))
            gt_cas(&slot->word, word, gt_word_of(generation, GT_REPORTED, owner));
    }
}

/* How many frames died with the owner: those still TAKEN, and those that an interrupted recovery already made LOST. */
static inline uint64_t gt_died_with(const gt_seg *s, uint32_t owner) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < s->shape.slots; i++) {
        uint64_t word = gt_load(&gt_slot_at(s, i)->word);
        uint32_t state = gt_word_state(word);
        count += gt_word_owner(word) == owner && (state == GT_TAKEN || state == GT_LOST);
    }
    return count;
}

static inline uint64_t gt_verdict_on(gt_slot *slot, uint64_t now, int killed, uint64_t together) {
    if (gt_is_late(slot, now, 1))
        return GT_OVERDUE;
    if (killed)
        return GT_INNOCENT;
    return together == 1 ? GT_SUSPECT_ALONE : GT_SUSPECT;
}

/* After the owner was reaped. Repeatable at any point: each step looks at what stands and moves it one state on. */
static inline uint64_t gt_recover(const gt_seg *s, uint32_t owner, int killed, uint64_t code) {
    gt_lane *lane = gt_lane_at(s, gt_owner_index(owner));
    uint64_t now = gt_now(), lost = 0;
    gt_add(&s->header->recoveries, 1);
    gt_recover_reports(s, owner);
    uint64_t together = gt_died_with(s, owner);
    for (uint32_t i = 0; i < s->shape.slots; i++) {
        gt_slot *slot = gt_slot_at(s, i);
        uint64_t word = gt_load(&slot->word), generation = gt_word_generation(word);
        if (word != gt_word_of(generation, GT_TAKEN, owner))
            continue;
        gt_store(&slot->verdict, gt_verdict_on(slot, now, killed, together));
        gt_store(&slot->code, code);
        lost += gt_cas(&slot->word, word, gt_word_of(generation, GT_LOST, owner));
    }
    uint64_t asleep = gt_load(&lane->asleep);
    if (gt_load(&lane->owner) == owner) {
        if (asleep && gt_cas(&lane->asleep, asleep, 0))
            gt_add(&s->header->ready.waiters, 0 - asleep);
        gt_store(&lane->recovered, owner);
    }
    gt_add(&s->header->recoveries, 1);
    gt_wake(&s->header->reports, INT_MAX);
    /* A wake meant for the dead one would else be lost until somebody's second is over. */
    gt_wake(&s->header->ready, INT_MAX);
    return lost;
}

typedef struct {
    uint64_t ticket, verdict, code;
} gt_loss;

/* Frames that died, until freed; room for every slot. A scan only when a recovery happened or some are still there. */
static inline uint64_t gt_losses(const gt_seg *s, gt_desk *d, gt_loss *out) {
    uint64_t judged = gt_load(&s->header->recoveries);
    if (judged == d->judged && !d->losses)
        return 0;
    d->judged = judged;
    d->losses = 0;
    for (uint32_t i = 0; i < s->shape.slots; i++) {
        gt_slot *slot = gt_slot_at(s, i);
        uint64_t word = gt_load(&slot->word);
        if (gt_word_state(word) == GT_LOST)
            out[d->losses++] =
                (gt_loss){gt_ticket_of(gt_word_generation(word), i), gt_load(&slot->verdict), gt_load(&slot->code)};
    }
    return d->losses;
}

#endif
