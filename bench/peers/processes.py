"""The processes of a run: a peer's workers, and its producer."""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.peers.environment import NotThere

GRACE_S = 5.0  #: seconds a process may take to leave by itself


@contextmanager
def started(
    command: list[str], folder: Path, environ: Mapping[str, str], log: Path, **how: Any
) -> Iterator["subprocess.Popen[str]"]:
    """A command in a group of its own, so that whatever it has started goes with it."""
    with log.open("ab") as errors:
        out = {"stdout": errors, **how}
        process = subprocess.Popen(command, cwd=folder, env=environ, stderr=errors, text=True, start_new_session=True, **out)
    try:
        yield process
    finally:
        signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        signal_group(process, signal.SIGKILL)
        process.wait()


def signal_group(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class Producer:
    """A peer's producer; it speaks lines of JSON."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]  # it is a pipe

    def ask(self, do: str, within: float = 120.0, **asked: Any) -> dict[str, Any]:
        """Have it do something. Raises NotThere if it cannot, or takes longer than `within` seconds."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **asked}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NotThere(f"Its producer ended before {do}.") from None
        if not self._selector.select(within):
            raise NotThere(f"Its producer did not end {do} within {within:g} s.")
        line = self._process.stdout.readline()
        if not line:
            raise NotThere(f"Its producer failed at {do}.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def family(pids: list[int]) -> list[int]:
    """These processes and all they have started."""
    found = list(pids)
    for each in found:
        for path in Path(f"/proc/{each}/task").glob("*/children"):
            found += [int(child) for child in path.read_text().split()]
    return found


def memory(pids: list[int]) -> float:
    """Their memory in MB: proportional set size, in which a page shared by n processes counts 1/n for each."""
    total = 0
    for each in family(pids):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def wait_for(what: str, condition: Any, seconds: float) -> None:
    """Raises NotThere when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotThere(f"{what} within {seconds:g} s.")
        time.sleep(0.01)
