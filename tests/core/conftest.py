"""A small segment, a worker in it, and C programs compiled as a test asks for them."""

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gotask._core import ring

ROOT = Path(__file__).parents[2]


def frame(body: bytes = b"x", priority: int = 1, limit: float = 0.0, grace: float = 0.0) -> ring.Frame:
    return ring.Frame(body, priority, limit, grace, math.inf)


@pytest.fixture
def segment() -> Iterator[ring.Segment]:
    made = ring.Segment(slots=8, workers=2, slot_bytes=256, report_bytes=4096, blocks=8, block_bytes=4096)
    yield made
    made.close()


@pytest.fixture
def worker(segment: ring.Segment) -> int:
    return segment.enlist(0)


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., Path]:
    """Compiles a C file against the ring's headers: the very text that the extension is made of."""
    if shutil.which("gcc") is None:
        if os.environ.get("CI"):
            pytest.fail("gcc is missing; in CI these proofs must run")
        pytest.skip("gcc is missing: the proofs in C were not run")

    def build(source: str, *flags: str) -> Path:
        program = tmp_path / "program"
        command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", f"-I{ROOT / 'gotask/_core'}", *flags]
        subprocess.run([*command, str(ROOT / source), "-o", str(program), "-lpthread"], check=True)
        return program

    return build
