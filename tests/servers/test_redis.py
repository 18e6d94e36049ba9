"""The servers that other tests rely on: they come, die, sleep and come back as told, and nothing of them is left."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError, ConnectionError, ResponseError

from tests.servers.fixtures import Servers, StartRedis
from tests.servers.fleets import Sentinels
from tests.servers.processes import is_alive, need, until


def test_a_server_has_its_data_again_after_a_kill(start_redis: StartRedis) -> None:
    # Given a server that syncs each write
    server = start_redis(appendonly=True, appendfsync="always")
    server.command("SET", "key", "value")
    # When it is killed
    server.kill()
    # Then nobody answers, and started again it has what it had, on the same port
    assert not server.answers()
    with pytest.raises(ConnectionError):
        server.command("PING")
    server.start()
    assert server.command("GET", "key") == "value"
    assert "DB loaded from append only file" in server.log


def test_a_server_sleeps_and_wakes(start_redis: StartRedis) -> None:
    server = start_redis()
    server.suspend()
    assert not server.answers()
    server.resume()
    assert server.answers()
    # And one that sleeps can be stopped
    server.suspend()
    server.stop()
    assert not server.running


def test_a_server_started_by_a_thread_outlives_the_thread(start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    assert server.answers()
    assert server.command("PING") == "PONG"


def test_settings_reach_the_server(start_redis: StartRedis) -> None:
    server = start_redis(maxmemory="20mb", appendonly=True)
    wanted = {"maxmemory": "20971520", "maxmemory-policy": "noeviction", "appendonly": "yes", "save": ""}
    assert {name: server.command("CONFIG", "GET", name)[1] for name in wanted} == wanted
    with pytest.raises(ResponseError):
        server.command("NONSENSE")


def test_a_wrong_setting_says_so(start_redis: StartRedis) -> None:
    with pytest.raises(AssertionError, match="Bad directive"):
        start_redis(nonsense=1)


def test_passwords_users_and_tls(start_redis: StartRedis, servers: Servers) -> None:
    simple = start_redis(requirepass="secret", login=("", "secret"))
    assert simple.url == f"redis://:secret@{simple.address}/0"
    assert simple.command("ACL", "WHOAMI") == "default"
    user = ["default off", "app on >p@x ~* &* +@all"]
    strict = start_redis(user=user, login=("app", "p@x"), certificates=servers.certificates)
    assert strict.url.startswith(f"rediss://app:p%40x@{strict.address}/0?ssl_ca_certs=")
    assert strict.command("ACL", "WHOAMI") == "app"
    strict.login = ("app", "wrong")
    with pytest.raises(AuthenticationError):
        strict.command("PING")


def test_keys_are_forgotten_by_prefix(start_redis: StartRedis) -> None:
    server = start_redis()
    # Given more keys than one step of a scan looks at
    words = [word for n in range(3000) for word in (f"a:{n}", 1, f"b:{n}", 1)]
    server.command("MSET", *words)
    # When those of one prefix are forgotten, the others stay
    assert server.forget("a:") == 3000
    assert server.command("DBSIZE") == 3000


def test_a_cluster_is_whole_and_so_again(servers: Servers) -> None:
    cluster = servers.cluster
    holder = cluster.holder("key")
    assert holder.command("SET", "key", "value") == "OK"
    # Another node knows who has it
    other = next(node for node in cluster.nodes if node is not holder)
    with pytest.raises(ResponseError, match=str(holder.port)):
        other.command("GET", "key")


def test_a_replica_takes_over_and_the_old_master_follows(tmp_path: Path) -> None:
    with Sentinels(tmp_path) as fleet:
        old = fleet.master()
        old.command("SET", "key", "value")
        (replica,) = (server for server in fleet.servers if server is not old)
        until("the replica has it", lambda: replica.command("GET", "key") == "value")  # WAIT knows only its own connection
        new = fleet.failover()
        assert new is not old
        assert new.command("GET", "key") == "value"
        assert new.command("SET", "key", "later") == "OK"
        fleet.rejoin()
        assert fleet.master() is new
        assert old.command("GET", "key") == "later"


def test_nothing_outlives_tests_that_are_killed(tmp_path: Path) -> None:
    # Given tests that started a server
    script = (
        "import sys, time; from pathlib import Path; from tests.servers.redis import Redis\n"
        "server = Redis(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    need("redis-server")
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        # When they are killed
        tests.send_signal(signal.SIGKILL)
    # Then the server is gone too
    until("the server is gone", lambda: not is_alive(pid))


def test_a_missing_program_skips_at_home_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install redis-server"):
        need("no-such-program", "redis-server")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception):
        need("no-such-program")
