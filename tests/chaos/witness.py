"""What the bodies of tasks wrote down, as runs with a beginning and an end, and the verdict over them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from gotask.backends import Backend
from gotask.model import Filter, Job
from gotask.states import State
from tests.crash.harness import History, check, fetch


@dataclass(slots=True)
class Run:
    """One run of a job's body; times in seconds of the machine's monotonic clock. `ended` is never for one that was killed."""

    job: str
    lease: int
    node: Path
    begun: float
    ended: float = inf


def runs(*witnesses: Path) -> list[Run]:
    """All runs that the witness files of some nodes tell of, by their beginnings."""
    found: list[Run] = []
    for path in witnesses:
        open_runs: dict[tuple[str, str, str], Run] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            what, job, lease, pid, at = line.split()
            if what == "start":
                run = open_runs[job, lease, pid] = Run(job, int(lease), path, int(at) / 1e9)
                found.append(run)
            else:
                open_runs.pop((job, lease, pid)).ended = int(at) / 1e9
    return sorted(found, key=lambda run: run.begun)


def most_at_once(some: Iterable[Run]) -> int:
    """How many of these runs lay over one instant, at most."""
    edges = sorted([(run.begun, 1) for run in some] + [(run.ended, -1) for run in some])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def judge(store: Backend, numbers: dict[str, int], seen: list[Run], repeated: int = 0) -> int:
    """Each job of `numbers` (id -> its number) ended once and well, by a run under its last lease; how many runs were repeated.

    No more than `repeated` may have been, and nothing may have run that nobody sent.
    """
    history = History(Counter(run.job for run in seen), Counter(run.job for run in seen if run.ended < inf), {})
    for run in seen:
        history.leases.setdefault(run.job, []).append(run.lease)
    tally = check(store, list(numbers), numbers, history, repeated)
    ended = {(run.job, run.lease) for run in seen if run.ended < inf}
    for job in fetch(store, list(numbers)).values():
        assert (job.id, job.lease) in ended, f"{job.id} was settled under lease {job.lease}, and no body ended under that"
        assert job.crashes <= repeated, f"{job.id} is held to have crashed {job.crashes} times"
    return tally["repeated"]


def shown(store: Backend) -> Counter[tuple[str, State]]:
    """How many jobs of each queue and state can be found in lists."""
    found: Counter[tuple[str, State]] = Counter()
    page = store.find(Filter(limit=500))
    while True:
        found.update((job.queue, job.status) for job in page.jobs)
        if page.next_cursor is None:
            return found
        page = store.find(Filter(limit=500, cursor=page.next_cursor))


def agreed(store: Backend) -> None:
    """The numbers of a store that is at rest are those of the jobs it shows, and none is left running."""
    found = shown(store)
    assert store.counts() == found
    assert not [queue for queue, state in found if state is State.RUNNING]


def explained(seen: Iterable[Run], faults: Sequence[tuple[float, float]], slack: float) -> int:
    """How many runs were repeated. Each of them must follow one that a fault met: while its job was begun and not yet settled,
    which takes no more than `slack` seconds after its body has ended."""
    repeated = 0
    before: dict[str, Run] = {}
    for run in seen:
        old = before.get(run.job)
        if old is not None:
            repeated += 1
            met = any(old.begun <= healed and broken <= min(old.ended, run.begun) + slack for broken, healed in faults)
            assert met, f"{run.job} was begun again, and no fault met its first run: {old}, then {run}"
        before[run.job] = run
    return repeated


def settled_by(store: Backend, ids: Iterable[str]) -> Counter[str]:
    """How many of these jobs each node's last lease ended, by the name the node was given (`--worker-id`)."""
    return Counter(_node_of(job) for job in fetch(store, list(ids)).values())


def _node_of(job: Job) -> str:
    return (job.worker_id or "").rpartition("-")[0]
