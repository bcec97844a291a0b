"""Keys, leases and the record of a unit of work: what the Celery and Dramatiq packages bind.

Imports neither of them.
"""

from __future__ import annotations

from once_core._lease import Lease, current_lease
from once_core.configuration import configure
from once_core.errors import (
    BulkPublishError,
    ConfigurationError,
    DuplicateTaskError,
    KeyDerivationError,
    LeaseLostError,
    LeaseTimeoutError,
    OnceError,
    OverlapError,
    StoreUnavailableError,
)
from once_core.events import Event, subscribe
from once_core.functions import once
from once_core.guard import Guard, Holder
from once_core.leasing import LeaseBlock, lease
from once_core.options import OnceOptions
from once_core.publish import OncePublish
from once_core.store import Store

__all__ = [
    "BulkPublishError",
    "ConfigurationError",
    "DuplicateTaskError",
    "Event",
    "Guard",
    "Holder",
    "KeyDerivationError",
    "Lease",
    "LeaseBlock",
    "LeaseLostError",
    "LeaseTimeoutError",
    "OnceError",
    "OnceOptions",
    "OncePublish",
    "OverlapError",
    "Store",
    "StoreUnavailableError",
    "configure",
    "current_lease",
    "lease",
    "once",
    "subscribe",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("once-tasks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
