"""URLs of the Redis storage: each form reaches its servers, and each mistake is one sentence in time."""

import socket
import ssl
from contextlib import closing
from pathlib import Path

import pytest
from lab import new, refusal, works

from gotask import backends
from gotask.errors import NotConfigured
from tests.servers.certificates import Certificates
from tests.servers.fixtures import Servers, StartRedis
from tests.servers.fleets import Sentinel
from tests.servers.processes import need, until
from tests.servers.redis import Redis


@pytest.fixture(autouse=True)
def _redis() -> None:
    need("redis-server")


class Strict(Redis):
    """A server that wants a certificate of its clients."""

    def _dial(self) -> socket.socket:
        assert self.certificates is not None
        context = ssl.create_default_context(cafile=self.certificates.ca)
        context.load_cert_chain(self.certificates.cert, self.certificates.key)
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), 1.0), server_hostname="127.0.0.1")


# what works


def test_a_server_by_tcp_and_by_its_socket(start_redis: StartRedis, tmp_path: Path) -> None:
    server = start_redis(unixsocket=tmp_path / "redis.sock")
    works(server.url)
    works(server.unix_url)
    works(f"{server.unix_url}&prefix=other")
    works(f"redis://localhost:{server.port}?db=3")
    works(f"redis://{server.address}/4")
    # And what lies in one database is not in another
    with closing(backends.open(f"redis://{server.address}/4")) as four, closing(backends.open(server.unix_url)) as none:
        four.enqueue_many([new(id="j")])
        assert none.get_many(["j"]) == [None]


def test_a_user_and_a_password_however_they_are_spelled(start_redis: StartRedis) -> None:
    server = start_redis(user=["default on >only:p@ss/#? ~* &* +@all", "app on >p%w ~* &* +@all"], login=("", "only:p@ss/#?"))
    works(server.url)
    works(f"redis://:only%3Ap%40ss%2F%23%3F@{server.address}/0")
    works(f"redis://{server.address}?password=only:p%40ss/%23?")
    works(f"redis://app:p%25w@{server.address}")
    works(f"redis://{server.address}/0?username=app&password=p%25w")
    works(f"redis://app@{server.address}?password=p%25w")


def test_a_password_of_a_socket(start_redis: StartRedis, tmp_path: Path) -> None:
    server = start_redis(unixsocket=tmp_path / "redis.sock", requirepass="pw", login=("", "pw"))
    works(f"{server.unix_url}&password=pw")
    works(f"unix://:pw@{server.path}")


def test_tls_with_an_authority_of_ones_own(start_redis: StartRedis, servers: Servers, tmp_path: Path) -> None:
    server = start_redis(certificates=servers.certificates)
    works(server.url)
    works(f"rediss://{server.address}?ssl_cert_reqs=none")
    # And one that it does not know, or cannot, is not trusted
    stranger = Certificates(tmp_path / "stranger")
    for url in (f"rediss://{server.address}", f"rediss://{server.address}?ssl_ca_certs={stranger.ca}"):
        assert "certificate verify failed" in refusal(url)


def test_tls_with_a_certificate_of_the_client(servers: Servers, tmp_path: Path) -> None:
    files = servers.certificates
    with Strict(tmp_path / "strict", certificates=files, tls_auth_clients=True) as server:
        works(f"{server.url}&ssl_certfile={files.cert}&ssl_keyfile={files.key}")
        assert "cannot be reached" in refusal(server.url)


def test_a_cluster_by_any_of_its_nodes(servers: Servers) -> None:
    works(f"{servers.cluster.url}?prefix=urls&shards=6")
    works(f"redis+cluster://{servers.cluster.nodes[1].address}?prefix=urls-one")
    works(f"redis+cluster://{servers.cluster.nodes[1].address}/0?prefix=urls-one")
    works(f"redis+cluster://127.0.0.1:1,{servers.cluster.nodes[2].address}?prefix=urls-two&shards=3")


def test_sentinels_some_of_which_are_away(servers: Servers) -> None:
    works(f"{servers.sentinels.url}?prefix=urls")
    works(f"redis+sentinel://127.0.0.1:1,{servers.sentinels.sentinels[2].address}/mymaster?prefix=urls-one")


def test_sentinels_and_a_master_with_passwords(start_redis: StartRedis, tmp_path: Path) -> None:
    # Given a master with one password, and a Sentinel with another
    server = start_redis(requirepass="pw", login=("", "pw"))
    rules = [f"monitor shop 127.0.0.1 {server.port} 1", "auth-pass shop pw"]
    with Sentinel(tmp_path / "sentinel", sentinel=rules, requirepass="spw", login=("", "spw")) as sentinel:
        until("the Sentinel knows the master", lambda: "status=ok" in sentinel.facts("INFO", "sentinel").get("master0", ""))
        # Then both are needed
        works(f"redis+sentinel://:pw@{sentinel.address}/shop/0?sentinel_password=spw")
        for url in (f"{sentinel.address}/shop", f"{sentinel.address}/other?sentinel_password=spw", "127.0.0.1:1/shop"):
            assert refusal(f"redis+sentinel://:pw@{url}") == (
                f"No Sentinel of redis+sentinel://:***@{url.partition('?')[0]} says where the master is; look whether they "
                "run, at the name of the service, and at sentinel_password if they want one."
            )
        assert "Authentication required" in refusal(f"redis+sentinel://{sentinel.address}/shop?sentinel_password=spw")


# mistakes that show in the URL

OPTIONS = (
    "db, password, prefix, sentinel_password, sentinel_username, shards, ssl_ca_certs, ssl_cert_reqs, ssl_certfile, "
    "ssl_check_hostname, ssl_keyfile, timeout, username, wait"
)
UNSEEN = (
    "The storage redis://... cannot be used: write it as redis://user:password@host:port, and in the user, the password or a "
    "path / as %2F, ? as %3F, # as %23, @ as %40, a space as %20, and so on."
)
MISTAKES = {
    "redis://a,b/0": "several servers need redis+sentinel:// or redis+cluster://",
    "redis://h/one": "the database after the address is 'one', and must be a number",
    "redis://h/0/1": "the database after the address is '0/1', and must be a number",
    "redis://h?prefx=a": "there is no option 'prefx'; did you mean 'prefix'?",
    "redis://h?zzz=a": f"there is no option 'zzz'; known: {OPTIONS}",
    "redis://h?prefix=": "prefix is '', and must be up to 64 letters, digits and _.:-",
    "redis://h?prefix=a{b": "prefix is 'a{b', and must be up to 64 letters, digits and _.:-",
    "redis://h?shards=0": "shards is '0', and must be a whole number from 1 to 1024",
    "redis://h?shards=some": "shards is 'some', and must be a whole number from 1 to 1024",
    "redis://h?timeout=0": "timeout is '0', and must be seconds from 0.05 to 300",
    "redis://h?timeout=nan": "timeout is 'nan', and must be seconds from 0.05 to 300",
    "redis://h?wait=17": "wait is '17', and must be a whole number from 0 to 16",
    "redis://h?wait=1&wait=2": "it says wait twice",
    "redis://h?db=x": "db is 'x', and must be a whole number from 0 to 1000000",
    "redis://h?ssl_ca_certs=/dev/null": "ssl_ca_certs is for TLS, and needs a URL that begins with rediss",
    "rediss://h?ssl_ca_certs=/no.pem": "ssl_ca_certs is '/no.pem', and must be the path of a file that can be read",
    "rediss://h?ssl_cert_reqs=optional": "ssl_cert_reqs is 'optional', and must be required or none",
    "rediss://h?ssl_check_hostname=perhaps": "ssl_check_hostname is 'perhaps', and must be true or false",
    "redis://h?sentinel_username=x": "sentinel_username is for Sentinels, as in redis+sentinel://host/mymaster",
    "unix://": "it lacks the path of the socket, as in unix:///run/redis/redis.sock",
    "redis+sentinel://h": "it lacks the name of the service, as in redis+sentinel://host/mymaster",
    "redis+sentinel://h/mymaster/x": "the database after the address is 'x', and must be a number",
    "redis+cluster://h/1": "a Cluster has no other database than 0",
    "redis+cluster://h?wait=1": "wait is for one server with replicas, and not for a Cluster",
}


@pytest.mark.parametrize("url", MISTAKES)
def test_a_mistake_in_a_url_is_named_before_anything_is_called(url: str) -> None:
    why = MISTAKES[url]
    with pytest.raises(NotConfigured) as caught:
        backends.open(url)
    plain = url.partition("?")[0]
    assert str(caught.value) == f"The storage {plain} cannot be used: {why}{'' if why.endswith('?') else '.'}"


@pytest.mark.parametrize(
    "rest",
    [
        *("//user:pa/ss@h:1", "//user:pa?ss@h:1/0", "//user:pa#ss@h:1", "//user:12/34@h", "//user:a/b@h?prefix=x"),
        *("//u:x@h/0#top", "//u:pa ss@h", '//u:pa"ss@h', "//u:p<ss>@h", "//u:pa[s]s@h"),
        *("//user:pass", "//:pass", "u:pass@h", "//h:99999", "//[::1"),
    ],
)
def test_what_may_be_a_password_cut_short_is_not_shown(rest: str) -> None:
    with pytest.raises(NotConfigured) as caught:
        backends.open(f"redis:{rest}")
    assert str(caught.value) == UNSEEN


def test_the_value_of_an_option_that_is_none_is_not_shown() -> None:
    for url in ("redis://h?pass=hidden", "redis://h?shards=0&pass=hidden"):
        with pytest.raises(NotConfigured) as caught:
            backends.open(url)
        assert "hidden" not in str(caught.value)


def test_no_password_of_a_url_is_shown() -> None:
    url = "redis+sentinel://user:hidden@h/mymaster?sentinel_password=hidden&password=hidden&bad=1"
    with pytest.raises(NotConfigured) as caught:
        backends.open(url)
    assert "hidden" not in str(caught.value)
