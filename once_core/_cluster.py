"""Steps on a Redis Cluster: to the node that has the key; many at once in one round trip a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio

from once_core._breaker import FAILURES
from once_core._replicas import Command, acknowledged, commands, patience_of

if TYPE_CHECKING:
    from once_core.protocol import Step

__all__ = ["ClusterCarrier", "ask", "ask_async", "has_moved", "node_of", "node_of_async"]

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
        before = self.node(step)
        try:
            return ask(self._cluster, step)
        except _CUT:  # and redis-py has looked where the slots are now
            if not has_moved(before, self.node(step)):
                raise
        return ask(self._cluster, step)

    def scripts(self, steps: Sequence[Step[Any]], *, with_texts: bool = False) -> list[object]:
        """The replies to many steps; a node that is away costs its own steps only.

        Args:
            steps: At least one.
            with_texts: Send the texts of their scripts too.
        """
        answers: dict[int, object] = {}
        cut: dict[int, str] = {}
        for node, places in self._by_node(range(len(steps)), steps):
            answers.update(self._pipelined(node, places, steps, with_texts=with_texts))
            away = [at for at in places if isinstance(answers[at], _CUT)]
            if away and node is not None:
                cut.update(dict.fromkeys(away, node.name))
                self._look_again(node)
        moved = [at for at, before in cut.items() if has_moved(before, self.node(steps[at]))]
        if gone := [at for at, each in answers.items() if steps[at].replicas and _has_gone(each)]:
            self._look_again(None)  # redis-py would not have replicas asked
            moved.extend(gone)
        for node, places in self._by_node(moved, steps):
            answers.update(self._pipelined(node, places, steps, with_texts=with_texts))
        for at, answer in answers.items():
            if isinstance(answer, _ELSEWHERE):
                answers[at] = self._elsewhere(steps[at], answer)
        return [answers[at] for at in range(len(steps))]

    def node(self, step: Step[Any]) -> str:
        """Name of the node that has the key, as far as is known; empty if none has."""
        return node_of(self._cluster, step)

    def _by_node(
        self, places: Sequence[int], steps: Sequence[Step[Any]]
    ) -> list[tuple[Any, list[int]]]:
        found: dict[str, tuple[Any, list[int]]] = {}
        for at in places:
            name = self.node(steps[at])
            node = self._cluster.get_node_from_key(steps[at].key) if name else None
            found.setdefault(name, (node, []))[1].append(at)
        return list(found.values())

    def _pipelined(
        self,
        node: Any,  # noqa: ANN401  # of redis-py's, half typed
        places: Sequence[int],
        steps: Sequence[Step[Any]],
        *,
        with_texts: bool = False,
        asking: bool = False,
    ) -> dict[int, object]:
        if node is None:  # nobody has their slots: redis-py pauses and looks again, once for all
            first, *others = places
            if any(steps[at].replicas for at in places):
                # redis-py would not have replicas asked
                self._look_again(None)
                return dict.fromkeys(places, redis.exceptions.SlotNotCoveredError("no node has it"))
            answer = self._one(steps[first])
            if isinstance(answer, FAILURES):
                return dict.fromkeys(places, answer)
            return {first: answer, **{at: self._one(steps[at]) for at in others}}
        try:
            # a pipeline of the cluster client itself refuses EVALSHA
            client = self._cluster.get_redis_connection(node)
            own = [steps[at] for at in places]
            replies = pipelined(client, own, with_texts=with_texts, asking=asking)
        except FAILURES as error:
            return dict.fromkeys(places, error)
        return dict(zip(places, replies, strict=True))

    def _elsewhere(self, step: Step[Any], error: Any) -> object:  # noqa: ANN401  # see above
        """The reply from where a node points to."""
        if not step.replicas:
            return self._one(step)  # redis-py goes there
        is_on_its_way = isinstance(error, redis.exceptions.AskError) and not _has_gone(error)
        node = self._cluster.get_node(error.host, error.port) if is_on_its_way else None
        if node is None:
            return error
        # not by redis-py, for WAIT has to follow on the same connection
        return self._pipelined(node, [0], [step], with_texts=True, asking=True)[0]

    def _look_again(self, away: Any) -> None:  # noqa: ANN401  # see above
        """Ask where the slots are now, and not the node that did not answer just now."""
        manager = self._cluster.nodes_manager
        known = manager.startup_nodes
        left_out = known.pop(away.name, None) if away and len(known) > 1 else None
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


def _has_gone(answer: object) -> bool:
    """Whether the slot of a step is another node's by now."""
    return isinstance(answer, redis.exceptions.MovedError)


def pipelined(
    client: Any,  # noqa: ANN401  # any client of one server
    steps: Sequence[Step[Any]],
    *,
    with_texts: bool = False,
    asking: bool = False,
) -> list[object]:
    """The replies to steps that are sent at once; errors of single ones among them.

    Args:
        client: Of redis-py.
        steps: At least one.
        with_texts: Send the texts of their scripts too.
        asking: The slot is on its way to this server.
    """
    pipeline = client.pipeline(transaction=False)
    if asking:
        pipeline.execute_command("ASKING")  # of the one command behind it
    for command in commands(steps, with_texts=with_texts, patience=patience_of(client)):
        pipeline.execute_command(*command)
    replies = pipeline.execute(raise_on_error=False)
    for reply in replies:
        _unannotate(reply)
    return acknowledged(steps, replies[1:] if asking else replies)


def _unannotate(reply: object) -> None:
    """Leave of an error what the server said: redis-py puts a whole script before it."""
    if isinstance(reply, redis.RedisError) and reply.args:
        _, annotation, said = str(reply.args[0]).rpartition(" of pipeline caused error: ")
        if annotation:
            reply.args = (said, *reply.args[1:])


def ask(client: Any, step: Step[Any]) -> object:  # noqa: ANN401  # any client of redis-py
    """The reply to one step, by a client that takes it where it belongs."""
    script = step.script
    try:
        return client.evalsha(script.sha, 1, step.key, *step.args)
    except redis.exceptions.NoScriptError:
        return client.eval(script.text, 1, step.key, *step.args)


async def node_of_async(client: Any, step: Step[Any]) -> str:  # noqa: ANN401  # see above
    """Name of the node that has the key; empty where there is one server only."""
    if not isinstance(client, redis.asyncio.RedisCluster):
        return ""
    await client.initialize()
    return node_of(client, step)


async def ask_async(client: Any, step: Step[Any]) -> object:  # noqa: ANN401  # see above
    """The same by an async client; by one of a Cluster as `ClusterCarrier` does."""
    if not isinstance(client, redis.asyncio.RedisCluster):
        return await _asked(client, step)
    before = await node_of_async(client, step)
    try:
        return await _asked(client, step)
    except (*_CUT, redis.exceptions.ClusterDownError):
        # looks where the slots are now; of what replicas have to have redis-py has noticed nothing
        await (client.nodes_manager if step.replicas else client).initialize()
        if not has_moved(before, node_of(client, step)):
            raise
    return await _asked(client, step)


async def _asked(client: Any, step: Step[Any]) -> object:  # noqa: ANN401  # see above
    if step.replicas and not type(client).__module__.startswith("fakeredis"):
        return await _replicated(client, step)
    script = step.script
    try:
        reply: object = await client.evalsha(script.sha, 1, step.key, *step.args)
    except redis.exceptions.NoScriptError:
        reply = await client.eval(script.text, 1, step.key, *step.args)
    return reply


async def _replicated(client: Any, step: Step[Any]) -> object:  # noqa: ANN401  # see above
    """The reply to a step that replicas have to have, with ``WAIT`` on the same connection."""
    answer: object = None
    for with_texts in (False, True):
        words = commands([step], with_texts=with_texts, patience=patience_of(client))
        if isinstance(client, redis.asyncio.RedisCluster):
            replies = await _of_cluster(client, step, words)
        else:
            pipeline = client.pipeline(transaction=False)
            for each in words:
                pipeline.execute_command(*each)
            replies = await pipeline.execute(raise_on_error=False)
        [answer] = acknowledged([step], replies)
        if not isinstance(answer, redis.exceptions.NoScriptError):
            break
    if isinstance(answer, Exception):
        raise answer
    return answer


async def _of_cluster(
    client: Any,  # noqa: ANN401  # see above
    step: Step[Any],
    words: Sequence[Command],
) -> list[object]:
    replies = await _of_node(client.get_node_from_key(step.key), words)
    error: Any = replies[0]
    if isinstance(error, redis.exceptions.MovedError):
        await client.nodes_manager.initialize()  # looks where the slots are now
        return await _of_node(client.get_node_from_key(step.key), words)
    node = (
        client.get_node(error.host, error.port)
        if isinstance(error, redis.exceptions.AskError)
        else None
    )
    return replies if node is None else (await _of_node(node, [("ASKING",), *words]))[1:]


async def _of_node(node: Any, words: Sequence[Command]) -> list[object]:  # noqa: ANN401  # see above
    sent = [redis.asyncio.cluster.PipelineCommand(at, *each) for at, each in enumerate(words)]
    await node.execute_pipeline(sent)
    return [each.result for each in sent]


def node_of(cluster: Any, step: Step[Any]) -> str:  # noqa: ANN401  # half typed
    """Name of the node of a Cluster that has the key, as far as is known; empty if none has."""
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
