"""What `docs/explanation/security.md` says: the docstrings here are its lines."""

from __future__ import annotations

import ast
import asyncio
import logging
import pickle
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dramatiq
import pytest
import redis
from _support.dramatiq_deployment import ThreadWorker
from _support.tls import Proxies, make_certificates
from _support.users import PASSWORD, UsersServer
from _support.waiting import wait_until
from celery import Celery
from celery.contrib.testing.worker import start_worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

import once_celery
import once_core
import once_dramatiq
import once_pytest
from once_celery import OnceTask
from once_core import Guard, OnceOptions, configure, lease, once, protocol, stream
from once_core.__main__ import _parser, main
from once_core._client import make_async_client, make_client
from once_core.aio import AsyncStore
from once_core.devserver import DevServer
from once_core.envelope import HEADER, Envelope
from once_core.errors import (
    ConfigurationError,
    KeyDerivationError,
    OnceError,
    StoreUnavailableError,
)
from once_core.events import Event, subscribe
from once_core.store import Store
from once_dramatiq import OnceMiddleware
from once_dramatiq.handles import guard_of

if TYPE_CHECKING:
    from typing_extensions import Self

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "security.md"
DIGEST = "0123456789abcdef0123456789abcdef"
ARGUMENT = "hunter2-argument"
SHOWN = "shown-argument"
WAITING = {"ttl": 3600.0, "heal_after": 60.0}
PICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle"}


# The page


def _lines() -> list[tuple[str, str]]:
    """The statements of the page, each with its test."""
    rows = re.findall(
        r"^\| (.+) \| `(test_\w+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [(re.sub(r"[`\\]", "", statement), test) for statement, test in rows]


def _tests() -> dict[str, str]:
    """The tests of this file and of that of permissions, with what their docstrings say."""
    found = {}
    for name in ("test_security.py", "test_permissions.py"):
        tree = ast.parse(Path(__file__).with_name(name).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                said = re.sub(r"[`\\]", "", ast.get_docstring(node) or "")
                found[node.name] = " ".join(said.split())
    return found


def test_each_line_of_the_page_is_what_its_test_says() -> None:
    """Every statement of the page is the docstring of a test, word by word."""
    lines, tests = _lines(), _tests()

    assert len(lines) > 20
    assert [(said, tests.get(test)) for said, test in lines if tests.get(test) != said] == []


# What is stored


class Watch:
    """Everything that once says and stores while something happens."""

    def __init__(self, server: DevServer) -> None:
        self.server = server
        self.sent: list[str] = []
        self.events: list[Event] = []
        self.log: list[str] = []

    def __enter__(self) -> Self:
        self._stop = subscribe(self.events.append)
        self._handler = logging.Handler()
        self._handler.emit = lambda record: self.log.append(  # type: ignore[method-assign]
            f"{record.getMessage()} {vars(record)}"
        )
        self._logger = logging.getLogger("once")
        self._before = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self._handler)
        self._monitor = self.server.client().monitor()
        self._monitor.__enter__()
        self._end = f"the end {uuid.uuid4().hex}"
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        return self

    def _listen(self) -> None:
        while True:
            said = str(self._monitor.next_command()["command"])
            if self._end in said:
                return
            self.sent.append(said)

    def __exit__(self, *_error: object) -> None:
        self.server.client().echo(self._end)
        self._thread.join(20)
        self._monitor.__exit__(None, None, None)
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._before)
        self._stop()

    def all(self) -> str:
        """In one text."""
        return "\n".join([*self.sent, *map(repr, self.events), *map(str, self.events), *self.log])


Call = Callable[..., Any]


class Program:
    """A program with a worker in this process: its broker and its results are in memory.

    Args:
        framework: Whose.
        url: Of the lock store.
        options: Of the task ``pay``, whose body waits for `gate` where its argument says so.
    """

    def __init__(self, framework: str, url: str, **options: Any) -> None:
        self.gate = threading.Event()
        self.ran: list[object] = []
        self._framework = framework
        settings = {"lease": 60, **options}

        def pay(card: object, *, note: object = "", nested: object = None) -> object:
            self.ran.append(card)
            self.gate.wait(20)
            if note == "fails":
                raise ValueError(f"{card} was refused")
            return {"paid": card}

        if framework == "celery":
            app = Celery(broker=f"memory://{uuid.uuid4().hex}", backend="cache+memory://")
            app.conf.update(
                task_default_queue=uuid.uuid4().hex,
                once_url=url,
                once_events=100,
                worker_hijack_root_logger=False,
            )
            self.task: Any = app.task(
                base=OnceTask, once=settings, name="pay", shared=False, max_retries=0
            )(pay)
            self._context: Any = start_worker(
                app, pool="threads", concurrency=4, perform_ping_check=False, loglevel="ERROR"
            )
            self._context.__enter__()
        else:
            broker = StubBroker()
            broker.add_middleware(Results(backend=StubBackend()))
            broker.add_middleware(OnceMiddleware(url=url, events=100))
            self.task = dramatiq.actor(
                actor_name="pay", broker=broker, once=settings, store_results=True, max_retries=0
            )(pay)
            self._worker = ThreadWorker(broker, 4)
        is_celery = framework == "celery"
        self.guard: Guard = self.task.once_guard() if is_celery else guard_of(self.task)

    def send(
        self, *args: object, headers: Mapping[str, object] | None = None, **kwargs: object
    ) -> str:
        """Trigger it; the id of its message. With a forged header where one is given."""
        if headers is None:
            sent = (
                self.task.delay(*args, **kwargs)
                if self._framework == "celery"
                else self.task.send(*args, **kwargs)
            )
            return str(sent.id if self._framework == "celery" else sent.message_id)
        message_id = uuid.uuid4().hex
        forged = {"id": message_id, "task": "pay", **headers}
        if self._framework == "celery":
            # past once, as anybody who can write to the broker
            Celery.send_task(
                self.task.app, "pay", args, kwargs, task_id=message_id, headers={HEADER: forged}
            )
        else:
            message = self.task.message(*args, **kwargs)
            options = {**message.options, HEADER: forged}
            message = message.copy(message_id=message_id, options=options)
            self.task.broker.queues["default"].put(message.encode())
        return message_id

    def close(self) -> None:
        """End its worker."""
        self.gate.set()
        if self._framework == "celery":
            self._context.__exit__(None, None, None)
            self.task.app.close()
        else:
            self._worker.kill()

    def has_run(self, argument: object) -> None:
        """Wait until a body was given this."""
        wait_until(lambda: argument in self.ran, "the body runs")


@pytest.fixture(scope="module")
def locks() -> Iterator[UsersServer]:
    """A lock store with users and passwords."""
    with UsersServer() as server:
        yield server


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    """What `--url` of a command gave to this process is forgotten."""
    yield
    configure()


@pytest.fixture
def fresh_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of this test do not stand behind those of another, whose server is gone."""
    monkeypatch.setattr(stream, "_process", {})


@pytest.fixture(params=["celery", "dramatiq"])
def program(request: pytest.FixtureRequest, fresh_writer: None) -> Iterator[Callable[..., Program]]:
    """Makes the program of a test, on either framework."""
    made: list[Program] = []

    def make(url: str, **options: Any) -> Program:
        made.append(Program(request.param, url, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _lifecycle(program: Program, server: DevServer, capsys: pytest.CaptureFixture[str]) -> str:
    """All that is said and stored of calls with a secret argument, of commands too."""
    client = server.client()
    with Watch(server) as watch:
        nested = {"cards": [{"number": ARGUMENT}], SHOWN: (ARGUMENT,)}
        program.send(ARGUMENT, note=ARGUMENT, nested=nested)
        program.has_run(ARGUMENT)
        program.send(ARGUMENT, note=ARGUMENT, nested=nested)  # one waits behind it
        program.send(ARGUMENT, note=ARGUMENT, nested=nested)  # and one is refused
        program.send(f"{ARGUMENT}-2", note="fails")
        stored = [repr(client.execute_command("HGETALL", key)) for key in client.keys("once:*")
                  if client.type(key) == b"hash"]  # fmt: skip
        shown = [["show", key.decode()] for key in client.keys("once:*:*")]
        for words in (["ls"], ["stats"], ["doctor"], *shown):
            main([*words, "--url", server.url])
            main([*words, "--url", server.url, "--json"])
        program.gate.set()
        wait_until(lambda: not client.keys("once:pay:*"), "all have ended")
        wait_until(lambda: any("finished" in str(each.event) for each in stream.read(
            Store(server.url), count=1000)), "events are written")  # fmt: skip
        kept = [repr(each) for each in client.xrange("once:events")]
    output = capsys.readouterr()
    assert "pay" in output.out
    assert stored
    return "\n".join([watch.all(), *stored, *kept, output.out, output.err])


def test_no_argument_appears(
    program: Callable[..., Program], server: DevServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """No argument, result or exception of a task is sent to the lock store, logged by `once`, in an
    event, or in the output of a command.
    """  # noqa: D205  # a line of the page
    found = _lifecycle(program(server.url, lease=1), server, capsys)

    assert "EVALSHA" in found
    assert ARGUMENT not in found
    assert SHOWN not in found


def test_what_is_named_appears(
    program: Callable[..., Program], server: DevServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """An argument appears where a template of `key=` or `preview=` names it, and nowhere else."""
    made = program(server.url, key="card-{card}", preview=["note"])
    with Watch(server) as watch:
        made.gate.set()
        made.send("7", note=ARGUMENT, nested=SHOWN)
        wait_until(lambda: any(each.kind == "finished" for each in watch.events), "it has ended")

    assert "once:pay:card-7:" in watch.all()
    assert any(ARGUMENT in each.preview for each in watch.events)
    assert SHOWN not in watch.all()


def test_an_error_names_the_parameter_and_not_its_value() -> None:
    """An error about arguments names the parameter and the type of the value, not the value."""

    class Card:
        def __repr__(self) -> str:
            return ARGUMENT

    guard = Guard("pay", lambda card: card, OnceOptions(), lambda: Store("memory://unused"))
    with pytest.raises(KeyDerivationError) as caught:
        guard.key(([Card()],), {})

    assert "card" in str(caught.value)
    assert "Card" in str(caught.value)
    assert ARGUMENT not in str(caught.value) + repr(vars(caught.value))


PARTS = r"(w|n|q|o|z|t|k[1-3]?|x[0-9]+|y[0-9]*|p[0-9]+)"


def test_the_store_holds_hashes_and_a_stream(
    program: Callable[..., Program], server: DevServer
) -> None:
    """The lock store holds one hash for each unit of work (times, counters, message ids,
    `host:pid`, random tokens, digests), with `events=` one stream, and no other key.
    """  # noqa: D205  # a line of the page
    client = server.client()
    made = program(server.url, key=["card"], on_duplicate="replace")
    made.send("1")
    made.has_run("1")
    made.send("1")
    made.send("1", note="newer")
    hashes = [key for key in client.keys("*") if client.type(key) == b"hash"]
    fields: dict[str, str] = {}
    for key in hashes:
        found = client.hgetall(key)
        fields.update({name.decode(): value.decode() for name, value in found.items()})
    wait_until(lambda: client.exists("once:events"), "events are written")

    assert len(hashes) == 1
    assert {"wi", "wt", "x0a", "x0b", "x0i", "x0f"} <= set(fields)
    assert [name for name in fields if not re.fullmatch(rf"[lv]|{PARTS}[a-z]", name)] == []
    plain = r"-?[0-9]+|[0-9a-f-]{1,64}|[\w.-]+:[0-9]+(:\S+)?"  # numbers, ids and digests, places
    assert [pair for pair in fields.items() if not re.fullmatch(plain, pair[1])] == []
    assert {client.type(key) for key in client.keys("*") if key not in hashes} == {b"stream"}
    assert all(client.pttl(key) > 0 for key in client.keys("*"))


def test_nothing_is_pickled() -> None:
    """Nothing is pickled: no module of the packages imports a pickler."""
    packages = (once_core, once_celery, once_dramatiq, once_pytest)
    files = [path for package in packages for path in Path(package.__path__[0]).rglob("*.py")]
    imported = {
        (path.name, name.partition(".")[0])
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom)
                     else [each.name for each in node.names])
    }  # fmt: skip

    assert len(files) > 100
    assert {(path, name) for path, name in imported if name in PICKLERS} == set()


def test_who_reads_redis_can_guess() -> None:
    """Without `secret=`, whoever reads Redis can try each likely argument and compare digests."""
    told = Guard("pay", lambda pin: pin, OnceOptions(), lambda: None).key(("0042",), {})
    guesser = Guard("pay", lambda pin: pin, OnceOptions(), lambda: None)

    assert [pin for pin in range(100) if guesser.key((f"{pin:04}",), {}) == told] == [42]


@pytest.mark.parametrize("guess", [None, "another secret"])
def test_who_has_not_the_secret_cannot_guess(guess: str | None) -> None:
    """With `secret=` the digest of a key, and that of the arguments of a message that may be
    replaced, is an HMAC: without the secret no guess matches.
    """  # noqa: D205  # a line of the page
    made = Guard("pay", lambda pin: pin, OnceOptions(secret="the secret"), lambda: None)
    guesser = Guard("pay", lambda pin: pin, OnceOptions(secret=guess), lambda: None)
    guesses = [(f"{pin:04}",) for pin in range(100)]

    assert made.key(("0042",), {}) not in [guesser.key(each, {}) for each in guesses]
    assert made.keys.fingerprint(("0042",), {}) not in [
        guesser.keys.fingerprint(each, {}) for each in guesses
    ]
    assert made.key(("0042",), {}) == made.key((), {"pin": "0042"})


# Passwords


LOGIN = "hunter2"
AT = "127.0.0.1:1"
URLS = [
    f"redis://me:{LOGIN}@{AT}/0",
    f"redis://:{LOGIN}@{AT}",
    f"rediss://:{LOGIN}@{AT}",
    f"redis://{AT}/0?username=me&password={LOGIN}",
    f"redis+sentinel://:{LOGIN}@{AT}/main",
    f"redis+sentinel://:{LOGIN}@{AT}",
    f"redis+cluster://:{LOGIN}@{AT}",
    f"unix://:{LOGIN}@/no/such.sock",
    # that cannot be
    f"memcached://:{LOGIN}@{AT}",
    f"me:{LOGIN}@{AT}",
    f"//:{LOGIN}@{AT}",
    f"redis:/:{LOGIN}@{AT}",
    f"redis://:{LOGIN}@host:notaport",
    f"redis://:{LOGIN}@host:999999",
    f"redis://{AT}/0?no_such_option={LOGIN}",
    f"redis://{AT}/0?db={LOGIN}",
    # whose password has a character that means something
    *(f"{scheme}://:{LOGIN}{sign}x@{AT}/main" for sign in "?#/[]@:,\u2100%\n"
      for scheme in ("redis", "rediss", "redis+sentinel", "redis+cluster")),
]  # fmt: skip


def _everything_of(error: BaseException) -> str:
    """What an error says, holds and sends to another process."""
    said = [str(error), repr(error), repr(vars(error)), repr(pickle.dumps(error))]
    return "\n".join(said)


@pytest.mark.parametrize("url", URLS, ids=lambda url: url.replace(LOGIN, "PASSWORD"))
def test_no_error_shows_a_password(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """No error shows a password of the store's URL: not of a store that is away, and not of a URL
    that cannot be; nor does it when it is pickled.
    """  # noqa: D205  # a line of the page
    step = protocol.claim("once:x", "m1", **WAITING)
    said = []
    for carry in (
        lambda: Store(url).run(step),
        lambda: asyncio.run(AsyncStore(url).run(step)),
        lambda: once(url=url)(_pay)("card"),
        lambda: _enter(url),
    ):
        with pytest.raises(OnceError) as caught:
            carry()
        assert isinstance(caught.value, (ConfigurationError, StoreUnavailableError))
        said.append(_everything_of(caught.value))

    assert LOGIN not in "\n".join([*said, Store(url).place, caplog.text])


def _pay(card: object) -> object:
    return card


def _enter(url: str) -> None:
    with lease("x", url=url):
        pass


@pytest.mark.parametrize("binding", [once_celery, once_dramatiq])
def test_no_error_of_a_binding_shows_a_password(binding: Any) -> None:
    """The same holds for what `delay` and `send` raise."""
    url = URLS[0]
    if binding is once_celery:
        app = Celery(broker="memory://")
        app.conf.once_url = url
        send = app.task(base=OnceTask, name="pay", shared=False)(_pay).delay
    else:
        broker = StubBroker()
        broker.add_middleware(OnceMiddleware(url=url))
        send = dramatiq.actor(actor_name="pay", broker=broker, once={})(_pay).send
    with pytest.raises(binding.StoreUnavailableError) as caught:
        send("card")

    assert LOGIN not in _everything_of(caught.value)


def test_no_repr_shows_a_password_or_a_secret() -> None:
    """Neither options, stores, guards, tasks, actors nor functions show a password or `secret=` by
    their `repr`.
    """  # noqa: D205  # a line of the page
    url = URLS[0]
    options = {"url": url, "secret": LOGIN}
    app, broker = Celery(broker="memory://"), StubBroker()
    middleware = OnceMiddleware(url=url)
    broker.add_middleware(middleware)
    guard = Guard("pay", _pay, OnceOptions(**options), lambda: Store(url))
    things = [
        OnceOptions(**options),
        Store(url),
        AsyncStore(url),
        guard,
        guard.keys,
        middleware,
        once(**options)(_pay),
        app.task(base=OnceTask, once=options, name="pay", shared=False)(_pay),
        dramatiq.actor(actor_name="pay", broker=broker, once={"key": ["card"]})(_pay),
    ]

    assert LOGIN not in "\n".join(f"{each!r} {each}" for each in things)


SERVES = {"demo", "web", "watch"}
"""Commands that go on until they are ended."""


@pytest.mark.parametrize("state", ["there", "away", "wrong password", "no url"])
def test_no_command_shows_a_password(
    locks: UsersServer,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No command shows the password of its store, for people or with `--json`, whether the store is
    there or not.
    """  # noqa: D205  # a line of the page
    password = PASSWORD if state == "there" else f"{PASSWORD}-2"
    place = AT if state == "away" else f"127.0.0.1:{locks.port}"
    url = f"redis://operator:{password}@{place}"
    if state == "no url":
        url = f"operator:{password}@{place}"
    key = f"once:pay:{DIGEST}"
    if state == "there":
        Store(locks.url).run(protocol.claim(key, "m1", **WAITING))
    monkeypatch.setenv("ONCE_URL", url)
    [commands] = [list(each.choices) for each in _parser()._actions if each.choices]
    said = ""
    for command in sorted({*commands} - SERVES):
        more = {"explain": ["pay"], "show": [key], "release": [key, "--yes"]}.get(command, [])
        for flags in ([], ["--json"]):
            try:
                main([command, *more, *flags])
            except SystemExit:
                pass  # it wants other arguments
            caught = capsys.readouterr()
            said += caught.out + caught.err

    assert "***@" in said
    assert PASSWORD not in said


def test_celery_shows_once_url() -> None:
    """Celery's own `celery report` and `inspect conf` hide the passwords of `broker_url`, but show
    `once_url`: give it by `ONCE_URL` where others may see these.
    """  # noqa: D205  # a line of the page
    app = Celery(broker=f"redis://:{LOGIN}@{AT}")
    assert LOGIN not in app.bugreport()
    app.conf.once_url = URLS[0]

    assert LOGIN in app.bugreport()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a certificate of it for 127.0.0.1 alone, and another CA."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls(certificates: Path, locks: UsersServer) -> Iterator[int]:
    """Port of a lock store behind TLS."""
    with Proxies(certificates) as proxies:
        yield proxies.open(locks.port)


def _claim(kind: str, url: str) -> protocol.Claim:
    step = protocol.claim(f"once:{uuid.uuid4().hex}:{DIGEST}", "m1", **WAITING)
    return Store(url).run(step) if kind == "sync" else asyncio.run(AsyncStore(url).run(step))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_tls(tls: int, certificates: Path, kind: str) -> None:
    """`rediss://` is TLS; `?ssl_ca_certs=` names a CA of your own, and redis-py's other `ssl_`
    options work as well.
    """  # noqa: D205  # a line of the page
    url = f"rediss://worker:{PASSWORD}@127.0.0.1:{tls}?ssl_ca_certs={certificates}/ca.pem"

    assert _claim(kind, url).status == "claimed"


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("wrong", ["a CA of nobody", "another CA", "another host"])
def test_tls_verifies(
    tls: int, certificates: Path, locks: UsersServer, wrong: str, kind: str
) -> None:
    """A certificate of another CA, or for another host, is refused by default: a
    `StoreUnavailableError` with the reason, and nothing was sent.
    """  # noqa: D205  # a line of the page
    host = "localhost" if wrong == "another host" else "127.0.0.1"
    ca = {"a CA of nobody": "", "another CA": "other.pem", "another host": "ca.pem"}[wrong]
    more = f"?ssl_ca_certs={certificates}/{ca}" if ca else ""
    before = locks.client().dbsize()
    with pytest.raises(StoreUnavailableError, match=r"(?i)certificate") as caught:
        _claim(kind, f"rediss://worker:{PASSWORD}@{host}:{tls}{more}")

    assert PASSWORD not in _everything_of(caught.value)
    assert locks.client().dbsize() == before


@pytest.mark.parametrize("make", [make_client, make_async_client])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rediss://cache", True),
        ("rediss://cache?ssl_check_hostname=false", False),
        ("rediss://cache?ssl_cert_reqs=none", None),
    ],
)
def test_the_name_of_the_host_is_checked(
    make: Callable[[str], Any], url: str, expected: bool | None
) -> None:
    """The name of the host is checked also with redis-py 5, which does not by itself."""
    assert make(url).connection_pool.connection_kwargs.get("ssl_check_hostname") is expected


# The broker


def test_what_a_message_says() -> None:
    """The header of a message holds, beside what the framework sends: version, key, ticket, scope,
    message id, task, id of the store, options of the call, and counters of its deliveries; no
    argument, and nothing secret.
    """  # noqa: D205  # a line of the page
    whole = Envelope(
        f"once:pay:{DIGEST}", 5, "queued", "m1", "pay", "s", {"lease": 5}, "m0", 1, True, True,
        1, 1, 1, True, True,
    )  # fmt: skip

    assert set(whole.to_header()) == {
        "v", "key", "ticket", "scope", "id", "task", "store", "call", "dup", "n", "copy", "share",
        "r", "late", "away",
    }  # fmt: skip


@pytest.mark.parametrize(
    "forged",
    [
        {"id": "another message"},
        {"task": "another task"},
        {"key": "celery"},
        {"key": f"once:a b:{DIGEST}"},
        {"ticket": "5"},
        {"v": "1"},
    ],
    ids=str,
)
def test_a_header_of_another_message_does_not_count(
    program: Callable[..., Program], server: DevServer, forged: dict[str, object]
) -> None:
    """A header counts only for the message and the task it was made for, and only with a key of our
    form; else the worker derives the key itself, and guards the run.
    """  # noqa: D205  # a line of the page
    made = program(server.url)
    header = {"v": 1, "key": f"once:forged:{DIGEST}", "ticket": 5, "scope": "queued", **forged}
    made.send("1", headers=header)
    made.has_run("1")

    assert server.client().exists(made.guard.key(("1",), {}))
    assert server.client().keys("*forged*") == []
    assert not server.client().exists("celery")


def test_a_forged_header_cannot_bring_a_store(
    program: Callable[..., Program], server: DevServer, shared_server: DevServer
) -> None:
    """A header cannot bring another lock store, a client, a secret or a preview: such options are
    left out.
    """  # noqa: D205  # a line of the page
    made = program(server.url)
    elsewhere = shared_server.client().dbsize()
    header = {"v": 1, "key": f"once:pay:{DIGEST}", "ticket": 5, "scope": "queued+running"}
    with Watch(server) as watch:
        made.send(ARGUMENT, headers={**header, "call": {"url": shared_server.url}})
        made.has_run(ARGUMENT)
        made.send(f"{ARGUMENT}-2", headers={**header, "key": f"once:pay:{DIGEST[::-1]}",
                                            "call": {"preview": ["card"]}})  # fmt: skip
        made.has_run(f"{ARGUMENT}-2")
        running = server.client().exists(f"once:pay:{DIGEST}")
        made.gate.set()

    assert running
    assert shared_server.client().dbsize() == elsewhere
    assert ARGUMENT not in watch.all()


def test_a_forged_header_can_turn_a_guard_off(
    program: Callable[..., Program], server: DevServer
) -> None:
    """Whoever can write to the broker can run any task with any arguments, and can send it with no
    guard or under the key of another unit of work.
    """  # noqa: D205  # a line of the page
    made = program(server.url)
    made.send("1")
    made.has_run("1")
    made.send("1", headers={"scope": "off"})
    wait_until(lambda: made.ran == ["1", "1"], "both run at once")


def test_a_forged_key_reaches_nothing_else(
    program: Callable[..., Program], locks: UsersServer
) -> None:
    """Under the ACL a forged key reaches no key outside of the prefix: the message is put back, and
    does not run.
    """  # noqa: D205  # a line of the page
    foreign = f"session:{DIGEST}"
    locks.client().hset(foreign, "user", "ada")
    made = program(locks.url)
    header = {"v": 1, "key": foreign, "ticket": 5, "scope": "queued+running"}
    with Watch(locks) as watch:
        made.send("1", headers=header)
        wait_until(lambda: any(each.kind == "deferred" for each in watch.events), "it is put back")

    assert locks.client().hgetall(foreign) == {b"user": b"ada"}
    assert locks.client().ttl(foreign) == -1
    assert made.ran == []
    locks.client().delete(foreign)
    locks.client().execute_command("ACL", "LOG", "RESET")


def test_a_reader_sees_the_names_of_all_keys(locks: UsersServer) -> None:
    """Redis' SCAN and INFO know no prefix: a reader sees the names of all keys of the server,
    though not what they hold.
    """  # noqa: D205  # a line of the page
    locks.client().set("session:ada", "1")

    assert b"session:ada" in locks.client_of("reader").scan(count=10_000)[1]
    with pytest.raises(redis.exceptions.NoPermissionError):
        locks.client_of("reader").type("session:ada")
    locks.client().delete("session:ada")
    locks.client().execute_command("ACL", "LOG", "RESET")
