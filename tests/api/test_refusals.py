"""What a server must not take: each is answered with its status and one sentence, and nothing is stored."""

import json
from typing import Any

import pytest
from served import Server, until

JSON = {"Content-Type": "application/json"}
JOBS = "/api/v1/jobs"
#: name -> body, status, a word of the sentence
BODIES: dict[str, tuple[bytes, int, str]] = {
    "unknown field": (b'{"type":"echo","colour":1}', 422, "colour"),
    "misspelt field": (b'{"type":"echo","prioriti":1}', 422, "did you mean 'priority'"),
    "missing type": (b'{"queue":"default"}', 422, "type"),
    "wrong type": (b'{"type":"echo","priority":"high"}', 422, "priority"),
    "priority out of bounds": (b'{"type":"echo","priority":10}', 422, "priority"),
    "bad strategy": (b'{"type":"echo","retry_strategy":"slow"}', 422, "'slow' is not one of fixed, linear, exponential."),
    "not an object": (b"[]", 422, "an object"),
    "a list as payload": (b'{"type":"echo","payload":[1]}', 422, "payload: a JSON object is expected, with the task's"),
    "null as payload": (b'{"type":"echo","payload": null}', 422, "payload: a JSON object is expected"),
    "bad type name": (b'{"type":"a b"}', 422, "type: 'a b' is not a name; use letters, digits and _ . : -, at most 128"),
    "line break at a name's end": (b'{"type":"line\\n"}', 422, "is not a name"),
    "bad queue name": (b'{"type":"echo","queue":"../etc"}', 422, "queue"),
    "bad id": (b'{"type":"echo","id":"a/b"}', 422, "id"),
    "bad time": (b'{"type":"echo","scheduled_at":"tomorrow"}', 422, "scheduled_at"),
    "time without zone": (b'{"type":"echo","scheduled_at":"2030-01-01T00:00:00"}', 422, "end it with Z"),
    "delay and time": (b'{"type":"echo","delay":1,"scheduled_at":"2030-01-01T00:00:00Z"}', 422, "delay"),
    "metadata too deep": (b'{"type":"echo","metadata":{"a":[1]}}', 422, "metadata"),
    "NaN": (b'{"type":"echo","payload":NaN}', 400, "JSON"),
    "1e400": (b'{"type":"echo","payload":{"x":1e400}}', 422, "payload: a number is too large for JSON's double"),
    "1e400 in metadata": (b'{"type":"echo","metadata":{"x":1e400}}', 422, "metadata"),
    "5,000 digits": (b'{"type":"echo","payload":' + b"7" * 5000 + b"}", 422, "payload"),
    "invalid UTF-8 in payload": (b'{"type":"echo","payload":"\xff\xfe"}', 422, "UTF-8"),
    "invalid UTF-8 in a field": (b'{"type":"echo","unique_key":"\xff\xfe"}', 400, "UTF-8"),
    "lone surrogate": (b'{"type":"echo","metadata":{"a":"\\ud800"}}', 400, "half a surrogate pair"),
    "100 deep": (b'{"type":"echo","payload":' + b"[" * 100 + b"]" * 100 + b"}", 422, "32"),
    "100,000 deep": (b'{"type":"echo","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422, "32"),
    "payload over 1 MiB": (b'{"type":"echo","payload":"' + b"x" * 1_100_000 + b'"}', 413, "1048576"),
    "broken JSON": (b'{"type":"echo",', 400, "JSON"),
    "empty": (b"", 400, "The body is empty; send a JSON object."),
    "two documents": (b'{"type":"echo"}{"type":"echo"}', 400, "JSON"),
    "control character": (b'{"type":"echo\x00"}', 400, "JSON"),
}


def told(answer: Any, status: int, word: str) -> None:
    """Assert that an answer is problem+json of this status, whose one sentence has this word in it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert word in problem["detail"]
    assert problem["detail"].endswith((".", "?")), problem["detail"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused(server: Server, name: str) -> None:
    # Given what is stored already
    before = server.stored()
    body, status, word = BODIES[name]
    # When the body is sent, then it is refused with one sentence
    told(server.client.post(JOBS, content=body, headers=JSON), status, word)
    # And nothing is stored
    assert server.stored() == before


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large_is_refused_while_it_comes_in(server: Server, chunked: bool) -> None:
    # Given five megabytes, with a length or in chunks
    before = server.stored()
    large = b'{"type":"echo","payload":"' + b"x" * 5_000_000 + b'"}'
    # When they are sent
    parts = iter([large[at : at + 50_000] for at in range(0, len(large), 50_000)])
    answer = server.client.post(JOBS, content=parts if chunked else large, headers=JSON)
    # Then they are refused, the connection lives on, and nothing is stored
    told(answer, 413, "2097152")
    assert server.client.post(JOBS, json={"type": "echo"}).status_code == 201
    assert server.stored() == before + 1


def test_a_batch_may_be_larger_but_not_endless(server: Server) -> None:
    # Given a batch of three megabytes, and ones that are too long or empty
    jobs = [{"type": "echo", "payload": {"x": "x" * 300_000}} for _ in range(10)]
    assert server.post(f"{JOBS}/batch", {"jobs": jobs}).json()["created"] == 10
    told(server.post(f"{JOBS}/batch", {"jobs": [{"type": "echo"}] * 10_001}), 422, "10000")
    told(server.post(f"{JOBS}/batch", {"jobs": []}), 422, "jobs")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        (None, 201),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
def test_only_json_is_read(server: Server, kind: str | None, status: int) -> None:
    answer = server.client.post(JOBS, content=b'{"type":"echo"}', headers={"Content-Type": kind} if kind else None)
    assert answer.status_code == status
    if status == 415:
        told(answer, 415, "JSON")


def test_a_compressed_body_is_not_unpacked(server: Server) -> None:
    told(server.client.post(JOBS, content=b"x", headers=JSON | {"Content-Encoding": "gzip"}), 415, "gzip")


def test_a_known_id_with_another_body_is_a_conflict(server: Server) -> None:
    # Given a job with an id
    first = {"type": "echo", "id": "known", "payload": {"n": 1}}
    assert server.post(JOBS, first).status_code == 201
    before = server.stored()
    # When the same comes again, then it is that job
    again = server.post(JOBS, first)
    assert (again.status_code, again.json()["id"]) == (200, "known")
    # When another body comes under its id, then it is refused
    told(server.post(JOBS, {**first, "payload": {"n": 2}}), 409, "known")
    assert server.stored() == before


def test_what_is_not_there_is_not_found(server: Server) -> None:
    for verb, path in (
        ("GET", f"{JOBS}/unknown"),
        ("GET", f"{JOBS}/unknown/wait?timeout=1"),
        ("DELETE", f"{JOBS}/unknown"),
        ("POST", f"{JOBS}/unknown/cancel"),
        ("POST", f"{JOBS}/unknown/retry"),
        ("GET", f"{JOBS}/%00%0a"),
        ("GET", f"{JOBS}/%ff"),
        ("GET", f"{JOBS}/{'x' * 500}"),
        ("GET", "/api/v1/queues/unknown"),
        ("PUT", "/api/v1/queues/unknown"),
        ("GET", "/api/v1/queues/unknown/stats"),
        ("GET", "/api/v2/jobs"),
        ("GET", "/"),
    ):
        told(server.client.request(verb, path, json={} if verb == "PUT" else None), 404, "")


def test_a_wrong_verb_is_answered_with_the_right_ones(server: Server) -> None:
    answer = server.client.patch(JOBS)
    told(answer, 405, "PATCH")
    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))
    told(server.client.delete("/health"), 405, "DELETE")


def test_a_job_may_be_called_batch(server: Server) -> None:
    # Given a job whose id is the last word of another path
    assert server.post(JOBS, {"type": "echo", "id": "batch"}).status_code == 201
    # Then it is found and deleted like any other
    assert server.client.get(f"{JOBS}/batch").json()["id"] == "batch"
    assert server.client.delete(f"{JOBS}/batch").status_code == 200


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("status=DONE", "status: 'DONE' is not one of SCHEDULED, PENDING, "),
        ("queue=a%20b", "queue"),
        ("limt=5", "did you mean 'limit'"),
        ("limit=1&limit=2", "limit"),
        ("created_after=yesterday", "created_after"),
        ("cursor=nonsense", "cursor"),
    ],
)
def test_a_bad_query_is_refused(server: Server, query: str, word: str) -> None:
    told(server.client.get(f"{JOBS}?{query}"), 422, word)


def test_a_state_may_be_asked_for_in_any_case(server: Server) -> None:
    for state in ("pending", "Pending", "PENDING"):
        assert server.client.get(f"{JOBS}?status={state}").status_code == 200


def test_a_long_poll_has_a_longest_time(server: Server) -> None:
    assert server.post(JOBS, {"type": "echo", "id": "polled"}).status_code in (200, 201)
    told(server.client.get(f"{JOBS}/polled/wait?timeout=3600"), 422, "timeout")
    told(server.client.get(f"{JOBS}/polled/wait?timout=1"), 422, "timeout")


def test_a_foreign_host_is_misdirected(server: Server) -> None:
    # Given a name that a stranger points at this machine
    for host in ("evil.example", f"evil.example:{server.http}", "127.0.0.1.evil.example", ""):
        told(server.client.get(JOBS, headers={"Host": host}), 421, "localhost")
    # Then only the machine's own names are answered
    for host in ("localhost", f"localhost:{server.http}", "127.0.0.1", "[::1]:80"):
        assert server.client.get(JOBS, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({}, 201),
    ],
)
def test_a_page_of_another_site_changes_nothing(server: Server, headers: dict[str, str], status: int) -> None:
    before = server.stored()
    answer = server.client.post(JOBS, json={"type": "echo"}, headers=headers)
    assert answer.status_code == status
    assert server.stored() == before + (status == 201)
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_what_is_not_http_is_refused(server: Server) -> None:
    # When bytes come that are no request, or one with too large a head
    host = b"Host: localhost\r\n"
    cases = {
        b"hello there\r\n\r\n": 400,
        b"GET /health HTTP/1.1\r\n" + host + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
        b"GET /health HTTP/1.1\r\n" + host + b"X: " + b"x" * 70_000 + b"\r\n\r\n": 431,
        b"GET /health HTTP/1.1\r\n" + host + b"X: y\r\n" * 200 + b"\r\n": 431,
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n" + host + b"\r\n": 414,
    }
    for request, status in cases.items():
        # Then each is answered with its status and a sentence
        head, _, body = server.raw(request).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        assert json.loads(body)["status"] == status
    # And the server is as well as before
    until("the server to be ready", lambda: server.client.get("/ready").status_code == 200)
