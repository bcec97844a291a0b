"""A broker's actors and middleware in the words of `once_core`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from dramatiq import GenericActor, get_encoder
from dramatiq.asyncio import async_to_sync
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import q_name
from dramatiq.middleware import AgeLimit
from dramatiq.results import Results

from once_core._client import Like
from once_core._diversion import is_bypassed
from once_core.envelope import OFF, Envelope
from once_core.errors import ConfigurationError
from once_core.guard import Guard
from once_core.options import OnceOptions, OnceOptionsDict
from once_core.store import Store
from once_dramatiq._consumers import Consumers
from once_dramatiq._thread import ThreadState

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Message, MessageProxy

    from once_core.store import ClientSource

__all__ = ["OPTION", "Binding", "Once", "given", "is_async", "is_off"]

OPTION = "once"
"""Name of the actors' and messages' option; on its way a message has its envelope there."""

Once = OnceOptions | OnceOptionsDict | bool | None


class Binding:
    """What the actors of one broker share: options, lock stores, what its threads do.

    Args:
        broker: The broker.
        defaults: Options that hold for all of its actors.
        every_actor: Whether actors are under guard that do not ask for it.
        thread: What the calling thread does.
    """

    def __init__(
        self,
        broker: Broker,
        defaults: Mapping[str, object],
        thread: ThreadState,
        *,
        every_actor: bool,
    ) -> None:
        self.broker = broker
        self.thread = thread
        self.consumers = Consumers()
        self._defaults = defaults
        self._every_actor = every_actor
        self._stores: dict[object, Store] = {}
        self._guards: dict[str, Guard] = {}
        self._stub_url = f"memory://stub-{uuid.uuid4().hex}"

    @property
    def gives_out_again(self) -> bool:
        """Whether the broker keeps a message until it is acknowledged."""
        return not isinstance(self.broker, StubBroker)

    def is_guarded(self, actor: Actor[..., Any]) -> bool:
        """Whether all messages of an actor are under guard."""
        if is_bypassed():
            return False
        once: Once = actor.options.get(OPTION)
        return self._every_actor if once is None else once is not False

    def guard(self, actor: Actor[..., Any]) -> Guard:
        """The guard of an actor; made when it is first needed, for configuration may come late.

        Raises:
            ConfigurationError: Options that cannot be, or no lock store.
        """
        try:
            return self._guards[actor.actor_name]
        except KeyError:
            return self._guards.setdefault(actor.actor_name, self._new_guard(actor))

    def _new_guard(self, actor: Actor[..., Any]) -> Guard:
        name = actor.actor_name
        options = OnceOptions.layered(self._defaults, given(actor.options.get(OPTION), name), name)
        return Guard(name, _body(actor), options, partial(self.store, options))

    def check(self, actor: Actor[..., Any]) -> None:
        """Refuse what can never work the moment an actor is declared.

        Raises:
            ConfigurationError: Naming the actor, the option, and what to write instead.
        """
        if not self.is_guarded(actor):
            return
        options = self._new_guard(actor).options
        self.check_sharing(actor, options)
        try:
            get_encoder().encode({"value": options.return_on_duplicate})
        except Exception as error:
            raise ConfigurationError(
                f"once option return_on_duplicate={options.return_on_duplicate!r} of "
                f"{actor.actor_name} cannot be stored as a result ({error}); give a value that "
                "Dramatiq's encoder takes",
                option="return_on_duplicate",
            ) from error

    def check_sharing(
        self, actor: Actor[..., Any], options: OnceOptions, message: Message[Any] | None = None
    ) -> None:
        """Refuse to share results where there are none.

        Raises:
            ConfigurationError: Saying what to set.
        """
        if options.on_duplicate != "share":
            return
        own = message.options if message is not None else {}
        if self.results(actor, own) is None:
            why = "it stores no results"
            advice = (
                "add dramatiq.results.Results to the broker before its actors are declared, and "
                "give the actor store_results=True"
            )
        elif options.name:
            why = "with name= its holder may be another actor, under whose name the result is"
            advice = "leave name= out"
        else:
            return
        raise ConfigurationError(
            f'{actor.actor_name} has on_duplicate="share", but {why}, so a duplicate could never '
            f'end with the result of its holder; {advice}, or use on_duplicate="skip"',
            option="on_duplicate",
        )

    def store(self, options: OnceOptions | None = None) -> Store:
        """The lock store: that of these options, or the Redis that the broker uses already.

        Raises:
            ConfigurationError: When there is none of these.
        """
        if options is None:
            options = OnceOptions.layered({}, self._defaults)
        source: Any = options.client or options.url or self._discovered()
        place = source.client if isinstance(source, Like) else source
        name = place if isinstance(place, str) else id(place)
        found = self._stores.get(name)
        return found if found is not None else self._stores.setdefault(name, Store(source))

    def forget(self) -> None:
        """Empty the lock store of a `StubBroker`: its messages are gone, by ``flush_all()``."""
        store = self._stores.get(self._stub_url)
        if store is not None:
            store.client().flushdb()

    def _discovered(self) -> str | Like | ClientSource:
        if isinstance(self.broker, StubBroker):
            return self._stub_url
        client: Any = getattr(self.broker, "client", None)
        if hasattr(client, "connection_pool"):
            like = Like(client)
            return like if like.is_plain else like.client
        raise ConfigurationError(
            f"once has no lock store: {type(self.broker).__name__} has no Redis of its own. Give "
            'OnceMiddleware(url="redis://…"), call once_core.configure(url="redis://…"), or set '
            "the environment variable ONCE_URL",
            option="url",
        )

    def results(
        self, actor: Actor[..., Any], options: Mapping[str, object]
    ) -> tuple[Any, int] | None:
        """The result backend and the life in ms of a result there; None where none is stored.

        Args:
            actor: The actor.
            options: Of the message.
        """
        for each in self.broker.middleware:
            if isinstance(each, Results):
                places: list[Mapping[str, Any]] = [options, actor.options, vars(each)]
                if _first(places, "store_results"):
                    return each.backend, _first(places, "result_ttl")
        return None

    def expires(self, actor: Actor[..., Any], message: Message[Any]) -> float | None:
        """Seconds after which `AgeLimit` throws a message away; None where it does not."""
        for each in self.broker.middleware:
            if isinstance(each, AgeLimit):
                own, default = message.options.get("max_age"), each.max_age
                max_age = own or actor.options.get("max_age", default)
                if max_age:
                    return float(message.message_timestamp + max_age) / 1000 - time.time()
        return None

    def read(self, message: Message[Any] | MessageProxy) -> Envelope | None:
        """The envelope of a message, if it has one that counts."""
        return Envelope.read(message.options.get(OPTION), message.message_id, message.actor_name)

    def is_put_in_delay_queue(self, message: MessageProxy) -> bool:
        """Whether it is the copy that waits in a consumer's hands until it is due."""
        return bool(message.queue_name != q_name(message.queue_name))


def given(once: object, of: str) -> Mapping[str, Any]:
    """The options that were written as ``once=``, for an actor or for a message.

    Raises:
        ConfigurationError: For what is no options.
    """
    if once is None or once is True or once is False:
        return {}
    if isinstance(once, OnceOptions):
        return once.given
    if isinstance(once, Mapping):
        # that of a message that was enqueued before
        return (once.get("call") or {}) if "v" in once else once
    raise ConfigurationError(
        f"once={once!r} of {of} must be a dict of options, OnceOptions(...), True or False"
    )


def is_off(once: object) -> bool:
    """Whether a message asks for no guard."""
    return once is False or (isinstance(once, Mapping) and once.get("scope") == OFF)


def is_async(actor: Actor[..., Any]) -> bool:
    """Whether its body is a coroutine; Dramatiq has made a plain function of it."""
    return getattr(actor.fn, "__code__", None) is _code_of_async_actors()


@cache
def _code_of_async_actors() -> object:
    async def nothing() -> None: ...

    return async_to_sync(nothing).__code__


def _first(places: list[Mapping[str, Any]], name: str) -> Any:
    return next((place[name] for place in places if name in place), None)


def _body(actor: Actor[..., Any]) -> Callable[..., object]:
    """The function whose parameters callers give."""
    fn: Any = actor.fn
    return fn.perform if isinstance(fn, GenericActor) else fn
