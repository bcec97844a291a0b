"""Celery tasks that never pile up, never run twice at once and are never lost.

```python
@app.task(base=OnceTask)
def sync_order(order_id): ...
```
"""

from __future__ import annotations

from once_celery.errors import StoreUnavailableError
from once_celery.purging import Purged, purge
from once_celery.task import OnceTask
from once_core._lease import Lease, current_lease
from once_core.errors import (
    BulkPublishError,
    ConfigurationError,
    DuplicateTaskError,
    KeyDerivationError,
    LeaseLostError,
    LeaseTimeoutError,
    OnceError,
    OverlapError,
)
from once_core.options import OnceOptions
from once_core.publish import OncePublish

__all__ = [
    "BulkPublishError",
    "ConfigurationError",
    "DuplicateTaskError",
    "KeyDerivationError",
    "Lease",
    "LeaseLostError",
    "LeaseTimeoutError",
    "OnceError",
    "OnceOptions",
    "OncePublish",
    "OnceTask",
    "OverlapError",
    "Purged",
    "StoreUnavailableError",
    "current_lease",
    "purge",
]
