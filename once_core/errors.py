"""Every error this library raises, in one tree.

```
OnceError
├── ConfigurationError      options that contradict each other, a URL nobody can use
├── KeyDerivationError      arguments that give no key
├── DuplicateTaskError      publish refused, only with ``on_duplicate="raise"``
├── OverlapError            start refused, only with ``on_overlap="raise"``
├── LeaseLostError          the running attempt no longer holds its unit
├── LeaseTimeoutError       waiting for a lease took too long
├── StoreUnavailableError   the lock store did not answer, or refused
└── BulkPublishError        some of many calls were not sent
```

All of them survive pickling, copying and Celery's JSON results with their attributes, for
exceptions are sent from process to process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = [
    "BulkPublishError",
    "ConfigurationError",
    "DuplicateTaskError",
    "KeyDerivationError",
    "LeaseLostError",
    "LeaseTimeoutError",
    "OnceError",
    "OverlapError",
    "StoreUnavailableError",
]


class OnceError(Exception):
    """Base of all errors of this library; catch it to catch any of them.

    Args:
        text: What happened, with values, and what to do.
        facts: Attributes of the error, for programs; also as keywords.

    Example:
        >>> try:
        ...     raise ConfigurationError("lease=0.2 is shorter than one second", option="lease")
        ... except OnceError as error:
        ...     print(error.option)
        lease
    """

    def __init__(
        self, text: str, facts: Mapping[str, object] | None = None, /, **more: object
    ) -> None:
        facts = {**(facts or {}), **more}
        # Celery's result backends rebuild an error from its args and nothing else
        # not `super()`: the bindings' errors have another base, which takes other arguments
        Exception.__init__(self, *((text, facts) if facts else (text,)))
        self.__dict__.update(facts)

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigurationError(OnceError, ValueError):
    """An option, a URL or a combination of them cannot work.

    Attributes:
        option: Name of the offending option, where there is one.
    """

    option: str | None = None


class KeyDerivationError(OnceError, TypeError):
    """The arguments of a call give no key.

    Attributes:
        task: Name of the task.
        parameter: Where in the arguments, such as ``"user.address[2]"``, or None.
    """

    task: str | None = None
    parameter: str | None = None


class DuplicateTaskError(OnceError):
    """Nothing was sent: the unit of work is waiting, running or was done just now.

    Also the failure of a duplicate that was to end with its holder's result
    (``on_duplicate="share"``) where that never came.

    Attributes:
        task: Name of the task.
        key: Key of the unit of work.
        state: ``"waiting"``, ``"running"``, ``"kept"``, or ``"gone"``: the holder left no result.
        holder_id: Message id of the holder, or None when it is not known.
        retry_after: Seconds after which a new call may be accepted.
    """

    task: str | None = None
    key: str | None = None
    state: str | None = None
    holder_id: str | None = None
    retry_after: float = 0.0


class OverlapError(OnceError):
    """The task did not start: another attempt of the same unit of work runs.

    Attributes:
        task: Name of the task.
        key: Key of the unit of work.
        holder_id: Message id of the running attempt.
    """

    task: str | None = None
    key: str | None = None
    holder_id: str | None = None


class LeaseLostError(OnceError):
    """The running attempt no longer holds its unit of work; another may run.

    Attributes:
        key: Key of the unit of work.
        fence: Number of the lost lease.
    """

    key: str | None = None
    fence: int | None = None


class LeaseTimeoutError(OnceError, TimeoutError):
    """A lease was not free within the time the caller was willing to wait.

    Attributes:
        key: Key of the unit of work.
        waited: Seconds waited.
    """

    key: str | None = None
    waited: float | None = None


class StoreUnavailableError(OnceError):
    """The lock store did not answer in time, or refused the command.

    Attributes:
        url: Where the store is, without its password.
        reason: The server's or the network's own words.
    """

    url: str | None = None
    reason: str | None = None


class BulkPublishError(OnceError):
    """Some of many calls were not sent, and nothing of those is left claimed; the others were sent.

    Attributes:
        task: Name of the task.
        reasons: Why, of each call in order; empty for those that were sent.
        results: The handle or the error of each call, in order; empty in a copy from another
            process, for handles stay where they are.
    """

    task: str | None = None
    reasons: Sequence[str] = ()
    results: Sequence[object] = ()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args
