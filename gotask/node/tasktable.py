"""How workers tell the dispatcher which tasks they have, so that it decides without loading user code.

The table lies in a memfd that the arbiter made, so it outlives both sides: a new dispatcher finds it, and a new
generation of workers overwrites it. A length and a checksum tell a whole table from a torn one.
"""

import os
import struct
import zlib
from typing import Final

import msgspec

from gotask.model import Name, Rules

_HEADER: Final = struct.Struct("<II")


class TaskSpec(msgspec.Struct, array_like=True):
    """One row: what a dispatcher must know of a task."""

    type: Name
    queue: Name
    rules: Rules


class TaskTable:
    def __init__(self) -> None:
        self._fd = os.memfd_create("gotask-tasks")

    def publish(self, specs: list[TaskSpec]) -> None:
        """Worker: say what this generation can run. All workers of one say the same, so the last one may win."""
        body = msgspec.msgpack.encode(specs)
        os.pwrite(self._fd, _HEADER.pack(len(body), zlib.crc32(body)) + body, 0)

    def read(self) -> dict[str, TaskSpec] | None:
        """Dispatcher: the table by type; None while no worker has published a whole one."""
        header = os.pread(self._fd, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            return None
        length, checksum = _HEADER.unpack(header)
        body = os.pread(self._fd, length, _HEADER.size)
        if len(body) != length or zlib.crc32(body) != checksum:
            return None
        return {spec.type: spec for spec in msgspec.msgpack.decode(body, type=list[TaskSpec])}
