"""Each peer's own environment below build/peers, made once and kept: a venv, or a folder with node_modules."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers.catalog import Peer

HOME: Final = Path("build/peers").absolute()
APPS: Final = Path(__file__).parent / "apps"
FOUND: Final = """
import importlib.metadata, json, sys
versions = {each.name.lower(): each.version for each in importlib.metadata.distributions()}
print(json.dumps(versions | {"python": sys.version.split()[0]}))
"""


class NotThere(Exception):
    """A peer that cannot be measured, and why, in one sentence."""


@dataclass(frozen=True)
class Environment:
    programs: Path  #: folder of its executables
    versions: dict[str, str]  #: of all its packages
    environ: dict[str, str]  #: beside the machine's own

    def command(self, line: str) -> list[str]:
        words = shlex.split(line)
        own = self.programs / words[0]
        return [str(own) if own.exists() else words[0], *words[1:]]


def prepare(peer: Peer) -> Environment:
    """The peer's environment, made if it is not there. Raises NotThere."""
    if not peer.requires:
        return python(Path(sys.executable).parent)
    home = HOME / (peer.home or peer.name)
    stamp = home / "requires"  # what was asked for when it was made
    if not stamp.exists() or stamp.read_text().split() != list(peer.requires):
        home.mkdir(parents=True, exist_ok=True)
        (npm if peer.node else pip)(peer, home)
        stamp.write_text("\n".join(peer.requires) + "\n")
    return node(home) if peer.node else python(home / "venv" / "bin")


def pip(peer: Peer, home: Path) -> None:
    call(home, interpreter(peer), "-m", "venv", "--clear", "venv")
    call(home, "venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *peer.requires)


def interpreter(peer: Peer) -> str:
    """This Python, or a newer one of this machine where the peer needs that. Raises NotThere."""
    if sys.version_info[:2] >= peer.python:
        return sys.executable
    major, oldest = peer.python
    for minor in range(oldest, oldest + 5):
        # pyenv's own first: what it puts into the path may only say that another one is to be chosen
        found = sorted(map(str, Path.home().glob(f".pyenv/versions/{major}.{minor}.*/bin/python")))
        found += filter(None, [shutil.which(f"python{major}.{minor}")])
        for each in found:
            if subprocess.run([each, "-c", "import venv"], capture_output=True).returncode == 0:
                return each
    raise NotThere(f"It needs Python {major}.{oldest} or later, and there is none here.")


def npm(peer: Peer, home: Path) -> None:
    (home / "package.json").write_text('{"private": true}\n')
    call(home, "npm", "install", "--no-audit", "--no-fund", *peer.requires)


def python(programs: Path) -> Environment:
    # not resolved: a venv's python is a link, and finds its packages by where the link is
    answer = subprocess.run([programs / "python", "-c", FOUND], check=True, capture_output=True, text=True)
    return Environment(programs, json.loads(answer.stdout), {"PYTHONPATH": str(APPS)})


def node(home: Path) -> Environment:
    modules = home / "node_modules"
    lock = json.loads((home / "package-lock.json").read_text())
    versions = {
        place.rpartition("node_modules/")[2]: about["version"]
        for place, about in lock["packages"].items()
        if "version" in about
    }
    return Environment(modules / ".bin", versions, {"NODE_PATH": str(modules)})


def call(home: Path, *command: str) -> None:
    """Run one step of a set-up. Raises NotThere with the last thing it said."""
    environ = {**os.environ, "PYTHONPATH": ""}
    try:
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600, env=environ)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotThere(f"It could not be installed: {error}.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise NotThere(f"It could not be installed: {said[-1]}")
