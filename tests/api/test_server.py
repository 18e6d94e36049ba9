"""The server as a process: who may reach it, slow and waiting clients, metrics, starting and stopping."""

import hashlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from conftest import storage_url
from served import ROOT, Server, answer_of, free_ports, read_all, until

from gotask import backends, client
from gotask.calls import CALLS
from gotask.errors import BackendDown, NotConfigured, Unauthorized
from gotask.model import NewJob, Settlement
from gotask.states import Event

JOBS = "/api/v1/jobs"


def test_half_sent_requests_block_nobody_and_end(server: Server) -> None:
    # Given twenty-five requests whose headers never end, and twenty-five whose bodies do not
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    began = time.monotonic()
    peers = [server.connect() for _ in range(50)]
    for number, peer in enumerate(peers):
        peer.sendall(head if number % 2 else head + b'Content-Length: 100\r\n\r\n{"type":')
    waiting = selectors.DefaultSelector()
    for peer in peers:
        waiting.register(peer, selectors.EVENT_READ)
    before = server.stored()
    answers: list[bytes] = []
    served = slowest = 0.0
    # When others are served meanwhile
    while waiting.get_map():
        sent = time.monotonic()
        assert server.post(JOBS, {"type": "echo"}).status_code == 201
        served, slowest = served + 1, max(slowest, time.monotonic() - sent)
        for key, _ in waiting.select(0.2):
            peer = key.fileobj
            assert isinstance(peer, socket.socket)
            waiting.unregister(peer)
            answers.append(read_all(peer))
            peer.close()
        # Then none of the half-sent ones lives longer than half a minute
        assert time.monotonic() - began < 30
    # And nobody waited for them, each was told what was missing, and nothing of theirs is stored
    assert slowest < 1.0
    assert len(answers) == 50
    assert {answer.split(b" ", 2)[1] for answer in answers} == {b"408"}
    assert server.stored() == before + served


def test_a_trickle_is_no_request(server: Server) -> None:
    # Given a client that sends a byte of its headers now and then, so that it is never quite silent
    began = time.monotonic()
    with server.connect() as peer:
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        peer.settimeout(0.5)
        answer = b""
        while not answer:
            try:
                answer = peer.recv(65_536)
            except TimeoutError:
                peer.sendall(b"x")
            # Then it is cut off in time all the same
            assert time.monotonic() - began < 30
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_requests_in_a_row_share_a_connection(server: Server) -> None:
    # Given two requests sent at once over one connection, the second the last
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    # Then both are answered
    assert server.raw(one + b"\r\n" + one + b"Connection: close\r\n\r\n").count(b'{"status":"ok"}') == 2


def test_a_thousand_long_polls_block_nobody(server: Server) -> None:
    # Given a job, and a thousand clients that wait for its end or for another's
    for id in ("awaited", "never"):
        server.post(JOBS, {"type": "echo", "id": id, "queue": f"q-{id}"})
    peers = [server.connect() for _ in range(1000)]
    for number, peer in enumerate(peers):
        id = "never" if number % 2 else "awaited"
        peer.sendall(f"GET {JOBS}/{id}/wait?timeout=20 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    # When a job is created meanwhile, then it is answered at once
    began = time.monotonic()
    assert server.post(JOBS, {"type": "echo"}).status_code == 201
    assert time.monotonic() - began < 2.0
    # When the first ends, then those who waited for it are told long before their time, and only they
    assert server.client.post(f"{JOBS}/awaited/cancel").status_code == 200
    for peer in peers[::2]:
        assert b'"CANCELLED"' in answer_of(peer)
    assert time.monotonic() - began < 10.0
    peers[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        peers[1].recv(1)
    for peer in peers:
        peer.close()


def test_each_of_many_long_polls_hears_of_its_own_job(server: Server) -> None:
    # Given three hundred jobs that run, and a client for each, so many that no thread can listen for all of them
    store = backends.open(f"sqlite:///{server.log.parent}/jobs.db")
    ids = [f"own-{number}" for number in range(300)]
    store.enqueue_many([NewJob(type="echo", id=id, queue="own") for id in ids])
    leased = {job.id: job for job in store.lease({"own": 300}, "node-1", 60.0)}
    peers = {id: server.connect() for id in ids}
    for id, peer in peers.items():
        peer.sendall(f"GET {JOBS}/{id}/wait?timeout=25 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert server.client.get("/ready").status_code == 200
    # When they end one after the other
    began = time.monotonic()
    for id in ids:
        store.settle_many([Settlement(id, leased[id].lease, Event.ACK, due_in=60.0)])
        # Then each client hears of it
    for id, peer in peers.items():
        answer = answer_of(peer)
        assert b'"SUCCESS"' in answer
        assert id.encode() in answer
        peer.close()
    assert time.monotonic() - began < 15.0
    store.close()


def test_metrics_have_a_port_of_their_own(server: Server) -> None:
    # Given a job of a type
    server.post(JOBS, {"type": "counted", "queue": "counting"})
    # When the page is asked for
    page = httpx.get(f"http://127.0.0.1:{server.metrics}/metrics")
    # Then it has what the store knows and what was counted
    assert page.status_code == 200
    for line in (
        'taskqueue_queue_length{queue="counting"} 1.0',
        'taskqueue_queue_jobs{queue="counting",state="PENDING"} 1.0',
        'taskqueue_queue_paused{queue="counting"} 0.0',
        'taskqueue_jobs_created_total{queue="counting",type="counted"} 1.0',
        "taskqueue_workers_active 0.0",
        'taskqueue_build_info{version="',
        "taskqueue_system_uptime_seconds ",
    ):
        assert line in page.text
    # And that port serves health checks and nothing else, and the other no metrics
    assert httpx.get(f"http://127.0.0.1:{server.metrics}/health").status_code == 200
    assert httpx.get(f"http://127.0.0.1:{server.metrics}{JOBS}").status_code == 404
    assert server.client.get("/metrics").status_code == 404


def test_the_api_describes_itself(server: Server) -> None:
    # When the description is asked for
    page = server.client.get("/api/v1/openapi.json").json()
    # Then it has each operation with its scope, and the answers' fields
    assert page["openapi"] == "3.1.0"
    told = {op["operationId"]: op["x-scope"] for path in page["paths"].values() for op in path.values()}
    assert told == {name: call.scope for name, call in CALLS.items()}
    assert "attempts" in page["components"]["schemas"]["Job"]["properties"]
    parameters = {one["name"] for one in page["paths"]["/api/v1/jobs"]["get"]["parameters"]}
    assert {"queue", "status", "limit", "cursor"} <= parameters
    # And health checks can be asked by HEAD, as load balancers do
    assert server.client.head("/health").status_code == 200


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_keys_open_what_their_role_may(tmp_path: Path) -> None:
    # Given a server that others can reach, with a key for each role
    roles = ("read", "enqueue", "operate", "admin")
    keys = ",".join(f"{role}-key:{role}:{sha(role)}" for role in roles)
    server = Server(tmp_path, storage_url("sqlite", tmp_path), "-http-addr", "0.0.0.0", GOTASK_API_KEYS=keys).ready()
    try:
        # When each calls each operation
        path = {"id": "nobody", "name": "nobody"}
        for call in CALLS.values():
            for rank, role in enumerate(roles):
                answer = server.client.request(
                    call.verb,
                    call.path.format(**path),
                    headers={"Authorization": f"Bearer {role}"},
                    json={} if call.body else None,
                )
                # Then it is let through exactly if its role has the scope
                needed = 0 if call.scope == "public" else roles.index(call.scope)
                assert (answer.status_code == 403) is (rank < needed), f"{role} {call.name}: {answer.text}"
        # And without a key, or with a wrong one, only health answers
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic admin"}):
            assert server.client.get("/ready", headers=headers).status_code == 200
            answer = server.client.get(JOBS, headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert httpx.get(f"http://127.0.0.1:{server.metrics}/metrics", headers=headers).status_code == 401
        # And the client sends its key
        with closing(client.open(server.url, "enqueue")) as door:
            assert door.create_job(NewJob(type="echo")).id
            with pytest.raises(Unauthorized, match="role enqueue"):
                door.delete_job("x")
        with closing(client.open(server.url, "wrong")) as door, pytest.raises(Unauthorized, match="not known"):
            door.metrics()
    finally:
        assert server.stop() == 0


def test_who_cannot_start_says_why_at_once(tmp_path: Path) -> None:
    # Given a port that somebody else has
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            ({"http_port": port}, "in use"),
            ({"metrics_port": port}, "in use"),
            ({"http_addr": "203.0.113.7", "allow_anonymous": True}, "203.0.113.7"),
            ({"http_addr": "0.0.0.0"}, "GOTASK_API_KEYS"),
            ({"api_keys": ("name:nobody:abc",)}, "name:role:sha256"),
            ({"storage": "sqlite:////no/such/folder/jobs.db"}, "/no/such/folder"),
        ]
        for settings, word in cases:
            # When a server is started with it
            began = time.monotonic()
            done = serve(tmp_path, settings)
            # Then it ends quickly, with code 1 and one sentence
            assert time.monotonic() - began < 5.0
            assert done.returncode == 1, done.stderr
            assert word in done.stderr
            assert "Traceback" not in done.stderr


def serve(folder: Path, settings: dict[str, object]) -> "subprocess.CompletedProcess[str]":
    """Run the server without the command's own checks."""
    http, metrics = free_ports(2)
    given = {"storage": f"sqlite:///{folder}/jobs.db", "http_port": http, "metrics_port": metrics} | settings
    code = (
        "from gotask import log; from gotask.api import wsgi; from gotask.settings import ServerSettings; "
        f"log.configure('warning'); raise SystemExit(wsgi.serve(ServerSettings(**{given!r})))"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=30)


def test_stopping_lets_those_who_wait_go(tmp_path: Path) -> None:
    # Given a server with a client that waits for a job
    server = Server(tmp_path, storage_url("sqlite", tmp_path)).ready()
    server.post(JOBS, {"type": "echo", "id": "slow"})
    with server.connect() as peer:
        peer.sendall(f"GET {JOBS}/slow/wait?timeout=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert server.client.get("/ready").status_code == 200
        # When it is told to stop
        began = time.monotonic()
        assert server.stop() == 0, server.output
        # Then it does so soon, and the client has the job as it is
        assert time.monotonic() - began < 10.0
        assert b'"PENDING"' in read_all(peer)


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    # Given a server
    server = Server(tmp_path, storage_url("sqlite", tmp_path)).ready()

    def processes() -> set[int]:
        text = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
        return {int(word) for word in text.split()}

    (before,) = processes()
    # When the process that answers is killed
    os.kill(before, signal.SIGKILL)
    # Then another takes its place
    until("a new process", lambda: processes() - {before})
    server.ready()
    # When the arbiter is killed, then its process leaves by itself, and the port is free
    (orphan,) = processes()
    server.process.kill()
    until("the orphan to leave", lambda: not Path(f"/proc/{orphan}").exists() or "Z" in state_of(orphan))
    server.stop()
    until("the port to be free", lambda: not answers(server.http))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def answers(port: int) -> bool:
    with socket.socket() as peer:
        return peer.connect_ex(("127.0.0.1", port)) == 0


def test_several_processes_count_together(tmp_path: Path) -> None:
    # Given a server of three processes
    server = Server(tmp_path, storage_url("sqlite", tmp_path), "-http-workers", "3").ready()
    try:
        # When sixty jobs come in, each over its own connection
        for _ in range(60):
            one = server.client.post(JOBS, json={"type": "echo"}, headers={"Connection": "close"})
            assert one.status_code == 201
        # Then whichever process is asked has counted all of them
        for _ in range(9):
            page = httpx.get(f"http://127.0.0.1:{server.metrics}/metrics").text
            assert 'taskqueue_jobs_created_total{queue="default",type="echo"} 60.0' in page
    finally:
        assert server.stop() == 0, server.output


def test_the_url_of_a_server_takes_no_path() -> None:
    for url in ("http://localhost:8080/api", "http://localhost:8080/api/"):
        with pytest.raises(NotConfigured, match=r"takes no path: leave out '/api/', and write http://localhost:8080\."):
            client.open(url)
    for url in ("http://localhost:8080", "http://localhost:8080/"):
        client.open(url).close()


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    # Given an address where nobody listens
    (port,) = free_ports(1)
    door = client.open(f"http://127.0.0.1:{port}")
    # When something is asked, then the answer is one sentence with the address
    with pytest.raises(BackendDown, match=f"127.0.0.1:{port} does not answer"):
        door.metrics()
    door.close()
