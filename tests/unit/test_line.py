"""Our own reading and writing of the protocol of Redis, in however many pieces it comes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from once_core import protocol
from once_core._line import Line, _packed

CLAIM = protocol.claim("once:unit:0", "m1", ttl=60, heal_after=60)
COUNTED = protocol.claim("once:unit:0", "m1", ttl=60, heal_after=60, replicas=1)
CLAIMED = b"$11\r\nclaimed 5 0\r\n"


class Connection:
    """As one of redis-py's, over a socket whose other end is the test's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock: Any = sock
        self._parser = redis.Connection()._parser

    def can_read(self, _timeout: float) -> bool:
        return False

    def disconnect(self) -> None:
        self._sock = None

    def connect(self) -> None:
        """It is."""


@contextmanager
def answering(*packets: bytes, ends: bool = False) -> Iterator[Line]:
    """A line to a server that says this, each packet by itself."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)

    def serve() -> None:
        theirs.recv(1)
        for packet in packets:
            theirs.sendall(packet)
        if ends:
            theirs.shutdown(socket.SHUT_RDWR)

    server = threading.Thread(target=serve)
    server.start()
    line = Line(redis.Redis())
    line._idle.append((Connection(ours), float("inf")))
    try:
        yield line
    finally:
        server.join(5)
        ours.close()
        theirs.close()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_answers_come_in_pieces(size: int) -> None:
    """However the network cuts them."""
    said = CLAIMED + b"-ERR no\r\n" + b"$12\r\nclaimed 71 0\r\n" + b":1\r\n"
    packets = [said[at : at + size] for at in range(0, len(said), size)]
    steps = [CLAIM, CLAIM, COUNTED]

    with answering(*packets) as line:
        first, refused, last = line.scripts(steps)

    assert (first, last) == ("claimed 5 0", "claimed 71 0")
    assert isinstance(refused, redis.ResponseError)
    assert str(refused) == "no"


@pytest.mark.parametrize(
    ("packets", "error"),
    [
        ([CLAIMED + b"+OK\r\n"], "more than its answer"),
        ([b":1\r\n"], "no answer of ours"),
        ([b"*0\r\n"], "no answer of ours"),
        ([b"$11\r\nclai"], "closed by server"),
        ([], "closed by server"),
    ],
)
def test_what_is_no_answer_of_ours(packets: Sequence[bytes], error: str) -> None:
    """An error, and the connection is given up: whatever comes next is not the next answer."""
    with answering(*packets, ends=True) as line:
        with pytest.raises(redis.ConnectionError, match=error):
            line.script(CLAIM)
        connection, _ = line._idle[-1]

    assert connection._sock is None


@given(st.lists(st.one_of(st.text(), st.integers()), min_size=1))
def test_a_command_is_packed_as_redis_wants_it(words: list[str | int]) -> None:
    """Lengths are those of the bytes."""
    parts = [str(word).encode() for word in words]
    lines = [b"$%d\r\n%s\r\n" % (len(part), part) for part in parts]

    assert _packed(words) == b"*%d\r\n%s" % (len(words), b"".join(lines))
