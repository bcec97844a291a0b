"""Canvases with one message under test in every position."""

from __future__ import annotations

import gc
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import ResultSet
from kombu import Producer, Queue

from _support import ledger
from _support.ledger import gate
from _support.waiting import wait_until
from _support.workers import CeleryWorker

if TYPE_CHECKING:
    from _support.deployment import Deployment


TIMED_OUT = "never ended"
"""Stands for a `get()` that did not return."""


@dataclass
class Kit:
    """What one canvas is made of.

    Attributes:
        task: Name of the task under test.
        value: What its message is to end with.
        options: Of its signature.
        ran: Labels of all other tasks of the canvas, each of which is to run once.
        noted: What some of them are to be given, where no result shows that.
    """

    scene: Deployment
    unit: str
    task: str
    value: Any
    options: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    noted: dict[str, object] = field(default_factory=dict)

    def tested(self, *, mutable: bool = False) -> Any:
        """The signature under test."""
        task = self.scene.task(self.task)
        make = task.s if mutable else task.si
        return make(unit=self.unit, **self.kwargs).set(**self.options)

    def part(self, label: str) -> Any:
        """A task that gives its label."""
        self.ran.append(label)
        return self.scene.task("part").si(label, self.unit)

    def then(self, label: str, task: str = "then") -> Any:
        """A task that gives its label and what it was given."""
        self.ran.append(label)
        return self.scene.task(task).s(label=label, unit=self.unit)

    def mutable_value(self, before: Any) -> Any:
        """What the message ends with where it was handed something over."""
        real = f"done {self.unit}"
        return [real, before] if self.value == real else self.value


Canvas = tuple[Any, Any]
"""A handle, and what it is to give."""


def _linked(kit: Kit, host: Any, link: str) -> Canvas:
    """The message under test as a callback, with a callback of its own to see it by."""
    tested = kit.tested()
    tested.link(kit.then("z"))
    kit.noted["z"] = ["z", kit.value]
    return host.set(**{link: [tested]}), None


def _link(kit: Kit) -> Canvas:
    return _linked(kit, kit.part("a"), "link")[0], "a"


def _link_error(kit: Kit) -> Canvas:
    host = kit.scene.task("plain_member").si(unit=f"{kit.unit}-a", fails=True)
    kit.ran.append("a")
    return _linked(kit, host, "link_error")[0], f"RuntimeError: on purpose: {kit.unit}-a"


def _linking(kit: Kit) -> Canvas:
    tested = kit.tested()
    tested.link(kit.then("z"))
    kit.noted["z"] = ["z", kit.value]
    return tested, kit.value


POSITIONS: dict[str, Callable[[Kit], Canvas]] = {
    "task with a link": _linking,
    "link": _link,
    "link_error": _link_error,
    "group member": lambda kit: (
        group(kit.part("a"), kit.tested(), kit.part("b")),
        ["a", kit.value, "b"],
    ),
    "member of a group in a group": lambda kit: (
        group(group(kit.part("a"), kit.tested()), kit.part("b")),
        ["a", kit.value, "b"],
    ),
    "chain first": lambda kit: (
        chain(kit.tested(), kit.then("y"), kit.then("z")),
        ["z", ["y", kit.value]],
    ),
    "chain middle": lambda kit: (
        chain(kit.part("a"), kit.tested(), kit.then("z")),
        ["z", kit.value],
    ),
    "chain middle, mutable": lambda kit: (
        chain(kit.part("a"), kit.tested(mutable=True), kit.then("z")),
        ["z", kit.mutable_value("a")],
    ),
    "chain last": lambda kit: (chain(kit.part("a"), kit.part("b"), kit.tested()), kit.value),
    "chain last, mutable": lambda kit: (
        chain(kit.part("a"), kit.tested(mutable=True)),
        kit.mutable_value("a"),
    ),
    "chord header": lambda kit: (
        chord([kit.part("a"), kit.tested()], kit.then("z")),
        ["z", ["a", kit.value]],
    ),
    "chord header of one": lambda kit: (
        chord([kit.tested()], kit.then("z")),
        ["z", [kit.value]],
    ),
    "chord body": lambda kit: (chord([kit.part("a"), kit.part("b")], kit.tested()), kit.value),
    "chord body, mutable": lambda kit: (
        chord([kit.part("a"), kit.part("b")], kit.tested(mutable=True)),
        kit.mutable_value(["a", "b"]),
    ),
    "chord | task, header": lambda kit: (
        chord([kit.part("a"), kit.tested()], kit.then("y")) | kit.then("z"),
        ["z", ["y", ["a", kit.value]]],
    ),
    "chord | task, body": lambda kit: (
        chord([kit.part("a"), kit.part("b")], kit.tested()) | kit.then("z"),
        ["z", kit.value],
    ),
    "chord | task, task": lambda kit: (
        chord([kit.part("a"), kit.part("b")], kit.then("c")) | kit.tested(),
        kit.value,
    ),
    "chain in a chord header, first": lambda kit: (
        chord([chain(kit.tested(), kit.then("y")), kit.part("a")], kit.then("z")),
        ["z", [["y", kit.value], "a"]],
    ),
    "chain in a chord header, middle": lambda kit: (
        chord([chain(kit.part("a"), kit.tested(), kit.then("y")), kit.part("b")], kit.then("z")),
        ["z", [["y", kit.value], "b"]],
    ),
    "chain in a chord header, last": lambda kit: (
        chord([chain(kit.part("a"), kit.tested()), kit.part("b")], kit.then("z")),
        ["z", [kit.value, "b"]],
    ),
    "chain in a chord in a chain": lambda kit: (
        chain(
            kit.part("a"),
            chord([chain(kit.tested(), kit.then("x")), kit.part("b")], kit.then("y")),
            kit.then("z"),
        ),
        ["z", ["y", [["x", kit.value], "b"]]],
    ),
    "chord in a chain, header": lambda kit: (
        chain(kit.part("a"), chord([kit.part("b"), kit.tested()], kit.then("y")), kit.then("z")),
        ["z", ["y", ["b", kit.value]]],
    ),
    "chord in a chain, body": lambda kit: (
        chain(kit.part("a"), chord([kit.part("b"), kit.part("c")], kit.tested()), kit.then("z")),
        ["z", kit.value],
    ),
    "group in a chain": lambda kit: (
        chain(kit.part("a"), group(kit.part("b"), kit.tested()), kit.then("z")),
        ["z", ["b", kit.value]],
    ),
    "group at the end of a chain": lambda kit: (
        chain(kit.part("a"), group(kit.part("b"), kit.tested())),
        ["b", kit.value],
    ),
    "group before a group": lambda kit: (
        chain(group(kit.part("a"), kit.tested()), group(kit.then("y"), kit.then("z"))),
        [["y", ["a", kit.value]], ["z", ["a", kit.value]]],
    ),
    "group after a group": lambda kit: (
        chain(group(kit.part("a"), kit.part("b")), group(kit.part("c"), kit.tested())),
        ["c", kit.value],
    ),
    "group of chains, first": lambda kit: (
        group(chain(kit.tested(), kit.then("y")), chain(kit.part("a"), kit.then("z"))),
        [["y", kit.value], ["z", "a"]],
    ),
    "group of chains, last": lambda kit: (
        group(chain(kit.part("a"), kit.tested()), chain(kit.part("b"), kit.then("z"))),
        [kit.value, ["z", "b"]],
    ),
    "chord in a chord header, header": lambda kit: (
        chord([chord([kit.part("a"), kit.tested()], kit.then("y")), kit.part("b")], kit.then("z")),
        ["z", [["y", ["a", kit.value]], "b"]],
    ),
    "chord in a chord header, body": lambda kit: (
        chord([chord([kit.part("a"), kit.part("b")], kit.tested()), kit.part("c")], kit.then("z")),
        ["z", [kit.value, "c"]],
    ),
    "three chords deep": lambda kit: (
        chord(
            [
                chord(
                    [chord([kit.tested(), kit.part("a")], kit.then("x")), kit.part("b")],
                    kit.then("y"),
                ),
                kit.part("c"),
            ],
            kit.then("z"),
        ),
        ["z", [["y", [["x", [kit.value, "a"]], "b"]], "c"]],
    ),
    "group in a chord header": lambda kit: (
        chord([group(kit.part("a"), kit.tested()), kit.part("b")], kit.then("z", "gather")),
        ["z", sorted(["a", kit.value, "b"], key=str)],
    ),
}
"""Where a message can be in a canvas, each with what the canvas gives."""


class Canvases:
    """Every position at once, of one kind of message.

    Args:
        scene: With running workers.
        unit: What all its units of work begin with.
        task: Name of the task under test.
        value: What a message of it is to end with; None stands for the real value.
    """

    def __init__(
        self,
        scene: Deployment,
        unit: str,
        task: str,
        *,
        without: Iterable[str] = (),
        only: Iterable[str] = (),
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.scene = scene
        self.task = scene.task(task)
        self.kwargs = kwargs
        names = [each for each in only or POSITIONS if each not in without]
        self.kits = {
            name: Kit(scene, f"{unit}-{number:02}", task, None, options or {}, kwargs)
            for number, name in enumerate(names)
        }
        self.handles: dict[str, Any] = {}
        self.expected: dict[str, Any] = {}
        self.values: dict[str, Any] = {}

    @property
    def units(self) -> list[str]:
        return [kit.unit for kit in self.kits.values()]

    def hold(self) -> None:
        """Have a body of each unit run until `let_go`, on a worker of their own."""
        for kit in self.kits.values():
            self.task.apply_async(
                kwargs={"unit": kit.unit, "seconds": -1}, queue=holding(self.scene)
            )
        wait_until(
            lambda: {run.unit for run in self.scene.runs()} >= set(self.units), "all bodies run"
        )

    def let_go(self) -> None:
        for unit in self.units:
            gate(self.scene.ledger, unit).touch()

    def take(self, queue: str = "") -> None:
        """Have a message of each unit wait, in a queue that nobody reads (yet)."""
        for kit in self.kits.values():
            handle = self.task.apply_async(
                kwargs={"unit": kit.unit, **kit.kwargs}, queue=queue or f"nobody-{kit.unit}"
            )
            assert not handle.once.is_duplicate

    def until_refused(self) -> None:
        """Wait until each message under test was found to be a duplicate."""

        def suppressed(unit: str) -> int:
            holder = self.task.holder(unit=unit, **self.kwargs)
            return holder.suppressed if holder else 0

        wait_until(lambda: all(suppressed(unit) for unit in self.units), "all are duplicates")

    def trigger(self, state: str, **kwargs: Any) -> None:
        """Call the task once more for each unit, as somebody else does."""
        for kit in self.kits.values():
            handle = self.task.apply_async(kwargs={"unit": kit.unit, **kit.kwargs, **kwargs})
            assert handle.once.state == state, handle.once

    def until_claimed(self) -> None:
        """Wait until each message under test was published."""
        wait_until(
            lambda: all(self.task.is_locked(unit=unit, **self.kwargs) for unit in self.units),
            "all were published",
        )

    def forward(self, late: str) -> Callable[[], None]:
        """Bring each message under test from a queue to the workers, as it is.

        Returns:
            Does the same once more, with copies of all of them.
        """
        found: list[Any] = []
        with self.scene.app.connection_for_write() as connection:
            queue = Queue(late, routing_key=late)(connection.default_channel)
            wait_until(lambda: self._forward_one(queue, found), "all were sent")

        def again() -> None:
            with self.scene.app.connection_for_write() as connection:
                for message in found:
                    self._send(connection.default_channel, message)

        return again

    def _forward_one(self, queue: Any, found: list[Any]) -> bool:
        message = queue.get(no_ack=True)
        if message is not None:
            # celery.chord_unlock goes to the queue of the body that it waits for
            found.extend([message] * (message.headers["task"] == self.task.name))
            self._send(queue.channel, message)
        return len(found) == len(self.kits)

    def _send(self, channel: Any, message: Any) -> None:
        known = {name: message.properties.get(name) for name in ("correlation_id", "reply_to")}
        Producer(channel).publish(
            message.body,
            routing_key=str(self.scene.settings["task_default_queue"]),
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            **known,
        )

    def until_refreshed(self) -> None:
        """Have others call the task until a copy of each message under test is sent, and ran."""
        for kit in self.kits.values():
            call = partial(self.task.apply_async, kwargs={"unit": kit.unit, **kit.kwargs})
            wait_until(lambda call=call: call().once.state == "refreshed", "a copy is sent")
        wait_until(lambda: {run.unit for run in self.scene.runs()} >= set(self.units), "all ran")

    def publish(self, value: Any = ..., *, errback: bool = False) -> None:
        """Send all canvases.

        Args:
            value: What the message under test is to end with; the real one if left out.
            errback: Whether the canvas as a whole gets one.
        """
        for name, kit in self.kits.items():
            kit.value = f"done {kit.unit}" if value is ... else value
            canvas, self.expected[name] = POSITIONS[name](kit)
            if errback:
                canvas.link_error(self.scene.task("part").si("errback", kit.unit))
            self.handles[name] = canvas.apply_async()

    def until(self, kind: str, times: int = 1) -> None:
        """Wait until a worker told of such a decision about each unit."""
        wait_until(lambda: self._told(kind, times) >= set(self.units), f"all were {kind}")

    def _told(self, kind: str, times: int) -> set[str]:
        logs = "\n".join(worker.log for worker in self.scene.workers)
        found = re.findall(rf"{kind} \w+: .*key=once:\w+:({'|'.join(self.units)}):", logs)
        return {unit for unit in found if found.count(unit) >= times}

    def collect(self, within: float = 60, *, between: bool = True) -> None:
        """Get all results and compare what came with what is expected.

        Args:
            within: Seconds for all of them.
            between: Whether each message of a canvas has a result of its own.
        """
        deadline = time.monotonic() + within
        for name, handle in self.handles.items():
            self.values[name] = outcome(handle, deadline)
            each = [outcome(part, deadline) for part in parts_of(handle)] if between else []
            if TIMED_OUT in each:
                self.values[name] = (self.values[name], each)
        wrong = {
            name: (value, self.expected[name])
            for name, value in self.values.items()
            if value != self.expected[name]
        }
        assert not wrong, f"got, expected: {wrong}"
        for name, kit in self.kits.items():
            for label in kit.ran:
                self.ran_once(f"{kit.unit}-{label}", f"{label} of {name!r}", kit.noted.get(label))

    def fail_with(self, text: str, within: float = 60) -> None:
        """Each canvas fails with such an error, and its errback runs, once unless Celery errs."""
        deadline = time.monotonic() + within
        found = {name: str(outcome(handle, deadline)) for name, handle in self.handles.items()}
        wrong = {name: value for name, value in found.items() if text not in value}
        assert not wrong, f"without {text!r}: {wrong}"
        for name, kit in self.kits.items():
            self.ran_once(f"{kit.unit}-errback", f"errback of {name!r}", many=name in ERRBACKS)

    def ran_once(self, unit: str, what: str, payload: object = None, *, many: bool = False) -> None:
        """Whether it ran, and only once."""
        runs = wait_until(lambda: self.scene.runs(unit), f"{what} ran")
        assert many or len(runs) == 1, what
        assert payload is None or runs[0].payload == payload, what


Make = Callable[..., Canvases]


def undisturbed(make: Make, task: str = "member") -> None:
    """No duplicates at all; with the plain task, Celery itself."""
    some = make(task)
    some.publish()
    some.collect()


def duplicate(make: Make, task: str = "member", value: object = None) -> None:
    """Refused at publish, for one waits."""
    some = make(task)
    some.take()
    some.publish(value)
    some.collect()


def duplicate_of_one_that_runs(make: Make) -> None:
    """Refused at publish by scope until_done."""
    some = make("member_until_done")
    some.hold()
    some.publish(None)
    some.collect()


def duplicate_that_raises(make: Make) -> None:
    """Settled all the same where a canvas is dispatched; raised where nothing was sent yet."""
    some = make("member_raising", without=["task with a link", "chain first"])
    some.take()
    some.publish(None)
    some.collect()


def duplicate_that_replaces_its_equal(make: Make) -> None:
    """With equal arguments the one that waits is moved, and the new one is settled."""
    # what is handed over to mutable signatures makes their arguments others
    some = make("member_replacing", without=[name for name in POSITIONS if "mutable" in name])
    some.take()
    some.publish(None)
    some.collect()


def duplicate_delivered_twice(make: Make) -> None:
    """The broker gives the message of a duplicate out again when its canvas is over."""
    late = f"late-{uuid.uuid4().hex}"
    some = make("member", options={"queue": late})
    some.take()
    some.publish(None)
    again = some.forward(late)
    some.collect()
    again()
    wait_until(lambda: not some.scene.queued(), "the copies are taken")
    some.collect()


def superseded(make: Make) -> None:
    """Waits behind a run, and is replaced by a newer call."""
    some = make("member_replacing")
    some.hold()
    some.publish(None)
    some.until("deferred")
    some.trigger("replaced", seconds=0.01)
    some.let_go()
    some.collect()


def superseded_by_a_copy(make: Make, task: str = "member_healing", value: Any = None) -> None:
    """Waits so long that copies of it are sent, and comes when one of them has run."""
    late = f"late-{uuid.uuid4().hex}"
    mutable = [name for name in POSITIONS if "mutable" in name]  # a unit of all arguments
    some = make(task, without=mutable, options={"queue": late})
    some.publish(value)
    some.until_claimed()
    some.until_refreshed()
    read(some.scene, late)
    some.collect()
    read(some.scene, late, stop=True)


def skipped(make: Make) -> None:
    """Meets a run, under on_overlap skip."""
    some = make("member_skipping")
    some.hold()
    some.publish(None)
    some.collect()


def deferred(make: Make, times: int = 1) -> None:
    """Meets a run, and runs behind it."""
    some = make("member")
    some.hold()
    some.publish()
    some.until("deferred", times)
    some.let_go()
    some.collect()


def shared(make: Make) -> None:
    """Ends with the value of its holder."""
    late = f"late-{uuid.uuid4().hex}"
    some = make("member_sharing", without=[name for name in POSITIONS if "mutable" in name])
    some.take(late)
    some.publish()
    some.until_refused()
    read(some.scene, late)
    some.collect()
    read(some.scene, late, stop=True)
    assert {unit: len(some.scene.runs(unit)) for unit in some.units} == dict.fromkeys(some.units, 1)


def repeated(make: Make) -> None:
    """Put back once, and given out by the broker a second time when all is over."""
    late = f"late-{uuid.uuid4().hex}"
    some = make("member", options={"queue": late})
    some.hold()
    some.publish()
    again = some.forward(late)
    some.until("deferred")
    some.let_go()
    some.collect()
    again()
    some.until("repeated")
    some.collect()
    for unit in some.units:
        assert len(some.scene.runs(unit)) == 2, "the held one, and the message once"


def ignored(make: Make, hanging: Iterable[str], task: str, **options: Any) -> None:
    """Duplicates whose results nobody wants, where Celery completes with such tasks."""
    some = make(task, without=hanging, options=options)
    some.take()
    some.publish(None)
    some.collect(between=False)


def ignored_and_deferred(make: Make, hanging: Iterable[str]) -> None:
    """The same, deferred: what comes after it is given its real value."""
    some = make("member", without=hanging, options={"ignore_result": True})
    some.hold()
    some.publish()
    some.until("deferred")
    some.let_go()
    some.collect(between=False)


def failing(make: Make) -> None:
    """Celery itself: what the two kinds below are measured by."""
    some = make("plain_member", without=NEVER_FAILING, fails=True)
    some.publish(errback=True)
    some.fail_with("on purpose")


def shared_failure(make: Make) -> None:
    """A holder's failure ends canvases of duplicates as a failure of their own would."""
    late = f"late-{uuid.uuid4().hex}"
    some = make("member_sharing", without=NEVER_FAILING, fails=True)
    some.take(late)
    some.publish(errback=True)
    some.until_refused()
    read(some.scene, late)
    some.fail_with("on purpose")
    read(some.scene, late, stop=True)


def overlap_that_raises(make: Make) -> None:
    """A canvas fails as with any other error."""
    some = make("member_strict", without=NEVER_FAILING)
    some.hold()
    some.publish(errback=True)
    some.fail_with("OverlapError")


def flat(scene: Deployment, unit: str, task: str) -> tuple[Any, int]:
    """Three equal members in one header."""
    header = [scene.task(task).si(unit=unit) for _ in range(3)]
    return chord(header, scene.task("then").s(label="z", unit=unit)), 3


def nested(scene: Deployment, unit: str, task: str) -> tuple[Any, int]:
    """Equal members on all levels."""
    member, then = scene.task(task), scene.task("then")
    inner = chord([member.si(unit=unit), member.si(unit=unit)], then.s(label="y", unit=unit))
    step = chain(scene.task("part").si("a", unit), member.si(unit=unit))
    group_of = group(member.si(unit=unit), member.si(unit=unit))
    return chord([inner, step, group_of], then.s(label="z", unit=unit)), 5


def in_a_row(scene: Deployment, unit: str, task: str) -> tuple[Any, int]:
    """Equal groups one after the other, of which Celery makes chords."""
    member, then = scene.task(task), scene.task("then")
    groups = [group(member.si(unit=unit), member.si(unit=unit)) for _ in range(2)]
    return chain(*groups, then.s(label="z", unit=unit)), 2


EQUAL_MEMBERS = {"flat": flat, "nested": nested, "in a row": in_a_row}
"""Canvases of equal members; each builds one and says how many values there are."""

EQUAL_TASKS = (
    "member", "member_until_done", "member_replacing", "member_debounced", "member_skipping",
    "member_raising", "member_sharing",
)  # fmt: skip
"""Tasks whose equal members are tried."""


def leaves(value: Any) -> list[Any]:
    """All values in nested lists, without the labels."""
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [] if value in {"y", "z"} else [value]


def equal_members(
    scene: Deployment, unit: str, build: Callable[[Deployment, str, str], tuple[Any, int]]
) -> None:
    """All complete, with a real value and None for the others; sharing, with real values alone."""
    handles, counts = {}, {}
    for task in EQUAL_TASKS:
        canvas, counts[task] = build(scene, f"{unit}-{task}", task)
        handles[task] = canvas.apply_async()
    for task, handle in handles.items():
        label, value = handle.get(timeout=40)
        name, found = f"{unit}-{task}", leaves(value)
        real = [each for each in found if each == f"done {name}"]
        assert (label, len(found)) == ("z", counts[task])
        assert len(real) == counts[task] if task == "member_sharing" else real, (task, value)
        assert {None, f"done {name}"} >= set(found), task
        assert ledger.overlaps(scene.runs(name)) == []
        (body,) = wait_until(lambda name=name: scene.runs(f"{name}-z"), "the body ran")
        assert body.payload == ["z", value]


def a_failure_beside_duplicates(scene: Deployment, unit: str) -> None:
    """The errback runs once, and the body does not."""
    member = scene.task("member")
    take(scene, unit)
    failing = scene.task("plain_member").si(unit=f"{unit}-bad", fails=True)
    body = scene.task("then").s(label="z", unit=unit)
    body.link_error(scene.task("part").si("errback", unit))
    result = chord([member.si(unit=unit), failing, member.si(unit=unit), member.si(unit=unit)])(
        body
    )
    assert outcome(result, time.monotonic() + 30) == f"RuntimeError: on purpose: {unit}-bad"
    wait_until(lambda: scene.runs(f"{unit}-errback"), "the errback ran")
    for handle in result.parent.results:
        handle.get(timeout=20, propagate=False)
    wait_until(lambda: not scene.queued(), "nothing is left to do")
    assert len(scene.runs(f"{unit}-errback")) == 1
    assert scene.runs(f"{unit}-z") == []


def take(scene: Deployment, unit: str) -> None:
    """Have a message of a unit wait, in a queue that nobody reads."""
    scene.task("member").apply_async(kwargs={"unit": unit}, queue=f"nobody-{unit}")


NEVER_FAILING = (
    "link", "link_error", *(name for name in POSITIONS if "mutable" in name),
    "three chords deep",  # `get()` never returns in Redis with a plain task that fails
)  # fmt: skip
"""Positions whose canvas does not fail with the message under test, or that is no duplicate."""

GIVING_NOTHING = ("link", "link_error", "task with a link")
"""Positions that cannot take the place of a task, or whose value is not that of the canvas."""

NO_REPLACEMENT = (
    "member of a group in a group",  # in another order
    "group before a group", "group after a group",  # `get()` never returns
)  # fmt: skip
"""What cannot take the place of a task with `Task.replace`, without once either."""

NO_REPLACEMENT_IN_A_CHORD = ("chord | task, header", "chord | task, body", "chord | task, task")
"""The same where the task is in a chord, and results are in Redis: `get()` never returns."""

ERRBACKS = (
    "group before a group",
    "chord in a chord header, header",
    "chord in a chord header, body",
)
"""Positions where Celery calls the errback of a canvas once or more, with plain tasks too."""

READ = (
    "task with a link", "group member", "member of a group in a group", "chain last",
    "chain last, mutable", "chord body", "chord body, mutable", "chord | task, task",
    "group at the end of a chain", "group after a group", "group of chains, last",
)  # fmt: skip
"""Positions where what is asked for is the result of the message under test: without once, too,
`get()` never returns (or gives None) when that is ignored."""

READ_BY_CHORD_UNLOCK = (
    *READ, "chord header", "chord header of one", "chord | task, header",
    "chain in a chord header, last", "chord in a chain, header", "group in a chain",
    "group before a group", "chord in a chord header, header", "chord in a chord header, body",
    "three chords deep", "group in a chord header",
)  # fmt: skip
"""The same with result backends that have no chords of their own, where celery.chord_unlock asks
for the result of each member."""


def read(scene: Deployment, queue: str, *, stop: bool = False) -> None:
    """Have the worker read one more queue, or leave it alone again."""
    control, worker = scene.app.control, scene.workers[0].name
    change = control.cancel_consumer if stop else control.add_consumer
    change(queue, destination=[worker], reply=True)


def holding(scene: Deployment) -> str:
    """Name of the queue whose worker only holds bodies."""
    return f"{scene.settings['task_default_queue']}-holding"


def start_workers(scene: Deployment) -> None:
    """One worker as users have, and one with hands enough to hold a body of each position."""
    scene.worker(concurrency=3)
    settings = {**scene.settings, "task_default_queue": holding(scene)}
    holder = CeleryWorker(settings, scene.folder, pool="threads", concurrency=len(POSITIONS) + 4)
    scene.workers.append(holder.ready())


def outcome(handle: Any, deadline: float) -> Any:
    """Its value; what it failed with, as text; or that it never ended."""
    try:
        return handle.get(timeout=max(0.1, deadline - time.monotonic()), interval=0.05)
    except CeleryTimeoutError:
        return TIMED_OUT
    except Exception as error:  # noqa: BLE001  # whatever the member failed with
        return f"{type(error).__name__}: {error}"


def making(scene: Deployment, unit: str) -> Iterator[Make]:
    """Makes canvases whose held bodies end when the test does."""
    made: list[Canvases] = []

    def make(task: str, **options: Any) -> Canvases:
        made.append(Canvases(scene, f"{unit}-{len(made)}", task, **options))
        return made[-1]

    yield make
    for each in made:
        each.let_go()
    made.clear()
    gc.collect()  # handles say goodbye to the result backend when they are collected


def parts_of(handle: Any) -> Iterator[Any]:
    """Every handle of a single message in a canvas."""
    if isinstance(handle, ResultSet):
        for each in handle.results:
            yield from parts_of(each)
    else:
        yield handle
    if getattr(handle, "parent", None) is not None:
        yield from parts_of(handle.parent)
