import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from gotask import backends
from gotask.backends import Backend

Figure = Callable[[str, float, str, str], None]


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
        return
    name = f"bench-{uuid4().hex[:8]}"
    yield f"memory://{name}"
    for path in Path(f"/dev/shm/gotask-{os.getuid()}").glob(f"{name}*"):
        path.unlink()


@pytest.fixture
def backend(storage: str) -> Iterator[Backend]:
    opened = backends.open(storage)
    yield opened
    opened.close()


@pytest.fixture
def figure(benchmark) -> Figure:  # type: ignore[no-untyped-def]  # pytest-benchmark has no types
    """Note a figure for the table: its name, value, unit and budget (a text such as '>= 80,000')."""

    def note(name: str, value: float, unit: str, budget: str) -> None:
        benchmark.extra_info.setdefault("figures", []).append({"name": name, "value": value, "unit": unit, "budget": budget})

    return note
