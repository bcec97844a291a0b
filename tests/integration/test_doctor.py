"""`once doctor`: what it finds in programs that will hurt, and not in those that are sound."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from _support.waiting import wait_until
from celery import Celery
from celery.schedules import crontab
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

import once_celery.checkup
import once_dramatiq.checkup
from once_celery import OnceTask
from once_core import Store
from once_core.checkup import of_store
from once_core.devserver import DevServer
from once_core.finding import CODES, Finding
from once_dramatiq import OnceMiddleware

AMQP = "amqp://guest:guest@localhost:1//"
REDIS = "redis://localhost:1/0"
SETTLED = {"task_acks_late": True, "task_reject_on_worker_lost": True, "task_time_limit": 600}
"""Settings of which nothing is to be said."""


def codes(findings: Iterator[Finding]) -> set[str]:
    """What was found, each with an advice that can be typed in."""
    found = list(findings)
    assert all(each.advice for each in found if each.code != "share-without-results")
    return {each.code for each in found}


# Celery


def celery_findings(
    conf: dict[str, Any],
    task: dict[str, Any],
    once: dict[str, Any] | bool | None,
    name: str = "work",
) -> set[str]:
    """What is found of an app with one task."""
    app = Celery("shop", broker=conf.pop("broker", REDIS), set_as_current=False)
    app.conf.update({"once_url": REDIS, **SETTLED, **conf})

    def body(order_id: int = 0) -> None: ...

    options = {**task, **({"base": OnceTask, "once": once} if once is not None else {})}
    app.task(name=f"shop.{name}", shared=False, **options)(body)
    return codes(once_celery.checkup.findings(app))


@pytest.mark.parametrize("broker", [REDIS, AMQP, "memory://"])
def test_of_a_sound_app_nothing_is_said(broker: str) -> None:
    """Late acknowledgement that survives its worker, and a time limit."""
    assert celery_findings({"broker": broker}, {}, {}) == set()


@pytest.mark.parametrize(
    ("code", "conf", "task", "once"),
    [
        ("ttl-below-time-limit", {}, {}, {"ttl": 60}),
        ("ttl-below-time-limit", {}, {"time_limit": 7000}, {}),
        ("ttl-below-time-limit", {"task_time_limit": None}, {"soft_time_limit": 7000}, {}),
        ("ttl-below-retry-delay", {}, {"default_retry_delay": 7200}, {}),
        (
            "ttl-below-retry-delay",
            {},
            {"autoretry_for": (OSError,), "retry_backoff": True, "retry_backoff_max": 7200},
            {},
        ),
        ("visibility-timeout", {"task_time_limit": None}, {}, {}),
        ("visibility-timeout", {"broker_transport_options": {"visibility_timeout": 60}}, {}, {}),
        ("wait-beyond-visibility-timeout", {}, {"default_retry_delay": 7200}, {"ttl": 7200}),
        (
            "wait-beyond-visibility-timeout",
            {},
            {},
            {"on_duplicate": "replace", "debounce": 600, "debounce_max": 7200},
        ),
        ("consumer-timeout", {"broker": AMQP, "task_time_limit": 1801}, {}, {}),
        ("consumer-timeout", {"broker": AMQP}, {"default_retry_delay": 1801}, {}),
        ("early-acks", {"task_acks_late": False}, {}, {}),
        ("acked-when-worker-dies", {"task_reject_on_worker_lost": False}, {}, {}),
        (
            "results-expire-early",
            {"result_backend": REDIS, "result_expires": 60},
            {},
            {"keep_for": 600},
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_app(
    code: str, conf: dict[str, Any], task: dict[str, Any], once: dict[str, Any]
) -> None:
    """One mistake each; the sound app above has none of them."""
    assert code in celery_findings(dict(conf), task, once)


@pytest.mark.parametrize(
    ("conf", "task", "once"),
    [
        ({}, {}, {"ttl": 600}),
        ({}, {"default_retry_delay": 3600}, {}),
        ({}, {"max_retries": 0, "default_retry_delay": 7200}, {}),
        ({}, {}, {"ttl": 600, "heal_after": 60}),
        ({"broker_transport_options": {"visibility_timeout": 600}}, {}, {}),
        ({"broker": AMQP, "task_time_limit": 1800}, {}, {}),
        ({"task_reject_on_worker_lost": False}, {"reject_on_worker_lost": True}, {}),
        ({"result_backend": REDIS, "result_expires": 600}, {}, {"keep_for": 600}),
        ({"result_backend": REDIS, "result_expires": None}, {}, {"keep_for": 600}),
        ({"task_time_limit": None}, {}, None),
    ],
)  # fmt: skip
def test_what_is_just_right(
    conf: dict[str, Any], task: dict[str, Any], once: dict[str, Any] | bool | None
) -> None:
    """At the border, or switched by the task itself, or under no guard."""
    assert celery_findings(dict(conf), task, once) == set()


def test_results_that_were_switched_off_after_the_task_was_defined() -> None:
    """Where it was defined nothing was wrong."""
    app = Celery("shop", broker=REDIS, backend=REDIS, set_as_current=False)
    app.conf.update({"once_url": REDIS, **SETTLED})

    @app.task(base=OnceTask, once={"on_duplicate": "share"})
    def sync_order(order_id: int) -> None: ...

    assert codes(once_celery.checkup.findings(app)) == set()
    sync_order.ignore_result = True

    assert codes(once_celery.checkup.findings(app)) == {"share-without-results"}


def beat(entry: dict[str, Any], once: dict[str, Any] | bool | None, name: str = "work") -> set[str]:
    """What is found of a schedule with one entry."""
    schedule = {"nightly": {"task": f"shop.{name}", **entry}}
    return celery_findings({"beat_schedule": schedule}, {}, once)


@pytest.mark.parametrize(
    ("schedule", "once", "found"),
    [
        (60, None, {"periodic-unguarded"}),
        (60, False, set()),
        (60, {}, {"periodic-backs-up"}),
        (crontab(minute="*/5", hour="8-18"), {}, {"periodic-backs-up"}),
        (60, {"scope": "until_done"}, set()),
        (crontab(minute=0, hour=3), {"scope": "until_done"}, {"ttl-below-period"}),
        (crontab(minute=0, hour=3), {"scope": "until_done", "ttl": 172800}, set()),
    ],
)
def test_periodic_tasks(schedule: Any, once: dict[str, Any] | bool | None, found: set[str]) -> None:
    """What a clock triggers, in all the ways to name a period."""
    assert beat({"schedule": schedule}, once) == found


def test_a_schedule_that_names_a_task_of_nobody() -> None:
    """Beat sends it all the same; nothing there knows of its guard."""
    assert beat({"schedule": 60}, {}, name="wrok") == {"periodic-unknown"}


def test_tasks_that_want_a_guard() -> None:
    """By their names, and only where they have none."""
    assert celery_findings({}, {}, None, "sync_orders") == {"unguarded-task"}
    assert celery_findings({}, {}, {}, "sync_orders") == set()
    assert celery_findings({}, {}, False, "sync_orders") == set()  # somebody has thought of it


# Dramatiq


def actor_findings(
    actor: dict[str, Any],
    broker: Any = None,
    *middleware: dramatiq.Middleware,
    name: str = "work",
) -> set[str]:
    """What is found of a broker with one actor."""
    broker = broker or RedisBroker(url=REDIS)
    ours = OnceMiddleware(url=REDIS)
    for each in (*middleware, ours):
        broker.add_middleware(each)

    def body(order_id: int = 0) -> None: ...

    dramatiq.actor(broker=broker, actor_name=name, **{"max_retries": 0, **actor})(body)
    found = codes(once_dramatiq.checkup.findings(broker, ours))
    broker.close()
    return found


def rabbitmq() -> RabbitmqBroker:
    """Of which nobody asks anything."""
    return RabbitmqBroker(url="amqp://localhost:1")


class Periodic(dramatiq.Middleware):
    """Takes the option of periodiq's."""

    actor_options = {"periodic"}  # noqa: RUF012  # as Dramatiq has it


def cron(spec: str) -> Any:
    """A schedule of periodiq's."""
    import periodiq

    return periodiq.cron(spec)


def results(result_ttl: int) -> Results:
    """Of all actors."""
    return Results(backend=StubBackend(), store_results=True, result_ttl=result_ttl)


@pytest.mark.parametrize(
    ("code", "actor", "middleware"),
    [
        ("ttl-below-time-limit", {"once": {"ttl": 60}}, []),
        ("ttl-below-time-limit", {"once": True, "time_limit": 3_600_001}, []),
        ("ttl-below-retry-delay", {"once": True, "max_retries": None}, []),
        (
            "ttl-below-retry-delay",
            {"once": True, "max_retries": 1, "min_backoff": 3_700_000, "max_backoff": 4_000_000},
            [],
        ),
        ("max-age-below-time-limit", {"once": True, "max_age": 60_000}, []),
        ("results-expire-early", {"once": {"on_duplicate": "share"}}, [results(600_000)]),
        ("periodic-unguarded", {"periodic": cron("* * * * *")}, [Periodic()]),
        ("periodic-backs-up", {"once": True, "periodic": cron("*/5 * * * *")}, [Periodic()]),
        (
            "ttl-below-period",
            {"once": {"scope": "until_done"}, "periodic": cron("0 3 * * *")},
            [Periodic()],
        ),
    ],
)
def test_what_is_wrong_with_a_broker(
    code: str, actor: dict[str, Any], middleware: list[dramatiq.Middleware]
) -> None:
    """One mistake each, and nothing else is found."""
    assert actor_findings(actor, None, *middleware) == {code}


@pytest.mark.parametrize(
    ("actor", "middleware"),
    [
        ({"once": True}, []),
        ({"once": {"ttl": 600}}, []),
        ({"once": True, "time_limit": float("inf")}, []),
        ({"once": True, "max_retries": 3}, []),
        ({"once": True, "max_age": 600_000}, []),
        ({"once": {"on_duplicate": "share"}}, [results(3_600_000)]),
        ({"once": {"scope": "until_done"}, "periodic": cron("*/5 * * * *")}, [Periodic()]),
        ({"once": False, "periodic": cron("*/5 * * * *")}, [Periodic()]),
        ({"max_age": 60_000}, []),
    ],
)
def test_what_is_right_with_a_broker(
    actor: dict[str, Any], middleware: list[dramatiq.Middleware]
) -> None:
    """At the border, or under no guard."""
    assert actor_findings(actor, None, *middleware) == set()


def test_runs_that_rabbitmq_gives_out_again() -> None:
    """Only there, and only where a run may take that long."""
    long = {"once": True, "time_limit": 1_800_001}

    assert actor_findings(long, rabbitmq()) == {"consumer-timeout"}
    assert actor_findings({**long, "time_limit": 1_800_000}, rabbitmq()) == set()
    assert actor_findings(long) == set()


def test_a_stub_broker_in_a_program() -> None:
    """No worker ever gets its messages."""
    assert actor_findings({"once": True}, StubBroker()) == {"stub-broker"}


def test_actors_that_want_a_guard() -> None:
    """By their names, and only where they have none."""
    assert actor_findings({}, None, name="refresh_rates") == {"unguarded-task"}
    assert actor_findings({"once": True}, None, name="refresh_rates") == set()
    assert actor_findings({"once": False}, None, name="refresh_rates") == set()


# Real servers


def store_codes(server: DevServer, url: str = "") -> dict[str, str]:
    """What is found of a server, but for its version."""
    found = of_store(Store(url or server.url))
    return {each.code: each.level for each in found if each.level != "ok"}


def test_a_server_that_is_nearly_full() -> None:
    """Before it refuses the first claim."""
    options = ("--maxmemory", "20mb", "--maxmemory-policy", "noeviction", "--appendonly", "yes")
    with DevServer(arguments=options) as server:
        assert store_codes(server) == {}
        client = server.client()
        for number in range(30):
            if client.info()["used_memory"] > 0.92 * 20 * 2**20:
                break
            client.set(f"filler-{number}", b"x" * 2**20)

        assert store_codes(server) == {"memory-nearly-full": "warning"}


def test_a_replica_and_its_primary(server: DevServer) -> None:
    """The one takes no locks, the other may lose some."""
    with DevServer(arguments=("--replicaof", "127.0.0.1", str(server.port))) as replica:
        wait_until(lambda: server.client().info()["connected_slaves"], "it follows")

        assert store_codes(replica)["replica"] == "error"
        assert store_codes(server)["has-replicas"] == "note"


def test_a_node_of_a_cluster_and_the_cluster() -> None:
    """By its scheme a URL says whether the others are asked, too."""
    with DevServer(arguments=("--cluster-enabled", "yes")) as server:
        client = server.client()
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: b"cluster_state:ok" in _raw(client), "the cluster is up")

        assert store_codes(server)["cluster-node"] == "error"
        assert "cluster-node" not in store_codes(
            server, server.url.replace("redis:", "redis+cluster:")
        )


def _raw(client: Any) -> bytes:
    state = client.execute_command("CLUSTER INFO")
    return b"cluster_state:" + state["cluster_state"].encode() if isinstance(state, dict) else state


# The command

SHOP = """
from datetime import datetime
from celery import Celery
from once_celery import OnceTask

app = Celery("shop", broker={url!r}, backend={url!r})
app.conf.task_acks_late = True
app.conf.beat_schedule = {{"often": {{"task": "shop.report", "schedule": 60}}}}


@app.task(base=OnceTask, once={{"ttl": 60}}, time_limit=600)
def import_orders(requested_now=None): ...


@app.task(base=OnceTask, time_limit=60)
def report(): ...
"""

WARE = """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from once_dramatiq import OnceMiddleware
broker = RedisBroker(url={url!r})
broker.add_middleware(OnceMiddleware())
dramatiq.set_broker(broker)
@dramatiq.actor(once={{"ttl": 60}}, max_retries=0)
def restock(shelf): ...
"""


@pytest.fixture
def doctor(tmp_path: Path, shared_server: DevServer) -> Callable[..., tuple[int, str, str]]:
    """Examines a program that is written to a file."""

    def run(program: str, *words: str, source: str = SHOP) -> tuple[int, str, str]:
        text = source.format(url=shared_server.url)
        (tmp_path / f"{program}.py").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "once_core", "-A", program, "doctor", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "ONCE_URL": ""},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_worst_comes_first(doctor: Callable[..., tuple[int, str, str]]) -> None:
    """For people and for scripts, each with its code."""
    code, said, _ = doctor("shop")
    levels = [each["level"] for each in json.loads(doctor("shop", "--json")[1])]

    marks = [line.split()[0] for line in said.splitlines() if not line.startswith("      ->")]
    assert code == 1
    assert marks == sorted(marks, key=["ERROR", "WARN", "note", "ok"].index)
    assert levels == sorted(levels, key=["error", "warning", "note", "ok"].index)
    assert {"[ttl-below-time-limit]", "[volatile-argument]", "[acked-when-worker-dies]"} <= set(
        re.findall(r"\[[a-z-]+\]", said)
    )


def test_what_is_known_is_ignored(doctor: Callable[..., tuple[int, str, str]]) -> None:
    """By its code; when all warnings are, the exit code is 0."""
    known = ["ttl-below-time-limit", "volatile-argument", "acked-when-worker-dies"]

    code, said, _ = doctor("shop", *[word for each in known for word in ("--ignore", each)])

    assert code == 0, said
    assert not [each for each in known if f"[{each}]" in said]
    assert "[periodic-backs-up]" in said
    assert doctor("shop", "--ignore", known[0])[0] == 1


def test_a_code_that_is_none_is_refused(doctor: Callable[..., tuple[int, str, str]]) -> None:
    """A misspelt one would hide nothing, and nobody would know."""
    code, _, errors = doctor("shop", "--ignore", "early-ack")

    assert code == 2
    assert "did you mean 'early-acks'" in errors


def test_options_that_are_refused_are_an_error(
    doctor: Callable[..., tuple[int, str, str]],
) -> None:
    """Of a setting that came after the tasks; and then nobody knows where their locks are."""
    code, said, _ = doctor("shop", source=SHOP + "app.finalize()\napp.conf.once_leese = 5\n")

    assert code == 2
    assert "did you mean 'once_lease'?  [refused-options]" in said
    assert "[no-store]" in said


def test_a_dramatiq_program_is_examined_too(doctor: Callable[..., tuple[int, str, str]]) -> None:
    """Its broker's settings beside its actors."""
    code, said, _ = doctor("ware", source=WARE)

    assert code == 1
    assert "[ttl-below-time-limit]" in said


def test_every_code_has_its_row_in_the_docs() -> None:
    """And every row its code, and every code its finding."""
    root = Path(__file__).parents[2]
    page = (root / "docs" / "reference" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    used = {
        node.value
        for package in ("once_core", "once_celery", "once_dramatiq")
        for path in (root / package).rglob("*.py")
        if path.name != "finding.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in CODES
    }

    assert sorted(rows) == sorted(CODES)
    assert used == set(CODES)
