"""``once doctor --acl``: the users that a lock store should have, ready to paste."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from once_core._client import is_cluster
from once_core.errors import ConfigurationError
from once_core.permissions import ROLES, Role, acl, missing

if TYPE_CHECKING:
    import argparse

    from once_core.cli.output import Output
    from once_core.cli.program import Program
    from once_core.store import Store

__all__ = ["acl_command"]

_ABOUT: dict[Role, str] = {
    "worker": "all who publish or run tasks, or call functions under @once",
    "reader": "who only looks: ls, show, explain, stats, doctor, watch, web",
    "operator": "who frees units of work too: release, web --allow-release",
}


def acl_command(program: Program, _parsed: argparse.Namespace, output: Output) -> int:
    """Print a user of each role, for each prefix, and what the user of the URL lacks. Always 0."""
    users = [
        _User(role, prefix, acl(role, prefix, cluster=cluster), _lacks(store, role, prefix))
        for prefix, cluster, store in _places(program)
        for role in ROLES
    ]
    output.data([{"user": user.name, **user._asdict(), "line": user.line} for user in users])
    for user in users:
        output.line(f"# {_ABOUT[user.role]}", "dim")
        output.line(user.line)
        if user.lacks:
            output.line(f"# the user of this URL lacks for that: {' '.join(user.lacks)}", "yellow")
    return 0


class _User(NamedTuple):
    role: Role
    prefix: str
    rules: list[str]
    lacks: list[str]

    @property
    def name(self) -> str:
        return f"{self.prefix}-{self.role}"

    @property
    def line(self) -> str:
        rules = " ".join(self.rules)
        return f"ACL SETUSER {self.name} reset resetchannels on >PASSWORD {rules}"


def _lacks(store: Store | None, role: Role, prefix: str) -> list[str]:
    """What the user lacks whose URL we have; it may be meant for another role."""
    return missing(store, role, prefix) if store is not None else []


def _places(program: Program) -> list[tuple[str, bool, Store | None]]:
    """The prefixes of a program, whether their store is a Cluster, and the store."""
    try:
        places = program.places()
    except ConfigurationError:
        return [(program.prefix, False, None)]
    found = {(prefix, is_cluster(store.place)): store for store, prefix in places}
    return [(*place, store) for place, store in found.items()]
