"""Breakages of the Dramatiq binding: where the record meets its brokers, threads and middleware."""

from __future__ import annotations

from mutations.breakage import Breakage, Edit

__all__ = ["DRAMATIQ_BREAKAGES"]

FILES = {
    "binding": "tests/unit/test_dramatiq_binding.py",
    "composition": "tests/integration/test_dramatiq_composition.py",
    "crashes": "tests/integration/test_dramatiq_crashes.py",
    "findings": "tests/integration/test_dramatiq_findings.py",
    "in": "tests/integration/test_dramatiq_ways_in.py",
    "out": "tests/integration/test_dramatiq_ways_out.py",
    "promises": "tests/integration/test_promises.py",
    "seams": "tests/unit/test_dramatiq_seams.py",
}

BINDING = "once_dramatiq/_binding.py"
CONSUMERS = "once_dramatiq/_consumers.py"
DELIVERY = "once_dramatiq/_delivery.py"
MIDDLEWARE = "once_dramatiq/middleware.py"
PUBLISH = "once_dramatiq/_publish.py"
SEAMS = "once_dramatiq/_seams.py"
SETTLE = "once_dramatiq/_settle.py"


def _in(file: str, name: str, old: str, new: str, *tests: str) -> Breakage:
    nodes = (test.partition(":") for test in tests)
    return Breakage(
        f"dramatiq-{name}",
        "dramatiq",
        (Edit(file, old, new),),
        tuple(f"{FILES[place]}::test_{test}" for place, _, test in nodes),
    )


DRAMATIQ_BREAKAGES = (
    # Enqueuing
    _in(
        PUBLISH,
        "a-deferred-message-is-claimed-again",
        "if thread.is_putting_back or (",
        "if (",
        "findings:a_message_that_waits_long_is_put_back_less_and_less_often",
    ),
    _in(
        PUBLISH,
        "a-delayed-message-is-claimed-again-when-it-is-due",
        "(thread.is_consumer and not is_sent)",
        "False",
        "in:a_delayed_message_is_the_one_that_waits",
    ),
    _in(
        PUBLISH,
        "a-retry-is-a-new-call",
        "    if thread.is_between_bodies:\n        again =",
        "    if False:\n        again =",
        "promises:a_retry_keeps_its_unit_and_duplicates_meanwhile_are_refused",
        "out:however_a_body_ends_the_one_behind_it_runs",
    ),
    _in(
        PUBLISH,
        "a-retry-keeps-its-count",
        "    header = header._replace(was_delayed=delay is not None, is_copy=False)\n",
        "    header = header._replace(was_delayed=delay is not None, is_copy=False, retries=0)\n",
        "in:a_delayed_message_that_is_retried",
        "promises:a_retry_keeps_its_unit_and_duplicates_meanwhile_are_refused",
    ),
    _in(
        PUBLISH,
        "a-publish-that-failed-holds-the-unit",
        "        publication.failed()\n",
        "",
        "binding:what_cannot_be_published_waits_for_nobody",
    ),
    _in(
        PUBLISH,
        "a-message-sent-twice-is-settled-before-its-run",
        "    if told.holder_id == message.message_id or is_accepted:\n",
        "    if is_accepted:\n",
        "in:the_same_message_enqueued_twice",
        "binding:the_message_of_a_caller_stays_as_it_is",
    ),
    _in(
        PUBLISH,
        "a-message-sent-before-is-settled-when-a-copy-waits",
        "    if told.holder_id == message.message_id or is_accepted:\n",
        "    if told.holder_id == message.message_id:\n",
        "binding:a_message_sent_twice_is_not_settled_when_a_copy_of_it_waits",
    ),
    _in(
        PUBLISH,
        "raise-stops-a-group-half-way",
        '    if publication.guard.options.on_duplicate == "raise" and may_raise:\n',
        '    if publication.guard.options.on_duplicate == "raise":\n',
        "composition:duplicates_end_with_their_value_and_all_goes_on",
    ),
    _in(
        PUBLISH,
        "raise-raises-into-callbacks",
        "    may_raise = is_sent and not dispatched\n",
        "    may_raise = is_sent\n",
        "composition:raise_never_raises_into_the_dispatch_of_a_callback",
    ),
    _in(
        PUBLISH,
        "ids-that-somebody-knows-are-adopted",
        "    if may_adopt and not is_awaited:\n",
        "    if True:\n",
        "composition:duplicates_end_with_their_value_and_all_goes_on",
        "in:a_message_whose_id_is_known",
    ),
    _in(
        PUBLISH,
        "a-duplicate-with-a-callback-never-calls-it",
        '_AWAITED = ("pipe_target", "group_completion_uuid", "on_success", "on_failure")',
        '_AWAITED = ("pipe_target", "group_completion_uuid")',
        "in:a_duplicate_with_a_callback",
    ),
    _in(
        PUBLISH,
        "a-step-is-lost-that-cannot-be-claimed",
        "        if not dispatched:\n            raise\n",
        "        if True:\n            raise\n",
        "findings:a_bad_option_of_a_later_step_does_not_stop_its_pipeline",
    ),
    _in(
        PUBLISH,
        "the-callers-message-is-changed",
        "    if is_ours:  # nobody",
        "    if True:  # nobody",
        "binding:the_message_of_a_caller_stays_as_it_is",
    ),
    _in(
        PUBLISH,
        "a-body-that-sends-itself-is-refused",
        "    own = attempt is not None and attempt.message.id == message.message_id\n",
        "    own = False\n",
        "findings:a_body_that_enqueues_its_own_message_again_runs_again",
    ),
    _in(
        SEAMS,
        "a-send-is-not-known-as-one",
        "        before = thread.begin_sending(actor.actor_name)\n",
        '        before = thread.begin_sending("")\n',
        "seams:send_asks_the_actors_own_send_with_options",
    ),
    _in(
        SEAMS,
        "flush-all-of-a-stub-broker-leaves-locks",
        "        forget()\n",
        "",
        "seams:flush_all_of_a_stub_broker_frees_what_waited",
    ),
    # Running
    _in(
        DELIVERY,
        "a-deferral-stores-a-result",
        '        self._proxy.options["store_results"] = False\n',
        "",
        "promises:on_overlap_defer_runs_the_same_message_later",
    ),
    _in(
        DELIVERY,
        "a-deferred-message-loses-its-ticket",
        "        message = proxy.copy(options={OPTION: envelope.to_header()})\n",
        "        message = proxy.copy(options={OPTION: None})\n",
        "findings:a_message_that_is_put_back_stays_in_the_unit_of_its_call",
    ),
    _in(
        DELIVERY,
        "a-failure-is-known-too-late",
        "        self._end(attempt)\n\n    def _end(",
        "        pass\n\n    def _end(",
        "out:however_a_body_ends_the_unit_is_free",
    ),
    _in(
        DELIVERY,
        "a-retry-is-a-failure",
        '        if not attempt.end("failure" if attempt.retry_delay is None else "retry"):\n',
        '        if not attempt.end("failure"):\n',
        "promises:a_retry_keeps_its_unit_and_duplicates_meanwhile_are_refused",
        "promises:at_most_one_message_waits_beside_a_retry",
    ),
    _in(
        DELIVERY,
        "a-stubborn-coroutine-loses-its-lease",
        "        if not self._coroutine.acquire(blocking=False):\n",
        "        if False:\n",
        "out:a_coroutine_that_ignores_its_time_limit",
    ),
    _in(
        DELIVERY,
        "a-stubborn-coroutine-keeps-its-lease-for-ever",
        "        if self._is_left_to_coroutine and self._attempt is not None:\n",
        "        if False:\n",
        "out:a_coroutine_that_ignores_its_time_limit",
    ),
    _in(
        DELIVERY,
        "copies-of-a-lost-connection-run-again",
        "        if is_overdue or self._binding.consumers.have_lost_connection(self._queue):\n",
        "        if is_overdue:\n",
        "crashes:a_body_that_ends_before_the_worker_is_connected_again",
    ),
    _in(
        DELIVERY,
        "on-overlap-raise-runs",
        '            if guard.options.on_overlap == "raise":\n',
        "            if False:\n",
        "promises:on_overlap_raise_fails_the_message",
    ),
    _in(
        DELIVERY,
        "on-store-error-run-waits",
        '        if answer is None and self._guard.options.on_store_error == "run":\n',
        "        if False:\n",
        "promises:while_the_store_is_away_messages_are_deferred_or_run_as_they_were_told",
    ),
    _in(
        DELIVERY,
        "a-start-that-is-given-up-keeps-its-lease",
        "        if self._attempt is not None and self._attempt.is_running:\n",
        "        if False:\n",
        "findings:a_time_limit_that_strikes_between_start_and_body_frees_the_unit",
    ),
    # Settling
    _in(
        SETTLE,
        "a-result-is-overwritten",
        "        if self._results is not None and not self.has_result():\n",
        "        if self._results is not None:\n",
        "composition:a_duplicate_of_a_second_run_goes_on_and_leaves_the_result_of_the_first",
    ),
    _in(
        SETTLE,
        "a-settled-step-ends-its-pipeline",
        "            is_waiting = isinstance(each, (Pipelines, GroupCallbacks))\n",
        "            is_waiting = isinstance(each, GroupCallbacks)\n",
        "composition:duplicates_end_with_their_value_and_all_goes_on",
    ),
    _in(
        SETTLE,
        "a-settled-member-never-completes-its-group",
        "            is_waiting = isinstance(each, (Pipelines, GroupCallbacks))\n",
        "            is_waiting = isinstance(each, Pipelines)\n",
        "composition:duplicates_end_with_their_value_and_all_goes_on",
    ),
    _in(
        SETTLE,
        "a-sharing-duplicate-ends-with-none",
        "        if value is _MISSING:\n            return False\n",
        "        if value is _MISSING:\n            value = None\n",
        "promises:on_duplicate_share_ends_duplicates_with_the_result_of_the_holder",
    ),
    # Hooks
    _in(
        MIDDLEWARE,
        "what-ends-without-a-body-refuses-triggers",
        "            self._withdraw(binding, message)\n",
        "            pass\n",
        "out:a_message_that_is_too_old",
        "out:a_message_that_other_middleware_skips",
    ),
    _in(
        MIDDLEWARE,
        "an-actor-that-cannot-work-is-declared",
        "        self._or_translated(lambda: self.binding(broker).check(actor))\n",
        "",
        "binding:what_cannot_be_is_refused_when_the_actor_is_declared",
    ),
    _in(
        BINDING,
        "too-old-messages-wait-for-ever",
        "                if max_age:\n",
        "                if False:\n",
        "findings:a_message_that_is_too_old_refuses_nobody_while_no_worker_looks_at_it",
    ),
    _in(
        CONSUMERS,
        "a-second-worker-is-a-lost-connection",
        "        self._seen.pop(thread.queue_name, None)\n",
        "",
        "binding:a_second_worker_of_a_process_has_lost_no_connection",
    ),
)
