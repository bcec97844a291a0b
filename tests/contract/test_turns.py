"""When messages that were put back come again: one after the other, and not all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from once_core import protocol
from once_core.delays import delay_after
from once_core.protocol import Message

if TYPE_CHECKING:
    from _support.servers import Unit

RUNNING = {"queued": False}
"""Of scope "running": any number of messages is about."""

OTHERS = [Message(f"m{number}", -1 - number) for number in range(60)]


def learn(store: Unit, length: float) -> None:
    """A run of this length ends while one message is away, which it teaches the record."""
    assert store.start(Message("first", -100), "a-first", **RUNNING).status == "started"
    assert meet(store, 0) == 0.0, "nobody knows yet how long a run takes"
    store.pass_time(length)
    store.finish(Message("first", -100), "a-first")
    assert store.start(Message("next", -101), "a-next", **RUNNING).status == "started"


def meet(store: Unit, number: int, **options: bool | int) -> float:
    """A message overlaps; the seconds after which it may come back."""
    answer = store.start(OTHERS[number], f"a{number}", **{**RUNNING, **options})
    assert answer.status == "overlap"
    return answer.turn


def test_each_comes_back_when_those_before_it_have_run(store: Unit) -> None:
    """A run takes 2 s: in 2, 4, 6 s, wherever in the run they asked."""
    learn(store, 2.0)

    assert [meet(store, number) for number in range(1, 4)] == [2.0, 4.0, 6.0]
    store.pass_time(0.5)
    assert meet(store, 4) == 7.5


def test_with_several_slots_they_come_back_as_often_as_one_ends(store: Unit) -> None:
    """Two run at once, 2 s each: one every second."""
    learn(store, 2.0)
    store.start(Message("beside", -102), "a-beside", **RUNNING, limit=2)

    assert [meet(store, number, limit=2) for number in range(1, 4)] == [2.0, 3.0, 4.0]


def test_who_would_come_back_after_the_longest_deferral_is_told_nothing(store: Unit) -> None:
    """It comes back within 30 s, and asks again."""
    learn(store, 20.0)

    assert [meet(store, number) for number in range(1, 4)] == [20.0, 0.0, 0.0]


def test_a_run_that_takes_longer_than_others_is_asked_for_ever_more_rarely(store: Unit) -> None:
    """After an eighth of what it has run by then: the unit does not stand free for long."""
    learn(store, 8.0)
    waits = []
    for _ in range(3):
        waits.append(meet(store, 0, again=True))
        store.pass_time(waits[-1])

    assert waits == [8.0, 1.0, 1.125]


def test_a_start_that_was_taken_back_waits_as_before(store: Unit) -> None:
    """Its answer was lost, or too few replicas had it: no trigger is sent beside it meanwhile."""
    message = store.send("m1")
    store.start(message)

    store.run(protocol.take_back(store.key, message, "a1", **store.WAITING))

    assert store.claim("m2").status == "waiting"
    assert store.start(message, "a2").status == "started"
    assert store.claim("m2").status == "claimed"


def test_a_start_that_nobody_heard_is_not_taken_back(store: Unit) -> None:
    """Its message waits as it did, or another runs."""
    message = store.send("m1")

    store.run(protocol.take_back(store.key, message, "a1", **store.WAITING))

    assert store.fields()["wt"] == str(message.ticket)
    assert "nt" not in store.fields()


def test_a_retry_whose_start_was_taken_back_is_the_same_retry(store: Unit) -> None:
    """It is not taken for one that has ended in another retry."""
    message = store.send("m1")
    store.start(message)
    store.finish(message, outcome="retry")
    retry = message._replace(retries=1)
    store.start(retry, "a2")

    store.run(protocol.take_back(store.key, retry, "a2", **store.WAITING))

    assert store.claim("m2").status == "waiting"
    assert store.start(retry, "a3").status == "started"


def test_who_is_away_alone_does_not_wait_for_its_own_turn(store: Unit) -> None:
    """It came a moment too early, and is not sent behind itself."""
    learn(store, 4.0)
    store.pass_time(3.0)
    assert meet(store, 0, again=True) == 1.0
    store.pass_time(1.0)

    assert meet(store, 0, again=True) == 0.5


def test_turns_after_the_end_of_the_lease_are_not_given_away(store: Unit) -> None:
    """By then a message comes back in any case, for the holder may be dead."""
    learn(store, 10.0)
    store.renew(Message("next", -101), "a-next", lease=12.0)

    assert [meet(store, number) for number in (1, 2, 3)] == [10.0, 0.0, 0.0]


def test_nobody_comes_back_at_once(store: Unit) -> None:
    """Where runs are over in no time a message is put back for a tenth of a second all the same."""
    learn(store, 0.001)

    assert meet(store, 1) == 0.1


def test_runs_of_late_count_for_a_quarter(store: Unit) -> None:
    """One that took ten times as long as others does not put all off for as long."""
    learn(store, 1.0)
    meet(store, 1)
    store.pass_time(5.0)
    store.finish(Message("next", -101), "a-next")
    store.start(Message("third", -103), "a-third", **RUNNING)

    assert meet(store, 2) == 2.0


def test_nothing_is_left_when_all_who_were_put_back_have_run(store: Unit) -> None:
    """Neither of those who were told when to come back nor of those who were not."""
    learn(store, 1.0)
    meet(store, 1)
    meet(store, 0, again=True)
    store.finish(Message("next", -101), "a-next")
    for number in range(2):
        assert store.start(OTHERS[number], "a", **RUNNING, again=True).status == "started"
        assert ("te" in store.fields()) is True
        store.finish(OTHERS[number], "a")

    assert store.fields() == {}


def test_messages_that_never_come_back_are_forgotten(store: Unit) -> None:
    """Their queue was purged: a minute later nobody waits for them."""
    learn(store, 1.0)
    store.finish(Message("next", -101), "a-next")
    assert list(store.fields()) != []

    store.pass_time(61)

    assert store.start(Message("m", -9), "a", **RUNNING).status == "started"
    store.finish(Message("m", -9), "a")
    assert store.fields() == {}


def test_duplicates_forget_turns_that_are_over(store: Unit) -> None:
    """As every step does."""
    learn(store, 1.0)
    store.send("waits", heal_after=600.0)
    store.pass_time(61)

    assert store.claim("again").status == "waiting"
    assert [name for name in store.fields() if name[0] == "t"] == []


def test_a_clock_that_steps_back_puts_nobody_off(store: Unit) -> None:
    """What was told by the old clock is forgotten."""
    learn(store, 2.0)
    meet(store, 1)

    store.pass_time(-3600)

    assert meet(store, 2) == 0.0
    store.pass_time(2.0)
    store.finish(Message("next", -101), "a-next")
    store.start(Message("third", -103), "a-third", **RUNNING)
    assert meet(store, 3) > 0.0


def test_a_copy_of_what_runs_is_told_nothing(store: Unit) -> None:
    """It takes nobody's turn: there is nothing left to run for it."""
    learn(store, 2.0)

    assert store.start(Message("next", -101), "copy", **RUNNING).turn == 0.0
    assert meet(store, 1) == 2.0


def test_the_delay_is_the_turn(store: Unit) -> None:
    """Not jittered, for turns differ; and never longer than the broker keeps a message."""
    learn(store, 2.0)
    answer = store.start(OTHERS[1], "a1", **RUNNING)

    assert delay_after(answer, 5, 30.0) == 2.0
    assert delay_after(answer, 5, 0.5) == 0.5
