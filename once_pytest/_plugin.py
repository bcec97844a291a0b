"""The pytest plugin: options, the marker, the report. Imports pytest alone until they are used."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from once_pytest._fixtures import FAILED, HARNESS, marked

if TYPE_CHECKING:
    from once_pytest.harness import OnceHarness

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "pytest_sessionfinish",
    "pytest_sessionstart",
]

_LEAKS = ("error", "warn", "ignore")
_REPORTS = ("failed", "all", "none")
_MARKER = {"server": ("fake", "spawn"), "leaks": _LEAKS, "strict": (True, False),
           "bypass": (True, False)}  # fmt: skip
_BEFORE: pytest.StashKey[object] = pytest.StashKey()


# Options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options on the command line and in the ini file."""
    group = parser.getgroup("once", "locks of tasks (once_pytest)")
    group.addoption(
        "--once-redis",
        metavar="fake|spawn|URL",
        help="where the locks of tests live: in fakeredis (the default), on a server that is "
        "started for the session, or on one that runs",
    )
    group.addoption(
        "--once-redis-server", metavar="PATH", default="", help="binary for --once-redis=spawn"
    )
    group.addoption(
        "--once-redis-allow-remote",
        action="store_true",
        help="let --once-redis be the URL of another machine",
    )
    group.addoption(
        "--once-schedule",
        metavar="NAMES",
        default="",
        help='the only order that once_race.explore() tries, such as "A B B A"',
    )
    parser.addini("once_redis", "as --once-redis", default="fake")
    parser.addini(
        "once_leaks", "what a lock is that a test leaves: error, warn, ignore", default="error"
    )
    parser.addini(
        "once_strict",
        "refuse to reach a real lock server in every test, not only in those with once_locks",
        type="bool",
        default=False,
    )
    parser.addini("once_report", "whose locks are shown: failed, all, none", default="failed")


def pytest_configure(config: pytest.Config) -> None:
    """The marker, and the options that can be wrong."""
    config.addinivalue_line(
        "markers",
        "once(*, server='fake'|'spawn', leaks='error'|'warn'|'ignore', strict=True, bypass=False): "
        "how the locks of this test are kept (once_pytest)",
    )
    for name, known in (("once_leaks", _LEAKS), ("once_report", _REPORTS)):
        if config.getini(name) not in known:
            raise pytest.UsageError(f"{name} = {config.getini(name)} is none of {', '.join(known)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse markers that mean nothing."""
    for item in items:
        for marker in item.iter_markers("once"):
            _check(item, marker)


def _check(item: pytest.Item, marker: pytest.Mark) -> None:
    known = ", ".join(_MARKER)
    if marker.args:
        raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.once takes keywords: {known}")
    for name, value in marker.kwargs.items():
        if name not in _MARKER:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.once has no {name!r}; there are {known}"
            )
        if value not in _MARKER[name]:
            allowed = ", ".join(map(repr, _MARKER[name]))
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.once({name}={value!r}) must be one of {allowed}"
            )


# The strict guard and the report


def pytest_sessionstart(session: pytest.Session) -> None:
    """``once_strict``: no test reaches a real lock server."""
    if session.config.getini("once_strict"):
        from once_core._diversion import divert
        from once_pytest import _strict

        _strict.raise_as(pytest.fail.Exception)
        session.config.stash[_BEFORE] = divert(_strict.Strict())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """As it was before."""
    if _BEFORE in session.config.stash:
        from once_core._diversion import divert

        divert(session.config.stash[_BEFORE])  # type: ignore[arg-type]  # ours


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, None]:
    """``strict=False`` holds for a test without ``once_locks`` as well."""
    if _BEFORE not in item.config.stash or marked(item, "strict", True):  # noqa: FBT003  # a default
        yield
        return
    from once_core._diversion import divert

    before = divert(None)
    yield
    divert(before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    """Show locks and events of a test that failed, and fail one that swallowed a refusal."""
    report: pytest.TestReport = (yield).get_result()
    if report.when == "call":
        _note_refusals(report)
        item.stash[FAILED] = call.excinfo is not None  # also where a mark expects it
    harness = item.stash.get(HARNESS, None)
    wanted = item.config.getini("once_report")
    if harness is None or wanted == "none" or not (report.failed or wanted == "all"):
        return
    if report.when != "call":
        return
    report.sections += _sections(harness)


def _sections(harness: OnceHarness) -> list[tuple[str, str]]:
    from once_pytest import _render

    try:
        held = "\n".join(_render.locks(harness.locks))
    except Exception as error:  # noqa: BLE001  # a report must not end the session
        held = f"they cannot be read: {error!r}"
    seen = "\n".join(_render.events(harness.events, most=20))
    return [("once locks", held), ("once events", seen)]


def _note_refusals(report: pytest.TestReport) -> None:
    import sys

    strict = sys.modules.get("once_pytest._strict")
    if strict is None or not strict.refusals:
        return
    texts = [*strict.refusals]
    strict.refusals.clear()
    if report.passed:
        report.outcome = "failed"
        report.longrepr = "\n".join(texts)
