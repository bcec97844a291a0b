"""The command line: what it says of a real program on a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from once_core.devserver import DevServer

SHOP = """
from celery import Celery
from once_celery import OnceTask
from once_core import once

app = Celery("shop", broker={url!r}, backend={url!r})


@app.task(base=OnceTask, once={{"key": ["order_id"], "preview": ["order_id"]}})
def sync_order(order_id, force=False): ...


@app.task(base=OnceTask, once={{"scope": "until_done"}})
def report(): ...


@app.task(base=OnceTask, once={{"key": ["customer"], "secret": "s"}})
def bill(customer, requested_now=None): ...


@app.task
def plain(): ...


@once(key=["account"])
def refresh(account):
    return account
"""


class Shell:
    """Types commands where the program is."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self._folder = folder
        self._url = url

    def __call__(self, *words: str, program: str = "once_core") -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", program, *words],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(self._folder), "ONCE_URL": self._url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: str) -> Any:
        """The document that a command prints."""
        return json.loads(self("-A", "shop", *words, "--json")[1])


@pytest.fixture
def shop(
    tmp_path: Path, shared_server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The program, with an empty server."""
    shared_server.client().flushall()  # started by our tests, for tests
    (tmp_path / "shop.py").write_text(SHOP.format(url=shared_server.url), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import shop

    yield shop
    shop.app.close()
    sys.modules.pop("shop")


@pytest.fixture
def shell(shop: Any, tmp_path: Path, shared_server: DevServer) -> Shell:  # it is there
    """A shell in its folder."""
    return Shell(tmp_path, shared_server.url)


def test_explain_says_that_nothing_is_in_the_way(shell: Shell) -> None:
    """A call that would be sent and run now: 0, with the key and what it is made of."""
    code, said, _ = shell("-A", "shop", "explain", "sync_order", "42")

    assert code == 0
    assert "would be SENT: nothing of this unit of work waits." in said
    assert "would START: nothing runs." in said
    assert "made of   order_id=42 (int) " in said
    assert "once:shop.sync_order:" in said


def test_explain_says_who_is_in_the_way(shell: Shell, shop: Any) -> None:
    """A call that would be refused: 1, with the message that waits, and the rule."""
    first = shop.sync_order.delay(42)
    shop.sync_order.delay(42)

    code, said, _ = shell("-A", "shop", "explain", "shop.sync_order", "order_id=42", "true")
    told = shell.json("explain", "sync_order", "42")

    assert code == 2  # order_id is given twice
    assert told["publish"] == "refused"
    assert told["holders"][0]["message_id"] == first.id
    assert told["holders"][0]["suppressed"] == 1
    assert told["parameters"] == {"order_id": "42 (int)"}
    assert "one waits to run" in told["publish_why"]
    assert said == ""


@pytest.mark.parametrize("state", ["free", "waiting", "running", "old"])
@pytest.mark.parametrize("task", ["sync_order", "report"])
def test_explain_is_right(shop: Any, task: str, state: str) -> None:
    """What it says of a publish is what the publish then does."""
    from once_core.explain import explain
    from once_pytest import OnceHarness

    args = (42,) if task == "sync_order" else ()
    guarded = getattr(shop, task)
    with OnceHarness() as locks:
        if state in ("waiting", "old"):
            guarded.delay(*args)
        if state == "running":
            locks.hold(guarded, *args)
        if state == "old":
            locks.clock.advance(61)
        told = explain(guarded.once_guard(), args, {})
        sent = guarded.delay(*args).once

    assert (told.publish == "sent") is not sent.is_duplicate
    assert told.run == ("waits" if state == "running" else "starts")
    if sent.is_duplicate:
        assert abs(told.retry_after - sent.retry_after) < 5


def test_values_are_shown_only_where_preview_names_them(shell: Shell, shop: Any) -> None:
    """Neither a listing nor an explanation shows an argument that nobody has named."""
    shop.bill.delay("ada@example.org")

    for words in (
        ["explain", "bill", "ada@example.org"],
        ["ls"],
        ["show", "bill", "ada@example.org"],
    ):
        code, said, errors = shell("-A", "shop", *words)
        assert code in (0, 1)
        assert "ada@" not in said + errors


def test_ls_lists_what_is_held(shell: Shell, shop: Any) -> None:
    """The oldest first, by task and state; 1 where there is nothing."""
    assert shell("-A", "shop", "ls")[0] == 1

    first, second = shop.sync_order.delay(1), shop.report.delay()
    listed = shell.json("ls")

    assert {each["task"]: each["holders"][0]["message_id"] for each in listed} == {
        "shop.sync_order": first.id,
        "shop.report": second.id,
    }
    assert [each["task"] for each in shell.json("ls", "--task", "report")] == ["shop.report"]
    assert shell.json("ls", "--state", "running") == []
    assert shell.json("ls", "--older", "1000") == []
    assert shell("ls", "--url", "redis://127.0.0.1:1")[0] == 2


def test_stats_count(shell: Shell, shop: Any) -> None:
    """What is held and refused, by task and state."""
    for _ in range(3):
        shop.sync_order.delay(1)
    shop.sync_order.delay(2)

    (row,) = shell.json("stats")

    assert (row["task"], row["state"], row["count"], row["refused"]) == (
        "shop.sync_order", "waiting", 2, 2,
    )  # fmt: skip


def test_release_frees_only_whom_it_has_shown(shell: Shell, shop: Any) -> None:
    """By the holder that was seen; another one is left alone."""
    sent = shop.report.delay()

    assert shell("-A", "shop", "release", "report")[0] == 2  # nobody is there to be asked
    assert shop.report.is_locked()
    code, said, _ = shell("-A", "shop", "release", "report", "--holder", "somebody", "--yes")
    assert (code, shop.report.is_locked()) == (1, True)
    assert f"{sent.id} holds it now" in said
    assert shell("-A", "shop", "release", "report", "--yes")[0] == 0
    assert not shop.report.is_locked()
    assert shell("-A", "shop", "release", "report", "--yes")[0] == 1


def test_show_a_key(shell: Shell, shop: Any) -> None:
    """A key that a log line names is enough."""
    key = shop.report.delay().once.key

    assert shell.json("show", key)["task"] == "shop.report"
    assert shell("-A", "shop", "show", "report")[0] == 0
    assert shell("-A", "shop", "show", "sync_order", "7")[0] == 1


def test_functions_are_there_too(shell: Shell, shop: Any) -> None:
    """A function under `@once` is explained as a task is."""
    code, said, errors = shell("-A", "shop", "explain", "refresh", "ada")

    assert code == 0, errors
    assert "once:shop.refresh:" in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-A", "shop", "explain", "sync_ordr", "1"], "did you mean 'shop.sync_order'"),
        (["-A", "shop", "explain", "plain"], "no task 'plain' under guard"),
        (["-A", "shop", "explain", "sync_order"], "do not fit"),
        (["-A", "nowhere", "ls"], "cannot be loaded"),
        (["explain", "sync_order", "1"], "-A proj"),
    ],
)
def test_what_cannot_be_is_said_without_a_traceback(
    shell: Shell, words: list[str], text: str
) -> None:
    """2, and one line that says what to do."""
    code, said, errors = shell(*words)

    assert code == 2
    assert text in errors
    assert "Traceback" not in said + errors


def test_doctor_finds_what_will_hurt(shell: Shell) -> None:
    """A volatile argument in a key, before it lets every call through."""
    code, said, _ = shell("-A", "shop", "doctor")

    assert code == 0, said  # bill's key leaves requested_now out
    assert "Valkey" in said or "Redis" in said


def test_doctor_warns_of_eviction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that throws keys away loses locks."""
    with DevServer(
        arguments=("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    ) as server:
        code, said, _ = Shell(tmp_path)("doctor", "--url", server.url)

    assert code == 1
    assert "maxmemory-policy allkeys-lru" in said


def test_celery_has_the_same_commands(shell: Shell, shop: Any) -> None:
    """`celery -A shop once …` does what `once -A shop …` does."""
    shop.sync_order.delay(42)

    code, said, _ = shell("-A", "shop", "once", "explain", "sync_order", "42", program="celery")
    listed = shell("-A", "shop", "once", "ls", "--json", program="celery")[1]

    assert code == 1
    assert "would be REFUSED" in said
    assert [each["task"] for each in json.loads(listed)] == ["shop.sync_order"]


def test_a_dramatiq_program(tmp_path: Path, shared_server: DevServer) -> None:
    """Actors of the global broker are known as tasks are."""
    (tmp_path / "ware.py").write_text(
        f"""
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from once_dramatiq import OnceMiddleware
broker = RedisBroker(url={shared_server.url!r})
broker.add_middleware(OnceMiddleware())
dramatiq.set_broker(broker)
@dramatiq.actor(once={{"key": ["shelf"]}})
def restock(shelf): ...
""",
        encoding="utf-8",
    )
    code, said, errors = Shell(tmp_path)("-A", "ware", "explain", "restock", "7")

    assert code == 0, errors
    assert "once:restock:" in said


def test_many_records_are_listed_without_blocking(server: DevServer) -> None:
    """Five thousand units: each once, read in batches, by SCAN and nothing that blocks."""
    from once_core import Store, protocol
    from once_core.survey import survey

    store = Store(server.url)
    steps = [
        protocol.claim(f"once:many:{number:040x}", "m", ttl=600, heal_after=60)
        for number in range(5000)
    ]
    store.run_many(steps)
    server.client().set("once:foreign:" + "0" * 40, "no hash of ours")

    found = {unit.key for unit in survey(store)}

    assert len(found) == 5000
    assert not server.client().info("commandstats").get("cmdstat_keys")
