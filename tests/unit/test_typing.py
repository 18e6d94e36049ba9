"""Type checkers as a user runs them: the examples are clean, and wrong calls to tasks are refused, by mypy and pyright."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARKED = sorted((ROOT / "tests" / "typing").glob("*.py"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty"],
    "pyright": ["-m", "pyright", "--pythonpath", sys.executable],
}


def complaints(checker: str, files: list[Path], cache: Path) -> dict[tuple[str, int], str]:
    """(file name, line) of each error, with what was said."""
    done = subprocess.run(
        [sys.executable, *CHECKERS[checker], *map(str, files)],
        cwd=ROOT,
        env=os.environ | {"MYPY_CACHE_DIR": str(cache), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    found = re.findall(r"^\s*(\S+?\.py):(\d+)(?::\d+)?(?: -|:) error: (.*)$", done.stdout, re.MULTILINE)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert bool(found) == bool(done.returncode), done.stdout + done.stderr  # nothing it said may go unread
    return {(Path(name).name, int(line)): text for name, line, text in found}


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_calls_are_refused_and_right_ones_are_not(checker: str, tmp_path: Path) -> None:
    # Given files in which every wrong line is marked
    marked = {
        (file.name, number)
        for file in MARKED
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.endswith("# error")
    }

    # When the checker reads them
    found = complaints(checker, MARKED, tmp_path)

    # Then it complains of these lines and of no others
    assert marked
    assert {place: found[place] for place in found.keys() - marked} == {}
    assert marked - found.keys() == set()


@pytest.mark.parametrize("checker", CHECKERS)
def test_examples_are_clean(checker: str, tmp_path: Path) -> None:
    # Given the examples that users copy
    assert EXAMPLES

    # When the checker reads them, then it has nothing to say
    assert complaints(checker, EXAMPLES, tmp_path) == {}
