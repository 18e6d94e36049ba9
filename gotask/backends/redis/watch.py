"""The doorbell over Redis: a connection that hears channels, and for jobs a note that somebody waits for their end."""

from collections.abc import Sequence
from typing import Final

from redis.client import PubSub

from gotask.backends.redis.server import Server
from gotask.clock import monotonic

AWAITED_S: Final = 120.0  #: seconds that a note "somebody waits" is believed; renewed in half that time
BEHIND_MOST: Final = 1000  #: messages heard at once; with more, it is quicker to listen anew
SLICE_S: Final = 15.0  #: seconds of silence after which the connection itself is asked whether it lives

JOB: Final = "job:"


class RedisWatch:
    """A Watch (see gotask.backends). A connection that breaks rings all its topics: something may have been missed."""

    def __init__(self, server: Server, topics: Sequence[str]) -> None:
        self._server = server
        self._topics = list(topics)
        self._channels: dict[bytes, str] = {}
        self._jobs: dict[str, list[str]] = {}
        self._ends: dict[bytes, bytes] = {}  # job -> when it ended, as far as that is known
        for topic in self._topics:
            job = topic.removeprefix(JOB)
            roots = server.shards.roots if job == topic else [server.shards.of(job)]
            self._channels.update({f"{root}:{topic}".encode(): topic for root in roots})
            if job != topic:
                self._jobs.setdefault(roots[0], []).append(job)
        self._ear: PubSub | None = None
        self._noted_at = self._heard_at = float("-inf")
        self._asked = False
        self._listen()

    def wait(self, timeout: float) -> set[str]:
        """The topics that may have rung since the last call; none after `timeout` seconds, or once the store is closed."""
        if not self._topics:
            return set()
        deadline = monotonic() + timeout
        if self._ear is None:
            self._listen()
            return set(self._topics)
        while True:
            missed = self._note()
            heard = missed | self._hear(0.0 if missed else max(0.0, min(deadline - monotonic(), SLICE_S)))
            if heard or self._server.closed or monotonic() >= deadline:
                return heard

    def close(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.close()

    def _listen(self) -> None:
        if self._topics:
            self._ear = self._server.listen([channel.decode() for channel in self._channels])
            self._heard_at = monotonic()
            self._asked = False
            self._noted_at = float("-inf")
            try:
                self._note()  # what has ended by now, who begins to listen sees for himself
            except BaseException:
                self.close()
                raise

    def _hear(self, seconds: float) -> set[str]:
        """What was rung, waiting for the first of it; everything if the connection broke, or is behind by too much."""
        ear, heard = self._ear, set[str]()
        assert ear is not None
        for _ in range(BEHIND_MOST):
            try:
                message = ear.get_message(timeout=seconds)
                if message is None and self._is_alive(ear):
                    return heard
            except Exception:  # whatever redis-py falls over when its connection breaks, or another thread closes the store
                break
            if message is None:
                break
            self._heard_at, self._asked, seconds = monotonic(), False, 0.0
            if message["type"] == "message":
                topic = self._channels[message["channel"]]
                heard.add(topic)
                if topic.startswith(JOB):  # the note on it is spent
                    self._noted_at = float("-inf")
        self.close()
        return set() if self._server.closed else set(self._topics)

    def _is_alive(self, ear: PubSub) -> bool:
        """After a while of silence ask whether the connection lives; without an answer it does not."""
        silence = monotonic() - self._heard_at
        if self._asked:
            return silence <= SLICE_S + self._server.address.timeout
        if silence > SLICE_S:
            ear.ping()
            self._asked = True
        return True

    def _note(self) -> set[str]:
        """Tell Redis whose ends somebody waits for, since one that nobody waits for costs nothing.

        The answer is the topics of jobs that have ended since this was last done, as a note may have been lost.
        """
        topics = set[str]()
        if self._jobs and monotonic() - self._noted_at > AWAITED_S / 2:
            for root, ids in self._jobs.items():
                flat = self._server.run(root, "await", "", int(AWAITED_S), *ids)
                ends = dict(zip(flat[::2], flat[1::2], strict=True))
                topics |= {f"{JOB}{id.decode()}" for id, ended_at in ends.items() if self._ends.get(id) != ended_at}
                self._ends |= ends
            self._noted_at = monotonic()
        return topics
