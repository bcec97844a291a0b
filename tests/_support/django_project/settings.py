"""Settings of the project; a test lays its own over them, as JSON in `SETTINGS`."""

from __future__ import annotations

import json
import os
from pathlib import Path

SETTINGS = "TEST_DJANGO_SETTINGS"

SECRET_KEY = "only for tests"
DEBUG = True
USE_TZ = True
INSTALLED_APPS = ["_support.django_project"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path.cwd() / "shop.sqlite3",
        "OPTIONS": {"timeout": 10},
    }
}
CELERY_BROKER_URL = "redis://localhost:1/0"  # nobody is there, and nobody is asked
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_TIMEOUT = 1

globals().update(json.loads(os.environ.get(SETTINGS, "{}")))
