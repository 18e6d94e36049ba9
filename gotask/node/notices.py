"""What the processes of a node tell each other beside the segment: the task table, whether the store answers, and what one
dispatcher leaves to the next.

It lies in a memfd that the arbiter made, so it outlives both sides: a new dispatcher finds the table, so that it decides
without loading user code, and a new generation of workers overwrites it. A length and a checksum tell a whole one from one
whose writer was killed; what a dispatcher leaves goes to two places by turns, so that one of them is always whole.
"""

import os
import struct
import zlib
from typing import Final

import msgspec

from gotask.model import Name, Rules

_CUT_OFF_AT: Final = 0
_TABLE_AT: Final = 8
#: where a dispatcher leaves what the next one must know: far beyond any table, and apart; what lies between costs nothing
COMPLETIONS_AT: Final = 1 << 30
HELD_UP_AT: Final = 1 << 40
_OTHER: Final = 1 << 35  #: bytes from the one of two places to the other
_HEADER: Final = struct.Struct("<QII")


class TaskSpec(msgspec.Struct, array_like=True):
    """One row of the table: what a dispatcher must know of a task."""

    type: Name
    queue: Name
    rules: Rules


class Notices:
    def __init__(self) -> None:
        self._fd = os.memfd_create("gotask-notices")

    def publish(self, specs: list[TaskSpec]) -> None:
        """Worker: say what this generation can run. All workers of one say the same, so the last one may win."""
        self._write(_TABLE_AT, msgspec.msgpack.encode(specs))

    def tasks(self) -> dict[str, TaskSpec] | None:
        """Dispatcher: the table by type; None while no worker has published a whole one."""
        found = self._read(_TABLE_AT)
        return {spec.type: spec for spec in msgspec.msgpack.decode(found[1], type=list[TaskSpec])} if found else None

    def leave(self, body: bytes, at: int) -> None:
        """Dispatcher: what the next one must know if this one dies. Until all of it is there, that is what was left before."""
        first, second = self._read(at), self._read(at + _OTHER)
        turns = [one[0] if one else 0 for one in (first, second)]
        self._write(at if turns[0] <= turns[1] else at + _OTHER, body, max(turns) + 1)

    def left(self, at: int) -> bytes | None:
        """Dispatcher: what the last one left there, if anything."""
        whole = [one for one in (self._read(at), self._read(at + _OTHER)) if one]
        return max(whole)[1] if whole else None

    def _write(self, at: int, body: bytes, turn: int = 0) -> None:
        os.pwrite(self._fd, _HEADER.pack(turn, len(body), zlib.crc32(body)) + body, at)

    def _read(self, at: int) -> tuple[int, bytes] | None:
        """A whole one and its turn, or None."""
        header = os.pread(self._fd, _HEADER.size, at)
        if len(header) < _HEADER.size:
            return None
        turn, length, checksum = _HEADER.unpack(header)
        body = os.pread(self._fd, length, at + _HEADER.size)
        return (turn, body) if body and len(body) == length and zlib.crc32(body) == checksum else None

    @property
    def cut_off(self) -> bool:
        """Whether the store has been silent for so long that other nodes may be running this node's jobs."""
        return os.pread(self._fd, 1, _CUT_OFF_AT) == b"\x01"

    @cut_off.setter
    def cut_off(self, value: bool) -> None:
        os.pwrite(self._fd, bytes([value]), _CUT_OFF_AT)
