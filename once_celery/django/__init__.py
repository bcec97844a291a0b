"""Celery tasks under guard in Django: sent when the transaction is committed.

```python
@shared_task(base=DjangoOnceTask)
def sync_order(order_id): ...


sync_order.delay_on_commit(order.pk)
```

With ``"once_celery.django"`` in ``INSTALLED_APPS``, ``manage.py check`` finds what cannot work.
"""

from __future__ import annotations

import celery

from once_celery.task import OnceTask

try:
    from celery.contrib.django.task import DjangoTask
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("celery"):
        raise  # Django itself is not there
    raise ImportError(
        "once_celery.django needs Celery 5.4 or newer, whose DjangoTask it extends; this is Celery "
        f"{celery.__version__}. once_celery.OnceTask works with it: send by "
        "transaction.on_commit(functools.partial(task.delay, ...))"
    ) from error

__all__ = ["DjangoOnceTask"]


class DjangoOnceTask(OnceTask, DjangoTask):  # type: ignore[misc]  # Celery has no types
    """`OnceTask` with Django's ``delay_on_commit`` and ``apply_async_on_commit``.

    These claim the unit of work and send the message when the transaction is committed, and do
    neither when it is rolled back; outside of a transaction, at once. They return None, so a
    duplicate is seen in the log and by `holder` alone, and a `StoreUnavailableError` reaches
    whoever commits. Plain `delay` claims and sends at once, inside of a transaction too.

    Example:
        >>> from celery import Celery
        >>> app = Celery("shop", broker="memory://", set_as_current=False)
        >>> app.conf.once_url = "memory://django-example"
        >>> @app.task(base=DjangoOnceTask)
        ... def sync_order(order_id): ...
        >>> hasattr(sync_order, "delay_on_commit"), sync_order.delay(1).once.state
        (True, 'claimed')
    """

    abstract = True
