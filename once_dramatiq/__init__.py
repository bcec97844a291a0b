"""Dramatiq actors that never pile up, never run twice at once and are never lost.

```python
broker.add_middleware(OnceMiddleware())


@dramatiq.actor(once=True)
def sync_order(order_id): ...
```
"""

from __future__ import annotations

from once_core._lease import Lease, current_lease
from once_core.errors import (
    BulkPublishError,
    DuplicateTaskError,
    LeaseLostError,
    LeaseTimeoutError,
    OnceError,
)
from once_core.options import OnceOptions
from once_core.publish import OncePublish
from once_core.purging import Purged
from once_dramatiq.errors import (
    ConfigurationError,
    GuardError,
    KeyDerivationError,
    OverlapError,
    StoreUnavailableError,
)
from once_dramatiq.handles import holder, is_locked, published, release, send_many
from once_dramatiq.middleware import OnceMiddleware
from once_dramatiq.purging import purge

__all__ = [
    "BulkPublishError",
    "ConfigurationError",
    "DuplicateTaskError",
    "GuardError",
    "KeyDerivationError",
    "Lease",
    "LeaseLostError",
    "LeaseTimeoutError",
    "OnceError",
    "OnceMiddleware",
    "OnceOptions",
    "OncePublish",
    "OverlapError",
    "Purged",
    "StoreUnavailableError",
    "current_lease",
    "holder",
    "is_locked",
    "published",
    "purge",
    "release",
    "send_many",
]
