"""The ACL rules of a lock store's users: enough for everything, and nothing too much."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from _support.promise_tasks import LEASE
from _support.promises import SCENES, Scene
from _support.users import PASSWORD, UsersServer
from _support.waiting import wait_until

from once_core import lease, protocol, stream
from once_core._channel import Listener
from once_core._flow import Pause
from once_core.aio import AsyncStore
from once_core.checkup import of_store
from once_core.cli.acl import acl_command
from once_core.cli.output import Output
from once_core.cli.program import Program
from once_core.devserver import DevServer
from once_core.errors import StoreUnavailableError
from once_core.events import emit
from once_core.guard import holders
from once_core.permissions import ROLES, Role, acl, missing
from once_core.protocol import Message
from once_core.store import Store
from once_core.survey import survey

DIGEST = "0123456789abcdef0123456789abcdef"
WAITING = {"ttl": 3600.0, "heal_after": 60.0}
WORKER = {"where": "host:1:boot", "lease": 60.0}


@pytest.fixture(scope="module")
def locks() -> Iterator[UsersServer]:
    """A lock store with these users and no other."""
    with UsersServer() as server:
        yield server


@pytest.fixture(scope="module", params=list(SCENES))
def scene(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_server: DevServer,
    locks: UsersServer,
) -> Iterator[Scene]:
    """A framework with a running worker; its broker and its results are on another server."""
    folder = tmp_path_factory.mktemp(f"permissions-{request.param}")
    made = SCENES[request.param](folder, shared_server, "redis", locks)
    made.worker()
    yield made
    made.close()
    gc.collect()


@pytest.fixture
def key(unit: str) -> str:
    """Of a unit of work that no other test uses."""
    return f"once:t:{unit}:{DIGEST}"


# Enough


def test_nobody_else_is_let_in(locks: UsersServer) -> None:
    """The tests below run on a server whose default user is off."""
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=locks.port).ping()


def test_a_message_is_published_refused_run_and_its_unit_is_free(scene: Scene, unit: str) -> None:
    """The worker's rules do for a whole life: claim, start, finish, duplicates, the result."""
    scene.hold("work", unit)
    second, third = scene.send("work", unit), scene.send("work", unit)
    scene.let_go(unit)

    assert scene.published(third).is_duplicate
    assert scene.result(second) == f"done {unit}"
    wait_until(lambda: not scene.is_locked("work", unit), "the unit is free")


def test_a_lease_is_renewed(scene: Scene, unit: str) -> None:
    """The worker's rules do for the heartbeat: a body outlasts its lease, and is alone."""
    first = scene.send("brief", unit, 2.5 * LEASE)
    wait_until(lambda: scene.runs(unit), "the first body runs")
    second = scene.send("brief", unit)
    scene.result(second)

    assert scene.result(first) == f"done {unit}"
    one, two = scene.runs(unit)
    assert one.end is not None
    assert one.end <= two.start


def test_a_retry_runs(scene: Scene, unit: str) -> None:
    """The worker's rules do for a failure and its retry."""
    handle = scene.send("retrying", unit, 0.0, None, 1)

    assert scene.result(handle) == f"done {unit}"
    assert len(scene.runs(unit)) == 2


def test_the_newest_replaces_what_waits(scene: Scene, unit: str) -> None:
    """The worker's rules do for a replacing publish."""
    scene.hold("replacing", unit)
    scene.send("replacing", unit, 0.0, "old")
    newest = scene.send("replacing", unit, 0.0, "new")
    scene.let_go(unit)
    scene.result(newest)

    assert scene.runs(unit)[-1].payload == "new"


def test_a_unit_is_released_by_hand(scene: Scene, unit: str) -> None:
    """The worker's rules do for `holder`, `is_locked` and `release`."""
    held = scene.hold("work", unit)

    assert (holder := scene.holder("work", unit)) is not None
    assert holder.message_id == scene.message_id(held)
    assert scene.release("work", unit)
    assert not scene.is_locked("work", unit)
    scene.let_go(unit)


def test_nothing_was_refused(scene: Scene, locks: UsersServer, unit: str) -> None:
    """In the server's ACL LOG nothing is to be found but redis-py's telling its name."""
    scene.result(scene.send("work", unit))

    assert locks.refused("worker") == set()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_call_waits_for_its_turn(locks: UsersServer, unit: str, kind: str) -> None:
    """The worker's rules do for waiting in the line: it is told of its turn on a channel."""
    order: list[str] = []

    def wait() -> None:
        with lease(unit, url=locks.url, wait_up_to=60):
            order.append("waited")

    async def wait_async() -> None:
        async with lease(unit, url=locks.url, wait_up_to=60):
            order.append("waited")

    def run() -> None:
        asyncio.run(wait_async()) if kind == "async" else wait()

    with lease(unit, url=locks.url):
        other = threading.Thread(target=run)
        other.start()
        wait_until(lambda: locks.client().pubsub_channels(f"once:*{unit}*"), "it listens")
        order.append("held")
    other.join(60)

    assert order == ["held", "waited"]
    assert locks.refused("worker") == set()


class Shell:
    """Types commands as one of the users."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url

    def __call__(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "once_core", "-A", "shop", *words],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(self._folder), "ONCE_URL": self._url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode, done.stdout + done.stderr


SHOP = """
from once_core import once

@once(key=["account"])
def refresh(account): ...
"""


@pytest.fixture
def shell(tmp_path: Path, locks: UsersServer) -> Callable[[Role], Shell]:
    """A shell for each user, where the program is."""
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    return lambda role: Shell(tmp_path, locks.url_of(role))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("ls",), 0),
        (("ls", "--json"), 0),
        (("show", "KEY"), 0),
        (("explain", "refresh", "1"), 0),
        (("stats",), 0),
        (("doctor", "--json"), None),
    ],
    ids=["ls", "ls --json", "show", "explain", "stats", "doctor"],
)
def test_a_reader_can_look(
    shell: Callable[[Role], Shell],
    locks: UsersServer,
    key: str,
    words: tuple[str, ...],
    code: int | None,
) -> None:
    """The reader's rules do for the commands that only look."""
    Store(locks.url).run(protocol.claim(key, "m1", **WAITING))
    answered, said = shell("reader")(*[key if word == "KEY" else word for word in words])

    assert "NOPERM" not in said
    assert "NoPermission" not in said
    assert code is None or answered == code
    assert locks.refused("reader") == set()


def test_an_operator_can_release(
    shell: Callable[[Role], Shell], locks: UsersServer, key: str
) -> None:
    """The operator's rules do for `release`."""
    Store(locks.url).run(protocol.claim(key, "m1", **WAITING))

    code, said = shell("operator")("release", key, "--yes")

    assert code == 0
    assert "Freed from m1." in said
    assert locks.refused("operator") == set()


# Nothing too much


def test_a_reader_cannot_claim_or_release(
    shell: Callable[[Role], Shell], locks: UsersServer, key: str
) -> None:
    """Whoever only looks can neither take nor free a unit of work, whatever it is asked to."""
    with pytest.raises(StoreUnavailableError):
        Store(locks.url_of("reader")).run(protocol.claim(key, "m2", **WAITING))
    Store(locks.url).run(protocol.claim(key, "m1", **WAITING))
    with pytest.raises(StoreUnavailableError):
        Store(locks.url_of("reader")).run(protocol.release(key))

    code, said = shell("reader")("release", key, "--yes")

    assert code == 2
    assert "once doctor --acl" in said
    assert locks.client().hget(key, "wi") == b"m1"
    locks.client().execute_command("ACL", "LOG", "RESET")


@pytest.mark.parametrize("role", ROLES)
def test_nobody_touches_what_is_not_once_s(locks: UsersServer, role: Role) -> None:
    """No user reads, writes or hears anything outside of the prefix, nor inside of a script."""
    admin, user = locks.client(), locks.client_of(role)
    foreign = ["celery", "session:" + DIGEST, "onceupon:" + DIGEST]
    for key in foreign:
        admin.hset(key, "secret", "1")
    own_words = {rule[1:].upper() for rule in acl(role) if rule[0] == "+"}
    calls: list[tuple[Any, ...]] = []
    for key in foreign:
        calls += [("HGETALL", key), ("GET", key), ("DEL", key), ("HSET", key, "a", "b")]
        calls += [("PUBLISH", key, "x"), ("XADD", key, "*", "a", "b"), ("EVAL", "return 1", 1, key)]
        calls += [("XREAD", "STREAMS", key, "0"), ("PEXPIRE", key, 1)]
        for inner in ("hgetall", "del", "hset"):
            more = ", 'a', 'b'" if inner == "hset" else ""
            calls.append(("EVAL", f"return redis.call('{inner}', ARGV[1]{more})", 0, key))
        calls.append(("EVAL", "return redis.call('publish', ARGV[1], 'x')", 0, key))
    calls += [("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("MONITOR",)]

    for call in calls:
        with pytest.raises(redis.ResponseError) as caught:
            user.execute_command(*call)
        assert "ermission" in str(caught.value), (call, own_words)
    assert [admin.hgetall(key) for key in foreign] == [{b"secret": b"1"}] * 3
    admin.delete(*foreign)
    admin.execute_command("ACL", "LOG", "RESET")


def test_a_prefix_is_no_pattern(locks: UsersServer) -> None:
    """A prefix with characters that mean something in patterns opens nothing else."""
    locks.add_user("tenant", acl("worker", "a[bc]*"))
    user = locks.client_of("tenant")

    assert user.hgetall("a[bc]*:x") == {}
    for key in ("ab:x", "abc:x", "a[bc]d:x"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.hgetall(key)
    locks.client().execute_command("ACL", "LOG", "RESET")


# Each rule is needed


def _told(store: Store, beside: str, **more: Any) -> list[stream.Entry]:
    """The events of a task; outages, which others of this process tell, are of none."""
    return [each for each in stream.read(store, beside, **more) if each.event.kind == "started"]


def _note(locks: UsersServer, store: Store, key: str) -> int:
    """Have one event written as those of a task with ``events=``; how many are there then."""
    beside = key.rpartition(":")[0]
    admin = Store(locks.url_of("admin", database=1))
    stream.keep(key, store, beside, 100)
    emit("started", task=key)
    try:
        return len(wait_until(lambda: _told(admin, beside), "it is written", within=3))
    except AssertionError:
        return 0


def _is_told_of_replicas(store: Store, key: str) -> bool:
    """Whether a claim with `min_replicas=1` learns that there is none."""
    with pytest.raises(StoreUnavailableError) as caught:
        store.run(protocol.claim(f"{key}-replicas", "m2", replicas=1, **WAITING))
    return "0 of min_replicas=1" in str(caught.value)


def _worker(locks: UsersServer, user: str, key: str) -> dict[str, object]:
    """What a producer, a worker and a call that waits get to see."""
    seen: dict[str, object] = {}
    admin = locks.client()
    admin.select(1)
    admin.script_flush()
    store = Store(locks.url_of(user, database=1))

    def attempt(name: str, act: Callable[[], object]) -> None:
        try:
            seen[name] = act()
        except (StoreUnavailableError, redis.RedisError) as error:
            seen[name] = type(error).__name__

    def claim(message_id: str) -> protocol.Claim:
        return store.run(protocol.claim(key, message_id, **WAITING))

    def start(message: Message, name: str, park: float = 0.0) -> str:
        step = protocol.start(key, message, name, park=park, **WORKER, **WAITING)
        return store.run(step).status

    def finish(message: Message, name: str) -> str:
        return store.run(protocol.finish(key, message, name, "success", **WAITING)).status

    first = Message("m1")

    def publish() -> str:
        nonlocal first
        answer = claim("m1")
        first = Message("m1", answer.ticket)
        return answer.status

    attempt("publish", publish)
    attempt("duplicate", lambda: claim("m2").status)
    attempt("counted", lambda: admin.hget(key, "wz"))
    attempt("every record ends", lambda: admin.pttl(key) > 0)
    attempt("run", lambda: start(first, "a1"))
    attempt("asks its replicas", lambda: _is_told_of_replicas(store, key))
    attempt("renewal", lambda: store.run(
        protocol.renew(key, first, "a1", fence=1, held=0.0, **WORKER)))  # fmt: skip
    listener = Listener(store.client)
    turn = Pause(protocol.turn_channel(key, "a2"), 0.3)
    attempt("waits in line", lambda: start(Message("m3"), "a2", park=60.0))
    attempt("listens", lambda: listener.wait(turn))
    admin.hset(key, "future", "a field of a newer version")
    admin.pexpire(key, 10**9)
    attempt("end", lambda: finish(first, "a1"))
    attempt("hears", lambda: listener.wait(turn))
    attempt("a newer version's field lives as long", lambda: admin.pttl(key) > 10**8)
    admin.hdel(key, "future")
    attempt("its turn ends", lambda: finish(Message("m3"), "a2"))
    attempt("leaves nothing", lambda: admin.exists(key))
    attempt("knows its store", lambda: bool(store.id))
    attempt("notes its events", lambda: _note(locks, store, key))
    attempt("its events end", lambda: admin.ttl(stream.name(key.rpartition(":")[0])) > 0)
    listener.close()
    admin.delete(key, f"{key}-replicas")
    return seen


WORKER_SEES: dict[str, object] = {
    "publish": "claimed",
    "duplicate": "waiting",
    "counted": b"1",
    "every record ends": True,
    "run": "started",
    "asks its replicas": True,
    "renewal": "renewed",
    "waits in line": "overlap",
    "listens": True,
    "end": "finished",
    "hears": True,
    "a newer version's field lives as long": True,
    "its turn ends": "finished",
    "leaves nothing": 0,
    "knows its store": True,
    "notes its events": 1,
    "its events end": True,
}


def test_a_worker_sees_all_of_this(locks: UsersServer, key: str) -> None:
    """With all rules of the worker each part of the promises is kept."""
    assert _worker(locks, "worker", key) == WORKER_SEES


@pytest.mark.parametrize("rule", acl("worker"))
def test_no_rule_of_a_worker_can_be_left_out(locks: UsersServer, key: str, rule: str) -> None:
    """Without any one of the worker's rules some part of the promises is not kept."""
    assert _worker(locks, locks.without("worker", rule), key) != WORKER_SEES
    locks.client().execute_command("ACL", "LOG", "RESET")


def _looks(locks: UsersServer, user: str, key: str) -> dict[str, object]:
    """What somebody who looks gets to see."""
    admin = locks.client()
    admin.select(1)
    admin.flushdb()  # a server of this module's own
    worker = Store(locks.url_of("worker", database=1))
    worker.run(protocol.claim(key, "m1", **WAITING))
    beside = key.rpartition(":")[0]
    assert _note(locks, worker, key) == 1
    [last] = [entry.id for entry in _told(Store(locks.url_of("admin", database=1)), beside)]
    store = Store(locks.url_of(user, database=1))
    admin.script_flush()
    seen: dict[str, object] = {}
    for name, look in (
        ("show", lambda: [each.message_id for each in holders(store.run(protocol.inspect(key)))]),
        ("again", lambda: [each.message_id for each in holders(store.run(protocol.inspect(key)))]),
        ("ls", lambda: [unit.key for unit in survey(store)]),
        ("doctor", lambda: sorted({each.level for each in of_store(store)})),
        ("events", lambda: len(_told(store, beside))),
        ("watch", lambda: len(_told(store, beside, after="0"))),
        ("watch and wait", lambda: len(_told(store, beside, after=last, wait=0.1))),
        ("knows its store", lambda: bool(store.id)),
    ):
        try:
            seen[name] = look()
        except (StoreUnavailableError, redis.RedisError) as error:
            seen[name] = type(error).__name__
    return seen


@pytest.mark.parametrize("role", ["reader", "operator"])
def test_no_rule_of_who_looks_can_be_left_out(locks: UsersServer, key: str, role: Role) -> None:
    """Without any one of a reader's rules some command that looks says less."""
    whole = _looks(locks, role, key)

    assert whole["show"] == whole["again"] == ["m1"]
    assert (whole["ls"], whole["events"], whole["watch"]) == ([key], 1, 1)
    for rule in acl("reader"):
        assert _looks(locks, locks.without(role, rule), key) != whole, rule
    locks.client().execute_command("ACL", "LOG", "RESET")


def _releases(locks: UsersServer, user: str, key: str) -> dict[str, object]:
    """What somebody who frees a unit of work gets to see, and who waits for it."""
    admin = locks.client()
    worker, store = Store(locks.url), Store(locks.url_of(user))
    listener = Listener(worker.client)
    turn = Pause(protocol.turn_channel(key, "a2"), 0.3)
    seen: dict[str, object] = {}

    def release(name: str, holder: str = "") -> None:
        try:
            seen[name] = store.run(protocol.release(key, holder)).status
        except StoreUnavailableError:
            seen[name] = "refused"
        seen[f"{name}: every record ends"] = admin.pttl(key) != -1

    admin.delete(key)
    worker.run(protocol.claim(key, "m1", **WAITING))
    release("waiting")
    admin.delete(key)
    ticket = worker.run(protocol.claim(key, "m1", **WAITING)).ticket
    message = Message("m1", ticket)
    worker.run(protocol.start(key, message, "a1", **WORKER, **WAITING))
    worker.run(protocol.start(key, Message("m2"), "a2", park=60.0, **WORKER, **WAITING))
    listener.wait(turn)
    admin.hset(key, "future", "a field of a newer version")
    admin.pexpire(key, 10**9)
    release("running")
    seen["who waits hears of it"] = listener.wait(turn)
    seen["a newer version's field lives as long"] = admin.pttl(key) > 10**8
    seen["noted"] = bool(_note(locks, Store(locks.url_of(user, database=1)), key))
    admin.select(1)
    seen["events end"] = admin.ttl(stream.name(key.rpartition(":")[0])) > 0
    admin.flushdb()
    admin.select(0)
    listener.close()
    admin.delete(key)
    return seen


def test_no_rule_of_an_operator_can_be_left_out(locks: UsersServer, key: str) -> None:
    """Without any one of the operator's rules that a reader has not, `release` does less."""
    whole = _releases(locks, "operator", key)

    assert set(whole.values()) == {"released", True}
    for rule in set(acl("operator")) - set(acl("reader")):
        assert _releases(locks, locks.without("operator", rule), key) != whole, rule
    locks.client().execute_command("ACL", "LOG", "RESET")


# What is said to whoever lacks something


@pytest.mark.parametrize("rule", ["+evalsha", "+hset", "+time", "~once:*"])
def test_who_lacks_a_rule_is_told_where_the_rules_are(
    locks: UsersServer, key: str, rule: str
) -> None:
    """A refusal by the ACL is a StoreUnavailableError that names `once doctor --acl`."""
    url = locks.url_of(locks.without("worker", rule))
    step = protocol.claim(key, "m1", **WAITING)
    with pytest.raises(StoreUnavailableError, match="`once doctor --acl` prints what") as caught:
        Store(url).run(step)
    with pytest.raises(StoreUnavailableError, match="`once doctor --acl` prints what"):
        asyncio.run(AsyncStore(url).run(step))

    assert "ermission" in str(caught.value.reason)
    assert PASSWORD not in str(caught.value)
    locks.client().execute_command("ACL", "LOG", "RESET")


@pytest.mark.parametrize("role", ROLES)
def test_missing_names_the_rule_that_is_missing(locks: UsersServer, role: Role) -> None:
    """`missing` finds each rule of a role that a user has not, and changes nothing."""
    assert missing(Store(locks.url_of(role)), role) == []
    for rule in acl(role):
        if rule == "+wait":  # whoever needs it learns so from its calls: most do not
            continue
        user = locks.without(role, rule)
        database = 1 if rule == "+select" else 0
        assert missing(Store(locks.url_of(user, database)), role) == [rule]
    assert locks.client().keys("once:doctor*") == []
    locks.client().execute_command("ACL", "LOG", "RESET")


def test_missing_is_silent_where_nobody_answers() -> None:
    """A server that is away, or that asks for a password, says nothing about permissions."""
    assert missing(Store("redis://127.0.0.1:1"), "worker") == []


def test_the_printed_lines_can_be_pasted(
    server: DevServer, unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`once doctor --acl` prints one line for each user, and the server takes them as they are."""
    program = Program("", prefix="shop")

    assert acl_command(program, Namespace(), Output(is_json=False)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[0] != "#"]
    for line in lines:
        server.client().execute_command(*line.split())
    url = f"redis://shop-worker:PASSWORD@127.0.0.1:{server.port}"
    claim = Store(url).run(protocol.claim(f"shop:{unit}:{DIGEST}", "m1", **WAITING))

    assert [line.split()[2] for line in lines] == ["shop-worker", "shop-reader", "shop-operator"]
    assert claim.status == "claimed"


def test_the_lines_are_there_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """`once doctor --acl --json` gives user, role, prefix, rules and line."""
    acl_command(Program(""), Namespace(), Output(is_json=True))
    worker, *_ = json.loads(capsys.readouterr().out)

    assert (worker["user"], worker["role"], worker["prefix"]) == ("once-worker", "worker", "once")
    assert worker["rules"] == acl("worker")
    assert worker["line"].endswith(" ".join(acl("worker")))


def test_a_cluster_needs_two_more(unit: str) -> None:
    """On a Cluster redis-py asks where the slots are; with ``cluster=True`` it may."""
    with UsersServer(arguments=["--cluster-enabled", "yes"]) as server:
        server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        rules = acl("worker", cluster=True)
        place = f"127.0.0.1:{server.port}"
        key = f"once:{unit}:{DIGEST}"

        def claims(name: str, rules: list[str]) -> str:
            server.add_user(name, rules)
            try:
                store = Store(f"redis+cluster://{name}:{PASSWORD}@{place}")
                return store.run(protocol.claim(key, "m1", **WAITING)).status
            except StoreUnavailableError:
                return "refused"

        wait_until(lambda: claims("whole", rules) == "claimed", "the cluster is up")
        assert server.refused("whole") == set()
        assert missing(Store(f"redis+cluster://whole:{PASSWORD}@{place}"), "worker") == []
        assert claims("plain", acl("worker")) == "refused"


def test_doctor_says_what_the_user_of_the_url_lacks(
    server: DevServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the rules of each role, for it may be meant for another."""
    rules = acl("reader")
    server.client().execute_command("ACL", "SETUSER", "eye", "reset", "on", ">pw", *rules)
    program = Program("", find_store=lambda: Store(server.url.replace("//", "//eye:pw@")))

    acl_command(program, Namespace(), Output(is_json=True))

    lacks = {each["role"]: each["lacks"] for each in json.loads(capsys.readouterr().out)}
    assert lacks["reader"] == []
    assert "+hset" in lacks["worker"]


def test_doctor_waits_for_a_frozen_server_once(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not once for each of the commands that a role needs: that took a minute."""
    asked: list[object] = []
    store = Store(server.url)
    client = store.client()
    ask = client.execute_command
    monkeypatch.setattr(client, "execute_command", lambda *a, **k: (asked.append(a), ask(*a, **k)))
    server.pause()

    assert [missing(store, role) for role in ROLES] == [[], [], []]
    assert asked == [("PING",)] * 3
    server.resume()
