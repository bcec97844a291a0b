"""What the task classes of other libraries have in common: their words become ours, late."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from celery import Task

from once_celery._binding import Binding
from once_celery._replaced import shown, warn_where_defined
from once_celery.task import OnceTask
from once_core.errors import DuplicateTaskError
from once_core.options import OnceOptions

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

    from once_celery.task import Once

__all__ = ["TranslatedTask", "Words", "given_options"]

Words = dict[str, object]


class TranslatedTask(OnceTask):
    """A `OnceTask` that takes another library's words.

    Attributes:
        library: Its name, as in the package index.
        duplicate_error: What a refused call raises.
    """

    abstract = True
    library: ClassVar[str]
    duplicate_error: ClassVar[type[DuplicateTaskError]] = DuplicateTaskError

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the options, and say what to write instead."""
        super().on_bound(app)
        if cls.run is not Task.run:
            warn_where_defined(inspect.unwrap(cls.run), cls.instead())

    @classmethod
    def app_words(cls) -> Words:
        """What the app's configuration says in the library's words, as our options."""
        return {}

    @classmethod
    def task_words(cls, given: Mapping[str, object]) -> Words:
        """What was given with the task, as our options."""
        return dict(given)

    def call_words(self, given: Mapping[str, object]) -> Words:
        """What was given at a call, as our options."""
        return dict(given)

    @classmethod
    def instead(cls) -> str:
        """What to write instead, as a sentence."""
        given = given_options(cls.once)
        options = (
            f", once={{{shown(cls.task_words(given))}}}" if given is not None else ", once=False"
        )
        name = next(each for each in cls.__mro__ if vars(each).get("library")).__name__
        return (
            f"{cls.name}: {name} stands in for {cls.library}; write base=OnceTask"
            f"{options if options != ', once={}' else ''} (from once_celery import OnceTask)"
        )

    @classmethod
    def in_our_words(cls, once: Once) -> Once:
        """The options of the task; the app's old ones give way to its ``once_*`` settings."""
        given = given_options(once)
        if given is None:
            return once
        words = cls.task_words(given)
        nearer = {**Binding.of(cls.app).options(), **words}
        wider = {name: value for name, value in cls.app_words().items() if name not in nearer}
        if "client" in nearer:
            wider.pop("url", None)
        return {**wider, **words}  # type: ignore[return-value]  # `OnceOptions` checks them

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        *other: Any,
        once: Once = None,
        **options: Any,
    ) -> AsyncResult:
        """As `OnceTask.apply_async`, with the library's options and error."""
        given = given_options(once) if once else None
        if given is not None:
            once = self.call_words(given)  # type: ignore[assignment]  # checked where it is used
        try:
            return super().apply_async(args, kwargs, task_id, *other, once=once, **options)
        except DuplicateTaskError as error:
            if error.task != self.name or isinstance(error, self.duplicate_error):
                raise
            raise self.duplicate_error(*error.args) from None


def given_options(once: Once) -> Mapping[str, object] | None:
    """Options as a mapping; None for what is none (False, and what `OnceTask` refuses)."""
    if once is None or once is True:
        return {}
    if isinstance(once, OnceOptions):
        return once.given
    return once if isinstance(once, Mapping) else None
