"""Clients: every kind of URL, errors for wrong ones, time-outs, outages, threads and forks."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis

from once_core import _line, protocol
from once_core import store as store_module
from once_core._client import CONNECT_TIMEOUT, READ_TIMEOUT, make_async_client, make_client, masked
from once_core.devserver import DevServer
from once_core.errors import ConfigurationError, StoreUnavailableError
from once_core.events import Event
from once_core.guard import Guard
from once_core.publish import claim
from once_core.store import Store
from once_pytest import OnceFaults

# what they test is the store itself, over servers of their own
pytestmark = pytest.mark.once(strict=False)

PASSWORD = "s3cr3t"
NOBODY = "redis://127.0.0.1:1"
"""Where nothing listens."""

KNOWN = """which is none of
  redis://[user:password@]host[:6379][/database]
  rediss://… (TLS)
  unix:///path/to/socket[?db=0]
  redis+sentinel://host:26379,host:26379[/database]/service
  redis+cluster://host:6379,host:6379
  rediss+cluster://… (TLS)
  memory:// (fakeredis, for one process)
Set once_url (Celery) or ONCE_URL to one of these"""


class Server:
    """A client whose server answers, refuses or is away, step by step, as the test says."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.refuses: dict[str, Exception] = {}
        self.asked = 0

    def evalsha(self, sha: str, _keys: int, key: str, *args: object) -> bytes:
        self.asked += 1
        if self.error is not None:
            raise self.error
        name = next(name for name in REPLIES if protocol.script(name).sha == sha)
        if name in self.refuses:
            raise self.refuses[name]
        return REPLIES[name]

    def pipeline(self, *, transaction: bool) -> Server:
        self._replies: list[object] = []
        pipe = Server()
        pipe.__dict__ = {**self.__dict__}
        pipe.execute_command = self._queue  # type: ignore[attr-defined]  # as pipelines do
        pipe.execute = self._execute  # type: ignore[attr-defined]  # as pipelines do
        return pipe

    def _queue(self, _name: str, sha: str, *args: Any) -> bytes:
        try:
            self._replies.append(Server.evalsha(self, sha, *args))
        except redis.ResponseError as error:
            self._replies.append(error)
        return b""

    def _execute(self, *, raise_on_error: bool) -> list[object]:
        return self._replies


REPLIES = {
    "claim": b"claimed 5 0",
    "finish": b"finished 10",
    "renew": b"renewed",
    "inspect": [b"now", b"5"],
}
CLAIM = protocol.claim("k", "m", ttl=60, heal_after=60)
FINISH = protocol.finish("k", protocol.Message("m"), "a", "success", ttl=60, heal_after=60)
RENEW = protocol.renew("k", protocol.Message("m"), "a", where="h", lease=60, fence=1, held=0)
AWAY = redis.ConnectionError("Connection refused")


@pytest.fixture
def store_url() -> str:
    """A lock store in memory."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def away() -> tuple[Server, Store]:
    """A store whose server does what the test says."""
    server = Server()
    client: Any = server
    return server, Store(client)


def _refused(url: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make_client(url)
    assert caught.value.option == "url"
    return str(caught.value)


def _settings(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.connection_pool.connection_kwargs
    return found


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache:6380/3", {"host": "cache", "port": 6380, "db": 3}),
        ("redis://cache", {"host": "cache"}),
        (
            f"redis://me:{PASSWORD}@cache/3",
            {"host": "cache", "username": "me", "password": PASSWORD, "db": 3},
        ),
        (f"redis://:{PASSWORD}%2F@cache", {"password": f"{PASSWORD}/"}),
        ("redis://cache?db=4&socket_keepalive=true", {"db": 4, "socket_keepalive": True}),
        ("redis://cache?socket_timeout=5", {"socket_timeout": 5.0}),
        ("unix:///run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2}),
    ],
)
@pytest.mark.parametrize("make", [make_client, make_async_client])
def test_plain_urls(make: Callable[[str], Any], url: str, expected: dict[str, Any]) -> None:
    """Host, port, database, login and redis-py's own options come from the URL."""
    settings = _settings(make(url))

    assert {name: settings.get(name) for name in expected} == expected


@pytest.mark.parametrize("make", [make_client, make_async_client])
def test_tls(make: Callable[[str], Any]) -> None:
    """rediss:// is TLS."""
    assert make("rediss://cache").connection_pool.connection_class.__name__ == "SSLConnection"


@pytest.mark.parametrize("make", [make_client, make_async_client])
@pytest.mark.parametrize("url", ["redis://cache", "rediss://cache", "unix:///run/redis.sock"])
def test_short_and_without_retries(make: Callable[[str], Any], url: str) -> None:
    """A client gives up after about a second, and does not retry."""
    settings = _settings(make(url))

    assert (settings["socket_connect_timeout"], settings["socket_timeout"]) == (
        CONNECT_TIMEOUT,
        READ_TIMEOUT,
    )
    assert settings["retry"]._retries == 0
    assert CONNECT_TIMEOUT + READ_TIMEOUT < 1.5


@pytest.mark.parametrize("make", [make_client, make_async_client])
@pytest.mark.parametrize(
    ("url", "database", "password"),
    [
        ("redis+sentinel://a:1,b:2/main", 0, None),
        ("redis+sentinel://a:1,b:2/3/main", 3, None),
        (f"redis+sentinel://:{PASSWORD}@a:1,b:2/3/main", 3, PASSWORD),
    ],
)
def test_sentinel(
    make: Callable[[str], Any], url: str, database: int, password: str | None
) -> None:
    """Sentinels, service, database and password come from the URL; time-outs are ours."""
    pool = make(url).connection_pool
    settings = pool.connection_kwargs
    sentinels = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]

    assert pool.service_name == "main"
    assert [(each["host"], each["port"]) for each in sentinels] == [("a", 1), ("b", 2)]
    assert (settings["db"], settings.get("password")) == (database, password)
    assert (settings["socket_connect_timeout"], settings["socket_timeout"]) == (
        CONNECT_TIMEOUT,
        READ_TIMEOUT,
    )
    assert settings["retry"]._retries == 0


def test_sentinels_are_not_retried_either() -> None:
    """Asking a sentinel that is away takes no longer than asking a server that is."""
    pool: Any = make_client("redis+sentinel://a:1/main").connection_pool
    settings = pool.sentinel_manager.sentinels[0].connection_pool.connection_kwargs

    assert settings["socket_timeout"] == READ_TIMEOUT
    assert settings["retry"]._retries == 0


def test_sentinel_ports() -> None:
    """A sentinel without a port listens on the usual one."""
    pool: Any = make_client("redis+sentinel://a,b/main").connection_pool
    ports = [
        each.connection_pool.connection_kwargs["port"] for each in pool.sentinel_manager.sentinels
    ]

    assert ports == [26379, 26379]


def test_options_of_sentinel_urls_are_numbers() -> None:
    """Options after the ? of a sentinel URL have the types that redis-py wants."""
    settings = _settings(make_client("redis+sentinel://a/main?socket_timeout=5"))

    assert settings["socket_timeout"] == 5.0
    assert type(settings["socket_timeout"]) is float


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a cluster client was made with; a real one connects when it is made."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(redis, "RedisCluster", lambda **given: made.update(given))
    return made


def test_cluster(cluster: dict[str, Any]) -> None:
    """Nodes and password come from the URL; time-outs are ours, and redis-py does not retry."""
    make_client(f"redis+cluster://:{PASSWORD}@a:1,b")

    nodes = [(each.host, each.port) for each in cluster.pop("startup_nodes")]
    assert nodes == [("a", 1), ("b", 6379)]
    assert cluster.pop("retry")._retries == 0
    assert cluster.pop("cluster_error_retry_attempts", 0) == 0  # before redis-py 6
    assert cluster == {
        "password": PASSWORD,
        "protocol": 2,
        "max_connections": 2**31,
        "require_full_coverage": False,
        "socket_timeout": READ_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
    }


def test_cluster_with_tls(cluster: dict[str, Any]) -> None:
    """rediss+cluster:// is TLS."""
    make_client("rediss+cluster://a:1")

    assert cluster["ssl"] is True


def test_cluster_that_is_away() -> None:
    """No node of the cluster answers: that is an outage like any other."""
    with pytest.raises(StoreUnavailableError):
        Store("redis+cluster://127.0.0.1:1").run(CLAIM)


def test_sentinels_that_are_away() -> None:
    """No sentinel answers: that is an outage like any other."""
    with pytest.raises(StoreUnavailableError):
        Store("redis+sentinel://127.0.0.1:1/main").run(CLAIM)


@pytest.mark.parametrize(
    ("url", "shown", "scheme"),
    [
        ("amqp://guest:s3cr3t@rabbit//", "amqp://***@rabbit//", "amqp"),
        ("http://cache:6379", "http://cache:6379", "http"),
        ("localhost:6379", "localhost:6379", "localhost"),
        ("cache", "cache", ""),
        ("sentinel://a:1", "sentinel://a:1", "sentinel"),
    ],
)
@pytest.mark.parametrize("make", [make_client, make_async_client])
def test_wrong_scheme(make: Callable[[str], Any], url: str, shown: str, scheme: str) -> None:
    """A URL of no known kind is answered with all kinds there are, and without its password."""
    with pytest.raises(ConfigurationError) as caught:
        make(url)

    assert str(caught.value) == (
        f"the lock store's URL {shown!r} has the scheme {scheme!r}, {KNOWN}"
    )


@pytest.mark.parametrize(
    "url", ["redis+sentinel://a:1", "redis+sentinel://a:1/", "redis+sentinel://a:1/x/main"]
)
def test_sentinel_without_service(url: str) -> None:
    """A sentinel URL needs the name of the service."""
    assert _refused(url) == (
        f"the lock store's URL {url!r} needs the service that the sentinels watch: "
        "redis+sentinel://host:26379,host:26379[/database]/service"
    )


@pytest.mark.parametrize("place", ["a:x", ":1", "a:1:x"])
@pytest.mark.parametrize("kind", ["redis+sentinel", "redis+cluster"])
def test_wrong_host(kind: str, place: str) -> None:
    """Each place of several must be a host and a port."""
    assert _refused(f"{kind}://b:2,{place}/main") == (
        f"the lock store's URL '{kind}://b:2,{place}/main' needs host:port, separated by commas; "
        f"{place!r} is none"
    )


def test_wrong_port() -> None:
    """A port that is no number is said to be none."""
    assert _refused("redis://cache:abc/0").startswith(
        "the lock store's URL 'redis://cache:abc/0' cannot be used: Port could not be cast"
    )


def test_unknown_option_of_the_url() -> None:
    """An option that redis-py does not know is a wrong URL, not a crash of every publish."""
    with pytest.raises(ConfigurationError) as caught:
        Store(f"{NOBODY}?no_such_option=1").run(CLAIM)

    assert "no_such_option" in str(caught.value)


def test_memory_without_fakeredis(monkeypatch: pytest.MonkeyPatch) -> None:
    """memory:// without fakeredis names the extra to install."""
    monkeypatch.setitem(sys.modules, "fakeredis", None)

    assert _refused("memory://x") == (
        "the lock store's URL 'memory://x' needs fakeredis with Lua: "
        "pip install 'once-tasks[pytest]', or use a redis:// URL"
    )


def test_memory_is_said_to_be_of_one_process(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """memory:// warns, once, that no other process sees its locks."""
    Store(store_url).run(CLAIM)
    Store(store_url).run(FINISH)

    assert [each.getMessage() for each in caplog.records] == [
        f"the lock store {store_url} lives in this process alone: no other process sees its locks"
    ]


def test_memory_is_shared_by_name() -> None:
    """Stores with the same memory:// URL are one, others are not."""
    one, same, other = Store("memory://one"), Store("memory://one"), Store("memory://two")
    one.client().flushall()
    other.client().flushall()
    one.run(CLAIM)

    assert same.run(CLAIM).status == "waiting"
    assert other.run(CLAIM).status == "claimed"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        (f"redis://:{PASSWORD}@cache:6379/0", "redis://***@cache:6379/0"),
        (f"redis://me:{PASSWORD}@cache", "redis://***@cache"),
        (f"redis://:{PASSWORD}@{PASSWORD}@cache", "redis://***@cache"),
        (f"redis://:{PASSWORD}/x@cache/0", "redis://***@cache/0"),
        (f"redis+sentinel://:{PASSWORD}@a,b/main", "redis+sentinel://***@a,b/main"),
        (f"redis://cache/0?password={PASSWORD}", "redis://cache/0"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock"),
    ],
)
def test_masked(url: str, shown: str) -> None:
    """No form of a URL shows its password."""
    assert masked(url) == shown


def test_masked_password_with_a_question_mark() -> None:
    """Nor does one whose password was not quoted."""
    assert PASSWORD not in masked(f"redis://:{PASSWORD}?{PASSWORD}@cache/0")


def test_masked_password_with_at_sign_in_the_query() -> None:
    """A password after the ? is not shown, whatever is in it."""
    assert PASSWORD not in masked(f"redis://cache/0?password=p@{PASSWORD}")


def test_password_with_a_slash() -> None:
    """A password that was not quoted makes a wrong URL, and its error does not show it."""
    assert PASSWORD not in _refused(f"redis://:{PASSWORD}/x@cache:6379/0")


def test_password_with_a_slash_before_sentinels() -> None:
    """The same for several hosts."""
    assert PASSWORD not in _refused(f"redis+sentinel://:{PASSWORD}/x@a:1/main")


def test_outage_does_not_show_the_password(
    told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither error, event nor log of an outage shows the password."""
    store = Store(f"redis://me:{PASSWORD}@127.0.0.1:1/0?client_name={PASSWORD}")
    with pytest.raises(StoreUnavailableError) as caught:
        store.run(CLAIM)

    error = caught.value
    assert error.url == "redis://***@127.0.0.1:1/0"
    assert PASSWORD not in f"{error!r} {error} {error.__dict__} {told!r} {caplog.text}"


def test_outage_says_what_to_do() -> None:
    """The error of an outage tells where the store is, why it is away, and what can be done."""
    with pytest.raises(StoreUnavailableError) as caught:
        Store(NOBODY).run(CLAIM)

    text = str(caught.value)
    assert text.startswith(
        f"the lock store at {NOBODY} is not available (ConnectionError: Error 111"
    )
    assert text.endswith(
        "; check that it runs and can be reached, or set "
        'on_store_error="run" to go on without the lock'
    )
    assert str(caught.value.reason) in text


def test_store_connects_late() -> None:
    """A store can be made while its server is away."""
    assert Store(NOBODY).place == NOBODY


def test_given_client(store_url: str) -> None:
    """A client handed in is used as it is."""
    client = make_client(store_url)
    store = Store(client)

    assert store.client() is client
    assert store.run(CLAIM).status == "claimed"
    assert store.place == "the client that was given"


def test_given_factory(store_url: str) -> None:
    """A function that returns a client is asked once a process, when it is first needed."""
    made: list[Any] = []

    def make() -> Any:
        made.append(make_client(store_url))
        return made[-1]

    store = Store(make)
    assert made == []
    store.run(CLAIM)
    store.run(FINISH)

    assert made == [store.client()]


def test_given_client_that_decodes() -> None:
    """It does not matter whether a client decodes its answers."""
    import fakeredis

    store = Store(fakeredis.FakeRedis(decode_responses=True))

    assert store.run(CLAIM).status == "claimed"
    assert store.run(protocol.inspect("k"))["wi"] == "m"


def test_scripts_the_server_forgot(server: DevServer) -> None:
    """After SCRIPT FLUSH every step works on, alone and in a pipeline."""
    store = Store(server.url)
    other = protocol.renew("k2", protocol.Message("m"), "a", where="h", lease=60, fence=1, held=0)
    for answer in ("restored", "renewed"):
        store.client().script_flush()
        assert store.run(FINISH).status in ("finished", "lost")
        store.client().script_flush()
        assert store.run_many([other, RENEW]) == [answer, "restored"]


def test_stale_connection_is_no_outage(
    server: DevServer, told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that died while idle is made anew: nobody hears of it."""
    monkeypatch.setattr(_line, "FRESH", 0.0)
    store = Store(server.url)
    store.run(CLAIM)

    server.restart()

    assert store.run(CLAIM).status == "waiting"
    assert told == []


def test_server_comes_back(server: DevServer, told: list[Event], clock: Any) -> None:
    """A server that was killed and started again is used again, without a restart of anything."""
    store = Store(server.url)
    store.run(CLAIM)
    server.kill()
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            store.run(CLAIM)
    server.start()
    clock.pass_time(1.1)

    assert store.run(CLAIM).status == "claimed"
    assert [each.kind for each in told] == ["store_unavailable", "store_recovered"]


def test_many_threads(server: DevServer) -> None:
    """Threads that share a store get their own answers, over connections that are reused."""
    store = Store(server.url)
    store.client()
    wrong: list[object] = []

    def work(number: int) -> None:
        for each in range(25):
            key, name = f"k-{number}-{each}", f"m-{number}-{each}"
            store.run(protocol.claim(key, name, ttl=60, heal_after=60))
            found = store.run(protocol.inspect(key)).get("wi")
            if found != name:
                wrong.append((name, found))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert wrong == []
    assert store.client().info("clients")["connected_clients"] <= 14
    assert store.client().dbsize() == 12 * 25


FORK = """
    import os, sys
    from once_core import protocol
    from once_core.store import Store

    store = Store(sys.argv[1])

    def work(name):
        for each in range(100):
            key, message = f"{name}-{each}", f"{name}-message-{each}"
            store.run(protocol.claim(key, message, ttl=60, heal_after=60))
            assert store.run(protocol.inspect(key))["wi"] == message

    work("before")
    mine = store.client()
    child = os.fork()
    if not child:
        try:
            work("child")
            assert store.client() is not mine
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    work("parent")
    assert store.client() is mine
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print("fine")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_fork(server: DevServer) -> None:
    """A forked child uses connections of its own, while its parent goes on with its."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK), server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


class Impatient:
    """A factory of clients in whose midst another thread asks for the client, too."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self.seen: list[Any] = []
        self.is_asked = False

    def __call__(self) -> Any:
        if not self.is_asked and self.store is not None:
            self.is_asked = True
            self.seen.append(self.store.client())
        return object()


def test_threads_of_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread of a child makes its client, another one does not get the parent's."""
    make = Impatient()
    store = Store(make)
    parents: Any = store.client()
    make.store = store
    monkeypatch.setattr(store_module.os, "getpid", lambda: -1)
    store.client()

    assert len(make.seen) == 1
    assert make.seen[0] is not parents


def test_first_threads_share_one_client() -> None:
    """Threads that come first at the same time end up with one client."""
    make = Impatient()
    make.store = store = Store(make)
    mine: Any = store.client()

    assert len(make.seen) == 1
    assert make.seen[0] is mine


def _fails(store: Store, step: protocol.Step[Any] = CLAIM) -> str:
    with pytest.raises(StoreUnavailableError) as caught:
        store.run(step)
    return str(caught.value.reason)


def test_breaker_answers_at_once(away: tuple[Server, Store], clock: Any) -> None:
    """After three failures in a row the server is not asked for a second; then one caller asks."""
    server, store = away
    server.error = AWAY
    reasons = [_fails(store) for _ in range(5)]

    assert server.asked == 3
    assert reasons == [
        *["ConnectionError: Connection refused"] * 3,
        *["ConnectionError: Connection refused; not asked again for a second"] * 2,
    ]

    clock.pass_time(1.1)
    _fails(store)
    _fails(store)

    assert server.asked == 4


def test_breaker_recovers(away: tuple[Server, Store], clock: Any) -> None:
    """The first answer after an outage ends it: nothing is held back any more."""
    server, store = away
    server.error = AWAY
    for _ in range(4):
        _fails(store)
    server.error = None
    clock.pass_time(1.1)
    statuses = [store.run(CLAIM).status for _ in range(3)]

    assert statuses == ["claimed"] * 3
    assert server.asked == 6


def test_only_failures_in_a_row_count(away: tuple[Server, Store]) -> None:
    """Failures with answers between them do not open the breaker."""
    server, store = away
    for _ in range(3):
        server.error = AWAY
        _fails(store)
        _fails(store)
        server.error = None
        store.run(CLAIM)

    assert server.asked == 9


def test_only_failures_in_a_row_count_of_a_full_server_too(away: tuple[Server, Store]) -> None:
    """It refuses claims for hours, and answers all else."""
    server, store = away
    server.refuses = {"claim": redis.ResponseError("OOM")}
    _fails(store)
    for _ in range(3):
        server.error = AWAY
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                store.run(FINISH)
        server.error = None
        store.run(FINISH)

    assert server.asked == 10


def test_outage_is_told_once(
    away: tuple[Server, Store], told: list[Event], clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is one ERROR however many calls fail, and its end is told once."""
    server, store = away
    caplog.set_level(logging.WARNING, "once")
    for _ in range(2):
        server.error = AWAY
        for _ in range(10):
            _fails(store)
            clock.pass_time(0.4)
        server.error = None
        clock.pass_time(1.1)
        for _ in range(3):
            store.run(CLAIM)

    assert [each.kind for each in told] == ["store_unavailable", "store_recovered"] * 2
    assert told[1].reason == "the lock store at the client that was given answers again"
    assert [each.levelname for each in caplog.records] == ["ERROR", "WARNING"] * 2


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.OutOfMemoryError("OOM command not allowed"),
        redis.ReadOnlyError("READONLY You can't write against a read only replica."),
        redis.exceptions.NoPermissionError("NOPERM this user has no permissions"),
        redis.exceptions.MasterDownError("MASTERDOWN Link with MASTER is down"),
        redis.exceptions.ClusterDownError("CLUSTERDOWN The cluster is down"),
        redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        redis.BusyLoadingError("LOADING Redis is loading the dataset in memory"),
        redis.TimeoutError("Timeout reading from socket"),
        redis.exceptions.MaxConnectionsError("too many connections"),
        redis.AuthenticationError("WRONGPASS invalid username-password pair"),
        ConnectionResetError("Connection reset by peer"),
        TimeoutError("timed out"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_refusal_counts(away: tuple[Server, Store], error: Exception) -> None:
    """Whatever word a server or the network says no with: the store is not available."""
    server, store = away
    server.error = error

    assert _fails(store) == f"{type(error).__name__}: {error}"


def test_refused_step_stays_refused(away: tuple[Server, Store], told: list[Event]) -> None:
    """A full server that takes other steps is down until it takes the one it refused."""
    server, store = away
    server.refuses = {"claim": redis.exceptions.OutOfMemoryError("OOM")}
    for _ in range(5):
        _fails(store, CLAIM)
        assert store.run(FINISH).status == "finished"
    kinds_while_full = [each.kind for each in told]
    server.refuses = {}
    store.run(FINISH)
    kinds_after_other_step = [each.kind for each in told]
    store.run(CLAIM)

    assert server.asked == 12  # a refusal is an answer: the breaker stays closed
    assert kinds_while_full == kinds_after_other_step == ["store_unavailable"]
    assert [each.kind for each in told] == ["store_unavailable", "store_recovered"]


def test_refusals_in_a_pipeline(away: tuple[Server, Store], told: list[Event]) -> None:
    """In a pipeline each step has its own answer or error."""
    server, store = away
    server.refuses = {"claim": redis.ReadOnlyError("READONLY")}
    steps: list[protocol.Step[Any]] = [RENEW, CLAIM, RENEW]
    first, second, third = store.run_many(steps)

    assert (first, third) == ("renewed", "renewed")
    assert isinstance(second, StoreUnavailableError)
    assert [each.kind for each in told] == ["store_unavailable"]


def test_pipeline_asks_while_the_breaker_is_open(away: tuple[Server, Store], clock: Any) -> None:
    """Heartbeats notice first that a store is back."""
    server, store = away
    server.error = AWAY
    for _ in range(3):
        _fails(store)
    assert isinstance(store.run_many([RENEW])[0], StoreUnavailableError)
    server.error = None

    assert store.run_many([RENEW]) == ["renewed"]
    assert store.run(CLAIM).status == "claimed"


class Nodes:
    """A carrier to several nodes, of which some are dead."""

    client: Any = None

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.asked: list[str] = []

    def node(self, step: protocol.Step[Any]) -> str:
        return step.key

    def script(self, step: protocol.Step[Any]) -> object:
        self.asked.append(step.key)
        if step.key in self.dead:
            raise AWAY
        return REPLIES[step.script.name]

    def scripts(self, steps: Sequence[protocol.Step[Any]], **_: bool) -> list[object]:
        return [AWAY if step.key in self.dead else REPLIES[step.script.name] for step in steps]


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> tuple[Nodes, Store]:
    """A store on several nodes; the key of a step is the name of its node."""
    nodes, store = Nodes(), Store(NOBODY)
    monkeypatch.setattr(store, "_carrier", lambda: nodes)
    return nodes, store


def _at(node: str) -> protocol.Step[protocol.Claim]:
    return protocol.claim(node, "m1", ttl=60, heal_after=60)


def test_a_dead_node_has_no_call_refused_that_others_answer(several: tuple[Nodes, Store]) -> None:
    """Calls for the primary that died fail at once; those for the others are sent."""
    nodes, store = several
    nodes.dead = {"a"}
    for _ in range(6):
        with pytest.raises(StoreUnavailableError):
            store.run(_at("a"))

        assert store.run(_at("b")).status == "claimed"
    assert nodes.asked.count("a") == 3


def test_the_outage_of_a_node_is_told_once(
    several: tuple[Nodes, Store], told: list[Event], clock: Any
) -> None:
    """Not again and again because others answer; it is over when another has taken its place."""
    nodes, store = several
    nodes.dead = {"a"}
    for _ in range(3):
        assert isinstance(store.run_many([_at("a"), _at("b")])[0], StoreUnavailableError)
        with pytest.raises(StoreUnavailableError):
            store.run(_at("a"))
    assert [each.kind for each in told] == ["store_unavailable"]

    clock.pass_time(4)  # nobody asks the dead one any more: its keys are those of another
    store.run(_at("b"))

    assert [each.kind for each in told] == ["store_unavailable", "store_recovered"]


def test_a_node_that_comes_back_is_asked_at_once(
    several: tuple[Nodes, Store], told: list[Event], clock: Any
) -> None:
    """After a second, as a single server is."""
    nodes, store = several
    nodes.dead = {"a"}
    for _ in range(4):
        with pytest.raises(StoreUnavailableError):
            store.run(_at("a"))
    nodes.dead = set()
    clock.pass_time(1.1)

    assert store.run(_at("a")).status == "claimed"
    assert [each.kind for each in told] == ["store_unavailable", "store_recovered"]


def test_nothing_to_send() -> None:
    """No steps, no round trip."""
    assert Store(NOBODY).run_many([]) == []


def test_siblings_share_the_outage(away: tuple[Server, Store], told: list[Event]) -> None:
    """A store and its sibling tell of one outage once."""
    server, store = away
    server.error = AWAY
    _fails(store)
    _fails(store.sibling())

    assert [each.kind for each in told] == ["store_unavailable"]


def test_ghosts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long outage does not fill the memory with claims nobody heard of."""
    monkeypatch.setattr(store_module.Ghosts, "MOST", 3)
    ghosts = store_module.Ghosts()
    for number in range(5):
        ghosts.add(f"k{number}", "n")
    assert ghosts.take("k0") == "n"

    assert [ghosts.take(f"k{number}") for number in range(5)] == ["", "n", "n", "", ""]


def test_bug_in_an_answer_is_no_outage(away: tuple[Server, Store]) -> None:
    """Only the server and the network make an outage; our own mistakes show as what they are."""
    server, store = away
    server.error = KeyError("a bug")

    with pytest.raises(KeyError):
        store.run(CLAIM)


def test_guard_reports_an_outage_at_publish(
    guarded: Callable[..., Guard], once_faults: OnceFaults
) -> None:
    """Publishing while the store is away raises, and is not sent."""
    guard = guarded()

    with once_faults.outage(), pytest.raises(StoreUnavailableError):
        claim(guard, (1,), {}, "m1")
    assert not guard.is_locked((1,), {})


def test_server_ids(server: DevServer) -> None:
    """Two stores over one server have one id; fakeredis has none, and nobody is a stranger."""
    one, two, fake = Store(server.url), Store(server.url), Store("memory://id")

    assert one.id == two.id
    assert len(one.id) == 12
    assert fake.id == ""
    assert not fake.is_other(one.id, 1)
    assert not one.is_other(one.id, 1 << 60)
    assert one.is_other("other", 1 << 60)
    assert not one.is_other("other", 1)  # from before it started: its earlier life's
