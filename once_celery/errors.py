"""The one error that is Celery's too: callers' handlers for a broker that is away see it."""

from __future__ import annotations

from kombu.exceptions import OperationalError

from once_core import errors

__all__ = ["StoreUnavailableError"]


class StoreUnavailableError(errors.StoreUnavailableError, OperationalError):
    """The lock store did not answer in time, or refused; nothing was sent.

    Both a `once_core.errors.StoreUnavailableError` and a `kombu.exceptions.OperationalError`,
    which is what `delay()` raises when the broker is away.
    """

    @classmethod
    def of(cls, error: errors.StoreUnavailableError) -> StoreUnavailableError:
        """The same error, as Celery's callers know it."""
        return cls(str(error), url=error.url, reason=error.reason)
