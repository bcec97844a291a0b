"""Many calls at once: their claims in one round trip, their messages one by one, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import redis

from once_core.errors import BulkPublishError, ConfigurationError, StoreUnavailableError
from once_core.protocol import Claim
from once_core.publish import Claiming, Publication
from once_core.store import Store

__all__ = ["AWAY", "BATCH", "Bulk", "Call", "arguments", "claim_all", "withdraw_all"]

BATCH = 500
"""Calls claimed in one round trip; the last of them is sent long before its claim would heal."""

AWAY: tuple[type[Exception], ...] = (OSError, redis.ConnectionError, redis.TimeoutError)
"""What brokers and result backends raise that nobody has translated."""

Call = tuple[Sequence[object], Mapping[str, object] | None]
"""Arguments of one of many calls: positional ones, and those by name."""

C = TypeVar("C")
H = TypeVar("H")

Asked = Claiming | Publication | Exception | None


class Bulk(Generic[C, H]):
    """Publishes many calls of one task.

    Args:
        task: Name of the task.
        ask: What the record has to be asked for a call, given the marks of those that are claimed
            together; None for one that is under no guard.
        deliver: Sends a call, or answers with the holder's handle, as for a single call; takes its
            claim back if it raises.
        is_away: Whether an error says that the broker is away: then no further call is tried.
        known_as: An error as the framework's callers know it.
        interrupts: Errors that are no call's own, such as a soft time limit: they end all of it.
    """

    def __init__(
        self,
        task: str,
        ask: Callable[[C, dict[str, str]], Claiming | Publication | None],
        deliver: Callable[[C, Publication | None], H],
        is_away: Callable[[Exception], bool],
        known_as: Callable[[Exception], Exception] = lambda error: error,
        interrupts: tuple[type[Exception], ...] = (),
    ) -> None:
        self._task = task
        self._ask = ask
        self._deliver = deliver
        self._is_away = is_away
        self._known_as = known_as
        self._interrupts = interrupts
        self._failed: set[str] = set()
        self._away: Exception | None = None

    def publish(self, calls: Iterable[C]) -> list[H]:
        """Handles of all calls, in their order; the calls are read to their end first.

        Raises:
            BulkPublishError: Some were not sent; it has the handles of the others.
            Exception: Nothing was sent, and for one reason: what a single call would raise.
        """
        results: list[H | Exception] = []
        given = list(calls)  # whoever makes them may fail, and then nothing is sent
        for start in range(0, len(given), BATCH):
            results.extend(self._batch(given[start : start + BATCH]))
        errors = {at: each for at, each in enumerate(results) if isinstance(each, Exception)}
        if errors:
            raise self._error(results, errors)
        return [each for each in results if not isinstance(each, Exception)]

    def _error(self, results: list[H | Exception], errors: dict[int, Exception]) -> Exception:
        first = next(iter(errors.values()))
        if len(errors) == len(results) and len({(type(e), str(e)) for e in errors.values()}) == 1:
            return first
        error = BulkPublishError(
            f"{len(errors)} of {len(results)} calls of {self._task} were not sent, the first of "
            f"them at index {next(iter(errors))}: {_reason(first)}; `results` has the handle or "
            "the error of each, in order, and those with an error can be called again",
            task=self._task,
            reasons=[_reason(errors.get(at)) for at in range(len(results))],
        )
        error.results = list(results)
        error.__cause__ = first
        return error

    def _batch(self, calls: list[C]) -> Iterator[H | Exception]:
        if self._away is not None:
            yield from (self._away for _ in calls)
            return
        claimed = self._claimed(calls)
        done = 0
        try:
            for at, (call, publication) in enumerate(zip(calls, claimed, strict=True)):
                if self._away is None:
                    done = at + 1
                yield self._one(call, publication)
        finally:
            # the broker is away, or somebody interrupted: nothing of the rest is left claimed
            withdraw_all([each for each in claimed[done:] if isinstance(each, Publication)])

    def _claimed(self, calls: Sequence[C]) -> list[Publication | Exception | None]:
        marks: dict[str, str] = {}
        claimed = claim_all([self._asked(call, marks) for call in calls])
        away = [each for each in claimed if isinstance(each, StoreUnavailableError)]
        if away and not any(isinstance(each, Publication) for each in claimed):
            self._away = self._known_as(away[0])  # each further batch would wait for it as long
        return claimed

    def _asked(self, call: C, marks: dict[str, str]) -> Asked:
        try:
            return self._ask(call, marks)
        except self._interrupts:
            raise
        except Exception as error:  # noqa: BLE001  # told for this call alone
            return error

    def _one(self, call: C, publication: Publication | Exception | None) -> H | Exception:
        told = publication.publish if isinstance(publication, Publication) else None
        if told is not None and told.is_duplicate and told.holder_id in self._failed:
            # what it would wait for was not sent
            publication = self._away or self._claimed([call])[0]
        if isinstance(publication, Exception):
            return self._known_as(publication)
        if self._away is not None:
            return self._away
        try:
            return self._deliver(call, publication)
        except self._interrupts:
            raise
        except Exception as raised:  # noqa: BLE001  # told for this call alone
            error = self._known_as(raised)
            if publication is not None:
                self._failed.add(publication.message_id)
            if self._is_away(error):
                self._away = error
            return error


def arguments(task: str, call: Call) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments of one of many calls.

    Raises:
        ConfigurationError: It is no pair of arguments.

    Example:
        >>> arguments("shop.sync", ([42], None))
        ((42,), {})
    """
    given: object = call  # whatever a caller gives
    if not isinstance(given, (tuple, list)) or len(given) != 2:  # noqa: PLR2004  # a pair
        raise _no_call(task, _kind(given))
    args, kwargs = given
    is_right = args is None or isinstance(args, (tuple, list))
    if not (is_right and (kwargs is None or isinstance(kwargs, Mapping))):
        raise _no_call(task, f"a pair of {type(args).__name__} and {type(kwargs).__name__}")
    return tuple(args or ()), dict(kwargs or {})


def _no_call(task: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is no call of {task}: give (args, kwargs) for each, such as ((42,), {{}}) "
        "or ((), {'order_id': 42})"
    )


def _kind(given: object) -> str:
    """What it is, without its values, which may be secret."""
    length = f" of {len(given)}" if isinstance(given, (tuple, list)) else ""
    return f"{type(given).__name__}{length}"


def _reason(error: Exception | None) -> str:
    return (str(error) or repr(error)) if error is not None else ""


def claim_all(
    asked: Iterable[Asked],
    failed: Callable[[Claiming, StoreUnavailableError], Publication] = Claiming.failed,
) -> list[Publication | Exception | None]:
    """The answers, in order; one round trip for each store.

    Args:
        asked: What the record is asked, or what is known already.
        failed: What becomes of a claim that nobody answered.
    """
    found = list(asked)
    answers: dict[int, Publication | Exception] = {}
    by_store: dict[Store, list[tuple[int, Claiming]]] = {}
    for at, each in enumerate(found):
        if isinstance(each, Claiming):
            by_store.setdefault(each.guard.store, []).append((at, each))
    try:
        for store, some in by_store.items():
            heard = store.run_many([each.step for _, each in some])
            for (at, each), answer in zip(some, heard, strict=True):
                answers[at] = _answered(each, answer, failed)
    except BaseException:
        for store, some in by_store.items():
            for _, each in some:  # it may have been heard, and nobody sends it
                store.ghosts.add(each.step.key, each.mark)
        raise
    return [answers[at] if isinstance(e, Claiming) else e for at, e in enumerate(found)]


def _answered(
    asked: Claiming,
    answer: Claim | StoreUnavailableError,
    failed: Callable[[Claiming, StoreUnavailableError], Publication],
) -> Publication | Exception:
    try:
        if isinstance(answer, StoreUnavailableError):
            return failed(asked, answer)
        return asked.answered(answer)
    except StoreUnavailableError as error:
        return error


def withdraw_all(publications: Sequence[Publication]) -> None:
    """Say of messages that the broker has them not, in one round trip for each store."""
    by_store: dict[Store, list[Publication]] = {}
    for each in publications:
        if each.withdrawal is not None:
            by_store.setdefault(each.guard.store, []).append(each)
    for store, some in by_store.items():
        try:
            answers = store.run_many([s for each in some if (s := each.withdrawal) is not None])
        except BaseException:
            for each in some:
                each.not_withdrawn()
            raise
        for each, answer in zip(some, answers, strict=True):
            if isinstance(answer, StoreUnavailableError):
                each.not_withdrawn()
            else:
                each.withdrawn()
