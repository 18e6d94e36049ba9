"""What is published works: wheel and sdist, each in an empty environment outside the checkout, with a job run end to end."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
from gotask import GoTask

app = GoTask("sqlite:///{folder}/jobs.db")


@app.task
def double(n: int) -> int:
    return 2 * n


if __name__ == "__main__":
    print(double.delay(n=21).id)
"""


def run(*argv: str, cwd: Path, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GOTASK_", "PYTHON"))}
    env["GOTASK_STATE_DIR"] = str(cwd / "state")
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives, built from what git knows plus what is not ignored, so that nothing lying about gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = run("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=source)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.mark.timeout(900)
@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_an_installed_package_runs_a_job(dist: Path, pattern: str, tmp_path: Path) -> None:
    # Given an empty environment into which only the archive was installed
    (archive,) = dist.glob(pattern)
    venv.create(tmp_path / "env", with_pip=True)
    bin = tmp_path / "env" / "bin"
    # not compiled, for most of what is installed is never imported here
    installed = run(
        str(bin / "python"), "-m", "pip", "install", "-q", "--no-compile", f"{archive}[server]", cwd=tmp_path, timeout=600
    )
    if installed.returncode != 0 and not os.environ.get("CI"):
        unreachable = ("Connection", "No matching distribution", "Temporary failure", "timed out")
        if any(word in installed.stderr for word in unreachable):
            pytest.skip("pip cannot reach an index")
    assert installed.returncode == 0, installed.stderr
    # When a program enqueues a job and a worker runs what there is
    (tmp_path / "program.py").write_text(PROGRAM.format(folder=tmp_path))
    enqueued = run(str(bin / "python"), "program.py", cwd=tmp_path)
    assert enqueued.returncode == 0, enqueued.stderr
    id, storage = enqueued.stdout.strip(), f"-storage=sqlite:///{tmp_path}/jobs.db"
    worked = run(str(bin / "gotask-worker"), "-A", "program:app", "--burst", "-c1", "-health-port=0", storage, cwd=tmp_path)
    assert worked.returncode == 0, worked.stderr
    # Then it is done, and nothing of the checkout was used
    shown = run(str(bin / "gotask"), "job", "show", id, "--json", storage, cwd=tmp_path)
    assert '"result":42' in shown.stdout, shown.stdout + shown.stderr
    where = run(str(bin / "python"), "-c", "import gotask; print(gotask.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(tmp_path))
    # And the other programs start
    for name in ("gotask", "gotask-server", "gotask-worker"):
        assert run(str(bin / name), "--version", cwd=tmp_path).stdout.startswith("gotask ")
    found = run(str(bin / "gotask"), "doctor", storage, "-http-port=1", "-metrics-port=0", "-health-port=0", cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
