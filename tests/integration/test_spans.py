"""The span of a task in a real worker says what once decided about it."""

from __future__ import annotations

from collections.abc import Callable

from _support import ledger
from _support.deployment import Deployment
from _support.waiting import wait_until


def test_span_of_a_run(deploy: Callable[..., Deployment], unit: str) -> None:
    """The start is told on the span that is opened before it, and closed after the task."""
    deployment = deploy(pool="prefork")
    deployment.worker(app="_support.traced_celery")
    sent = deployment.task("work").delay(unit)
    sent.get(timeout=20)

    span = wait_until(lambda: ledger.entries(deployment.ledger, "span"), "a span ended")[0]

    (run,) = deployment.runs(unit)
    told = span["attributes"]
    assert span["name"] == "run/work"
    assert (told["once.state"], told["once.key"]) == ("started", sent.once.key)
    assert told["once.fence"] == run.fence
    assert told["once.waited"] >= 0


def test_span_of_a_message_that_does_not_run(deploy: Callable[..., Deployment], unit: str) -> None:
    """A task that was put back, and so seems to end at once, says why."""
    deployment = deploy(pool="prefork")
    deployment.worker(app="_support.traced_celery")
    work = deployment.task("work")
    work.delay(unit, -1)
    wait_until(lambda: deployment.runs(unit), "the first body runs")
    work.delay(unit, -1)

    span = wait_until(lambda: ledger.entries(deployment.ledger, "span"), "a span ended")[0]

    assert span["attributes"]["once.state"] == "deferred"
    assert span["attributes"]["once.cause"] == "overlap"
    ledger.gate(deployment.ledger, unit).touch()
