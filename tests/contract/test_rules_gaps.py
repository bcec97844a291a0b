"""Rules of the record that no other test would miss: found by `tests/mutations`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from once_core import protocol
from once_core.devserver import DevServer
from once_core.protocol import Message
from once_core.store import Store

if TYPE_CHECKING:
    from _support.servers import Unit

BEAT = Message("from-beat")
"""Sent by a program without this library."""

FAR = Message("newer", 2**52)
"""Has a greater ticket than whatever the tests send."""


def copy_of(message: Message, message_id: str = "copy") -> Message:
    """What a refresh sends: the same ticket under another id."""
    return Message(message_id, message.ticket)


def retry_of(message: Message) -> Message:
    """The same message, published again by its own run."""
    return Message(message.id, message.ticket, message.retries + 1)


def end_with_mark(store: Unit, message: Message, outcome: str = "success") -> None:
    """Start and finish a message whose late copy has to be expected."""
    assert store.start(message).status == "started"
    store.finish(message, outcome=outcome, mark="write")


# every step


def test_a_message_that_is_over_is_not_known_any_more(store: Unit) -> None:
    """What comes after its ttl runs, as one that nobody remembers."""
    message = store.send(ttl=30.0)
    store.pass_time(30.0)

    answer = store.start(message)

    assert (answer.status, answer.found, answer.waited) == ("started", False, 0.0)


def test_the_end_of_a_lapsed_lease_is_told_that_it_was_lost(store: Unit) -> None:
    """A body that outlived its lease hears of it at the end, though nobody else runs."""
    message = store.send()
    store.start(message)
    store.pass_time(60.0)

    assert store.finish(message).status == "lost"


def test_the_key_of_a_run_ends_with_its_lease(store: Unit) -> None:
    """A crash right after the start leaves nothing for longer than one lease."""
    store.start(store.send())

    assert 55.0 < store.life() <= 60.0


def test_a_refusal_after_the_clock_stepped_back_shortens_the_lease(store: Unit) -> None:
    """Duplicates alone are enough for a dead run to be over after one lease."""
    message = store.send("m1")
    store.start(message)
    store.send("m2", delay=5000.0)
    store.pass_time(3000.0)
    store.renew(message)
    store.pass_time(-2000.0)
    assert store.claim("m3").status == "waiting"

    store.pass_time(60.0)

    assert store.start(BEAT, "a2").status == "started"


def test_a_debounced_message_is_due_in_time_after_the_clock_stepped_back(store: Unit) -> None:
    """It is put back for as long as it was to wait, not for the length of the step."""
    message = store.send(replace=True, delay=600.0)
    store.pass_time(-3600.0)
    store.withdraw(BEAT)  # any step will do

    store.pass_time(600.0)

    assert store.start(message).status == "started"


def test_a_long_backlog_heals_in_a_minute_after_the_clock_stepped_back(store: Unit) -> None:
    """How long it had waited is not known any more, so its healing begins anew."""
    store.send("m1")
    for seconds in (60.0, 60.0, 120.0):
        store.pass_time(seconds)
        store.send("copy")
    store.pass_time(-3600.0)
    store.send("copy")

    assert store.claim("m2").remaining == 60.0


def test_a_window_ends_in_time_after_the_clock_stepped_back(store: Unit) -> None:
    """A window refuses for its length, not for that of the step as well."""
    message = store.send()
    store.start(message, window=100.0)
    store.finish(message)
    store.pass_time(-3600.0)

    answer = store.claim("m2")

    assert (answer.status, answer.remaining) == ("kept", 100.0)


def test_a_retry_behind_ends_in_time_after_the_clock_stepped_back(store: Unit) -> None:
    """A retry that waits behind another message is forgotten after its ttl all the same."""
    message = store.send("m1")
    store.start(message)
    store.send("m2")
    store.finish(message, outcome="retry", delay=300.0)
    store.pass_time(-3600.0)
    store.withdraw(BEAT)  # any step will do

    store.pass_time(3600.0)

    assert store.claim("m3").status == "claimed"


def test_a_message_from_the_future_has_not_waited(store: Unit) -> None:
    """After the clock stepped back nobody is told that a message waited less than nothing."""
    message = store.send()
    store.pass_time(-100.0)

    assert store.start(message).waited == 0.0


def test_an_older_retry_stays_before_the_retry_of_a_lost_run(store: Unit) -> None:
    """When the end of a lost run drops its own part, who waited behind it is next."""
    older = store.send("m0")
    store.start(older)
    lost = store.send("m1")
    store.finish(older, outcome="retry", delay=300.0)

    store.finish(lost, "a9", outcome="retry", delay=300.0)

    assert store.claim("m2").holder_id == "m0"


def test_fences_grow_although_the_clock_steps_back(store: Unit) -> None:
    """A store that remembers the greatest fence accepts the later of two runs."""
    first = store.send("m1")
    fence = store.start(first).fence
    store.pass_time(-100.0)
    second = store.send("m2")
    store.finish(first)

    assert store.start(second, "a2").fence > fence


# claim


def test_kept_work_is_kept_although_one_waits(store: Unit) -> None:
    """A success during which one more was sent refuses the next for `keep_for`."""
    message = store.send("m1")
    store.start(message)
    store.send("m2")
    store.finish(message, keep_for=20.0)

    answer = store.claim("m3")

    assert (answer.status, answer.holder_id) == ("kept", "m1")


def test_a_body_may_call_itself_again_within_its_own_window(store: Unit) -> None:
    """`Task.replace` into the same unit is not refused by the window of the run that makes it."""
    store.start(store.send("m1"), window=100.0)

    assert store.claim("m2", own=True).status == "kept"
    assert store.claim("m1", own=True).status == "claimed"


def test_refusals_by_a_run_are_counted(store: Unit) -> None:
    """The record says how many calls the running message stood for."""
    store.start(store.send("m1"))
    for number in range(3):
        store.claim(f"d{number}", until_done=True)

    assert store.fields()["x0z"] == "3"


def test_a_window_counts_from_when_a_refreshed_message_was_due(store: Unit) -> None:
    """What healed after a purge was accepted then: its window is not nearly over."""
    message = store.send("m1")
    store.pass_time(60.0)
    store.send("copy")
    store.start(copy_of(message), window=100.0)
    store.finish(copy_of(message))

    assert store.claim("m2").remaining == 100.0


def test_the_newest_copy_is_named_whatever_else_the_record_knows(store: Unit) -> None:
    """Duplicates get the handle that is most likely to run, also after a replacement."""
    store.send("m1")
    store.pass_time(60.0)
    store.send("copy")
    store.confirm(Message("m0", 1))

    assert store.claim("m2").holder_id == "copy"


def test_a_message_far_away_heals_a_minute_after_it_is_due(store: Unit) -> None:
    """Also where it is sent during a run, and a retry too."""
    first = store.send("m1")
    store.start(first)
    store.send("m2", delay=100.0)
    assert store.claim("m3").remaining == 160.0

    store.release()
    store.start(first)
    store.finish(first, outcome="retry", delay=300.0)
    assert store.claim("m4").remaining == 360.0


def test_a_message_far_away_waits_for_its_ttl_from_when_it_is_due(store: Unit) -> None:
    """A message that is due later than its ttl is not forgotten before it can come."""
    store.send("m1", delay=100.0, ttl=50.0)
    store.pass_time(120.0)

    assert store.claim("m2").status == "waiting"


def test_a_message_far_away_sent_during_a_run_waits_for_its_ttl(store: Unit) -> None:
    """The same where the record knows more than the waiting message."""
    store.start(store.send("m1"), lease=500.0)
    store.send("m2", delay=100.0, ttl=50.0)
    store.pass_time(120.0)

    assert store.claim("m3").status == "waiting"


def test_an_equal_call_that_is_due_sooner_is_sent(store: Unit) -> None:
    """A message that the broker holds cannot be moved to the front: a new one is sent."""
    store.send("m1", replace=True, delay=100.0, fingerprint="A")

    answer = store.claim("m2", replace=True, delay=5.0, fingerprint="A")

    assert (answer.status, answer.delay) == ("replaced", 5.0)


# confirm


def test_a_late_confirm_revives_nothing(store: Unit) -> None:
    """Two producers confirm in the other order than they claimed: the newest alone may run."""
    store.send("m1", replace=True)
    second, third = store.send("m2", replace=True), store.send("m3", replace=True)
    store.confirm(third)
    store.confirm(second)

    assert store.start(second).status == "superseded"


def test_what_was_replaced_stays_dead_after_a_replacement_with_a_short_ttl(store: Unit) -> None:
    """A later call with another ttl does not shorten the memory of the earlier one."""
    first = store.send("m1", replace=True)
    second = store.send("m2", replace=True)
    store.confirm(second, ttl=10_000.0)
    store.start(second)
    store.finish(second)
    third = store.send("m3", replace=True, ttl=10.0)
    store.start(third, "a2", ttl=10.0)
    store.finish(third, "a2")
    store.pass_time(5000.0)

    assert store.start(first, "a3").status == "superseded"


# start


def test_the_retry_of_a_marked_delivery_runs(store: Unit) -> None:
    """A mark of the first delivery is no mark of its retry."""
    message = store.send()
    end_with_mark(store, message, "retry")

    assert store.start(retry_of(message), "a2").status == "started"


def test_a_late_copy_does_not_run_after_its_retry(store: Unit) -> None:
    """A mark of a retry is one of all deliveries before it."""
    message = store.send()
    store.start(message)
    store.finish(message, outcome="retry")
    end_with_mark(store, retry_of(message))

    assert store.start(message, "a2").status == "repeated"


def test_a_copy_of_what_left_a_mark_is_settled_and_not_ignored(store: Unit) -> None:
    """The copy has an id of its own, for which nobody has stored a result."""
    message = store.send("m1")
    store.pass_time(60.0)
    store.send("copy")
    end_with_mark(store, message)

    assert store.start(copy_of(message), "a2").status == "superseded"


def test_an_id_given_again_runs_though_an_older_retry_of_it_waits(store: Unit) -> None:
    """A failover may have lost its claim; its ticket is newer than the retry's."""
    message = store.send("same")
    store.start(message)
    store.finish(message, outcome="retry", delay=300.0)

    assert store.start(Message("same", FAR.ticket), "a2").status == "started"


def test_a_foreign_id_given_again_runs_though_a_retry_of_it_waits(store: Unit) -> None:
    """Without a ticket nobody can say that it is an old delivery: in doubt it runs."""
    store.start(BEAT)
    store.finish(BEAT, outcome="retry", delay=300.0)

    assert store.start(BEAT, "a2").status == "started"


def test_a_copy_whose_part_waits_runs_whatever_was_replaced_before(store: Unit) -> None:
    """A copy has another id than its part, which stands for it all the same."""
    message = store.send("m1")
    store.confirm(FAR)
    store.pass_time(60.0)
    store.send("copy")

    assert store.start(copy_of(message)).status == "started"


def test_a_message_is_not_settled_while_its_retry_is_to_come(store: Unit) -> None:
    """Its id would end with a skip value, and its retry would overwrite that."""
    message = store.send("m1")
    store.start(message)
    store.send("m2")
    store.finish(message, outcome="retry", delay=300.0)
    store.confirm(FAR)

    assert store.start(message, "a2").status == "started"


def test_a_call_that_limits_no_run_is_in_nobodys_way(store: Unit) -> None:
    """With scope `queued` given at a call, its message runs beside one that holds a lease."""
    store.start(store.send("m1"))

    assert store.start(store.send("m2"), "a2", running=False).status == "started"


def test_a_retry_that_meets_its_host_costs_no_mark(store: Unit) -> None:
    """A retry that comes before its host has ended is no redelivery of the host."""
    message = store.send()
    store.start(message)
    assert store.start(retry_of(message), "a2").status == "overlap"

    assert store.finish(message).status == "finished"


def test_giving_up_leaves_the_part_of_another(store: Unit) -> None:
    """A message that is skipped takes nothing away from the one that waits."""
    store.start(store.send("m1"))
    store.send("m2")

    assert store.start(BEAT, "a2", give_up=True).status == "skipped"
    assert store.claim("m3").holder_id == "m2"


def test_a_deferred_message_far_away_gets_no_copies_before_it_is_due(store: Unit) -> None:
    """A message that meets a run before it is due heals a minute after it is."""
    store.start(store.send("m1"))
    waiting = store.send("m2", delay=600.0)
    store.start(waiting, "a2")

    assert store.claim("m3").remaining == 660.0


def test_a_deferred_retry_gets_no_copies(store: Unit) -> None:
    """A retry that meets a run is alive, though its part has another ticket."""
    message = store.send("m1")
    store.start(message)
    store.finish(message, outcome="retry")
    store.start(BEAT, "a2")
    store.pass_time(50.0)
    assert store.start(retry_of(message), "a3").status == "overlap"

    assert store.claim("m2").remaining == 90.0


def test_a_deferred_copy_gets_no_copies(store: Unit) -> None:
    """A copy that meets a run is alive, though its part has another id."""
    store.start(store.send("m1"), lease=500.0)
    waiting = store.send("m2")
    store.pass_time(60.0)
    store.send("copy")
    assert store.start(copy_of(waiting), "a2").status == "overlap"

    assert store.claim("m3").remaining == 90.0


@pytest.mark.parametrize(
    "message", [Message("m0", 5), Message("beat", -5, 1)], ids=["claimed", "retry"]
)
def test_only_foreign_triggers_end_as_duplicates(store: Unit, message: Message) -> None:
    """A claimed message whose part is gone, and any retry, are put back and not lost."""
    store.start(store.send("m1"))
    store.send("m2")

    assert store.start(message, "a2").status == "overlap"


def test_a_redelivered_foreign_message_does_not_wait_beside_its_run(store: Unit) -> None:
    """It is the message that runs: a part for it would refuse the next trigger."""
    store.start(BEAT)
    assert store.start(BEAT, "a2").status == "overlap"

    assert store.claim("m1").status == "claimed"


def test_a_foreign_message_is_not_settled_while_its_retry_is_to_come(store: Unit) -> None:
    """A late copy of a delivery whose retry waits behind another message is put back."""
    store.start(BEAT)
    store.send("m2")
    store.finish(BEAT, outcome="retry", delay=300.0)
    store.start(Message("another", -5), "a2")

    assert store.start(BEAT, "a3").status == "overlap"


def test_a_foreign_message_runs_in_the_middle_of_a_burst(store: Unit) -> None:
    """Debounce delays the calls of the burst, and nothing that was sent without it."""
    store.send("m1", replace=True, delay=600.0)

    assert store.start(BEAT).status == "started"


def test_an_older_message_that_crashed_runs_again_after_a_newer_one_ran(store: Unit) -> None:
    """A newer message whose claim a failover lost says nothing against what the record knows."""
    older = store.send("m1", replace=True)
    newer = Message("m2", older.ticket + 1)
    store.start(newer)
    store.finish(newer)
    store.start(older, "a2")
    store.pass_time(60.0)

    assert store.start(older, "a3").status == "started"


def test_a_run_takes_the_part_of_its_id_where_none_has_its_ticket(store: Unit) -> None:
    """Whatever a failover did to the tickets: what runs does not refuse triggers as well."""
    store.send("m1")

    assert store.start(Message("m1", FAR.ticket)).found
    assert store.claim("m2").status == "claimed"


def test_the_first_message_is_settled_after_its_copy_ran(store: Unit) -> None:
    """Of a message and its copies one runs, whichever comes first."""
    message = store.send("m1")
    store.pass_time(60.0)
    store.send("copy")
    store.start(copy_of(message))
    store.finish(copy_of(message))

    assert store.start(message, "a2").status == "superseded"


def test_copies_are_remembered_for_the_ttl_after_one_of_them_ran(store: Unit) -> None:
    """A long backlog may hold a copy for as long again as its message had waited."""
    message = store.send("m1")
    store.pass_time(60.0)
    store.send("copy")
    store.pass_time(1000.0)
    store.start(message)
    store.finish(message)
    store.pass_time(3000.0)

    assert store.start(copy_of(message), "a2").status == "superseded"


def test_copies_that_are_due_later_are_remembered_until_they_come(store: Unit) -> None:
    """A copy that was sent with a countdown beyond the ttl is known when it comes."""
    message = store.send("m1")
    store.pass_time(60.0)
    store.send("copy", delay=10_000.0)
    store.start(message)
    store.finish(message)
    store.pass_time(10_000.0)

    assert store.start(copy_of(message), "a2").status == "superseded"


def test_a_second_message_does_not_shorten_the_window(store: Unit) -> None:
    """What a run calls within its own window, with a shorter one, does not end it early."""
    first = store.send("m1")
    store.start(first, window=1000.0)
    again = store.send("m1", own=True)
    store.finish(first)
    store.start(again, "a2", window=10.0)

    assert store.claim("m2").remaining == 1000.0


# renew


def test_a_lapsed_lease_is_restored_by_its_renewal(store: Unit) -> None:
    """It is over, so others might have run since; that nobody has makes it a lease again."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(61.0)

    assert store.renew(message) == "restored"


def test_a_key_lives_as_long_as_its_renewed_lease(store: Unit) -> None:
    """A lease that the record has, on a key that ends before it, would be none."""
    message = store.send("m1")
    store.start(message)

    assert store.renew(message, lease=600.0) == "renewed"
    assert store.life() > 500


def test_a_renewal_that_comes_after_the_end_leaves_the_retry(store: Unit) -> None:
    """The retry of a lost run waits on, though the run's lease is restored for a moment."""
    message = store.send("m1")
    store.finish(message, outcome="retry", delay=300.0)

    assert store.renew(message) == "restored"
    assert store.claim("m2").holder_id == "m1"


def test_a_restored_run_leaves_what_waits_for_it(store: Unit) -> None:
    """A lease that lapsed and is taken again frees nobody else's place."""
    message = store.send("m1")
    store.start(message)
    store.send("m2", delay=60.0)
    store.pass_time(60.0)

    assert store.renew(message) == "restored"
    assert store.claim("m3").holder_id == "m2"


def test_a_fence_is_greater_than_one_that_was_restored(store: Unit) -> None:
    """After a failover to a slower clock fences grow on from what the living run has."""
    message = Message("m1", -1)
    assert store.renew(message, fence=FAR.ticket) == "restored"
    second = store.send("m2")
    store.finish(message)

    assert store.start(second, "a2").fence > FAR.ticket


# finish


def test_the_plain_end_of_a_lost_run_frees_nothing_of_the_other(store: Unit) -> None:
    """A body that overslept its lease ends while another runs alone: that one's lease stays."""
    message = store.send("m1")
    store.start(message)
    store.pass_time(60.0)
    store.start(BEAT, "a2")

    assert store.finish(message).status == "lost"
    assert store.start(Message("m2", -2), "a3").status == "overlap"


def test_a_retry_leaves_no_part_where_nothing_limits_what_waits(store: Unit) -> None:
    """With scope `running` a retry refuses nobody."""
    message = Message("m1", -1)
    store.start(message, queued=False)
    store.finish(message, outcome="retry", delay=300.0, queued=False)

    assert store.fields() == {}


# release


def test_release_frees_the_retry_behind_too(store: Unit) -> None:
    """A person who freed the unit is not refused by what waited second."""
    message = store.send("m1")
    store.start(message)
    store.send("m2")
    store.finish(message, outcome="retry", delay=300.0)

    assert store.release().status == "released"
    assert store.claim("m3").status == "claimed"


# full servers


@pytest.fixture
def full(server: DevServer) -> Store:
    """A full server on which "m1" runs."""
    store = Store(server.url)
    waiting = {"ttl": 3600.0, "heal_after": 60.0}
    worker = {"where": "host:1:boot", "lease": 60.0}
    store.run(protocol.start("unit", Message("m1", -1), "a1", **worker, **waiting))
    store.run(protocol.claim("another", "m1", **waiting))  # the script is loaded
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
    return store


def test_a_full_server_still_says_who_runs(full: Store) -> None:
    """A refusal by a run needs no memory."""
    claim = protocol.claim("unit", "m2", ttl=3600.0, heal_after=60.0, until_done=True)

    answer = full.run(claim)

    assert (answer.status, answer.holder_id) == ("running", "m1")
