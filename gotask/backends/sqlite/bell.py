"""A doorbell between processes: words in a small shared file that change when something happens, and sleepers on them.

    word 0           work came to some queue
    word 1           a node should look at the jobs it holds
    word 2           a writer's turn is over (see turn.py)
    words 4 to 5     the last ticket drawn for such a turn, as one number
    words 8 to 1023  a job ended: the id's hash picks the word
    second half      for each word: until when (seconds since boot) somebody may care

A ring writes a random value, so that two rings at once need no atomic operation, then wakes all sleepers; job words are
rung only while somebody cares. A bell is a hint: it may ring for nothing, and what it says is always read from the store.
"""

import ctypes
import mmap
import os
import random
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Final
from zlib import crc32

from gotask.clock import boottime, monotonic

WORDS: Final = 1024
SIZE: Final = 2 * WORDS * 4
WORK, NODE, TURN = 0, 1, 2
_TICKET, _JOBS_FROM = 4, 8
CARE_S: Final = 20  #: seconds a listener is remembered without listening again
_ROUND_S: Final = 5.0  #: seconds of one sleep: the longest delay if a word was rung between two listeners' marks
_POLL_S: Final = 0.002  #: seconds between looks where the kernel cannot wake us
_WAIT, _WAKE, _WAITV_MAX = 0, 1, 128
_FUTEX: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_NR: Final = _FUTEX.get(os.uname().machine) if sys.platform == "linux" and sys.maxsize > 2**32 else None
_NR_WAITV: Final = 449
_libc = ctypes.CDLL(None, use_errno=True) if _NR is not None else None


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Waiter(ctypes.Structure):
    _fields_ = (("val", ctypes.c_uint64), ("addr", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("zero", ctypes.c_uint32))


def _timespec(seconds: float) -> _Timespec:
    whole = int(seconds)
    return _Timespec(whole, int((seconds - whole) * 1e9))


def word_of(topic: str) -> int:
    """The word that a topic rings. Several topics may share one."""
    kind, _, name = topic.partition(":")
    if kind == "job":
        return _JOBS_FROM + crc32(name.encode()) % (WORDS - _JOBS_FROM)
    return NODE if kind == "node" else WORK


def _reserve(fd: int) -> None:
    """Make the file as long as the map, with its blocks: on a full disk that fails here, not with a SIGBUS later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, SIZE)
    else:
        os.ftruncate(fd, SIZE)


class Bell:
    """The mapped file. Safe to share between threads; a forked child may go on using it."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_size < SIZE:
                _reserve(fd)
            self._map = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        self.words = (ctypes.c_uint32 * (2 * WORDS)).from_buffer(self._map)
        self.ticket = ctypes.c_uint64.from_buffer(self._map, 4 * _TICKET)
        self._address = ctypes.addressof(self.words)

    def ring(self, word: int) -> None:
        """Change a word and wake all who sleep on it: one system call."""
        self.words[word] = random.getrandbits(32)
        if _libc is not None:
            _libc.syscall(ctypes.c_long(_NR or 0), ctypes.c_void_p(self._address + 4 * word), _WAKE, 0x7FFFFFFF, None, None, 0)

    def ring_jobs(self, ids: Iterable[str]) -> None:
        """Tell those who wait for these jobs; costs next to nothing when nobody does."""
        now = int(boottime())
        cared = memoryview(self._map)[4 * (WORDS + _JOBS_FROM) :].cast("I")
        try:
            wanted = {_JOBS_FROM + at for at, until in enumerate(cared.tolist()) if until > now} if any(cared) else None
        finally:
            cared.release()
        if wanted:
            for word in {word_of(f"job:{id}") for id in ids} & wanted:
                self.ring(word)

    def care(self, word: int) -> float:
        """Ask for a job word to be rung; until when (boot time) that surely holds."""
        until = int(boottime()) + CARE_S
        if self.words[WORDS + word] < until:
            self.words[WORDS + word] = until
        return until - CARE_S / 2

    def sleep(self, seen: dict[int, int], timeout: float) -> None:
        """Until one of the words differs from what was `seen`, or for `timeout` seconds, or for no reason."""
        if _libc is None:
            time.sleep(min(timeout, _POLL_S))
        elif len(seen) == 1:
            ((word, value),) = seen.items()
            rest = _timespec(timeout)
            _libc.syscall(
                ctypes.c_long(_NR or 0),
                ctypes.c_void_p(self._address + 4 * word),
                _WAIT,
                ctypes.c_uint32(value),
                ctypes.byref(rest),
                None,
                0,
            )
        else:
            self._sleep_on_many(seen, timeout)

    def _sleep_on_many(self, seen: dict[int, int], timeout: float) -> None:
        rows = [(value, self._address + 4 * word, 2, 0) for word, value in seen.items()]  # 2: words of 32 bits, shared
        failed = len(rows) > _WAITV_MAX or _libc is None
        if not failed and _libc is not None:
            waiters = (_Waiter * len(rows))(*(_Waiter(*row) for row in rows))
            until = _timespec(monotonic() + timeout)
            answer = _libc.syscall(ctypes.c_long(_NR_WAITV), waiters, len(rows), 0, ctypes.byref(until), time.CLOCK_MONOTONIC)
            failed = answer < 0 and ctypes.get_errno() == 38  # ENOSYS: a kernel before 5.16
        if failed:
            time.sleep(min(timeout, _POLL_S))

    def close(self) -> None:
        del self.words, self.ticket
        self._map.close()


class BellWatch:
    """What one listener has heard so far."""

    def __init__(self, bell: Bell, topics: Sequence[str]) -> None:
        self._bell = bell
        self._topics: dict[int, set[str]] = {}
        for topic in topics:
            self._topics.setdefault(word_of(topic), set()).add(topic)
        self._job_words = [word for word in self._topics if word >= _JOBS_FROM]
        self._cared_until = self._care()
        self._seen = {word: int(bell.words[word]) for word in self._topics}

    def _care(self) -> float:
        return min((self._bell.care(word) for word in self._job_words), default=float("inf"))

    def wait(self, timeout: float) -> set[str]:
        """The topics that may have rung since the last call; none after `timeout` seconds, or once the store is closed."""
        try:
            return self._wait(timeout)
        except AttributeError:
            if hasattr(self._bell, "words"):
                raise
            return set()

    def _wait(self, timeout: float) -> set[str]:
        deadline = monotonic() + timeout
        if boottime() > self._cared_until:  # nobody rang for us meanwhile: look for yourself
            self._cared_until = self._care()
            return {topic for word in self._job_words for topic in self._topics[word]}
        self._cared_until = self._care()
        while True:
            heard = self._heard()
            rest = deadline - monotonic()
            if heard or rest <= 0 or not self._topics:
                return heard
            self._bell.sleep(self._seen, min(rest, _ROUND_S))
            self._cared_until = self._care()

    def _heard(self) -> set[str]:
        words = self._bell.words
        rung = [word for word, value in self._seen.items() if words[word] != value]
        for word in rung:
            self._seen[word] = int(words[word])
        return {topic for word in rung for topic in self._topics[word]}

    def close(self) -> None:
        """Nothing is held but memory."""
