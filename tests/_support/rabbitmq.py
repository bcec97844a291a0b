"""The RabbitMQ that tests may use, with their own queues; needs neither framework."""

from __future__ import annotations

import os

import pika

__all__ = ["AMQP_URL", "PIKA_URL", "is_rabbitmq_there"]

AMQP_URL = os.environ.get("ONCE_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")

PIKA_URL = AMQP_URL.removesuffix("//") + "/%2F" if AMQP_URL.endswith("//") else AMQP_URL
"""The same for pika; Celery's URLs may end in two slashes."""


def is_rabbitmq_there() -> bool:
    """Whether it answers."""
    parameters = pika.URLParameters(PIKA_URL)
    parameters.socket_timeout = parameters.blocked_connection_timeout = 2
    try:
        pika.BlockingConnection(parameters).close()
    except Exception:  # noqa: BLE001  # whatever the reason
        return False
    return True
