/* What workers say about frames: one ring of bytes per worker, written by it alone, read by the dispatcher alone.

   report  the store of the lane's tail publishes; it is the commit point on the node
   drain   copies out by cursors of the dispatcher's own; the shared heads stay
   forget  moves the heads, once what was drained is settled and freed: a dispatcher that dies before is drained again

   Records never wrap: where one does not fit before the ring's end, a pad fills the rest. */
#ifndef GT_REPORT_H
#define GT_REPORT_H

#include "ring.h"

#define GT_PAD 0x80000000u
#define GT_MAX_REPORT (1u << 26) /* bytes; what a scribbled length can make the dispatcher allocate at most */

typedef struct {
    uint32_t size; /* of header and body, rounded to 8 */
    uint32_t sum;  /* of all that follows */
    uint64_t ticket, nanos;
    uint32_t length, offset, total; /* this piece lies at offset of total */
    uint8_t kind, final;
    uint16_t life;
} gt_record;

_Static_assert(sizeof(gt_record) == 40, "no padding: all of it is summed");

/* Multiply and fold, sixteen bytes at a time: finds scribbling, not forgery. */
static inline uint64_t gt_fold(uint64_t a, uint64_t b) {
    __extension__ typedef unsigned __int128 wide;
    wide product = (wide)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t gt_sum(uint64_t h, const uint8_t *p, uint64_t n) {
    uint64_t a, b;
    h ^= n * 0x9e3779b97f4a7c15ull;
    for (; n >= 16; p += 16, n -= 16) {
        memcpy(&a, p, 8);
        memcpy(&b, p + 8, 8);
        h = gt_fold(a ^ 0xa0761d6478bd642full, b ^ h);
    }
    a = b = 0;
    memcpy(&a, p, n < 8 ? n : 8);
    if (n > 8)
        memcpy(&b, p + 8, n - 8);
    return gt_fold(a ^ 0xa0761d6478bd642full, b ^ h);
}

static inline uint32_t gt_record_sum(const gt_record *r, const uint8_t *body) {
    uint64_t h = gt_sum(r->size, (const uint8_t *)&r->ticket, sizeof *r - 8);
    h = gt_sum(h, body, r->length);
    return (uint32_t)(h ^ h >> 32);
}

/* Positions are multiples of 8, also when somebody scribbled on one: then no record header can stick out of its ring. */
static inline uint64_t gt_aligned(const gt_word *position) { return gt_load(position) & ~7ull; }

static inline int gt_ends(const gt_record *r) { return r->final && r->offset + r->length == r->total; }

/* The largest body of one record: with a quarter of the ring for each, pad and record always fit an empty one. */
static inline uint64_t gt_piece_bytes(const gt_seg *s) { return s->shape.report_bytes / 4 - sizeof(gt_record); }

/* ---- a worker ---- */

/* May this owner still speak about the ticket? */
static inline int gt_mine(const gt_seg *s, uint32_t owner, uint64_t ticket) {
    uint64_t word, mine = gt_word_of(gt_ticket_generation(ticket), GT_TAKEN, owner);
    gt_slot *slot = gt_stay(s, ticket, &word);
    return slot && word == mine && gt_load(&slot->ended) != gt_ticket_generation(ticket);
}

/* Half octaves above a microsecond: fine enough for a percentile, 64 of them reach an hour. */
static inline uint32_t gt_bucket(uint64_t nanos) {
    if (nanos < 1024)
        return 0;
    uint32_t octave = 63 - (uint32_t)__builtin_clzll(nanos);
    uint32_t bucket = 2 * (octave - 10) + (nanos >> (octave - 1) & 1) + 1;
    return bucket < GT_BUCKETS ? bucket : GT_BUCKETS - 1;
}

static inline void gt_count(gt_lane *lane, uint64_t nanos) {
    gt_word *bucket = &lane->buckets[gt_bucket(nanos)];
    gt_store(&lane->done, gt_load(&lane->done) + 1);
    gt_store(&lane->busy, gt_load(&lane->busy) + nanos);
    gt_store(bucket, gt_load(bucket) + 1);
}

/* Where a record of `size` bytes may be written; moves *tail over a pad. NULL while the ring is too full. */
static inline uint8_t *gt_reserve(const gt_seg *s, gt_lane *lane, uint64_t *tail, uint32_t size) {
    uint64_t capacity = s->shape.report_bytes, place = *tail & (capacity - 1);
    uint32_t pad = capacity - place < size ? (uint32_t)(capacity - place) : 0;
    if (*tail + pad + size - gt_load(&lane->seen) > capacity) {
        gt_store(&lane->seen, gt_load(&lane->head));
        if (*tail + pad + size - gt_load(&lane->seen) > capacity)
            return NULL;
    }
    if (pad) {
        uint32_t mark = pad | GT_PAD;
        memcpy(gt_lane_bytes(lane) + place, &mark, 4);
        *tail += pad;
    }
    return gt_lane_bytes(lane) + (*tail & (capacity - 1));
}

/* Just before the publishing store: after it the slot may already be in its next stay. 1: the worker is free of ALONE. */
static inline int gt_end(const gt_seg *s, gt_lane *lane, uint32_t owner, uint64_t ticket) {
    gt_slot *slot = gt_slot_at(s, gt_ticket_slot(ticket));
    int alone = gt_load(&lane->alone) == owner && gt_load(&slot->ring) == GT_ALONE;
    gt_store(&slot->ended, gt_ticket_generation(ticket));
    if (alone)
        gt_store(&lane->alone, 0);
    return alone;
}

/* Publishes one record: a whole report, or a piece. 0 while there is no room. The caller has asked gt_mine. */
static inline int gt_report(const gt_seg *s, uint32_t owner, gt_record r, const uint8_t *body) {
    gt_lane *lane = gt_lane_at(s, gt_owner_index(owner));
    uint64_t tail = gt_aligned(&lane->tail);
    int alone = 0;
    r.size = (uint32_t)gt_round(sizeof r + r.length, 8);
    r.life = (uint16_t)gt_owner_life(owner);
    uint8_t *to = gt_reserve(s, lane, &tail, r.size);
    if (!to)
        return 0;
    r.sum = gt_record_sum(&r, body);
    memcpy(to, &r, sizeof r);
    memcpy(to + sizeof r, body, r.length);
    if (gt_ends(&r))
        alone = gt_end(s, lane, owner, r.ticket);
    gt_store(&lane->tail, tail + r.size);
    gt_wake_marked(&s->header->reports);
    if (gt_ends(&r))
        gt_count(lane, r.nanos);
    if (alone)
        gt_wake_sleepers(&s->header->ready, INT_MAX);
    return 1;
}

/* ---- the dispatcher ---- */

typedef struct {
    gt_record record;
    uint64_t at;
    uint32_t lane;
} gt_found;

enum { GT_NOTHING, GT_RECORD, GT_SKIP, GT_TORN };

/* Reads the record at `at`, trusting nothing. GT_SKIP: a pad, of f->record.size bytes. The body is not yet checked. */
static inline int gt_peek(const gt_seg *s, gt_lane *lane, uint64_t at, uint64_t tail, gt_record *r) {
    uint64_t capacity = s->shape.report_bytes, left = tail - at, place = at & (capacity - 1), rest = capacity - place;
    if (!left)
        return GT_NOTHING;
    if (left > capacity)
        return memset(r, 0, sizeof *r), GT_TORN;
    memset(r, 0, sizeof *r);
    memcpy(r, gt_lane_bytes(lane) + place, 8);
    if (r->size == (rest | GT_PAD) && rest < left) {
        r->size = (uint32_t)rest;
        return GT_SKIP;
    }
    if (left < sizeof *r || rest < sizeof *r)
        return GT_TORN;
    uint32_t size = r->size;
    memcpy(r, gt_lane_bytes(lane) + place, sizeof *r);
    r->size = size;
    int fits = size <= left && size <= rest && r->length <= size && size == gt_round(sizeof *r + r->length, 8);
    int sane = r->total <= GT_MAX_REPORT && r->offset <= r->total && r->length <= r->total - r->offset && r->final < 2;
    return fits && sane ? GT_RECORD : GT_TORN;
}

/* Is the ticket of this record held by the life that wrote it? A report on a stay that is over is moot: it was settled. */
static inline int gt_record_counts(const gt_seg *s, uint32_t lane, const gt_record *r) {
    uint64_t word;
    uint32_t writer = (uint32_t)r->life << GT_INDEX_BITS | lane;
    return gt_stay(s, r->ticket, &word) && gt_word_state(word) > GT_READY && gt_word_owner(word) == writer;
}

static inline void gt_release(const gt_seg *s, gt_desk *d, uint32_t i) {
    gt_lane *lane = gt_lane_at(s, i);
    d->kept[i] = d->cursors[i];
    gt_store(&lane->head, d->cursors[i]);
    gt_wake_sleepers(&lane->space, INT_MAX);
}

/* Passes over a record. What no successor needs is released at once if nothing before it is kept: else a result larger
   than the ring would wait for a forget that waits for the result. */
static inline void gt_pass(const gt_seg *s, gt_desk *d, uint32_t lane, uint64_t to, int keep) {
    int first = d->kept[lane] == d->cursors[lane];
    d->cursors[lane] = to;
    if (first && !keep)
        gt_release(s, d, lane);
}

/* The next report that counts, of any lane, starting with the lane after the last one's; the body is still to be taken.
   GT_TORN: this lane holds nonsense and was skipped; f->record.ticket names the frame it was about, or is 0. */
static inline int gt_drain(const gt_seg *s, gt_desk *d, gt_found *f) {
    for (uint32_t tried = 0; tried < s->shape.workers;) {
        uint32_t i = f->lane = d->lane;
        gt_lane *lane = gt_lane_at(s, i);
        uint64_t tail = gt_aligned(&lane->tail);
        f->at = d->cursors[i];
        int what = gt_peek(s, lane, f->at, tail, &f->record);
        if (what == GT_RECORD && gt_record_counts(s, i, &f->record))
            return GT_RECORD;
        if (what == GT_RECORD || what == GT_SKIP) {
            gt_pass(s, d, i, f->at + f->record.size, 0);
            continue;
        }
        if (what == GT_TORN) {
            gt_store(&lane->torn, gt_load(&lane->owner));
            f->record.ticket = gt_record_counts(s, i, &f->record) ? f->record.ticket : 0;
            gt_pass(s, d, i, tail, f->record.ticket != 0);
            return GT_TORN;
        }
        d->lane = i + 1 == s->shape.workers ? 0 : i + 1;
        tried++;
    }
    return GT_NOTHING;
}

/* Copies the body of what gt_drain found, then judges the copy. 0: torn, and the lane was skipped. */
static inline int gt_drain_take(const gt_seg *s, gt_desk *d, const gt_found *f, uint8_t *to) {
    gt_lane *lane = gt_lane_at(s, f->lane);
    memcpy(to, gt_lane_bytes(lane) + (f->at & (s->shape.report_bytes - 1)) + sizeof f->record, f->record.length);
    if (gt_record_sum(&f->record, to) != f->record.sum) {
        gt_store(&lane->torn, gt_load(&lane->owner));
        gt_pass(s, d, f->lane, gt_aligned(&lane->tail), 1);
        return 0;
    }
    gt_pass(s, d, f->lane, f->at + f->record.size, f->record.offset + f->record.length == f->record.total);
    return 1;
}

static inline void gt_forget(const gt_seg *s, gt_desk *d) {
    for (uint32_t i = 0; i < s->shape.workers; i++)
        if (d->kept[i] != d->cursors[i])
            gt_release(s, d, i);
}

static inline int gt_undrained(const gt_seg *s, const gt_desk *d) {
    for (uint32_t i = 0; i < s->shape.workers; i++)
        if (gt_aligned(&gt_lane_at(s, i)->tail) != d->cursors[i])
            return 1;
    return 0;
}

#endif
