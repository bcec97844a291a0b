"""Commands on what nobody had in mind: each ends with one line and with 2, never a traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from once_core import Guard, OnceOptions, Store, protocol
from once_core.__main__ import main
from once_core.cli.program import Program
from once_core.devserver import DevServer
from once_core.errors import ConfigurationError

D = "0" * 40
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Types a command; its exit code and what it prints."""

    def typed(*words: str, program: Program | None = None) -> tuple[int, str, str]:
        code = main(words, program)
        said = capsys.readouterr()
        return code, said.out, said.err

    return typed


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes the user's program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text: str) -> None:
        (tmp_path / "odd_program.py").write_text(text, encoding="utf-8")

    yield write
    sys.modules.pop("odd_program", None)


def _program(store: Store, **options: object) -> Program:
    given = OnceOptions(**options)  # type: ignore[arg-type]  # any of them
    guard = Guard("shop.sync", lambda order_id: None, given, lambda: store)
    return Program("shop", {"shop.sync": lambda: guard}, lambda: store)


@pytest.fixture
def store(server: DevServer) -> Store:
    """An empty one."""
    return Store(server.url)


@pytest.mark.parametrize(
    "text",
    ["raise ValueError('no settings')", "raise KeyError('SECRET')", "1 +", "import not_there_lib"],
)
def test_a_program_that_cannot_be_imported(
    run: Run, module: Callable[[str], None], text: str
) -> None:
    """It says why; 2, for 1 would be an answer."""
    module(text)

    code, _, noted = run("-A", "odd_program", "explain", "sync", "1")

    assert code == 2
    assert "-A odd_program cannot be loaded" in noted


def test_a_library_that_is_missing_is_named(
    run: Run, module: Callable[[str], None], tmp_path: Path
) -> None:
    """And not hidden behind the module that imports it."""
    (tmp_path / "odd_package").mkdir()
    (tmp_path / "odd_package" / "__init__.py").touch()
    (tmp_path / "odd_package" / "tasks.py").write_text("import not_there_lib", encoding="utf-8")

    _, _, noted = run("-A", "odd_package.tasks", "ls")

    assert "No module named 'not_there_lib'" in noted


@pytest.mark.parametrize("name", [":", ".shop", "a:b:c", "not_there"])
def test_names_that_are_none(run: Run, name: str) -> None:
    """Of a program."""
    code, _, noted = run("-A", name, "ls")

    assert code == 2
    assert f"-A {name} cannot be loaded" in noted


def test_a_program_that_prints_does_not_break_json(run: Run, module: Callable[[str], None]) -> None:
    """What it prints goes to the side."""
    module(
        "print('settings: production')\n"
        "from once_core import once\n"
        "@once(url='memory://noisy')\n"
        "def check(order_id): ...\n"
    )

    code, said, noted = run("-A", "odd_program", "explain", "check", "1", "--json")

    assert (code, json.loads(said)["publish"]) == (0, "sent")
    assert "settings: production" in noted


def test_two_tasks_whose_names_end_alike(run: Run, store: Store) -> None:
    """`release` would have freed the unit of the first."""
    guard = _program(store).guard("sync")
    both = Program("shop", {"shop.a.sync": lambda: guard, "shop.b.sync": lambda: guard})

    code, _, noted = run("release", "sync", "1", "-y", program=both)

    assert code == 2
    assert "'sync' may be shop.a.sync or shop.b.sync" in noted


def test_arguments_that_are_no_json(run: Run, store: Store) -> None:
    """However deep."""
    code, _, _ = run("explain", "sync", "[" * 50_000, program=_program(store))

    assert code == 0


@pytest.mark.parametrize("words", [("--every", "-1"), ("--every", "0"), ("--seconds", "x")])
def test_durations_that_are_none(run: Run, store: Store, words: tuple[str, str]) -> None:
    """A usage error."""
    with pytest.raises(SystemExit) as ended:
        run("watch", *words, program=_program(store))

    assert ended.value.code == 2


def test_a_watch_of_events_that_have_yet_to_come(run: Run, store: Store) -> None:
    """It waits for them, and does not say that they are off."""
    code, _, noted = run("watch", "--seconds", "0.1", program=_program(store, events=1000))

    assert (code, noted) == (0, "")


def test_an_unset_variable_purges_nothing(run: Run) -> None:
    """`once purge -Q "$QUEUE"` would have emptied all queues."""
    from once_core.purging import Purged, Purger

    emptied: list[object] = []

    def purge(names: object) -> Purged:
        emptied.append(names)
        return Purged(0, 0, 0)

    program = Program("shop", purgers=[Purger(lambda: ["default"], purge)])

    code, _, noted = run("purge", "-Q", "", "-y", program=program)

    assert (code, emptied) == (2, [])
    assert "-Q names no queue" in noted


def test_one_record_that_cannot_be_read_hides_no_others(run: Run, store: Store) -> None:
    """It is listed for what it is, and the doctor says what to do."""
    client = store.client()
    client.hset(f"once:half:{D}", mapping={"v": "1", "wu": "99999999999999"})
    store.run(protocol.claim(f"once:shop.sync:{D}", "m1", ttl=60, heal_after=60))
    program = _program(store)

    listed = json.loads(run("ls", "--json", program=program)[1])
    _, broken, _ = run("ls", "--state", "broken", program=program)
    code, said, _ = run("doctor", program=program)

    assert [each["task"] for each in listed] == ["shop.sync"]
    assert f"once:half:{D}" in broken
    assert code == 1
    assert "[record-unreadable]" in said


def test_a_function_without_a_lock_store_is_no_ok(run: Run) -> None:
    """Its every call raises."""

    def nowhere() -> Store:
        raise ConfigurationError("once has no lock store")

    guard = Guard("shop.check", lambda: None, OnceOptions(), nowhere)

    code, said, _ = run("doctor", program=Program("shop", {"shop.check": lambda: guard}))

    assert code == 2
    assert "shop.check: once has no lock store" in said
    assert "ok    shop.check" not in said


@pytest.mark.parametrize("name", ["order_uuid", "start_time", "purchase_request_id", "timestamp"])
def test_arguments_that_only_sound_volatile(run: Run, name: str, store: Store) -> None:
    """What work is about is no warning."""
    function = eval(f"lambda {name}: None")
    guard = Guard("shop.sync", function, OnceOptions(), lambda: store)

    _, said, _ = run("doctor", program=Program("shop", {"shop.sync": lambda: guard}, lambda: store))

    assert "volatile-argument" not in said
