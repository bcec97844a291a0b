"""Actors that are triggered by the clock, for the commands `dramatiq` and `periodiq`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import dramatiq
import periodiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage, Retries

from _support import ledger
from _support.dramatiq_app import SETTINGS, message_id
from once_dramatiq import OnceMiddleware


def make_broker(settings: Mapping[str, str]) -> RedisBroker:
    """A broker with ``report`` and ``sync``; their bodies run until a gate is opened, or briefly.

    Args:
        settings: ``url``, ``queue``, ``ledger``, and ``prefix`` of the keys.
    """
    broker = RedisBroker(url=settings["url"], middleware=[CurrentMessage(), Retries()])
    broker.add_middleware(OnceMiddleware(prefix=settings["prefix"]))
    broker.add_middleware(periodiq.PeriodiqMiddleware())
    every_minute = periodiq.cron("* * * * *")

    @dramatiq.actor(
        broker=broker,
        queue_name=settings["queue"],
        periodic=every_minute,
        once={"scope": "until_done"},
    )
    def report(seconds=-1.0):
        ledger.run_body(settings["ledger"], message_id(), 0, "report", seconds)

    @dramatiq.actor(broker=broker, queue_name=settings["queue"], once={"key": []})
    def sync(seconds=-1.0):
        ledger.run_body(settings["ledger"], message_id(), 0, "sync", seconds)

    dramatiq.set_broker(broker)
    return broker


def broker_of_environment() -> RedisBroker:
    """The broker of a worker or of a scheduler in a process of its own."""
    return make_broker(json.loads(os.environ[SETTINGS]))
