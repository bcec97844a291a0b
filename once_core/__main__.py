"""The command ``once``, also ``python -m once_core``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

import once_core
from once_core.cli.commands import add_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from once_core.cli.program import Program
    from once_core.demo.binding import Binding

__all__ = ["main"]

_INSTALL = "pip install 'once-tasks[demo]'"


def main(arguments: Sequence[str] | None = None, program: Program | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; by default those of this process.
        program: The user's, for whoever has found it already; else ``-A`` names it.

    Returns:
        The exit code. Wrong arguments end the process with 2, as argparse does.
    """
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.command(parsed, program))
    except BrokenPipeError:
        # `once demo | head`: nobody reads on. What is buffered has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="once", description="Background tasks that neither pile up nor overlap."
    )
    parser.add_argument(
        "-A", "--app", default="", metavar="MODULE",
        help="your program, as you give it to your worker: shop, or shop:app",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"once {_version()}")
    commands = parser.add_subparsers(required=True, metavar="command")
    about = "show the promises being kept, with real workers and a SIGKILL (about 20 seconds)"
    demo = commands.add_parser("demo", help=about, description=about)
    demo.add_argument("--dramatiq", action="store_true", help="with Dramatiq instead of Celery")
    demo.set_defaults(command=_demo)
    add_to(commands)
    return parser


def _version() -> str:
    try:
        return once_core.__version__
    except PackageNotFoundError:
        return "(not installed)"


def _demo(arguments: argparse.Namespace, _program: object = None) -> int:
    from once_core.demo.binding import CELERY, DRAMATIQ

    binding = DRAMATIQ if arguments.dramatiq else CELERY
    if reason := _why_not(binding):
        print(f"once demo: {reason}", file=sys.stderr)
        return 2
    from once_core.demo import story

    return story.run(binding)


def _why_not(binding: Binding) -> str:
    """What stands in the way of the demo."""
    if sys.platform == "win32":
        return (
            "there is no Valkey or Redis server for Windows that it could start, and Celery has "
            "no prefork pool there; run it under WSL"
        )
    try:
        for name in binding.needs:
            importlib.import_module(name)
    except ImportError as error:
        return f"{error.name or error} is missing; {_INSTALL}"
    kombu = sys.modules.get("kombu.transport.redis")
    if kombu and not hasattr(kombu.Channel, "unacked_restore_interval"):
        version = sys.modules["kombu"].__version__
        return f"kombu {version} is too old to redeliver soon; {_INSTALL} -U kombu"
    return ""


if __name__ == "__main__":
    sys.exit(main())
