"""Pipelines and groups with one message under test in every position, on workers of this process.

The bodies and their notes are here, and not on disk: a `StubBroker` and its workers are threads.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import dramatiq
from dramatiq import Message, Worker, group, pipeline
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage, GroupCallbacks, Middleware, default_middleware
from dramatiq.rate_limits.backends import StubBackend as RateLimiterBackend
from dramatiq.results import ResultMissing, Results
from dramatiq.results.backends import StubBackend

import once_dramatiq
from _support.waiting import wait_until
from once_core.events import Event, subscribe
from once_dramatiq import OnceMiddleware

INSTEAD = "another did it"
"""What a message ends with that is not to run."""

TESTED, PARTS, NOBODYS = "tested", "parts", "nobodys"
"""Queues: of the messages under test, of all others, and of messages that only hold a unit."""


class Sent(Middleware):
    """Remembers the messages under test as they went to the queue, to give them out again."""

    def __init__(self) -> None:
        self.encoded: dict[str, bytes] = {}

    def after_enqueue(self, broker, message, delay):
        if message.queue_name == TESTED and delay is None:
            self.encoded[message.message_id] = message.encode()


class Stage:
    """A broker, its actors, and workers that tests start queue by queue.

    Args:
        order: Of the middleware: ``"Results, once"``, ``"once, Results"``, ``"no Results"``.
        store_results: Of the actors.
        url: Of the lock store; in memory if there is none.
        once: Options of the actor under test.
    """

    def __init__(
        self,
        order: str = "Results, once",
        *,
        store_results: bool = True,
        url: str | None = None,
        **once: Any,
    ) -> None:
        self.has_results = store_results and order != "no Results"
        self.sent = Sent()
        self.events: list[Event] = []
        self.notes: dict[str, list[object]] = defaultdict(list)
        self.bodies: dict[str, list[object]] = defaultdict(list)
        self.started: set[str] = set()
        self.gates: dict[str, threading.Event] = {}
        self._workers: list[Worker] = []
        # before 2.0 Prometheus is among them, and fails where no process was booted
        default = [each() for each in default_middleware if each.__name__ != "Prometheus"]
        self.broker = StubBroker(middleware=default)
        results = Results(backend=StubBackend())
        ours = OnceMiddleware(**({"url": url} if url else {}))
        around = {
            "Results, once": [results, ours],
            "once, Results": [ours, results],
            "no Results": [ours],
        }[order]
        backend = GroupCallbacks(RateLimiterBackend())
        for each in (CurrentMessage(), *around, backend, self.sent):
            self.broker.add_middleware(each)
        for queue in (TESTED, PARTS, NOBODYS):
            self.broker.declare_queue(queue)
        self._add_actors({"store_results": store_results} if order != "no Results" else {}, once)
        self._unsubscribe = subscribe(self.events.append)

    def _add_actors(self, common: dict[str, Any], once: dict[str, Any]) -> None:
        options = {"broker": self.broker, "max_retries": 0, **common}

        @dramatiq.actor(
            queue_name=TESTED,
            once={"key": "{unit}", "return_on_duplicate": INSTEAD, **once},
            **options,
        )
        def tested(unit, payload=None, fails=False):
            self.bodies[unit].append(payload)
            self.gates.get(unit, _OPEN).wait(30)
            if fails:
                raise RuntimeError(f"on purpose: {unit}")
            return f"done {unit}"

        @dramatiq.actor(queue_name=PARTS, **options)
        def part(label):
            self.started.add(label)
            self.gates.get(label, _OPEN).wait(30)
            self.notes[label].append(None)
            return label

        @dramatiq.actor(queue_name=PARTS, **options)
        def then(before, label):
            self.notes[label].append(before)
            return [label, before]

        @dramatiq.actor(queue_name=PARTS, **options)
        def succeeded(message, result):
            self.notes[f"success of {message['args'][0]}"].append(result)

        @dramatiq.actor(queue_name=PARTS, **options)
        def failed(message, error):
            self.notes[f"failure of {message['args'][0]}"].append(error["type"])

        @dramatiq.actor(queue_name=PARTS, once={"key": [], "on_duplicate": "raise"}, **options)
        def guarded_callback(message, result):
            self.notes["guarded callback"].append(result)

        self.tested, self.part, self.then = tested, part, then
        self.guarded_callback = guarded_callback

    def work(self, *queues: str, threads: int = 4) -> None:
        """Start a worker of these queues."""
        worker = Worker(self.broker, queues=set(queues), worker_timeout=20, worker_threads=threads)
        worker.start()
        self._workers.append(worker)

    def close(self) -> None:
        self._unsubscribe()
        for gate in self.gates.values():
            gate.set()
        for worker in self._workers:
            worker.stop()
        self.broker.close()

    def result(self, message: Any) -> Any:
        """Of a message, a pipeline or a group, once it is there."""
        if isinstance(message, group):
            return list(message.get_results(block=True, timeout=20_000))
        if isinstance(message, pipeline):
            return message.get_result(block=True, timeout=20_000)
        backend = self.broker.get_results_backend()
        return message.get_result(backend=backend, block=True, timeout=20_000)

    def has_result(self, message: Message[Any]) -> bool:
        try:
            message.get_result(backend=self.broker.get_results_backend())
        except ResultMissing:
            return False
        return True

    def told(self, kind: str, message_id: str) -> list[Event]:
        """Events of one message."""
        return [each for each in self.events if (each.kind, each.message_id) == (kind, message_id)]

    def has_told(self, kind: str, message_ids: Iterable[str]) -> None:
        """Wait until there was such an event of each message."""
        wait_until(lambda: all(self.told(kind, each) for each in message_ids), f"all are {kind}")


_OPEN = threading.Event()
_OPEN.set()


@dataclass
class Kit:
    """What one composition is made of.

    Attributes:
        value: What the message under test is to end with.
        options: Of the message under test.
        notes: What is to be noted, each once.
    """

    stage: Stage
    unit: str
    value: object
    payload: object = None
    notes: dict[str, object] = field(default_factory=dict)
    message_id: str = ""

    def tested(self, **options: Any) -> Message[Any]:
        """The message under test, which is given nothing by what comes before it."""
        message = self.stage.tested.message_with_options(
            args=(self.unit, self.payload), pipe_ignore=True, **options
        )
        self.message_id = message.message_id
        return message

    def part(self, label: str) -> Message[Any]:
        """Some other message that gives its label."""
        self.notes[f"{self.unit} {label}"] = None
        return self.stage.part.message(f"{self.unit} {label}")

    def then(self, before: object) -> Message[Any]:
        """A step that notes what it was given, which should be this."""
        label = f"{self.unit} then"
        self.notes[label] = before
        return self.stage.then.message(label=label)

    def pipe(self, *messages: Message[Any]) -> pipeline:
        return pipeline(messages, broker=self.stage.broker)

    def group(self, *members: Any, callback: Message[Any] | None = None) -> group:
        made = group(members, broker=self.stage.broker)
        if callback is not None:
            made.add_completion_callback(callback)
        return made


Composition = tuple[Any, Any]
"""What is run, and its result."""


def _completing(kit: Kit) -> Composition:
    """The message under test as the callback, with a callback of its own to see it by."""
    kit.notes[f"success of {kit.unit}"] = kit.value
    callback = kit.tested(on_success="succeeded")
    members = kit.part("a"), kit.part("b")
    return kit.group(*members, callback=callback), [f"{kit.unit} a", f"{kit.unit} b"]


def _with_on_success(kit: Kit) -> Composition:
    kit.notes[f"success of {kit.unit}"] = kit.value
    return kit.tested(on_success="succeeded"), kit.value


POSITIONS: dict[str, Callable[[Kit], Composition]] = {
    "message with on_success": _with_on_success,
    "pipeline of one": lambda kit: (kit.pipe(kit.tested()), kit.value),
    "pipeline, first": lambda kit: (
        kit.pipe(kit.tested(), kit.then(kit.value)),
        [f"{kit.unit} then", kit.value],
    ),
    "pipeline, middle": lambda kit: (
        kit.pipe(kit.part("a"), kit.tested(), kit.then(kit.value)),
        [f"{kit.unit} then", kit.value],
    ),
    "pipeline, last": lambda kit: (kit.pipe(kit.part("a"), kit.tested()), kit.value),
    "pipeline, last, with on_success": lambda kit: (
        kit.pipe(kit.part("a"), _with_on_success(kit)[0]),
        kit.value,
    ),
    "group": lambda kit: (
        kit.group(kit.part("a"), kit.tested(), kit.part("b")),
        [f"{kit.unit} a", kit.value, f"{kit.unit} b"],
    ),
    "group of one, with callback": lambda kit: (
        kit.group(kit.tested(), callback=kit.part("z")),
        [kit.value],
    ),
    "group, with callback": lambda kit: (
        kit.group(kit.part("a"), kit.tested(), callback=kit.part("z")),
        [f"{kit.unit} a", kit.value],
    ),
    "first of a pipeline in a group": lambda kit: (
        kit.group(
            kit.pipe(kit.tested(), kit.then(kit.value)), kit.part("a"), callback=kit.part("z")
        ),
        [[f"{kit.unit} then", kit.value], f"{kit.unit} a"],
    ),
    "last of a pipeline in a group": lambda kit: (
        kit.group(kit.pipe(kit.part("a"), kit.tested()), kit.part("b"), callback=kit.part("z")),
        [kit.value, f"{kit.unit} b"],
    ),
    "pipeline in a group without callback": lambda kit: (
        kit.group(kit.pipe(kit.part("a"), kit.tested()), kit.part("b")),
        [kit.value, f"{kit.unit} b"],
    ),
    "completion callback": _completing,
}
"""Where a message can be, each with what the whole gives."""


class Compositions:
    """One of each, all at once.

    Args:
        stage: With the workers.
        value: What the message under test is to end with; None stands for its real value.
        payload: It is called with.
        only: Names of positions; all if empty.
    """

    def __init__(
        self, stage: Stage, value: object = None, payload: object = None, only: Iterable[str] = ()
    ) -> None:
        self.stage = stage
        self.kits: dict[str, Kit] = {}
        self.made: dict[str, Any] = {}
        self._expected: dict[str, Any] = {}
        for number, name in enumerate(only or POSITIONS):
            unit = f"u{number:02}"
            kit = Kit(stage, unit, f"done {unit}" if value is None else value, payload)
            self.kits[name] = kit
            self.made[name], self._expected[name] = POSITIONS[name](kit)

    @property
    def units(self) -> list[str]:
        return [kit.unit for kit in self.kits.values()]

    @property
    def message_ids(self) -> list[str]:
        """Of the messages under test."""
        return [kit.message_id for kit in self.kits.values()]

    def run(self) -> None:
        """Send all."""
        for each in self.made.values():
            if isinstance(each, Message):
                self.stage.broker.enqueue(each)
            else:
                each.run()

    def take(self, queue: str = TESTED, payload: object = None) -> None:
        """Have a message of each unit wait, in a queue that nobody reads (yet)."""
        for unit in self.units:
            message = self.stage.tested.message(unit, payload)
            self.stage.broker.enqueue(message.copy(queue_name=queue))

    def hold(self) -> None:
        """Have a body of each unit run until `let_go`."""
        self.close_gates()
        for unit in self.units:
            self.stage.tested.send(unit)
        wait_until(lambda: self.ran(1), "all bodies run")

    def close_gates(self) -> None:
        """Bodies that start from now on run until `let_go`."""
        self.stage.gates.update((unit, threading.Event()) for unit in self.units)

    def run_and_hold_what_comes_before(self) -> None:
        """Send all; what comes before the messages under test runs until `let_go`."""
        labels = [f"{unit} a" for unit in self.units]
        self.stage.gates.update((label, threading.Event()) for label in labels)
        self.run()
        wait_until(lambda: self.stage.started >= {*labels}, "all that comes before runs")

    def let_go(self) -> None:
        for gate in self.stage.gates.values():
            gate.set()

    def ran(self, count: int) -> bool:
        """Whether so many bodies of each unit have started."""
        return all(len(self.stage.bodies[unit]) == count for unit in self.units)

    def until_refused(self) -> None:
        """Wait until each message under test was found to be a duplicate."""

        def suppressed(unit: str) -> int:
            holder = once_dramatiq.holder(self.stage.tested, unit)
            return holder.suppressed if holder else 0

        wait_until(lambda: all(map(suppressed, self.units)), "all are duplicates")

    def until_waiting(self) -> None:
        """Wait until each message under test is the one that waits."""

        def holder_id(unit: str) -> str:
            holder = once_dramatiq.holder(self.stage.tested, unit)
            return holder.message_id if holder else ""

        wait_until(lambda: [*map(holder_id, self.units)] == self.message_ids, "all wait")

    def complete(self, times: int = 1) -> None:
        """All go on to their ends, though held bodies are held until then.

        Each step and each callback runs once, or so often.
        """
        expected = {
            name: {label: [note] * times for label, note in kit.notes.items()}
            for name, kit in self.kits.items()
        }

        def noted() -> dict[str, dict[str, list[object]]]:
            return {
                name: {label: list(self.stage.notes[label]) for label in kit.notes}
                for name, kit in self.kits.items()
            }

        def are_there() -> bool:
            now = noted()
            return all(len(now[name][label]) >= times for name in now for label in now[name])

        with suppress(AssertionError):  # what is missing is shown by the next line
            wait_until(are_there, "all steps and callbacks ran")
        _equal(noted(), expected)
        if self.stage.has_results:
            values = {name: self.stage.result(made) for name, made in self.made.items()}
            _equal(values, self._expected)
            for kit in self.kits.values():
                message = self.stage.tested.message("").copy(message_id=kit.message_id)
                assert self.stage.result(message) == kit.value
        self.let_go()
        for queue in (PARTS, TESTED):
            self.stage.broker.join(queue, timeout=20_000)
        _equal(noted(), expected)


def _equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    different = {name: (found[name], expected[name]) for name in found}
    different = {name: pair for name, pair in different.items() if pair[0] != pair[1]}
    assert not different, f"found and expected: {different}"
