"""The sample tasks, with spans opened and closed where Celery's instrumentation does it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from celery import signals
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from _support import ledger
from _support.celery_app import SETTINGS, app
from once_core.opentelemetry import measure

__all__ = ["app"]


class ToLedger(SpanExporter):
    """Notes each span that ended."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        path = json.loads(os.environ[SETTINGS])["ledger"]
        for each in spans:
            ledger.note(path, "span", name=each.name, attributes=dict(each.attributes or {}))
        return SpanExportResult.SUCCESS


measure()  # before the provider is set, as it may be
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToLedger()))
trace.set_tracer_provider(provider)
_open: dict[str, Any] = {}


@signals.task_prerun.connect(weak=False)
def open_span(task_id: str, task: Any, **_: object) -> None:
    """As `opentelemetry.instrumentation.celery` does."""
    span = trace.get_tracer("tests").start_span(f"run/{task.name}")
    _open[task_id] = trace.use_span(span, end_on_exit=True)
    _open[task_id].__enter__()


@signals.task_postrun.connect(weak=False)
def close_span(task_id: str, **_: object) -> None:
    _open.pop(task_id).__exit__(None, None, None)
