"""The only place that makes Redis clients: short time-outs, no retries, one pool a process.

redis-py's own defaults retry: they block 3.6 s on a refused port and 58.7 s on a frozen
server (measured with redis-py 8.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from once_core.errors import ConfigurationError
from once_core.events import logger

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "Client",
    "ClientSource",
    "Like",
    "is_cluster",
    "make_async_client",
    "make_client",
    "masked",
    "sentinels_of",
]

Client = redis.Redis | redis.RedisCluster
AsyncClient = redis.asyncio.Redis | redis.asyncio.RedisCluster
ClientSource = Client | Callable[[], Client]

CONNECT_TIMEOUT = 0.4
READ_TIMEOUT = 0.8
"""Seconds; together the "about a second" that a publish may take when the store is away."""

_SCHEMES = {
    "redis": "redis://[user:password@]host[:6379][/database]",
    "rediss": "rediss://… (TLS)",
    "unix": "unix:///path/to/socket[?db=0]",
    "redis+sentinel": "redis+sentinel://host:26379,host:26379[/database]/service",
    "redis+cluster": "redis+cluster://host:6379,host:6379",
    "rediss+cluster": "rediss+cluster://… (TLS)",
    "memory": "memory:// (fakeredis, for one process)",
}

_fakes: dict[str, object] = {}
"""Servers of ``memory://`` URLs: what one process shares."""

T = TypeVar("T")


class Like(NamedTuple):
    """The server of a client that somebody else uses, with time-outs of our own.

    Attributes:
        client: Theirs; it is asked for nothing but its settings.
    """

    client: redis.Redis

    @property
    def is_plain(self) -> bool:
        """Whether a client like it can be made: not one of Sentinel's, a fake, a subclass."""
        kind = self.client.connection_pool.connection_class
        return type(self.client) is redis.Redis and kind in (
            redis.Connection,
            redis.SSLConnection,
            redis.UnixDomainSocketConnection,
        )

    @property
    def place(self) -> str:
        """Where the server is, fit for logs."""
        settings = self.client.connection_pool.connection_kwargs
        where = settings.get("path") or f"{settings.get('host')}:{settings.get('port')}"
        return f"{where}/{settings.get('db') or 0}"

    def make(self) -> redis.Redis:
        """A client with our time-outs and without retries."""
        pool = redis.ConnectionPool(
            connection_class=self.client.connection_pool.connection_class,
            **{**self._settings, "retry": Retry(NoBackoff(), 0)},
        )
        return redis.Redis(connection_pool=pool)

    def make_async(self) -> redis.asyncio.Redis:
        """The same for asyncio."""
        kind = self.client.connection_pool.connection_class.__name__
        pool = redis.asyncio.ConnectionPool(
            connection_class=getattr(redis.asyncio, kind),
            **{**self._settings, "retry": AsyncRetry(NoBackoff(), 0)},
        )
        return redis.asyncio.Redis(connection_pool=pool)

    @property
    def _settings(self) -> dict[str, Any]:
        theirs = self.client.connection_pool.connection_kwargs
        where = {
            name: value
            for name, value in theirs.items()
            if name in _CARRIED or name.startswith("ssl")
        }
        return {**where, **_PLAIN, **_timeouts()}


_CARRIED = frozenset({"host", "port", "path", "db", "username", "password", "credential_provider"})
"""Settings that say where a client's server is, and who asks; how it is asked is ours to say."""

_PLAIN: Mapping[str, object] = {"protocol": 2, "max_connections": 2**31}
"""Of connections that `_line` reads: with RESP 3 servers may send what nobody has asked for. As
many as threads and tasks ask at once: redis-py 8 would refuse the hundred and first."""


def is_cluster(url: str) -> bool:
    """Whether making a client for this URL asks the server at once, as Cluster's does."""
    return urlsplit(url).scheme.endswith("+cluster")


def masked(url: str) -> str:
    """A URL without its password, fit for logs.

    Example:
        >>> masked("redis://:s3cret@cache:6379/0")
        'redis://***@cache:6379/0'
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    credentials, at, host = rest.rpartition("@")
    path = host.partition("?")[0]
    if "?" in credentials:
        path = "***"  # that @ may stand in an option, and a password before or behind it
    return f"{scheme}{separator}{'***' if credentials else ''}{at}{path}"


def make_client(url: str) -> Client:
    """A client for a URL, with our time-outs and without retries.

    Args:
        url: See the schemes in the error; options of redis-py may follow as ``?name=value``.

    Raises:
        ConfigurationError: For a scheme nobody knows, or parts that are missing.
    """
    if _scheme(url) == "memory":
        return cast("Client", _fake("FakeRedis", url))
    settings = {**_timeouts(), "retry": Retry(NoBackoff(), 0)}
    return cast("Client", _connected(url, redis, Sentinel, settings))


def make_async_client(url: str) -> AsyncClient:
    """The same for asyncio."""
    if _scheme(url) == "memory":
        return cast("AsyncClient", _fake("FakeAsyncRedis", url))
    settings = {**_timeouts(), "retry": AsyncRetry(NoBackoff(), 0)}
    return cast("AsyncClient", _connected(url, redis.asyncio, AsyncSentinel, settings))


def sentinels_of(client: AsyncClient) -> list[redis.asyncio.Redis]:
    """The clients with which a client of Sentinel's asks who is primary: it never closes them."""
    pool = getattr(client, "connection_pool", None)
    manager = getattr(pool, "sentinel_manager", None)
    return list(manager.sentinels) if manager is not None else []


def _timeouts() -> dict[str, object]:
    return {"socket_timeout": READ_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT}


def _scheme(url: str) -> str:
    """The kind of a URL that can be used as far as one can tell by looking at it.

    Raises:
        ConfigurationError: Otherwise.
    """
    if _is_torn(url):
        raise ConfigurationError(
            f"the lock store's URL {masked(url)!r} has a password with a character that means "
            "something in URLs; write it as urllib.parse.quote(password, safe='') gives it",
            option="url",
        )
    scheme = urlsplit(url).scheme
    # redis-py's async client takes redis:/…, and looks for a server on this machine
    if scheme not in _SCHEMES or not url.lower().startswith(f"{scheme}://"):
        known = "\n  ".join(_SCHEMES.values())
        shown = urlsplit(masked(url)).scheme  # what comes before a colon may be a user
        raise ConfigurationError(
            f"the lock store's URL {masked(url)!r} has the scheme {shown!r}, which is none of\n"
            f"  {known}\nSet once_url (Celery) or ONCE_URL to one of these",
            option="url",
        )
    return scheme


_PLACE = re.compile(r"(\[.*\]|[^:]+)(:\w*)?")
"""A host, and its port."""


def _is_torn(url: str) -> bool:
    """Whether a password ends in the wrong part of the URL, and would be shown as another.

    Raises:
        ConfigurationError: It is no URL at all.
    """
    try:
        place = urlsplit(url).netloc
    except ValueError as error:  # which may show all of it
        if "@" in url:
            return True
        raise ConfigurationError(
            f"the lock store's URL {masked(url)!r} cannot be used: {error}", option="url"
        ) from None
    if "@" in place or "@" not in url:
        return False
    before, _, _ = url.partition("://")[2].partition("?")
    # behind the ? an option may have an @, but then a host and nothing else stands before it
    return "@" in before or not all(map(_PLACE.fullmatch, place.split(",") if place else ()))


def _connected(
    url: str, module: ModuleType, sentinel: Callable[..., Any], settings: Mapping[str, object]
) -> object:
    scheme = _scheme(url)
    if scheme == "redis+sentinel":
        return _from_sentinel(url, sentinel, settings)
    if is_cluster(url):
        return _from_cluster(url, module, settings)
    try:
        client = module.Redis.from_url(url, **{**_PLAIN, **settings, **_verifying(url)})
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # connects to nobody; refuses options
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"the lock store's URL {masked(url)!r} cannot be used: {error}", option="url"
        ) from None
    return client


def _verifying(url: str) -> dict[str, object]:
    """redis-py 5 takes a certificate that is good for any other host, unless it is told."""
    wants_none = dict(parse_qsl(urlsplit(url).query)).get("ssl_cert_reqs") == "none"
    is_tls = urlsplit(url).scheme.startswith("rediss")
    return {"ssl_check_hostname": True} if is_tls and not wants_none else {}


def _hosts(url: str, default_port: int) -> list[tuple[str, int]]:
    _, _, places = urlsplit(url).netloc.rpartition("@")
    hosts = []
    for place in places.split(","):
        host, _, port = place.rpartition(":") if ":" in place else (place, "", "")
        try:
            hosts.append((host, int(port or default_port)))
        except ValueError:
            host = ""
        if not host:
            raise ConfigurationError(
                f"the lock store's URL {masked(url)!r} needs host:port, separated by commas; "
                f"{place!r} is none",
                option="url",
            )
    return hosts


def _credentials(url: str) -> dict[str, str]:
    login, at, _ = urlsplit(url).netloc.rpartition("@")
    user, _, password = login.partition(":") if at else ("", "", "")
    found = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in found.items() if value}


def _query(url: str) -> dict[str, object]:
    """Options behind the ?, as redis-py itself reads them where there is one host."""
    parsers: Mapping[str, Any] = redis.connection.URL_QUERY_ARGUMENT_PARSERS
    found = parse_qsl(urlsplit(url).query)
    try:
        return {name: parsers.get(name, str)(value) for name, value in found}
    except ValueError:
        raise ConfigurationError(
            f"an option behind the ? of the lock store's URL {masked(url)!r} cannot be used",
            option="url",
        ) from None


def _from_sentinel(
    url: str, sentinel: Callable[..., Any], settings: Mapping[str, object]
) -> object:
    parts = urlsplit(url)
    *database, service = [part for part in parts.path.split("/") if part] or [""]
    if not service or len(database) > 1 or not "".join(database or "0").isdigit():
        raise ConfigurationError(
            f"the lock store's URL {masked(url)!r} needs the service that the sentinels watch: "
            f"{_SCHEMES['redis+sentinel']}",
            option="url",
        )
    extra = _query(url)
    # or redis-py would ask sentinels ten times, with pauses
    own = {**_timeouts(), "retry": settings["retry"]}
    group = sentinel(_hosts(url, 26379), sentinel_kwargs=own)
    return group.master_for(
        service,
        db=int("".join(database) or 0),
        **{**_PLAIN, **settings, **_credentials(url), **extra},
    )


def _from_cluster(url: str, module: ModuleType, settings: Mapping[str, object]) -> object:
    cluster = __import__(f"{module.__name__}.cluster", fromlist=["ClusterNode"])
    nodes = [cluster.ClusterNode(host, port) for host, port in _hosts(url, 6379)]
    extra = {**_PLAIN, **settings, **_credentials(url), **_query(url)}
    extra.setdefault("require_full_coverage", False)  # the nodes decide; redis-py 8 would not ask
    if _scheme(url) == "rediss+cluster":
        extra = {**_verifying(url), **extra, "ssl": True}
    # it follows redirections itself; after a failover `_cluster` asks again, and knows whom
    if int(redis.__version__.partition(".")[0]) < 6:  # noqa: PLR2004  # `retry` is both since
        extra["cluster_error_retry_attempts"] = 0
    return module.RedisCluster(startup_nodes=nodes, **extra)


def _fake(kind: str, url: str) -> object:
    try:
        import fakeredis
    except ImportError:
        raise ConfigurationError(
            f"the lock store's URL {masked(url)!r} needs fakeredis with Lua: "
            "pip install 'once-tasks[pytest]', or use a redis:// URL",
            option="url",
        ) from None
    if url not in _fakes:
        _fakes[url] = fakeredis.FakeServer()
        logger.warning(
            "the lock store %s lives in this process alone: no other process sees its locks",
            masked(url),
        )
    make: Callable[..., object] = getattr(fakeredis, kind)
    return make(server=_fakes[url])
