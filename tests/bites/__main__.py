"""`make bites`: plant one bug after another and demand red. `python -m tests.bites WORD…` picks those with the words in it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tests.bites import planted, planted_complete, planted_postgres, planted_redis
from tests.bites.planted import Bite

ROOT = Path.cwd()
RED = 1  #: pytest's exit code for tests that failed; any other means that they did not run


def copy(to: Path) -> None:
    """The project as it stands, with the built extension."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True)
    for name in [*listed.stdout.splitlines(), *(str(path.relative_to(ROOT)) for path in ROOT.glob("gotask/_core/*.so"))]:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def plant(bite: Bite, folder: Path) -> None:
    path = folder / bite.path
    text = path.read_text()
    if text.count(bite.old) != 1:
        raise SystemExit(f"{bite.name!r}: {bite.path} has its place {text.count(bite.old)} times; it must be there once.")
    path.write_text(text.replace(bite.old, bite.new))
    if bite.path.startswith("gotask/_core"):
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, check=True, capture_output=True
        )


def notices(bite: Bite) -> tuple[bool, str]:
    """Whether the tests turned red, and the end of what they said."""
    with tempfile.TemporaryDirectory(prefix="bite-") as name:
        folder = Path(name)
        copy(folder)
        plant(bite, folder)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *bite.tests.split()]
        env = {**os.environ, "PYTHONPATH": str(folder), "CRASH_SCALE": "0.2"}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        return done.returncode == RED, done.stdout[-2000:] + done.stderr[-1000:]


def main(words: list[str]) -> int:
    chosen = [
        bite
        for bite in (*planted.BITES, *planted_redis.BITES, *planted_complete.BITES, *planted_postgres.BITES)
        if all(word in bite.name for word in words)
    ]
    missed = []
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as progress:
        bar = progress.add_task("", total=len(chosen))
        for bite in chosen:
            progress.update(bar, description=bite.name)
            noticed, said = notices(bite)
            progress.console.print(f"{'red  ' if noticed else '[bold]GREEN[/bold]'} {bite.name}", highlight=False)
            if not noticed:
                missed.append(bite.name)
                print(said, file=sys.stderr)
            progress.advance(bar)
    print(f"{len(chosen) - len(missed)} planted bugs noticed, {len(missed)} missed.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
