"""Which storages the suite runs on.

    pytest tests/conformance                                   every storage of this package
    pytest tests/conformance --backend=sqlite                  one of them
    pytest tests/conformance --backend=pkg.mod:open --backend-url='mine://localhost/{name}'      one of yours

The opener is called as `open(url, clock=...)`; `clock` returns the seconds since the epoch that the store must judge due
times by. `{name}` is replaced by a new name for each test and `{folder}` by an empty folder. A test that a storage cannot
meet by its nature is marked `skip_backend(name, reason)`. The servers that this package's storages need are started here;
one that is not installed, or does not answer, skips at home and fails in CI.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import KNOWN, Lab, Target

from gotask.errors import BackendDown
from tests.servers.fixtures import Servers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", default=[], help="a scheme, or package.module:function")
    parser.addoption("--backend-url", default="", help="URL of a fresh store, with {name} and {folder}")


def _targets(config: pytest.Config) -> list[Target]:
    chosen: list[str] = config.getoption("--backend", default=[]) or list(KNOWN)
    url: str = config.getoption("--backend-url", default="")
    return [KNOWN[name] if name in KNOWN else Target.of(name, url) for name in chosen]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        targets = _targets(metafunc.config)
        metafunc.parametrize("target", targets, ids=[target.name for target in targets], indirect=True, scope="session")


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, servers: Servers) -> Target:
    """The storage under test, with the servers that it needs, started now if no test needed them before."""
    asked: Target = request.param
    url = asked.url
    for place in ("redis", "cluster", "sentinels", "postgres", "pgbouncer"):
        if f"{{{place}}}" in url:
            url = url.replace(f"{{{place}}}", getattr(servers, place).url)
    return asked._replace(url=url)


@pytest.fixture(autouse=True)
def _stated_difference(request: pytest.FixtureRequest) -> None:
    if "target" in request.fixturenames:
        name = request.node.callspec.params["target"].name  # not the fixture, which would start a server
        for mark in request.node.iter_markers("skip_backend"):
            if mark.args[0] == name:
                pytest.skip(mark.args[1])


@pytest.fixture
def lab(target: Target, tmp_path: Path) -> Iterator[Lab]:
    """A fresh, empty store, its clock, and further connections to it."""
    try:
        made = Lab(target, tmp_path)
    except BackendDown as e:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{target.name} does not answer: {e}")
    yield made
    made.close()
