"""A node's line to its store, which knows whether the store answers."""

from typing import Any, Final, cast

from gotask.backends import Backend

UNCOUNTED: Final = frozenset({"watch", "close"})  #: listening may begin without a word from the store, and ends without one


class Line:
    """Counts the calls of a Backend that were answered; `backend` is that one, through here."""

    def __init__(self, backend: Backend) -> None:
        self._store = backend
        self.answers = 0

    @property
    def backend(self) -> Backend:
        return cast("Backend", self)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name in UNCOUNTED or not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = found(*args, **kwargs)
            self.answers += 1
            return answer

        return call
