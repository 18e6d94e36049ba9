"""The programs on Redis: what they refuse, what they need, and how little they ask when nothing happens."""

import json
import re
import time
from collections.abc import Callable
from typing import Final

import httpx
import pytest

from gotask.backends.redis import script
from tests.e2e.conftest import ROOT, Ground, one_line, until
from tests.servers.fixtures import StartRedis
from tests.servers.redis import Redis

RIGHTS: Final = re.findall(r"^user gotask on >a-long-password (.+)$", (ROOT / "docs/redis.md").read_text(), re.MULTILINE)[0]
USERS: Final = ["default off", "root on >root ~* &* +@all", f"gotask on >pw {RIGHTS}"]
ROOT_LOGIN: Final = ("root", "root")
IDLE_S: Final = 40.0  #: seconds over which an idle system is watched
IDLE_MOST: Final = 60  #: calls a minute, of one server and one node together


EVICTING: Final = {
    "plain": {},
    "CONFIG renamed": {"rename_command": 'CONFIG ""'},
    "CONFIG denied": {"user": USERS, "login": ("gotask", "pw")},
}


@pytest.mark.parametrize("how", EVICTING)
def test_a_redis_that_may_evict_is_refused_at_start(ground: Ground, start_redis: StartRedis, how: str) -> None:
    # Given a server with a policy that deletes keys, also where nobody may ask for its configuration
    server = start_redis(maxmemory_policy="allkeys-lru", maxmemory="64mb", **EVICTING[how])
    # When anything is started on it
    for name, *argv in (("gotask-server",), ("gotask-worker",), ("gotask", "up")):
        done = ground.run(name, *argv, f"-storage={server.url}", code=2)
        # Then it ends, and says what to do
        assert done.stdout == ""
        assert re.fullmatch(
            rf"{name}: Redis at redis://\S+ may delete jobs when its memory is full \(maxmemory-policy allkeys-lru\); set it "
            r"to noeviction: redis-cli config set maxmemory-policy noeviction, and the same in redis\.conf\.",
            one_line(done.stderr),
        )


def test_the_user_with_few_rights_can_run_everything(ground: Ground, start_redis: StartRedis) -> None:
    server = start_redis(user=USERS, login=ROOT_LOGIN, appendonly=True)
    # Given a server and a node that know only that user
    ground.apart(f"redis://gotask:pw@{server.address}/0")
    # When jobs are submitted, awaited, cancelled and retried, and a queue is paused, by command and over REST
    ground.work_every_way()
    assert ground.json("worker", "list")["count"] == 1
    assert ground.get("/api/v1/jobs?status=success")[0] == 200
    assert ground.get("/api/v1/queues")[0] == 200
    assert ground.json("doctor")
    # Then nothing was refused but the question for appendfsync
    entries = [dict(zip(one[::2], one[1::2], strict=True)) for one in server.command("ACL", "LOG")]
    assert {entry["object"] for entry in entries} <= {"config|get"}


def test_doctor_knows_redis(ground: Ground, start_redis: StartRedis) -> None:
    def findings(server: Redis, code: int | None = None) -> dict[str, tuple[str, str]]:
        found = json.loads(ground.gotask("doctor", "--json", f"-storage={server.url}", code=code))
        return {one["what"]: (one["verdict"], one["says"]) for one in found}

    good = findings(start_redis(appendonly=True, maxmemory="64mb"))
    assert {good[what][0] for what in ("storage", "redis", "policy", "persistence", "round trip", "clock", "memory")} == {"ok"}
    assert good["storage"][1].startswith("redis://127.0.0.1:")
    assert good["policy"][1] == "noeviction"
    assert good["persistence"][1] == "append-only file, 0 replicas"
    assert re.fullmatch(r"[\d.]+ ms", good["round trip"][1])
    assert re.fullmatch(r"[\d.]+ s (ahead of|behind) this machine", good["clock"][1])
    assert re.fullmatch(r"[\d.]+ MiB used of 64\.0 MiB", good["memory"][1])
    poor = findings(start_redis(maxmemory="1500kb", maxmemory_policy="volatile-lru"), code=1)
    assert (poor["storage"][0], poor["policy"][0]) == ("bad", "bad")
    assert poor["policy"][1] == "volatile-lru may delete jobs: redis-cli config set maxmemory-policy noeviction"
    assert poor["persistence"] == (
        "warn",
        "no append-only file, so a crash of Redis loses jobs: set 'appendonly yes'",
    )
    away = start_redis()
    away.kill()
    gone = findings(away, code=1)
    assert gone["storage"][0] == "bad"
    assert "redis" not in gone


def few_replicas(server: Redis, ill: bool) -> None:
    server.command("CONFIG", "SET", "min-replicas-to-write", int(ill))


def no_disk(server: Redis, ill: bool) -> None:
    """A folder stands where the snapshot should be, which not even root can write over."""
    place = server.folder / "dump.rdb"
    if ill:
        place.unlink(missing_ok=True)
        place.mkdir()
    else:
        place.rmdir()
    server.command("BGSAVE")
    verdict = "err" if ill else "ok"
    until("it is known", lambda: server.facts("INFO", "persistence")["rdb_last_bgsave_status"] == verdict)


@pytest.mark.parametrize(
    ("fall", "why"),
    [(few_replicas, "fewer replicas in step than"), (no_disk, "cannot write its files")],
    ids=["replicas", "disk"],
)
def test_a_server_on_a_redis_that_takes_no_writes_is_not_ready(
    ground: Ground, start_redis: StartRedis, fall: Callable[[Redis, bool], None], why: str
) -> None:
    # Given a server on a Redis that answers, and takes no writes
    redis = start_redis(save="3600 1000000")
    server = ground.start("gotask-server", f"-storage={redis.url}")
    until("the server", lambda: ground.get("/ready")[0] == 200)
    fall(redis, True)
    # When a job is refused, by name
    answer = httpx.post(f"{ground.url}/api/v1/jobs", json={"type": "echo"})
    assert (answer.status_code, why in answer.json()["detail"]) == (503, True)
    # Then it is not ready, and says why
    status, body = ground.get("/ready")
    assert (status, why in body["detail"]) == (503, True)
    # And it is, once a job is taken
    fall(redis, False)
    until("it takes jobs", lambda: httpx.post(f"{ground.url}/api/v1/jobs", json={"type": "echo"}).status_code == 201)
    assert ground.get("/ready")[0] == 200
    assert server.stop() == 0


@pytest.mark.timeout(180)
def test_an_idle_system_asks_little(ground: Ground, start_redis: StartRedis) -> None:
    # Given a server and a node that have worked, and have nothing to do
    server = start_redis(appendonly=True)
    ground.apart(server.url)
    assert ground.json("job", "submit", "echo", "--wait")["status"] == "SUCCESS"
    time.sleep(5.0)
    # When nothing happens for a while
    before = asked(server)
    time.sleep(IDLE_S)
    after = asked(server)
    # Then Redis is called about once a second at most
    calls = {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}
    calls["info"] -= 1  # ours
    a_minute = sum(calls.values()) * 60 / IDLE_S
    assert a_minute <= IDLE_MOST, calls
    print(f"\nidle: {a_minute:.0f} calls a minute, {calls}")


def asked(server: Redis) -> dict[str, int]:
    """How often each command was called from outside the script."""
    inside = {word.lower() for word in re.findall(r"(?:call|in_pieces)\('([A-Z]+)'", script.TEXT)}
    found = server.facts("INFO", "commandstats")
    stats = {name.removeprefix("cmdstat_"): int(text.split(",")[0].removeprefix("calls=")) for name, text in found.items()}
    return {name: calls for name, calls in stats.items() if name not in inside}
