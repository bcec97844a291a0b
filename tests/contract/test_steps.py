"""What each step of the record does: one test a rule, on fakeredis and on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from once_core.protocol import Message

if TYPE_CHECKING:
    from _support.servers import Unit

BEAT = Message("from-beat")
"""Sent by a program without this library."""


def copy_of(message: Message, message_id: str) -> Message:
    """What a refresh sends: the same ticket under another id."""
    return Message(message_id, message.ticket)


def retry_of(message: Message) -> Message:
    """The same message, published again by its own run."""
    return Message(message.id, message.ticket, message.retries + 1)


def run(store: Unit, message: Message, attempt: str = "a1") -> None:
    """Start and finish a message."""
    assert store.start(message, attempt).status == "started"
    assert store.finish(message, attempt).status == "finished"


# before every step


def test_idle_work_leaves_nothing_behind(store: Unit) -> None:
    """After a run without a retry, a mark or a window, the key is gone."""
    run(store, store.send())

    assert not store.redis.exists(store.key)


def test_the_key_ends_with_the_latest_of_its_parts(store: Unit) -> None:
    """No key lives for ever: it ends when the last thing it remembers does."""
    store.send(ttl=100.0)
    assert 95.0 < store.life() <= 100.0

    store.start(BEAT, lease=60.0)

    assert 95.0 < store.life() <= 100.0
    store.renew(BEAT, lease=300.0)
    assert 295.0 < store.life() <= 300.0


def test_what_waits_is_forgotten_after_its_ttl(store: Unit) -> None:
    """A message that never came refuses nobody for longer than the ttl."""
    store.send(ttl=30.0)

    store.pass_time(30.0)

    assert store.claim("m2").status == "claimed"


def test_a_clock_that_steps_back_holds_the_unit_for_one_lease(store: Unit) -> None:
    """After Redis' clock steps back an hour, a dead run is over after a lease, not an hour."""
    message = store.send()
    store.start(message)
    store.pass_time(-3600.0)
    assert store.start(BEAT, "a2").status == "overlap"

    store.pass_time(60.0)

    assert store.start(BEAT, "a3").status == "started"


def test_a_clock_that_steps_back_lets_a_purged_queue_run_again(store: Unit) -> None:
    """What was claimed in what is now the future may heal at once, and then slowly again."""
    store.send(delay=600.0, ttl=700.0)
    store.pass_time(-3600.0)

    assert store.claim("m2").status == "refreshed"
    assert store.claim("m3").remaining == 60.0


def test_a_clock_that_steps_back_does_not_lengthen_the_life_of_what_waits(store: Unit) -> None:
    """What waits is forgotten when as much time has passed as it would have been without."""
    store.send(delay=600.0, ttl=700.0)
    store.pass_time(-3600.0)
    store.withdraw(BEAT)  # any step will do

    store.pass_time(1300.0)

    assert store.claim("m2").status == "claimed"


def test_a_retry_behind_moves_up_when_the_first_is_over(store: Unit) -> None:
    """A retry that waited behind another message waits alone once that one is forgotten."""
    running = store.send("m1")
    store.start(running)
    store.send("m2", ttl=30.0)
    store.finish(running, outcome="retry", delay=5.0)

    store.pass_time(30.0)

    assert store.claim("m3").holder_id == "m1"


def test_two_claims_in_one_microsecond_get_two_tickets(store: Unit) -> None:
    """A ticket is given out once, whatever the clock says."""
    first = store.send("m1", replace=True)
    second = store.send("m2", replace=True)
    store.pass_time(-100.0)
    third = store.send("m3", replace=True)

    assert first.ticket < second.ticket < third.ticket


# claim


def test_one_waits_and_the_next_is_refused(store: Unit) -> None:
    """A second call names the message that waits, and says when to come again."""
    store.send("m1")

    answer = store.claim("m2")

    assert (answer.status, answer.holder_id, answer.remaining) == ("waiting", "m1", 60.0)
    assert answer.is_duplicate


def test_one_runs_and_one_may_wait(store: Unit) -> None:
    """A trigger during the run is followed by a run that starts after it."""
    store.start(store.send("m1"))

    assert store.claim("m2").status == "claimed"
    assert store.claim("m3").holder_id == "m2"


def test_until_done_refuses_while_it_runs(store: Unit) -> None:
    """With `until_done` a trigger during the run is refused, and told by whom."""
    message = store.send("m1")
    store.start(message)

    answer = store.claim("m2", until_done=True)

    assert (answer.status, answer.holder_id, answer.remaining) == ("running", "m1", 60.0)
    store.finish(message)
    assert store.claim("m2", until_done=True).status == "claimed"


def test_a_body_may_call_itself_again_under_its_own_id(store: Unit) -> None:
    """`Task.replace` into the same unit is not refused by the run that makes it."""
    store.start(store.send("m1"))

    assert store.claim("m1", until_done=True, own=True).status == "claimed"
    assert store.claim("m2", until_done=True, own=True).status == "running"


def test_finished_work_is_kept_for_a_while(store: Unit) -> None:
    """With `keep_for` a call soon after a success is refused; after a failure it is not."""
    message = store.send("m1")
    store.start(message)
    store.finish(message, keep_for=20.0)
    store.pass_time(5.0)

    answer = store.claim("m2")

    assert (answer.status, answer.holder_id, answer.remaining) == ("kept", "m1", 15.0)
    store.pass_time(15.0)
    failing = store.send("m3")
    store.start(failing)
    store.finish(failing, outcome="failure", keep_for=20.0)
    assert store.claim("m4").status == "claimed"


def test_a_purged_queue_is_runnable_again_after_a_minute(store: Unit) -> None:
    """A message that does not come lets another be sent a minute after it was due."""
    lost = store.send("m1", delay=10.0)
    store.pass_time(69.75)
    assert store.claim("m2", delay=10.0).status == "waiting"
    store.pass_time(0.25)

    answer = store.claim("m3", delay=10.0)

    assert (answer.status, answer.ticket, answer.delay) == ("refreshed", lost.ticket, 10.0)


def test_a_backlog_gets_a_copy_per_doubling_of_its_age(store: Unit) -> None:
    """Copies come after 1, 2, 4, 8 minutes: a long backlog does not become a pile."""
    store.send("m1")
    ages = []
    for minute in range(1, 17):
        store.pass_time(60.0)
        if store.claim(f"copy-{minute}").status == "refreshed":
            ages.append(minute)

    assert ages == [1, 2, 4, 8, 16]


def test_after_a_refresh_the_newest_copy_is_named(store: Unit) -> None:
    """Duplicates get the handle of the message that is most likely to run."""
    store.send("m1")
    store.pass_time(60.0)
    store.send("m2")

    assert store.claim("m3").holder_id == "m2"


def test_a_refreshed_message_waits_for_its_ttl_again(store: Unit) -> None:
    """A copy is remembered as long as a fresh message."""
    store.send("m1", ttl=100.0)
    store.pass_time(90.0)
    store.send("m2", ttl=100.0)
    store.pass_time(90.0)

    assert store.claim("m3").status == "refreshed"


def test_ones_own_ghost_is_taken_over_at_once(store: Unit) -> None:
    """A claim whose answer was lost does not refuse its own producer; others wait for it."""
    store.claim("m1", nonce="mine")
    assert store.claim("m2", nonce="theirs", lost="theirs").status == "waiting"

    assert store.claim("m3", nonce="mine", lost="mine").status == "refreshed"


def test_a_heal_time_below_a_millisecond_is_no_error(store: Unit) -> None:
    """Whatever `heal_after` the options take, the second claim is answered."""
    store.send("m1", replace=True, heal_after=0.0001)
    store.pass_time(1.0)

    assert store.claim("m2", heal_after=0.0001).status == "refreshed"


def test_lost_answers_in_a_row_do_not_make_others_wait_longer(store: Unit) -> None:
    """After any number of claims whose answers were lost, others may publish after a minute."""
    store.claim("m1", nonce="n")
    for number in range(5):
        assert store.claim(f"g{number}", nonce="n", lost="n").status == "refreshed"

    assert store.claim("m2").remaining == 60.0


def test_the_last_of_a_burst_runs(store: Unit) -> None:
    """With `replace` the newer message takes over, and the older one is settled."""
    older = store.send("m1", replace=True)
    newer = store.send("m2", replace=True)
    store.confirm(newer)

    assert store.start(older).status == "superseded"
    assert store.start(newer).status == "started"


def test_a_burst_is_delayed_no_longer_than_debounce_max(store: Unit) -> None:
    """Each call of a burst delays it, but never beyond the bound from its first call."""
    delays = []
    for number in range(6):
        answer = store.claim(f"m{number}", replace=True, delay=5.0, latest=12.0)
        delays.append(answer.delay)
        store.pass_time(3.0)

    assert delays == [5.0, 5.0, 5.0, 3.0, 0.0, 0.0]


def test_a_replaced_message_is_remembered_as_long_as_it_may_live(store: Unit) -> None:
    """A message far away that was replaced is still known as dead when it comes."""
    older = store.send("m1", replace=True, delay=10_000.0)
    newer = store.send("m2", replace=True)
    store.confirm(newer)
    run(store, newer)
    store.pass_time(10_000.0)

    assert store.start(older, "a2").status == "superseded"


def test_an_older_retry_never_runs_after_a_newer_payload(store: Unit) -> None:
    """A retry is settled when a replacing call came while nothing waited."""
    older = store.send("m1", replace=True)
    store.start(older)
    store.pass_time(1.0)
    newer = store.send("m2", replace=True)
    store.finish(older, outcome="retry")
    run(store, newer, "a2")

    assert store.start(retry_of(older), "a3").status == "superseded"


def test_equal_calls_of_a_burst_publish_nothing(store: Unit) -> None:
    """A call with the arguments that wait only moves them; other arguments take over."""
    message = store.send("m1", replace=True, delay=5.0, fingerprint="A")
    store.pass_time(3.0)

    moved = store.claim("m2", replace=True, delay=5.0, fingerprint="A")

    assert (moved.status, moved.holder_id, moved.remaining) == ("moved", "m1", 5.0)
    store.pass_time(2.0)
    early = store.start(message)
    assert (early.status, early.remaining) == ("early", 3.0)
    assert store.claim("m3", replace=True, delay=5.0, fingerprint="B").status == "replaced"


def test_equal_calls_heal_what_never_came(store: Unit) -> None:
    """A burst of equal calls whose message was lost publishes again a minute after it was due."""
    store.send("m1", replace=True, fingerprint="A")
    store.pass_time(60.0)

    assert store.claim("m2", replace=True, fingerprint="A").status == "replaced"


def test_a_message_that_expires_refuses_nobody_afterwards(store: Unit) -> None:
    """What the broker will drop is forgotten when it is dropped, not at its ttl."""
    store.send("m1", expires=20.0)
    assert store.life() <= 20.0
    store.pass_time(19.75)
    assert store.claim("m2").status == "waiting"
    store.pass_time(0.25)

    assert store.claim("m3").status == "claimed"


def test_a_replacing_message_that_expires_refuses_nobody_afterwards(store: Unit) -> None:
    """The same with `replace`; and no key is without an end."""
    store.send("m1", replace=True, expires=20.0)

    assert 15.0 < store.life() <= 20.0


def test_refusals_are_counted_for_whoever_asks_why(store: Unit) -> None:
    """The record says how many calls the waiting message stood for."""
    store.send("m1")
    for number in range(3):
        store.claim(f"d{number}")

    assert store.fields()["wz"] == "3"


# withdraw


def test_a_publish_that_failed_refuses_nobody(store: Unit) -> None:
    """The broker did not take it: the next call is sent at once."""
    message = store.send("m1")

    assert store.withdraw(message) == "withdrawn"
    assert store.claim("m2").status == "claimed"


def test_withdrawing_another_message_changes_nothing(store: Unit) -> None:
    """Only the message that waits can take its part away."""
    message = store.send("m1")

    assert store.withdraw(Message("m1", message.ticket + 1)) == "not_yours"
    assert store.claim("m2").status == "waiting"


def test_a_revoked_retry_refuses_nobody(store: Unit) -> None:
    """The part of a retry has a newer ticket than its message, and is found all the same."""
    message = store.send("m1")
    store.start(message)
    store.finish(message, outcome="retry", delay=300.0)

    assert store.withdraw(retry_of(message)) == "withdrawn"
    assert store.claim("m2").status == "claimed"


def test_a_revoked_retry_behind_another_message_goes(store: Unit) -> None:
    """A retry is withdrawn from behind the message that waits, which stays."""
    message = store.send("m1")
    store.start(message)
    store.send("m2")
    store.finish(message, outcome="retry", delay=300.0)

    assert store.withdraw(retry_of(message)) == "withdrawn"
    assert store.claim("m3").holder_id == "m2"
    assert "nu" not in store.fields()


def test_a_withdrawn_message_with_copies_heals_at_once_but_is_not_forgotten(store: Unit) -> None:
    """Its copy may still be there: one more may be sent, and the wait is halved, not reset."""
    message = store.send("m1")
    for _ in range(2):
        store.pass_time(120.0)
        store.send("copy")
    store.withdraw(message)

    assert store.claim("m3").status == "refreshed"
    assert store.claim("m4").remaining == 120.0


def test_an_unclaimed_message_can_be_withdrawn(store: Unit) -> None:
    """A message without ticket is known by its id."""
    store.start(store.send("m1"))
    store.start(BEAT, "a2")

    assert store.withdraw(BEAT) == "withdrawn"
    assert store.claim("m2").status == "claimed"


# start


def test_a_run_frees_the_waiting_slot_and_takes_the_lease(store: Unit) -> None:
    """What starts waits no more, and says how long it did."""
    message = store.send("m1")
    store.pass_time(2.5)

    answer = store.start(message)

    assert (answer.status, answer.found, answer.waited) == ("started", True, 2.5)
    assert "wt" not in store.fields()


def test_a_lost_answer_of_start_is_asked_again(store: Unit) -> None:
    """The same attempt gets the same fence, and does not overlap with itself."""
    message = store.send("m1")
    first = store.start(message, "a1")

    again = store.start(message, "a1")

    assert ("started", first.fence) == (again.status, again.fence)


def test_two_do_not_run_at_once(store: Unit) -> None:
    """A second delivery is put back, and told who runs, where, since when and until when."""
    store.start(store.send("m1"))
    store.pass_time(1.0)

    answer = store.start(store.send("m2"), "a2")

    assert (answer.status, answer.holder_id, answer.where) == ("overlap", "m1", "host:1:boot")
    assert (answer.since, answer.remaining) == (store.clock.now - 1.0, 59.0)


def test_a_crashed_run_is_over_after_one_lease(store: Unit) -> None:
    """Whoever died, the unit is free when the lease ends."""
    store.start(store.send("m1"))
    store.pass_time(60.0)

    assert store.start(BEAT, "a2").status == "started"


def test_a_crashed_message_that_comes_again_runs(store: Unit) -> None:
    """The delivery after a crash is no duplicate, also if its ticket had copies."""
    message = store.send("m1")
    store.pass_time(60.0)
    store.send("copy")
    store.start(message)
    store.pass_time(60.0)

    assert store.start(message, "a2").status == "started"


def test_copies_of_what_ran_are_settled(store: Unit) -> None:
    """Of a message and its copies one runs."""
    message = store.send("m1")
    store.pass_time(60.0)
    store.send("copy")
    run(store, message)

    answer = store.start(copy_of(message, "copy"), "a2")

    assert (answer.status, answer.holder_id) == ("superseded", "m1")


def test_the_retry_of_what_ran_is_no_copy(store: Unit) -> None:
    """The copy that ran may be retried although another copy ran before it."""
    message = store.send("m1")
    store.pass_time(60.0)
    store.send("copy")
    run(store, message)

    assert store.start(retry_of(copy_of(message, "copy")), "a2").status == "started"


def test_older_messages_than_a_spent_one_still_run(store: Unit) -> None:
    """A crashed message that comes after a later one with copies is not dropped."""
    crashed = store.send("m1")
    store.start(crashed)
    later = store.send("m2")
    store.pass_time(60.0)
    store.send("copy")
    run(store, later, "a2")

    assert store.start(crashed, "a3").status == "started"


def test_a_late_redelivery_of_a_long_run_does_not_run_again(store: Unit) -> None:
    """The broker lost patience with a run of over a minute: its copy finds a mark."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(50.0)
    store.renew(message)
    store.pass_time(10.25)
    assert store.finish(message).status == "due"
    store.finish(message, mark="write")

    assert store.start(message, "a2").status == "repeated"
    assert store.start(Message("m1", message.ticket + 1), "a3").status == "started"


def test_a_run_of_a_minute_leaves_no_mark(store: Unit) -> None:
    """The common, short run costs no field and no round trip more."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(59.0)
    store.renew(message)
    store.pass_time(1.0)

    assert store.finish(message).status == "finished"
    assert store.fields() == {}


def test_a_message_redelivered_while_it_runs_does_not_run_again(store: Unit) -> None:
    """A second delivery that met its own run finds a mark when it comes back."""
    message = store.send("m1")
    store.start(message)
    assert store.start(message, "a2").status == "overlap"
    assert store.finish(message).status == "due"
    store.finish(message, mark="write")

    assert store.start(message, "a2").status == "repeated"


def test_a_retry_that_ended_refuses_nobody(store: Unit) -> None:
    """A mark ends the retry's delivery, and its part with it."""
    message = store.send("m1")
    store.start(message)
    retry = retry_of(message)
    store.renew(retry, "other")  # loses: the first attempt runs
    store.finish(message, outcome="retry", delay=300.0)
    store.start(retry, "a2")
    store.finish(message, "a1", outcome="retry", delay=300.0)  # its lease was lost meanwhile
    store.finish(retry, "a2", mark="write")
    assert store.claim("m2").status == "waiting"

    assert store.start(retry, "a3").status == "repeated"
    assert store.claim("m3").status == "claimed"


def test_a_late_copy_of_a_delivery_that_is_to_be_retried_is_ignored(store: Unit) -> None:
    """While its retry waits, the first delivery does not run again."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(1.0)
    store.finish(message, outcome="retry", delay=300.0)

    assert store.start(message, "a2").status == "repeated"
    assert store.start(retry_of(message), "a3").status == "started"


def test_healing_copies_of_an_older_message_are_not_superseded(store: Unit) -> None:
    """A part that waits stands for its message, whatever was replaced before."""
    store.confirm(Message("newer", 2**52))
    message = store.send("m1")

    assert message.ticket < 2**52
    assert store.start(message).status == "started"


def test_a_message_is_not_settled_while_its_own_attempt_runs(store: Unit) -> None:
    """A redelivery of the running message is put back, not ended with a skip value."""
    message = store.send("m1", replace=True)
    store.start(message)
    newer = store.send("m2", replace=True)
    store.confirm(newer)

    assert store.start(message, "a2").status == "overlap"


def test_giving_up_drops_the_message_and_its_part(store: Unit) -> None:
    """With `on_overlap="skip"` a message that meets a run ends, and the next call is accepted."""
    store.start(store.send("m1"))
    met = store.send("m2")

    assert store.start(met, "a2", give_up=True).status == "skipped"
    assert store.claim("m3").status == "claimed"


def test_giving_up_never_drops_a_retry_or_the_runs_own_message(store: Unit) -> None:
    """Only a trigger is given up; a retry and a redelivery are put back."""
    message = store.send("m1")
    store.start(message)

    assert store.start(message, "a2", give_up=True).status == "overlap"
    assert store.start(Message("m2", 5, 1), "a3", give_up=True).status == "overlap"


def test_a_deferred_message_gets_no_copies(store: Unit) -> None:
    """A message that meets a run is alive: it may heal a minute after its longest deferral."""
    message = store.send("m1")
    store.start(message)
    waiting = store.send("m2")
    store.pass_time(50.0)
    assert store.start(waiting, "a2").status == "overlap"

    assert store.claim("m3").remaining == 90.0


def test_a_deferred_message_outlives_its_ttl(store: Unit) -> None:
    """Meeting a run renews the life of what waits."""
    store.start(store.send("m1"), lease=500.0)
    waiting = store.send("m2", ttl=100.0)
    store.pass_time(90.0)
    store.start(waiting, "a2", ttl=100.0)
    store.pass_time(80.0)

    assert store.claim("m3").holder_id == "m2"


def test_one_foreign_message_waits_and_the_next_ends(store: Unit) -> None:
    """Messages without a claim that meet a run do not pile up."""
    store.start(store.send("m1"))

    assert store.start(Message("beat-1"), "a2").status == "overlap"
    assert store.start(Message("beat-1"), "a2").status == "overlap"
    answer = store.start(Message("beat-2", -77), "a3")

    assert (answer.status, answer.holder_id) == ("duplicate", "beat-1")
    assert store.claim("m2").holder_id == "beat-1"


def test_a_foreign_message_is_put_back_where_nothing_limits_what_waits(store: Unit) -> None:
    """With scope `running` all messages run, one after the other."""
    store.start(Message("m1", -1), queued=False)

    for number in (2, 3):
        answer = store.start(Message(f"m{number}", -number), "a2", queued=False)
        assert answer.status == "overlap"
    assert "wt" not in store.fields()


def test_debounce_waits_for_the_end_of_the_burst(store: Unit) -> None:
    """An older message that comes in the middle of a burst is put back until the burst is due."""
    older = store.send("m1", replace=True, delay=5.0)
    store.pass_time(5.0)
    store.send("m2", replace=True, delay=5.0)

    answer = store.start(older)

    assert (answer.status, answer.remaining) == ("early", 5.0)


def test_a_newer_message_runs_though_confirm_was_lost(store: Unit) -> None:
    """What the newer message replaced is dead once it starts, whether confirmed or not."""
    older = store.send("m1", replace=True)
    newer = store.send("m2", replace=True)
    run(store, newer)

    assert store.start(older, "a2").status == "superseded"


def test_an_older_message_runs_if_the_newer_was_never_sent(store: Unit) -> None:
    """Until the newer message is confirmed or starts, the older one is not lost."""
    older = store.send("m1", replace=True)
    store.send("m2", replace=True)  # its producer dies

    assert store.start(older).status == "started"


def test_a_retry_takes_its_own_part_and_no_other_of_its_id(store: Unit) -> None:
    """A retry that waits behind a new call of the same id leaves that call's part alone."""
    failing = store.send("same")
    store.start(failing)
    store.send("m2")
    store.finish(failing, outcome="retry")
    again = store.send("same", replace=True)

    assert store.start(retry_of(failing), "a2").found
    assert store.withdraw(again) == "withdrawn"
    assert store.claim("m3").status == "claimed"


def test_a_newer_message_than_the_record_knows_is_not_early(store: Unit) -> None:
    """After a failover that lost its claim, the newest message need not wait for an older burst."""
    older = store.send("m1", replace=True, delay=5.0)

    assert store.start(Message("m2", older.ticket + 1)).status == "started"


def test_an_older_message_that_crashed_runs_again_before_a_newer_one(store: Unit) -> None:
    """The start of an older message says nothing against its own redelivery."""
    older = store.send("m1", replace=True)
    store.send("m2", replace=True)  # its producer dies
    store.start(older)
    store.pass_time(60.0)

    assert store.start(older, "a2").status == "started"


def test_a_confirmed_message_is_not_its_own_victim(store: Unit) -> None:
    """What is confirmed runs, also if its part is gone."""
    store.send("m1", replace=True)
    newer = store.send("m2", replace=True)
    store.confirm(newer)
    store.release()

    assert store.start(newer).status == "started"


def test_an_id_given_again_runs_again(store: Unit) -> None:
    """A caller may use a task id twice: each of the two messages has a ticket of its own."""
    first = store.send("same")
    store.start(first)
    store.start(first, "a2")
    store.finish(first, mark="write")
    second = store.send("same")

    assert store.start(second, "a3").status == "started"


def test_an_id_given_again_frees_its_own_part(store: Unit) -> None:
    """Of two parts with the same id the one with the message's ticket goes."""
    first = store.send("same")
    store.start(first)
    other = store.send("m2")
    store.finish(first, outcome="retry", delay=300.0)
    run(store, other, "a2")
    assert store.claim("m3").holder_id == "same"

    assert store.start(retry_of(first), "a3").found
    assert store.claim("m4").status == "claimed"


def test_a_window_refuses_until_its_end(store: Unit) -> None:
    """With `window=` a call is accepted once per window, from when the first was due."""
    message = store.send("m1", delay=10.0)
    store.pass_time(30.0)
    store.start(message, window=100.0)
    store.finish(message)

    answer = store.claim("m2")

    assert (answer.status, answer.holder_id, answer.remaining) == ("kept", "m1", 80.0)


def test_a_retry_does_not_lengthen_the_window(store: Unit) -> None:
    """The window counts from the accepted call, not from its retries."""
    message = store.send("m1")
    store.start(message, window=100.0)
    store.finish(message, outcome="retry", delay=50.0)
    store.pass_time(50.0)
    store.start(retry_of(message), "a2", window=100.0)

    assert store.claim("m2").remaining == 50.0


def test_queued_work_takes_no_lease(store: Unit) -> None:
    """With scope `queued` any number may run; the message only stops waiting."""
    first = store.send("m1")
    assert store.start(first, running=False).status == "started"
    second = store.send("m2")

    assert store.start(second, "a2", running=False).status == "started"
    assert store.fields() == {}


# renew


def test_a_lease_lives_as_long_as_it_is_renewed(store: Unit) -> None:
    """However long the body takes, no other starts."""
    message = store.send("m1")
    store.start(message)
    for _ in range(10):
        store.pass_time(50.0)
        assert store.renew(message) == "renewed"

    assert store.start(BEAT, "a2").status == "overlap"


def test_a_lease_that_redis_lost_is_restored(store: Unit) -> None:
    """After Redis came back empty the running body has its lease, start and fence again."""
    message = store.send("m1")
    fence = store.start(message).fence
    store.redis.delete(store.key)

    assert store.renew(message, fence=fence, held=30.0) == "restored"
    assert store.start(BEAT, "a2").since == store.clock.now - 30.0
    assert store.fields()["x0f"] == str(fence)


def test_a_restored_run_drops_its_own_waiting_part(store: Unit) -> None:
    """After a failover the part of a message that runs already refuses nobody."""
    message = store.send("m1")

    assert store.renew(message) == "restored"
    assert store.claim("m2").status == "claimed"


def test_a_lease_that_another_has_is_lost(store: Unit) -> None:
    """A body that overslept its lease is told so, and takes nothing from the one that runs."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(60.0)
    store.start(BEAT, "a2")

    assert store.renew(message) == "lost"
    assert store.renew(BEAT, "a2") == "renewed"


# finish


def test_finish_frees_the_unit_at_once(store: Unit) -> None:
    """The next one need not wait for the lease to end."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(1.5)

    answer = store.finish(message)

    assert (answer.status, answer.held) == ("finished", 1.5)
    assert store.start(BEAT, "a2").status == "started"


def test_a_lost_run_frees_nothing_of_the_other(store: Unit) -> None:
    """The end of a body that lost its lease leaves the other's lease, and no keep_for."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(60.0)
    store.start(BEAT, "a2")

    assert store.finish(message, keep_for=20.0, mark="write").status == "lost"
    assert store.start(Message("x"), "a3").status == "overlap"
    assert store.claim("m2").status == "waiting"  # "x" waits; nothing is kept
    assert "ki" not in store.fields()


def test_an_interrupted_message_runs_when_it_comes_again(store: Unit) -> None:
    """A cold shutdown leaves no mark, however long it ran."""
    message = store.send("m1")
    store.start(message)
    store.start(message, "a2")

    assert store.finish(message, outcome="interrupted", mark="write").status == "finished"
    assert store.start(message, "a3").status == "started"


def test_the_lease_is_kept_until_the_mark_may_be_left(store: Unit) -> None:
    """A mark before the result is stored could lose the result: finish says due and waits."""
    message = store.send("m1")
    store.start(message)
    store.start(message, "a2")

    assert store.finish(message).status == "due"
    assert store.start(BEAT, "a3").status == "overlap"


def test_a_retry_waits_and_refuses_for_the_ttl_at_most(store: Unit) -> None:
    """A retry a day away stands for new calls, but not for a day."""
    message = store.send("m1")
    store.start(message)
    store.finish(message, outcome="retry", delay=86_400.0)
    assert store.claim("m2").holder_id == "m1"

    store.pass_time(3600.0)

    assert store.claim("m3").status == "claimed"


def test_a_retry_is_never_refused_by_what_waits(store: Unit) -> None:
    """One waits and one retry waits behind it; both run."""
    failing = store.send("m1")
    store.start(failing)
    waiting = store.send("m2")
    store.finish(failing, outcome="retry", delay=5.0)

    run(store, waiting, "a2")

    assert store.claim("m3").holder_id == "m1"
    run(store, retry_of(failing), "a3")
    assert store.fields() == {}


def test_only_one_retry_waits_behind(store: Unit) -> None:
    """Each message that fails while one waits does not leave one more."""
    failing = store.send("m1")
    store.start(failing)
    waiting = store.send("m2")
    store.finish(failing, outcome="retry", delay=300.0)
    behind = store.fields()["nt"]
    store.start(BEAT, "a2")
    store.finish(BEAT, "a2", outcome="retry", delay=300.0)

    assert store.fields()["nt"] == behind
    assert store.claim("m3").holder_id == waiting.id


def test_a_retry_does_not_wait_behind_a_newer_payload(store: Unit) -> None:
    """What waits replaces the retry, so nothing of it is kept behind."""
    failing = store.send("m1", replace=True)
    store.start(failing)
    store.send("m2", replace=True)
    store.finish(failing, outcome="retry")

    assert "nt" not in store.fields()


def test_a_retry_does_not_wait_behind_its_own_id(store: Unit) -> None:
    """An id given again has one part, not two."""
    failing = store.send("same")
    store.start(failing)
    store.send("same")
    store.finish(failing, outcome="retry", delay=300.0)

    assert "nt" not in store.fields()


def test_a_lost_run_that_ended_drops_its_own_waiting_part(store: Unit) -> None:
    """After a failover that lost its start, the end of a run leaves nothing that waits."""
    message = store.send("m1")

    assert store.finish(message).status == "lost"
    assert store.claim("m2").status == "claimed"


def test_a_lost_run_may_retry(store: Unit) -> None:
    """Losing the lease does not lose the retry."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(60.0)

    assert store.finish(message, outcome="retry", delay=5.0).status == "lost"
    assert store.claim("m2").holder_id == "m1"
    assert store.start(retry_of(message), "a2").found


# reap, release


def test_a_dead_child_frees_its_unit_at_once(store: Unit) -> None:
    """Whoever saw it die need not wait for the lease; only the lease that was seen ends."""
    store.start(store.send("m1"))
    seen = store.reap("m1")
    assert (seen.reaped, seen.attempt, seen.where) == (False, "a1", "host:1:boot")
    assert not store.reap("m1", "another").reaped
    assert not store.reap("m2", "a1").reaped

    assert store.reap("m1", "a1").reaped
    assert store.start(BEAT, "a2").status == "started"


def test_a_child_taken_for_dead_by_mistake_keeps_its_lease(store: Unit) -> None:
    """With a margin a live body renews in time; a dead one is over when it ends."""
    message = store.send("m1")
    store.start(message)
    store.reap("m1", "a1", margin=25.0)
    store.pass_time(24.0)
    assert store.renew(message) == "renewed"
    store.reap("m1", "a1", margin=25.0)
    store.pass_time(25.0)

    assert store.start(BEAT, "a2").status == "started"


def test_a_person_frees_the_unit(store: Unit) -> None:
    """Release takes away lease, waiting part and window, and says whose it was."""
    message = store.send("m1")
    store.start(message, window=500.0)
    store.claim("m2")

    answer = store.release()

    assert (answer.status, answer.holder_id) == ("released", "m1")
    assert store.claim("m3", until_done=True).status == "claimed"
    assert store.release().holder_id == "m3"
    assert store.release().status == "free"


def test_release_spares_a_holder_that_was_not_meant(store: Unit) -> None:
    """What a person saw may be over: another holder is left alone."""
    store.send("m1")

    assert (store.release("m0").status, store.release("m0").holder_id) == ("other", "m1")
    assert store.claim("m2").status == "waiting"


def test_a_released_live_body_does_not_take_its_lease_back(store: Unit) -> None:
    """Its next heartbeat answers lost, also where nobody else runs."""
    message = store.send("m1")
    store.start(message)
    store.release()
    store.pass_time(59.0)

    assert store.renew(message) == "lost"


def test_a_released_message_still_runs(store: Unit) -> None:
    """Release loses no trigger: the message runs without its part."""
    message = store.send("m1")
    store.release()

    answer = store.start(message)

    assert (answer.status, answer.found) == ("started", False)


def test_what_is_replaced_in_a_backlog_again_and_again_runs_now_and_then(store: Unit) -> None:
    """Every message meets a newer one before its turn comes; after heal_after an older one runs.

    The newest still runs last, and the next older one has to wait as long again.
    """
    sent = []
    for number in range(4):
        sent.append(store.send(f"m{number}", replace=True))
        store.confirm(sent[-1])
        store.pass_time(25)
    assert store.start(sent[0], "a0").status == "started"
    store.finish(sent[0], "a0", "success")
    assert store.start(sent[1], "a1").status == "superseded"
    assert store.start(sent[3], "a3").status == "started"
    store.finish(sent[3], "a3", "success")
    assert store.start(sent[2], "a2").status == "superseded"


def test_no_older_message_runs_after_a_newer_one_in_a_backlog(store: Unit) -> None:
    """Of those whose turn might come, only one that is newer than all that ran."""
    sent = []
    for number in range(3):
        sent.append(store.send(f"m{number}", replace=True))
        store.confirm(sent[-1])
        store.pass_time(40)
    assert store.start(sent[1], "a1").status == "started"
    store.finish(sent[1], "a1", "success")
    store.pass_time(100)
    assert store.start(sent[0], "a0").status == "superseded"


def test_late_copies_are_known_though_three_others_left_marks(store: Unit) -> None:
    """Each of the four was redelivered while it ran; the copies come in the end."""
    sent = []
    for number in range(4):
        sent.append(store.send(f"m{number}"))
        store.start(sent[-1], f"a{number}")
        store.start(sent[-1], f"copy{number}")
        store.finish(sent[-1], f"a{number}", "success", mark="write")
    assert [store.start(each, "late").status for each in sent] == ["repeated"] * 4


def test_what_is_replaced_while_one_runs_is_superseded(store: Unit) -> None:
    """However long it runs: there is no backlog, and the newest has its turn after it."""
    long = store.send("long", replace=True)
    store.start(long, "a0", lease=600)
    sent = []
    for number in range(3):
        sent.append(store.send(f"m{number}", replace=True))
        store.confirm(sent[-1])
        store.pass_time(100)
    assert [store.start(each, "a1").status for each in sent] == [
        "superseded", "superseded", "overlap",
    ]  # fmt: skip


def test_a_burst_runs_once_at_its_latest_moment(store: Unit) -> None:
    """Several of its messages are due then, and an older one may come first."""
    sent = []
    for number in range(3):
        sent.append(store.send(f"m{number}", replace=True, delay=40, latest=60))
        store.confirm(sent[-1])
        store.pass_time(30)
    assert store.start(sent[0], "a0").status == "superseded"
    assert store.start(sent[1], "a1").status == "superseded"
    assert store.start(sent[2], "a2").status == "started"
