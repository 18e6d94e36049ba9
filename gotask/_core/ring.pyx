# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The segment as Python sees it: its mapping's lifetime, bytes in and out, exceptions. What happens inside is `ring.h`."""

import os
import weakref
from typing import NamedTuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_SET_ITEM
from libc.errno cimport EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memset, strerror

cdef extern from "Python.h":
    object PyType_GenericAlloc(PyTypeObject *of, Py_ssize_t size)
    unsigned long long PyLong_AsUnsignedLongLong(object o) except? 0xFFFFFFFFFFFFFFFF

cdef extern from "<unistd.h>" nogil:
    int getpid()
    int getppid()
    int c_close "close"(int fd)

cdef extern from "<fcntl.h>" nogil:
    int posix_fallocate(int fd, long offset, long length)
    int fcntl(int fd, int cmd, ...)
    enum: F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL

cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char *name, unsigned int flags)
    void *mmap(void *at, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *at, size_t length)
    int madvise(void *at, size_t length, int advice)
    void *MAP_FAILED
    enum: MFD_CLOEXEC, MFD_ALLOW_SEALING, PROT_READ, PROT_WRITE, MAP_SHARED, MADV_DONTFORK

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long argument)
    enum: PR_SET_PDEATHSIG

cdef extern from "<signal.h>" nogil:
    enum: SIGKILL

LAYOUT = <int>GT_LAYOUT
RINGS = <int>GT_RINGS
ALONE = <int>GT_ALONE
SUSPECT = <int>GT_SUSPECT
SUSPECT_ALONE = <int>GT_SUSPECT_ALONE
OVERDUE = <int>GT_OVERDUE
INNOCENT = <int>GT_INNOCENT
TORN = 128


class Frame(NamedTuple):
    body: bytes
    ring: int
    limit: float
    grace: float
    expires: float


class Claim(NamedTuple):
    ticket: int
    body: bytes


class Report(NamedTuple):
    ticket: int
    kind: int
    final: bool
    seconds: float
    body: bytes


class Loss(NamedTuple):
    ticket: int
    verdict: int
    code: int


class Stay(NamedTuple):
    ticket: int
    claimed: bool
    body: bytes


cdef type claim_type = Claim
cdef type report_type = Report


# A NamedTuple's own constructor costs more than the whole of a claim; this allocates one and lets the caller fill it.
cdef inline tuple blank(type of, Py_ssize_t size):
    return <tuple>PyType_GenericAlloc(<PyTypeObject *>of, size)


cdef inline void fill(tuple into, Py_ssize_t i, object item):
    Py_INCREF(item)
    PyTuple_SET_ITEM(into, i, item)


cdef inline uint64_t number(object given, str what) except? 0xFFFFFFFFFFFFFFFF:
    try:
        return PyLong_AsUnsignedLongLong(given)
    except OverflowError:
        raise ValueError(f"{what} {given!r} is out of range; pass on what this segment handed out.") from None


# Times are kept below 2**62 ns, so that the sum of any two of them cannot wrap around.
cdef inline uint64_t nanos(double seconds, str what) except? 0xFFFFFFFFFFFFFFFF:
    if not seconds >= 0:
        raise ValueError(f"{what} is {seconds}; it takes seconds, 0 or more.")
    return <uint64_t>(seconds * 1e9) if seconds < 4.6e9 else <uint64_t>1 << 62


cdef inline uint64_t deadline(double timeout) except? 0xFFFFFFFFFFFFFFFF:
    return gt_now() + nanos(timeout, "timeout")


def _cgroup_room():
    """The least (limit - usage) of this process's cgroup and those above it, or None where nothing limits it."""
    rooms = []
    try:
        with open("/proc/self/cgroup") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    for _, controllers, path in lines:
        if controllers == "":
            root, most, used = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most, used = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folders = path.strip("/").split("/") if path.strip("/") else []
        for depth in range(len(folders) + 1):
            folder = os.path.join(root, *folders[:depth])
            try:
                with open(f"{folder}/{most}") as limit, open(f"{folder}/{used}") as usage:
                    text = limit.read().strip()
                    if text != "max":
                        rooms.append(int(text) - int(usage.read()))
            except OSError:
                continue
    return min(rooms, default=None)


def _system_room():
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


# Going over a cgroup's limit is SIGKILL, and a full tmpfs is SIGBUS at the first touch: so ask before, and allocate all.
cdef int memory_file(uint64_t size) except -1:
    cdef int fd, rc = EINTR
    for room, whose in ((_cgroup_room(), "the cgroup"), (_system_room(), "the system")):
        if room is not None and size > <uint64_t>max(room, 0):
            raise MemoryError(f"The segment needs {size} bytes and {whose} has {max(room, 0)} left; "
                              f"use fewer or smaller slots, report rings or blocks.")
    fd = memfd_create(b"gotask", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    if fd < 0:
        raise MemoryError(f"The system makes no memory file ({os.strerror(errno)}); it may be out of file descriptors.")
    while rc == EINTR:
        rc = posix_fallocate(fd, 0, <long>size)
    if rc == 0 and fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0:
        rc = errno
    if rc != 0:
        c_close(fd)
        raise MemoryError(f"The segment needs {size} bytes and the system refuses them ({os.strerror(rc)}); "
                          f"raise its limits, or use fewer or smaller slots, report rings or blocks.")
    return fd


cdef uint64_t bounded(object given, str what, uint64_t least, uint64_t most) except? 0xFFFFFFFFFFFFFFFF:
    if not least <= given <= most:
        raise ValueError(f"{what} is {given!r}; it takes {least} to {most}.")
    return given


# The pieces of a large report, until its last one.
cdef class Pieces:
    cdef bytes body
    cdef uint64_t done


cdef class Counters:
    """The cells of one worker, for as long as anybody looks at them."""
    cdef Segment segment
    cdef uint64_t *cells
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE == PyBUF_WRITABLE:
            raise BufferError("Counters are written in C; ask for a read-only view.")
        self.segment.views += 1
        view.buf = self.cells
        view.obj = self
        view.len = self.shape[0] * 8
        view.itemsize = 8
        view.readonly = 1
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = b"Q"
        view.ndim = 1
        view.shape = self.shape
        view.strides = self.strides
        view.suboffsets = NULL
        view.internal = NULL

    def __releasebuffer__(self, Py_buffer *view):
        self.segment.views -= 1


cdef class Segment:
    cdef gt_seg seg
    cdef gt_desk desk
    cdef void *scratch
    cdef int fd, pid, views
    cdef dict pieces
    cdef object __weakref__

    def __cinit__(self, *, slots, workers, slot_bytes=512, report_bytes=262_144, blocks=128, block_bytes=65_536):
        cdef gt_shape shape
        cdef void *base
        self.fd = -1
        self.pid = getpid()
        self.pieces = {}
        shape.slots = bounded(slots, "slots", 1, GT_MAX_SLOTS)
        shape.workers = bounded(workers, "workers", 1, GT_MAX_WORKERS)
        shape.slot_bytes = bounded(slot_bytes, "slot_bytes", 64, 1 << 20)
        shape.report_bytes = bounded(report_bytes, "report_bytes", 4096, 1 << 28)
        shape.blocks = bounded(blocks, "blocks", 0, 1 << 20)
        shape.block_bytes = bounded(block_bytes, "block_bytes", 64, 1 << 26)
        gt_plan(&self.seg, &shape)
        self.fd = memory_file(self.seg.size)
        base = mmap(NULL, self.seg.size, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if base == MAP_FAILED:
            raise MemoryError(f"The segment's {self.seg.size} bytes cannot be mapped ({os.strerror(errno)}); "
                              f"raise the limit on address space.")
        gt_format(&self.seg, <uint8_t *>base)
        self.scratch = malloc(max(shape.slots * sizeof(gt_loss), shape.workers))
        if self.scratch == NULL or not gt_desk_open(&self.seg, &self.desk) or not gt_adopt(&self.seg, &self.desk):
            raise MemoryError("There is no memory for the dispatcher's lists; use fewer slots or blocks.")

    def __dealloc__(self):
        gt_desk_close(&self.desk)
        free(self.scratch)
        # A forked child's copy of this object goes away; what its parent maps does not.
        if self.pid == getpid():
            self.unmap()

    cdef void unmap(self) noexcept:
        if self.seg.base != NULL:
            munmap(self.seg.base, self.seg.size)
            self.seg.base = NULL
        if self.fd >= 0:
            c_close(self.fd)
            self.fd = -1

    cdef inline int mapped(self) except -1:
        if self.seg.base == NULL:
            raise ValueError("This segment is closed here; make another one.")
        return 0

    cdef inline uint32_t owner(self, object given) except? 0xFFFFFFFF:
        cdef uint64_t value = number(given, "owner")
        self.mapped()
        if value >> 28 or gt_owner_index(<uint32_t>value) >= self.seg.shape.workers or not gt_owner_life(<uint32_t>value):
            raise ValueError(f"owner {given!r} was never enlisted; pass on what enlist() returned.")
        return <uint32_t>value

    cdef inline uint64_t ticket(self, object given) except? 0xFFFFFFFFFFFFFFFF:
        cdef uint64_t value = number(given, "ticket")
        self.mapped()
        if gt_ticket_slot(value) >= self.seg.shape.slots:
            raise ValueError(f"ticket {given!r} names no slot of this segment; pass on what it handed out.")
        return value

    cdef list tickets_in_scratch(self, uint64_t count):
        cdef uint64_t *tickets = <uint64_t *>self.scratch
        return [tickets[i] for i in range(count)]

    @property
    def slots(self):
        return self.seg.shape.slots

    @property
    def workers(self):
        return self.seg.shape.workers

    @property
    def size(self):
        return self.seg.size

    def fileno(self):
        self.mapped()
        return self.fd

    # ---- the dispatcher ----

    cdef int read_frame(self, object frame, gt_frame *to) except -1:
        cdef object body
        if not isinstance(frame, tuple) or PyTuple_GET_SIZE(frame) != 5:
            raise ValueError(f"{frame!r:.80} is no frame; it takes a tuple of body, ring, limit, grace, expires.")
        body = <object>PyTuple_GET_ITEM(frame, 0)
        if type(body) is not bytes:
            raise TypeError(f"a frame's body is {type(body).__name__}; it takes bytes.")
        to.body = <const uint8_t *>PyBytes_AS_STRING(body)
        to.length = PyBytes_GET_SIZE(body)
        to.ring = bounded(<object>PyTuple_GET_ITEM(frame, 1), "ring", 0, GT_RINGS - 1)
        to.limit = nanos(<object>PyTuple_GET_ITEM(frame, 2), "limit")
        to.grace = nanos(<object>PyTuple_GET_ITEM(frame, 3), "grace")
        to.expires = nanos(<object>PyTuple_GET_ITEM(frame, 4), "expires")
        if gt_blocks_for(&self.seg, to.length) == GT_NONE:
            raise ValueError(f"a frame has {to.length} bytes, more than this segment can hold; give it more or larger blocks.")
        return 0

    def put_many(self, frames):
        # A tuple of our own: it keeps the bodies alive whatever a strange number's __float__ may do to the list.
        cdef tuple mine = tuple(frames)
        cdef Py_ssize_t i, done, count = len(mine)
        cdef gt_frame *read
        cdef uint64_t *tickets
        self.mapped()
        read = <gt_frame *>malloc((count + 1) * (sizeof(gt_frame) + sizeof(uint64_t)))
        if read == NULL:
            raise MemoryError("There is no memory to read these frames; put fewer at once.")
        tickets = <uint64_t *>(read + count)
        try:
            for i in range(count):
                self.read_frame(<object>PyTuple_GET_ITEM(mine, i), read + i)
            done = <Py_ssize_t>gt_put_many(&self.seg, &self.desk, read, count, tickets)
            return [tickets[i] for i in range(done)]
        finally:
            free(read)

    def recall(self, double older_than):
        cdef uint64_t now = gt_now(), age = nanos(older_than, "older_than")
        self.mapped()
        return self.tickets_in_scratch(gt_recall(&self.seg, &self.desk, now - min(age, now), <uint64_t *>self.scratch))

    cdef object torn(self, const gt_record *r, bint final):
        return Report(r.ticket, TORN, final, r.nanos / 1e9, b"")

    # Puts one piece in its place. The report once it is whole, or TORN once its last piece came to an incomplete body.
    cdef object join(self, const gt_found *f):
        cdef const gt_record *r = &f.record
        cdef Pieces whole
        cdef bytes gone
        if r.offset == 0:
            whole = Pieces()
            whole.body = PyBytes_FromStringAndSize(NULL, r.total)
            self.pieces[r.ticket] = whole
        else:
            whole = self.pieces.get(r.ticket)
        if whole is None or whole.done != r.offset or <uint64_t>PyBytes_GET_SIZE(whole.body) != r.total:
            self.pieces.pop(r.ticket, None)
            gone = PyBytes_FromStringAndSize(NULL, r.length)
            if gt_drain_take(&self.seg, &self.desk, f, <uint8_t *>PyBytes_AS_STRING(gone)):
                return self.torn(r, r.final) if r.offset + r.length == r.total else None
            return self.torn(r, True)
        if not gt_drain_take(&self.seg, &self.desk, f, <uint8_t *>PyBytes_AS_STRING(whole.body) + r.offset):
            del self.pieces[r.ticket]
            return self.torn(r, True)
        whole.done += r.length
        if whole.done < r.total:
            return None
        del self.pieces[r.ticket]
        return Report(r.ticket, r.kind, bool(r.final), r.nanos / 1e9, whole.body)

    cdef object take(self, const gt_found *f):
        cdef const gt_record *r = &f.record
        cdef bytes body
        cdef tuple report
        if r.length != r.total:
            return self.join(f)
        body = PyBytes_FromStringAndSize(NULL, r.length)
        if not gt_drain_take(&self.seg, &self.desk, f, <uint8_t *>PyBytes_AS_STRING(body)):
            return self.torn(r, True)
        report = blank(report_type, 5)
        fill(report, 0, r.ticket)
        fill(report, 1, <int>r.kind)
        fill(report, 2, True if r.final else False)
        fill(report, 3, r.nanos / 1e9)
        fill(report, 4, body)
        return report

    def drain(self, Py_ssize_t limit):
        cdef gt_found found
        cdef Py_ssize_t looks = 0
        cdef int what
        cdef list reports = []
        cdef object report
        self.mapped()
        while looks < limit:
            what = gt_drain(&self.seg, &self.desk, &found)
            if what == GT_NOTHING:
                break
            report = None
            if what == GT_RECORD:
                report = self.take(&found)
                looks += report is not None
            else:
                looks += 1
                if found.record.ticket:
                    report = self.torn(&found.record, True)
            if report is not None:
                reports.append(report)
        return reports

    def free_many(self, tickets):
        cdef list mine = [self.ticket(ticket) for ticket in tickets]
        self.mapped()
        for ticket in mine:
            gt_free(&self.seg, &self.desk, ticket)
            if self.pieces:
                self.pieces.pop(ticket, None)

    def forget(self):
        self.mapped()
        gt_forget(&self.seg, &self.desk)

    def losses(self):
        cdef gt_loss *lost = <gt_loss *>self.scratch
        self.mapped()
        return [Loss(lost[i].ticket, lost[i].verdict, <int32_t>lost[i].code)
                for i in range(gt_losses(&self.seg, &self.desk, lost))]

    def adopt(self):
        cdef uint64_t i, word, length
        cdef list stays = []
        cdef bytes body
        cdef gt_slot *slot
        self.mapped()
        self.pieces = {}
        if not gt_adopt(&self.seg, &self.desk):
            raise MemoryError("There is no memory to list the slots; give the dispatcher more.")
        for i in range(self.seg.shape.slots):
            slot = gt_slot_at(&self.seg, i)
            word = gt_load(&slot.word)
            length = gt_load(&slot.length)
            if gt_word_state(word) == GT_FREE:
                continue
            body = b""
            if gt_blocks_for(&self.seg, length) != GT_NONE:
                body = PyBytes_FromStringAndSize(NULL, length)
                if not gt_copy_body(&self.seg, slot, length, <uint8_t *>PyBytes_AS_STRING(body)):
                    body = b""
            stays.append(Stay(gt_ticket_of(gt_word_generation(word), i), gt_word_state(word) != GT_READY, body))
        return stays

    def cancel(self, ticket, double grace):
        cdef uint64_t named = self.ticket(ticket)
        return bool(gt_cancel(&self.seg, &self.desk, named, gt_now() + nanos(grace, "grace")))

    def room(self):
        return self.desk.free_count

    def wait_reports(self, seen, double timeout):
        cdef uint64_t was = number(seen, "seen"), until = deadline(timeout)
        cdef gt_event *reports
        cdef int why = GT_WOKEN
        self.mapped()
        reports = &self.seg.header.reports
        # A worker leaves the count alone while nobody sleeps: so mark first, then look at the rings themselves.
        with nogil:
            while why == GT_WOKEN:
                gt_mark(reports)
                if gt_load(&reports.seq) != was or gt_undrained(&self.seg, &self.desk):
                    break
                why = gt_sleep(reports, was, until)
            gt_unmark(reports)
        if why == GT_SIGNAL:
            PyErr_CheckSignals()
        return gt_load(&reports.seq)

    def reports_seen(self):
        self.mapped()
        return gt_load(&self.seg.header.reports.seq)

    def ring_reports(self):
        self.mapped()
        gt_wake(&self.seg.header.reports, 1)

    # ---- a worker ----

    cdef object handed(self, const gt_claim *got):
        cdef bytes body = b""
        cdef tuple claim
        if gt_blocks_for(&self.seg, got.length) != GT_NONE:
            body = PyBytes_FromStringAndSize(NULL, got.length)
            if not gt_copy_body(&self.seg, got.slot, got.length, <uint8_t *>PyBytes_AS_STRING(body)):
                body = b""
        claim = blank(claim_type, 2)
        fill(claim, 0, got.ticket)
        fill(claim, 1, body)
        return claim

    # Signs up first, then reads the sequence, looks, and sleeps on what was read. 1: claimed, 0: no time left, or none.
    cdef int claim_later(self, uint32_t me, bint idle, uint64_t until, gt_claim *got) except -1:
        cdef gt_lane *lane = gt_lane_at(&self.seg, gt_owner_index(me))
        cdef gt_event *ready = &self.seg.header.ready
        cdef uint64_t seen
        cdef int why = GT_WOKEN, done = 0
        gt_lie_down(&self.seg, lane)
        try:
            while True:
                seen = gt_load(&ready.seq)
                done = gt_claim_any(&self.seg, me, idle, got)
                if done or why != GT_WOKEN or gt_load(&lane.stop) == me:
                    break
                with nogil:
                    why = gt_sleep(ready, seen, until)
        finally:
            gt_get_up(&self.seg, lane)
        if why == GT_SIGNAL and not done:
            PyErr_CheckSignals()
        return done

    def claim(self, owner, bint idle, double timeout):
        cdef uint32_t me = self.owner(owner)
        cdef gt_claim got
        if not gt_lives(&self.seg, me):
            raise ValueError(f"owner {owner!r} is not the present life of its worker; pass on what enlist() returned.")
        if gt_claim_any(&self.seg, me, idle, &got):
            return self.handed(&got)
        if timeout > 0 and self.claim_later(me, idle, deadline(timeout), &got):
            return self.handed(&got)
        return None

    # 1: published, 0: the ticket is no longer this owner's.
    cdef int report_later(self, uint32_t me, gt_record *r, const uint8_t *body) except -1:
        cdef gt_event *space = &gt_lane_at(&self.seg, gt_owner_index(me)).space
        cdef uint64_t seen
        cdef int why, sent
        while True:
            gt_sign_up(space)
            seen = gt_load(&space.seq)
            sent = gt_report(&self.seg, me, r[0], body)
            if sent or not gt_mine(&self.seg, me, r.ticket):
                gt_sign_off(space)
                return sent
            with nogil:
                why = gt_sleep(space, seen, GT_NEVER)
            gt_sign_off(space)
            if why == GT_SIGNAL:
                PyErr_CheckSignals()
            if not gt_mine(&self.seg, me, r.ticket):
                return 0

    # The GIL is held while a record is written, so that threads of one worker write one after another.
    def report(self, owner, ticket, int kind, bytes body not None, bint final):
        cdef uint32_t me = self.owner(owner)
        cdef gt_record r
        cdef uint64_t started, now, most = gt_piece_bytes(&self.seg)
        cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(body)
        if not 0 <= kind < 128:
            raise ValueError(f"kind is {kind}; it takes 0 to 127.")
        if PyBytes_GET_SIZE(body) > GT_MAX_REPORT:
            raise ValueError(f"a report has {len(body)} bytes; the most is {GT_MAX_REPORT}.")
        r.ticket = self.ticket(ticket)
        started = gt_load(&gt_slot_at(&self.seg, gt_ticket_slot(r.ticket)).started)
        now = gt_now()
        r.nanos = now - started if started and now > started else 0
        r.total = <uint32_t>PyBytes_GET_SIZE(body)
        r.kind = <uint8_t>kind
        r.final = final
        r.offset = 0
        while True:
            if not gt_mine(&self.seg, me, r.ticket):
                return False
            r.length = <uint32_t>min(<uint64_t>(r.total - r.offset), most)
            if not gt_report(&self.seg, me, r, at + r.offset) and not self.report_later(me, &r, at + r.offset):
                return False
            r.offset += r.length
            if r.offset >= r.total:
                return True

    def cancelled(self, ticket):
        cdef uint64_t word
        cdef gt_slot *slot = gt_stay(&self.seg, self.ticket(ticket), &word)
        return slot != NULL and gt_word_state(word) == GT_TAKEN and gt_load(&slot.cancel_by) != 0

    def overdue(self, owner):
        cdef uint32_t me = self.owner(owner)
        return self.tickets_in_scratch(gt_overdue(&self.seg, me, <uint64_t *>self.scratch))

    def stopping(self, owner):
        cdef uint32_t me = self.owner(owner)
        return gt_load(&gt_lane_at(&self.seg, gt_owner_index(me)).stop) == me

    def waiting(self, ring):
        cdef uint64_t head, which = bounded(ring, "ring", 0, GT_RINGS - 1)
        self.mapped()
        head = gt_load(&self.seg.header.heads[which])
        return max(0, <object>gt_load(&self.seg.header.tails[which]) - <object>head)

    def is_first(self, owner):
        cdef uint32_t me = self.owner(owner)
        return bool(gt_is_first(&self.seg, me))

    def wait_attention(self, owner, seen, double timeout):
        cdef uint32_t me = self.owner(owner)
        cdef gt_event *attention = &gt_lane_at(&self.seg, gt_owner_index(me)).attention
        cdef uint64_t was = number(seen, "seen"), until = deadline(timeout)
        cdef int why
        with nogil:
            why = gt_wait(attention, was, until)
        if why == GT_SIGNAL:
            PyErr_CheckSignals()
        return gt_load(&attention.seq)

    def attention_seen(self, owner):
        cdef uint32_t me = self.owner(owner)
        return gt_load(&gt_lane_at(&self.seg, gt_owner_index(me)).attention.seq)

    def keep_from_children(self):
        self.mapped()
        if madvise(self.seg.base, self.seg.size, MADV_DONTFORK) < 0:
            raise OSError(errno, os.strerror(errno))
        me = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _lost_in_child(me()))

    # ---- the arbiter ----

    def enlist(self, index):
        cdef uint64_t worker = bounded(index, "index", 0, self.seg.shape.workers - 1)
        cdef uint32_t owner
        self.mapped()
        owner = gt_enlist(&self.seg, <uint32_t>worker)
        if not owner:
            raise RuntimeError(f"worker {index} has a life that was not recovered; reap it and call recover() first.")
        return owner

    def stop(self, owner):
        cdef uint32_t whose = self.owner(owner)
        gt_stop(&self.seg, whose)

    def stuck(self, double slack):
        cdef uint8_t *late = <uint8_t *>self.scratch
        cdef uint64_t i
        self.mapped()
        memset(late, 0, self.seg.shape.workers)
        gt_stuck(&self.seg, nanos(slack, "slack"), late)
        return [gt_load(&gt_lane_at(&self.seg, i).owner) for i in range(self.seg.shape.workers) if late[i]]

    def held(self, owner):
        cdef uint32_t whose = self.owner(owner)
        return gt_held(&self.seg, whose)

    def recover(self, owner, bint killed, int code):
        cdef uint32_t whose = self.owner(owner)
        return gt_recover(&self.seg, whose, killed, <uint32_t>code)

    # ---- everybody ----

    def counters(self, index):
        cdef Counters cells = Counters()
        cdef uint64_t worker = bounded(index, "index", 0, self.seg.shape.workers - 1)
        self.mapped()
        cells.segment = self
        cells.cells = <uint64_t *>&gt_lane_at(&self.seg, worker).claimed
        cells.shape[0] = 3 + GT_BUCKETS
        cells.strides[0] = 8
        return memoryview(cells)

    def check(self):
        cdef uint64_t i
        cdef uint64_t counts[16]
        self.mapped()
        memset(counts, 0, sizeof(counts))
        for i in range(self.seg.shape.slots):
            counts[gt_word_state(gt_load(&gt_slot_at(&self.seg, i).word))] += 1
        return {
            "free": counts[GT_FREE],
            "ready": counts[GT_READY],
            "taken": counts[GT_TAKEN] + counts[GT_REPORTED],
            "lost": self.seg.shape.slots - counts[GT_FREE] - counts[GT_READY] - counts[GT_TAKEN] - counts[GT_REPORTED],
        }

    def close(self):
        if self.views:
            raise BufferError(f"{self.views} views of counters are still open; release them before close().")
        self.unmap()


# The kernel did not copy the mapping: every use of it in this child must be an error and not a crash.
def _lost_in_child(Segment segment):
    if segment is not None:
        segment.seg.base = NULL


def checksum(bytes body not None):
    return gt_sum(0, <const uint8_t *>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))


def die_with_parent(int parent):
    if prctl(PR_SET_PDEATHSIG, SIGKILL) < 0:
        raise OSError(errno, os.strerror(errno))
    # It may have died before the line above; then no signal will ever come.
    if getppid() != parent:
        raise ProcessLookupError(f"process {parent} is no longer the parent of this one; leave at once.")
