"""Bytes in shared memory: the segment a node's processes hand jobs through.

Knows no job, no state and no store. The algorithm is `ring.h`; `ring.pyx` only maps it into Python.
"""
