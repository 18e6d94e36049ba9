# What C offers. A gt_word stays opaque: Cython cannot spell _Atomic.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "judge.h" nogil:
    ctypedef struct gt_word:
        pass
    uint64_t gt_load(const gt_word *w)

    enum: GT_LAYOUT, GT_RINGS, GT_ALONE, GT_BUCKETS, GT_MAX_SLOTS, GT_MAX_WORKERS, GT_NONE, GT_MAX_REPORT
    enum: GT_SUSPECT, GT_SUSPECT_ALONE, GT_OVERDUE, GT_INNOCENT
    enum: GT_FREE, GT_READY, GT_TAKEN, GT_REPORTED, GT_LOST
    enum: GT_WOKEN, GT_TIMEOUT, GT_SIGNAL
    enum: GT_NOTHING, GT_RECORD, GT_SKIP, GT_TORN
    const uint64_t GT_NEVER

    ctypedef struct gt_event:
        gt_word seq
    uint64_t gt_now()
    void gt_wake(gt_event *e, uint64_t count)
    void gt_mark(gt_event *e)
    void gt_unmark(gt_event *e)
    void gt_sign_up(gt_event *e)
    void gt_sign_off(gt_event *e)
    int gt_sleep(gt_event *e, uint64_t seen, uint64_t until)
    int gt_wait(gt_event *e, uint64_t seen, uint64_t until)

    ctypedef struct gt_slot:
        gt_word word
        gt_word length
        gt_word started
        gt_word cancel_by
    ctypedef struct gt_lane:
        gt_word owner
        gt_word stop
        gt_word claimed
        gt_event attention
        gt_event space
    ctypedef struct gt_shape:
        uint64_t slots, workers, slot_bytes, report_bytes, blocks, block_bytes
    ctypedef struct gt_header:
        gt_word tails[16]
        gt_word heads[16]
        gt_event ready
        gt_event reports
    ctypedef struct gt_seg:
        uint8_t *base
        gt_header *header
        gt_shape shape
        uint64_t size
    void gt_plan(gt_seg *s, const gt_shape *shape)
    void gt_format(gt_seg *s, uint8_t *base)
    gt_slot *gt_slot_at(const gt_seg *s, uint64_t i)
    gt_lane *gt_lane_at(const gt_seg *s, uint64_t i)
    uint32_t gt_blocks_for(const gt_seg *s, uint64_t length)
    int gt_copy_body(const gt_seg *s, gt_slot *slot, uint64_t length, uint8_t *to)
    gt_slot *gt_stay(const gt_seg *s, uint64_t ticket, uint64_t *word)
    uint32_t gt_word_state(uint64_t word)
    uint64_t gt_word_generation(uint64_t word)
    uint32_t gt_owner_index(uint32_t owner)
    uint32_t gt_owner_life(uint32_t owner)
    uint32_t gt_ticket_slot(uint64_t ticket)
    uint64_t gt_ticket_of(uint64_t generation, uint64_t slot)

    ctypedef struct gt_frame:
        const uint8_t *body
        uint64_t length, ring, limit, grace, expires
    ctypedef struct gt_desk:
        uint32_t free_count
    ctypedef struct gt_claim:
        gt_slot *slot
        uint64_t ticket, length
    int gt_desk_open(const gt_seg *s, gt_desk *d)
    void gt_desk_close(gt_desk *d)
    uint64_t gt_put_many(const gt_seg *s, gt_desk *d, const gt_frame *f, uint64_t count, uint64_t *tickets)
    uint64_t gt_recall(const gt_seg *s, gt_desk *d, uint64_t before, uint64_t *tickets)
    int gt_cancel(const gt_seg *s, gt_desk *d, uint64_t ticket, uint64_t by)
    int gt_free(const gt_seg *s, gt_desk *d, uint64_t ticket)
    int gt_adopt(const gt_seg *s, gt_desk *d)
    int gt_lives(const gt_seg *s, uint64_t owner)
    int gt_is_first(const gt_seg *s, uint32_t owner)
    int gt_claim_any(const gt_seg *s, uint32_t owner, int idle, gt_claim *out)
    void gt_lie_down(const gt_seg *s, gt_lane *lane)
    void gt_get_up(const gt_seg *s, gt_lane *lane)

    ctypedef struct gt_record:
        uint64_t ticket, nanos
        uint32_t length, offset, total
        uint8_t kind, final
    ctypedef struct gt_found:
        gt_record record
    uint64_t gt_sum(uint64_t h, const uint8_t *p, uint64_t n)
    uint64_t gt_piece_bytes(const gt_seg *s)
    int gt_mine(const gt_seg *s, uint32_t owner, uint64_t ticket)
    int gt_report(const gt_seg *s, uint32_t owner, gt_record r, const uint8_t *body)
    int gt_drain(const gt_seg *s, gt_desk *d, gt_found *f)
    int gt_drain_take(const gt_seg *s, gt_desk *d, const gt_found *f, uint8_t *to)
    void gt_forget(const gt_seg *s, gt_desk *d)
    int gt_undrained(const gt_seg *s, const gt_desk *d)

    ctypedef struct gt_loss:
        uint64_t ticket, verdict, code
    uint64_t gt_held(const gt_seg *s, uint32_t owner)
    uint64_t gt_overdue(const gt_seg *s, uint32_t owner, uint64_t *tickets)
    void gt_stuck(const gt_seg *s, uint64_t slack, uint8_t *late)
    uint32_t gt_enlist(const gt_seg *s, uint32_t index)
    void gt_stop(const gt_seg *s, uint32_t owner)
    uint64_t gt_recover(const gt_seg *s, uint32_t owner, int killed, uint64_t code)
    uint64_t gt_losses(const gt_seg *s, gt_desk *d, gt_loss *out)
