"""The Python of docs/python.md runs as it stands there."""

import asyncio
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gotask.testing import inline

PAGE = Path(__file__).parents[2] / "docs/python.md"


def test_the_python_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the page's blocks: the first ones define tasks, the others use them
    monkeypatch.setenv("GOTASK_STATE_DIR", str(tmp_path / "state"))
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = vars(page)
    for block in blocks[:2]:
        exec(compile(block, str(PAGE), "exec"), names)
    # When the others run, then every job of theirs ends well
    with inline(names["app"]):
        for block in (block for block in blocks[2:] if "app.queue" not in block):
            exec(compile(block, str(PAGE), "exec"), names)
        assert asyncio.run(names["handler"]()) == 3
        assert names["job"].result() == {"sent": "a@b.c"}
        assert [one.result() for one in names["pairs"]] == [3, 7]
        assert names["fetch"].delay(1).result() == "page 1"
        assert names["fetch"].delay(0).state == "CANCELLED"
    # And so do its tests, and what asks a store
    exec(compile(next(block for block in blocks if "app.queue" in block), str(PAGE), "exec"), names)
    names["test_send"]()
    names["test_what_lies_in_a_store"](tmp_path)
