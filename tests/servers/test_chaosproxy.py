"""Each fault does what it says, before a server that answers every request with the same bytes and notes what came."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest

from tests.servers.chaosproxy import ChaosProxy, Way
from tests.servers.echo import Echo
from tests.servers.processes import free_ports, until

Dial = Callable[[], socket.socket]
SILENCE_S = 0.2  #: seconds without a byte that count as silence; the loopback takes well below a millisecond


@pytest.fixture
def echo() -> Iterator[Echo]:
    with closing(Echo(socket.create_server(("127.0.0.1", 0)))) as server:
        yield server


@pytest.fixture
def proxy(echo: Echo) -> Iterator[ChaosProxy]:
    with ChaosProxy(echo.address) as made:
        yield made


@pytest.fixture
def dial(proxy: ChaosProxy) -> Iterator[Dial]:
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        made.append(connected(proxy))
        return made[-1]

    yield connect
    for client in made:
        client.close()


def connected(proxy: ChaosProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 10.0)


def asked(client: socket.socket, request: bytes) -> bytes:
    client.sendall(request)
    return exactly(client, len(request))


def exactly(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = client.recv(count - len(found))
        assert piece, f"an end after {found!r}"
        found += piece
    return found


def silent(client: socket.socket) -> bool:
    client.settimeout(SILENCE_S)
    try:
        client.recv(1)  # an end is no silence either
        return False
    except TimeoutError:
        return True
    finally:
        client.settimeout(10.0)


def is_reset(client: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        assert client.recv(1) == b"a reset"


def test_all_passes_and_is_counted(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    # Given two clients
    one, other = dial(), dial()
    # When they ask, much and little
    much = bytes(range(256)) * 4096
    sender = threading.Thread(target=one.sendall, args=(much,))
    sender.start()
    assert exactly(one, len(much)) == much
    sender.join()
    assert asked(other, b"x") == b"x"
    # Then it is counted
    assert (proxy.counts.accepted, proxy.open, proxy.counts.reset) == (2, 2, 0)
    until("all is counted", lambda: proxy.counts.reply_bytes == proxy.counts.request_bytes == len(much) + 1)
    # And an end is passed on, and what is said after it
    one.shutdown(socket.SHUT_WR)
    assert exactly(one, 3) == b"bye"
    assert one.recv(1) == b""
    until("one is left", lambda: proxy.open == 1)
    assert proxy.counts.reset == 0
    assert echo.ended == ["end"]


def test_a_delay_is_latency_and_keeps_the_order(proxy: ChaosProxy, dial: Dial) -> None:
    # Given 0.2 s each way, with jitter
    client = dial()
    asked(client, b"x")
    proxy.delay(0.2, jitter=0.05)
    # When much is sent without waiting
    begun = monotonic()
    sent = b"".join(b"%03d" % n for n in range(100))
    for at in range(0, len(sent), 3):
        client.sendall(sent[at : at + 3])
    # Then it comes in order, late but not one delay after the other
    assert exactly(client, len(sent)) == sent
    assert 0.3 <= monotonic() - begun < 10.0
    # And healed it is late no more
    proxy.heal()
    until("a request is answered at once", lambda: trip_s(client) < 0.3)


def trip_s(client: socket.socket) -> float:
    begun = monotonic()
    asked(client, b"x")
    return monotonic() - begun


def test_a_throttle_bounds_the_rate(proxy: ChaosProxy, dial: Dial) -> None:
    client = dial()
    proxy.throttle(20_000)
    begun = monotonic()
    assert asked(client, b"x" * 10_000) == b"x" * 10_000
    assert monotonic() - begun >= 0.4


def test_a_reset_is_one_on_both_sides(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    client = dial()
    asked(client, b"x")
    assert proxy.reset() == 1
    is_reset(client)
    until("the server saw it", lambda: echo.ended == ["reset"])
    # And a new connection is as good as ever
    assert asked(dial(), b"y") == b"y"
    assert (proxy.open, proxy.counts.reset) == (1, 1)


def test_a_black_hole_delivers_when_it_heals(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    # Given a connection that works
    old = dial()
    asked(old, b"x")
    # When nothing is forwarded
    proxy.black_hole()
    old.sendall(b"old")
    new = dial()
    new.sendall(b"new")
    # Then both are open and silent, and the server hears nothing
    assert silent(old)
    assert silent(new)
    assert echo.heard == b"x"
    # And all of it comes later
    proxy.heal()
    assert exactly(old, 3) == b"old"
    assert exactly(new, 3) == b"new"


def test_a_black_hole_may_be_for_ever(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    old = dial()
    asked(old, b"x")
    proxy.black_hole(deliver=False)
    old.sendall(b"old")
    new = dial()
    new.sendall(b"new")
    until("the proxy has both", lambda: proxy.open == 2)
    # When it heals
    proxy.heal()
    # Then the connections that lived in it stay open and silent, and a later one works
    assert asked(dial(), b"later") == b"later"
    assert silent(old)
    assert silent(new)
    assert echo.heard == b"xlater"


def test_a_black_hole_for_replies_only(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    proxy.black_hole(Way.REPLY)
    client = dial()
    client.sendall(b"x")
    until("the server heard it", lambda: echo.heard == b"x")
    assert silent(client)
    proxy.heal()
    assert exactly(client, 1) == b"x"


def test_new_connections_are_refused_and_old_ones_stay(proxy: ChaosProxy, dial: Dial) -> None:
    client = dial()
    asked(client, b"x")
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        dial()
    assert asked(client, b"y") == b"y"
    # And it comes back on its port
    proxy.heal()
    assert asked(dial(), b"z") == b"z"


def test_down_is_as_if_the_server_had_been_killed(proxy: ChaosProxy, dial: Dial) -> None:
    client = dial()
    asked(client, b"x")
    proxy.down()
    is_reset(client)
    with pytest.raises(ConnectionRefusedError):
        dial()


def test_a_half_close_to_the_client(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    client = dial()
    asked(client, b"x")
    proxy.half_close()
    # Then the client reads an end, and the server still hears it
    assert client.recv(1) == b""
    client.sendall(b"y")
    until("the server heard it", lambda: echo.heard == b"xy")
    assert echo.ended == []


def test_a_half_close_to_the_server(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    client = dial()
    asked(client, b"x")
    proxy.half_close(Way.REQUEST)
    # Then the server reads an end, and the client hears its last words
    assert exactly(client, 3) == b"bye"
    until("the server saw an end", lambda: echo.ended == ["end"])


def test_a_swallowed_reply(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    # Given two clients, and a swallow for a certain request
    one, other = dial(), dial()
    asked(one, b"a")
    asked(other, b"b")
    lost = proxy.swallow_reply(containing=b"pay")
    # When another request is made, its reply comes
    assert asked(other, b"look") == b"look"
    assert not lost.done()
    # When the meant one is, the server gets it, and the client only a reset
    one.sendall(b"pay 5")
    is_reset(one)
    assert lost.result(10) == b"pay 5"
    assert echo.heard.endswith(b"pay 5")
    # And that was once
    assert asked(other, b"pay 6") == b"pay 6"


def test_healing_disarms(proxy: ChaosProxy, dial: Dial) -> None:
    lost = proxy.swallow_reply()
    proxy.cut_after(0)
    proxy.heal()
    assert lost.cancelled()
    assert asked(dial(), b"x") == b"x"


def test_a_reply_cut_in_its_midst(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    client = dial()
    proxy.cut_after(4)
    client.sendall(b"0123456789")
    assert exactly(client, 4) == b"0123"
    is_reset(client)
    assert echo.heard == b"0123456789"
    assert asked(dial(), b"once") == b"once"


def test_a_request_cut_before_it_arrives(proxy: ChaosProxy, echo: Echo, dial: Dial) -> None:
    client = dial()
    proxy.cut_after(0, Way.REQUEST)
    client.sendall(b"x")
    is_reset(client)
    until("the server saw the reset", lambda: echo.ended == ["reset"])
    assert echo.heard == b""


def test_a_server_that_is_not_there_resets() -> None:
    # the reset may come so soon that it is already the answer to connecting
    with ChaosProxy(f"127.0.0.1:{free_ports(1)[0]}") as proxy, pytest.raises(ConnectionResetError), connected(proxy) as client:
        assert client.recv(1) == b"a reset"


def test_a_unix_socket_behind_it(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    with closing(Echo(listener)), ChaosProxy(tmp_path / "socket") as proxy, connected(proxy) as client:
        assert asked(client, b"x") == b"x"


def test_a_url_with_the_proxy_in_it(proxy: ChaosProxy) -> None:
    assert proxy.before("redis://me:secret@10.0.0.1:6379/0?prefix=a") == f"redis://me:secret@127.0.0.1:{proxy.port}/0?prefix=a"
    assert proxy.before("http://localhost:8080/api") == f"http://127.0.0.1:{proxy.port}/api"
