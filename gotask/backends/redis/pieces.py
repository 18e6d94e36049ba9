"""Batches in pieces, each small enough for one call of the script, since everybody waits for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from gotask.backends.redis.script import BYTES_MOST

PIECE: Final = 200  #: jobs in one call of the script
ROW_BYTES: Final = BYTES_MOST // 50  #: what a job counts for whose size is not known before it is read


def pieces(positions: Sequence[int], weigh: Callable[[int], int]) -> Iterator[Sequence[int]]:
    """Positions in a batch, cut by their number and by the bytes that `weigh` says of each."""
    start, weight = 0, 0
    if len(positions) == 1:
        yield positions
        return
    for end, at in enumerate(positions):
        weight += weigh(at)
        if end - start == PIECE or (weight > BYTES_MOST and end > start):
            yield positions[start:end]
            start, weight = end, weigh(at)
    if start < len(positions):
        yield positions[start:]


def first_piece(wants: Mapping[str, int]) -> dict[str, int]:
    """What the first of the jobs that are wanted are, by queue: as many as one call leases of all queues together."""
    piece: dict[str, int] = {}
    room = PIECE
    for queue, want in wants.items():
        if want and room:
            piece[queue] = min(want, room)
            room -= piece[queue]
    return piece
