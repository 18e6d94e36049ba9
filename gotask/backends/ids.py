"""Identifiers of jobs: version 7 UUIDs, so that they sort by time and new ones lie side by side in an index."""

import os
import threading

from gotask.clock import now

_lock = threading.Lock()
_last = 0


def make(n: int) -> list[str]:
    """`n` new ids, each greater than any this process made before."""
    global _last
    with _lock:
        first = max(int(now() * 1000) << 12, _last + 1)  # 12 bits count within a millisecond, then borrow from the next
        _last = first + n - 1
    tail = f"{int.from_bytes(os.urandom(8)) & 0x3FFFFFFFFFFFFFFF | 0x8000000000000000:016x}"
    end = f"-{tail[:4]}-{tail[4:]}"
    made: list[str] = []
    while n > 0:
        fits = min(n, 0x1000 - (first & 0xFFF))  # how many share a millisecond, and so all but three digits
        start, count = f"{first >> 28:08x}-{first >> 12 & 0xFFFF:04x}-7", first & 0xFFF
        made += [f"{start}{at:03x}{end}" for at in range(count, count + fits)]
        first, n = first + fits, n - fits
    return made
