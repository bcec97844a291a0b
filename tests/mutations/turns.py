"""Breakages of the turns of messages that were put back because others run."""

from __future__ import annotations

from mutations.breakage import Breakage, Edit

__all__ = ["TURN_BREAKAGES"]


def _in(step: str, name: str, old: str, new: str, test: str) -> Breakage:
    edit = Edit(f"once_core/lua/{step}.lua", old, new)
    return Breakage(
        name, "turns", (edit,), (f"tests/contract/test_turns.py::test_{test}[fakeredis]",)
    )


TURN_BREAKAGES = (
    _in(
        "start",
        "all-come-back-at-once",
        "  turns.d = turn + math.ceil(turns.e / limit)\n",
        "",
        "each_comes_back_when_those_before_it_have_run",
    ),
    _in(
        "start",
        "slots-stand-empty",
        "math.ceil(turns.e / limit)",
        "turns.e",
        "with_several_slots_they_come_back_as_often_as_one_ends",
    ),
    _in(
        "start",
        "a-turn-beyond-the-longest-deferral",
        "math.min(now + longest, running.u)",
        "running.u",
        "who_would_come_back_after_the_longest_deferral_is_told_nothing",
    ),
    _in(
        "start",
        "a-long-run-is-asked-for-again-and-again",
        "turns.e - held or math.ceil(held / 8)\n",
        "turns.e - held or 0\n",
        "a_run_that_takes_longer_than_others_is_asked_for_ever_more_rarely",
    ),
    _in(
        "start",
        "who-is-alone-waits-for-its-own-turn",
        "again and turns.c <= 1 and 0 or turns.d or 0",
        "turns.d or 0",
        "who_is_away_alone_does_not_wait_for_its_own_turn",
    ),
    _in(
        "start",
        "turns-after-the-end-of-the-lease",
        "math.min(now + longest, running.u)",
        "now + longest",
        "turns_after_the_end_of_the_lease_are_not_given_away",
    ),
    _in(
        "start",
        "a-message-comes-back-at-once",
        "math.max(left, SOONEST)",
        "left",
        "nobody_comes_back_at_once",
    ),
    _in(
        "start",
        "who-comes-back-is-counted-again",
        "  if not again then turns.c = turns.c + 1 end\n",
        "  turns.c = turns.c + 1\n",
        "nothing_is_left_when_all_who_were_put_back_have_run",
    ),
    _in(
        "start",
        "who-starts-is-still-away",
        "if again and record.t then record.t.c = math.max(record.t.c - 1, 0) end\n",
        "",
        "nothing_is_left_when_all_who_were_put_back_have_run",
    ),
    _in(
        "start",
        "turns-live-as-long-as-the-clock-stepped",
        "turns.u = turns, now + TURNS\n",
        "turns.u = turns, now + 100 * TURNS\n",
        "messages_that_never_come_back_are_forgotten",
    ),
    _in(
        "prelude",
        "turns-of-a-clock-that-stepped-back",
        "  if record.t and record.t.u > now + TURNS then record.t, pruned = nil, true end\n",
        "",
        "a_clock_that_steps_back_puts_nobody_off",
    ),
    _in(
        "start",
        "a-copy-takes-a-turn",
        "own and 0 or turn_after(running)",
        "turn_after(running)",
        "a_copy_of_what_runs_is_told_nothing",
    ),
    _in(
        "finish",
        "nobody-learns-how-long-runs-take",
        "math.ceil((3 * turns.e + held) / 4)",
        "turns.e",
        "runs_of_late_count_for_a_quarter",
    ),
)
