"""Tasks with ``pydantic=True``: a model, its dump and what it would be made from are one call.

Publishers pass models or whatever validates, Celery sends the dump, the body gets models: the
key is derived from what the body gets.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Arguments", "validator"]

Arguments = tuple[Sequence[object], Mapping[str, object]]


def validator(run: Callable[..., object]) -> Callable[..., Arguments] | None:
    """What makes models of the arguments of a task, or None where the task knows no models.

    Args:
        run: The task's body, as Celery wrapped it.
    """
    wrapped = next((each for each in _layers(run) if _is_celerys(each)), None)
    models = _models(inspect.unwrap(wrapped)) if wrapped is not None else {}
    if not models:
        return None
    signature = inspect.signature(run)

    def validated(args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return args, kwargs
        for name in models.keys() & bound.arguments.keys():
            try:
                bound.arguments[name] = models[name].model_validate(bound.arguments[name])
            except Exception:  # noqa: BLE001, S110  # validators are the user's
                pass  # the task will say so; until then it is what was sent
        return bound.args, bound.kwargs

    return validated


def _layers(run: Any) -> Iterator[Any]:
    run = getattr(run, "__func__", run)
    while run is not None:
        yield run
        run = getattr(run, "__wrapped__", None)


def _is_celerys(function: Any) -> bool:
    """Nothing else tells of ``pydantic=True`` in all versions; autoretry wraps as well."""
    home = getattr(function, "__globals__", {}).get("__name__")
    return hasattr(function, "__wrapped__") and home == "celery.app.base"


def _models(function: Callable[..., object]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function)
    except (NameError, AttributeError, TypeError):
        hints = dict(getattr(function, "__annotations__", {}))
    found = {}
    for name, hint in hints.items():
        choices = [hint, *typing.get_args(hint)]
        models = [each for each in choices if hasattr(each, "model_validate")]
        if models and name != "return" and len(choices) in (1, 3):  # a model, or one or None
            found[name] = models[0]
    return found
