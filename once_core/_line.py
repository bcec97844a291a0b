"""Plain connections of our own to one server, without `execute_command` and its pool.

What those add to each call costs as much as the script itself (measured: a publish takes 1.40 times
a plain one with them, 1.32 without), and redis-py's parser as much again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from once_core._breaker import FAILURES
from once_core._clock import elapsed
from once_core._replicas import acknowledged, commands, patience_of

if TYPE_CHECKING:
    from once_core.protocol import Step

__all__ = ["Line"]

T = TypeVar("T")

FRESH = 0.01
"""Seconds after its last use in which a connection is not asked whether it is still good."""

_BULK, _ERROR, _COUNT = b"$-:"
"""First bytes of the two kinds of answers that a script with a text gives, and of WAIT's."""


class Line:
    """The connections; one is taken for each call, so threads share none at the same time.

    Args:
        client: Ours; its pool makes the connections.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client: redis.Redis | redis.RedisCluster = client
        self._pool = client.connection_pool
        self._idle: deque[Any] = deque()

    def node(self, _step: Step[Any]) -> str:
        """Empty: there is one server only."""
        return ""

    def script(self, step: Step[Any]) -> object:
        """The reply to one step.

        Raises:
            redis.RedisError: The server refused, or is away.
        """
        script = step.script
        ask = _ask_for_text if script.answers_text else _ask
        try:
            return self._call(ask, _packed(("EVALSHA", script.sha, 1, step.key, *step.args)))
        except redis.exceptions.NoScriptError:
            return self._call(ask, _packed(("EVAL", script.text, 1, step.key, *step.args)))

    def scripts(self, steps: Sequence[Step[Any]], *, with_texts: bool = False) -> list[object]:
        """The replies to many steps, sent at once; errors of single ones among them.

        Args:
            steps: At least one.
            with_texts: Send the texts of their scripts too.

        Raises:
            redis.RedisError: The server is away.
        """
        words = commands(steps, with_texts=with_texts, patience=patience_of(self.client))
        packed = b"".join([_packed(each) for each in words])
        if all(step.script.answers_text for step in steps):
            ask = partial(_ask_all_for_texts, len(steps), len(words) - len(steps))
        else:
            ask = partial(_ask_all, len(words))
        return acknowledged(steps, self._call(ask, packed))

    def _call(self, ask: Callable[[Any, bytes], T], packed: bytes) -> T:
        connection = self._take()
        try:
            replies = ask(connection, packed)
        except redis.ResponseError as error:
            _leave_replica(connection, error)
            self._put(connection)
            raise
        except BaseException:
            # a time-out, or a soft time limit in the middle of it: the answer may yet come
            connection.disconnect()
            self._put(connection)
            raise
        self._put(connection)
        return replies

    def _take(self) -> Any:  # noqa: ANN401  # redis-py's connections, of many kinds
        """A connected connection; one that went stale while idle is not an outage."""
        try:
            connection, used_at = self._idle.pop()
        except IndexError:
            connection = self._pool.make_connection()
        else:
            if connection._sock is not None:  # noqa: SLF001  # redis-py 5 has no is_connected
                if elapsed() - used_at < FRESH or self._is_good(connection):
                    return connection
                connection.disconnect()
        try:
            connection.connect()
        except BaseException:
            self._put(connection)
            raise
        return connection

    @staticmethod
    def _is_good(connection: Any) -> bool:  # noqa: ANN401  # see `_take`
        try:
            return not connection.can_read(0)
        except FAILURES:  # it raises at the end of file
            return False

    def _put(self, connection: Any) -> None:  # noqa: ANN401  # see `_take`
        self._idle.append((connection, elapsed()))


def _ask(connection: Any, packed: bytes) -> object:  # noqa: ANN401  # redis-py's, of many kinds
    connection.send_packed_command([packed], check_health=False)
    return connection.read_response()


def _ask_all(count: int, connection: Any, packed: bytes) -> list[object]:  # noqa: ANN401  # see above
    connection.send_packed_command([packed], check_health=False)
    replies: list[object] = []
    for _ in range(count):
        try:
            replies.append(connection.read_response())
        except redis.ResponseError as error:
            replies.append(error)
    for each in replies:
        _leave_replica(connection, each)
    return replies


def _ask_all_for_texts(
    texts: int,
    counts: int,
    connection: Any,  # noqa: ANN401  # see above
    packed: bytes,
) -> list[object]:
    """The same for scripts that answer with one text each, and ``WAIT`` after them."""
    sock = connection._sock  # noqa: SLF001  # see `_take`
    replies: list[object] = []
    data, at = b"", 0
    try:
        sock.sendall(packed)
        while len(replies) < texts + counts:
            end = data.find(b"\r\n", at)
            stop = end + 2
            if end >= 0 and data[at] == _BULK:
                stop += int(data[at + 1 : end]) + 2
            if end < 0 or len(data) < stop:
                more = sock.recv(65536)
                if not more:
                    raise redis.ConnectionError("Connection closed by server.")
                data, at = data[at:] + more, 0
                continue
            kind = _BULK if len(replies) < texts else _COUNT
            replies.append(_reply(connection, kind, data[at:end], data[end + 2 : stop - 2]))
            at = stop
    except TimeoutError:
        raise redis.TimeoutError("Timeout reading from socket") from None
    except OSError as error:
        raise redis.ConnectionError(f"Error while talking to the server: {error}") from error
    if len(data) > at:
        raise redis.ConnectionError(f"the server sent more than its answer: {data[:200]!r}")
    for each in replies:
        _leave_replica(connection, each)
    return replies


def _reply(connection: Any, kind: int, head: bytes, text: bytes) -> object:  # noqa: ANN401  # see above
    if head[0] == _ERROR:
        return connection._parser.parse_error(head[1:].decode())  # noqa: SLF001  # its many kinds
    if head[0] == kind:
        return text.decode() if kind == _BULK else int(head[1:])
    raise redis.ConnectionError(f"the server answered {head[:40]!r}, which is no answer of ours")


def _leave_replica(connection: Any, reply: object) -> None:  # noqa: ANN401  # see above
    """Go by the server's name again, which may lead to the new primary, if this is one no more."""
    if isinstance(reply, redis.exceptions.ReadOnlyError):
        connection.disconnect()


def _ask_for_text(connection: Any, packed: bytes) -> object:  # noqa: ANN401  # see above
    [reply] = _ask_all_for_texts(1, 0, connection, packed)
    if isinstance(reply, Exception):
        raise reply
    return reply


_NUMBERS: dict[object, str] = {}
"""Durations and flags as they are sent: the same few in nearly every command."""

_SHORT, _MOST_NUMBERS = 8, 1000


def _packed(
    command: Sequence[str | int], known: Callable[[object], str | None] = _NUMBERS.get
) -> bytes:
    """A command as Redis wants it; redis-py's own packing takes ten times as long."""
    text = "".join([
        (f"${len(word)}\r\n{word}\r\n" if type(word) is str else known(word) or _number(word))
        for word in command
    ])  # fmt: skip
    if not text.isascii():
        words = [str(word) for word in command]
        text = "".join([f"${len(word.encode())}\r\n{word}\r\n" for word in words])
    return f"*{len(command)}\r\n{text}".encode()


def _number(word: object) -> str:
    text = str(word)
    packed = f"${len(text)}\r\n{text}\r\n"
    if len(text) <= _SHORT and len(_NUMBERS) < _MOST_NUMBERS:
        _NUMBERS[word] = packed
    return packed
