"""The sample actors, counted for Prometheus beside Dramatiq's own middleware."""

from __future__ import annotations

from dramatiq.middleware.prometheus import Prometheus

from _support.dramatiq_main import broker
from once_core.prometheus import measure

__all__ = ["broker"]

if not any(isinstance(each, Prometheus) for each in broker.middleware):  # Dramatiq 1 has it
    broker.add_middleware(Prometheus())
measure()
