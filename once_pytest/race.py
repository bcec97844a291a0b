"""Contention that a test decides: several calls at once, in any order of their steps.

A step of a lock (claim, start, finish …) is one round trip, and nothing else of it can be seen by
others. So every order of what several threads do to a lock is an order of their steps, and a gate
before each step is enough to choose it: no sleeping, no hooks in the code under test.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from once_pytest._bodies import sender_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from once_pytest.harness import OnceHarness

__all__ = ["Contender", "OnceRace"]

__unittest = True  # unittest shows no frames of ours

PATIENCE = 10.0
"""Seconds after which a thread that neither asks for a step nor ends counts as stuck."""


@dataclass
class Contender:
    """What became of one of the calls.

    Attributes:
        name: Its letter in schedules.
        result: What it returned.
        error: What it raised, or None.
        steps: Names of the steps that it made, in order.
    """

    name: str
    result: object = None
    error: BaseException | None = None
    steps: list[str] = field(default_factory=list)


class OnceRace:
    """Has several calls contend for locks, in threads of their own.

    Args:
        harness: Whose store they meet at.
    """

    def __init__(self, harness: OnceHarness) -> None:
        self._harness = harness
        self._schedule = ""
        """From ``--once-schedule``: the one to try in place of all."""

    def __repr__(self) -> str:
        return "<OnceRace>"

    def replay(self, schedule: str) -> None:
        """Have `explore` try one schedule only.

        Args:
            schedule: As a failure prints it.
        """
        self._schedule = schedule

    def run(self, task: object, /, *args: object, n: int = 2, **kwargs: object) -> list[Contender]:
        """Have the same call made n times at once.

        All meet before their first step, and nobody makes a second one (ends a body, frees a
        lock) before everybody has had an answer to the first: who is refused is certain.

        Args:
            task: A Celery task (its ``delay`` is called), a Dramatiq actor (``send``), or any
                function.
            args: Its arguments.
            n: How many.
            kwargs: Its arguments by name.

        Returns:
            What became of each.

        Raises:
            AssertionError: One is stuck.

        Example:
            >>> from celery import Celery
            >>> from once_celery import OnceTask
            >>> from once_pytest import OnceHarness
            >>> app = Celery("race", broker="memory://", set_as_current=False)
            >>> @app.task(base=OnceTask, name="race.sync")
            ... def sync(order): ...
            >>> with OnceHarness() as once_locks:
            ...     told = once_locks.race.run(sync, 1, n=4)
            ...     sorted(each.result.once.is_duplicate for each in told)
            [False, True, True, True]
        """
        __tracebackhide__ = True
        send = sender_of(task)
        names = [_name(index) for index in range(n)]
        stage = _Stage(self._harness, dict.fromkeys(names, lambda: send(*args, **kwargs)))
        with stage:
            for name in stage.ready():
                stage.pass_one(name)
            stage.ready()
        return stage.contenders

    def steps(
        self, schedule: str, calls: Mapping[str, Callable[[], object]]
    ) -> dict[str, Contender]:
        """Make the steps of several calls in one order.

        Args:
            schedule: Names in the order of their steps, such as ``"A B B A"``; what is left
                when it is over goes on in the order of the names.
            calls: Name and call, such as ``{"A": lambda: sync_order.delay(42), "B": …}``.

        Returns:
            What became of each, by name.

        Raises:
            AssertionError: One is stuck.
            ValueError: The schedule names somebody who does not take part.
        """
        __tracebackhide__ = True
        wanted = schedule.split()
        if unknown := set(wanted) - set(calls):
            raise ValueError(f"the schedule names {sorted(unknown)}, the calls are {list(calls)}")
        stage = _Stage(self._harness, calls)
        _play(stage, wanted)
        return {each.name: each for each in stage.contenders}

    def explore(
        self,
        calls: Mapping[str, Callable[[], object]],
        check: Callable[[Mapping[str, Contender]], object],
        *,
        setup: Callable[[], object] | None = None,
        most: int = 500,
    ) -> int:
        """Try every order in which the steps of several calls can happen.

        Before each, the records of the test are deleted. With more orders than `most` it stops
        there with an error, for what was tried shows little.

        Args:
            calls: Name and call.
            check: Gets what became of each, and raises if that must not be.
            setup: Called before each order, for what else has to be as it was.
            most: Orders to try.

        Returns:
            How many there were.

        Raises:
            AssertionError: A check failed; names the schedule, for ``--once-schedule`` or `steps`.
        """
        __tracebackhide__ = True
        if self._schedule:
            self._try(calls, check, setup, self._schedule.split())
            return 1
        count, prefix = 0, []  # type: tuple[int, list[str]]
        while True:
            if count == most:
                raise AssertionError(
                    f"there are more than {most} orders, and not all were tried; let fewer calls "
                    "contend, or give explore() a greater most="
                )
            count += 1
            choices = self._try(calls, check, setup, prefix)
            following = _next(choices)
            if following is None:
                self._harness.forget()
                return count
            prefix = following

    def _try(
        self,
        calls: Mapping[str, Callable[[], object]],
        check: Callable[[Mapping[str, Contender]], object],
        setup: Callable[[], object] | None,
        schedule: Sequence[str],
    ) -> list[tuple[str, list[str]]]:
        """One order; returns each choice with what could have been chosen."""
        __tracebackhide__ = True
        self._harness.forget()
        if setup is not None:
            setup()
        stage = _Stage(self._harness, calls)
        choices = _play(stage, schedule)
        order = " ".join(name for name, _ in choices)
        steps = "\n".join(f"  {each.name}: {' '.join(each.steps)}" for each in stage.contenders)
        try:
            check({each.name: each for each in stage.contenders})
        except AssertionError as error:
            raise AssertionError(
                f'{error}\nin the schedule "{order}" of the steps\n{steps}\n'
                f'Try it alone: pytest --once-schedule="{order}", or once_race.steps("{order}", …)'
            ) from error
        return choices


def _play(stage: _Stage, schedule: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Let the steps pass one by one: those of the schedule first, then the first that can."""
    __tracebackhide__ = True
    choices = []
    wanted = list(schedule)
    with stage:
        while ready := stage.ready():
            name = wanted.pop(0) if wanted else ready[0]
            if name not in ready:
                continue  # it has ended: an order of an earlier version of the code
            choices.append((name, ready))
            stage.pass_one(name)
    return choices


def _next(choices: Sequence[tuple[str, list[str]]]) -> list[str] | None:
    """The start of the next order, depth first; None after the last."""
    for index in range(len(choices) - 1, -1, -1):
        name, ready = choices[index]
        later = ready[ready.index(name) + 1 :]
        if later:
            return [*(each for each, _ in choices[:index]), later[0]]
    return None


class _Stage:
    """The threads of one order, each stopped before each of its steps."""

    def __init__(self, harness: OnceHarness, calls: Mapping[str, Callable[[], object]]) -> None:
        self.contenders = [Contender(name) for name in calls]
        self._store = harness.store
        self._calls = calls
        self._by_thread: dict[int, Contender] = {}
        self._changed = threading.Condition()
        self._waiting: dict[str, bool] = {}
        self._ended: set[str] = set()
        self._is_open = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._store.gates.append(self._gate)
        for each in self.contenders:
            thread = threading.Thread(target=self._run, args=(each,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.let_go()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._store.gates.remove(self._gate)

    def ready(self) -> list[str]:
        """Who waits before a step, once nobody is on the way to one; empty when all have ended."""
        __tracebackhide__ = True
        with self._changed:
            if not self._changed.wait_for(self._is_settled, PATIENCE):
                raise AssertionError(self._stuck())
            return [each.name for each in self.contenders if each.name in self._waiting]

    def pass_one(self, name: str) -> None:
        """Let one make its step."""
        __tracebackhide__ = True
        with self._changed:
            del self._waiting[name]
            self._changed.notify_all()

    def let_go(self) -> None:
        """Stop nobody any more."""
        with self._changed:
            self._is_open = True
            self._waiting.clear()
            self._changed.notify_all()

    def _is_settled(self) -> bool:
        return len(self._waiting) + len(self._ended) == len(self.contenders)

    def _stuck(self) -> str:
        still = [
            each.name
            for each in self.contenders
            if each.name not in self._waiting and each.name not in self._ended
        ]
        return (
            f"{', '.join(still)} neither made a step nor ended in {PATIENCE:g} s: its body waits "
            "for something that another contender would have to do first"
        )

    def _run(self, contender: Contender) -> None:
        self._by_thread[threading.get_ident()] = contender
        try:
            contender.result = self._calls[contender.name]()
        except BaseException as error:  # noqa: BLE001  # for the test to see, whatever it is
            contender.error = error
        finally:
            with self._changed:
                self._ended.add(contender.name)
                self._changed.notify_all()

    def _gate(self, step: str, carry: Callable[[], object]) -> object:
        __tracebackhide__ = True
        contender = self._by_thread.get(threading.get_ident())
        if contender is None:
            return carry()  # another thread's, such as a renewal
        with self._changed:
            if not self._is_open:
                self._waiting[contender.name] = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: contender.name not in self._waiting or self._is_open)
        contender.steps.append(step)
        return carry()


def _name(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"C{index}"  # noqa: PLR2004  # letters
