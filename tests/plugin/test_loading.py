"""Five ways to load the plugin, alone and together; being there, it changes nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

TESTS = """
def test_it(once_locks, request):
    assert once_locks.locks == []
    plugins = request.config.pluginmanager
    assert plugins.has_plugin("once_pytest")
    assert len([name for name, _ in plugins.list_name_plugin() if name == "once_pytest"]) == 1


def test_options(request):
    assert request.config.getini("once_leaks") == "error"
"""

NO_AUTOLOAD = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
CONFTEST = {"conftest.py": 'pytest_plugins = ["once_pytest"]\n'}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)


@pytest.mark.parametrize(
    ("args", "env", "files"),
    [
        pytest.param([], {}, {}, id="entry point"),
        pytest.param(["-p", "once_pytest"], {}, {}, id="-p and entry point"),
        pytest.param(["-p", "once_pytest"], NO_AUTOLOAD, {}, id="-p alone"),
        pytest.param([], NO_AUTOLOAD, CONFTEST, id="conftest alone"),
        pytest.param(["-p", "once_pytest"], {}, CONFTEST, id="all three"),
    ],
)
def test_a_way_to_load_it(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    env: dict[str, str],
    files: dict[str, str],
) -> None:
    """Each way alone gives the fixtures and the options, and together they load it once."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    pytester.makepyfile(test_it=TESTS)
    for name, text in files.items():
        (pytester.path / name).write_text(text, encoding="utf-8")

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)

    result.assert_outcomes(passed=2)


def test_it_can_be_switched_off(pytester: pytest.Pytester) -> None:
    """With ``-p no:once_pytest`` nothing of it is there."""
    pytester.makepyfile(test_it=TESTS)

    result = pytester.runpytest_subprocess("-p", "no:once_pytest", "-p", "no:cacheprovider")

    result.assert_outcomes(errors=1, failed=1)
    result.stdout.fnmatch_lines(["*fixture 'once_locks' not found*"])
    result.stdout.no_fnmatch_line("*once_clock*")


def test_the_entry_point_is_named_as_the_module() -> None:
    """Under another name ``-p once_pytest`` would register it twice, which pytest refuses."""
    found = [each for each in entry_points(group="pytest11") if each.value == "once_pytest"]

    assert [each.name for each in found] == ["once_pytest"]


NOTHING = """
import sys

def pytest_sessionfinish(session):
    heavy = {"redis", "fakeredis", "lupa", "celery", "kombu", "dramatiq", "django", "once_core"}
    found = sorted(heavy & set(sys.modules))
    ours = sorted(name for name in sys.modules if name.startswith("once"))
    print("\\nimported:", *found, "; of ours:", *ours)
"""


LIGHT = "imported: ; of ours: once_pytest once_pytest._fixtures once_pytest._plugin"


def test_being_there_it_imports_and_changes_nothing(pytester: pytest.Pytester) -> None:
    """A run that does not use it imports no Redis, no task queue, and prints no line of ours."""
    pytester.makeconftest(NOTHING)
    pytester.makepyfile("def test_it(): pass")

    for args in (["--collect-only"], []):
        result = pytester.runpytest_subprocess(
            "-s", "-p", "no:cacheprovider", "-p", "no:valkey", *args
        )
        result.stdout.fnmatch_lines([LIGHT])
        said = [
            line
            for line in result.outlines
            if "once" in line and not line.startswith(("plugins:", "rootdir:"))
        ]
        assert said == [LIGHT]


def test_a_run_with_and_without_it_is_the_same(pytester: pytest.Pytester) -> None:
    """Fixtures that run by themselves, warnings, outcomes: none more than without the plugin."""
    pytester.makeconftest(
        "def pytest_itemcollected(item):\n"
        "    item.user_properties.append(('names', [*item.fixturenames]))\n"
        "    print('fixtures:', *item.fixturenames)\n"
    )
    pytester.makepyfile("def test_it(): pass")

    said = []
    for args in ([], ["-p", "no:once_pytest"]):
        result = pytester.runpytest_inprocess("-s", "-q", "-p", "no:cacheprovider", *args)
        result.assert_outcomes(passed=1)
        said.append([line for line in result.outlines if " in " not in line])

    assert said[0] == said[1]


def test_importing_it_imports_no_pytest() -> None:
    """Other test runners import `once_pytest` and its names without pytest."""
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['_pytest'] = None\n"
        "import once_pytest\n"
        "before = {'redis', 'fakeredis', 'celery', 'dramatiq'} & set(sys.modules)\n"
        "for name in once_pytest.__all__: getattr(once_pytest, name)\n"
        "with once_pytest.OnceHarness() as harness: harness.assert_no_locks()\n"
        "print(sorted(before), {'celery', 'dramatiq'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )

    assert (done.stdout, done.stderr) == ("[] set()\n", "")


def test_its_names_are_those_of_all() -> None:
    """Each public name is there, and an unknown one is an AttributeError that says so."""
    import once_pytest

    assert once_pytest.__all__ == sorted(once_pytest.__all__)
    assert all(getattr(once_pytest, name) for name in once_pytest.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'assert_everything'"):
        _ = once_pytest.assert_everything  # type: ignore[attr-defined]  # that is the test


def test_help_lists_options_fixtures_and_marker(pytester: pytest.Pytester) -> None:
    """What one can set and ask for is found by pytest's own means, each with a sentence."""
    pytester.makepyfile("def test_it(): pass")
    run = pytester.runpytest_inprocess

    run("--help").stdout.fnmatch_lines(
        [
            "locks of tasks (once_pytest):",
            "*--once-redis=fake|spawn|URL*",
            "*--once-redis-server=PATH*",
            "*--once-redis-allow-remote*",
            "*--once-schedule=NAMES*",
            "*once_redis (string):*",
            "*once_leaks (string):*",
            "*once_strict (bool):*",
            "*once_report (string):*",
        ]
    )
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.once(*, server=*leaks=*strict=*bypass=*"])
    fixtures = run("--fixtures").stdout
    for name in (
        "once_server", "once_options", "once_locks", "once_clock", "once_faults", "once_race",
        "once_celery_app", "once_dramatiq_broker", "once_drain", "once_worker",
    ):  # fmt: skip
        fixtures.re_match_lines_random([rf"{name}( \[session scope\])? -- \S+"])


@pytest.mark.parametrize(
    ("ini", "text"),
    [
        ("once_leaks = maybe", "*once_leaks = maybe is none of error, warn, ignore*"),
        ("once_report = some", "*once_report = some is none of failed, all, none*"),
    ],
)
def test_a_wrong_option_is_refused(pytester: pytest.Pytester, ini: str, text: str) -> None:
    """What cannot be meant ends the run before it starts, with what there is."""
    pytester.makeini(f"[pytest]\n{ini}\n")

    result = pytester.runpytest_inprocess()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([text])
    result.stderr.no_fnmatch_line("*Traceback*")


MARKS = {
    "(1)": "*test_it.py::test_it: @pytest.mark.once takes keywords: server, leaks, strict, bypass*",
    "(leak='warn')": "*test_it.py::test_it: @pytest.mark.once has no 'leak'; there are server, *",
    "(leaks='no')": "*@pytest.mark.once(leaks='no') must be one of 'error', 'warn', 'ignore'*",
    "(strict='no')": "*@pytest.mark.once(strict='no') must be one of True, False*",
    "(server='real')": "*@pytest.mark.once(server='real') must be one of 'fake', 'spawn'*",
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_wrong_marker_is_refused(pytester: pytest.Pytester, mark: str) -> None:
    """A marker that means nothing names the test, what is wrong, and what there is."""
    pytester.makepyfile(test_it=f"import pytest\n@pytest.mark.once{mark}\ndef test_it(): pass")

    result = pytester.runpytest_inprocess()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([MARKS[mark]])
    result.stderr.no_fnmatch_line("*Traceback*")
