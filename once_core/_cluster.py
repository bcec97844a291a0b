"""Steps on a Redis Cluster: to the node that has the key; many at once in one round trip a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio

from once_core._breaker import FAILURES

if TYPE_CHECKING:
    from once_core.protocol import Step

__all__ = ["ClusterCarrier", "ask", "ask_async", "has_moved"]

_CUT = (redis.ConnectionError, redis.TimeoutError, OSError)
"""A node is away; another may have taken its place."""

_ELSEWHERE = (redis.exceptions.AskError, redis.exceptions.TryAgainError)
"""Answers of a node whose slot is on its way to another, or has gone there (MOVED is an ASK)."""


class ClusterCarrier:
    """Takes steps to the nodes of a Cluster.

    A step is sent again only if another node has its key by then: asking one that hangs twice
    would take twice as long.

    Args:
        client: Ours, without retries, or one that was handed in, with its own.
    """

    def __init__(self, client: redis.RedisCluster) -> None:
        self.client: redis.Redis | redis.RedisCluster = client
        self._cluster: Any = client  # half typed

    def script(self, step: Step[Any]) -> object:
        """The reply to one step.

        Raises:
            redis.RedisError: The node refused, or is away and nobody has taken over.
        """
        before = self._node(step)
        try:
            return ask(self._cluster, step)
        except _CUT:  # and redis-py has looked where the slots are now
            if not has_moved(before, self._node(step)):
                raise
        return ask(self._cluster, step)

    def scripts(self, steps: Sequence[Step[Any]]) -> list[object]:
        """The replies to many steps; a node that is away costs its own steps only."""
        answers: dict[int, object] = {}
        cut: dict[int, str] = {}
        for node, places in self._by_node(range(len(steps)), steps):
            answers.update(self._pipelined(node, places, steps))
            away = [at for at in places if isinstance(answers[at], _CUT)]
            if away and node is not None:
                cut.update(dict.fromkeys(away, node.name))
                self._look_again(node)
        moved = [at for at, before in cut.items() if has_moved(before, self._node(steps[at]))]
        for node, places in self._by_node(moved, steps):
            answers.update(self._pipelined(node, places, steps))
        for at, answer in answers.items():
            if isinstance(answer, _ELSEWHERE):
                answers[at] = self._one(steps[at])  # redis-py goes where the node points to
        return [answers[at] for at in range(len(steps))]

    def _node(self, step: Step[Any]) -> str:
        """Name of the node that has the key, as far as is known; empty if none has."""
        return _node(self._cluster, step)

    def _by_node(
        self, places: Sequence[int], steps: Sequence[Step[Any]]
    ) -> list[tuple[Any, list[int]]]:
        found: dict[str, tuple[Any, list[int]]] = {}
        for at in places:
            name = self._node(steps[at])
            node = self._cluster.get_node_from_key(steps[at].key) if name else None
            found.setdefault(name, (node, []))[1].append(at)
        return list(found.values())

    def _pipelined(
        self,
        node: Any,  # noqa: ANN401  # of redis-py's, half typed
        places: Sequence[int],
        steps: Sequence[Step[Any]],
    ) -> dict[int, object]:
        if node is None:  # nobody has their slots: redis-py pauses and looks again, once for all
            first, *others = places
            answer = self._one(steps[first])
            if isinstance(answer, FAILURES):
                return dict.fromkeys(places, answer)
            return {first: answer, **{at: self._one(steps[at]) for at in others}}
        try:
            # a pipeline of the cluster client itself refuses EVALSHA
            pipeline = self._cluster.get_redis_connection(node).pipeline(transaction=False)
            for step in (steps[at] for at in places):
                pipeline.evalsha(step.script.sha, 1, step.key, *step.args)
            replies = pipeline.execute(raise_on_error=False)
        except FAILURES as error:
            return dict.fromkeys(places, error)
        return dict(zip(places, replies, strict=True))

    def _look_again(self, away: Any) -> None:  # noqa: ANN401  # see above
        """Ask where the slots are now, and not the node that did not answer just now."""
        manager = self._cluster.nodes_manager
        known = manager.startup_nodes
        left_out = known.pop(away.name, None) if len(known) > 1 else None
        try:
            manager.initialize()
        except FAILURES:  # the next step will find it out, too
            if left_out is not None:
                known.setdefault(away.name, left_out)

    def _one(self, step: Step[Any]) -> object:
        try:
            return self.script(step)
        except FAILURES as error:
            return error


def ask(client: Any, step: Step[Any]) -> object:  # noqa: ANN401  # any client of redis-py
    """The reply to one step, by a client that takes it where it belongs."""
    script = step.script
    try:
        return client.evalsha(script.sha, 1, step.key, *step.args)
    except redis.exceptions.NoScriptError:
        return client.eval(script.text, 1, step.key, *step.args)


async def ask_async(client: Any, step: Step[Any]) -> object:  # noqa: ANN401  # see above
    """The same by an async client; by one of a Cluster as `ClusterCarrier` does."""
    if not isinstance(client, redis.asyncio.RedisCluster):
        return await _asked(client, step)
    await client.initialize()
    before = _node(client, step)
    try:
        return await _asked(client, step)
    except _CUT:
        await client.initialize()  # looks where the slots are now
        if not has_moved(before, _node(client, step)):
            raise
    return await _asked(client, step)


async def _asked(client: Any, step: Step[Any]) -> object:  # noqa: ANN401  # see above
    script = step.script
    try:
        reply: object = await client.evalsha(script.sha, 1, step.key, *step.args)
    except redis.exceptions.NoScriptError:
        reply = await client.eval(script.text, 1, step.key, *step.args)
    return reply


def _node(cluster: Any, step: Step[Any]) -> str:  # noqa: ANN401  # half typed
    try:
        return str(cluster.get_node_from_key(step.key).name)
    except (*FAILURES, AttributeError):  # a slot that nobody has: some versions answer None
        return ""


def has_moved(before: str, now: str) -> bool:
    """Whether another node has a key by now, by the names of the two.

    Example:
        >>> has_moved("10.0.0.1:6379", "10.0.0.2:6379"), has_moved("10.0.0.1:6379", "")
        (True, False)
    """
    return bool(now) and now != before
