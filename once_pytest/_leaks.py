"""What a test must not leave behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from once_pytest import _render

if TYPE_CHECKING:
    from once_pytest.harness import OnceHarness

__all__ = ["leak_text"]


_WAY_OUT = '@pytest.mark.once(leaks="ignore"), once_leaks = ignore in the ini'


def leak_text(harness: OnceHarness, *, is_error: bool, way_out: str = _WAY_OUT) -> str:
    """What to say at the end of a test, or an empty text.

    Args:
        harness: Of the test.
        is_error: Whether locks that are held count; keys without an end always do.
        way_out: How a test says that they do not.
    """
    immortal = harness.immortal
    if immortal:
        return (
            "the test left keys without a TTL, which would stay for ever:\n"
            + "\n".join(f"  {key}" for key in immortal)
            + "\nEvery key of a lock has to end by itself: write it with PX or call PEXPIRE"
        )
    held = harness.leaked if is_error else []
    if not held:
        return ""
    several = "locks that are still held" if len(held) > 1 else "a lock that is still held"
    return "\n".join(
        [
            f"the test left {several}:",
            *_render.locks(held),
            "In production it would refuse calls until it ends by itself. Either",
            "  - run what was sent: once_drain(), or a worker of once_worker;",
            "  - say that it is meant: assert_task_locked(task, ...), which also tests it;",
            f"  - or look away: {way_out}.",
        ]
    )
