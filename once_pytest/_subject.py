"""The guard of whatever a test names: a Celery task, a Dramatiq actor, a function under `@once`."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from once_core.errors import ConfigurationError, OnceError
from once_core.guard import Guard

__all__ = ["Calls", "call", "call_of", "guard_of", "name_of"]

__unittest = True  # unittest shows no frames of ours


class Calls(NamedTuple):
    """The arguments of one call.

    Attributes:
        args: Positional ones.
        kwargs: Those by name.
    """

    args: tuple[object, ...]
    kwargs: dict[str, object]

    def __repr__(self) -> str:
        shown = [repr(each) for each in self.args]
        shown += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"call({', '.join(shown)})"


def call(*args: object, **kwargs: object) -> Calls:
    """The arguments of one call, for assertions that compare several.

    `unittest.mock.call` does as well. Also for a task whose parameter has the name of an
    assertion's own: ``assert_task_locked(task, call(state=3), state="waiting")``.

    Args:
        args: Positional arguments of the task.
        kwargs: Its arguments by name.

    Example:
        >>> call(1, user_id=2)
        call(1, user_id=2)
    """
    return Calls(args, kwargs)


def call_of(args: tuple[object, ...], kwargs: dict[str, object]) -> Calls:
    """The call that an assertion was given, as arguments or as one `call`."""
    if len(args) == 1 and not kwargs:
        only: Any = args[0]
        if isinstance(only, Calls):
            return only
        if type(only).__name__ == "_Call" and type(only).__module__ == "unittest.mock":
            return Calls(tuple(only.args), dict(only.kwargs))
    return Calls(args, kwargs)


def name_of(task: object) -> str:
    """What to call it in a message."""
    for attribute in ("name", "actor_name", "__qualname__"):
        name = getattr(task, attribute, None)
        if isinstance(name, str):
            return name
    return repr(task)


def guard_of(task: Any) -> Guard:  # noqa: ANN401  # of frameworks that need not be installed
    """The guard of a task, an actor or a function.

    Raises:
        AssertionError: It has none; says how to give it one.
    """
    __tracebackhide__ = True
    try:
        found = _guard_of(task)
    except OnceError as error:
        raise AssertionError(f"{name_of(task)} has no lock: {error}") from None
    if found is None:
        raise AssertionError(f"{name_of(task)} has no lock: {_remedy(task)}")
    return found


def _guard_of(task: Any) -> Guard | None:  # noqa: ANN401  # see `guard_of`
    if isinstance(task, Guard):
        return task
    own: object = getattr(task, "once_guard", None)  # of our tasks, functions and blocks
    if callable(own):
        found: Guard = own()
        return found
    dramatiq = sys.modules.get("dramatiq")
    if dramatiq is not None and isinstance(task, dramatiq.Actor):
        from once_dramatiq.handles import guard_of as of_actor

        guard = of_actor(task)
        middleware = next(each for each in task.broker.middleware if hasattr(each, "binding"))
        if not middleware.binding(task.broker).is_guarded(task):
            raise ConfigurationError(
                "the actor does not ask for it; give it once=True, or add "
                "OnceMiddleware(every_actor=True) to its broker"
            )
        return guard
    return None


def _remedy(task: object) -> str:
    celery = sys.modules.get("celery")
    if celery is not None and isinstance(task, celery.Task):
        return "it is a plain Celery task; define it with base=OnceTask"
    if callable(task):
        return (
            "it is a plain function; name the task (Celery, base=OnceTask), the actor (Dramatiq, "
            "once=True) or the function under @once that is made of it"
        )
    return f"it is {type(task).__name__}, and neither a task, an actor nor a function under @once"
