"""What a dispatcher does from time to time, and when next. Asking is one thing and booking another: what failed stays due."""

from gotask.clock import monotonic


class Agenda:
    """Duties by name; one that was never booked is due."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def is_due(self, duty: str) -> bool:
        return monotonic() >= self._next.get(duty, 0.0)

    def book(self, duty: str, after: float) -> None:
        """It is due again in `after` seconds."""
        self._next[duty] = monotonic() + after

    def bring_forward(self, duty: str, after: float) -> None:
        """It is due in `after` seconds, if it was not to be sooner."""
        self._next[duty] = min(self._next.get(duty, 0.0), monotonic() + after)

    def at_once(self, duty: str) -> None:
        self._next[duty] = 0.0

    def rest(self, duties: dict[str, bool], most: float) -> float:
        """Seconds until the first of those duties that matter now is due, `most` at the most."""
        now = monotonic()
        return max(0.001, min([most, *(self._next.get(duty, 0.0) - now for duty, matters in duties.items() if matters)]))
