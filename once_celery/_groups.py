"""Members of a group claim together. Celery has no hook for it: one method of `group` is wrapped.

`tests/unit/test_group_seam.py` fails when that method changes. Without the wrapper each member
claims for itself, as it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery.canvas import Signature, group

from once_celery import _publish
from once_core.attempt import current_attempt
from once_core.bulk import BATCH, claim_all, withdraw_all
from once_core.errors import OnceError, StoreUnavailableError
from once_core.publish import Claiming, Publication, claiming

if TYPE_CHECKING:
    from once_celery.task import OnceTask

__all__ = ["connect"]

Member = tuple[Any, Any, Any]
"""Signature, result and group id."""


def connect() -> None:
    """Wrap it, once a process."""
    original: Any = group._apply_tasks  # noqa: SLF001  # there is no other place
    if hasattr(original, "once_original"):
        return

    @wraps(original)
    def apply_tasks(self: Any, tasks: Iterable[Member], *rest: Any, **options: Any) -> Any:
        claims = _Claims(options)
        try:
            yield from original(self, claims.ahead_of(tasks), *rest, **options)
        finally:
            claims.give_up()

    apply_tasks.once_original = original  # type: ignore[attr-defined]  # says that it is wrapped
    group._apply_tasks = apply_tasks  # noqa: SLF001  # see above


class _Claims:
    """Claims of members that are about to be sent.

    Args:
        options: What all members are sent with.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._made: list[str] = []

    def ahead_of(self, members: Iterable[Member]) -> Iterator[Member]:
        """The members, each after its claim was made."""
        rest = iter(members)
        while batch := list(islice(rest, BATCH)):
            if len(batch) > 1:
                self._claim(batch)
            yield from batch

    def _claim(self, batch: list[Member]) -> None:
        marks: dict[str, str] = {}
        asked = [found for sig, _, _ in batch if (found := self._asked(sig, marks)) is not None]
        for each in claim_all(asked, _left):
            if isinstance(each, Publication):
                _publish.claimed_ahead[each.message_id] = each
                self._made.append(each.message_id)

    def _asked(self, signature: Any, marks: dict[str, str]) -> Claiming | None:
        task = _task(signature)
        if task is None or self._options.get("args") or self._options.get("kwargs"):
            return None
        options = {**signature.options, **self._options}
        call, task_id = options.get("once"), options.get("task_id")
        if call is not None or not task_id or options.get("retries"):
            return None
        try:
            guard = task.once_guard()
            terms = _publish.terms(task, task_id, {}, options)
            asked = claiming(guard, signature.args, signature.kwargs, task_id, marks=marks, **terms)
        except (OnceError, TypeError, ValueError):
            return None  # it is told where it is sent
        return asked if isinstance(asked, Claiming) else None

    def give_up(self) -> None:
        """The group was cut short: what was not sent waits for nothing."""
        left = [_publish.claimed_ahead.pop(each, None) for each in self._made]
        withdraw_all([each for each in left if each is not None])


def _left(asked: Claiming, error: StoreUnavailableError) -> Publication:
    """It asks for itself when it is sent, and is told then."""
    asked.guard.store.ghosts.add(asked.step.key, asked.mark)
    raise error


def _task(signature: Any) -> OnceTask | None:
    """The task of a member whose sending asks for a claim, here and by nobody else's code."""
    if type(signature) is not Signature:
        return None  # a chain, a chord, another group
    try:
        task = signature.type
    except KeyError:
        return None  # of a program that does not know it
    if not hasattr(task, "queue_lock") or not task._is_claimed_here(None):  # noqa: SLF001  # of ours
        return None
    if task.app.current_worker_task is not None and current_attempt() is None:
        return None  # a worker dispatches it: its errors are others
    found: OnceTask = task
    return found
