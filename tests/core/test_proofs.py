"""The proofs in C: races, memory, and a death after every instruction. Each has a control that must go red.

RING_FRAMES sets the length of a stress (default 200,000 frames); RING_KILL=1 makes the sweep kill for every step.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

FRAMES = os.environ.get("RING_FRAMES", "200000")
STRESS = "tests/core/stress.c"
SWEEP = "tests/core/sweep.c"
#: tests of the extension itself; the rest compiles C and forks too much to say anything more under a sanitizer
PYTHON_TESTS = ("conftest.py", "test_frames.py", "test_reports.py", "test_deaths.py")


def run(*command: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    words, env = [str(part) for part in command], os.environ | environment
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=3600, check=False)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tsan_finds_no_race(compiled, seed):
    stress = compiled(STRESS, "-O2", "-fsanitize=thread", "-Wno-tsan")
    done = run(stress, FRAMES, 3, seed)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["frames"] == int(FRAMES)


def test_tsan_notices_the_weakened_publish(compiled):
    """The control: silence here would mean that silence above says nothing."""
    stress = compiled(STRESS, "-O2", "-fsanitize=thread", "-Wno-tsan", "-DGT_WEAKEN")
    done = run(stress, "20000", 3, 1)
    assert "data race" in done.stderr
    assert "gt_drain_take" in done.stderr


@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_stress_under_asan_and_ubsan(compiled, sanitizer):
    stress = compiled(STRESS, "-O1", f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
    done = run(stress, FRAMES, 4, 5)
    assert (done.returncode, done.stderr) == (0, "")


def test_stress_as_built(compiled):
    done = run(compiled(STRESS, "-O2"), FRAMES, 4, 11)
    assert (done.returncode, done.stderr) == (0, "")


def swept(program: Path, *words: str) -> dict[str, dict[str, int]]:
    done = run(program, *words)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_sweep_finds_nothing_wedged_lost_or_doubled(compiled, record_property):
    tallies = swept(compiled(SWEEP, "-O2"), *(["kill"] if os.environ.get("RING_KILL") else []))
    points = {name: tally.pop("points") for name, tally in tallies.items()}
    record_property("points", points)
    print(points)
    assert set(map(str, tallies.values())) == {"{'wedged': 0, 'lost': 0, 'double': 0}"}
    # An operation whose instructions were not stepped through proves nothing.
    assert min(points.values()) > 30
    assert points["all"] > 2000


def test_sweep_notices_an_owner_written_after_the_claim(compiled):
    """The control: between claim and owner the slot is taken and nobody's."""
    tallies = swept(compiled(SWEEP, "-O2", "-DGT_CLAIM_TWICE"), "claim")
    assert tallies["claim"]["wedged"] > 0
    assert tallies["claim"]["lost"] > 0


def beside(folder: Path) -> None:
    """A copy of the package and its Python tests, so that the extension in place stays what it is."""
    shutil.copytree(ROOT / "gotask/_core", folder / "gotask/_core", ignore=shutil.ignore_patterns("*.so", "ring.c"))
    (folder / "gotask/__init__.py").touch()
    (folder / "core").mkdir()
    shutil.copy(ROOT / "setup.py", folder)
    for name in (*PYTHON_TESTS, "__init__.py"):
        shutil.copy(ROOT / "tests/core" / name, folder / "core")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("sanitizer", "library"), [("address", "libasan.so"), ("undefined", "libubsan.so")])
def test_extension_under_asan_and_ubsan(tmp_path, sanitizer, library):
    beside(tmp_path)
    built = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tmp_path, GOTASK_SANITIZE=sanitizer)
    assert built.returncode == 0, built.stderr
    watched = {
        "LD_PRELOAD": run("gcc", f"-print-file-name={library}").stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    which = run(sys.executable, "-c", "import gotask._core.ring as r; print(r.__file__)", cwd=tmp_path, **watched)
    assert which.stdout.startswith(str(tmp_path))
    # numpy under a preloaded sanitizer is its own trouble; the one test that needs it looks at cells and no more
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "core", "-k", "not counters"]
    done = run(*tests, cwd=tmp_path, **watched)
    assert done.returncode == 0, done.stdout + done.stderr
