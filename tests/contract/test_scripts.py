"""The scripts as a server sees them: their texts, full and forgetful servers, other versions."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from once_core import _host, protocol
from once_core._scripts import STEPS, script
from once_core.aio import AsyncStore
from once_core.errors import StoreUnavailableError
from once_core.protocol import Message
from once_core.store import Store

if TYPE_CHECKING:
    from once_core.devserver import DevServer

WAITING: dict[str, Any] = {"ttl": 3600.0, "heal_after": 60.0}
WORKER: dict[str, Any] = {"where": "host:1:boot", "lease": 60.0}
M1 = Message("m1", 1)

EVERY_STEP = {
    "leave": protocol.leave("k", "a1"),
    "age": protocol.age("k", 1.0),
    "claim": protocol.claim("k", "m1", **WAITING),
    "confirm": protocol.confirm("k", 1, ttl=60.0),
    "finish": protocol.finish("k", M1, "a1", "success", **WAITING),
    "inspect": protocol.inspect("k"),
    "reap": protocol.reap("k", "m1"),
    "release": protocol.release("k"),
    "renew": protocol.renew("k", M1, "a1", fence=1, held=0.0, **WORKER),
    "start": protocol.start("k", M1, "a1", **WORKER, **WAITING),
    "withdraw": protocol.withdraw("k", M1),
}


def start(key: str, message: Message, attempt: str = "a1") -> protocol.Step[protocol.Start]:
    """A worker has the message."""
    return protocol.start(key, message, attempt, **WORKER, **WAITING)


def code_of(name: str) -> str:
    """A script without its comments and without what stands in quotes."""
    text = re.sub(r"--[^\n]*", "", script(name).text)
    return re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "''", text)


# their texts


def test_every_step_is_tried_here() -> None:
    """A new step comes with a line in these tests."""
    assert sorted(STEPS) == sorted(EVERY_STEP)


@pytest.mark.parametrize("name", STEPS)
def test_the_head_of_a_script_names_each_argument(name: str) -> None:
    """As many arguments are sent as the head of the script names."""
    assert len(EVERY_STEP[name].args) == len(script(name).arguments)


@pytest.mark.parametrize("name", STEPS)
def test_a_script_reads_the_arguments_that_its_head_names(name: str) -> None:
    """No argument is sent for nothing, and none is read that was not sent."""
    read = {int(index) for index in re.findall(r"ARGV\[(\d+)\]", code_of(name))}

    assert read == set(range(1, len(script(name).arguments) + 1))


@pytest.mark.parametrize("name", STEPS)
def test_the_arguments_of_a_step_say_what_its_function_does(name: str) -> None:
    """Each argument of the Python function reaches the script: none is forgotten on the way."""
    function = getattr(protocol, name)
    sent = len(script(name).arguments)
    given = 0
    for parameter in list(inspect.signature(function).parameters)[1:]:
        given += 3 if parameter == "message" else 1
    if name == "start":
        given += 1  # the longest deferral is ours to know
    given -= name in ("claim", "start")  # `replicas` are asked beside the script

    assert given == sent


@pytest.mark.parametrize("name", STEPS)
def test_a_script_assigns_no_globals(name: str) -> None:
    """One global assignment would end a fakeredis server for good, and fails on a real one."""
    code = code_of(name)
    known = set(re.findall(r"\bfunction\s+(\w+)\s*\(", code))
    for names in re.findall(r"\blocal\s+(?!function)([\w\s,]+?)\s*(?:=|\n)", code):
        known.update(part.strip() for part in names.split(","))
    for names in re.findall(r"\bfor\s+([\w\s,]+?)\s*(?:=|\bin\b)", code):
        known.update(part.strip() for part in names.split(","))
    for names in re.findall(r"\bfunction\s*\w*\s*\(([^)]*)\)", code):
        known.update(part.strip() for part in names.split(","))
    assert not re.findall(r"(?<!local )\bfunction\s+\w+\s*\(", code)

    while (flat := re.sub(r"\{[^{}]*\}", "()", code)) != code:
        code = flat  # fields in tables are no variables
    assigned = set()
    for names in re.findall(r"(?<![\w.\]~=<>])([\w.\[\]'+# ,]+?)\s*=(?!=)", code):
        bare = re.sub(r"^.*\b(?:local|then|else|do|for)\b", "", names)
        for part in bare.split(","):
            if re.fullmatch(r"\w+", part.strip()):
                assigned.add(part.strip())

    assert assigned <= known


@pytest.mark.parametrize("name", STEPS)
def test_a_script_touches_its_one_key_only(name: str) -> None:
    """One key, given as KEYS[1]: every step is one slot of a cluster."""
    text = re.sub(r"--[^\n]*", "", script(name).text)
    calls = re.findall(r"redis\.(?!call|pcall)(\w+)", text)
    keys = re.findall(r"redis\.p?call\((?:'(\w+)'|command)(?:,\s*([\w\[\]]+))?", text)

    assert calls == []
    assert len(keys) == len(re.findall(r"redis\.", text))
    assert {key for command, key in keys if command != "TIME"} <= {"KEY", "KEYS[1]"}
    assert set(re.findall(r"KEYS\[\w+\]", text)) == {"KEYS[1]"}


@pytest.mark.parametrize("name", STEPS)
def test_a_script_uses_only_what_every_server_has(name: str) -> None:
    """No library that fakeredis lacks, and nothing newer than Redis 6."""
    assert not re.search(r"\b(cmsgpack|cjson|struct|bit|math\.random|os)\b", code_of(name))
    assert not script(name).text.startswith("#!")


# in the server's own time


def test_parts_end_in_the_servers_own_time(client: redis.Redis, unit: str) -> None:
    """With the clock of the server, nothing is left when the ttl is over."""
    store = Store(client)
    store.run(protocol.claim(unit, "m1", ttl=0.2, heal_after=60.0))
    answer = store.run(protocol.claim(unit, "m2", ttl=0.2, heal_after=60.0))
    assert (answer.status, answer.holder_id) == ("waiting", "m1")
    assert 0 < client.pttl(unit) <= 200

    deadline = time.monotonic() + 10
    while client.exists(unit) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert store.run(protocol.claim(unit, "m3", ttl=60, heal_after=60.0)).status == "claimed"


def test_a_lease_ends_in_the_servers_own_time(client: redis.Redis, unit: str) -> None:
    """A run that does not renew is over after its lease."""
    store = Store(client)
    options = {"where": "h", "lease": 0.2, **WAITING}
    begun = store.run(protocol.start(unit, M1, "a1", **options))
    before = time.time()
    other = Message("m2", -5)

    answer = store.run(protocol.start(unit, other, "a2", **options))

    assert answer.status == "overlap"
    assert abs(answer.since - before) < 5
    deadline = time.monotonic() + 10
    while answer.status == "overlap" and time.monotonic() < deadline:
        time.sleep(0.02)
        answer = store.run(protocol.start(unit, other, "a2", **options))
    assert answer.status == "started"
    assert answer.fence > begun.fence


def test_fences_grow_also_where_nothing_is_left_in_between(client: redis.Redis, unit: str) -> None:
    """A store that checks fences refuses an older run, although idle work leaves no record."""
    store = Store(client)
    fences = []
    for number in range(50):
        message = Message(f"m{number}", -number - 1)
        fences.append(store.run(start(unit, message, f"a{number}")).fence)
        store.run(protocol.finish(unit, message, f"a{number}", "success", **WAITING))
        assert not client.exists(unit)

    assert sorted(set(fences)) == fences


def test_every_value_is_short(client: redis.Redis, unit: str) -> None:
    """The record of a busy unit stays a listpack: no value is over 64 bytes."""
    store, long = Store(client), "f" * 36
    where = _host.whereabouts()
    first = store.run(protocol.claim(unit, long, nonce="f" * 10, **WAITING))
    message = Message(long, first.ticket)
    store.run(protocol.start(unit, message, "f" * 16, where=where, lease=60.0, **WAITING))
    store.run(protocol.claim(unit, long + "2", replace=True, fingerprint="f" * 64, **WAITING))
    store.run(protocol.confirm(unit, first.ticket, ttl=60.0))
    store.run(protocol.finish(unit, message, "f" * 16, "retry", mark="write", **WAITING))

    fields = client.hgetall(unit)

    assert max(len(value) for value in fields.values()) <= 64
    if type(client).__module__.startswith("redis."):
        assert client.object("encoding", unit).decode() in ("listpack", "ziplist")


# servers that forget


def test_a_server_that_forgot_the_scripts_is_told_again(client: redis.Redis, unit: str) -> None:
    """After SCRIPT FLUSH, single steps and heartbeats in a pipeline answer as before."""
    store = Store(client)
    assert store.run(start(unit, M1)).status == "started"
    client.script_flush()
    renew = protocol.renew(unit, M1, "a1", fence=1, held=0.0, **WORKER)

    assert store.run_many([renew, renew]) == ["renewed", "renewed"]
    client.script_flush()
    assert store.run(renew) == "renewed"


def test_a_server_that_restarts_is_told_again(server: DevServer) -> None:
    """Over the store's own connections: a restart costs no answer and no script."""
    store = Store(server.url)
    claim = protocol.claim("k", "m1", **WAITING)
    assert store.run(claim).status == "claimed"
    server.restart()
    time.sleep(0.2)  # longer than a connection counts as fresh

    assert store.run(claim).status == "waiting"


# full servers


@pytest.fixture
def full(server: DevServer) -> DevServer:
    """A server with a claimed message, "m1", and a run, "r1", that is full."""
    store = Store(server.url)
    store.run(protocol.claim("claimed", "m1", **WAITING))
    store.run(start("running", Message("r1", -1)))
    for step in EVERY_STEP.values():
        store.run(step)  # the scripts are loaded
    store.run(protocol.release("k"))
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        with pytest.raises(redis.ResponseError):
            client.set("anything", "more")
    return server


def claimed_on(full: DevServer) -> Message:
    """The message that the full server has."""
    with full.client() as client:
        ticket = client.hget("claimed", "wt")
    assert ticket is not None
    return Message("m1", int(ticket))


def test_a_full_server_refuses_claims(full: DevServer) -> None:
    """A new call fails loudly: StoreUnavailableError, and nothing is half written."""
    with pytest.raises(StoreUnavailableError, match="maxmemory"):
        Store(full.url).run(protocol.claim("new", "m2", **WAITING))
    with full.client() as client:
        assert not client.exists("new")


def test_a_full_server_still_says_who_waits(full: DevServer) -> None:
    """A refusal needs no memory."""
    answer = Store(full.url).run(protocol.claim("claimed", "m2", **WAITING))

    assert (answer.status, answer.holder_id) == ("waiting", "m1")


def test_a_full_server_still_renews_and_frees_leases(full: DevServer) -> None:
    """What runs goes on, and ends, while Redis is full."""
    store, message = Store(full.url), Message("r1", -1)

    assert store.run(protocol.renew("running", message, "a1", fence=1, held=0.0, **WORKER)) == (
        "renewed"
    )
    finish = protocol.finish("running", message, "a1", "success", **WAITING)
    assert store.run(finish).status == "finished"


def test_a_full_server_still_keeps_a_retry_and_a_mark(full: DevServer) -> None:
    """An end that has something to remember is remembered."""
    store, message = Store(full.url), Message("r1", -1)
    finish = protocol.finish("running", message, "a1", "retry", mark="write", **WAITING)

    assert store.run(finish).status == "finished"
    assert store.run(protocol.claim("running", "m2", **WAITING)).holder_id == "r1"


def test_a_full_server_still_starts_what_was_claimed(full: DevServer) -> None:
    """What was accepted runs, guarded by a lease."""
    store, message = Store(full.url), claimed_on(full)

    assert store.run(start("claimed", message)).status == "started"
    assert store.run(start("claimed", Message("m9", -9), "a9")).status == "overlap"


def test_a_full_server_still_forgets_what_was_withdrawn(full: DevServer) -> None:
    """A withdrawn message gives its memory back."""
    assert Store(full.url).run(protocol.withdraw("claimed", claimed_on(full))) == "withdrawn"
    with full.client() as client:
        assert not client.exists("claimed")


def test_a_full_server_still_lets_people_release(full: DevServer) -> None:
    """Release works on a full server, and a live body loses its lease for good."""
    store = Store(full.url)

    assert store.run(protocol.release("running", "r1")).status == "released"
    renew = protocol.renew("running", Message("r1", -1), "a1", fence=1, held=0.0, **WORKER)
    assert store.run(renew) == "lost"


# other versions


def test_fields_of_a_newer_version_survive(client: redis.Redis, unit: str) -> None:
    """A worker of this version leaves what it does not know, and the key lives as long."""
    store = Store(client)
    ticket = store.run(protocol.claim(unit, "m1", ttl=60.0, heal_after=60.0)).ticket
    newer = {"m1a": "their part", "m1u": "9999999999999", "Zz": "?", "v": "2", "word": "1"}
    client.hset(unit, mapping=newer)
    client.expire(unit, 7200)
    message = Message("m1", ticket)

    assert store.run(start(unit, message)).status == "started"
    assert store.run(protocol.finish(unit, message, "a1", "success", **WAITING)).status == (
        "finished"
    )

    left = {name.decode(): value.decode() for name, value in client.hgetall(unit).items()}
    assert newer == {name: left[name] for name in newer}
    assert client.ttl(unit) > 7000


def test_unknown_letters_of_known_parts_survive(client: redis.Redis, unit: str) -> None:
    """A newer version's field inside a part lives as long as its part, and goes with it."""
    store = Store(client)
    store.run(start(unit, M1))
    client.hset(unit, "x0Q", "17")

    store.run(protocol.renew(unit, M1, "a1", fence=1, held=0.0, **WORKER))
    assert client.hget(unit, "x0Q") == b"17"
    store.run(protocol.finish(unit, M1, "a1", "success", **WAITING))
    assert not client.exists(unit)


def test_half_a_write_that_a_failover_lost_stops_nobody(client: redis.Redis, unit: str) -> None:
    """A stray field is no part: the unit is free, and the rest goes with the next step."""
    client.hset(unit, mapping={"x0z": "3", "wz": "1", "v": "1"})
    client.expire(unit, 60)
    store = Store(client)

    assert store.run(start(unit, M1)).status == "started"
    store.run(protocol.finish(unit, M1, "a1", "success", **WAITING))
    assert not client.exists(unit)


def test_ids_come_back_as_they_were_given(client: redis.Redis, unit: str) -> None:
    """Ids of callers may be numbers, have blanks or letters beyond ASCII."""
    for given in ("007", "1e3", "two words ", "Übung Ω", "a:b|c'd\"e"):
        client.delete(unit)
        store = Store(client)
        ticket = store.run(protocol.claim(unit, given, **WAITING)).ticket

        assert store.run(protocol.claim(unit, "m2", **WAITING)).holder_id == given
        assert store.run(start(unit, Message(given, ticket))).found
        assert store.run(start(unit, Message("m3", -3), "a2")).holder_id == given
        assert store.run(protocol.release(unit)).holder_id == given


def test_inspect_shows_what_counts_and_writes_nothing(client: redis.Redis, unit: str) -> None:
    """A person sees the fields that count, and now; looking changes nothing."""
    store = Store(client)
    assert list(store.run(protocol.inspect(unit))) == ["now"]
    ticket = store.run(protocol.claim(unit, "m1", **WAITING)).ticket
    before = client.hgetall(unit)

    seen = store.run(protocol.inspect(unit))

    assert (seen["wi"], seen["wt"]) == ("m1", str(ticket))
    assert abs(int(seen["now"]) / 1000 - time.time()) < 60
    assert client.hgetall(unit) == before


# asyncio


@pytest.mark.parametrize("kind", ["memory", "server"])
def test_the_same_steps_run_in_asyncio(kind: str, unit: str, shared_server: DevServer) -> None:
    """A whole life of a message over an async client answers as over a sync one."""

    async def life() -> list[str]:
        url = shared_server.url if kind == "server" else f"memory://{unit}"
        store = AsyncStore(url)
        claim = await store.run(protocol.claim(unit, "m1", **WAITING))
        message = Message("m1", claim.ticket)
        second = await store.run(protocol.claim(unit, "m2", **WAITING))
        started = await store.run(start(unit, message))
        other = await store.run(start(unit, Message("x", -1), "a2"))
        renewed = await store.run(protocol.renew(unit, message, "a1", fence=1, held=0.0, **WORKER))
        seen = await store.run(protocol.inspect(unit))
        finished = await store.run(protocol.finish(unit, message, "a1", "failure", **WAITING))
        released = await store.run(protocol.release(unit))
        await store.close()
        return [
            claim.status, f"{second.status} {second.holder_id}", started.status,
            f"{other.status} {other.holder_id}", renewed, seen["x0i"], finished.status,
            f"{released.status} {released.holder_id}",
        ]  # fmt: skip

    assert asyncio.run(life()) == [
        "claimed", "waiting m1", "started", "overlap m1", "renewed", "m1", "finished",
        "released x",
    ]  # fmt: skip


def test_a_batch_on_a_server_that_forgot_the_scripts(server: DevServer) -> None:
    """It costs one round trip more for each script, and not one for each step."""
    store, client = Store(server.url), server.client()
    keys = [f"once:shop.sync:{number:040}" for number in range(100)]
    store.run_many([protocol.claim(key, "m1", ttl=60, heal_after=60) for key in keys])
    client.script_flush()
    before = client.info("commandstats")
    steps = [protocol.claim(key, "m2", ttl=60, heal_after=60) for key in keys]

    answers = store.run_many([*steps, *(protocol.inspect(key) for key in keys)])

    after = client.info("commandstats")
    assert [answer.status for answer in answers[:100]] == ["waiting"] * 100
    assert all(answer["wi"] == "m1" for answer in answers[100:])
    assert after["cmdstat_eval"]["calls"] == 2 + before.get("cmdstat_eval", {"calls": 0})["calls"]
