import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from gotask import backends
from gotask.backends import Backend


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh storage of each kind, as a URL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
        return
    name = f"crash-{uuid4().hex[:8]}"
    yield f"memory://{name}"
    for path in Path(f"/dev/shm/gotask-{os.getuid()}").glob(f"{name}*"):
        path.unlink()


@pytest.fixture
def backend(storage: str) -> Iterator[Backend]:
    opened = backends.open(storage)
    yield opened
    opened.close()
