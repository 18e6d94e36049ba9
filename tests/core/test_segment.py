"""The mapping: its size, its refusals, what a fork does to it, and what the stub says of the module."""

import ast
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gotask._core import ring

from .conftest import ROOT, frame


def in_child(body) -> int:
    """The exit status of `body` in a forked child; 99 when it raised."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(body() or 0)
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_stub_says_what_the_module_has():
    tree = ast.parse(Path(ring.__file__).with_name("ring.pyi").read_text())
    names = {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    names |= {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    (segment,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Segment"]
    methods = {node.name for node in segment.body if isinstance(node, ast.FunctionDef)} - {"__init__"}
    borrowed = {"NamedTuple", "os", "weakref", "Counters", "Pieces"}
    assert {name for name in dir(ring) if not name.startswith("_")} - borrowed == names
    assert {name for name in dir(ring.Segment) if not name.startswith("_")} == methods


def test_memory_orders_are_named_in_one_file_only():
    guilty = [path.name for path in (ROOT / "gotask").rglob("*.[hc]") if "memory_order_" in path.read_text()]
    assert set(guilty) - {"ring.c"} == {"atomic.h"}


def test_what_python_does_not_reach_knows_no_python():
    assert not [path.name for path in (ROOT / "gotask/_core").glob("*.h") if "Python.h" in path.read_text()]


def test_setup_rebuilds_for_each_header():
    text = (ROOT / "setup.py").read_text()
    assert not [path.name for path in (ROOT / "gotask/_core").glob("*.h") if path.name not in text]


def test_the_file_is_sealed_and_full(segment):
    assert os.fstat(segment.fileno()).st_blocks * 512 >= segment.size
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fileno(), 0)


def test_more_than_the_machine_has_is_refused_with_a_sentence():
    with pytest.raises(MemoryError, match=r"needs \d+ bytes and the (system|cgroup) has \d+ left; use fewer"):
        ring.Segment(slots=1, workers=1, blocks=1 << 20, block_bytes=1 << 26)


def test_a_refusal_of_the_system_is_a_sentence_too():
    """RLIMIT_FSIZE makes posix_fallocate fail, as a full tmpfs does."""

    def body() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            ring.Segment(slots=1024, workers=1)
        except MemoryError as error:
            return 0 if "refuses them (File too large)" in str(error) else 1
        return 2

    assert in_child(body) == 0


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"slots": 1 << 30}, {"workers": 0}, {"slot_bytes": 1}, {"blocks": -1}])
def test_an_impossible_shape_names_its_member(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ring.Segment(**{"slots": 8, "workers": 1} | wrong)


def test_a_closed_segment_says_so():
    closed = ring.Segment(slots=1, workers=1)
    closed.close()
    closed.close()
    for call in (closed.check, closed.forget, closed.fileno, lambda: closed.put_many([frame()]), lambda: closed.enlist(0)):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_child_shares_it_and_its_garbage_takes_nothing_away():
    segment = ring.Segment(slots=8, workers=1)
    worker = segment.enlist(0)
    segment.put_many([frame(b"for the child")])

    def body() -> int:
        nonlocal segment
        got = segment.claim(worker, True, 10.0)
        segment.report(worker, got.ticket, 1, got.body, True)
        segment.close()
        segment = None
        return 0

    assert in_child(body) == 0
    assert [report.body for report in segment.drain(10)] == [b"for the child"]


def test_what_a_task_forks_cannot_touch_it(segment):
    """After keep_from_children, use in a grandchild is an error, not a crash."""

    def grandchild() -> int:
        try:
            segment.check()
        except ValueError:
            return 0
        return 1

    def body() -> int:
        segment.keep_from_children()
        assert segment.check()["free"] == 8
        return in_child(grandchild)

    assert in_child(body) == 0


def test_a_signal_ends_a_wait():
    program = (
        "import signal\n"
        "from gotask._core import ring\n"
        "segment = ring.Segment(slots=1, workers=1)\n"
        "owner = segment.enlist(0)\n"
        "signal.signal(signal.SIGALRM, lambda *_: print('heard', flush=True))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "print(segment.claim(owner, True, 60.0))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.split() == ["heard", "None"]


def test_a_child_dies_with_its_parent():
    """The grandchild holds the pipe's only writing end: the end of file is its death."""
    reading, writing = os.pipe()

    def body() -> int:
        parent = os.getpid()
        if os.fork() == 0:
            ring.die_with_parent(parent)
            os.write(writing, b"!")
            while True:
                signal.pause()
        os.close(writing)
        assert os.read(reading, 1) == b"!"
        return 0

    assert in_child(body) == 0
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_parent_already_gone_is_told():
    with pytest.raises(ProcessLookupError, match="leave at once"):
        ring.die_with_parent(1 if os.getppid() != 1 else 2)


def test_the_layout_has_a_version():
    text = (ROOT / "gotask/_core/segment.h").read_text()
    assert int(re.search(r"GT_LAYOUT (\d+)", text)[1]) == ring.LAYOUT
    assert (ring.RINGS, ring.ALONE) == (11, 10)
