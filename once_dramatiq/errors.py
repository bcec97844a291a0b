"""The errors that are Dramatiq's too: its handlers, and callers' handlers, see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from dramatiq.middleware import MiddlewareError, SkipMessage

from once_core import errors

if TYPE_CHECKING:
    from dramatiq.errors import BrokerConnectionError
else:
    try:
        from dramatiq.errors import BrokerConnectionError
    except ImportError:  # Dramatiq 2.0 and older
        from dramatiq.errors import ConnectionError as BrokerConnectionError

__all__ = [
    "BrokerConnectionError",
    "ConfigurationError",
    "DuplicateTaskError",
    "GuardError",
    "KeyDerivationError",
    "OverlapError",
    "StoreUnavailableError",
    "as_end",
    "translated",
]

E = TypeVar("E", bound=errors.OnceError)


class StoreUnavailableError(errors.StoreUnavailableError, BrokerConnectionError):
    """The lock store did not answer in time, or refused; nothing was sent.

    Both a `once_core.errors.StoreUnavailableError` and what ``send()`` raises when the broker is
    away: `dramatiq.errors.BrokerConnectionError`, which is ``ConnectionError`` before Dramatiq 2.1.
    """

    @property
    def message(self) -> str:
        """The text, as Dramatiq's errors have it."""
        return str(self)


class ConfigurationError(errors.ConfigurationError, MiddlewareError):
    """Options that cannot be; Dramatiq lets it through only because it is a `MiddlewareError`."""


class KeyDerivationError(errors.KeyDerivationError, MiddlewareError):
    """Arguments that give no key."""


class OverlapError(errors.OverlapError, SkipMessage):
    """Another attempt runs, and ``on_overlap="raise"``: the message fails, without retries."""


class DuplicateTaskError(errors.DuplicateTaskError, SkipMessage):
    """Raised inside a worker: a duplicate that was to end as its holder did fails instead."""


class GuardError(errors.OnceError, MiddlewareError):
    """Something unforeseen went wrong before the body; without this error it would run unguarded.

    Dramatiq goes on after any other error of a middleware.
    """


def translated(error: errors.OnceError) -> errors.OnceError:
    """The same error, as Dramatiq knows it."""
    for ours in (StoreUnavailableError, ConfigurationError, KeyDerivationError):
        if type(error) is ours.__bases__[0]:
            return ours(*error.args)
    return error


def as_end(error: errors.OverlapError | errors.DuplicateTaskError) -> SkipMessage:
    """The same error, as one that ends a message without its body and without retries."""
    if isinstance(error, errors.OverlapError):
        return OverlapError(*error.args)
    return DuplicateTaskError(*error.args)
