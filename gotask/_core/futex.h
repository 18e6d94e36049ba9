/* An event count: read the sequence, look, then sleep on what was read. A wake costs a system call only if one sleeps.
   A lost wake (its waker died half way) costs at most a second: nobody sleeps longer without looking again. */
#ifndef GT_FUTEX_H
#define GT_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomic.h"

#define GT_SECOND 1000000000ull
#define GT_NEVER UINT64_MAX

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the futex is the low half of a 64-bit word; teach gt_futex_of() where that lies on this machine"
#endif

typedef struct {
    _Alignas(64) gt_word seq;
    gt_word waiters;
} gt_event;

enum { GT_WOKEN, GT_TIMEOUT, GT_SIGNAL };

/* Nanoseconds that go on while the machine is suspended: leases do too. */
static inline uint64_t gt_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * GT_SECOND + (uint64_t)t.tv_nsec;
}

static inline uint32_t *gt_futex_of(gt_event *e) { return (uint32_t *)(void *)&e->seq; }

/* Not FUTEX_PRIVATE: the waker is another process. */
static inline void gt_wake(gt_event *e, uint64_t count) {
    int many = count > INT_MAX ? INT_MAX : (int)count;
    gt_add(&e->seq, 1);
    gt_fence();
    if (gt_load(&e->waiters))
        syscall(SYS_futex, gt_futex_of(e), FUTEX_WAKE, many, NULL, NULL, 0);
}

/* For the hot path: leaves the sequence alone while nobody sleeps, so a sleeper must look again after gt_sign_up. */
static inline void gt_wake_sleepers(gt_event *e, uint64_t count) {
    gt_fence();
    if (gt_load(&e->waiters))
        gt_wake(e, count);
}

/* For an event on which one process sleeps: the first to find the mark takes it away, so that the others pay no system
   call until the sleeper, woken but not yet running, comes round to mark again. */
static inline void gt_wake_marked(gt_event *e) {
    gt_fence();
    if (gt_load(&e->waiters) == 1 && gt_cas(&e->waiters, 1, 0)) {
        gt_add(&e->seq, 1);
        syscall(SYS_futex, gt_futex_of(e), FUTEX_WAKE, 1, NULL, NULL, 0);
    }
}

static inline void gt_mark(gt_event *e) {
    gt_store(&e->waiters, 1);
    gt_fence();
}

static inline void gt_unmark(gt_event *e) { gt_store(&e->waiters, 0); }

static inline void gt_sign_up(gt_event *e) {
    gt_add(&e->waiters, 1);
    gt_fence();
}

static inline void gt_sign_off(gt_event *e) { gt_add(&e->waiters, UINT64_MAX); }

/* Between gt_sign_up and gt_sign_off: sleeps once, until the sequence differs from `seen`, a signal, or `until`. */
static inline int gt_sleep(gt_event *e, uint64_t seen, uint64_t until) {
    uint64_t now = gt_now();
    if (gt_load(&e->seq) != seen)
        return GT_WOKEN;
    if (now >= until)
        return GT_TIMEOUT;
    uint64_t span = until - now < GT_SECOND ? until - now : GT_SECOND;
    struct timespec t = {.tv_sec = (time_t)(span / GT_SECOND), .tv_nsec = (long)(span % GT_SECOND)};
    long rc = syscall(SYS_futex, gt_futex_of(e), FUTEX_WAIT, (uint32_t)seen, &t, NULL, 0);
    if (rc == -1 && errno == EINTR)
        return GT_SIGNAL;
    return gt_load(&e->seq) != seen || gt_now() < until ? GT_WOKEN : GT_TIMEOUT;
}

/* Sleeps in slices of at most a second, for those who wait for the sequence and nothing else. */
static inline int gt_wait(gt_event *e, uint64_t seen, uint64_t until) {
    int why = GT_WOKEN;
    gt_sign_up(e);
    while (why == GT_WOKEN && gt_load(&e->seq) == seen)
        why = gt_sleep(e, seen, until);
    gt_sign_off(e);
    return why;
}

#endif
