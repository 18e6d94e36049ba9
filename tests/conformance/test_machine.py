"""Random histories against a plain model of what a store must do."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from lab import LEASE_S, Lab, Target, new, ordered

from gotask.model import CRASHES_MAX, Queue, Settlement
from gotask.states import FINISHED, KEEP_S, LIVE, ON_DUE, RULES, Event, State

QUEUES = ("a", "b")
EXAMPLES = 30
#: targets whose statements or script are those of another target; what differs is how they are reached
BY_ANOTHER_WAY = {"redis-sentinel": 10, "postgres-bouncer": 10, "postgres-least": 10}
KEYS = (None, None, None, "k1", "k2")
ENDINGS = (*(event for event, row in RULES.items() if row.sources == (State.RUNNING,)), Event.CANCEL)


@dataclass
class Model:
    """A job as the suite believes it to be."""

    id: str
    queue: str
    priority: int
    key: str | None
    status: State
    place: int
    due: float | None
    expires: float | None
    lease: int = 0
    retries: int = 0
    crashes: int = 0
    stop: bool = False


@dataclass
class World:
    """All jobs, and the counters that order them."""

    jobs: dict[str, Model] = field(default_factory=dict)
    places: int = 0
    lease: int = 0
    leased: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    def place(self) -> int:
        self.places += 1
        return self.places

    def holder(self, key: str | None) -> Model | None:
        return next((j for j in self.jobs.values() if key and j.key == key and j.status in LIVE), None)

    def pick(self, queue: str, n: int, now: float) -> list[Model]:
        """The next of a queue, one in sixteen of them its oldest."""
        mine = [j for j in self.jobs.values() if j.queue == queue]
        ready = [j for j in mine if j.status is State.PENDING and (j.due is None or j.due > now)]
        if self.limits.get(queue):
            n = min(n, self.limits[queue] - sum(j.status is State.RUNNING for j in mine))
        n = max(0, n)
        done = self.leased.get(queue, 0)
        aged = (done + n) // 16 - done // 16
        ordered = sorted(ready, key=lambda j: (-j.priority, j.place))
        rest = sorted(ordered[n - aged :], key=lambda j: j.place)
        picked = ordered[: n - aged] + rest[:aged]
        self.leased[queue] = done + len(picked)
        return sorted(picked, key=lambda j: (-j.priority, j.place))


class Machine(RuleBasedStateMachine):
    """Every rule asks the store and the model the same, and compares."""

    target: Target

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.lab = Lab(self.target, Path(self.folder.name))
        self.world = World()
        self.number = 0

    def teardown(self) -> None:
        self.lab.close()
        self.folder.cleanup()

    def end(self, job: Model, to: State, keep: float | None = None) -> None:
        job.status, job.due = to, self.lab.clock.now + (KEEP_S[to] if keep is None else keep)

    def queue_up(self, job: Model, anew: bool) -> None:
        job.status = State.PENDING
        job.due = None if job.retries or job.crashes else job.expires
        job.place = self.world.place() if anew else job.place

    def some(self, data: st.DataObject, *states: State) -> Model:
        ids = sorted(j.id for j in self.world.jobs.values() if not states or j.status in states)
        return self.world.jobs[data.draw(st.sampled_from(ids))]

    @rule(
        queue=st.sampled_from(QUEUES),
        priority=st.integers(0, 2),
        key=st.sampled_from(KEYS),
        delay=st.sampled_from((None, None, 5.0)),
        expires=st.sampled_from((None, None, 20.0)),
        n=st.sampled_from((1, 3, 20)),
    )
    def enqueue(self, queue: str, priority: int, key: str | None, delay: float | None, expires: float | None, n: int) -> None:
        now, asked, expected = self.lab.clock.now, [], []
        end = None if expires is None else self.lab.at(expires)
        for _ in range(n):
            self.number += 1
            id = f"j{self.number}"
            fields = {"queue": queue, "priority": priority, "unique_key": key, "delay": delay, "expires_at": end}
            asked.append(new(id=id, **fields))
            if (holder := self.world.holder(key)) is not None:
                expected.append(("duplicate", holder.id))
                continue
            until = None if expires is None else now + expires
            status, due = (State.SCHEDULED, now + delay) if delay else (State.PENDING, until)
            self.world.jobs[id] = Model(id, queue, priority, key, status, self.world.place(), due, until)
            expected.append(("created", id))
        assert [(a.outcome, a.job.id) for a in self.lab.store.enqueue_many(asked)] == expected

    @rule(queue=st.sampled_from(QUEUES), n=st.sampled_from((1, 2, 17)))
    def lease(self, queue: str, n: int) -> None:
        picked = self.world.pick(queue, n, self.lab.clock.now)
        got = self.lab.store.lease({queue: n}, "n", LEASE_S)
        assert [job.id for job in got] == [job.id for job in picked]
        assert len({job.lease for job in got}) <= 1
        for job, model in zip(got, picked, strict=True):
            assert job.lease > self.world.lease
            model.status, model.lease, model.due = State.RUNNING, job.lease, self.lab.clock.now + LEASE_S
        if got:
            self.world.lease = got[0].lease

    @precondition(lambda self: self.world.jobs)
    @rule(
        data=st.data(),
        event=st.sampled_from(ENDINGS),
        crashed=st.booleans(),
        due_in=st.sampled_from((None, 3.0)),
        off=st.sampled_from((0, 0, 0, 1)),
        n=st.integers(1, 4),
    )
    def settle(self, data: st.DataObject, event: Event, crashed: bool, due_in: float | None, off: int, n: int) -> None:
        chosen = [self.some(data) for _ in range(n)]
        asked = [Settlement(job.id, job.lease + off, event, due_in, crashed=crashed) for job in chosen]
        held = []
        for job in chosen:
            held.append(job.status is State.RUNNING and not off)
            if held[-1]:
                self.ended(job, event, crashed, due_in)
        assert self.lab.store.settle_many(asked) == held

    def ended(self, job: Model, event: Event, crashed: bool, due_in: float | None) -> None:
        job.crashes += crashed
        job.retries += event is Event.RETRY
        goes_on = RULES[event].to not in FINISHED
        if goes_on and job.stop:
            self.end(job, State.CANCELLED)
        elif event is Event.RELEASE:
            self.queue_up(job, anew=False)
        elif goes_on:
            job.status, job.due = RULES[event].to, self.lab.clock.now + (due_in or 0.0)
        else:
            self.end(job, RULES[event].to, due_in)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.some(data)
        possible = job.status in RULES[Event.CANCEL].sources
        assert self.lab.store.move_many([job.id], Event.CANCEL) == [possible]
        if job.status is State.RUNNING:
            job.stop = True
        elif possible:
            self.end(job, State.CANCELLED)

    @precondition(lambda self: any(j.status in FINISHED for j in self.world.jobs.values()))
    @rule(data=st.data())
    def revive(self, data: st.DataObject) -> None:
        job = self.some(data, *FINISHED)
        possible = job.status in RULES[Event.REVIVE].sources and self.world.holder(job.key) is None
        assert self.lab.store.move_many([job.id], Event.REVIVE) == [possible]
        if possible:
            job.retries = job.crashes = 0
            job.expires, job.stop = None, False
            self.queue_up(job, anew=True)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job = self.some(data)
        assert self.lab.store.drop_many([job.id]) == [job.status is not State.RUNNING]
        if job.status is not State.RUNNING:
            del self.world.jobs[job.id]

    @rule(queue=st.sampled_from(QUEUES), limit=st.sampled_from((0, 2, 5)))
    def limit(self, queue: str, limit: int) -> None:
        self.lab.store.put(Queue(name=queue, max_workers=limit))
        self.world.limits[queue] = limit

    @rule(seconds=st.sampled_from((1.0, 6.0, 31.0, 90_000.0)))
    def time_passes(self, seconds: float) -> None:
        self.lab.advance(seconds)
        now = self.lab.clock.now
        due = [(j.due, int(j.id[1:]), j) for j in self.world.jobs.values() if j.due is not None and j.due <= now]
        promoted: list[Model] = []
        for _, _, job in sorted(due, key=lambda row: row[:2]):  # the longest due first, then as they were accepted
            verb = ON_DUE[job.status].verb
            if verb == "prune":
                del self.world.jobs[job.id]
            elif verb == "expire":
                self.end(job, State.EXPIRED)
            elif verb == "promote" or not self.lapsed(job):
                self.queue_up(job, anew=True)
                promoted.append(job)
        for job in promoted:
            if job.due is not None and job.due <= now:
                self.end(job, State.EXPIRED)  # it woke too late
        self.lab.tick_all()

    def lapsed(self, job: Model) -> bool:
        """Whether a lapse ends it."""
        job.crashes += 1
        if job.stop:
            self.end(job, State.CANCELLED)
        elif job.crashes >= CRASHES_MAX:
            self.end(job, State.FAILED)
        else:
            return False
        return True

    @invariant()
    def store_and_model_agree(self) -> None:
        counted: dict[tuple[str, State], int] = {}
        for job in self.world.jobs.values():
            counted[job.queue, job.status] = counted.get((job.queue, job.status), 0) + 1
        assert self.lab.store.counts() == counted
        stored = self.lab.store.get_many(list(self.world.jobs))
        assert [
            job and (job.id, job.status, job.retry_count, job.crashes, job.lease, job.cancel_requested) for job in stored
        ] == [(j.id, j.status, j.retries, j.crashes, j.lease, j.stop) for j in self.world.jobs.values()]


@ordered
def test_random_histories_agree_with_the_model(target: Target) -> None:
    made = type("MachineOfTarget", (Machine,), {"target": target})
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=BY_ANOTHER_WAY.get(target.name, EXAMPLES),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
