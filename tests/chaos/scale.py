"""How much of everything: a little in CI, all of it in `make chaos`."""

import os
from typing import Final

SCALE: Final = float(os.environ.get("CHAOS_SCALE", "1"))
WHOLE: Final = 10.0  #: the scale at which all is run that was promised
HEAL_S: Final = 5.0  #: seconds after the end of a fault within which workers must run jobs again


def so_many(few: int, whole: int) -> int:
    """`few` in CI, `whole` at scale 10, evenly between and beyond."""
    return max(1, round(few + (whole - few) * (SCALE - 1) / (WHOLE - 1)))


def so_long(short: float, whole: float) -> float:
    """Seconds: `short` in CI, `whole` from scale 10 on."""
    return min(whole, short + (whole - short) * max(0.0, SCALE - 1) / (WHOLE - 1))
