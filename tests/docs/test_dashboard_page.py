"""The page of the dashboard: what it tells users of Django to write, in a process of its own.

Those blocks are ``py``, which `test_docs` leaves to this file; the rest is read there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from once_core.devserver import DevServer

PAGE = Path(__file__).parent.parent.parent / "docs" / "howto" / "dashboard.md"
FENCE = re.compile(r"^```py\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SETTINGS = """
SECRET_KEY = "only for this test"
ROOT_URLCONF = "shop.settings"
ALLOWED_HOSTS = ["shop.example"]
LOGIN_URL = "/sign-in/"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
CELERY_BROKER_URL = "redis://localhost:6379/0"
urlpatterns = []
"""

APP = """
from celery import Celery
from once_celery import OnceTask

app = Celery("shop", broker="redis://localhost:6379/0")


@app.task(base=OnceTask)
def ship(order_id): ...
"""

ASGI = """
import asyncio

import httpx
from shop.asgi import application, settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command

call_command("migrate", verbosity=0)


def session_of(user):
    made = SessionStore()
    made[SESSION_KEY] = str(user.pk)
    made[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    made[HASH_SESSION_KEY] = user.get_session_auth_hash()
    made.save()
    return made.session_key


staff = session_of(User.objects.create_user("ada", is_staff=True))
other = session_of(User.objects.create_user("bob"))


async def look(path, session=""):
    transport = httpx.ASGITransport(app=application)
    cookies = {settings.SESSION_COOKIE_NAME: session}
    async with httpx.AsyncClient(
        transport=transport, base_url="https://shop.example", cookies=cookies
    ) as browser:
        return await browser.get(path)


for path, session in [("/", ""), ("/once/", ""), ("/once/", other), ("/once/units", staff)]:
    answer = asyncio.run(look(path, session))
    print(answer.status_code, answer.headers.get("location", "-"), "Units of work" in answer.text)
"""

WSGI = """
from shop.wsgi import application
from werkzeug.test import Client

browser = Client(application)
for path in ("/", "/once/units"):
    answer = browser.get(path, base_url="https://shop.example")
    print(answer.status_code, "Sign in" in answer.text)
answer = browser.post(
    "/once/login", base_url="https://shop.example", data={"token": "a long secret, from settings"}
)
print(answer.status_code, answer.headers["location"])
print("Units of work" in browser.get("/once/units", base_url="https://shop.example").text)
"""


@pytest.fixture
def project(tmp_path: Path, shared_server: DevServer) -> Path:
    """What the page shows, in a project of Django."""
    found = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    assert [name for name, _ in found] == ["shop/asgi.py", "shop/wsgi.py"]
    found += [("shop/settings.py", SETTINGS), ("shop/celery.py", APP)]
    found += [("shop/__init__.py", "from .celery import app as celery_app\n")]
    for name, text in found:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        here = text.replace("redis://localhost:6379/0", shared_server.url)
        path.write_text(here, encoding="utf-8")
    return tmp_path


def run(project: Path, code: str) -> list[str]:
    """What a program in the project prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_django_lets_its_staff_in(project: Path) -> None:
    """By ASGI, with Django's own sign-in: strangers and customers are sent to it."""
    assert run(project, ASGI) == [
        "404 - False",
        "307 /sign-in/ False",
        "307 /sign-in/ False",
        "200 - True",
    ]


def test_django_by_wsgi(project: Path) -> None:
    """With a token, and beside the site."""
    assert run(project, WSGI) == ["404 False", "401 True", "303 /once/", "True"]
