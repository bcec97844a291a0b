"""A lock store that nobody may use but the users that `once doctor --acl` prints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from once_core.devserver import DevServer
from once_core.permissions import ROLES, Role, acl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

PASSWORD = "s3cr3t-of-the-store"
"""Of every user."""


class UsersServer(DevServer):
    """Its default user is switched off; `url` is the worker's, and `client` an administrator's.

    Not for tests that restart it: users are not kept.
    """

    def start(self) -> Self:
        """Start it, with its users."""
        super().start()
        with DevServer.client(self) as client:
            client.execute_command(
                *f"ACL SETUSER admin reset on >{PASSWORD} ~* &* +@all".split(),
            )
        for role in ROLES:
            self.add_user(role, acl(role))
        self.client().execute_command("ACL", "SETUSER", "default", "off")
        return self

    @property
    def url(self) -> str:
        """For the worker."""
        return self.url_of("worker")

    def url_of(self, user: str, database: int = 0) -> str:
        """For any of its users."""
        return f"redis://{user}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def client(self) -> redis.Redis:
        """For the administrator."""
        return self.client_of("admin")

    def client_of(self, user: str) -> redis.Redis:
        """For any of its users."""
        return redis.Redis.from_url(
            self.url_of(user), protocol=2, socket_timeout=2, retry=Retry(NoBackoff(), 0)
        )

    def add_user(self, name: str, rules: Sequence[str]) -> str:
        """Add a user with these rules; returns the URL for it."""
        with self.client() as client:
            client.execute_command(
                "ACL", "SETUSER", name, "reset", "resetchannels", "on", f">{PASSWORD}", *rules
            )
        return self.url_of(name)

    def without(self, role: Role, rule: str) -> str:
        """Add a user that lacks one rule of its role; returns its name."""
        name = re.sub(r"\W+", "-", f"{role} without {rule}")
        self.add_user(name, [each for each in acl(role) if each != rule])
        return name

    def refused(self, *users: str) -> set[str]:
        """What any of these users was refused, but for redis-py's telling its name."""
        with self.client() as client:
            log = client.execute_command("ACL", "LOG", 1000)
        entries = [dict(zip(each[::2], each[1::2], strict=True)) if isinstance(each, list) else each
                   for each in log]  # fmt: skip
        found = {(each[b"username"].decode(), each[b"object"].decode()) for each in entries}
        return {what for user, what in found if user in users} - {"client|setinfo"}
