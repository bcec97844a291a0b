"""What the promise tests' workers import: `celery -A` finds the app, `dramatiq` the broker."""

from __future__ import annotations

import json
import os

import dramatiq

from _support import celery_app, dramatiq_app, promise_tasks

if celery_app.SETTINGS in os.environ:
    app = celery_app.app
    promise_tasks.add_to_celery(app, json.loads(os.environ[celery_app.SETTINGS]))

if dramatiq_app.SETTINGS in os.environ:
    broker = dramatiq_app.broker_of_environment()
    promise_tasks.add_to_dramatiq(broker, json.loads(os.environ[dramatiq_app.SETTINGS]))
    dramatiq.set_broker(broker)
