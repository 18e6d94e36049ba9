from collections.abc import Callable

import pytest

from tests.servers.fixtures import servers, start_redis
from tests.servers.storages import backend, storage

__all__ = ["backend", "figure", "servers", "start_redis", "storage"]
Figure = Callable[[str, float, str, str], None]


@pytest.fixture
def figure(benchmark) -> Figure:  # type: ignore[no-untyped-def]  # pytest-benchmark has no types
    """Note a figure for the table: its name, value, unit and budget (a text such as '>= 80,000')."""

    def note(name: str, value: float, unit: str, budget: str) -> None:
        benchmark.extra_info.setdefault("figures", []).append({"name": name, "value": value, "unit": unit, "budget": budget})

    return note
