"""The assertions: each takes a task and its arguments, never a key."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NoReturn

from once_core._clock import wall
from once_core.errors import KeyDerivationError
from once_pytest import _render
from once_pytest._key_assertions import KeyAssertions
from once_pytest._patterns import is_pattern, likeness, matches, pattern
from once_pytest._subject import Calls, call_of, guard_of

if TYPE_CHECKING:
    from once_core.events import Event
    from once_core.guard import Guard
    from once_pytest._recorder import Recorder
    from once_pytest.harness import HeldLock

__all__ = ["Assertions"]

__unittest = True  # unittest shows no frames of ours

POLL = 0.01
"""Seconds between two looks with ``within=``."""

Bounds = tuple[float, float]


class Assertions(KeyAssertions, ABC):
    """Those that look at the locks and events of a test."""

    recorder: Recorder
    acknowledged: set[tuple[str, str]]

    @property
    @abstractmethod
    def locks(self) -> list[HeldLock]:
        """Everything that is held now."""

    @abstractmethod
    def key(self, guard: Guard, given: Calls) -> str:
        """The key of a call."""

    def assert_task_locked(
        self,
        task: object,
        /,
        *args: object,
        ttl: Bounds | None = None,
        within: float = 0.0,
        holder: object = None,
        state: str | None = None,
        **kwargs: object,
    ) -> None:
        """The unit of work of this call waits, runs, or is kept.

        A lock of which a test has said so is none that it leaks.

        Args:
            task: The task, actor or function.
            args: Its arguments, bound as Python binds them; ``...`` matches any one argument,
                a single ``...`` any call. Or one `call`.
            ttl: Least and greatest number of seconds that it may last from now.
            within: Seconds in which it has to come true; for what other threads and processes do.
            holder: Id of the message that has to hold it, or a handle with that id.
            state: ``"running"``, ``"waiting"`` or ``"kept"``.
            kwargs: Its arguments by name.

        Raises:
            AssertionError: It is not; shows the nearest locks, and which rule made keys differ.
        """
        __tracebackhide__ = True
        guard, given = guard_of(task), call_of(args, kwargs)
        holder_id = _id_of(holder)
        end = time.monotonic() + within
        while True:
            held = self._held_by(guard, given)
            fit = [each for each in held if _fits(each, ttl, holder_id, state)]
            if fit or time.monotonic() >= end:
                break
            time.sleep(POLL)
        self.acknowledged.update((each.key, each.state) for each in held)
        if fit:
            return
        about = f" within {within:g} s" if within else ""
        if not held:
            self.fail_for(f"{guard.task} is not locked{about} for", guard, given)
        if ttl and not all(each.has_end for each in held):
            self.fail_for(
                f"{guard.task} is locked, but its key has no TTL: it would stay for ever, for",
                guard,
                given,
            )
        wanted = [
            f"{name} {value}"
            for name, value in (
                ("state", state),
                ("holder", holder_id),
                ("seconds left between", f"{ttl[0]:g} and {ttl[1]:g}" if ttl else None),
            )
            if value is not None
        ]
        self.fail_for(
            f"{guard.task} is locked{about}, but not with {', '.join(wanted)}, for", guard, given
        )

    def assert_task_not_locked(
        self, task: object, /, *args: object, within: float = 0.0, **kwargs: object
    ) -> None:
        """The unit of work of this call is free.

        Args:
            task: The task, actor or function.
            args: Its arguments; ``...`` matches any one, a single ``...`` any call.
            within: Seconds in which it has to come true.
            kwargs: Its arguments by name.

        Raises:
            AssertionError: It is held; says by whom, since when, and what became of it.
        """
        __tracebackhide__ = True
        guard, given = guard_of(task), call_of(args, kwargs)
        end = time.monotonic() + within
        while (held := self._held_by(guard, given)) and time.monotonic() < end:
            time.sleep(POLL)
        if held:
            lock = held[0]
            where = f" at {lock.where}" if lock.where else ""
            raise AssertionError(
                f"{guard.task} is locked: {lock.state} since {lock.age:.1f} s by message "
                f"{lock.message_id}{where}, {lock.remaining:.1f} s left.\n"
                + self._report(held, [e for e in self.recorder.events if e.key == lock.key])
                + f"\n{_render.remedy(lock)}"
            )

    def assert_no_locks(self) -> None:
        """Nothing is held.

        Raises:
            AssertionError: With the table of what is.
        """
        __tracebackhide__ = True
        held = self.locks
        if held:
            self.acknowledged.update((each.key, each.state) for each in held)
            raise AssertionError(
                f"{_render.count(len(held), 'lock is', 'locks are')} held.\n"
                + self._report(held, self.recorder.events)
                + f"\n{_render.remedy(held[0])}"
            )

    def assert_ran(
        self, task: object, /, *args: object, times: int | Bounds = 1, **kwargs: object
    ) -> None:
        """A body ran this often under guard.

        Args:
            task: The task, actor or function.
            args: Its arguments; ``...`` matches any one, a single ``...`` any call.
            times: How often, or the least and the greatest number.
            kwargs: Its arguments by name.

        Raises:
            AssertionError: It ran more often, or less; shows what ran, and what else happened.
        """
        __tracebackhide__ = True
        self._count(task, call_of(args, kwargs), ("started",), times, "ran")

    def assert_duplicate(
        self, task: object, /, *args: object, times: int | Bounds | None = None, **kwargs: object
    ) -> None:
        """A publish of this call was refused, for one waits, runs or was done just now.

        Args:
            task: The task, actor or function.
            args: Its arguments; ``...`` matches any one, a single ``...`` any call.
            times: How often, or the least and the greatest number; at least once if not given.
            kwargs: Its arguments by name.

        Raises:
            AssertionError: It was not; shows what was sent and refused.
        """
        __tracebackhide__ = True
        bounds = (1, float("inf")) if times is None else times
        self._count(task, call_of(args, kwargs), ("duplicate", "moved"), bounds, "was refused")

    def assert_deferred(
        self, task: object, /, *args: object, times: int | Bounds | None = None, **kwargs: object
    ) -> None:
        """A message of this call was put back, for another attempt ran or the store was away.

        Args:
            task: The task, actor or function.
            args: Its arguments; ``...`` matches any one, a single ``...`` any call.
            times: How often, or the least and the greatest number; at least once if not given.
            kwargs: Its arguments by name.

        Raises:
            AssertionError: It was not; shows what happened instead.
        """
        __tracebackhide__ = True
        bounds = (1, float("inf")) if times is None else times
        self._count(task, call_of(args, kwargs), ("deferred",), bounds, "was deferred")

    def fail_for(self, what: str, guard: Guard, given: Calls) -> NoReturn:
        """Raise the error of an assertion about one call.

        Args:
            what: The first line, without the call.
            guard: Of the task.
            given: The call.

        Raises:
            AssertionError: Always.
        """
        __tracebackhide__ = True
        expected = pattern(guard, given)
        call = "any arguments" if expected is None else _render.arguments(expected, guard)
        lines = [f"{what} {call or 'no arguments'}."]
        held = self.locks
        near = [each for each in held if each.task == guard.task and each.arguments is not None]
        if near and expected is not None:
            best = max(near, key=lambda each: likeness(expected, each.arguments or {}))
            other = best.arguments or {}
            lines.append("Nearest lock of the same task:")
            lines += _render.differences(expected, other, guard)
            if not self._matches(guard, given, best.key):
                lines.append(f"Why the keys differ: {_render.rule(expected, other, guard)}.")
        past = self._past(guard, given)
        lines += past
        lines.append(self._report(held, self.recorder.events))
        if not (near or past):
            lines.append(
                "Nothing was sent under guard in this test. Send the task with delay(), "
                "apply_async() or send() first, not eagerly (task_always_eager) and not by "
                "calling it as a function."
                if not self.recorder.events
                else f"No {guard.task} is held; see the last events for what was sent and ended."
            )
        raise AssertionError("\n".join(lines))

    def _held_by(self, guard: Guard, given: Calls) -> list[HeldLock]:
        """The locks of a call, or of all calls that a pattern matches."""
        __tracebackhide__ = True
        if not is_pattern(given):
            key = self._key(guard, given)
            return [each for each in self.locks if each.key == key]
        return [
            each
            for each in self.locks
            if each.task == guard.task and self._matches(guard, given, each.key)
        ]

    def _key(self, guard: Guard, given: Calls) -> str:
        __tracebackhide__ = True
        try:
            return self.key(guard, given)
        except KeyDerivationError as error:
            raise AssertionError(
                f"{_render.call(given, None)} is no call of {guard.task}: {error}"
            ) from None

    def _matches(self, guard: Guard, given: Calls, key: str) -> bool:
        """Whether a key is that of a call, or of a call that the pattern matches."""
        __tracebackhide__ = True
        if not is_pattern(given):
            return self._key(guard, given) == key
        return matches(guard, given, self.recorder.calls(key))

    def _count(
        self, task: object, given: Calls, kinds: tuple[str, ...], times: int | Bounds, verb: str
    ) -> None:
        __tracebackhide__ = True
        guard = guard_of(task)
        least, most = times if isinstance(times, tuple) else (times, times)
        about = [each for each in self.recorder.events if each.task == guard.task]
        found = [each for each in about if each.kind in kinds]
        if not is_pattern(given):
            key = self._key(guard, given)
            mine = [each for each in found if each.key == key]
        else:
            mine = [each for each in found if self._matches(guard, given, each.key)]
        # a duplicate that is settled says so twice: where it was sent, and where it ends
        number = len({each.message_id for each in mine}) if "duplicate" in kinds else len(mine)
        if least <= number <= most:
            return
        expected = pattern(guard, given)
        call = "any arguments" if expected is None else _render.arguments(expected, guard)
        wanted = _render.times(least, most)
        lines = [f"{guard.task} {_render.said(verb, number)} for {call}, expected {wanted}."]
        others = sorted({each.key for each in found} - {each.key for each in mine})
        if others:
            lines.append(f"It {verb} for other arguments:")
            for each in others:
                calls = self.recorder.calls(each)
                lines.append(f"  {_render.arguments(calls[0].arguments, guard) if calls else each}")
        derived = self.recorder.of_task(guard.task)
        if expected is not None and derived and not mine:
            best = max(derived, key=lambda each: likeness(expected, each.arguments))
            if best.key not in {each.key for each in mine} and others:
                lines.append("Nearest:")
                lines += _render.differences(expected, best.arguments, guard, "it was")
                lines.append(f"Why: {_render.rule(expected, best.arguments, guard)}.")
        lines.append(self._report(self.locks, about or self.recorder.events))
        if "started" in kinds and number < least:
            lines.append(
                "A queued task runs when a worker takes it: call once_drain() before this, or "
                "start an once_worker. Bodies that are called as functions, or eagerly "
                "(task_always_eager), run under no guard and are not counted."
            )
        raise AssertionError("\n".join(lines))

    def _past(self, guard: Guard, given: Calls) -> list[str]:
        """What became of a lock that was there."""
        if is_pattern(given):
            return []
        key = self._key(guard, given)
        mine = [each for each in self.recorder.events if each.key == key]
        if not mine or any(each.key == key for each in self.locks):
            return []
        last = mine[-1]
        ago = wall() - last.at
        if last.kind in ("finished", "withdrawn", "released", "reaped"):
            why = f": {last.reason}" if last.reason else ""
            return [f"It was locked until {ago:.1f} s ago: {last.kind}{why}."]
        length = guard.options.lease if last.kind == "started" else guard.options.ttl
        name = "lease" if last.kind == "started" else "ttl"
        over = ago - length
        if over >= 0:
            return [f"It expired {over:.1f} s ago ({name} was {length:g} s)."]
        return []

    def _report(self, held: list[HeldLock], seen: list[Event]) -> str:
        return "\n".join(
            ["Locks held now:", *_render.locks(held), "Last events:", *_render.events(seen)]
        )


def _fits(lock: HeldLock, ttl: Bounds | None, holder: str | None, state: str | None) -> bool:
    return (
        (state is None or lock.state == state)
        and (holder is None or lock.message_id == holder)
        and (ttl is None or (lock.has_end and ttl[0] <= lock.remaining <= ttl[1]))
    )


def _id_of(holder: object) -> str | None:
    for attribute in ("message_id", "id"):
        found = getattr(holder, attribute, None)
        if isinstance(found, str):
            return found
    return None if holder is None else str(holder)
