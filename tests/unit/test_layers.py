"""Imports go downwards only, as drawn in the design: edges, operations, engines, mechanisms, decisions, words."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "gotask"
#: each layer may import those after it, and its own modules; mechanisms may not import each other
LAYERS = (
    ("edges", {"cli", "api", "client", "testing", "builtin", "__main__"}),
    ("operations", {"service", "calls", "queues", "app", "handle"}),
    ("engines", {"node", "scheduler", "ticker", "limits"}),
    ("mechanisms", {"backends", "_core"}),
    ("decisions", {"policy", "task", "context", "cron", "payload", "sentences", "draft", "verdict"}),
    ("words", {"model", "states", "errors", "clock", ""}),
)
#: open to all: they hold no decisions. They import nothing but words, and each other.
BESIDE = {"config", "settings", "log", "metrics"}
RANK = {name: rank for rank, (_, names) in enumerate(LAYERS) for name in names}
#: gotask/__init__.py is the list of public names: it imports from everywhere, and everybody may ask it for the version
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The piece of the house a module belongs to: `node` for gotask.node.arbiter, empty for gotask itself."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """All modules of ours that a file imports, also inside functions; what only a type checker sees does not count."""
    tree = ast.parse(path.read_text())
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                file = ROOT.parent / inner.replace(".", "/")
                found.add(inner if file.with_suffix(".py").exists() or file.is_dir() else node.module or "")
    return {name for name in found if name == "gotask" or name.startswith("gotask.")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    own = part_of(name_of(path))
    assert own in RANK or own in BESIDE, f"{own} has no layer yet: give it one above, and in docs/architecture.md"
    for imported in imports(path):
        other = part_of(imported)
        if own == other or other in BESIDE:
            continue
        if own in BESIDE:
            assert other in dict(LAYERS)["words"], (
                f"{name_of(path)} imports {imported}: what stands beside all knows only words"
            )
        else:
            assert RANK[other] >= RANK[own], f"{name_of(path)} imports {imported}, which lies above it"
            assert RANK[other] != RANK["backends"] or RANK[own] != RANK["backends"], f"{own} and {other} are both mechanisms"


def test_workers_know_no_store() -> None:
    # Given the module that runs in each worker process, and all that it pulls in from its own folder
    seen, todo = set(), {"gotask.node.worker"}
    while todo:
        module = todo.pop()
        seen.add(module)
        found = imports(ROOT.parent / f"{module.replace('.', '/')}.py")
        # Then none of it is a backend: workers claim, run and report, and do no store I/O
        assert not {name for name in found if part_of(name) == "backends"}, f"{module} imports a backend"
        todo |= {name for name in found if name.startswith("gotask.node.")} - seen


def test_the_core_knows_nothing_of_ours() -> None:
    for path in (ROOT / "_core").iterdir():
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi"):
            text = path.read_text()
            bad = [line for line in text.splitlines() if "import" in line and "gotask" in line and "gotask._core" not in line]
            assert not bad, f"{path.name}: {bad}"


def test_c_knows_no_python() -> None:
    for path in (ROOT / "_core").glob("*.h"):
        assert "Python.h" not in path.read_text(), f"{path.name} must also compile without Python"
