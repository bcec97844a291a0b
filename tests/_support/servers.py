"""A record whose time the test decides, on fakeredis and on a real server alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fakeredis
import redis

from once_core import protocol
from once_core._scripts import STEPS, script
from once_core.protocol import Message, Step
from once_core.store import Store

if TYPE_CHECKING:
    from once_core.devserver import DevServer

DAY = 86_400
"""Seconds that keys of these tests live longer than in production: their time is not the server's,
so the server must not end them before the test does."""

START = 1_795_248_000.0
"""When tests begin, as Unix time."""


_SHIM = """
local micros, seconds = table.remove(ARGV), table.remove(ARGV)
local redis = (function(real)
  local function call(name, key, ...)
    if name == 'TIME' then return { seconds, micros } end
    if name == 'PEXPIRE' then
      return real.call(name, key, string.format('%.0f', tonumber((...)) + DAY))
    end
    if key == nil then return real.call(name) end
    return real.call(name, key, ...)
  end
  return { call = call, pcall = real.pcall }
end)(redis)
""".replace("DAY", str(DAY * 1000))


class ClockClient:
    """A redis-py client for `Store` that gives the record's scripts the time of the test.

    The scripts are the shipped ones, run behind `_SHIM`: TIME answers what the test says, and
    keys live `DAY` longer.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.now = START
        self._scripts = {
            each.sha: client.register_script(_SHIM + each.text) for each in map(script, STEPS)
        }

    def evalsha(self, sha: str, _keys: int, key: str, *args: Any) -> object:
        """Carry one step at the time of the test."""
        seconds, micros = divmod(round(self.now * 1_000_000), 1_000_000)
        return self._scripts[sha](keys=[key], args=[*args, seconds, micros])


class Unit:
    """One unit of work in a store, with the settings that most tests want."""

    WAITING = {"ttl": 3600.0, "heal_after": 60.0}  # noqa: RUF012  # never changed
    WORKER = {"where": "host:1:boot", "lease": 60.0}  # noqa: RUF012  # never changed

    def __init__(self, client: redis.Redis, key: str = "once:unit") -> None:
        self.redis = client
        self.key = key
        self.clock = ClockClient(client)
        self.store = Store(self.clock)  # type: ignore[arg-type]  # all that a Store needs of one
        client.delete(key)

    def pass_time(self, seconds: float) -> None:
        """Let time go on, or step back."""
        self.clock.now += seconds

    def run(self, step: Step[Any]) -> Any:
        """Carry any step."""
        return self.store.run(step)

    def claim(self, message_id: str = "m1", **options: Any) -> protocol.Claim:
        """Publish: may it be sent?"""
        return self.run(protocol.claim(self.key, message_id, **{**self.WAITING, **options}))

    def send(self, message_id: str = "m1", **options: Any) -> Message:
        """Publish, and it must be accepted."""
        answer = self.claim(message_id, **options)
        assert answer.ticket > 0, answer
        return Message(message_id, answer.ticket, options.get("retries", 0))

    def confirm(self, message: Message, ttl: float = 3600.0) -> str:
        """The replacing message is with the broker."""
        return self.run(protocol.confirm(self.key, message.ticket, ttl=ttl))

    def withdraw(self, message: Message) -> str:
        """The message was taken away."""
        return self.run(protocol.withdraw(self.key, message))

    def start(self, message: Message, attempt: str = "a1", **options: Any) -> protocol.Start:
        """A worker has the message."""
        settings = {**self.WAITING, **self.WORKER, **options}
        return self.run(protocol.start(self.key, message, attempt, **settings))

    def renew(self, message: Message, attempt: str = "a1", **options: Any) -> str:
        """Heartbeat."""
        settings = {**self.WORKER, "fence": 1, "held": 0.0, **options}
        return self.run(protocol.renew(self.key, message, attempt, **settings))

    def finish(
        self, message: Message, attempt: str = "a1", outcome: str = "success", **options: Any
    ) -> protocol.Finish:
        """The body ended."""
        settings = {**self.WAITING, **options}
        return self.run(protocol.finish(self.key, message, attempt, outcome, **settings))

    def reap(self, message_id: str, attempt: str = "", margin: float = 0.0) -> protocol.Reap:
        """The process of this message died."""
        return self.run(protocol.reap(self.key, message_id, attempt, margin=margin))

    def release(self, holder_id: str = "") -> protocol.Release:
        """A person frees it."""
        return self.run(protocol.release(self.key, holder_id))

    def fields(self) -> dict[str, str]:
        """The hash as it is in Redis."""
        found = self.redis.hgetall(self.key)
        return {name.decode(): value.decode() for name, value in found.items()}

    def life(self) -> float:
        """Seconds that the key would live in production."""
        return self.redis.pttl(self.key) / 1000 - DAY


def make_client(kind: str, server: DevServer | None) -> redis.Redis:
    """A client of fakeredis or of a real server."""
    if kind == "fakeredis":
        return fakeredis.FakeRedis(server=fakeredis.FakeServer())
    assert server is not None
    return server.client()
