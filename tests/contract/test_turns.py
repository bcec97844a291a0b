"""When messages that were put back come again: one after the other, and not all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """After as long again as it has run by then."""
    learn(store, 1.0)
    waits = []
    for _ in range(4):
        waits.append(meet(store, 1, again=True))
        store.pass_time(waits[-1])

    assert waits == [1.0, 1.0, 2.0, 4.0]


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
