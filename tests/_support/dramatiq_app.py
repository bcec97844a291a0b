"""The broker and the actors that Dramatiq's test workers run, and that tests share with them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import dramatiq
import redis
from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as RateLimiterBackend
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from _support import dramatiq_ways_actors, ledger
from once_dramatiq import OnceMiddleware

SETTINGS = "TEST_DRAMATIQ"
"""Environment variable with the settings of `make_broker` as JSON."""

LEASE = 3
"""Seconds; short, so that tests see leases lapse."""


def make_broker(settings: Mapping[str, Any]) -> Broker:
    """A broker with all sample actors.

    Args:
        settings: ``broker`` (``stub``, ``redis`` or ``rabbitmq``), ``url`` of it, ``store_url``,
            ``queue`` (the name of the only queue), ``ledger`` (where bodies note their runs),
            ``once`` (defaults of the middleware), ``broker_options``, ``results`` (False for none).
    """
    broker = _bare_broker(settings)
    broker.add_middleware(CurrentMessage())
    broker.add_middleware(AsyncIO())
    store_url = settings["store_url"]
    if settings.get("results", True):
        # redis-py 8 gives up after 5 s, whatever time-out get_result was given
        client = redis.Redis.from_url(store_url, socket_timeout=60)
        broker.add_middleware(Results(backend=RedisBackend(client=client)))
    client = redis.Redis.from_url(store_url)
    broker.add_middleware(GroupCallbacks(RateLimiterBackend(client=client)))
    once = {"url": store_url, "lease": LEASE, **settings.get("once", {})}
    broker.add_middleware(OnceMiddleware(**once))
    add_actors(broker, settings)
    return broker


def _bare_broker(settings: Mapping[str, Any]) -> Broker:
    options = settings.get("broker_options", {})
    if settings["broker"] == "stub":
        return StubBroker()
    if settings["broker"] == "rabbitmq":
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=settings["url"], **options)
    return RedisBroker(url=settings["url"], **options)


def message_id() -> str:
    """Of the message whose body asks."""
    message = CurrentMessage.get_current_message()
    assert message is not None
    return message.message_id


def retries() -> int:
    message = CurrentMessage.get_current_message()
    assert message is not None
    return int(message.options.get("retries", 0))


def add_actors(broker: Broker, settings: Mapping[str, Any]) -> dict[str, Any]:  # noqa: C901  # a list
    """Declare the sample actors; returns them by name."""
    path, queue = str(settings["ledger"]), settings["queue"]
    has_results = bool(settings.get("results", True))

    def actor(**options: Any) -> Callable[[Callable[..., Any]], Any]:
        chosen = {"min_backoff": 100, "max_backoff": 100, **options}
        if has_results:
            chosen.setdefault("store_results", True)
        return dramatiq.actor(broker=broker, queue_name=queue, **chosen)

    def body(unit: str, seconds: float = 0.0, payload: object = None) -> object:
        return ledger.run_body(path, message_id(), retries(), unit, seconds, payload)

    @actor(once=True)
    def work(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"key": ["unit"]})
    def by_unit(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"scope": "until_done", "key": ["unit"]})
    def until_done(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"scope": "queued", "key": ["unit"]})
    def queued(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"scope": "running", "key": ["unit"]})
    def running(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"scope": "window", "window": 4, "key": ["unit"]})
    def windowed(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"key": ["unit"], "keep_for": 30})
    def kept(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"key": ["unit"], "on_duplicate": "raise"})
    def raising(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"key": ["unit"], "on_duplicate": "replace"})
    def replacing(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"key": ["unit"], "on_duplicate": "replace", "debounce": 1, "debounce_max": 4})
    def debounced(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"key": ["unit"], "on_overlap": "skip"})
    def skipping(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(once={"key": ["unit"], "on_overlap": "raise"})
    def refusing(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    if has_results:

        @actor(once={"on_duplicate": "share"})
        def sharing(unit, seconds=0.0, payload=None):
            return body(unit, seconds, payload)

    @actor(once=True, max_retries=5)
    def retrying(unit, times=1, seconds=0.0):
        """Fails so many times, then succeeds."""
        body(unit, seconds)
        if retries() < times:
            raise ValueError(f"attempt {retries()} of {unit}")
        return f"after {retries()}"

    @actor(once=True, max_retries=0)
    def failing(unit, seconds=0.0):
        body(unit, seconds)
        raise ValueError(unit)

    @actor(once=True, max_retries=0, time_limit=30_000)
    async def in_a_coroutine(unit, seconds=0.0):
        with ledger.noted_run(path, message_id(), retries(), unit):
            await asyncio.sleep(seconds)
        return f"done {unit}"

    @actor()
    def unguarded(unit, seconds=0.0, payload=None):
        return body(unit, seconds, payload)

    @actor(max_retries=0)
    def noting(*args, payload=None):
        """A step after others, or a callback: notes what it was given."""
        ledger.note(path, "noted", args=list(args), payload=payload, id=message_id())
        return args[-1] if args else None

    dramatiq_ways_actors.add(broker, actor, body, path)
    return dict(broker.actors)


def broker_of_environment() -> Broker:
    """The broker of a worker's process."""
    return make_broker(json.loads(os.environ[SETTINGS]))
