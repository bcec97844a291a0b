"""Processes that hold a lease or wait for one, to be killed, frozen and asked; run as a script."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis
    from typing_extensions import Self


class LeaseProcess:
    """A process in a block of ``lease(name)``, or on its way there. Use as a context manager.

    Args:
        url: Of the lock store.
        name: Of the lease.
        options: Of the lease: numbers.
    """

    def __init__(self, url: str, name: str, **options: float) -> None:
        given = [f"{key}={value}" for key, value in options.items()]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), url, name, *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def says(self) -> str:
        """The next thing it says: the fence of its lease first, ``"out"`` in the end."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, question: str) -> str:
        """``"lost"``: whether its lease is; ``"end"``: leave the block."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self.says()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for its end."""
        return self._process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def parked(client: redis.Redis) -> int:
    """How many wait in the lines of all leases on a server."""
    found: Any = 0
    for key in client.scan_iter("once:lease:*"):
        fields: Any = client.hkeys(key)
        found += sum(name.startswith(b"p") and name.endswith(b"a") for name in fields)
    return found


def _main() -> None:
    from once_core import lease

    url, name, *given = sys.argv[1:]
    options: Any = {key: float(value) for key, _, value in (each.partition("=") for each in given)}
    if "limit" in options:
        options["limit"] = int(options["limit"])
    try:
        with lease(name, url=url, **options) as held:
            print(held.fence, flush=True)
            for line in sys.stdin:
                if line.strip() == "end":
                    break
                print(held.lost, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return
    print("out", flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are imported as `_support`
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _main()
