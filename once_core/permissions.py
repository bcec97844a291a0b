"""What a user of the lock store has to be allowed, as Redis' ACL rules, and what it is refused.

Derived from what is sent, and held to it by tests: under these rules everything works, and without
any one of them something does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import redis

from once_core._breaker import FAILURES

if TYPE_CHECKING:
    from once_core.store import Store

__all__ = ["ROLES", "Role", "acl", "missing"]

Role = Literal["worker", "reader", "operator"]

ROLES: tuple[Role, ...] = ("worker", "reader", "operator")

_ASKING = ("evalsha", "eval", "time", "hgetall", "info", "select")
"""Of everybody: a step is a script, which the server may have forgotten."""

_READING = ("scan", "ping", "xread", "xrange", "xrevrange")

_WRITING = ("hset", "hdel", "del", "pexpire", "pttl", "publish", "xadd", "expire")

_COMMANDS: dict[Role, tuple[str, ...]] = {
    "worker": (*_ASKING, *_WRITING, "hmget", "hlen", "hincrby", "subscribe", "wait"),
    "reader": (*_ASKING, *_READING),
    "operator": (*_ASKING, *_READING, *_WRITING),
}

_CLUSTER = ("cluster|slots", "command")
"""What redis-py asks before it can send anything to a Cluster."""

_NOWHERE = "0" * 40
"""Digest of no script."""


def acl(role: Role, prefix: str = "once", *, cluster: bool = False) -> list[str]:
    """The rules of one user, for ``ACL SETUSER name reset resetchannels on >password …``.

    CLIENT SETINFO, by which redis-py gives its name, is not among them: it goes on where that is
    refused, and a server older than 7.2 would refuse a user whose rules name it.

    Args:
        role: ``"worker"`` for all who publish or run tasks, or call functions under ``@once``;
            ``"reader"`` for the commands that only look, and the dashboard; ``"operator"`` for
            those that free a unit of work too.
        prefix: First part of the keys.
        cluster: Whether the lock store is a Redis Cluster.

    Example:
        >>> acl("reader", "shop")  # doctest: +NORMALIZE_WHITESPACE
        ['~shop:*', '+evalsha', '+eval', '+time', '+hgetall', '+info', '+select',
         '+scan', '+ping', '+xread', '+xrange', '+xrevrange']
        >>> acl("worker")[:2]
        ['~once:*', '&once:*']
    """
    pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", prefix) + ":*"
    places = [f"~{pattern}"] if role == "reader" else [f"~{pattern}", f"&{pattern}"]
    commands = (*_COMMANDS[role], *(_CLUSTER if cluster else ()))
    return [*places, *(f"+{command}" for command in commands)]


def missing(store: Store, role: Role, prefix: str = "once") -> list[str]:
    """The rules of `acl` that the user of a store lacks, as far as the server says.

    Each command is sent in a form that changes nothing, which needs no rights over the ACL itself:
    who lacks something could not ask it. What was refused is in the server's ``ACL LOG``.

    Args:
        store: The lock store.
        role: What it is to be used for.
        prefix: First part of the keys.

    Returns:
        Rules to be added; empty also where the server does not answer, or knows no ACL.

    Example:
        >>> from once_core.store import Store
        >>> missing(Store("memory://permissions-example"), "worker")
        []
    """
    try:
        client: Any = store.client()
        if isinstance(client, redis.RedisCluster):
            cluster: Any = client  # half typed
            client = cluster.get_redis_connection(cluster.get_default_node())
        client.ping()
    except redis.exceptions.NoPermissionError:
        pass  # it answers, and says so of others below
    except FAILURES:
        return []  # each command would wait as long
    rules = acl(role, prefix)
    places = [rule for rule in rules if rule[0] in "~&"]
    found = []
    for command in _COMMANDS[role]:
        if command == "wait":
            continue  # of those alone who use `min_replicas=`, whose calls say so
        refused = _refusal(client, _harmless(command, f"{store.prefix}{prefix}:doctor"))
        if refused:
            found.append(_rule(refused, places) or f"+{command}")
    return list(dict.fromkeys(found))


def _rule(refused: str, places: Sequence[str]) -> str:
    """Which rule would allow what was refused, by the server's words."""
    named = re.search(r"'([a-z|]+)' command", refused)  # SELECT is refused before all others
    if named:
        return f"+{named[1]}"
    return next((rule for rule in places if _WORD[rule[0]] in refused), "")


_WORD = {"~": " key", "&": " channel"}


def _refusal(client: Any, command: tuple[str | int, ...]) -> str:  # noqa: ANN401  # redis-py's
    """What the server says against it, if this user may not; other errors are no matter."""
    try:
        if command[0] == "SUBSCRIBE":
            _listen(client, str(command[1]))
        else:
            client.execute_command(*command)
    except redis.exceptions.NoPermissionError as error:
        return str(error)
    except FAILURES:
        return ""
    return ""


def _listen(client: Any, channel: str) -> None:  # noqa: ANN401  # see above
    with client.pubsub() as listener:
        listener.subscribe(channel)
        listener.get_message(timeout=1.0)


def _harmless(command: str, key: str) -> tuple[str | int, ...]:
    """A command with arguments by which nothing changes: a server looks at permissions first."""
    forms: dict[str, tuple[str | int, ...]] = {
        "evalsha": (_NOWHERE, 1, key),
        "eval": ("return 1", 1, key),
        "select": (1_000_000,),  # no database: it stays in its own
        "scan": (0, "COUNT", 1),
        "hset": (key, "field", "value", "without a value"),
        "hincrby": (key, "field", "no number"),
        "hmget": (key, "field"),
        "hdel": (key, "field"),
        "pexpire": (key, 1),
        "expire": (key, 1),
        "publish": (key, "nobody listens"),
        "xadd": (key, "no id", "field", "value"),
        "xread": ("COUNT", 1, "STREAMS", key, 0),
        "xrange": (key, "-", "+", "COUNT", 1),
        "xrevrange": (key, "+", "-", "COUNT", 1),
        **dict.fromkeys(("time", "info", "ping"), ()),
    }
    return (command.upper(), *forms.get(command, (key,)))
