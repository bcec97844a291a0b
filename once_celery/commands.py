"""``celery once ...``: commands beside Celery's own, for the app that ``-A`` names.

Found by Celery through the entry point group ``celery.commands``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from celery.bin.base import (
    COMMA_SEPARATED_LIST,
    CeleryCommand,
    CeleryOption,
    handle_preload_options,
)

from once_celery.checkup import findings
from once_celery.inventory import guards_of, queued_for
from once_celery.purging import purge

__all__ = ["once"]


@click.group()
def once() -> None:
    """Background tasks that neither pile up nor overlap."""


@once.command("purge", cls=CeleryCommand)
@click.option(
    "-f", "--force", cls=CeleryOption, is_flag=True, help_group="Purging Options",
    help="Don't ask.",
)  # fmt: skip
@click.option(
    "-Q", "--queues", cls=CeleryOption, type=COMMA_SEPARATED_LIST, help_group="Purging Options",
    help="Comma separated list of queues to purge; by default all that the app consumes from.",
)  # fmt: skip
@click.option(
    "-X", "--exclude-queues", cls=CeleryOption, type=COMMA_SEPARATED_LIST,
    help_group="Purging Options", help="Comma separated list of queues not to purge.",
)  # fmt: skip
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def purge_command(
    context: Any, *, force: bool, queues: list[str] | None, exclude_queues: list[str] | None
) -> None:
    """Throw away the messages of queues and free what waited in them.

    Like `celery purge`, after which each unit of work would refuse calls for a minute or more.
    Messages that workers hold already stay.
    """
    app = context.obj.app
    names = sorted(set(queues or app.amqp.queues.keys()) - set(exclude_queues or ()))
    if not names:
        raise click.UsageError("no queue is left to purge")
    if not force:
        click.confirm(
            f"This throws away all messages of: {', '.join(names)}.\nThere is no undo. Go on?",
            abort=True,
        )
    messages, released, left = purge(app, names)
    context.obj.echo(f"Messages thrown away: {messages}. Units of work freed: {released}.")
    if left:
        context.obj.echo(
            f"Not freed: {left}, for the lock store is away: they refuse calls for up to "
            "heal_after seconds, or as long again as they had waited."
        )
        context.exit(1)


def _forward(name: str, about: str) -> None:
    """The commands of ``once`` that are not Celery's own, for the app that ``-A`` names."""

    @once.command(
        name,
        help=about,
        add_help_option=False,  # its own parser has one
        context_settings={
            "ignore_unknown_options": True,
            "allow_extra_args": True,
            "allow_interspersed_args": False,  # what comes after the first word is not click's
        },
    )
    @click.pass_context
    def command(context: Any) -> None:
        from once_core.__main__ import main
        from once_core.cli.program import Program

        app = context.obj.app
        guards = dict(guards_of(app))
        program = Program(
            app.main or "the app",
            guards,
            checks=[partial(findings, app)],
            backlogs=[partial(queued_for, app)],
        )
        context.exit(main([name, *context.args], program))


for _name, _about in (
    ("explain", "Say whether a call would be sent and run now, and if not, why."),
    ("ls", "List what is held, the oldest first."),
    ("show", "Show one unit of work: who holds it, its record."),
    ("release", "Free a unit of work whose holder you know to be gone."),
    ("doctor", "Look for what will hurt, before it does."),
    ("stats", "Count what is held, by task and state."),
    ("watch", "Print what is decided, as it is decided."),
    ("web", "Serve the dashboard: what is held, by a browser."),
):
    _forward(_name, _about)
