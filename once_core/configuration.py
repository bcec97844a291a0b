"""What holds for a whole process: `configure`, for programs without an app's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from once_core._surroundings import process_options
from once_core.options import OnceOptions, OnceOptionsDict

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["configure"]


def configure(**options: Unpack[OnceOptionsDict]) -> None:
    """Give options that hold for every task, actor and function of this process.

    What an app, a middleware, a task or a call says goes before; ``ONCE_URL`` and ``ONCE_PREFIX``
    come after. May come after the tasks are defined, but before the first one is sent or run.
    Calling it again replaces what was given before; without arguments it forgets it.

    Args:
        options: Any of the options; see the table in the docs. Mostly ``url=``.

    Raises:
        ConfigurationError: For an unknown option, or values that cannot be.

    Example:
        >>> configure(url="redis://cache:6379/1", prefix="shop")
        >>> OnceOptions.layered({}, {}).prefix
        'shop'
        >>> configure()
    """
    OnceOptions(**options)  # what cannot be is refused here, not where it is first used
    given: Mapping[str, object] = dict(options)
    process_options.clear()
    process_options.update(given)
