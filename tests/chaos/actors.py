"""The actors of the chaos test, and what its Dramatiq workers note beside their bodies' runs."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dramatiq
import redis
from _support import ledger
from _support.dramatiq_app import SETTINGS, message_id, retries
from chaos.bodies import HEAL_AFTER, LEASE, note_events, noted_body, options
from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import Retry
from dramatiq.middleware import (
    AgeLimit,
    AsyncIO,
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    Middleware,
    Pipelines,
    Retries,
    ShutdownNotifications,
    TimeLimit,
)
from dramatiq.rate_limits.backends import RedisBackend as RateLimiterBackend
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from redis.backoff import NoBackoff
from redis.retry import Retry as ClientRetry

from once_dramatiq import OnceMiddleware

__all__ = ["make_broker"]


class Watch(Middleware):
    """Notes what Dramatiq does with messages."""

    def __init__(self, path: str) -> None:
        self._path = path

    def before_process_message(self, broker: Broker, message: Any) -> None:
        self._note("begun", message)

    def before_delay_message(self, broker: Broker, message: Any) -> None:
        self._note("delayed", message)

    def after_ack(self, broker: Broker, message: Any) -> None:
        self._note("acked", message)

    after_nack = after_ack

    def _note(self, kind: str, message: Any) -> None:
        is_delayed = message.queue_name.endswith(".DQ")
        group = os.getpgid(0)
        ledger.note(self._path, kind, id=message.message_id, group=group, delayed=is_delayed)


class NotedPipelines(Pipelines):
    """Notes which message's next step the broker did not take: Dramatiq then drops it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def after_process_message(self, broker: Any, message: Any, **rest: Any) -> None:
        with _noted_drop(self._path, message):
            super().after_process_message(broker, message, **rest)


class NotedGroupCallbacks(GroupCallbacks):
    """The same of the callback of a group."""

    def __init__(self, path: str, backend: RateLimiterBackend) -> None:
        super().__init__(backend)
        self._path = path

    def after_process_message(self, broker: Any, message: Any, **rest: Any) -> None:
        with _noted_drop(self._path, message):
            super().after_process_message(broker, message, **rest)


@contextmanager
def _noted_drop(path: str, message: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        ledger.note(path, "dropped", id=message.message_id)
        raise


def make_broker(settings: Mapping[str, Any], *, is_producer: bool) -> Broker:
    """A broker with the actors.

    Args:
        settings: ``broker``, ``url`` of it, ``store_url``, ``results_url``, ``queue``, ``ledger``.
        is_producer: Gives up soon when the broker does not answer.
    """
    path = str(settings["ledger"])
    groups = RateLimiterBackend(client=redis.Redis.from_url(settings["results_url"]))
    results = RedisBackend(client=redis.Redis.from_url(settings["results_url"]))
    once: dict[str, Any] = {"lease": LEASE, "heal_after": HEAL_AFTER}
    broker = _bare_broker(
        settings,
        [
            AgeLimit(),
            TimeLimit(),
            ShutdownNotifications(),
            Callbacks(),
            NotedPipelines(path),
            Retries(max_retries=9, min_backoff=100, max_backoff=1000),
            CurrentMessage(),
            AsyncIO(),
            Results(backend=results, store_results=True),
            NotedGroupCallbacks(path, groups),
            OnceMiddleware(url=settings["store_url"], **once),
        ],
        is_producer=is_producer,
    )
    if not is_producer:
        broker.add_middleware(Watch(path))
    _add_actors(broker, str(settings["queue"]), path)
    return broker


def _bare_broker(
    settings: Mapping[str, Any], middleware: list[Middleware], *, is_producer: bool
) -> Broker:
    if settings["broker"] == "rabbitmq":
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        # else a message on its way when a connection breaks is lost, and nobody knows
        return RabbitmqBroker(url=settings["url"], middleware=middleware, confirm_delivery=True)
    chosen: dict[str, Any] = {"url": settings["url"]}
    if is_producer:
        client = redis.Redis.from_url(
            settings["url"],
            socket_timeout=4,
            socket_connect_timeout=1,
            retry=ClientRetry(NoBackoff(), 0),
        )
        chosen = {"client": client}
    return RedisBroker(
        middleware=middleware, heartbeat_timeout=3000, maintenance_chance=200_000, **chosen
    )


def _add_actors(broker: Broker, queue: str, path: str) -> None:  # noqa: C901  # a list
    def actor(kind: str, **chosen: Any) -> Callable[[Callable[..., Any]], Any]:
        return dramatiq.actor(
            broker=broker, queue_name=queue, actor_name=kind, once=options(kind), **chosen
        )

    def body(unit: str, seconds: float, payload: object = None) -> str:
        with noted_body(path, message_id(), retries(), unit, payload):
            time.sleep(seconds)
        return unit

    def plain(unit: str, seconds: float = 0.0) -> str:
        return body(unit, seconds)

    for kind in ("late", "delayed", "done"):
        actor(kind)(plain)

    @actor("coroutine")
    async def coroutine(unit: str, seconds: float = 0.0) -> str:
        with noted_body(path, message_id(), retries(), unit):
            await asyncio.sleep(seconds)
        return unit

    @actor("retry")
    def retry(unit: str, seconds: float = 0.0, times: int = 1) -> str:
        body(unit, seconds)
        if retries() < times:
            raise Retry("again", delay=round(seconds * 1000))
        return unit

    def newest(unit: str, seconds: float = 0.0, payload: str = "") -> str:
        return body(unit, seconds, payload)

    for kind in ("replace", "debounce"):
        actor(kind)(newest)

    @dramatiq.actor(broker=broker, queue_name=queue, actor_name="tail")
    def tail(canvas: str) -> str:
        """Ends a pipeline or group; not under guard."""
        ledger.note(path, "canvas", canvas=canvas)
        return canvas


if SETTINGS in os.environ:
    _settings = json.loads(os.environ[SETTINGS])
    broker = make_broker(_settings, is_producer=False)
    dramatiq.set_broker(broker)
    note_events(str(_settings["ledger"]))
