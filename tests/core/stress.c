/* One dispatcher, many workers, threads instead of processes: the race detector does not follow memory between processes.

   Every frame carries a pattern made of its number; a worker checks it and sends the number back. At the end each number
   was either reported or recalled, exactly once. Usage: stress FRAMES WORKERS SEED */
#include <pthread.h>
#include <stdio.h>

#include "judge.h"

enum { SLOTS = 64, LARGEST = 3000 };

static gt_seg seg;
static gt_desk desk;
static gt_word over;

static uint64_t dice(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

static void die(const char *why, uint64_t number) {
    fprintf(stderr, "stress: %s (frame %llu)\n", why, (unsigned long long)number);
    exit(1);
}

static uint64_t length_of(uint64_t number) { return 8 + number * 2654435761u % (number % 16 ? 200 : LARGEST - 8); }

static void draw(uint8_t *body, uint64_t number) {
    memset(body, (int)(number * 31 & 0xff), length_of(number));
    memcpy(body, &number, 8);
}

static uint64_t check_body(const uint8_t *body, uint64_t length) {
    uint8_t expected[LARGEST];
    uint64_t number;
    memcpy(&number, body, 8);
    draw(expected, number);
    if (length != length_of(number) || memcmp(body, expected, length))
        die("a body came out other than it went in", number);
    return number;
}

/* As the extension does it: pieces for what is too long, a sleep while the ring is full. */
static void report_whole(uint32_t owner, uint64_t ticket, const uint8_t *body, uint32_t total) {
    gt_lane *lane = gt_lane_at(&seg, gt_owner_index(owner));
    gt_record r = {.ticket = ticket, .total = total, .kind = 1, .final = 1};
    for (; r.offset < total; r.offset += r.length) {
        r.length = total - r.offset < gt_piece_bytes(&seg) ? total - r.offset : (uint32_t)gt_piece_bytes(&seg);
        if (!gt_mine(&seg, owner, ticket))
            die("a ticket was taken from its holder", ticket);
        while (!gt_report(&seg, owner, r, body + r.offset)) {
            gt_sign_up(&lane->space);
            uint64_t seen = gt_load(&lane->space.seq);
            if (gt_load(&lane->tail) - gt_load(&lane->head) > seg.shape.report_bytes / 2)
                gt_sleep(&lane->space, seen, gt_now() + GT_SECOND / 100);
            gt_sign_off(&lane->space);
        }
    }
}

static void *work(void *given) {
    uint32_t owner = gt_enlist(&seg, (uint32_t)(uintptr_t)given);
    gt_lane *lane = gt_lane_at(&seg, gt_owner_index(owner));
    uint8_t body[LARGEST];
    while (!gt_load(&over)) {
        gt_claim got;
        gt_lie_down(&seg, lane);
        uint64_t seen = gt_load(&seg.header->ready.seq);
        int held = gt_claim_any(&seg, owner, 1, &got);
        if (!held)
            gt_sleep(&seg.header->ready, seen, gt_now() + GT_SECOND / 100);
        gt_get_up(&seg, lane);
        if (!held)
            continue;
        if (got.length > LARGEST || !gt_copy_body(&seg, got.slot, got.length, body))
            die("a claim of impossible length", got.ticket);
        check_body(body, got.length);
        report_whole(owner, got.ticket, body, (uint32_t)got.length);
    }
    return NULL;
}

static uint8_t *ended; /* per frame */
static uint64_t number_of[SLOTS], ends;

static void end(uint64_t number, uint64_t count) {
    if (number >= count || ended[number]++)
        die("a frame ended twice", number);
    ends++;
}

static void settle_all(uint64_t count, uint64_t *state) {
    static uint8_t whole[SLOTS][LARGEST];
    gt_found f;
    uint64_t freed[256], n = 0;
    int what = GT_NOTHING;
    while (n < 256 && (what = gt_drain(&seg, &desk, &f)) == GT_RECORD) {
        uint32_t i = gt_ticket_slot(f.record.ticket);
        if (f.record.total > LARGEST || !gt_drain_take(&seg, &desk, &f, whole[i] + f.record.offset))
            die("a torn record", f.record.ticket);
        if (!gt_ends(&f.record))
            continue;
        if (check_body(whole[i], f.record.total) != number_of[i])
            die("a report for another frame", number_of[i]);
        end(number_of[i], count);
        freed[n++] = f.record.ticket;
    }
    if (what == GT_TORN)
        die("a torn lane", f.lane);
    for (uint64_t k = 0; k < n; k++)
        if (!gt_free(&seg, &desk, freed[k]))
            die("a reported ticket was over", freed[k]);
    if (n || dice(state) % 8 == 0)
        gt_forget(&seg, &desk);
}

static void recall_all(uint64_t count) {
    uint64_t tickets[SLOTS], n = gt_recall(&seg, &desk, gt_now(), tickets);
    for (uint64_t k = 0; k < n; k++)
        end(number_of[gt_ticket_slot(tickets[k])], count);
}

static uint64_t put_some(uint64_t next, uint64_t count, uint64_t *state) {
    static uint8_t bodies[8][LARGEST];
    gt_frame frames[8];
    uint64_t tickets[8], want = 1 + dice(state) % 8;
    if (want > count - next)
        want = count - next;
    for (uint64_t k = 0; k < want; k++) {
        draw(bodies[k], next + k);
        frames[k] = (gt_frame){bodies[k], length_of(next + k), dice(state) % GT_RINGS, 0, 0, GT_NEVER};
    }
    /* Frames are told apart by the slot they lie in, and a worker may end one before gt_put_many returns: no matter, the
       dispatcher reads reports only afterwards. */
    uint64_t done = gt_put_many(&seg, &desk, frames, want, tickets);
    for (uint64_t k = 0; k < done; k++)
        number_of[gt_ticket_slot(tickets[k])] = next + k;
    return next + done;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    uint64_t count = strtoull(argv[1], NULL, 10), state = strtoull(argv[3], NULL, 10), next = 0;
    uint64_t workers = strtoull(argv[2], NULL, 10);
    gt_shape shape = {SLOTS, workers, 256, 4096, 64, 512};
    pthread_t threads[16];
    gt_plan(&seg, &shape);
    uint8_t *base = aligned_alloc(4096, seg.size);
    ended = calloc(1, count);
    if (workers > 16 || !base || !ended)
        return 2;
    memset(base, 0, seg.size);
    gt_format(&seg, base);
    if (!gt_desk_open(&seg, &desk) || !gt_adopt(&seg, &desk))
        return 2;
    for (uintptr_t i = 0; i < workers; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    uint64_t until = gt_now() + 600 * GT_SECOND;
    while (ends < count && gt_now() < until) {
        next = put_some(next, count, &state);
        if (dice(&state) % 16 == 0)
            recall_all(count);
        settle_all(count, &state);
    }
    gt_store(&over, 1);
    gt_wake(&seg.header->ready, INT_MAX);
    for (uint64_t i = 0; i < workers; i++)
        pthread_join(threads[i], NULL);
    if (ends != count || desk.free_count != SLOTS || desk.free_blocks != 64)
        die("frames, slots or blocks are missing at the end", count - ends);
    printf("{\"frames\": %llu}\n", (unsigned long long)ends);
    gt_desk_close(&desk);
    free(ended);
    free(base);
    return 0;
}
