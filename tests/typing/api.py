"""The public API as users write it. Nobody runs this: mypy checks it, strictly."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Literal

import redis
from typing_extensions import assert_type

from once_core import (
    ConfigurationError,
    DuplicateTaskError,
    Event,
    Guard,
    Holder,
    KeyDerivationError,
    Lease,
    LeaseLostError,
    LeaseTimeoutError,
    OnceError,
    OnceOptions,
    OncePublish,
    OverlapError,
    Store,
    StoreUnavailableError,
    current_lease,
    subscribe,
)
from once_core.aio import AsyncStore
from once_core.options import OnceOptionsDict
from once_core.protocol import Claim, claim


def tenant() -> str:
    """As prefix."""
    return "shop"


def by_id(order_id: int, **_: object) -> str:
    """As key."""
    return f"order-{order_id}"


# Options, one by one, as a dict, and what is read from them.
OnceOptions()
OnceOptions(scope="until_done", key=["order_id"], ttl=60, lease=dt.timedelta(minutes=1))
OnceOptions(key="order-{order_id}", prefix=tenant, preview=["order_id"], secret=b"pepper")
OnceOptions(key=by_id, on_duplicate="replace", debounce=1.5, debounce_max=dt.timedelta(seconds=9))
OnceOptions(scope="window", window=30, warn_after=None, name=None, url="redis://cache")
OnceOptions(client=redis.Redis(), on_store_error="run", on_overlap="skip", keep_for=5)
OnceOptions(client=lambda: redis.Redis(port=1), return_on_duplicate={"skipped": True})

OnceOptions(leese=5)  # type: ignore[call-arg]  # unknown
OnceOptions(scope="until_executed")  # type: ignore[arg-type]  # another library's
OnceOptions(lease="60")  # type: ignore[arg-type]  # no number
OnceOptions("queued")  # type: ignore[call-arg]  # keyword only

as_dict: OnceOptionsDict = {"scope": "queued", "ttl": 60}
options = OnceOptions(**as_dict)
assert_type(options.lease, float)
assert_type(options.window, float | None)
assert_type(options.on_overlap, Literal["defer", "skip", "raise"])
assert_type(options.with_call({"ttl": 5}), OnceOptions)

# A guard, and what a person may ask of it.
store = Store("redis://cache")
Store(redis.Redis())
Store(lambda: redis.Redis(port=1))
AsyncStore("redis://cache")
guard = Guard("shop.sync", by_id, options, lambda: store)
assert_type(guard.key((1,), {}), str)
assert_type(guard.is_locked((1,), {}), bool)
assert_type(guard.release((1,), {}, holder_id="m1"), bool)
assert_type(guard.holder((1,), {}), Holder | None)


def who(guard: Guard) -> str:
    """Tell who holds a unit of work."""
    holder = guard.holder((1,), {})
    if holder is None:
        return "nobody"
    assert_type(holder.age, float)
    return f"{holder.state} {holder.message_id} {holder.fence + 1} {holder.remaining:.1f}"


# Steps.
assert_type(store.run(claim("k", "m", ttl=60, heal_after=60)), Claim)
assert_type(
    store.run_many([claim("k", "m", ttl=60, heal_after=60)]), list[Claim | StoreUnavailableError]
)


async def ask(store: AsyncStore) -> bool:
    """The same over asyncio."""
    answer = await store.run(claim("k", "m", ttl=60, heal_after=60))
    assert_type(answer, Claim)
    return answer.is_duplicate


# In a body.
def body() -> int:
    """Write with a fence."""
    lease = current_lease()
    assert_type(lease, Lease | None)
    if lease is None or lease.lost:
        return 0
    lease.check()
    assert_type(lease.remaining, float)
    return lease.fence


# Events.
def metric(event: Event) -> None:
    """Count."""
    assert_type(event.kind, str)
    assert_type(event.ran, float | None)


assert_type(subscribe(metric), Callable[[], None])
seen: list[Event] = []
subscribe(seen.append)()


# Handles and errors.
def handle(told: OncePublish) -> float:
    """What a caller reads from `.once`."""
    assert_type(told.state, str)
    return told.retry_after if told.is_duplicate else 0.0


def send() -> float | str | int | None:  # noqa: PLR0911  # one for each error
    """Catch each error, and read its facts."""
    try:
        body()
    except DuplicateTaskError as error:
        return error.retry_after
    except OverlapError as error:
        return error.holder_id
    except LeaseLostError as error:
        return error.fence
    except LeaseTimeoutError as error:
        return error.waited
    except StoreUnavailableError as error:
        return error.reason
    except KeyDerivationError as error:
        return error.parameter
    except ConfigurationError as error:
        return error.option
    except OnceError as error:
        return str(error)
    return None
