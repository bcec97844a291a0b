"""celery-once's configuration, ``app.conf.ONCE``, read late; what cannot be, and who is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from once_celery.compat import QueueOnce
from once_core.errors import ConfigurationError
from once_pytest.clock import OnceClock

pytestmark = [
    pytest.mark.filterwarnings("ignore:once_celery.compat:DeprecationWarning"),
    pytest.mark.once(leaks="ignore"),
]

Drain = Callable[..., Any]

ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": "redis://localhost:6379/0", "default_timeout": 60 * 60},
}


@pytest.fixture
def celery(once_celery_app: Celery) -> Celery:
    """An app that is configured as celery-once says."""
    once_celery_app.conf.ONCE = ONCE
    return once_celery_app


def test_the_configuration_may_come_late(once_celery_app: Celery, once_clock: OnceClock) -> None:
    """Tasks may be defined, and looked at, before ``ONCE`` is set."""

    @once_celery_app.task(base=QueueOnce)
    def example() -> None: ...

    assert example.name

    once_celery_app.conf.update(ONCE={"settings": {"default_timeout": 77}})

    assert example.once_guard().options.ttl == 77.0


def test_our_own_settings_go_before(celery: Celery) -> None:
    """Who has set ``once_ttl`` already need not take ``ONCE`` away at the same time."""
    celery.conf.once_ttl = 99

    @celery.task(base=QueueOnce)
    def example() -> None: ...

    assert example.once_guard().options.ttl == 99.0
    assert example.once_guard().options.url == "redis://localhost:6379/0"


def test_the_setting_of_older_versions(once_celery_app: Celery) -> None:
    """``ONCE_DEFAULT_TIMEOUT``, which the README still names, is understood."""
    once_celery_app.conf.ONCE_DEFAULT_TIMEOUT = 120

    @once_celery_app.task(base=QueueOnce)
    def example() -> None: ...

    assert example.once_guard().options.ttl == 120.0


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("redis://localhost:6379/1", "redis://localhost:6379/1"),
        ("redis://localhost:6379/1?ssl=true", "rediss://localhost:6379/1"),
        ("redis://localhost:6379/1?ssl=false", "redis://localhost:6379/1"),
        ("rediss://localhost:6379/1", "rediss://localhost:6379/1"),
        ("redis+socket:///var/run/redis/redis.sock?db=1", "unix:///var/run/redis/redis.sock?db=1"),
    ],
)
def test_urls(once_celery_app: Celery, theirs: str, ours: str) -> None:
    """All forms of URLs that the README lists are understood."""
    once_celery_app.conf.ONCE = {"backend": ONCE["backend"], "settings": {"url": theirs}}

    @once_celery_app.task(base=QueueOnce)
    def example() -> None: ...

    assert example.once_guard().options.url == ours


@pytest.mark.parametrize(
    "backend", ["celery_once.backends.File", "allianceauth.services.tasks.DjangoBackend", dict]
)
def test_other_backends_are_refused(once_celery_app: Celery, backend: object) -> None:
    """Locks in files and caches are an error that says what to set."""
    once_celery_app.conf.ONCE = {"backend": backend, "settings": {"location": "/tmp/celery_once"}}

    @once_celery_app.task(base=QueueOnce)
    def example() -> None: ...

    with pytest.raises(ConfigurationError, match=r"Set app\.conf\.once_url = "):
        example.delay()


def test_blocking_lets_the_message_wait(celery: Celery, once_drain: Drain) -> None:
    """In place of the caller the message waits: a call during the run is accepted at once."""
    settings = {"blocking": True, "blocking_timeout": 30}
    celery.conf.ONCE = {"backend": ONCE["backend"], "settings": settings}
    during = []

    @celery.task(base=QueueOnce, bind=True)
    def example(self: Any) -> None:
        if not during:
            during.append(self.delay().once.state)

    example.delay()
    once_drain()

    assert during == ["claimed"]


def test_a_broker_that_is_away_leaves_no_lock(celery: Celery, monkeypatch: Any) -> None:
    """What could not be published refuses nobody (celery-once keeps that lock for an hour)."""

    @celery.task(base=QueueOnce)
    def example() -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(celery.amqp, "send_task_message", _refuse)
        with pytest.raises(ConnectionError):
            example.delay()

    assert example.delay().once.state == "claimed"


def _refuse(*_: object, **__: object) -> None:
    raise ConnectionError
