/* Kills a process after every instruction of every operation of the ring, then lets the survivors work.

   For each operation: build a scene, fork a victim, single-step it k instructions into the operation, SIGKILL and reap it,
   do what its role asks for (an arbiter recovers a worker; a new dispatcher adopts), then run all to the end. The store is
   a table in memory that outlives everybody and accepts one end per frame; an end that it refuses was fenced off.

   Stepping anew for each k costs the square of the length. So a longer operation is frozen after each instruction instead:
   the survivors work as if it were dead, then memory is put back and the victim goes one instruction on. Memory is all
   they share, so they see the same. `sweep kill` really kills for each k, however long it takes; `sweep claim` sweeps that
   operation alone.

     wedged   a slot, a block or a ring is not usable again
     lost     a frame that the dispatcher had put is nowhere
     double   a frame ran to its end, and was also given up for dead or run again                                     */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "judge.h"

enum { SLOTS = 4, WORKERS = 2, BLOCKS = 4, FRAMES = 64, LONG = 250, SHORT = 420 };
enum { OPEN, DONE, DIED, RELEASED };

/* The world outside the ring: shared, and written only by whole stores. */
typedef struct {
    int put[FRAMES], end[FRAMES], starts[FRAMES], twice, torn;
} store_t;

static gt_seg seg;
static gt_desk desk;
static store_t *store;
static uint32_t victim, survivor;
static uint64_t held[2];
static uint8_t buffer[4096];

/* Takes the C library's place: the real one tries again when the clock moved meanwhile, which for a stepped process is
   always. Time stands still here. */
int clock_gettime(clockid_t clock, struct timespec *t) {
    *t = (struct timespec){1000 + (clock == CLOCK_BOOTTIME), 0};
    return 0;
}

static void settle(int number, int how) {
    if (number < 0 || number >= FRAMES)
        store->torn++;
    else if (store->end[number] == OPEN)
        store->end[number] = how;
    else if (store->end[number] != how)
        store->twice++;
}

/* The first byte of a body is its frame's number. */
static gt_frame frame(int number, uint64_t ring, uint64_t length) {
    static uint8_t bodies[FRAMES][256];
    memset(bodies[number], number, sizeof bodies[number]);
    return (gt_frame){bodies[number], length, ring, 0, 0, GT_NEVER};
}

static int number_of(uint64_t ticket) {
    gt_slot *slot = gt_slot_at(&seg, gt_ticket_slot(ticket));
    return gt_copy_body(&seg, slot, gt_load(&slot->length), buffer) ? buffer[0] : -1;
}

static uint64_t put(int number, uint64_t ring, uint64_t length) {
    gt_frame f = frame(number, ring, length);
    uint64_t ticket = 0;
    if (gt_put_many(&seg, &desk, &f, 1, &ticket))
        store->put[number] = 1;
    return ticket;
}

static uint64_t claim(uint32_t owner) {
    gt_claim got;
    if (!gt_claim_any(&seg, owner, 1, &got))
        return 0;
    store->starts[number_of(got.ticket)]++;
    return got.ticket;
}

static void report(uint32_t owner, uint64_t ticket, uint32_t total) {
    static const uint8_t body[LONG];
    gt_record r = {.ticket = ticket, .total = total, .final = 1};
    do {
        r.length = total - r.offset < gt_piece_bytes(&seg) ? total - r.offset : (uint32_t)gt_piece_bytes(&seg);
        if (!gt_mine(&seg, owner, ticket) || !gt_report(&seg, owner, r, body))
            return;
        r.offset += r.length;
    } while (r.offset < total);
}

static void settle_all(void) {
    gt_found f;
    gt_loss losses[SLOTS];
    uint64_t freed[16], n = 0, lost;
    for (int what; n < 16 && (what = gt_drain(&seg, &desk, &f)) != GT_NOTHING;) {
        if (what == GT_TORN || !gt_drain_take(&seg, &desk, &f, buffer))
            store->torn++;
        else if (gt_ends(&f.record))
            freed[n++] = f.record.ticket;
    }
    for (uint64_t i = 0; i < n; i++)
        settle(number_of(freed[i]), DONE);
    for (uint64_t i = 0; i < n; i++)
        gt_free(&seg, &desk, freed[i]);
    gt_forget(&seg, &desk);
    lost = gt_losses(&seg, &desk, losses);
    for (uint64_t i = 0; i < lost; i++) {
        settle(number_of(losses[i].ticket), DIED);
        gt_free(&seg, &desk, losses[i].ticket);
    }
}

static void recall_all(void) {
    uint64_t tickets[SLOTS], n = gt_recall(&seg, &desk, GT_NEVER, tickets);
    for (uint64_t i = 0; i < n; i++)
        settle(number_of(tickets[i]), RELEASED);
}

/* ---- the operations, each with its scene ---- */

static void scene_ready(void) {
    put(1, 3, 32);
    recall_all(); /* leaves a stale hint before the good ones */
    held[1] = put(2, 3, 32);
    put(3, 1, 200);
}
static void scene_alone(void) {
    put(2, GT_ALONE, 32);
    put(3, 1, 32);
}
static void scene_asleep(void) {
    gt_sign_up(&seg.header->ready);
    put(1, 1, 32);
}
static void scene_taken(void) {
    scene_ready();
    held[0] = claim(victim);
}
static void scene_awaited(void) {
    scene_taken();
    gt_mark(&seg.header->reports);
}
static void scene_near_end(void) {
    for (int i = 10; i < 17; i++) { /* brings the tail to 64 bytes before the report ring's end: the next needs a pad */
        put(i, 1, 32);
        report(victim, claim(victim), 24);
        settle_all();
    }
    scene_taken();
}
static void scene_reported(void) {
    scene_ready();
    report(victim, claim(victim), 20);
    report(survivor, claim(survivor), 20);
    put(4, 2, 32);
}
static void scene_dead(void) {
    scene_ready();
    put(4, 2, 32);
    held[0] = claim(victim);
    held[1] = claim(victim);
    report(victim, held[1], 20);
    gt_lie_down(&seg, gt_lane_at(&seg, 0));
}
static void scene_lost(void) {
    scene_dead();
    gt_recover(&seg, victim, 0, 9);
}
static void scene_orphaned(void) {
    scene_dead();
    put(5, 6, 32);
    gt_store(&seg.header->tails[6], 0); /* as if the last dispatcher had died before the hint */
    claim(survivor);
}

static void op_claim(void) {
    gt_claim got;
    gt_claim_any(&seg, victim, 1, &got);
}
static void op_claim_later(void) {
    gt_lie_down(&seg, gt_lane_at(&seg, 0));
    op_claim();
    gt_get_up(&seg, gt_lane_at(&seg, 0));
}
static void op_report(void) { report(victim, held[0], 88); }
static void op_report_pieces(void) { report(victim, held[0], LONG); }
static void op_put(void) {
    gt_frame two[] = {frame(6, 7, 32), frame(7, GT_ALONE, 200)};
    uint64_t tickets[2];
    gt_put_many(&seg, &desk, two, 2, tickets);
}
static void op_cancel(void) { gt_cancel(&seg, &desk, held[0], 1); }
static void op_cancel_ready(void) {
    if (!gt_cancel(&seg, &desk, held[1], 1))
        settle(2, RELEASED);
}
static void op_recover(void) { gt_recover(&seg, victim, 0, 9); }
static void op_adopt(void) {
    gt_desk next;
    if (gt_desk_open(&seg, &next))
        gt_adopt(&seg, &next);
}

enum role { WORKER, DISPATCHER, ARBITER };

static const struct {
    const char *name;
    enum role role;
    void (*scene)(void), (*op)(void);
    int optional[2]; /* frames that may be nowhere: their lease lapses */
} OPS[] = {
    {"claim", WORKER, scene_ready, op_claim, {0, 0}},
    {"claim_alone", WORKER, scene_alone, op_claim, {0, 0}},
    {"claim_later", WORKER, scene_ready, op_claim_later, {0, 0}},
    {"report", WORKER, scene_taken, op_report, {0, 0}},
    {"report_and_wake", WORKER, scene_awaited, op_report, {0, 0}},
    {"report_at_end", WORKER, scene_near_end, op_report, {0, 0}},
    {"report_pieces", WORKER, scene_taken, op_report_pieces, {0, 0}},
    {"put", DISPATCHER, scene_ready, op_put, {6, 7}},
    {"put_and_wake", DISPATCHER, scene_asleep, op_put, {6, 7}},
    {"recall", DISPATCHER, scene_ready, recall_all, {2, 3}},
    {"cancel", DISPATCHER, scene_taken, op_cancel, {0, 0}},
    {"cancel_ready", DISPATCHER, scene_ready, op_cancel_ready, {2, 0}},
    {"drain_free_forget", DISPATCHER, scene_reported, settle_all, {0, 0}},
    {"settle_losses", DISPATCHER, scene_lost, settle_all, {0, 0}},
    {"adopt", DISPATCHER, scene_orphaned, op_adopt, {0, 0}},
    {"recover", ARBITER, scene_dead, op_recover, {0, 0}},
};

/* ---- one kill ---- */

static void build(void (*scene)(void)) {
    uint8_t *base = seg.base;
    memset(base, 0, seg.size);
    memset(store, 0, sizeof *store);
    gt_format(&seg, base);
    gt_desk_close(&desk);
    if (!gt_desk_open(&seg, &desk) || !gt_adopt(&seg, &desk))
        exit(2);
    victim = gt_enlist(&seg, 0);
    survivor = gt_enlist(&seg, 1);
    scene();
}

static void step(pid_t pid) {
    int status;
    if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) {
        fprintf(stderr, "sweep: the victim cannot be stepped\n");
        exit(2);
    }
}

static pid_t start_victim(void (*op)(void)) {
    pid_t pid = fork();
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        __asm__ volatile("int3");
        op();
        __asm__ volatile("int3");
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, NULL, 0) != pid)
        exit(2);
    return pid;
}

static void kill_victim(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* One instruction on; 0 when that was the mark at the operation's end. */
static int advance(pid_t pid) {
    siginfo_t why;
    step(pid);
    return ptrace(PTRACE_GETSIGINFO, pid, NULL, &why) == 0 && why.si_code != SI_KERNEL;
}

static long count_points(void (*op)(void)) {
    long points = 0;
    pid_t pid = start_victim(op);
    while (advance(pid))
        points++;
    kill_victim(pid);
    return points;
}

static void succeed(enum role role) {
    if (role == DISPATCHER) {
        gt_desk_close(&desk);
        if (!gt_desk_open(&seg, &desk) || !gt_adopt(&seg, &desk))
            exit(2);
    }
    /* Whatever died first, the rest of the scene ends too: the victim's life is over in each. */
    gt_recover(&seg, victim, 0, 9);
    gt_recover(&seg, victim, 0, 9);
}

static void work_to_the_end(void) {
    for (uint64_t i = 0; i < SLOTS; i++) { /* what the survivor held before goes on */
        uint64_t word = gt_held_word(&seg, (uint32_t)i, survivor);
        if (word)
            report(survivor, gt_ticket_of(gt_word_generation(word), i), 20);
    }
    for (int round = 0; round < 4 * SLOTS; round++) {
        uint64_t ticket = claim(survivor);
        if (ticket)
            report(survivor, ticket, 20);
        settle_all();
    }
}

/* All is free, and a whole new generation of frames passes through each ring and through the dead one's lane. */
static int usable(void) {
    uint32_t next = gt_enlist(&seg, 0);
    for (uint32_t i = 0; i < SLOTS; i++)
        if (gt_word_state(gt_load(&gt_slot_at(&seg, i)->word)) != GT_FREE)
            return 0;
    if (desk.free_count != SLOTS || desk.free_blocks != BLOCKS || gt_load(&seg.header->ready.waiters) > 2 || !next)
        return 0;
    for (uint64_t ring = 0; ring < GT_RINGS; ring++) {
        for (int i = 0; i < SLOTS; i++)
            if (!put(50 + i, ring, 64))
                return 0;
        for (int i = 0; i < SLOTS; i++) {
            uint64_t ticket = claim(i % 2 ? next : survivor);
            report(i % 2 ? next : survivor, ticket, 20);
            if (!ticket)
                return 0;
        }
        settle_all();
        if (desk.free_count != SLOTS)
            return 0;
    }
    return 1;
}

typedef struct {
    long points, wedged, lost, twice;
} tally;

static void judge(size_t op, tally *t) {
    int lost = 0, twice = store->twice > 0;
    succeed(OPS[op].role);
    work_to_the_end();
    for (int i = 1; i < 50; i++) {
        int optional = i == OPS[op].optional[0] || i == OPS[op].optional[1];
        lost += store->put[i] && !optional && store->end[i] == OPEN;
        twice += store->starts[i] > 1;
    }
    t->lost += lost > 0;
    t->twice += twice > 0;
    t->wedged += !usable() || store->torn;
}

static void sweep_killing(size_t op, tally *t) {
    for (long k = 0; k <= t->points; k++) {
        build(OPS[op].scene);
        pid_t pid = start_victim(OPS[op].op);
        for (long i = 0; i < k; i++)
            step(pid);
        kill_victim(pid);
        judge(op, t);
    }
}

/* The survivors are a child: what they do to their own memory is gone with it, what they do to the shared is put back. */
static void sweep_freezing(size_t op, tally *t) {
    static store_t kept_store;
    uint8_t *kept = malloc(seg.size);
    tally *out = mmap(NULL, sizeof *out, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    *out = *t;
    build(OPS[op].scene);
    pid_t pid = start_victim(OPS[op].op);
    for (int more = 1; more; more = advance(pid)) {
        int status;
        memcpy(kept, seg.base, seg.size);
        kept_store = *store;
        pid_t survivors = fork();
        if (survivors == 0) {
            judge(op, out);
            _exit(0);
        }
        if (waitpid(survivors, &status, 0) != survivors || status)
            exit(2);
        memcpy(seg.base, kept, seg.size);
        *store = kept_store;
    }
    kill_victim(pid);
    *t = *out;
    munmap(out, sizeof *out);
    free(kept);
}

static void print(const char *name, const tally *t, const char *after) {
    printf("\"%s\": {\"points\": %ld, \"wedged\": %ld, \"lost\": %ld, \"double\": %ld}%s\n", name, t->points, t->wedged,
           t->lost, t->twice, after);
    fflush(stdout);
}

static void map_all(void) {
    gt_shape shape = {SLOTS, WORKERS, 64, 512, BLOCKS, 64};
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one); /* tracer and victim take turns: changing cores would only cost time */
    gt_plan(&seg, &shape);
    seg.base = mmap(NULL, seg.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    store = mmap(NULL, sizeof *store, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seg.base == MAP_FAILED || store == MAP_FAILED)
        exit(2);
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "";
    int always_kill = !strcmp(word, "kill");
    tally all = {0};
    map_all();
    printf("{");
    for (size_t op = 0; op < sizeof OPS / sizeof *OPS; op++) {
        if (*word && !always_kill && strcmp(word, OPS[op].name))
            continue;
        build(OPS[op].scene);
        tally t = {count_points(OPS[op].op), 0, 0, 0};
        if (always_kill || t.points <= SHORT)
            sweep_killing(op, &t);
        else
            sweep_freezing(op, &t);
        print(OPS[op].name, &t, ",");
        all = (tally){all.points + t.points, all.wedged + t.wedged, all.lost + t.lost, all.twice + t.twice};
    }
    print("all", &all, "}");
    return all.wedged || all.lost || all.twice;
}
