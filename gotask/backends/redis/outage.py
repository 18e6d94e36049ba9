"""What becomes of the other shards when the server of one is away: they are asked all the same."""

from types import TracebackType

from gotask.errors import BackendDown


class Outage:
    """The first of the errors that are raised in its `with` blocks; they end there."""

    def __init__(self) -> None:
        self.error: BackendDown | None = None

    def over(self) -> None:
        """Raises it, if there was one."""
        if self.error is not None:
            raise self.error

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> bool:
        if isinstance(error, BackendDown):
            self.error = self.error or error
        return isinstance(error, BackendDown)
