"""What the `dramatiq` command of a test worker imports."""

from __future__ import annotations

import dramatiq

from _support.dramatiq_app import broker_of_environment

broker = broker_of_environment()
dramatiq.set_broker(broker)
