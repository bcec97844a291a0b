"""Steps that count only once replicas have them: ``WAIT``, behind them on the same connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import redis

if TYPE_CHECKING:
    from once_core.protocol import Step

__all__ = ["Command", "TooFewReplicasError", "acknowledged", "commands", "patience_of"]

LONGEST_WAIT = 0.4
"""Seconds for the replicas; with the step itself below our read time-out."""

Command = tuple[str | int, ...]


class TooFewReplicasError(redis.ResponseError):
    """The server has done the step, but would lose it if it died now."""


def patience_of(client: Any) -> float:  # noqa: ANN401  # any client of redis-py
    """Seconds for which the replicas are waited for: well below what the client waits itself."""
    settings = getattr(getattr(client, "connection_pool", client), "connection_kwargs", {})
    given = settings.get("socket_timeout")
    return min(LONGEST_WAIT, given / 2) if given else LONGEST_WAIT


def commands(
    steps: Sequence[Step[Any]], *, with_texts: bool = False, patience: float = LONGEST_WAIT
) -> list[Command]:
    """What to send for steps on one connection.

    ``WAIT`` counts what was written by its own connection, so it comes behind them, once for all.

    Args:
        steps: At least one.
        with_texts: The server has not all of their scripts: the first step of each brings it.
        patience: Seconds for the replicas.
    """
    sent: set[str] = set()
    found: list[Command] = []
    for step in steps:
        script = step.script
        has_it = not with_texts or script.name in sent
        sent.add(script.name)
        command = ("EVALSHA", script.sha) if has_it else ("EVAL", script.text)
        found.append((*command, 1, step.key, *step.args))
    if replicas := _replicas(steps):
        found.append(("WAIT", replicas, round(patience * 1000)))
    return found


def acknowledged(steps: Sequence[Step[Any]], replies: Sequence[object]) -> list[object]:
    """The replies to the steps; errors in the place of those that too few replicas have.

    Args:
        steps: As they were given to `commands`.
        replies: To the commands.
    """
    replicas = _replicas(steps)
    if not replicas:
        return list(replies)
    *answers, count = replies
    if isinstance(count, int) and count >= replicas:
        return answers
    error = count if isinstance(count, Exception) else _too_few(count, replicas)
    return [
        error if step.replicas and not isinstance(answer, Exception) else answer
        for step, answer in zip(steps, answers, strict=True)
    ]


def _replicas(steps: Sequence[Step[Any]]) -> int:
    return max(step.replicas for step in steps)


def _too_few(count: object, replicas: int) -> TooFewReplicasError:
    return TooFewReplicasError(
        f"{count} of min_replicas={replicas} replicas have it; see to the replicas of the lock "
        "store, or lower min_replicas"
    )
