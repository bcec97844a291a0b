"""Django: locks that follow transactions, settings in its namespace, and ``manage.py check``.

Django's settings are those of a process, so everything happens in processes of the project's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import celery
import pytest
from _support.forks import Forks
from _support.waiting import wait_until
from _support.workers import TESTS, CeleryWorker

from once_core.devserver import DevServer

CHECKED = ["_support.django_project", "once_celery.django"]
"""INSTALLED_APPS with the checks."""

PREAMBLE = """
import json
import django

django.setup()

from django.db import transaction
from _support.django_project.models import Order
from _support.django_project.tasks import ship, ship_row, ship_row_as_json

def queued():
    with ship.app.connection_for_write() as connection:
        return connection.default_channel._size(ship.app.conf.task_default_queue)
"""


class Project:
    """The sample project in a folder of its own."""

    def __init__(self, forks: Forks, folder: Path, url: str = "redis://localhost:1/0") -> None:
        self._forks = forks
        self.folder = folder
        self.settings: dict[str, object] = {
            "CELERY_BROKER_URL": url,
            "CELERY_RESULT_BACKEND": url,
            "CELERY_TASK_DEFAULT_QUEUE": f"once-django-{uuid.uuid4().hex[:8]}",
        }
        self.module = "_support.django_project.settings"

    def environment(self, **settings: object) -> dict[str, str]:
        """For a process of the project."""
        return {
            "DJANGO_SETTINGS_MODULE": self.module,
            "TEST_DJANGO_SETTINGS": json.dumps({**self.settings, **settings}),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(self.folder)]),
        }

    def run(self, code: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run Python in the project."""
        return self._forks.run(dedent(code), self.folder, self.environment(**settings))

    def script(self, code: str, **settings: object) -> Any:
        """What a script of the project prints as JSON."""
        done = self.run(PREAMBLE + dedent(code), **settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def check(self, *args: str, **settings: object) -> str:
        """The output of ``manage.py check``."""
        code = f"""
            from django.core.management import execute_from_command_line
            execute_from_command_line({["manage.py", "check", *args]})
        """
        done = self.run(code, **{"INSTALLED_APPS": CHECKED, **settings})
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def write(self, name: str, text: str) -> None:
        """A module or a package of the project's folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """What runs scripts of projects."""
    if celery.VERSION < (5, 4):
        pytest.skip("Celery has DjangoTask since 5.4")
    with Forks() as made:
        yield made


@pytest.fixture(scope="module")
def shop(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory, shared_server: DevServer
) -> Project:
    """The project with a database; nobody works on its queue."""
    project = Project(forks, tmp_path_factory.mktemp("django"), shared_server.url)
    project.script("""
        from django.db import connection
        with connection.schema_editor() as editor:
            editor.create_model(Order)
        print("{}")
    """)
    return project


@pytest.fixture
def project(forks: Forks, tmp_path: Path) -> Project:
    """The project as ``manage.py check`` sees it: its Redis is away."""
    return Project(forks, tmp_path)


@pytest.fixture
def worker(shop: Project) -> Iterator[str]:
    """A worker of the project, and the name of its queue."""
    queue = f"once-django-{uuid.uuid4().hex[:8]}"
    environment = shop.environment(
        CELERY_TASK_DEFAULT_QUEUE=queue,
        CELERY_ACCEPT_CONTENT=["json", "pickle"],
        INSTALLED_APPS=CHECKED,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("C_FORCE_ROOT", "true")  # for pickle
        made = CeleryWorker({}, shop.folder, app="_support.django_project", concurrency=1)
    yield made.ready() and queue
    made.kill()


@pytest.mark.lifecycle
def test_lock_is_taken_when_the_transaction_is_committed(shop: Project) -> None:
    """Neither lock nor message before; both after, and `delay_on_commit` returns None."""
    before, after = shop.script("""
        with transaction.atomic():
            order = Order.objects.create()
            handle = ship.delay_on_commit(order.pk)
            before = [handle, ship.is_locked(order.pk), queued()]
        print(json.dumps([before, [ship.holder(order.pk).state, queued()]]))
    """)

    assert before == [None, False, 0]
    assert after == ["waiting", 1]


@pytest.mark.lifecycle
def test_no_lock_and_no_message_after_a_rollback(shop: Project) -> None:
    """Of the whole transaction, or of the part of it in which the call was made."""
    outer, inner = shop.script(
        """
        def fail(inside):
            order = Order.objects.create()
            try:
                with transaction.atomic():
                    ship.apply_async_on_commit((order.pk,))
                    raise RuntimeError
            except RuntimeError:
                pass
            return [ship.is_locked(order.pk), queued()]

        outer = fail(False)
        with transaction.atomic():
            inner = fail(True)
        print(json.dumps([outer, [*inner[:1], queued()]]))
        """,
        CELERY_TASK_DEFAULT_QUEUE=f"once-django-{uuid.uuid4().hex[:8]}",
    )

    assert outer == [False, 0]
    assert inner == [False, 0]


def test_plain_delay_in_a_transaction_locks_at_once(shop: Project) -> None:
    """As Celery's own publishes at once: it is there after a rollback too."""
    inside, after = shop.script(
        """
        order = Order.objects.create()
        try:
            with transaction.atomic():
                inside = ship.delay(order.pk).once.state
                raise RuntimeError
        except RuntimeError:
            print(json.dumps([inside, [ship.is_locked(order.pk), queued()]]))
        """,
        CELERY_TASK_DEFAULT_QUEUE=f"once-django-{uuid.uuid4().hex[:8]}",
    )

    assert inside == "claimed"
    assert after == [True, 1]


def test_one_transaction_sends_one_message(shop: Project) -> None:
    """Ten calls on commit are one message; options of a call come along."""
    queued, remaining = shop.script(
        """
        with transaction.atomic():
            order = Order.objects.create()
            for _ in range(10):
                ship.apply_async_on_commit((order.pk,), once={"ttl": 5000})
        print(json.dumps([queued(), ship.holder(order.pk).remaining]))
        """,
        CELERY_TASK_DEFAULT_QUEUE=f"once-django-{uuid.uuid4().hex[:8]}",
    )

    assert queued == 1
    assert 4000 < remaining <= 5000


@pytest.mark.lifecycle
def test_a_worker_finds_what_was_committed(shop: Project, worker: str) -> None:
    """The task runs after the commit, with the row's key and with the row itself."""
    code = """
        with transaction.atomic():
            one, other = Order.objects.create(), Order.objects.create()
            ship.delay_on_commit(one.pk)
            ship_row.delay_on_commit(other)
        print(json.dumps([one.pk, other.pk]))
    """
    keys = shop.script(code, CELERY_TASK_DEFAULT_QUEUE=worker)

    def states() -> Any:
        """Look while Celery's worker of another process writes."""
        return shop.script(f"""
            rows = Order.objects.filter(pk__in={keys})
            print(json.dumps([row.state for row in rows]))
        """)

    wait_until(lambda: states() == ["shipped", "shipped"], "both tasks have run")


def test_rows_are_told_apart_by_their_primary_keys(shop: Project) -> None:
    """Two instances of one row are one unit of work, whatever their other fields say."""
    states = shop.script(
        """
        order, other = Order.objects.create(), Order.objects.create()
        again = Order.objects.get(pk=order.pk)
        again.state = "not saved"
        print(json.dumps([ship_row.delay(each).once.state for each in (order, again, other)]))
        """
    )

    assert states == ["claimed", "waiting", "claimed"]


def test_rows_cannot_be_sent_as_json(shop: Project) -> None:
    """Celery's own error, and nothing stays locked by it."""
    error, is_locked = shop.script(
        """
        order = Order.objects.create()
        try:
            ship_row_as_json.delay(order)
        except Exception as error:
            print(json.dumps([str(error), ship_row_as_json.is_locked(order)]))
        """
    )

    assert "Order is not JSON serializable" in error
    assert is_locked is False


def test_a_row_that_is_not_saved_gives_no_key(shop: Project) -> None:
    """The error names the parameter; at commit, a row that was saved meanwhile is fine."""
    error, is_locked = shop.script(
        """
        order = Order()
        try:
            ship_row.delay(order)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        with transaction.atomic():
            ship_row.delay_on_commit(order)
            order.save()
        print(json.dumps([error, ship_row.is_locked(order)]))
        """
    )

    assert error.startswith("KeyDerivationError: ")
    assert "order (_support.django_project.models.Order) is a Django model instance" in error
    assert is_locked is True


def test_settings_come_from_the_namespace(shop: Project) -> None:
    """CELERY_ONCE_PREFIX and its like, and no AppConfig."""
    key, states = shop.script(
        """
        first, second = ship.delay(10**9), ship.delay(10**9)
        print(json.dumps([first.once.key, [first.once.state, second.once.state]]))
        """,
        CELERY_ONCE_PREFIX="django",
        CELERY_ONCE_SCOPE="running",
    )

    assert key.startswith("django:_support.django_project.tasks.ship:")
    assert states == ["claimed", "claimed"]


def test_check_finds_nothing_where_all_is_well(project: Project) -> None:
    """With Redis away: nobody is asked."""
    settings = {
        "CELERY_ONCE_URL": "redis://localhost:1/1",
        "CELERY_ONCE_SCOPE": "until_done",
        "CACHES": {
            "default": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": ["redis://localhost:1/0", "redis://localhost:1/2"],
            }
        },
    }

    assert project.check(**settings) == "System check identified no issues (0 silenced).\n"


def test_check_names_every_task_that_cannot_be(project: Project) -> None:
    """Not the first alone; with the file and the line."""
    project.write(
        "more.py",
        """
        from celery import current_app, shared_task
        from once_celery.django import DjangoOnceTask

        @shared_task(base=DjangoOnceTask, once={"leese": 5})
        def misspelt(order_id): ...

        @shared_task(base=DjangoOnceTask, once={"key": ["order"]})
        def misnamed(order_id): ...

        @current_app.task(base=DjangoOnceTask, scope="queued")
        def misplaced(order_id): ...

        @current_app.task(base=DjangoOnceTask)
        def good(order_id): ...
        """,
    )

    output = project.check(CELERY_IMPORTS=["more"])

    assert "System check identified 3 issues (0 silenced)." in output
    assert (
        "more.misspelt: (once.E001) once has no option 'leese'; did you mean 'lease'? "
        f"(given for more.misspelt)\n\tHINT: Change it at {project.folder / 'more.py'}:5.\n"
    ) in output
    assert "more.misnamed: (once.E001) more.misnamed: key= names 'order'" in output
    assert "more.misplaced: (once.E001) more.misplaced: scope= is an option of once" in output


def test_check_does_not_let_a_worker_start_with_a_broken_task(project: Project) -> None:
    """Celery drops what checks find when a worker starts; the task's own error ends it."""
    project.write(
        "more.py",
        """
        from celery import shared_task
        from once_celery.django import DjangoOnceTask

        @shared_task(base=DjangoOnceTask, once={"leese": 5})
        def misspelt(order_id): ...
        """,
    )

    done = project.run(
        """
        from celery.__main__ import main, sys
        sys.argv = ["celery", *"-A _support.django_project worker --pool solo".split()]
        main()
        """,
        INSTALLED_APPS=CHECKED,
        CELERY_IMPORTS=["more"],
    )

    assert done.returncode != 0
    assert "ConfigurationError: once has no option 'leese'" in done.stderr


def test_check_finds_settings_that_cannot_be(project: Project) -> None:
    """Each of them, and each once however many tasks there are."""
    output = project.check(CELERY_ONCE_LEASE=0.1, CELERY_ONCE_SCOPE="until_executed")

    assert "System check identified 2 issues (0 silenced)." in output
    assert (
        "CELERY_ONCE_LEASE: (once.E001) once option lease=0.1 of the app's configuration must be "
        "seconds, finite and at least 1 second\n\tHINT: Change CELERY_ONCE_LEASE in the settings.\n"
    ) in output
    assert "CELERY_ONCE_SCOPE: (once.E001) once option scope='until_executed'" in output


def test_check_finds_a_misspelt_setting(project: Project) -> None:
    """With the nearest one."""
    output = project.check(CELERY_ONCE_LEESE=5)

    assert "System check identified 1 issue (0 silenced)." in output
    assert (
        "settings: (once.E001) the setting CELERY_ONCE_LEESE is none of once; did you mean "
        "'once_lease'?\n\tHINT: In Django's settings it would be such as CELERY_ONCE_LEASE.\n"
    ) in output


def test_check_finds_settings_that_nobody_reads(project: Project) -> None:
    """Without the namespace, or as a dict; a URL with its password is not shown."""
    output = project.check(
        ONCE_URL="redis://:hunter2@cache/1",
        ONCE={"lease": 20, "keep_for": 5},
        CELERY_ONCE={"backend": "celery_once.backends.Redis"},
    )

    assert "System check identified 3 issues (0 silenced)." in output
    assert (
        "ONCE_URL: (once.E003) The setting ONCE_URL is ignored: the Celery app reads no such "
        "setting.\n\tHINT: Write CELERY_ONCE_URL instead.\n"
    ) in output
    assert "\tHINT: Write CELERY_ONCE_LEASE, CELERY_ONCE_KEEP_FOR instead.\n" in output
    assert "CELERY_ONCE: (once.E003) The setting CELERY_ONCE is ignored" in output
    assert "hunter2" not in output


def test_check_finds_that_there_is_no_lock_store(project: Project) -> None:
    """No Redis anywhere: every call would raise."""
    settings = {"CELERY_BROKER_URL": "amqp://", "CELERY_RESULT_BACKEND": "rpc://"}

    output = project.check(**settings)

    assert "System check identified 1 issue (0 silenced)." in output
    assert (
        "(once.E004) There is no lock store for _support.django_project.tasks.ship, "
        "_support.django_project.tasks.ship_row, _support.django_project.tasks.ship_row_as_json: "
        "neither the broker nor the result backend is a Redis."
    ) in output
    assert 'HINT: Set CELERY_ONCE_URL = "redis://host:6379/0"' in output


def test_check_finds_tasks_that_cannot_be_imported(project: Project) -> None:
    """A message, and not the end of ``manage.py``."""
    project.write("more.py", "def oops(:\n")

    output = project.check(CELERY_IMPORTS=["more"])

    assert "(once.E002) The tasks cannot be loaded: SyntaxError: " in output


def test_check_finds_tasks_without_delay_on_commit(project: Project) -> None:
    """Which Celery gives to all tasks in Django, but for those with a base of their own."""
    project.write(
        "more.py",
        """
        from celery import shared_task
        from once_celery import OnceTask

        @shared_task(base=OnceTask)
        def old(order_id): ...
        """,
    )

    output = project.check(CELERY_IMPORTS=["more"])

    assert "System check identified 1 issue (0 silenced)." in output
    assert (
        "(once.W001) more.old: OnceTask has no delay_on_commit, which other tasks have in "
        "Django.\n\tHINT: Use base=DjangoOnceTask, from once_celery.django.\n"
    ) in output


def test_check_finds_a_cache_that_would_empty_the_lock_store(project: Project) -> None:
    """``cache.clear()`` is FLUSHDB."""
    cache = {"BACKEND": "django.core.cache.backends.redis.RedisCache"}

    output = project.check(CACHES={"default": {**cache, "LOCATION": "redis://:pw@127.0.0.1:1"}})

    assert "System check identified 1 issue (0 silenced)." in output
    assert (
        "CACHES: (once.W002) The cache 'default' is in the Redis database of the lock store "
        "(redis://localhost:1/0). cache.clear() empties all of it, locks and queues too."
    ) in output


def test_check_finds_that_nobody_loads_the_app(project: Project) -> None:
    """The commonest of Celery's own mistakes; asking for the app must not make one."""
    project.write("bare/__init__.py", "")
    project.write(
        "bare/settings.py",
        "SECRET_KEY = 'only for tests'\nINSTALLED_APPS = ['once_celery.django']\n",
    )
    project.module = "bare.settings"

    output = project.check()

    assert "(once.W003) No Celery app was loaded when Django started." in output
    assert "HINT: Write into bare/__init__.py: from .celery import app as celery_app" in output
    done = project.run("""
        import django; django.setup()
        from django.core.management import call_command
        call_command("check")
        from celery import _state
        print(_state.default_app)
    """)
    assert done.stdout == "None\n"


def test_check_finds_an_app_that_does_not_read_djangos_settings(project: Project) -> None:
    """Without a namespace no setting of ours arrives."""
    project.write(
        "plain/__init__.py",
        """
        from celery import Celery

        app = Celery("plain", broker="redis://localhost:1/0")
        app.config_from_object("django.conf:settings")
        """,
    )
    project.write(
        "plain/settings.py",
        """
        SECRET_KEY = "only for tests"
        INSTALLED_APPS = ["once_celery.django"]
        CELERY_ONCE_URL = "redis://localhost:1/0"
        """,
    )
    project.module = "plain.settings"

    output = project.check()

    assert (
        "CELERY_ONCE_URL: (once.E003) The setting CELERY_ONCE_URL is ignored: the Celery app reads "
        "no such setting.\n\tHINT: Have the Celery app read Django's settings: "
        'app.config_from_object("django.conf:settings", namespace="CELERY").\n'
    ) in output


def test_deployment_check_finds_what_is_for_tests_alone(project: Project) -> None:
    """With ``--deploy``; not in test runs, which are eager on purpose."""
    settings = {"CELERY_TASK_ALWAYS_EAGER": True, "CELERY_ONCE_URL": "memory://", "DEBUG": False}

    output = project.check("--deploy", "--tag", "once", **settings)

    assert "System check identified 2 issues (0 silenced)." in output
    assert "(once.W004) With task_always_eager tasks run at once in their caller" in output
    assert "HINT: Leave CELERY_TASK_ALWAYS_EAGER to the settings of your tests." in output
    assert "(once.W005) The lock store memory:// lives in one process" in output
    del settings["CELERY_ONCE_URL"]
    assert "no issues" in project.check(**settings, CELERY_BROKER_URL="memory://")


def test_check_asks_nobody(project: Project) -> None:
    """It opens no connection, with a lock store, a broker and a cache that could be asked."""
    done = project.run(
        """
        import sys
        sys.addaudithook(lambda event, _: event == "socket.connect" and print("CONNECTED"))
        import django; django.setup()
        from django.core.management import call_command
        call_command("check")
        """,
        INSTALLED_APPS=CHECKED,
    )

    assert done.stdout == "System check identified no issues (0 silenced).\n"


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        pytest.param(
            "celery.contrib.django",
            f"this is Celery {celery.__version__}. once_celery.OnceTask works with it",
            marks=pytest.mark.lifecycle,
        ),
        ("django", "ModuleNotFoundError: No module named 'django"),
    ],
)
def test_what_is_missing_is_named(missing: str, error: str) -> None:
    """Celery's part for Django, or Django itself; `once_celery` needs neither."""
    code = f"import sys; sys.modules[{missing!r}] = None; import once_celery; print('fine')\n"

    done = subprocess.run(
        [sys.executable, "-c", code + "import once_celery.django"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout == "fine\n"
    assert error in done.stderr


def test_once_celery_does_not_import_django() -> None:
    """Who has no Django pays nothing for it (kombu itself looks for a part of it)."""
    code = "import sys, once_celery; sys.exit('django.db' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
