/* Every memory order of the tree, so that a reader checks them in one place and a test can forbid them elsewhere. */
#ifndef GT_ATOMIC_H
#define GT_ATOMIC_H

#include <stdatomic.h>
#include <stdint.h>

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock inside an atomic is a per-process lock: none at all");

/* Cython cannot spell _Atomic; it sees this struct as opaque. */
typedef struct {
    _Atomic uint64_t v;
} gt_word;

_Static_assert(sizeof(gt_word) == 8, "a word is 64 bits in every process that maps it");

/* GT_WEAKEN exists for one test: with it the race detector must cry out, or its silence elsewhere proves nothing. */
#ifdef GT_WEAKEN
#define GT_PUBLISH memory_order_relaxed
#else
#define GT_PUBLISH memory_order_release
#endif

static inline uint64_t gt_load(const gt_word *w) { return atomic_load_explicit(&w->v, memory_order_acquire); }

static inline void gt_store(gt_word *w, uint64_t value) { atomic_store_explicit(&w->v, value, GT_PUBLISH); }

static inline int gt_cas(gt_word *w, uint64_t expected, uint64_t desired) {
    return atomic_compare_exchange_strong_explicit(&w->v, &expected, desired, memory_order_acq_rel,
                                                   memory_order_acquire);
}

static inline uint64_t gt_add(gt_word *w, uint64_t amount) {
    return atomic_fetch_add_explicit(&w->v, amount, memory_order_seq_cst);
}

/* Between "I published" and "does anyone sleep?": a store and a later load of another word, which only a full fence
   keeps in order. The race detector does not know fences; nothing but a wake-up hangs on this one. */
static inline void gt_fence(void) {
#ifndef __SANITIZE_THREAD__
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

#endif
