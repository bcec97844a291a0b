"""Several attempts of one unit at once, and the line of those who wait for one of its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from once_core import protocol
from once_core.protocol import Message

if TYPE_CHECKING:
    import redis
    from _support.servers import Unit

BUSY = [Message(f"busy{number}", -100 - number) for number in range(4)]
"""Run, under the attempts b0, b1 and so on."""

CALLS = [Message(f"call{number}", -1 - number) for number in range(40)]
"""Calls of a function that wait for their turn, under the attempts c0, c1 and so on."""

GRANT = 3.0
"""Seconds in which a slot that was given to somebody in the line has to be taken up."""

PLACE = 6.0
"""Seconds for which a place in the line is kept."""


def fill(store: Unit, limit: int, **options: Any) -> None:
    """Take all slots."""
    for number in range(limit):
        answer = store.start(BUSY[number], f"b{number}", limit=limit, **options)
        assert answer.status == "started", answer


def end(store: Unit, number: int = 0) -> None:
    """One of those who took all slots ends."""
    assert store.finish(BUSY[number], f"b{number}", mark="none").status == "finished"


def ask(store: Unit, number: int, *, limit: int = 1, park: float = PLACE, **options: Any) -> str:
    """A call asks for its turn, and keeps its place in the line."""
    settings = {"queued": False, "give_up": True, "limit": limit, "park": park, **options}
    return store.start(CALLS[number], f"c{number}", **settings).status


def leave(store: Unit, number: int) -> None:
    """A call waits no more."""
    assert store.run(protocol.leave(store.key, f"c{number}")) == "left"


def attempts(store: Unit) -> list[str]:
    """Who has a slot, as the record says it, lapsed or not."""
    fields = store.fields()
    return [fields[name] for name in sorted(fields) if name[0] == "x" and name[-1] == "a"]


def line(store: Unit) -> list[str]:
    """Who waits, first come first."""
    fields = store.fields()
    places = [name[:-1] for name in fields if name[0] == "p" and name[-1] == "a"]
    return [fields[f"{place}a"] for place in sorted(places, key=lambda p: int(fields[f"{p}t"]))]


# slots


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_as_many_run_at_once_as_there_are_slots(store: Unit, limit: int) -> None:
    """With limit=N the first N start and the next one meets an overlap."""
    fill(store, limit)

    assert store.start(BUSY[3], "b3", limit=limit).status == "overlap"
    assert attempts(store) == [f"b{number}" for number in range(limit)]


def test_each_run_has_a_fence_of_its_own(store: Unit) -> None:
    """Fences grow from slot to slot as they do from run to run."""
    fences = [store.start(BUSY[n], f"b{n}", limit=3).fence for n in range(3)]

    assert fences == sorted(set(fences))


def test_a_slot_that_was_freed_is_taken_again(store: Unit) -> None:
    """The end of one run frees its slot and no other."""
    fill(store, 3)
    end(store, 1)

    assert store.start(BUSY[3], "b3", limit=3).status == "started"
    assert sorted(attempts(store)) == ["b0", "b2", "b3"]
    assert store.start(CALLS[0], "c0", limit=3).status == "overlap"


def test_a_message_runs_once_however_many_slots_are_free(store: Unit) -> None:
    """A copy of a message that runs is an overlap although other slots are free."""
    store.start(BUSY[0], "b0", limit=3)
    store.start(BUSY[1], "b1", limit=3)

    answer = store.start(BUSY[1], "copy", limit=3)

    assert (answer.status, answer.holder_id) == ("overlap", BUSY[1].id)


def test_a_copy_leaves_its_note_with_its_own_run(store: Unit) -> None:
    """Of several that run, the one that was given out again leaves a mark, and no other."""
    fill(store, 2)
    store.start(BUSY[1], "copy", limit=2)

    assert store.finish(BUSY[0], "b0").status == "finished"
    assert store.finish(BUSY[1], "b1").status == "due"


def test_a_crashed_run_frees_its_own_slot_after_one_lease(store: Unit) -> None:
    """Who renews keeps its slot; who does not loses it after one lease."""
    fill(store, 2)
    store.pass_time(30.0)
    store.renew(BUSY[1], "b1", limit=2)
    store.pass_time(30.0)

    assert store.start(BUSY[2], "b2", limit=2).status == "started"
    assert store.start(BUSY[3], "b3", limit=2).status == "overlap"
    assert sorted(attempts(store)) == ["b1", "b2"]


def test_a_clock_that_steps_back_holds_each_slot_for_one_lease(store: Unit) -> None:
    """After Redis' clock steps back an hour, the dead runs of all slots are over after a lease."""
    fill(store, 3)
    store.pass_time(-3600.0)
    assert store.start(BUSY[3], "b3", limit=3).status == "overlap"

    store.pass_time(60.0)

    for number in range(3):
        assert store.start(CALLS[number], f"c{number}", limit=3).status == "started"


def test_duplicates_shorten_the_leases_of_all_slots_after_the_clock_stepped_back(
    store: Unit,
) -> None:
    """Duplicates alone are enough for dead runs in all slots to be over after one lease."""
    store.send("m1", delay=9000.0, limit=3)
    fill(store, 3)
    store.pass_time(3000.0)
    for number in range(3):
        store.renew(BUSY[number], f"b{number}", limit=3)
    end(store)
    store.pass_time(-2000.0)
    assert store.claim("m2", limit=3).status == "waiting"

    store.pass_time(60.0)

    for number in range(3):
        assert store.start(CALLS[number], f"c{number}", limit=3).status == "started"


def test_an_overlap_names_whose_lease_ends_first(store: Unit) -> None:
    """Whoever comes back when that lease is over finds a slot, if nobody renews."""
    fill(store, 3)
    store.pass_time(10.0)
    store.renew(BUSY[0], "b0", limit=3)
    store.renew(BUSY[2], "b2", limit=3)

    answer = store.start(BUSY[3], "b3", limit=3)

    assert (answer.holder_id, answer.remaining) == (BUSY[1].id, 50.0)


def test_with_skip_a_call_is_skipped_when_all_slots_are_taken(store: Unit) -> None:
    """on_overlap skip ends a message only where no slot is free."""
    store.start(BUSY[0], "b0", limit=2)

    assert store.start(BUSY[1], "b1", limit=2, give_up=True).status == "started"
    assert store.start(BUSY[2], "b2", limit=2, give_up=True).status == "skipped"


def test_a_dead_child_frees_its_own_slot(store: Unit) -> None:
    """Reap ends the lease of its message, in whichever slot it ran."""
    fill(store, 3)
    seen = store.reap(BUSY[1].id)
    assert (seen.reaped, seen.attempt) == (False, "b1")

    assert store.reap(BUSY[1].id, "b1").reaped

    assert attempts(store) == ["b0", "b2"]


def test_reap_spares_whoever_runs_beside(store: Unit) -> None:
    """An attempt that is over, or another message's, frees no slot."""
    fill(store, 3)

    assert not store.reap(BUSY[1].id, "b2").reaped
    assert not store.reap("unknown", "b2").reaped
    assert store.reap(BUSY[1].id, "over") == protocol.Reap(False, "b1", "host:1:boot")
    assert attempts(store) == ["b0", "b1", "b2"]


def test_a_lost_lease_is_restored_beside_those_who_run(store: Unit) -> None:
    """After Redis came back empty, a body takes its lease again while a slot is free."""
    store.start(BUSY[0], "b0", limit=2)

    assert store.renew(BUSY[1], "b1", limit=2) == "restored"
    assert attempts(store) == ["b0", "b1"]


def test_a_lost_lease_is_not_restored_in_a_full_house(store: Unit) -> None:
    """Where others have taken all slots meanwhile, the lease is lost."""
    fill(store, 2)

    assert store.renew(BUSY[2], "b2", limit=2) == "lost"
    assert attempts(store) == ["b0", "b1"]


def test_a_lost_lease_is_not_restored_beside_another_attempt_of_its_message(store: Unit) -> None:
    """A message that was given out again and runs has one lease, however many slots are free."""
    store.start(BUSY[0], "again", limit=3)

    assert store.renew(BUSY[0], "b0", limit=3) == "lost"


# publishing


def test_until_done_refuses_only_when_all_slots_are_taken(store: Unit) -> None:
    """With limit=2 the second call is sent while one runs, and the third is refused."""
    store.start(BUSY[0], "b0", limit=2)
    sent = store.send("m1", until_done=True, limit=2)
    store.start(sent, "a1", limit=2)

    assert store.claim("m2", until_done=True, limit=2).status == "running"


@pytest.mark.parametrize("waits", [False, True])
def test_a_refusal_by_those_who_run_names_whose_lease_ends_first(store: Unit, waits: bool) -> None:
    """`remaining` is the time after which a slot is free if nobody renews, not that of slot 0."""
    if waits:
        store.send("m0", limit=2)
    fill(store, 2)
    store.pass_time(10.0)
    store.renew(BUSY[0], "b0", limit=2)

    answer = store.claim("m1", until_done=True, limit=2)

    assert (answer.status, answer.holder_id, answer.remaining) == ("running", BUSY[1].id, 50.0)
    assert answer.holder_ticket == BUSY[1].ticket
    assert store.fields()["x1z"] == "1"


def test_a_body_in_any_slot_may_call_itself_again(store: Unit) -> None:
    """until_done does not refuse a call from the body of a run under its own id."""
    fill(store, 2)

    assert store.claim(BUSY[1].id, until_done=True, own=True, limit=2).status == "claimed"


def test_what_runs_in_other_slots_refuses_no_call_of_a_body(store: Unit) -> None:
    """A body that is none of those who run is refused as anybody else."""
    fill(store, 2)

    answer = store.claim("m1", until_done=True, own=True, limit=2)

    assert answer.status == "running"


# a person, and what a person sees


def test_release_frees_all_slots(store: Unit) -> None:
    """Without a holder's name all runs lose their leases, each for good."""
    fill(store, 3)

    assert store.release().status == "released"

    assert attempts(store) == []
    for number in range(3):
        assert store.renew(BUSY[number], f"b{number}", limit=3) == "lost"


def test_release_of_one_frees_its_slot_alone(store: Unit) -> None:
    """With a holder's name the others go on, and what waits stays."""
    store.send("m1", limit=3)
    fill(store, 3)

    assert store.release(BUSY[1].id) == protocol.Release("released", BUSY[1].id)

    assert attempts(store) == ["b0", "b2"]
    assert store.renew(BUSY[1], "b1", limit=3) == "lost"
    assert store.renew(BUSY[2], "b2", limit=3) == "renewed"
    assert store.claim("m2", limit=3).status == "waiting"


def test_whoever_was_released_one_after_the_other_stays_released(store: Unit) -> None:
    """A second release does not give the first body its lease back."""
    fill(store, 3)
    store.release(BUSY[0].id)
    store.release(BUSY[1].id)
    store.release()

    for number in range(3):
        assert store.renew(BUSY[number], f"b{number}", limit=3) == "lost"


def test_a_result_that_was_not_stored_is_not_kept_while_another_runs(store: Unit) -> None:
    """Release of the message that keeps the unit ends that, whoever else runs."""
    fill(store, 2)
    store.finish(BUSY[0], "b0", keep_for=300.0)

    assert store.release(BUSY[0].id).status == "released"

    assert store.claim("m1", limit=2).status == "claimed"
    assert store.renew(BUSY[1], "b1", limit=2) == "renewed"


def test_what_a_person_sees_is_all_slots_and_the_line(store: Unit) -> None:
    """Inspect names everybody who runs and everybody who waits."""
    fill(store, 3)
    ask(store, 0, limit=3)
    ask(store, 1, limit=3)

    fields = store.run(protocol.inspect(store.key))

    assert [fields[f"x{number}i"] for number in range(3)] == [each.id for each in BUSY[:3]]
    assert [fields[f"p{number}i"] for number in range(2)] == [each.id for each in CALLS[:2]]


# the line


def test_who_waited_longest_gets_the_slot(store: Unit) -> None:
    """First come, first served: each end gives the slot to the next in the line."""
    fill(store, 1)
    assert [ask(store, number) for number in range(3)] == ["overlap"] * 3
    end(store)

    assert [ask(store, number) for number in (2, 1, 0)] == ["overlap", "overlap", "started"]
    store.finish(CALLS[0], "c0", mark="none")
    assert [ask(store, number) for number in (2, 1)] == ["overlap", "started"]
    store.finish(CALLS[1], "c1", mark="none")
    assert ask(store, 2) == "started"


def test_newcomers_stand_behind_those_who_wait(store: Unit) -> None:
    """A slot that was freed is not had by who comes at the right moment."""
    fill(store, 1)
    ask(store, 0)
    end(store)

    assert store.start(BUSY[1], "b1").status == "overlap"
    assert ask(store, 1, park=0.0) == "skipped"
    assert ask(store, 1) == "overlap"
    assert ask(store, 0) == "started"


@pytest.mark.parametrize("limit", [1, 3])
def test_newcomers_stand_behind_those_who_wait_for_a_crashed_run(store: Unit, limit: int) -> None:
    """A slot that lapsed belongs to the line, although nobody has said that it is free."""
    fill(store, limit)
    store.pass_time(58.0)
    ask(store, 0, limit=limit)
    for number in range(1, limit):
        store.renew(BUSY[number], f"b{number}", limit=limit)
    store.pass_time(2.0)

    newcomer = store.start(BUSY[3], "b3", limit=limit)

    assert newcomer.status == "overlap"
    assert ask(store, 0, limit=limit) == "started"


def test_who_is_next_takes_a_slot_that_lapsed_at_once(store: Unit) -> None:
    """Whoever is next need not wait for another one to say that the slot is its."""
    fill(store, 1)
    store.pass_time(58.0)
    ask(store, 0)
    store.pass_time(2.0)

    assert ask(store, 0) == "started"
    assert (attempts(store), line(store)) == (["c0"], [])


def test_each_slot_that_lapsed_goes_to_one_of_the_line(store: Unit) -> None:
    """A newcomer gets the last slot only when everybody before it has one."""
    fill(store, 3)
    store.pass_time(58.0)
    ask(store, 0, limit=3)
    ask(store, 1, limit=3)
    store.pass_time(2.0)

    assert ask(store, 2, limit=3) == "started"
    assert sorted(attempts(store)) == ["c0", "c1", "c2"]


def test_a_place_is_kept_by_asking_again(store: Unit) -> None:
    """Who goes on asking is not overtaken by those who came later, however long it takes."""
    fill(store, 1)
    ask(store, 0)
    for _ in range(10):
        store.pass_time(PLACE - 1.0)
        store.renew(BUSY[0], "b0")
        ask(store, 1)
        ask(store, 0)

    assert line(store) == ["c0", "c1"]


def test_a_place_that_was_freed_is_the_last_one(store: Unit) -> None:
    """Who comes when others have left the line stands at its end, whatever number is free."""
    fill(store, 1)
    for number in range(3):
        ask(store, number)
    leave(store, 0)
    ask(store, 3)

    assert line(store) == ["c1", "c2", "c3"]
    end(store)
    assert attempts(store) == ["c1"]


def test_a_slot_that_was_given_has_a_fence_of_that_moment(store: Unit) -> None:
    """Who waited while others ran has a greater fence than they, although it came before them."""
    fill(store, 1)
    ask(store, 0, limit=1)
    passed = store.start(CALLS[1], "c1", limit=3).fence
    end(store)
    store.finish(CALLS[1], "c1", mark="none")

    assert store.start(CALLS[0], "c0", park=PLACE).fence > passed


def test_a_place_is_lost_by_not_asking(store: Unit) -> None:
    """A process that died in the line is passed over when its place has lapsed."""
    fill(store, 1)
    ask(store, 0)
    store.pass_time(1.0)
    ask(store, 1)
    store.pass_time(PLACE - 1.0)
    end(store)

    assert attempts(store) == ["c1"]


def test_the_dead_in_the_line_lapse_although_the_clock_stepped_back(store: Unit) -> None:
    """After Redis' clock steps back an hour, places are lost by not asking as soon as ever."""
    fill(store, 1)
    for number in range(3):
        ask(store, number)
    store.pass_time(-3600.0)
    ask(store, 3)
    store.pass_time(PLACE - 1.0)
    ask(store, 3)
    store.pass_time(1.0)
    end(store)

    assert attempts(store) == ["c3"]


def test_the_record_of_a_run_outlives_the_line(store: Unit) -> None:
    """A key with a line ends with the last lease or place."""
    store.start(BUSY[0], "b0", lease=2.0)
    ask(store, 0)

    assert PLACE - 1.0 < store.life() <= PLACE


def test_a_slot_that_nobody_takes_up_goes_to_the_next(store: Unit) -> None:
    """Whoever died in the line delays the others by 3 s, not by a lease."""
    fill(store, 1)
    ask(store, 0)
    ask(store, 1)
    end(store)
    store.pass_time(GRANT - 0.1)
    assert ask(store, 1) == "overlap"
    store.pass_time(0.1)

    assert ask(store, 1) == "started"
    assert ask(store, 0) == "overlap"


def test_an_overlap_says_when_a_slot_that_was_given_away_lapses(store: Unit) -> None:
    """Whoever waits knows when to ask again if the one before it does not come."""
    fill(store, 1)
    ask(store, 0)
    end(store)

    answer = store.start(CALLS[1], "c1", park=PLACE)

    assert (answer.holder_id, answer.remaining) == (CALLS[0].id, GRANT)


@pytest.mark.parametrize("lease", [0.5, GRANT, 60.0])
def test_who_takes_up_its_slot_has_a_whole_lease(store: Unit, lease: float) -> None:
    """The lease begins when the slot is taken up, also where it is as short as the grant."""
    fill(store, 1)
    ask(store, 0)
    end(store)
    store.pass_time(GRANT - 0.1)

    answer = store.start(CALLS[0], "c0", where="here:2:boot", lease=lease, park=PLACE)

    assert answer.status == "started"
    seen = store.start(BUSY[1], "b1")
    assert (seen.where, seen.remaining) == ("here:2:boot", lease)


def test_the_fence_of_a_slot_that_was_given_is_a_new_one(store: Unit) -> None:
    """A store that checks fences refuses who ran before, also where the slot was handed over."""
    first = store.start(BUSY[0], "b0").fence
    ask(store, 0)
    end(store)

    given = store.start(CALLS[0], "c0", park=PLACE)

    assert given.fence > first
    assert store.start(CALLS[0], "c0", park=PLACE).fence == given.fence


def test_who_leaves_the_line_is_passed_over(store: Unit) -> None:
    """Who gave up gets no slot."""
    fill(store, 1)
    ask(store, 0)
    ask(store, 1)
    leave(store, 0)
    end(store)

    assert attempts(store) == ["c1"]


def test_who_leaves_after_it_was_given_a_slot_frees_it(store: Unit) -> None:
    """Between giving up and saying so it may have been its turn: the next has it at once."""
    fill(store, 1)
    ask(store, 0)
    ask(store, 1)
    end(store)
    leave(store, 0)

    assert attempts(store) == ["c1"]
    leave(store, 1)
    assert not store.redis.exists(store.key)


def test_leaving_without_a_place_changes_nothing(store: Unit) -> None:
    """Saying twice that one waits no more frees nobody else's slot."""
    fill(store, 1)
    ask(store, 0)
    before = store.fields()

    leave(store, 1)

    assert store.fields() == before


def test_nothing_is_left_when_all_have_had_their_turn(store: Unit) -> None:
    """The line leaves nothing behind."""
    fill(store, 2)
    ask(store, 0, limit=2)
    ask(store, 1, limit=2)
    end(store, 1)
    end(store, 0)
    for number in (1, 0):
        assert ask(store, number, limit=2) == "started"
        store.finish(CALLS[number], f"c{number}", mark="none")

    assert not store.redis.exists(store.key)


def test_a_dead_child_hands_its_slot_over(store: Unit) -> None:
    """Reap gives the slot to whoever waits, as an end does."""
    fill(store, 1)
    ask(store, 0)

    store.reap(BUSY[0].id, "b0")

    assert attempts(store) == ["c0"]


def test_a_released_run_hands_its_slot_over(store: Unit) -> None:
    """Release of all gives each slot to one of the line, release of one gives its own."""
    fill(store, 3)
    for number in range(4):
        ask(store, number, limit=3)

    store.release(BUSY[1].id)
    assert sorted(attempts(store)) == ["b0", "b2", "c0"]

    assert ask(store, 0, limit=3) == "started"
    store.release()
    assert sorted(attempts(store)) == ["c1", "c2", "c3"]


def test_who_was_given_a_slot_that_a_person_frees_gets_another_turn(store: Unit) -> None:
    """Released before it ran, it starts later like anybody, and its lease is renewed."""
    fill(store, 1)
    ask(store, 0)
    end(store)
    store.release()

    assert ask(store, 0) == "started"
    assert store.renew(CALLS[0], "c0") == "renewed"


def test_a_turn_is_published_to_whom_it_is_given(store: Unit) -> None:
    """One word on the channel of the attempt that was given the slot, and none to the others."""
    fill(store, 1)
    ask(store, 0)
    ask(store, 1)
    listener = store.redis.pubsub(ignore_subscribe_messages=False)
    channels = [protocol.turn_channel(store.key, f"c{number}") for number in range(2)]
    listener.subscribe(*channels)
    assert {listener.get_message(timeout=5.0)["type"] for _ in channels} == {"subscribe"}

    end(store)

    said = listener.get_message(timeout=5.0)
    assert said is not None
    assert (said["type"], said["channel"].decode()) == ("message", channels[0])
    assert listener.get_message(timeout=0.1) is None
    listener.close()


def test_a_line_has_an_end(store: Unit) -> None:
    """Whoever comes when 128 wait asks again without a place, and gets one when one is free."""
    fill(store, 1)
    until = str(round((store.clock.now + PLACE) * 1000))
    for number in range(100, 227):
        place = {"a": f"c{number}", "b": "h:1:b", "i": f"call{number}", "t": number, "u": until}
        fields = {f"p{number}{letter}": value for letter, value in place.items()}
        store.redis.hset(store.key, mapping=fields)
    assert ask(store, 0) == "overlap"
    assert ask(store, 1) == "skipped"
    assert len(line(store)) == 128
    store.pass_time(PLACE - 1.0)
    assert ask(store, 0) == "overlap"
    store.pass_time(1.0)

    assert ask(store, 1) == "overlap"
    assert line(store) == ["c0", "c1"]


# workers of other versions and settings


def test_a_worker_with_one_slot_understands_a_record_of_three(store: Unit) -> None:
    """While a deployment lowers the limit, nobody starts before all others but limit-1 ended."""
    fill(store, 3)

    assert store.start(BUSY[3], "b3").status == "overlap"
    end(store, 0)
    end(store, 1)
    assert store.start(BUSY[3], "b3").status == "overlap"
    assert store.renew(BUSY[2], "b2") == "renewed"
    end(store, 2)
    assert store.start(BUSY[3], "b3").status == "started"


def test_a_call_with_one_slot_is_given_none_beside_others(store: Unit) -> None:
    """Who waits with limit=1 has its turn when it is alone, also where three ran before."""
    fill(store, 3)
    ask(store, 0, limit=1)
    end(store, 0)

    assert ask(store, 0, limit=1) == "overlap"
    end(store, 1)
    end(store, 2)
    assert ask(store, 0, limit=1) == "started"


def test_a_worker_with_three_slots_understands_a_record_of_one(store: Unit) -> None:
    """While a deployment raises the limit, the new workers use the slots beside the old one."""
    store.start(store.send("m1"), "old")

    assert store.start(BUSY[0], "b0", limit=3).status == "started"
    assert store.start(BUSY[1], "b1", limit=3).status == "started"
    assert store.start(BUSY[2], "b2", limit=3).status == "overlap"
    assert store.renew(Message("m1"), "old") == "renewed"


def test_a_call_with_three_slots_gets_one_beside_those_with_one(store: Unit) -> None:
    """Who waits among workers with limit=1 asks again and finds the slots that it knows of."""
    fill(store, 1)
    ask(store, 0, limit=1)

    assert ask(store, 1, limit=3) == "started"


@pytest.mark.parametrize("limit", [1, 3])
def test_the_short_way_of_claim_answers_as_the_long_one(store: Unit, limit: int) -> None:
    """Whoever runs in whichever slot: a duplicate is told the same either way."""
    fill(store, 3)
    message = store.send("m1", limit=3)
    for taken in (3, 2, 1, 0):
        for until_done in (False, True):
            options = {"until_done": until_done, "limit": limit}
            short = store.claim("m2", **options)
            # a retry takes the long way
            assert short == store.claim("m2", retries=1, **options), (taken, until_done)
        if taken:
            end(store, 3 - taken)
    assert store.start(message, limit=limit).status == "started"


@pytest.mark.parametrize("limit", [1, 3])
def test_the_short_ways_of_start_and_finish_do_as_the_long_ones(store: Unit, limit: int) -> None:
    """What is written, said and left behind is the same with a field that asks for the long way."""
    seen = []
    for stray in (False, True):
        store.clock.now = 1_800_000_000.0
        store.redis.delete(store.key)
        message = store.send("m1", limit=limit)
        if stray:
            store.redis.hset(store.key, "!new", "1")
        started = store.start(message, limit=limit)
        fields = store.fields()
        fields.pop("!new", None)
        finished = store.finish(message)
        left = {name for name in store.fields() if name not in ("!new", "l", "v")}
        seen.append((started, fields, finished, left))

    assert seen[0] == seen[1]


def test_fields_of_a_newer_version_survive_slots_and_line(store: Unit) -> None:
    """Parts and letters that this version does not know stay as they are, with their slot."""
    fill(store, 2)
    ask(store, 0, limit=2)
    strange = {"x0F": "1", "p0F": "2", "g7u": "3", "!": "4"}
    store.redis.hset(store.key, mapping=strange)

    store.renew(BUSY[0], "b0", limit=2)
    ask(store, 0, limit=2)
    ask(store, 1, limit=2)

    assert {name: store.fields().get(name) for name in strange} == strange
    end(store, 0)
    end(store, 1)
    left = store.fields()
    assert (left["g7u"], left["!"]) == ("3", "4")


def test_a_record_with_a_long_line_stays_small(store: Unit) -> None:
    """With 30 who wait and slots taken, the hash is a listpack and no value is over 64 bytes."""
    store.send("f" * 36, limit=3)
    fill(store, 3, where="h" * 40 + ":1234567:" + "b" * 8)
    for number in range(30):
        ask(store, number, limit=3, where="h" * 40 + ":1234567:" + "b" * 8)

    assert len(line(store)) == 30
    assert max(map(len, store.fields().values())) <= 64
    if type(store.redis).__module__.startswith("redis."):
        assert store.redis.object("encoding", store.key).decode() in ("listpack", "ziplist")


# servers that refuse


def test_thousands_that_die_in_the_line_end_no_lease(store: Unit) -> None:
    """A process with thousands of waiting coroutines that is killed harms nobody who runs."""
    fill(store, 1)
    until = str(round((store.clock.now + PLACE) * 1000))
    for number in range(3000):
        place = {"a": f"d{number}", "b": "h:1:b", "i": f"d{number}", "t": str(number), "u": until}
        fields = {f"p{number}{letter}": value for letter, value in place.items()}
        store.redis.hset(store.key, mapping=fields)
    store.pass_time(PLACE)

    assert store.renew(BUSY[0], "b0") == "renewed"
    assert line(store) == []
    end(store)
    assert not store.redis.exists(store.key)


@pytest.mark.parametrize("client", ["server"], indirect=True)  # fakeredis knows no ACLs
def test_a_user_who_may_not_publish_frees_its_lease(client: redis.Redis, store: Unit) -> None:
    """The word on the channel is an accelerator: without channels slots change hands."""
    fill(store, 1)
    ask(store, 0)
    client.acl_setuser(
        "mute", enabled=True, nopass=True, keys=["*"], channels=[], commands=["+@all"],
        reset=True,
    )  # fmt: skip
    try:
        client.execute_command("AUTH", "mute", "any")
        end(store)
    finally:
        client.execute_command("AUTH", "default", "any")
        client.acl_deluser("mute")

    assert ask(store, 0) == "started"


@pytest.mark.parametrize("client", ["server"], indirect=True)  # fakeredis is never full
def test_a_full_server_still_hands_slots_over(client: redis.Redis, store: Unit) -> None:
    """Where nothing more can be written, leases go on to whoever waits."""
    fill(store, 1)
    ask(store, 0)
    client.config_set("maxmemory", 1)
    try:
        end(store)
    finally:
        client.config_set("maxmemory", 0)

    assert ask(store, 0) == "started"
