"""The only place that asks what time it is. Pure code is handed its answers."""

import time
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

LAST: Final = 253_402_300_799.0  #: seconds since the epoch: the end of the year 9999, after which Python has no time


def now() -> float:
    """Wall clock, seconds since the epoch. Only a store may judge due times by it."""
    return time.time()


def monotonic() -> float:
    """Seconds that never step, for intervals within one process."""
    return time.monotonic()


def boottime() -> float:
    """Seconds since boot, suspend included: the clock a slot's lease end is judged by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    """A name for the time since this machine was started; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@lru_cache(maxsize=4096)  # a batch shares its instants, and each would cost a quarter of a microsecond
def from_epoch(seconds: float) -> datetime:
    """A store's number as the UTC time that goes out on the wire."""
    return datetime.fromtimestamp(min(seconds, LAST), UTC)


def to_epoch(moment: datetime) -> float:
    return moment.timestamp()
