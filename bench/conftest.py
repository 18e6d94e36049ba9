from collections.abc import Callable, Iterator
from functools import cached_property

import pytest

from bench.postgres import SETTINGS
from tests.servers.fixtures import Servers, start_postgres, start_redis
from tests.servers.postgres import Postgres
from tests.servers.storages import backend, storage

__all__ = ["backend", "figure", "servers", "start_postgres", "start_redis", "storage"]
Figure = Callable[[str, float, str, str], None]


class MeasuredServers(Servers):
    @cached_property
    def postgres(self) -> Postgres:
        """As in production; that of the tests is as small as it can be."""
        return self._started.enter_context(Postgres(self._folder / "postgres", **SETTINGS))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers that this session shares."""
    made = MeasuredServers(tmp_path_factory.mktemp("servers"))
    yield made
    made.close()


@pytest.fixture
def figure(benchmark) -> Figure:  # type: ignore[no-untyped-def]  # pytest-benchmark has no types
    """Note a figure for the table: its name, value, unit and budget (a text such as '>= 80,000')."""

    def note(name: str, value: float, unit: str, budget: str) -> None:
        benchmark.extra_info.setdefault("figures", []).append({"name": name, "value": value, "unit": unit, "budget": budget})

    return note
