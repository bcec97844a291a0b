"""The tasks that canvases of the tests are made of."""
# ruff: noqa: ANN001, ANN002, ANN202  # Sample tasks are written as users write them.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from once_celery import OnceTask

INSTEAD = "another did it"
"""What stands in the place of members that are told so."""

BY_UNIT = {"key": "{unit}"}
"""The unit of work shows in the log, by which tests know what was decided about it."""

MEMBERS: dict[str, dict[str, object]] = {
    "member": {"once": BY_UNIT},
    "member_with_value": {"once": {**BY_UNIT, "return_on_duplicate": INSTEAD}},
    "member_until_done": {"once": {**BY_UNIT, "scope": "until_done"}},
    "member_replacing": {"once": {**BY_UNIT, "on_duplicate": "replace"}},
    "member_healing": {"once": {**BY_UNIT, "heal_after": 1}},
    "member_raising": {"once": {**BY_UNIT, "on_duplicate": "raise"}},
    "member_skipping": {"once": {**BY_UNIT, "on_overlap": "skip"}},
    "member_strict": {"once": {**BY_UNIT, "on_overlap": "raise"}},
    "member_quiet": {"once": BY_UNIT, "ignore_result": True},
    "member_sharing": {"once": {"on_duplicate": "share"}},
    "member_sharing_healing": {"once": {"on_duplicate": "share", "heal_after": 1}},
    "member_debounced": {"once": {**BY_UNIT, "on_duplicate": "replace", "debounce": 0.5}},
}
"""Tasks that are the same but for their options."""


def add(task: Callable[..., Any], body: Callable[..., Any]) -> None:  # noqa: C901  # a list
    """Define the tasks: `task` is the app's decorator, `body` what a sample task does."""

    def member_of(name: str) -> Callable[..., Any]:
        def member(self, *before, unit, seconds=0.0, fails=False):
            """`before` is what the canvas hands over, if anything."""
            value = body(self, unit, seconds)
            if fails:
                raise RuntimeError(f"on purpose: {unit}")
            return [value, *before] if before else value

        member.__name__ = name
        return member

    for name, options in MEMBERS.items():
        task(base=OnceTask, bind=True, **options)(member_of(name))

    @task(bind=True)
    def plain_member(self, *before, unit, seconds=0.0, fails=False):
        """The same without once."""
        return member_of("member")(self, *before, unit=unit, seconds=seconds, fails=fails)

    @task(base=OnceTask, bind=True, once=BY_UNIT)
    def becoming_canvas(self, unit, canvas):
        """Becomes a canvas, which comes as a dict."""
        body(self, unit)
        return self.replace(self.app.signature(canvas))

    @task(bind=True)
    def plain_becoming(self, unit, canvas):
        """The same without once."""
        return self.replace(self.app.signature(canvas))

    @task(base=OnceTask, bind=True, once=BY_UNIT)
    def adding_to_chord(self, unit, member):
        """Adds a signature, which comes as a dict, to the chord that it is in."""
        value = body(self, unit)
        self.add_to_chord(self.app.signature(member))
        return value

    @task(base=OnceTask)
    def old_errback(failed, error, traceback, unit=""):
        """An errback that Celery calls in the process of the failed one."""
        body(old_errback, unit or failed.id, payload=str(error))

    @task(bind=True)
    def part(self, label, unit):
        """Whatever else is in the canvas."""
        body(self, f"{unit}-{label}")
        return label

    @task(bind=True)
    def then(self, before, label, unit):
        """What comes after something, and shows what it was given."""
        body(self, f"{unit}-{label}", payload=[label, before])
        return [label, before]

    @task()
    def gather(before, label, unit):
        """The same of a group in a chord header, whose values Celery orders by their ends."""
        return then(sorted(before, key=str), label=label, unit=unit)
