"""The record's scripts in lock step with a model, and the promises under whatever goes wrong.

Time is the test's own (`_support.servers`), so hours pass in milliseconds. `ONCE_EXAMPLES` says
how many times as many examples to run; a number other than 1 also makes them random.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from _support.record_model import RecordModel
from _support.servers import START, Unit, make_client
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from once_core import protocol
from once_core.protocol import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from once_core.devserver import DevServer

TIMES = float(os.environ.get("ONCE_EXAMPLES", "1"))

SMALL = ("listpack", "ziplist")
COUNTERS = ("wz", "x0z", "x1z", "x2z", "qz")


def profile(examples: int, steps: int) -> settings:
    """Settings of one machine; the same examples every time unless more were asked for."""
    return settings(
        max_examples=max(1, round(examples * TIMES)),
        stateful_step_count=steps,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(params=["fakeredis", "server"])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client of fakeredis, and of a real server."""
    is_real = request.param == "server"
    server: DevServer | None = request.getfixturevalue("shared_server") if is_real else None
    made = make_client(request.param, server)
    yield made
    made.close()


def retry_of(message: Message) -> Message:
    """The same message, published once more by its own run."""
    return Message(message.id, message.ticket, message.retries + 1)


class Lockstep:
    """One record twice, in Redis and in the model; every answer and every field is compared.

    Without a client there is the model alone: faster, to look for holes in the rules themselves.
    """

    def __init__(self, client: redis.Redis | None) -> None:
        self.unit = Unit(client) if client else None
        self.model = RecordModel()
        self.now = self.written_at = START
        self.written: dict[str, str] = {}
        self.is_real = client is not None and type(client).__module__.startswith("redis.")

    def call(self, step: str, *args: Any, **options: Any) -> Any:
        """Carry one step in both."""
        ends_at = self.model.ends_at()
        if ends_at and self.now > max(ends_at, self.written_at + 0.001):
            self.forget()  # the server ends the key
        expected = getattr(self.model, step)(self.now, *args, **options)
        note(f"{self.now - START:10.2f} {step}{args}{options} -> {expected}")
        self.written_at = self.now
        if self.unit is None:
            return expected
        self.unit.clock.now = self.now
        actual = self.unit.run(getattr(protocol, step)(self.unit.key, *args, **options))
        assert expected == actual
        self.compare()
        return actual

    def compare(self) -> None:
        """Field by field; and what must hold of every key of ours."""
        assert self.unit is not None
        expected, actual = self.model.in_redis(), self.unit.fields()
        assert expected == actual
        assert [value for value in actual.values() if len(value) > 64] == []
        if not actual:
            assert not self.unit.redis.exists(self.unit.key)
            return
        written = {name: value for name, value in actual.items() if name not in COUNTERS}
        if written != self.written:
            life = max(self.model.ends_at() - self.now, 0.001)
            slack = 30.0  # the test machine may sleep
            assert life - slack <= self.unit.life() <= life + 0.001
            self.written = written
        if self.is_real:
            assert self.unit.redis.object("encoding", self.unit.key).decode() in SMALL

    def forget(self) -> None:
        """The server ended the key, or came back empty."""
        self.model = RecordModel()
        if self.unit:
            self.unit.redis.delete(self.unit.key)

    def go_back_to(self, model: RecordModel) -> None:
        """A failover: the new master never heard of the last writes."""
        self.forget()
        self.model = copy.deepcopy(model)
        if self.unit and (fields := self.model.in_redis()):
            self.unit.redis.hset(self.unit.key, mapping=fields)
            self.unit.redis.expire(self.unit.key, 1_000_000)
            # its life is ours and not a step's, until a step writes
            self.written = {name: fields[name] for name in fields if name not in COUNTERS}


# Any step with any arguments at any time: do the scripts do what the model does?

IDS = [f"{number}9e107d9-d372-4bb6-826b-d81d3542a419" for number in range(3)]
WAITS = st.sampled_from([0.0, 0.0, 0.0, 0.25, 2.0, 10.0, 30.0, 60.0, 61.0, 130.0, 3600.0])
WHICH = st.integers(0, 30)


class AnySteps(RuleBasedStateMachine):
    """Steps in any order, sensible or not."""

    client: redis.Redis | None = None

    def __init__(self) -> None:
        super().__init__()
        self.both = Lockstep(self.client)
        self.messages = [Message(IDS[0]), Message(IDS[1], -5), Message(IDS[1], -7, 1)]
        self.attempts = [(self.messages[0], "a0", 7)]
        self.options: dict[str, Any] = {}
        self.fence, self.fence_at = 0, 0.0
        self.limit = 1
        self.stepped_back = False

    @initialize(
        ttl=st.sampled_from([100.0, 200.0, 3600.0]),
        heal_after=st.sampled_from([30.0, 60.0, 90.0]),
        lease=st.sampled_from([20.0, 60.0, 100.0]),
    )
    def choose(self, ttl: float, heal_after: float, lease: float) -> None:
        """Draw the options of the task."""
        self.options = {"ttl": ttl, "heal_after": heal_after}
        self.lease = lease

    def message(self, which: int) -> Message:
        """One of the newest messages, most of all the newest."""
        return self.messages[-1 - which % min(len(self.messages), 5)]

    def attempt(self, which: int) -> tuple[Message, str, int]:
        return self.attempts[-1 - which % min(len(self.attempts), 3)]

    @rule(
        wait=WAITS,
        message_id=st.sampled_from(IDS),
        replaces=st.booleans(),
        delay=st.sampled_from([0.0, 0.0, 5.0, 200.0]),
        latest=st.sampled_from([None, 12.0, 100.0]),
        expires=st.sampled_from([None, None, 0.25, 50.0]),
        flags=st.integers(0, 7),
        nonce=st.sampled_from(["", "n1", "n2"]),
        lost=st.sampled_from(["", "", "n1"]),
        fingerprint=st.sampled_from(["", "f1", "f1", "f2"]),
        retries=st.sampled_from([0, 0, 0, 1]),
    )
    def claim(
        self, wait: float, message_id: str, replaces: bool, flags: int, **options: Any
    ) -> None:
        self.both.now += wait
        if not replaces:
            options.update(latest=None, fingerprint="")
        if self.both.model.state.line:
            options["retries"] = 1  # the short way leaves what has lapsed of the line to others
        answer = self.both.call(
            "claim", message_id, replace=replaces, until_done=flags % 4 == 1, own=flags >= 6,
            limit=self.limit, **options, **self.options,
        )  # fmt: skip
        if answer.ticket:
            self.messages.append(Message(message_id, answer.ticket, options["retries"]))

    @rule(wait=WAITS, which=WHICH)
    def confirm(self, wait: float, which: int) -> None:
        self.both.now += wait
        self.both.call("confirm", self.message(which).ticket, ttl=self.options["ttl"])

    @rule(wait=WAITS, which=WHICH)
    def withdraw(self, wait: float, which: int) -> None:
        self.both.now += wait
        self.both.call("withdraw", self.message(which))

    @rule(
        wait=WAITS,
        which=WHICH,
        again=st.sampled_from([False] * 9 + [True]),
        window=st.sampled_from([0.0, 0.0, 90.0]),
        queued=st.sampled_from([True, True, True, False]),
        running=st.sampled_from([True, True, True, False]),
        give_up=st.sampled_from([False, False, True]),
        put_back=st.sampled_from([False, False, True]),
    )
    def start(self, wait: float, which: int, again: bool, put_back: bool, **options: Any) -> None:
        self.both.now += wait
        message, attempt = self.message(which), f"a{len(self.attempts)}"
        if again:
            message, attempt, _ = self.attempt(which)
        answer = self.both.call(
            "start", message, attempt, where="host:1:boot", lease=self.lease, limit=self.limit,
            again=put_back, **options, **self.options,
        )  # fmt: skip
        if answer.status == "started" and not again:
            self.attempts.append((message, attempt, answer.fence))
            if options["running"]:
                is_same_moment = self.both.now == self.fence_at  # in which it may have been idle
                assert answer.fence > self.fence or self.stepped_back or is_same_moment
                self.fence, self.fence_at = answer.fence, self.both.now

    @rule(wait=WAITS, which=WHICH, held=st.sampled_from([0.0, 15.0]))
    def renew(self, wait: float, which: int, held: float) -> None:
        self.both.now += wait
        message, attempt, fence = self.attempt(which)
        self.both.call(
            "renew", message, attempt, where="host:1:boot", lease=self.lease, fence=fence,
            held=held, limit=self.limit,
        )  # fmt: skip

    @rule(
        wait=WAITS,
        which=WHICH,
        outcome=st.sampled_from(["success", "failure", "retry", "retry", "interrupted"]),
        delay=st.sampled_from([0.0, 5.0, 300.0]),
        keep_for=st.sampled_from([0.0, 0.0, 20.0]),
        queued=st.sampled_from([True, True, True, False]),
        mark=st.sampled_from(["hold", "write"]),
    )
    def finish(self, wait: float, which: int, outcome: str, **options: Any) -> None:
        self.both.now += wait
        message, attempt, _ = self.attempt(which)
        self.both.call("finish", message, attempt, outcome, **options, **self.options)
        if outcome == "retry":
            self.messages.append(retry_of(message))

    @rule(which=WHICH, attempt=WHICH, margin=st.sampled_from([0.0, 25.0]))
    def reap(self, which: int, attempt: int, margin: float) -> None:
        name = "" if attempt % 3 == 0 else self.attempt(attempt)[1]
        self.both.call("reap", self.message(which).id, name, margin=margin)

    @rule(holder=st.sampled_from(["", *IDS]))
    def release(self, holder: str) -> None:
        self.both.call("release", holder)

    @rule(wait=WAITS)
    def inspect(self, wait: float) -> None:
        self.both.now += wait
        model, unit = self.both.model, self.both.unit
        if unit is None:
            return
        expected = RecordModel(model.seen(self.both.now)).in_redis()
        unit.clock.now = self.both.now

        actual = unit.run(protocol.inspect(unit.key))

        assert int(actual.pop("now")) == round(self.both.now * 1000)
        assert actual == {name: value for name, value in expected.items() if name not in "lv"}

    @rule(step=st.sampled_from([1.0, 50.0, 600.0]))
    def the_clock_steps_back(self, step: float) -> None:
        self.both.now -= step
        self.stepped_back = True  # an idle record does not remember the last fence

    @rule()
    def the_server_comes_back_empty(self) -> None:
        self.both.forget()
        self.fence = 0


CALLS = [Message(f"{number}call", -20 - number) for number in range(4)]


class AnySlots(AnySteps):
    """The same with several slots, and calls that wait in the line for one of them."""

    @initialize(limit=st.sampled_from([1, 2, 2, 3]))
    def choose_limit(self, limit: int) -> None:
        """Draw the slots."""
        self.limit = limit

    @rule(
        wait=st.sampled_from([0.0, 0.0, 0.25, 2.0, 2.0, 3.0, 10.0, 61.0]),
        number=st.integers(0, len(CALLS) - 1),
        park=st.sampled_from([6.0, 6.0, 6.0, 0.0]),
        limit=st.sampled_from([0, 0, 0, 0, 1, 3]),
    )
    def ask(self, wait: float, number: int, park: float, limit: int) -> None:
        self.both.now += wait
        call, attempt = CALLS[number], f"c{number}"
        answer = self.both.call(
            "start", call, attempt, where="host:2:boot", lease=self.lease, queued=False,
            give_up=True, limit=limit or self.limit, park=park, **self.options,
        )  # fmt: skip
        if answer.status == "started":
            self.attempts.append((call, attempt, answer.fence))

    @rule(wait=WAITS, number=st.integers(0, len(CALLS) - 1))
    def leave(self, wait: float, number: int) -> None:
        self.both.now += wait
        self.both.call("leave", f"c{number}")

    @rule(wait=st.sampled_from([0.0, 2.0]), which=WHICH)
    def end(self, wait: float, which: int) -> None:
        """More often than others: who runs ends well."""
        self.both.now += wait
        message, attempt, _ = self.attempt(which)
        self.both.call("finish", message, attempt, "success", mark="none", **self.options)

    @rule(which=WHICH)
    def reap_a_call(self, which: int) -> None:
        message, attempt, _ = self.attempt(which)
        self.both.call("reap", message.id, attempt)

    @rule(which=WHICH)
    def release_one(self, which: int) -> None:
        self.both.call("release", self.attempt(which)[0].id)

    @rule(limit=st.integers(1, 3))
    def a_deployment_changes_the_limit(self, limit: int) -> None:
        self.limit = limit


# A broker, producers and workers: are the promises kept?

LEASE, HEAL, TTL, DEFER = 30.0, 60.0, 3600.0, 30.0
OPTIONS = {"ttl": TTL, "heal_after": HEAL}


@dataclass(frozen=True)
class Setting:
    """What a run of the machine may meet, and how its task is set up."""

    name: str
    hazards: str = ""
    replaces: tuple[bool, ...] = (False,)
    delays: tuple[float, ...] = (0.0,)  # of replacing calls
    retry_delays: tuple[float, ...] = (0.0, 5.0, 300.0)
    always_retries: bool = False
    same_ids: bool = False
    latest: float | None = None
    fingerprints: tuple[str, ...] = ("",)
    scope: str = "queued+running"
    keep_for: float = 0.0
    window: float = 0.0
    expires: float | None = None
    gives_up: bool = False
    most_waiting: int = 99
    newest_last: bool = False


LATE = "late jump"
BOTH = (False, True)
SETTINGS = [
    Setting("calm", most_waiting=2),
    Setting("late", f"{LATE} interrupt"),
    Setting("retry", retry_delays=(300.0,), always_retries=True, most_waiting=2),
    Setting("far retry", f"{LATE} leap", retry_delays=(0.0, 3 * TTL)),
    Setting("stall", f"{LATE} stall"),
    Setting("crash", f"{LATE} crash"),
    Setting("reaped", f"{LATE} crash reap"),
    Setting("replace", LATE, (True,), (0.0, 5.0), newest_last=True),
    Setting("far", f"{LATE} leap", (True,), (0.0, 2 * TTL), newest_last=True),
    Setting("debounce", LATE, (True,), (5.0,), latest=12.0, newest_last=True),
    Setting("moved", LATE, (True,), (5.0,), latest=12.0, fingerprints=("A", "B"), newest_last=True),
    Setting("mixed", LATE, BOTH, (0.0, 5.0)),
    Setting("same ids", LATE, same_ids=True),
    Setting("same ids mixed", LATE, BOTH, (0.0, 5.0), same_ids=True),
    Setting("until done", LATE, scope="until_done", keep_for=20.0),
    Setting("window", f"{LATE} vanish purge", scope="window", window=100.0),
    Setting("queued", f"{LATE} crash", scope="queued"),
    Setting("running", f"{LATE} crash", scope="running"),
    Setting("gives up", gives_up=True),
    Setting("foreign", "foreign"),
    Setting("expires", LATE, expires=20.0),
    Setting("misreport", f"{LATE} misreport", BOTH, (0.0, 5.0)),
    Setting("revoke", f"{LATE} revoke vanish", BOTH, (0.0, 5.0)),
    Setting("purge", f"{LATE} vanish purge"),
    Setting("lost answer", f"{LATE} lost_answer"),
    Setting("released", f"{LATE} release"),
    Setting("failover", "failover"),
    Setting("empty", "empty"),
    Setting("clock", "back crash purge"),
]


@dataclass(frozen=True)
class Sent:
    """A message on its way; `number` tells triggers apart whose ids are the same."""

    message: Message
    number: int
    sent_at: float
    due: float
    expires_at: float = 1e18
    is_late: bool = False  # given out again by the broker
    is_back: bool = False  # put back by us

    @property
    def delivery(self) -> tuple[int, int]:
        return self.number, self.message.retries


@dataclass
class Worker:
    """A body that runs."""

    sent: Sent
    attempt: str
    fence: int
    started_at: float
    renewed_at: float
    owns: bool = True
    stalled_until: float = 0.0
    retry: Sent | None = None


@dataclass
class Books:
    """What happened, as nobody in the system knows it."""

    owed: dict[int, float] = field(default_factory=dict)  # triggers that the next start answers
    ended: set[tuple[int, int]] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)
    copies: set[int] = field(default_factory=set)
    free_at: float = 0.0  # until then a refusal is forgiven
    taken_at: float = 0.0
    last_start: float = 0.0
    newest: int = 0
    burst: float = 0.0
    quiet_until: float = 0.0
    window_until: float = 0.0


PAUSES = st.sampled_from([0.0, 0.25, 0.5, 2.0, 9.0])


def may(hazard: str) -> Callable[[Any], Any]:
    """The rule applies in settings that know this hazard."""
    return precondition(lambda self: hazard in self.setting.hazards.split())


class Promises(RuleBasedStateMachine):
    """Triggers, an at-least-once broker, workers that fail in every way; then all comes to rest."""

    client: redis.Redis | None = None
    setting = Setting("none yet")

    def __init__(self) -> None:
        super().__init__()
        self.both = Lockstep(self.client)
        self.now, self.skew = START, 0.0
        self.broker: list[Sent] = []
        self.producers: list[tuple[Sent, str]] = []
        self.workers: list[Worker] = []
        self.books = Books()
        self.numbers = self.deliveries = 0
        self.is_broken = False
        self.forgot = False
        self.ghost = ""
        self.backup, self.last_step = RecordModel(), ""

    @initialize(setting=st.sampled_from(SETTINGS))
    def choose(self, setting: Setting) -> None:
        """Draw the setting."""
        self.setting = setting

    # what every event has in common

    def call(self, step: str, *args: Any, **options: Any) -> Any:
        """One step on the record."""
        self.both.now = self.now - self.skew
        before = copy.deepcopy(self.both.model)
        answer = self.both.call(step, *args, **options)
        if step != "renew":
            self.backup, self.last_step = before, step
        return answer

    def keep(self, promise: bool, text: str) -> None:
        """Fail with the promise that was broken."""
        assert promise, f"{text} (setting: {self.setting.name})"

    def begin(self, pause: float) -> None:
        """Time passes; heartbeats come before whatever happens next."""
        self.is_broken = True
        self.now += pause
        for worker in self.workers:
            is_due = self.forgot or self.now - worker.renewed_at >= LEASE / 3
            if is_due and worker.stalled_until <= self.now and self.setting.scope != "queued":
                answer = self.call(
                    "renew", worker.sent.message, worker.attempt, where="h:1:b", lease=LEASE,
                    fence=worker.fence, held=self.now - worker.started_at,
                )  # fmt: skip
                worker.owns, worker.renewed_at = answer != "lost", self.now
        self.forgot = False

    def end(self) -> None:
        """After each event: is there a pile?"""
        spent = self.both.model.state.spent
        waiting = {
            sent.delivery
            for sent in self.broker
            if sent.number not in self.books.copies
            and (sent.message.retries or not spent or sent.message.ticket != spent.ticket)
        }
        self.keep(len(waiting) <= self.setting.most_waiting, f"pile: {len(waiting)} wait")
        self.is_broken = False

    def allow(self) -> None:
        """A message is gone: forgive refusals for a minute, or as long again as it had waited."""
        state = self.both.model.state
        for part in filter(None, (state.waiting, state.behind)):
            waited = self.now - self.skew - part.since
            due = DEFER + max(self.now, part.due + self.skew)
            self.books.free_at = max(self.books.free_at, due + max(HEAL, waited))

    # producers

    @rule(
        pause=PAUSES,
        which=WHICH,
        replaces=WHICH,
        delay=WHICH,
        fingerprint=WHICH,
        at_once=st.booleans(),
        is_lost=st.integers(0, 3),
    )
    def trigger(
        self,
        pause: float,
        which: int,
        replaces: int,
        delay: int,
        fingerprint: int,
        at_once: bool,
        is_lost: int,
    ) -> None:
        self.begin(pause)
        self.numbers += 1
        task, message_id = self.setting, f"m{self.numbers}"
        if task.same_ids:
            message_id = "XY"[which % 2]
        if task.scope == "running":
            self._sent_unclaimed(message_id, ticket=-self.numbers)
        else:
            does = task.replaces[replaces % len(task.replaces)]
            self._claim(
                message_id,
                does,
                task.delays[delay % len(task.delays)] if does else 0.0,
                task.fingerprints[fingerprint % len(task.fingerprints)] if does else "",
                is_lost="lost_answer" in task.hazards and is_lost == 0,
            )
            if at_once and self.producers:
                self._publish(-1, confirms=True)
        self.end()

    def _claim(
        self, message_id: str, replaces: bool, delay: float, fingerprint: str, is_lost: bool
    ) -> None:
        task, books = self.setting, self.books
        nobody = not (self.broker or self.producers or self.workers)
        nonce = f"n{self.numbers}"
        answer = self.call(
            "claim", message_id, replace=replaces, delay=delay,
            latest=task.latest if replaces else None,
            expires=task.expires, until_done=task.scope == "until_done", nonce=nonce,
            lost=self.ghost, fingerprint=fingerprint, **OPTIONS,
        )  # fmt: skip
        if answer.status in ("waiting", "moved"):
            self.keep(not (self.ghost and nobody), "stuck unit: our own ghost refuses us")
            self._check_refusal()
        if answer.status == "moved":
            books.quiet_until = self.now + answer.remaining - 0.001
            if answer.remaining:
                self._check_burst(answer.remaining)
        if not answer.ticket:
            return
        self.keep(self.now >= books.window_until, "pile: accepted within the window")
        if task.scope == "until_done":
            self.keep(not any(w.owns for w in self.workers), "pile: accepted while it runs")
        if is_lost:
            self.ghost = nonce
            self.allow()
            return
        self.ghost = ""
        if answer.status == "claimed":
            books.burst = self.now
        if answer.delay:
            self._check_burst(answer.delay)
        books.quiet_until = self.now + answer.delay - 0.001
        expires_at = 1e18 if task.expires is None else self.now + task.expires
        message = Message(message_id, answer.ticket)
        due = self.now + answer.delay
        sent = Sent(message, self.numbers, self.now, due, expires_at)
        self.producers.append((sent, answer.status))

    def _check_burst(self, delay: float) -> None:
        latest = self.setting.latest
        in_time = latest is None or self.now + delay <= self.books.burst + latest + 0.001
        self.keep(in_time, "stuck unit: a burst delays it too long")

    def _check_refusal(self) -> None:
        part = self.both.model.state.waiting
        assert part is not None
        about = [*self.broker, *(sent for sent, _ in self.producers)]
        if any(part.stands_for(sent.message) for sent in about):
            self.books.owed[self.numbers] = self.now
        else:
            self.keep(
                self.now <= self.books.free_at, "stuck unit: refused, but what waited is gone"
            )
        age = self.now - self.skew - part.since
        if max(self.setting.retry_delays) > TTL and not part.copies:
            self.keep(age <= TTL + HEAL + DEFER, "stuck unit: refused for longer than the ttl")

    @precondition(lambda self: self.producers)
    @rule(pause=PAUSES, which=WHICH, confirms=st.integers(0, 6))
    def publish(self, pause: float, which: int, confirms: int) -> None:
        self.begin(pause)
        self._publish(which, confirms=confirms > 0)
        self.end()

    def _publish(self, which: int, *, confirms: bool) -> None:
        if not self.producers:
            return
        sent, status = self.producers.pop(which % len(self.producers))
        self.broker.append(sent)
        if max(self.books.last_start, self.books.taken_at) < sent.sent_at:
            self.books.owed[sent.number] = sent.sent_at
        if status == "refreshed":
            self.books.copies.add(sent.number)
        if status == "replaced" and confirms:
            self.call("confirm", sent.message.ticket, ttl=TTL)

    def _sent_unclaimed(self, message_id: str, ticket: int) -> None:
        self.broker.append(Sent(Message(message_id, ticket), self.numbers, self.now, self.now))
        self.books.owed[self.numbers] = self.now

    @may("foreign")
    @rule(pause=PAUSES, has_nonce=st.booleans())
    def foreign(self, pause: float, has_nonce: bool) -> None:
        """A message from a program without this library, or sent while Redis was away."""
        self.begin(pause)
        self.numbers += 1
        self._sent_unclaimed(f"f{self.numbers}", -self.numbers if has_nonce else 0)
        self.end()

    # workers

    @precondition(lambda self: self.broker and len(self.workers) < 3)
    @rule(pause=PAUSES, which=WHICH, later=st.sampled_from([1.0, 2.0, 5.0]))
    def deliver(self, pause: float, which: int, later: float) -> None:
        self.begin(pause)
        ready = [sent for sent in self.broker if sent.due <= self.now]
        if ready:
            self._deliver(ready[which % len(ready)], later)
        self.end()

    def _deliver(self, sent: Sent, later: float) -> None:
        self.broker.remove(sent)
        books, task = self.books, self.setting
        if sent.expires_at <= self.now and not sent.message.retries:
            self._withdraw(sent)
            books.owed.clear()
            books.taken_at = self.now
            return
        self.deliveries += 1
        attempt = f"a{self.deliveries}"
        answer = self.call(
            "start", sent.message, attempt, where="h:1:b", lease=LEASE, window=task.window,
            queued=task.scope != "running", running=task.scope != "queued",
            give_up=task.gives_up, again=sent.is_back, **OPTIONS,
        )  # fmt: skip
        runs = any(worker.sent.number == sent.number for worker in self.workers)
        if answer.status == "started":
            self._check_start(sent)
            self.workers.append(Worker(sent, attempt, answer.fence, self.now, self.now))
        elif answer.status == "overlap":
            later = math.ceil(answer.turn * 4) / 4 or later  # of the times that add up exactly
            self.broker.append(replace(sent, due=self.now + later, is_back=True))
        elif answer.status == "early":
            self.broker.append(replace(sent, due=self.now + answer.remaining))
        elif answer.status == "superseded":
            books.settled.add(sent.number)
            self.keep(not runs, "wrong superseded: its own attempt runs")
        elif answer.status == "repeated" and books.last_start < sent.sent_at:
            self.keep(runs or sent.delivery in books.ended, "wrong repeated: it never ended")

    def _check_start(self, sent: Sent) -> None:
        task, books = self.setting, self.books
        if task.scope != "queued":
            self.keep(not any(worker.owns for worker in self.workers), "two at once")
        if not task.same_ids:
            self.keep(sent.number not in books.settled, "wrong superseded: now it runs")
        if task.newest_last and not sent.is_late:
            self.keep(sent.number >= books.newest, "stale payload: a newer one started before")
            if task.latest is not None:
                self.keep(self.now >= books.quiet_until, "stale payload: the burst goes on")
        if task.window and not sent.message.retries:
            books.window_until = max(books.window_until, sent.sent_at + task.window - 0.001)
        books.newest = max(books.newest, sent.number)
        books.last_start = self.now
        books.owed.clear()
        waiting = self.both.model.state.waiting
        if waiting is not None and waiting.since == self.now:
            books.burst = self.now  # an older one ran, for the newest was replaced for too long

    @precondition(lambda self: self.workers)
    @rule(pause=PAUSES, which=WHICH, delay=WHICH, fate=st.integers(0, 9))
    def finish(self, pause: float, which: int, delay: int, fate: int) -> None:
        self.begin(pause)
        worker = self.workers[which % len(self.workers)]
        delays = self.setting.retry_delays
        retries = worker.sent.message.retries
        wants = fate < 4 and (retries < 2 or self.setting.always_retries)
        if worker.retry is None and (wants or (self.setting.always_retries and retries < 9)):
            self._send_retry(worker, delays[delay % len(delays)])
            if fate == 0:
                self.end()  # its retry is with the broker before the lease is freed
                return
        self._finish(worker, "retry" if worker.retry else "success")
        self.end()

    def _send_retry(self, worker: Worker, delay: float) -> None:
        sent = worker.sent
        message = retry_of(sent.message)
        due = self.now + delay
        worker.retry = replace(sent, message=message, due=due, is_late=False, is_back=False)
        self.broker.append(worker.retry)

    def _finish(self, worker: Worker, outcome: str) -> None:
        books, task, sent = self.books, self.setting, worker.sent
        delay = 0.0
        if worker.retry:
            delay = max(0.0, worker.retry.due - self.now)
            books.burst = self.now
        self.workers.remove(worker)
        if task.scope != "queued" or outcome == "retry":
            options = {
                **OPTIONS, "delay": delay, "keep_for": task.keep_for,
                "queued": task.scope != "running",
            }  # fmt: skip
            answer = self.call("finish", sent.message, worker.attempt, outcome, **options)
            if answer.status == "due":
                self.call("finish", sent.message, worker.attempt, outcome, mark="write", **options)
        if outcome != "interrupted":
            books.ended.add(sent.delivery)
        if outcome == "retry" and worker.retry not in self.broker:
            self.allow()  # its retry was taken away or has run already

    @may("interrupt")
    @precondition(lambda self: any(not worker.retry for worker in self.workers))
    @rule(pause=PAUSES)
    def interrupt(self, pause: float) -> None:
        """A cold shutdown: the lease is freed, the broker gives the message out again."""
        self.begin(pause)
        worker = next(worker for worker in self.workers if not worker.retry)
        self._come_again(worker)
        self._finish(worker, "interrupted")
        self.end()

    def _come_again(self, worker: Worker) -> None:
        self.broker.append(replace(worker.sent, is_late=True))
        if not worker.retry:
            self.books.owed[worker.sent.number] = self.now

    @may("late")
    @precondition(lambda self: self.workers)
    @rule(pause=PAUSES, which=WHICH)
    def redeliver(self, pause: float, which: int) -> None:
        """The broker gives a message out again although its worker lives."""
        self.begin(pause)
        worker = self.workers[which % len(self.workers)]
        self.broker.append(replace(worker.sent, is_late=True))
        self.end()

    @may("crash")
    @precondition(lambda self: self.workers)
    @rule(pause=PAUSES, which=WHICH, comes_again=st.booleans())
    def crash(self, pause: float, which: int, comes_again: bool) -> None:
        self.begin(pause)
        worker = self.workers.pop(which % len(self.workers))
        if "reap" in self.setting.hazards:
            self.call("reap", worker.sent.message.id, worker.attempt)
        else:
            self.books.free_at = max(self.books.free_at, self.now + LEASE)
        if comes_again:
            self._come_again(worker)
        self.end()

    @may("reap")
    @precondition(lambda self: self.workers)
    @rule(pause=PAUSES, which=WHICH)
    def wrong_guess(self, pause: float, which: int) -> None:
        """The main process takes a live child for dead; it has time to renew."""
        self.begin(pause)
        worker = self.workers[which % len(self.workers)]
        self.call("reap", worker.sent.message.id, worker.attempt, margin=LEASE / 3 + 10)
        self.end()

    @may("stall")
    @precondition(lambda self: self.workers)
    @rule(pause=PAUSES, which=WHICH, comes_again=st.booleans())
    def stall(self, pause: float, which: int, comes_again: bool) -> None:
        """A worker hangs for longer than its lease; it may overlap with others."""
        self.begin(pause)
        worker = self.workers[which % len(self.workers)]
        worker.owns, worker.stalled_until = False, self.now + 45
        if comes_again:
            self.broker.append(replace(worker.sent, is_late=True))
        self.end()

    # what takes messages away

    def _withdraw(self, sent: Sent) -> None:
        """What the message had refused is owed only until the next trigger."""
        state = self.both.model.seen(self.now - self.skew)
        parts = [part for part in (state.waiting, state.behind) if part]
        if any(part.stands_for(sent.message) for part in parts):
            self.books.owed.clear()
            self.books.taken_at = self.now
        self.books.owed.pop(sent.number, None)
        self.call("withdraw", sent.message)

    @may("revoke")
    @precondition(lambda self: self.broker)
    @rule(pause=PAUSES, which=WHICH)
    def revoke(self, pause: float, which: int) -> None:
        self.begin(pause)
        self._withdraw(self.broker.pop(which % len(self.broker)))
        self.end()

    @may("misreport")
    @precondition(lambda self: self.producers)
    @rule(pause=PAUSES, which=WHICH, went_through=st.booleans())
    def misreport(self, pause: float, which: int, went_through: bool) -> None:
        """Publish is reported as failed, although it may have gone through."""
        self.begin(pause)
        sent, _ = self.producers.pop(which % len(self.producers))
        if went_through:
            self.broker.append(replace(sent, is_late=True))
        self._withdraw(sent)
        self.end()

    @may("vanish")
    @precondition(lambda self: self.producers)
    @rule(pause=PAUSES, which=WHICH)
    def vanish(self, pause: float, which: int) -> None:
        """A producer dies between its claim and its publish."""
        self.begin(pause)
        self.producers.pop(which % len(self.producers))
        self.books.owed.clear()
        self.books.taken_at = self.now
        self.allow()
        self.end()

    @may("purge")
    @rule(pause=PAUSES)
    def purge(self, pause: float) -> None:
        self.begin(pause)
        self.broker.clear()
        self.books.owed.clear()
        self.allow()
        self.end()

    # what happens to time and to Redis

    @may("jump")
    @rule(times=st.sampled_from([2, 7, 20]))
    def jump(self, times: int) -> None:
        for _ in range(times):
            self.begin(10.0)
        self.end()

    @may("leap")
    @precondition(lambda self: not (self.workers or self.producers))
    @rule()
    def leap(self) -> None:
        if not [sent for sent in self.broker if sent.due <= self.now + TTL]:
            self.begin(TTL)
            self.end()

    @may("release")
    @rule(pause=PAUSES)
    def release(self, pause: float) -> None:
        """A person frees the unit; a live body goes on without its lease."""
        self.begin(pause)
        answer = self.call("release", "")
        for worker in self.workers if answer.status == "released" else ():
            worker.owns = False
            self.forgot = True  # its next heartbeat must not take the lease back
        self.end()

    @may("failover")
    @rule(pause=PAUSES)
    def failover(self, pause: float) -> None:
        """The last write but heartbeats is lost."""
        self.begin(pause)
        self.both.go_back_to(self.backup)
        if self.last_step == "finish":
            self.books.free_at = max(self.books.free_at, self.now + LEASE)
        self.forgot = True
        self.end()

    @may("empty")
    @rule(pause=PAUSES)
    def empty(self, pause: float) -> None:
        self.begin(pause)
        self.both.forget()
        self.forgot = True
        self.end()

    @may("back")
    @rule(pause=PAUSES)
    def the_clock_steps_back(self, pause: float) -> None:
        self.begin(pause)
        self.allow()
        self.skew += 600
        self.end()

    # the end

    def teardown(self) -> None:
        """All that is left runs to its end; then nothing is owed and the unit is free."""
        if self.is_broken:
            return
        while self.producers:
            self._publish(0, confirms=True)
        for turn in range(400):
            if not (self.broker or self.workers):
                break
            self.begin(0.5)
            if self.workers and (turn % 3 or not self.broker):
                worker = self.workers[0]
                self._finish(worker, "retry" if worker.retry else "success")
            elif self.broker:
                sent = min(self.broker, key=lambda sent: sent.due)
                while self.now < sent.due and self.workers:
                    self.begin(min(9.0, sent.due - self.now))
                self.now = max(self.now, sent.due)
                self._deliver(sent, 1.0)
        self.keep(not (self.broker or self.workers), "stuck unit: the broker never drains")
        if not self.setting.gives_up:
            self.keep(not self.books.owed, f"lost trigger: {sorted(self.books.owed)}")
        self._check_rest()

    def _check_rest(self) -> None:
        books = self.books
        answer = self.call("claim", "last", **OPTIONS)
        if not answer.ticket:
            kept = self.both.model.state.kept
            self.now = max(self.now, books.free_at, kept.until + self.skew if kept else 0.0)
            answer = self.call("claim", "last", **OPTIONS)
        self.keep(answer.ticket > 0, f"stuck unit: at rest claim answers {answer.status}")
        if self.setting.scope == "queued":
            return
        settings = {"where": "h:1:b", "lease": LEASE, **OPTIONS}
        started = self.call("start", Message("last", answer.ticket), "last", **settings)
        if started.status == "overlap":  # a crash, a lost finish, or a clock that stepped back
            self.now = max(self.now + LEASE if self.skew else self.now, books.free_at)
            started = self.call("start", Message("last", answer.ticket), "last2", **settings)
        self.keep(started.status == "started", f"stuck unit: at rest start: {started.status}")


# Functions and blocks that wait for their turn: is it fair, and does it go on?

PLACE, ASKS_EVERY, GRANT = 6.0, 2.0, 3.0


@dataclass(eq=False)
class Caller:
    """A call: it came, perhaps it waits for its turn, perhaps it runs."""

    number: int
    hears: bool = True  # what is published; it asks now and then in any case
    asks_at: float = 0.0
    fence: int = 0
    started_at: float = 0.0
    renewed_at: float = 0.0

    @property
    def message(self) -> Message:
        return Message(f"call{self.number}", -self.number)

    @property
    def attempt(self) -> str:
        return f"c{self.number}"


class Turns(RuleBasedStateMachine):
    """Calls that come, wait, run, give up and die; those who live do what `Turn` does."""

    client: redis.Redis | None = None

    def __init__(self) -> None:
        super().__init__()
        self.both = Lockstep(self.client)
        self.now, self.skew = START, 0.0
        self.limit = 1
        self.number = 0
        self.line: list[Caller] = []
        self.running: list[Caller] = []
        self.dead: list[tuple[Caller, float]] = []  # ran, and until when a lease may be theirs
        self.fence, self.fence_at = 0, START
        self.stuck_since = START
        self.is_broken = False

    @initialize(limit=st.sampled_from([1, 1, 2, 3]))
    def choose(self, limit: int) -> None:
        """Draw the slots."""
        self.limit = limit

    # what every event has in common

    def call(self, step: str, *args: Any, **options: Any) -> Any:
        """One step on the record; who hears that it is its turn asks at once."""
        self.both.now = self.now - self.skew
        answer = self.both.call(step, *args, **options)
        leases = self.both.model.state.running
        given = {each.attempt for each in leases if each.until > self.both.now}
        for caller in [each for each in self.line if each.hears and each.attempt in given]:
            if caller in self.line and caller.attempt not in args:
                self._ask(caller)
        return answer

    def begin(self, pause: float) -> None:
        """Time passes: who runs renews, who waits asks for its turn again."""
        self.is_broken = True
        end = self.now + pause
        while True:
            renewal = min((each.renewed_at + LEASE / 3 for each in self.running), default=end + 1)
            asking = min((each.asks_at for each in self.line), default=end + 1)
            if min(renewal, asking) > end:
                break
            self.now = max(self.now, min(renewal, asking))
            for caller in [
                each for each in self.running if each.renewed_at + LEASE / 3 <= self.now
            ]:
                self._renew(caller)
            for caller in [each for each in self.line if each.asks_at <= self.now]:
                if caller in self.line:
                    self._ask(caller)
            self._check_room()
        self.now = end

    def end(self) -> None:
        """After each event."""
        self._check_room()
        self.is_broken = False

    def _check_room(self) -> None:
        """A slot is never left unused for long while somebody waits for it."""
        busy = len(self.running) + sum(until > self.now for _, until in self.dead)
        if not self.line or busy >= self.limit:
            self.stuck_since = self.now
        # places of the dead lapse meanwhile, and slots that were given to them
        longest = PLACE + GRANT + ASKS_EVERY + 0.5
        stuck_for = self.now - self.stuck_since
        assert stuck_for <= longest, "stuck line: nobody gets a slot that is free"

    def _ask(self, caller: Caller, *, park: float = PLACE) -> bool:
        answer = self.call(
            "start", caller.message, caller.attempt, where="h:1:b", lease=LEASE, queued=False,
            give_up=True, limit=self.limit, park=park, **OPTIONS,
        )  # fmt: skip
        if answer.status == "started":
            self._started(caller, answer.fence)
            return True
        caller.asks_at = self.now + min(ASKS_EVERY, answer.remaining + 0.25)
        return False

    def _started(self, caller: Caller, fence: int) -> None:
        if caller in self.line:
            self.line.remove(caller)
        given = {each.attempt for each in self.both.model.state.running}
        for other in self.line:
            is_later = other.number > caller.number
            assert is_later or other.attempt in given, "unfair: who came later runs first"
        assert fence not in [each.fence for each in self.running], "two have one fence"
        grows = fence > self.fence or self.skew > 0 or self.now == self.fence_at
        # of several slots one may be taken up later than another that was given later
        assert grows or self.limit > 1, "a fence that does not grow"
        self.fence, self.fence_at = fence, self.now
        caller.fence, caller.started_at, caller.renewed_at = fence, self.now, self.now
        self.running.append(caller)
        # a live lease of somebody dead counts as long as nobody may take it
        busy = len(self.running) + sum(until > self.now for _, until in self.dead)
        assert busy <= self.limit, "more run at once than there are slots"

    def _renew(self, caller: Caller) -> None:
        answer = self.call(
            "renew", caller.message, caller.attempt, where="h:1:b", lease=LEASE,
            fence=caller.fence, held=self.now - caller.started_at, limit=self.limit,
        )  # fmt: skip
        assert answer == "renewed"
        caller.renewed_at = self.now

    def _finish(self, caller: Caller) -> None:
        self.running.remove(caller)
        answer = self.call(
            "finish", caller.message, caller.attempt, "success", mark="none", queued=False,
            **OPTIONS,
        )  # fmt: skip
        assert answer.status == "finished"

    def _new(self, *, hears: bool = True) -> Caller:
        self.number += 1
        return Caller(self.number, hears)

    # events

    @precondition(lambda self: len(self.line) < 6)
    @rule(pause=PAUSES, hears=st.booleans())
    def come_and_wait(self, pause: float, hears: bool) -> None:
        self.begin(pause)
        caller = self._new(hears=hears)
        self.line.append(caller)
        self._ask(caller)
        self.end()

    @rule(pause=PAUSES)
    def come_and_try(self, pause: float) -> None:
        """Somebody who does not wait, and does not get in before those who do."""
        self.begin(pause)
        self._ask(self._new(), park=0.0)
        self.end()

    @precondition(lambda self: self.running)
    @rule(pause=PAUSES, which=WHICH)
    def finish(self, pause: float, which: int) -> None:
        self.begin(pause)
        if self.running:
            self._finish(self.running[which % len(self.running)])
        self.end()

    @precondition(lambda self: self.line)
    @rule(pause=PAUSES, which=WHICH)
    def give_up(self, pause: float, which: int) -> None:
        self.begin(pause)
        if self.line:
            caller = self.line.pop(which % len(self.line))
            self.call("leave", caller.attempt)
        self.end()

    @precondition(lambda self: self.line)
    @rule(pause=PAUSES, which=WHICH)
    def die_in_the_line(self, pause: float, which: int) -> None:
        self.begin(pause)
        if self.line:
            self.line.pop(which % len(self.line))
        self.end()

    @precondition(lambda self: self.running)
    @rule(pause=PAUSES, which=WHICH)
    def crash(self, pause: float, which: int) -> None:
        self.begin(pause)
        if self.running:
            caller = self.running.pop(which % len(self.running))
            self.dead.append((caller, caller.renewed_at + LEASE))
        self.end()

    @precondition(lambda self: self.dead)
    @rule(pause=PAUSES, which=WHICH)
    def reap(self, pause: float, which: int) -> None:
        """Somebody on the same machine sees that it is dead."""
        self.begin(pause)
        caller, _ = self.dead.pop(which % len(self.dead))
        self.call("reap", caller.message.id, caller.attempt)
        self.end()

    @precondition(lambda self: self.running)
    @rule(pause=PAUSES, which=WHICH)
    def release(self, pause: float, which: int) -> None:
        """A person takes a lease away; its body goes on and is counted no more."""
        self.begin(pause)
        if self.running:
            caller = self.running.pop(which % len(self.running))
            answer = self.call("release", caller.message.id)
            assert answer.status == "released"
            lost = self.call(
                "renew", caller.message, caller.attempt, where="h:1:b", lease=LEASE,
                fence=caller.fence, held=1.0, limit=self.limit,
            )  # fmt: skip
            assert lost == "lost", "a released body takes its lease back"
        self.end()

    @rule(pause=PAUSES)
    def the_clock_steps_back(self, pause: float) -> None:
        self.begin(pause)
        self.skew += 600.0
        self.call("leave", "nobody")  # leases are shortened when somebody looks
        # one that has lapsed lives again, too, where nobody has looked since
        since = self.now - ASKS_EVERY
        self.dead = [(each, self.now + LEASE) for each, until in self.dead if until > since]
        self.end()

    # the end

    def teardown(self) -> None:
        """Whoever waits gets its turn, and then nothing is left."""
        if self.is_broken:
            return
        for _ in range(200):
            if not (self.line or self.running):
                break
            self.begin(1.0)
            for caller in list(self.running):
                self._finish(caller)
            self.end()
        assert self.line + self.running == [], "stuck line: somebody never gets its turn"
        self.now += LEASE + PLACE + GRANT
        self.call("leave", "nobody")
        left = self.both.model.state
        assert left.slots | left.line == {}, "a lease or a place is left"
        # names of released attempts last for as long as the clock stepped back, and harm nobody
        assert self.skew or self.both.model.in_redis() == {}, "something is left"


def run(machine: type[RuleBasedStateMachine], client: Any, examples: int, steps: int) -> None:
    """Run a machine over a client, or over the model alone."""
    bound = type(machine.__name__, (machine,), {"client": client})
    run_state_machine_as_test(bound, settings=profile(examples, steps))


def test_every_step_does_in_redis_what_it_does_in_the_model(client: redis.Redis) -> None:
    """Whatever is sent in whatever order: each answer and each field is that of the model."""
    run(AnySteps, client, examples=60, steps=50)


def test_slots_and_the_line_do_in_redis_what_they_do_in_the_model(client: redis.Redis) -> None:
    """The same where several run at once and calls wait for their turn."""
    run(AnySlots, client, examples=25, steps=50)


def test_the_promises_hold_whatever_fails(client: redis.Redis) -> None:
    """Never two at once, never a pile, never lost, never stuck, never stale; in lock step."""
    run(Promises, client, examples=50, steps=50)


def test_turns_are_fair_and_go_on_whatever_fails(client: redis.Redis) -> None:
    """Never more than the limit, first come first served, the dead delay others for seconds."""
    run(Turns, client, examples=15, steps=40)


def test_the_rules_themselves_keep_the_promises() -> None:
    """The same over the model alone, which is faster and so looks further."""
    run(Promises, None, examples=150, steps=60)


def test_the_rules_of_the_line_themselves_are_fair() -> None:
    """The same over the model alone."""
    run(Turns, None, examples=100, steps=60)
