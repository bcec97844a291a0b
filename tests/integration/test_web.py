"""The dashboard: who may look, what it shows and what it never shows, and how it frees."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from _support.browsing import ADDRESS, Browser
from _support.shop import SECRET, Shop
from _support.waiting import wait_until
from starlette.applications import Starlette
from starlette.authentication import SimpleUser
from starlette.routing import Mount

from once_core.cli.program import Program
from once_core.devserver import DevServer
from once_core.errors import ConfigurationError, StoreUnavailableError
from once_core.events import Event, emit, subscribe
from once_core.guard import Guard
from once_core.options import OnceOptions
from once_core.store import Store
from once_core.survey import Unit
from once_core.web import _census, _gate, _recent, command, make_app

TOKEN = "a token of the shop"
HERE = "http://localhost"


@pytest.fixture
def shop(shared_server: DevServer) -> Shop:
    """With records of its own."""
    return Shop(Store(shared_server.url), prefix=f"web{uuid.uuid4().hex[:8]}", events=1000)


@pytest.fixture
def released() -> Iterator[list[Event]]:
    """What was told to be released."""
    seen: list[Event] = []
    stop = subscribe(lambda event: seen.append(event) if event.kind == "released" else None)
    yield seen
    stop()


def visitor(shop: Shop, **options: Any) -> Browser:
    """Somebody who looks at the dashboard of the shop."""
    return Browser(make_app(shop.program, **options))


def form_of(html: str) -> str:
    """The token of the forms on a page."""
    return re.findall(r'name="form" value="(\w+)"', html)[0]


def text_of(html: str) -> str:
    """What a page says, without its tags."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", html)))


# who may look


def test_without_the_token_nothing_is_shown(shop: Shop) -> None:
    """Every page asks for the token, and says nothing else."""
    key = shop.key("sync_order", 1)
    shop.wait("sync_order", 1)
    client = visitor(shop, token=TOKEN, allow_release=True)

    for path in ("/", "/units", f"/unit?key={key}", "/events", "/events/live", "/explain",
                 f"/release?key={key}", "/nothing", "/?token=" + TOKEN):  # fmt: skip
        answer = client.get(path)
        assert (path, answer.status_code) == (path, 401)
        assert "sync_order" not in answer.text
    for path in ("/explain", "/release", "/logout"):
        assert client.post(path, data={"key": key}).status_code == 401
    assert client.get("/static/once.css").status_code == 200
    assert shop.guard("sync_order").is_locked((1, SECRET), {})


def test_the_token_opens_it_for_a_session(shop: Shop) -> None:
    """The cookie of a session is for this host alone, no script reads it, and it is no token."""
    client = visitor(shop, token=TOKEN)

    wrong = client.post("/login", data={"token": TOKEN + "x"})
    right = client.post("/login", data={"token": TOKEN})

    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert client.get("/").status_code == 200


def test_signing_in_twice(shop: Shop) -> None:
    """The form of a second tab, opened before the first signed in, works as well."""
    client = visitor(shop, token=TOKEN)
    client.post("/login", data={"token": TOKEN})

    assert client.post("/login", data={"token": TOKEN}).status_code == 303
    assert client.get("/login").status_code == 401
    assert client.get("/").status_code == 200


def test_the_token_is_taken_as_a_header(shop: Shop) -> None:
    """A script sends it as `Authorization: Bearer`."""
    client = visitor(shop, token=TOKEN)

    right = client.get("/units", headers={"Authorization": f"Bearer {TOKEN}"})
    client.cookies.clear()
    wrong = client.get("/units", headers={"Authorization": "Bearer something else"})
    basic = client.get("/units", headers={"Authorization": f"Basic {TOKEN}"})

    assert [each.status_code for each in (right, wrong, basic)] == [200, 401, 401]


def test_a_session_of_another_token_is_none(shop: Shop) -> None:
    """A cookie counts only if it was made under this token, whoever made it, and is not old."""
    client, other = visitor(shop, token=TOKEN), visitor(shop, token=TOKEN + " too")
    other.post("/login", data={"token": TOKEN + " too"})
    name, value = next(iter(other.cookies.items()))

    for each in (value, value[:-1], "", "1.2.3", "é", "." + value):
        header = f"{name}={each}".encode("latin-1")
        answer = client.get("/", headers={"Cookie": header})  # type: ignore[dict-item]  # bytes
        assert answer.status_code == 401


def test_a_session_ends(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a day somebody has to sign in again."""
    client = visitor(shop, token=TOKEN)
    client.post("/login", data={"token": TOKEN})
    then = _gate.wall()

    monkeypatch.setattr(_gate, "wall", lambda: then + _gate.LIFE - 60)
    before = client.get("/").status_code
    monkeypatch.setattr(_gate, "wall", lambda: then + _gate.LIFE + 60)
    after = client.get("/").status_code

    assert (before, after) == (200, 401)


def test_signing_out_forgets_the_session(shop: Shop) -> None:
    """The browser is told to forget its cookie."""
    client = visitor(shop, token=TOKEN)
    client.post("/login", data={"token": TOKEN})

    answer = client.post("/logout", data={"form": form_of(client.get("/").text)})

    assert answer.status_code == 303
    assert client.get("/").status_code == 401


def test_a_link_opens_it_once(shop: Shop) -> None:
    """What `once web` prints opens the dashboard once, and leaves the address at once."""
    from once_core.web._pages import Dashboard

    dashboard = Dashboard(shop.program, allow_release=False)
    app = dashboard.app(TOKEN, ["localhost"], "an invitation")

    wrong = Browser(app).get("/?token=an+imitation")
    first, second = Browser(app), Browser(app)
    opened = first.get("/?token=an+invitation")

    assert wrong.status_code == 401
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    assert first.get("/").status_code == 200
    assert second.get("/?token=an+invitation").status_code == 401


def test_a_short_token_is_refused(shop: Shop) -> None:
    """A token that can be guessed is an error that says what to do."""
    with pytest.raises(ConfigurationError, match=r"has 6 characters.*token_urlsafe"):
        make_app(shop.program, token="secret")
    with pytest.raises(ConfigurationError, match="has 0 characters"):
        make_app(shop.program, token="")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8787", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8787", 200),
        ("rebound.example", 400),
        ("localhost.rebound.example", 400),
        ("localhost@rebound.example", 400),
        ("[::1].rebound.example]", 400),
        ("", 400),
    ],
)
def test_it_answers_to_its_own_names_alone(shop: Shop, host: str, status: int) -> None:
    """A page of a stranger, whose name was made to point to this machine, reads nothing."""
    client = visitor(shop)

    assert client.get("/", headers={"Host": host}).status_code == status
    assert client.get("/static/once.css", headers={"Host": host}).status_code == status


def test_hosts_can_be_named(shop: Shop) -> None:
    """Then it answers to those, and to no others."""
    client = visitor(shop, allowed_hosts=["Once.Shop.example"])

    assert client.get("/", headers={"Host": "once.shop.example:443"}).status_code == 200
    assert client.get("/", headers={"Host": "localhost"}).status_code == 400


def test_every_answer_is_closed_to_other_pages(shop: Shop) -> None:
    """No answer may be framed, cached, sniffed or run scripts but its own; nor an error."""
    client = visitor(shop, token=TOKEN)

    answers = [client.get("/"), client.get("/", headers={"Host": "x"}),
               client.get("/static/nothing.css"), client.post("/login", data={"token": TOKEN}),
               client.get("/"), client.get("/nothing"), client.get("/units")]  # fmt: skip

    assert [each.status_code for each in answers] == [401, 400, 404, 303, 200, 404, 200]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] in ("no-store", "no-cache")
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|javascript:", answer.text)
        assert "//" not in re.sub(
            r"redis://", "", " ".join(re.findall(r'(?:src|href)="([^"]*)', answer.text))
        )


# what is shown


def test_overview_counts_what_is_held(shop: Shop) -> None:
    """Each task has a card, and the oldest units stand in a table."""
    shop.run("import_catalogue", 7, age=412)
    shop.wait("sync_order", 1, age=300, refused=14)
    shop.wait("sync_order", 2, age=20)
    shop.keep("send_newsletter", 3)

    page = text_of(visitor(shop).get("/").text)

    assert "running1" in page.replace(" ", "")
    assert re.search(r"running ?1 waiting ?2 kept ?1 oldest ?6 min 5[23] s", page)
    assert re.search(r"sync_order running ?0 waiting ?2 oldest ?5 min 0", page)
    assert "1 slow now" in page
    assert re.search(r"Idle:.*shop.carts.drop_abandoned", page)
    assert (
        page.index("6 min 5")
        < page.index("shop.orders.sync_order order-1")
        < page.index("shop.orders.sync_order order-2")
    )


def test_units_are_filtered_and_paged(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """By task and by state, the oldest first, some on each page."""
    for number in range(1, 8):
        shop.wait("sync_order", number, age=1000 - number * 10)
    shop.run("recount_shelf", 1)
    monkeypatch.setattr("once_core.web._pages.ROWS", 3)
    client = visitor(shop)

    def units(query: str) -> list[str]:
        return re.findall(r'class="key">(\S+) \w+</span>', client.get(f"/units?{query}").text)

    task = "task=shop.orders.sync_order"
    assert units(task) == ["order-1", "order-2", "order-3"]
    assert units(f"{task}&page=2") == ["order-7"]
    assert units(f"{task}&page=99") == ["order-7"]
    assert units(f"{task}&page=-1&state=nonsense") == ["order-1", "order-2", "order-3"]
    assert units("state=running") == ["shelf-1"]
    assert units(f"{task}&state=running") == []


def test_page_of_a_unit_says_what_explain_says(shop: Shop) -> None:
    """Its holders, and which rule decides on a call and on a message now."""
    from once_core.explain import explain

    running = shop.run("import_catalogue", 7, age=412, where="worker-1:2307:0123456789")
    told = explain(shop.guard("import_catalogue"), (7, SECRET), {})

    answer = visitor(shop).get("/unit", params={"key": told.key})

    page = text_of(answer.text)
    for fact in (told.key, running, "worker-1:2307", told.publish_why, told.scope, "slow"):
        assert fact in page
    assert "would be refused" in page
    assert "would wait: message" in page
    assert shop.store.place in page
    assert "order_id, card" in page


def test_page_of_a_unit_that_is_free(shop: Shop) -> None:
    """It says so, and what a call would do."""
    answer = visitor(shop).get("/unit", params={"key": shop.key("sync_order", 1)})

    assert answer.status_code == 404
    assert "it is free" in text_of(answer.text)
    assert "would be sent" in text_of(answer.text)


@pytest.mark.parametrize("key", ["", "nonsense", "other:shop.sync:" + "0" * 40, "{prefix}:events"])
def test_other_keys_are_not_looked_at(shop: Shop, key: str) -> None:
    """What is no record of this program is not read, whatever it holds."""
    answer = visitor(shop).get("/unit", params={"key": key.format(prefix=shop.prefix)})

    assert answer.status_code == 404
    assert "no key of this program" in answer.text


def test_events_give_rates_and_run_times(shop: Shop) -> None:
    """What the stream holds is counted, and its warnings are shown."""
    task, key = shop.guard("sync_order").task, shop.key("sync_order", 1)
    for ran in (0.5, 1.0, 8.0):
        emit("finished", task=task, key=key, message_id="m1", reason="success", ran=ran)
    emit("duplicate", task=task, key=key, reason="one waits", preview="order_id=1")
    emit("deferred", task=task, key=key, cause="overlap", reason="an attempt of message m1 runs")
    emit("deferred", task=task, key=key, cause="store", reason="the store was away")
    emit("lease_lost", task=task, key=key, reason="somebody released it")
    client = visitor(shop)

    wait_until(lambda: "lease lost" in client.get("/events").text, "events are written")
    page = text_of(client.get("/").text)
    unit = text_of(client.get("/unit", params={"key": key}).text)

    assert "overlap \u00d7 1" in page
    assert "lease lost \u00d7 1" in page
    assert re.search(r"median ?1.0 s 95 % ?8.0 s runs/min ?3.0 refused/min ?1.0", page)
    assert "Run times of 3 runs, from 500 ms to 8.0 s: half of them under 1.0 s" in unescape(
        client.get("/").text
    )
    assert "order_id=1" in unit
    assert "somebody released it" in unit
    warnings = client.get("/events", params={"only": "warnings"}).text
    assert warnings.count('class="alert"') == 2
    assert "one waits" not in warnings


def test_each_event_is_read_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often somebody looks, and in however many pages the stream is read."""
    monkeypatch.setattr(_recent, "PAUSE", 0.0)
    monkeypatch.setattr(_recent, "PAGE", 2)
    recent = _recent.Recent(shop.program)
    task = shop.guard("sync_order").task
    told = [f"m{number}" for number in range(8)]

    for message_id in told[:1]:
        emit("claimed", task=task, message_id=message_id)
    wait_until(recent.look, "the first is written")
    for message_id in told[1:]:
        emit("claimed", task=task, message_id=message_id)
    wait_until(lambda: len(recent.look()) >= len(told), "all are written")

    for _ in range(3):
        assert [each.event.message_id for each in recent.look()] == told


def test_what_is_kept_is_bounded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the newest events, so many and no older than a quarter of an hour."""
    monkeypatch.setattr(_recent, "PAUSE", 0.0)
    recent = _recent.Recent(shop.program)
    for number in range(8):
        emit("claimed", task=shop.guard("sync_order").task, message_id=f"m{number}")
    wait_until(lambda: len(recent.look()) == 8, "all are written")

    monkeypatch.setattr(_recent, "MOST", 3)
    few = [each.event.message_id for each in recent.look()]
    then = _recent.wall()
    monkeypatch.setattr(_recent, "wall", lambda: then + _recent.LENGTH + 60)

    assert few == ["m5", "m6", "m7"]
    assert list(recent.look()) == []


def test_live_events_come_as_they_are_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that listens gets what came after its page, as rows of its table, and no more."""
    task, key = shop.guard("sync_order").task, shop.key("sync_order", 1)
    emit("claimed", task=task, key=key, message_id="before")
    client = visitor(shop)
    wait_until(lambda: "before" in client.get("/events").text, "events are written")
    live = unescape(re.findall(r'data-live="([^"]+)"', client.get("/events").text)[0])
    emit("claimed", task=task, key=key, message_id="<after>")
    wait_until(lambda: "&lt;after" in client.get("/events").text, "events are written")
    monkeypatch.setattr("once_core.web._pages.LIVE", 0.5)
    monkeypatch.setattr("once_core.web._pages.BEAT", 0.1)

    answer = client.get(live)
    again = client.get(live, headers={"Last-Event-ID": re.findall(r"id: (\S+)", answer.text)[-1]})

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.count("event: told") == 1
    assert "&lt;after&gt;" in answer.text
    assert "before" not in answer.text
    assert again.text.count("event: told") == 0
    assert client.get(live + "&only=warnings").text.count("event: told") == 0
    assert client.get(live + f"&task={task}").text.count("event: told") == 1


def test_it_says_how_to_turn_events_on(shared_server: DevServer) -> None:
    """Without a stream all else is shown, and one line says what is missing."""
    shop = Shop(Store(shared_server.url), prefix=f"web{uuid.uuid4().hex[:8]}")
    shop.wait("sync_order", 1)

    page = text_of(visitor(shop).get("/").text)

    assert "ONCE_EVENTS=10000" in page
    assert "sync_order" in page
    assert "ONCE_EVENTS=10000" in text_of(visitor(shop).get("/events").text)


def test_a_million_records_are_not_read(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The survey stops at a number of records, and the page says so."""
    for number in range(8):
        shop.wait("sync_order", number)
    monkeypatch.setattr(_census, "MOST", 5)

    page = text_of(visitor(shop).get("/").text)

    assert "5 records" in page
    assert "the survey stopped after 5 records" in page


def test_a_slow_survey_stops(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its seconds are over it shows what it has, and says so."""
    shop.wait("sync_order", 1)
    monkeypatch.setattr(_census, "PATIENCE", -1.0)

    assert "There are more" in text_of(visitor(shop).get("/").text)


def test_many_browsers_cause_one_survey(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many look at once, the store is surveyed once, and again only after a while."""
    shop.wait("sync_order", 1)
    surveys = []
    survey = _census.survey

    def counting(*args: Any, **options: Any) -> Iterator[Unit]:
        surveys.append(args)
        return survey(*args, **options)

    monkeypatch.setattr(_census, "survey", counting)
    monkeypatch.setattr(_census, "FRESH", 60.0)
    surveyor = _census.Surveyor(shop.program)

    threads = [threading.Thread(target=surveyor.census) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(surveys) == 1
    assert surveyor.census().records == 1


def test_pages_while_the_store_is_away(server: DevServer) -> None:
    """They say so with a 503, show no old figures, and are there again when it is."""
    shop = Shop(Store(server.url))
    shop.wait("sync_order", 1)
    client = visitor(shop, allow_release=True)
    key = shop.key("sync_order", 1)
    paths = ["/units", f"/unit?key={key}", "/events", "/"]
    form = form_of(client.get("/explain").text)

    server.kill()
    away = [client.get(path) for path in paths]
    away += [client.post("/release", data={"form": form, "key": key, "holder": "m1"})]
    away += [client.post("/explain", data={"form": form, "task": "sync_order", "arguments": "1"})]
    server.start()

    assert [each.status_code for each in away] == [503] * 6
    assert "cannot be" in text_of(away[0].text) or "lock store" in text_of(away[0].text)
    assert client.get("/explain").status_code == 200
    wait_until(lambda: client.get("/units").status_code == 200, "the store is back")


def test_an_old_survey_is_not_shown_while_the_store_is_away(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes while another one asks in vain waits for the answer, and gets no old figures."""
    monkeypatch.setattr(_census, "FRESH", 0.0)
    monkeypatch.setattr(_census, "SPARE", 0.0)
    shop = Shop(Store(server.url))
    shop.wait("sync_order", 1)
    surveyor = _census.Surveyor(shop.program)
    assert surveyor.census().records == 1
    server.kill()
    with pytest.raises(StoreUnavailableError):
        surveyor.census()
    found: list[object] = []

    def ask() -> None:
        try:
            found.append(surveyor.census())
        except StoreUnavailableError as error:
            found.append(type(error))

    with surveyor._turn:
        second = threading.Thread(target=ask)
        second.start()
        second.join(0.2)
        assert found == []
    second.join()

    assert found == [StoreUnavailableError]


def test_one_of_two_stores_away(shop: Shop, server: DevServer) -> None:
    """What the other one holds is shown, with a line about the one that is away."""
    other = Shop(Store(server.url))
    shop.wait("sync_order", 1)
    first, second = shop.program, other.program
    both = Program("both", {**first.guards, **{f"x.{k}": v for k, v in second.guards.items()}})
    server.kill()

    page = Browser(make_app(both)).get("/units")

    assert page.status_code == 200
    assert "order-1" in page.text
    assert other.store.place in text_of(page.text)


# what is never shown


def test_no_page_shows_an_argument(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """The values of arguments are on no page, in no header and in no line of the log."""
    shop.run("charge_invoice", 5)
    shop.wait("sync_order", 1)
    key = shop.key("charge_invoice", 5)
    guard = shop.guard("sync_order")
    emit("duplicate", task=guard.task, key=key, preview=guard.preview((1, SECRET), {}))
    client = visitor(shop, token=TOKEN, allow_release=True)
    client.post("/login", data={"token": TOKEN})
    wait_until(lambda: "order_id=1" in client.get("/events").text, "events are written")
    form = form_of(client.get("/explain").text)
    asked = {"form": form, "task": "sync_order"}
    named = json.dumps({"order_id": 1, "card": SECRET})

    with caplog.at_level(logging.DEBUG):
        answers = [client.get(path) for path in ("/", "/units", "/events", "/explain", "/nothing")]
        answers += [client.get("/unit", params={"key": each}) for each in (key, SECRET)]
        answers += [client.get("/release", params={"key": key})]
        for arguments in (
            named,
            json.dumps([1, SECRET]),
            f'{{"card": {SECRET}',
            named[:-1] + ', "x": 1}',
        ):
            answers += [client.post("/explain", data={**asked, "arguments": arguments})]

    assert [each.status_code for each in answers] == [200] * 4 + [
        404,
        200,
        404,
        200,
        200,
        200,
        422,
        422,
    ]
    for answer in answers:
        assert SECRET not in answer.text
        assert SECRET not in str(answer.headers)
        assert TOKEN not in answer.text
    assert SECRET not in "".join(r.getMessage() for r in caplog.records if r.name != "httpx")


def test_explain_says_what_would_become_of_a_call(shop: Shop) -> None:
    """By position, by name, and with the values that may be shown."""
    shop.wait("sync_order", 42)
    client = visitor(shop)
    form = form_of(client.get("/explain").text)

    def ask(arguments: str, task: str = "sync_order") -> str:
        asked = {"form": form, "task": task, "arguments": arguments}
        return text_of(client.post("/explain", data=asked).text)

    assert "would be refused: one waits to run" in ask("[42]")
    assert "would be refused: one waits to run" in ask('{"order_id": 42}')
    assert "would be refused: one waits to run" in ask("42")
    assert "would be sent: nothing of this unit of work waits" in ask("[43]")
    assert "order_id=43 (int)" in ask("[43]")
    assert "are no JSON" in ask("{")
    assert "are no JSON" in ask("[" * 20_000)
    assert "these arguments do not fit: missing" not in ask("[]")
    assert "these arguments do not fit: got an unexpected keyword" in ask('{"orders": 1}')
    assert "has no task 'nothing' under guard" in ask("[]", "nothing")


def test_what_a_function_for_keys_says_is_not_shown(shop: Shop) -> None:
    """Its error can hold an argument: the page names its type and the way to see it."""

    def key(order_id: int, card: str = "") -> str:
        raise LookupError(card)

    guard = Guard("shop.pay", lambda order_id, card: None, OnceOptions(key=key), lambda: shop.store)
    client = Browser(make_app(Program("shop", {"shop.pay": lambda: guard})))
    asked = {"form": form_of(client.get("/explain").text), "task": "shop.pay"}

    answer = client.post("/explain", data={**asked, "arguments": json.dumps([1, SECRET])})

    assert answer.status_code == 422
    assert "give no key, LookupError" in answer.text
    assert SECRET not in answer.text


def test_markup_in_an_event_is_text(shop: Shop) -> None:
    """What others have written is shown as text, wherever it comes from."""
    shop.wait("sync_order", 1, name="<script>alert(1)</script>")
    emit("duplicate", task="shop.orders.sync_order", reason="<img src=x onerror=alert(1)>")
    client = visitor(shop)
    wait_until(lambda: "onerror" in client.get("/events").text, "events are written")

    for path in ("/", "/events", "/units", f"/unit?key={shop.key('sync_order', 1)}"):
        assert "<script>" not in client.get(path).text
        assert "<img" not in client.get(path).text


# freeing


def test_nothing_is_released_unless_that_is_allowed(shop: Shop) -> None:
    """Read only is what one gets: no form, and a 403 for whoever makes one."""
    holder = shop.wait("sync_order", 1)
    key = shop.key("sync_order", 1)
    client = visitor(shop)
    form = form_of(client.get("/explain").text)

    page = client.get("/unit", params={"key": key})
    asked = client.get("/release", params={"key": key})
    sent = client.post("/release", data={"form": form, "key": key, "holder": holder})

    assert "elease" not in page.text.replace("may release", "")
    assert (asked.status_code, sent.status_code) == (403, 403)
    assert "--allow-release" in sent.text
    assert shop.guard("sync_order").is_locked((1, SECRET), {})


def test_release_asks_first_and_tells_who_asked(
    shop: Shop, released: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """A confirmation shows the holder; then it is freed, and the event says from where."""
    holder = shop.wait("sync_order", 1, age=30)
    key = shop.key("sync_order", 1)
    client = visitor(shop, allow_release=True)

    asked = client.get("/release", params={"key": key})
    locked = shop.guard("sync_order").is_locked((1, SECRET), {})
    sent = client.post("/release", data={"form": form_of(asked.text), "key": key, "holder": holder})
    page = client.get(sent.headers["location"])

    assert asked.status_code == 200
    assert holder in asked.text
    assert locked
    assert sent.status_code == 303
    assert "It was freed." in page.text
    assert not shop.guard("sync_order").is_locked((1, SECRET), {})
    (event,) = released
    assert (event.task, event.key, event.holder_id) == ("shop.orders.sync_order", key, holder)
    assert event.reason == f"the dashboard, asked by at {ADDRESS}"
    assert f"the dashboard, asked by at {ADDRESS}" in caplog.text


def test_a_running_one_is_freed_only_by_somebody_who_knows(shop: Shop) -> None:
    """Its body is not stopped, and the box that says one knows has to be ticked."""
    holder = shop.run("import_catalogue", 1)
    key = shop.key("import_catalogue", 1)
    client = visitor(shop, allow_release=True)
    asked = client.get("/release", params={"key": key})
    fields = {"form": form_of(asked.text), "key": key, "holder": holder}

    unsure = client.post("/release", data=fields)
    sure = client.post("/release", data={**fields, "sure": "yes"})

    assert "NOT stopped" in asked.text
    assert unsure.status_code == 409
    assert "was not ticked" in unsure.text
    assert sure.status_code == 303


def test_a_unit_is_freed_only_from_the_holder_that_was_shown(
    shop: Shop, released: list[Event]
) -> None:
    """If another one has it by then, nothing happens but a page that says who."""
    holder = shop.wait("sync_order", 1)
    key = shop.key("sync_order", 1)
    client = visitor(shop, allow_release=True)
    asked = client.get("/release", params={"key": key})
    fields = {"form": form_of(asked.text), "key": key, "holder": holder}
    shop.guard("sync_order").release((1, SECRET), {})
    other = shop.wait("sync_order", 1)
    released.clear()

    answer = client.post("/release", data=fields)
    nobody = client.post("/release", data={**fields, "holder": ""})

    assert answer.status_code == 409
    assert f"Not freed from {holder}: {other} holds it now." in text_of(answer.text)
    assert nobody.status_code == 400
    assert released == []
    assert shop.guard("sync_order").is_locked((1, SECRET), {})


def test_one_of_several_that_run_is_freed_alone(shop: Shop) -> None:
    """With `limit=` each holder has its own way to be freed."""
    first, second = shop.run("make_thumbnails", 1), shop.run("make_thumbnails", 1)
    key = shop.key("make_thumbnails", 1)
    client = visitor(shop, allow_release=True)
    asked = client.get("/release", params={"key": key, "holder": second})

    client.post(
        "/release",
        data={"form": form_of(asked.text), "key": key, "holder": second, "sure": "yes"},
    )

    page = client.get("/unit", params={"key": key}).text
    assert f"Release from {second}" in asked.text
    assert first in page
    assert second not in page.partition("Recent events")[0]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"form": ""}, 403),
        ({"form": "0" * 64}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "null"}, 403),
        ({"cookie": ""}, 403),
        ({"type": "application/json"}, 415),
        ({"type": "text/plain"}, 415),
        ({"origin": HERE}, 303),
        ({}, 303),
    ],
)
@pytest.mark.parametrize("token", [None, TOKEN])
def test_forms_of_other_pages_do_nothing(
    shop: Shop, change: dict[str, str], status: int, token: str | None
) -> None:
    """A form counts only with its session's token, from a page of this very host."""
    holder = shop.wait("sync_order", 1)
    key = shop.key("sync_order", 1)
    client = visitor(shop, allow_release=True, token=token)
    client.post("/login", data={"token": TOKEN})
    fields = {"form": form_of(client.get("/release", params={"key": key}).text)}
    fields |= {"key": key, "holder": holder}
    headers = {}
    if "form" in change:
        fields["form"] = change["form"]
    if "origin" in change:
        headers["Origin"] = change["origin"]
    if "type" in change:
        headers["Content-Type"] = change["type"]
    if "cookie" in change:
        client.cookies.clear()
        headers["Authorization"] = f"Bearer {TOKEN}"

    answer = client.post("/release", data=fields, headers=headers)

    assert answer.status_code == status
    assert shop.guard("sync_order").is_locked((1, SECRET), {}) == (status != 303)


def test_the_form_of_another_session_does_nothing(shop: Shop) -> None:
    """The token of a form is bound to the session it was made for."""
    app = make_app(shop.program, allow_release=True)
    holder = shop.wait("sync_order", 1)
    key = shop.key("sync_order", 1)
    mine, yours = Browser(app), Browser(app)
    yours.get("/explain")
    form = form_of(mine.get("/explain").text)

    answer = yours.post("/release", data={"form": form, "key": key, "holder": holder})

    assert answer.status_code == 403


def test_getting_changes_nothing(shop: Shop) -> None:
    """Whatever is asked for by GET, the records stay as they are."""
    shop.run("import_catalogue", 1)
    shop.wait("sync_order", 1)
    client = visitor(shop, allow_release=True)
    keys = [shop.key("import_catalogue", 1), shop.key("sync_order", 1)]
    redis: Any = shop.store.client()
    before = [redis.hgetall(key) for key in keys]

    for key in keys:
        for path in (
            "/",
            "/units",
            "/unit",
            "/events",
            "/explain",
            "/release",
            "/logout",
            "/login",
        ):
            client.get(path, params={"key": key, "holder": "m1", "sure": "yes"})

    assert [redis.hgetall(key) for key in keys] == before


def test_a_form_that_is_too_large_is_refused(shop: Shop) -> None:
    """Nobody fills the memory of the dashboard."""
    client = visitor(shop, token=TOKEN)

    answer = client.post("/login", data={"token": "x" * 200_000})

    assert answer.status_code == 413


# mounted


def with_user(app: Any, user: object) -> Any:
    """The auth of a mounting app."""

    async def known(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "user": user}, receive, send)

    return known


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (SimpleUser("ada"), f"ada at {ADDRESS}"),
        ("bo\nb", f"bo?b at {ADDRESS}"),
        (None, f"at {ADDRESS}"),
    ],
)
def test_mounted_it_knows_who_asks(
    shop: Shop, released: list[Event], user: object, name: str
) -> None:
    """Under a path all links lead below it, and a release names the app's user."""
    dashboard = with_user(make_app(shop.program, allow_release=True), user)
    client = Browser(Starlette(routes=[Mount("/ops/once", dashboard)]))
    holder = shop.wait("sync_order", 1)
    key = shop.key("sync_order", 1)

    page = client.get("/ops/once/")
    asked = client.get("/ops/once/release", params={"key": key})
    links = set(re.findall(r'(?:href|src|action|data-live)="(/[^"]*)"', page.text + asked.text))
    answers = {link: client.get(unescape(link)) for link in links}
    sent = client.post(
        "/ops/once/release", data={"form": form_of(asked.text), "key": key, "holder": holder}
    )

    assert len(links) >= 10
    assert [link for link in links if not link.startswith("/ops/once/")] == []
    for link, answer in answers.items():
        assert answer.status_code in (200, 405) or "no key of this program" in answer.text, link
    assert "Path=/ops/once;" in page.headers["set-cookie"]
    assert sent.headers["location"].startswith("/ops/once/unit?")
    assert [event.reason for event in released] == [f"the dashboard, asked by {name}"]


def test_in_fastapi(shop: Shop) -> None:
    """`app.mount` is all it takes."""
    from fastapi import FastAPI

    shop.wait("sync_order", 1)
    api = FastAPI()
    api.mount("/once", make_app(shop.program, token=TOKEN))
    client = Browser(api)

    entered = client.post("/once/login", data={"token": TOKEN})

    assert entered.headers["location"] == "/once/"
    assert "order-1" in client.get("/once/units").text
    assert client.get("/once/static/once.css").status_code == 200
    assert client.get("/once").status_code in (303, 307)


def test_in_flask(shop: Shop, released: list[Event]) -> None:
    """In a WSGI server it works by a2wsgi; nothing there waits for events for ever."""
    from a2wsgi import ASGIMiddleware
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.test import Client

    holder = shop.wait("sync_order", 1)
    key = shop.key("sync_order", 1)
    flask = Flask("shop")
    dashboard = ASGIMiddleware(make_app(shop.program, allow_release=True))
    client = Client(DispatcherMiddleware(flask.wsgi_app, {"/once": dashboard}))

    def get(path: str) -> Any:
        return client.get(path, base_url=HERE)

    page, live, events = get("/once/units"), get("/once/events/live"), get("/once/events")
    form = form_of(get(f"/once/release?key={key}").text)
    sent = client.post(
        "/once/release",
        data={"form": form, "key": key, "holder": holder},
        base_url=HERE,
        environ_overrides={"REMOTE_ADDR": "127.0.0.7"},
    )

    assert "order-1" in page.text
    assert 'href="/once/events"' in page.text
    assert live.status_code == 204
    assert "<script" not in events.text
    assert "Refresh" in events.text
    assert sent.status_code == 303
    assert released[0].reason == "the dashboard, asked by at 127.0.0.7"


DJANGO = """
import asyncio, httpx, sys
from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x")
urlpatterns = []

from django.core.asgi import get_asgi_application
from starlette.applications import Starlette
from starlette.routing import Mount

site = get_asgi_application()
from once_core.cli.program import load
from once_core.web import make_app

dashboard = make_app(load("", sys.argv[1]), token="a token of the shop")
application = Starlette(routes=[Mount("/once", dashboard), Mount("/", site)])
async def visit():
    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        print((await client.get("/")).status_code, (await client.get("/once/")).status_code)
        await client.post("/once/login", data={"token": "a token of the shop"})
        print((await client.get("/once/units")).status_code)


asyncio.run(visit())
"""


def test_in_django(shop: Shop) -> None:
    """In `asgi.py`, beside the site."""
    done = subprocess.run(
        [sys.executable, "-c", DJANGO, shop.store.place],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.split() == ["404", "401", "200"], done.stderr


# the command


@pytest.fixture
def serve(shared_server: DevServer, tmp_path: Path) -> Iterator[Callable[..., tuple[Any, str]]]:
    """Starts `once web`, and answers with its process and the first line that has a link."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str) -> tuple[Any, str]:
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "once_core", "web", "--url", shared_server.url, *words],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("http://"):
                return process, line.split()[0]
        raise AssertionError((tmp_path / "log").read_text(encoding="utf-8"))

    yield start
    for process in running:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def _port() -> str:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def fetch(url: str) -> tuple[int, str]:
    """Status and text of a page; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except OSError:
        return 0, ""


def test_the_command_serves_on_loopback(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Without a word more it is there for this machine, to be looked at, and it logs no request."""
    _, link = serve("--port", _port())

    wait_until(lambda: fetch(link)[0] == 200, "it serves")

    assert link.startswith("http://127.0.0.1:")
    assert "read only" in fetch(link)[1]
    assert (tmp_path / "log").read_text(encoding="utf-8") == ""


def test_behind_a_proxy_links_lead_below_its_path(serve: Callable[..., Any]) -> None:
    """With --root-path, which the proxy takes away, all links have it."""
    _, link = serve("--port", _port(), "--root-path", "/once/")
    wait_until(lambda: fetch(f"{link}units")[0] == 200, "it serves")

    page = fetch(f"{link}units")[1]

    assert 'href="/once/events"' in page
    assert [each for each in re.findall(r'href="(/[^"]*)', page) if each[:6] != "/once/"] == []
    assert fetch(f"{link}static/once.css")[0] == 200


def test_to_release_a_token_is_made(serve: Callable[..., Any]) -> None:
    """With --allow-release and no token one is made, and the link that is printed opens it."""
    _, link = serve("--port", _port(), "--allow-release")
    page, _, query = link.partition("?")
    wait_until(lambda: fetch(page)[0] == 401, "it asks for a token")

    jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with jar.open(link, timeout=10) as answer:
        opened = answer.geturl(), answer.read().decode()

    assert query.startswith("token=")
    assert opened[0] == page
    assert "may release" in opened[1]


def test_the_command_ends_while_a_browser_listens(serve: Callable[..., Any]) -> None:
    """An open page of events does not keep it from ending."""
    process, link = serve("--port", _port())
    wait_until(lambda: fetch(link)[0] == 200, "it serves")

    with urllib.request.urlopen(f"{link}events/live", timeout=10) as live:
        live.read(5)
        process.terminate()
        code = process.wait(10)

    assert code in (0, -15)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "shop.example"])
def test_other_machines_need_a_token(shop: Shop, host: str, capsys: Any) -> None:
    """Where others can reach it, it does not start without one."""
    from once_core.__main__ import main

    code = main(["web", "--host", host], shop.program)

    assert code == 2
    assert "there is no token" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "jinja2"])
def test_what_is_not_installed_is_named(shop: Shop, missing: str) -> None:
    """The error of `once web` and of `make_app` says what to install."""
    code = f"""
import sys
sys.modules[{missing!r}] = None
from once_core.__main__ import main
from once_core.web import make_app
code = main(["web", "--url", "redis://localhost:1/0"])
try:
    make_app("", token=None)
except Exception as error:
    print(type(error).__name__, error)
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 2
    assert f"once web needs {missing}" in done.stderr
    assert 'pip install "once-tasks[web]"' in done.stderr
    if missing != "uvicorn":
        assert f"ConfigurationError the dashboard needs {missing}" in done.stdout


def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    """The command line, and the package itself, load no web framework."""
    code = """
import sys
import once_core.web
from once_core.__main__ import _parser
_parser().parse_args(["web", "--port", "1"])
print({"starlette", "uvicorn", "jinja2", "anyio"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == "set()"


def test_hosts_of_the_command(shop: Shop) -> None:
    """It answers to loopback, to the address it listens at, and to names that are given."""
    import argparse

    parser = argparse.ArgumentParser()
    command.web_parser(parser)

    def hosts(*words: str) -> list[str]:
        return command._hosts(parser.parse_args([*words]))[3:]

    assert hosts() == ["127.0.0.1"]
    assert hosts("--host", "10.1.2.3", "--allowed-host", "once.shop") == ["10.1.2.3", "once.shop"]
    assert hosts("--host", "::1") == ["[::1]"]
    assert hosts("--host", "0.0.0.0") == []
