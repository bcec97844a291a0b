"""The command ``once``, also ``python -m once_core``."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

import once_core

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_INSTALL = "pip install 'once-tasks[demo]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; by default those of this process.

    Returns:
        The exit code. Wrong arguments end the process with 2, as argparse does.
    """
    command = _parser().parse_args(arguments).command
    try:
        return int(command())
    except BrokenPipeError:
        # `once demo | head`: nobody reads on. What is buffered has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="once", description="Background tasks that neither pile up nor overlap."
    )
    parser.add_argument("--version", action="version", version=f"once {_version()}")
    commands = parser.add_subparsers(required=True, metavar="command")
    about = "show the promises being kept, with real workers and a SIGKILL (about 20 seconds)"
    demo = commands.add_parser("demo", help=about, description=about)
    demo.set_defaults(command=_demo)
    return parser


def _version() -> str:
    try:
        return once_core.__version__
    except PackageNotFoundError:
        return "(not installed)"


def _demo() -> int:
    if sys.platform == "win32":
        print(
            "once demo: there is no Valkey or Redis server for Windows that it could start, and "
            "Celery has no prefork pool there; run it under WSL",
            file=sys.stderr,
        )
        return 2
    try:
        import celery  # noqa: F401  # only to see that it is there
        import kombu.transport.redis
        import rich  # noqa: F401  # the same
    except ImportError as error:
        print(f"once demo: {error.name or error} is missing; {_INSTALL}", file=sys.stderr)
        return 2
    if not hasattr(kombu.transport.redis.Channel, "unacked_restore_interval"):
        text = f"kombu {kombu.__version__} is too old to redeliver soon; {_INSTALL} -U kombu"
        print(f"once demo: {text}", file=sys.stderr)
        return 2
    from once_core.demo import story

    return story.run()


if __name__ == "__main__":
    sys.exit(main())
