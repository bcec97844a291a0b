"""Where functions and leases have their locks: the store of their options, one for a process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio

from once_core._client import Like
from once_core._diversion import diversion
from once_core.aio import AsyncStore
from once_core.errors import ConfigurationError
from once_core.store import Store

if TYPE_CHECKING:
    from once_core.options import OnceOptions

__all__ = ["async_store_of", "store_of"]

_stores: dict[object, Store] = {}
_async_stores: dict[object, AsyncStore] = {}
"""By URL, or by the id of a client: two functions with one place share its connections."""


def store_of(options: OnceOptions, name: str) -> Store:
    """The store that these options name.

    Raises:
        ConfigurationError: They name none.
    """
    source = options.client or options.url or _nowhere(name)
    if isinstance(source, (redis.asyncio.Redis, redis.asyncio.RedisCluster)):
        raise ConfigurationError(
            f"client= of {name} is an asyncio client, and leases are renewed by a thread, also "
            "for coroutines; give url=, or a redis.Redis client: the asyncio one is made like it",
            option="client",
        )
    # bound methods are made anew each time, and are equal
    place = source if isinstance(source, str) or callable(source) else id(source)
    found = _stores.get(place)
    return found if found is not None else _stores.setdefault(place, Store(source))


def async_store_of(options: OnceOptions, name: str) -> AsyncStore:
    """The same for asyncio.

    Raises:
        ConfigurationError: They name none, or none that can be had for asyncio.
    """
    test = diversion()

    def find() -> AsyncStore:
        if options.url:
            return _async_stores.setdefault(options.url, AsyncStore(options.url))
        store_of(options, name)  # says what is wrong
        given: Any = options.client
        place = given if callable(given) else id(given)
        if place in _async_stores:
            return _async_stores[place]
        source = given() if callable(given) else given
        if not (isinstance(source, redis.Redis) and Like(source).is_plain):
            raise ConfigurationError(
                f"client= of {name} is {type(source).__name__}, of which no asyncio client can "
                "be made; give url= for coroutines",
                option="client",
            )
        # the sync store of that client keeps it alive, and its id its own
        return _async_stores.setdefault(place, AsyncStore(Like(source).make_async))

    return find() if test is None else test.async_store(find)


def _nowhere(name: str) -> str:
    raise ConfigurationError(
        f"{name} has no lock store: call once_core.configure(url='redis://…'), set the environment "
        "variable ONCE_URL, or give url= or client=",
        option="url",
    )
