/* Frames per second through the bare ring: this process puts and drains, its child claims and reports. Prints one JSON object; the
   CPU time of each side per frame tells more than the rate when others use the same cores.

   cc -std=c11 -D_GNU_SOURCE -O2 -I gotask/_core bench/ring.c -o ring && ./ring [FRAMES [pin]] */
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "judge.h"

enum { SLOTS = 1024, BATCH = 128, BODY = 100 };

static gt_seg seg;

static void work(uint32_t owner) {
    gt_lane *lane = gt_lane_at(&seg, gt_owner_index(owner));
    uint8_t body[BODY];
    gt_claim got;
    for (;;) {
        if (!gt_claim_any(&seg, owner, 0, &got)) {
            gt_lie_down(&seg, lane);
            uint64_t seen = gt_load(&seg.header->ready.seq);
            int held = gt_claim_any(&seg, owner, 0, &got);
            if (!held && gt_load(&lane->stop) != owner)
                gt_sleep(&seg.header->ready, seen, gt_now() + GT_SECOND);
            gt_get_up(&seg, lane);
            if (gt_load(&lane->stop) == owner)
                return;
            if (!held)
                continue;
        }
        if (!gt_copy_body(&seg, got.slot, got.length, body))
            exit(1);
        gt_record r = {.ticket = got.ticket, .length = BODY, .total = BODY, .kind = 1, .final = 1};
        while (!gt_report(&seg, owner, r, body))
            ;
    }
}

static uint64_t put_batch(gt_desk *desk, uint64_t left) {
    static const uint8_t body[BODY];
    gt_frame frames[BATCH];
    uint64_t tickets[BATCH], want = left < BATCH ? left : BATCH;
    for (uint64_t i = 0; i < want; i++)
        frames[i] = (gt_frame){body, BODY, 1, 0, 0, GT_NEVER};
    return gt_put_many(&seg, desk, frames, want, tickets);
}

static uint64_t drain_batch(gt_desk *desk) {
    uint64_t tickets[BATCH], n = 0;
    uint8_t body[BODY];
    gt_found f;
    while (n < BATCH && gt_drain(&seg, desk, &f) == GT_RECORD) {
        if (f.record.length > BODY || !gt_drain_take(&seg, desk, &f, body))
            exit(1);
        tickets[n++] = f.record.ticket;
    }
    for (uint64_t i = 0; i < n; i++)
        gt_free(&seg, desk, tickets[i]);
    if (n)
        gt_forget(&seg, desk);
    return n;
}

static void nap(const gt_desk *desk) {
    gt_event *reports = &seg.header->reports;
    uint64_t seen = gt_load(&reports->seq);
    gt_mark(reports);
    if (!gt_undrained(&seg, desk))
        gt_sleep(reports, seen, gt_now() + GT_SECOND);
    gt_unmark(reports);
}

/* A core each, for an idle machine: there the scheduler likes to put the woken beside its waker, and the two take turns. */
static void pin(int asked, int core) {
    cpu_set_t one;
    if (!asked)
        return;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one); /* where there is but one core, they share it */
}

static double cpu_ns(int who, uint64_t frames) {
    struct rusage used;
    getrusage(who, &used);
    double seconds = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec);
    return (seconds * 1e9 + 1e3 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec)) / (double)frames;
}

int main(int argc, char **argv) {
    uint64_t frames = argc > 1 ? strtoull(argv[1], NULL, 10) : 5000000, put = 0, done = 0;
    gt_shape shape = {SLOTS, 1, 512, 262144, 16, 65536};
    gt_desk desk;
    int status;
    gt_plan(&seg, &shape);
    uint8_t *base = mmap(NULL, seg.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (base == MAP_FAILED)
        return 2;
    gt_format(&seg, base);
    if (!gt_desk_open(&seg, &desk) || !gt_adopt(&seg, &desk))
        return 2;
    uint32_t owner = gt_enlist(&seg, 0);
    pid_t pid = fork();
    if (pid == 0) {
        pin(argc > 2, 1);
        work(owner);
        _exit(0);
    }
    pin(argc > 2, 0);
    uint64_t start = gt_now();
    while (done < frames) {
        uint64_t in = put_batch(&desk, frames - put), out = drain_batch(&desk);
        put += in;
        done += out;
        if (!in && !out)
            nap(&desk);
    }
    double seconds = (double)(gt_now() - start) / GT_SECOND;
    gt_stop(&seg, owner);
    waitpid(pid, &status, 0);
    printf("{\"frames_per_second\": %.0f, \"dispatcher_ns\": %.0f, \"worker_ns\": %.0f}\n", (double)frames / seconds,
           cpu_ns(RUSAGE_SELF, frames), cpu_ns(RUSAGE_CHILDREN, frames));
    gt_desk_close(&desk);
    return status != 0;
}
