"""Where an embedded store lives. Of this storage alone, because only it has files with paths, modes and owners."""

import os
import stat
from pathlib import Path

import pytest
from lab import new

from gotask.backends import memory, open
from gotask.errors import NotConfigured


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GOTASK_STATE_DIR", str(tmp_path / "a" / "state"))
    return tmp_path / "a" / "state"


@pytest.mark.parametrize(("url", "file"), [("sqlite", "default"), ("sqlite://", "default"), ("sqlite://mine", "mine")])
def test_named_files_are_private_in_the_state_folder(state: Path, url: str, file: str) -> None:
    # When a store is opened by name and used
    store = open(url)
    store.enqueue_many([new()])
    # Then its folder is 0700 and every file of it 0600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
    assert {f"{file}.db", f"{file}.db-wal", f"{file}.db-bell"} <= made.keys()
    assert set(made.values()) == {0o600}
    store.close()


def test_the_state_folder_follows_the_users_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOTASK_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    open("sqlite").close()
    assert (tmp_path / "gotask" / "default.db").is_file()
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    open("sqlite").close()
    assert (tmp_path / "home/.local/state/gotask/default.db").is_file()


def test_three_slashes_are_relative_and_four_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open("sqlite:///here.db").close()
    open(f"sqlite:////{str(tmp_path).lstrip('/')}/there.db").close()
    assert (tmp_path / "here.db").is_file()
    assert (tmp_path / "there.db").is_file()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///jobs.db?timout=3", "did you mean 'timeout'"),
        ("sqlite:///jobs.db?timeout=soon", "seconds between"),
        ("sqlite://dir/jobs.db", "two slashes"),
        ("sqlite:////nowhere/at/all/jobs.db", "not there"),
        ("sqlite:////tmp", "names a folder"),
        ("sqlite://..", "other characters"),
        ("memory://a/b", "has a path"),
        ("memory://a b", "other characters"),
        ("memory://x?sync=off", "unknown parameter 'sync'"),
    ],
)
def test_a_wrong_url_is_told_what_is_wrong(url: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotConfigured, match=says):
        open(url)


@pytest.mark.parametrize("trap", ["symlink", "open to others", "a file"])
def test_a_folder_that_is_not_ours_alone_is_refused(tmp_path: Path, state: Path, trap: str) -> None:
    state.parent.mkdir()
    if trap == "symlink":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        state.symlink_to(tmp_path / "elsewhere")
    elif trap == "a file":
        state.touch(0o600)
    else:
        state.mkdir()
        state.chmod(0o770)
    with pytest.raises(NotConfigured, match="0700"):
        open("sqlite")


def test_memory_is_private_and_shared_by_name() -> None:
    name = f"t-{os.getpid()}"
    one, two = memory.open(f"memory://{name}"), memory.open(f"memory://{name}")
    one.enqueue_many([new(id="j")])
    assert two.get_many(["j"])[0] is not None
    folder = Path(f"/dev/shm/gotask-{os.geteuid()}")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    one.close()
    two.close()
    for path in folder.glob(f"{name}.*"):
        path.unlink()
