"""Tasks of the project."""

from __future__ import annotations

from celery import shared_task

from once_celery.django import DjangoOnceTask

from .models import Order


@shared_task(base=DjangoOnceTask)
def ship(order_id: int) -> str:
    """Write to the row; fails where the row is not committed yet."""
    order = Order.objects.get(pk=order_id)
    order.state = "shipped"
    order.save()
    return order.state


@shared_task(base=DjangoOnceTask, serializer="pickle")
def ship_row(order: Order) -> str:
    """The same with the row itself as the argument."""
    return ship(order.pk)


@shared_task(base=DjangoOnceTask)
def ship_row_as_json(order: Order) -> None:
    """Cannot be sent: JSON has no rows."""


@shared_task
def plain(order_id: int) -> None:
    """Not under guard."""
