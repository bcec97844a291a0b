"""Who we are, in a form that tells on this machine whether a holder is still alive."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path

__all__ = ["is_dead", "whereabouts"]


def whereabouts() -> str:
    """``host:pid:namespace`` of this process, at most 64 characters.

    The last part names the machine's boot and the process namespace: two containers may well
    share a host name, and then a pid that is missing here says nothing about the other.
    """
    return f"{_host()}:{os.getpid()}:{_namespace(os.getpid())}"


def is_dead(where: str) -> bool:
    """Whether the process named by `whereabouts` is known to be gone; in doubt it lives.

    Example:
        >>> is_dead(whereabouts())
        False
    """
    _, _, rest = where.partition(":")
    pid, _, namespace = rest.rpartition(":")
    if not (pid.isdigit() and namespace) or namespace != _namespace(os.getpid()):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: str) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


@cache
def _host() -> str:
    return socket.gethostname().replace(":", "_")[:40]


@cache
def _namespace(_pid: int) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        identity = boot + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
    return hashlib.sha256(identity.encode()).hexdigest()[:10]
