"""``once demo``: what it shows, how it ends, that nothing of it stays behind, and its judge."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

import once_core
from once_core.__main__ import main
from once_core.demo import scenario
from once_core.demo.binding import CELERY, DRAMATIQ
from once_core.demo.board import Board
from once_core.demo.judge import judge
from once_core.demo.ledger import Entry, Ledger
from once_core.demo.view import LiveView, PlainView
from once_core.devserver import find_server_binary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from once_core.demo.binding import Binding

DEMO = [sys.executable, "-m", "once_core", "demo"]
BINDINGS = {"celery": CELERY, "dramatiq": DRAMATIQ}
both = pytest.mark.parametrize("binding", BINDINGS.values(), ids=BINDINGS)
needs_demo = pytest.mark.skipif(
    not sys.platform.startswith("linux") or find_server_binary() is None,
    reason="needs a server's binary, and /proc to look for what is left behind",
)


def left_behind(folder: Path) -> list[str]:
    """Processes that inherited the folder as their TMPDIR: each that a demo had started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"\0TMPDIR={folder}".encode() in b"\0" + (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def wait_until_nobody_is_left(folder: Path) -> None:
    """A process that was killed takes a moment to be gone."""
    deadline = time.monotonic() + 10
    while left_behind(folder):
        assert time.monotonic() < deadline, left_behind(folder)
        time.sleep(0.02)


@contextlib.contextmanager
def demo(
    folder: Path, binding: Binding = CELERY, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A demo in a process, its temporary folders in one of this test's own."""
    process = subprocess.Popen(
        [*DEMO, *(["--dramatiq"] if binding is DRAMATIQ else [])],
        env={**os.environ, "TMPDIR": str(folder), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What it printed up to the line with the text."""
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"no {text!r} in\n{seen}")


def once(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command after some code."""
    script = f"import sys\n{code}\nfrom once_core.__main__ import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )


@needs_demo
@pytest.mark.slow
@both
def test_the_demo_keeps_its_promises_and_says_so_in_plain_lines(
    tmp_path: Path, binding: Binding
) -> None:
    """Without a terminal: a line for each happening, a summary, exit code 0, in 40 seconds."""
    begin = time.monotonic()
    elsewhere = {"ONCE_URL": "redis://127.0.0.1:1", "CELERY_BROKER_URL": "amqp://"}

    with demo(tmp_path, binding, **elsewhere) as process:
        output, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (0, ""), output + errors
    assert time.monotonic() - begin < 40
    assert "\x1b" not in output
    for word in ("port", "pid", binding.kind, "lease of 2 s", "KILLED worker", "RECOVERED"):
        assert word in output
    summary = dict(
        re.findall(r"^(\w[\w ]{1,14}?) {2,}(.*)$", output.partition("\n\n")[2], re.MULTILINE)
    )
    triggers, refused, messages, runs = (
        int(re.match(r"\d+", summary[name]).group())
        for name in ("triggers", "refused", "messages sent", "runs")
    )
    assert triggers > 300
    assert triggers == refused + messages
    assert 6 <= messages <= runs
    assert summary["overlaps"] == "0"
    assert summary["lost"] == "0 triggers"
    assert f"without once: {scenario.PLAIN} for {scenario.PLAIN} triggers" in output
    assert re.search(r"report \d\.\d s \(same message, redelivered\)", summary["time to recover"])
    assert output.rstrip().splitlines()[-1].startswith("All promises kept")
    wait_until_nobody_is_left(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_demo
@pytest.mark.slow
def test_a_broken_promise_is_told_in_the_terminal_and_by_the_exit_code(tmp_path: Path) -> None:
    """Here nothing may take any time to recover, which cannot be kept."""
    code = "from once_core.demo import binding, story\nstory._RECOVERY = 1e-6\n"
    code += "raise SystemExit(story.run(binding.CELERY))"
    ours, theirs = os.openpty()

    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm-256color", "COLUMNS": "120"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output = b""
    with process, contextlib.suppress(OSError):  # Linux says EIO when the other end is closed
        while piece := os.read(ours, 1 << 16):
            output += piece
    os.close(ours)

    text = output.decode()
    assert process.returncode == 1, text[-2000:]
    assert "\x1b[" in text
    assert "what happened" in text
    assert "promise was broken" in text
    assert "s to recover" in text
    wait_until_nobody_is_left(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_demo
@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [
        (signal.SIGINT, "KILLED", 130),
        (signal.SIGINT, "folder", 130),
        (signal.SIGTERM, "is ready", 143),
    ],
)
@both
def test_interrupted_it_leaves_nothing_behind(
    tmp_path: Path, binding: Binding, number: int, moment: str, code: int
) -> None:
    """Ctrl-C and SIGTERM, at any moment: no process, no folder, and the shell's exit code."""
    with demo(tmp_path, binding) as process:
        read_until(process, moment)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)

    assert process.returncode == code
    assert errors.strip() == "once demo: interrupted; all it had started is gone"
    assert left_behind(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@needs_demo
@both
def test_killed_it_leaves_no_process_behind(tmp_path: Path, binding: Binding) -> None:
    """SIGKILL to the demo itself: its workers and its server end by themselves."""
    with demo(tmp_path, binding) as process:
        read_until(process, "fence")
        process.kill()

    wait_until_nobody_is_left(tmp_path)


@needs_demo
def test_a_reader_that_leaves_ends_it_quietly(tmp_path: Path) -> None:
    """``once demo | head -1``."""
    with demo(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read() if process.stderr else ""

    assert (process.returncode, errors) == (141, "")
    assert left_behind(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@needs_demo
def test_a_server_that_cannot_run_is_one_line(tmp_path: Path) -> None:
    """A wrong ONCE_SERVER: the demo could not be shown, which is exit code 2."""
    with demo(tmp_path, ONCE_SERVER="/no/such/server") as process:
        output, errors = process.communicate(timeout=20)

    assert (process.returncode, output) == (2, "")
    assert errors.startswith("once demo: ONCE_SERVER='/no/such/server' is no program")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("celery", ["demo"]),
        ("rich", ["demo"]),
        ("dramatiq", ["demo", "--dramatiq"]),
        ("rich", ["demo", "--dramatiq"]),
    ],
)
def test_a_missing_package_names_the_extra(missing: str, arguments: list[str]) -> None:
    """One line that says what to install."""
    result = once(f"sys.modules[{missing!r}] = None", *arguments)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (f"once demo: {missing} is missing; pip install 'once-tasks[demo]'\n")


@pytest.mark.parametrize(
    ("of", "other"), [("celery", "dramatiq"), ("dramatiq", "celery")], ids=["celery", "dramatiq"]
)
def test_each_demo_does_without_the_other_task_queue(of: str, other: str) -> None:
    """Nothing of it is imported by the demo, its producers or its workers."""
    code = f"import os, sys; sys.modules[{other!r}] = None; os.environ.update(ONCE_DEMO_URL="
    code += "'redis://127.0.0.1:1', ONCE_DEMO_LEDGER=os.devnull); import once_core.demo.story, "
    code += f"once_core.demo.producer, once_core.demo.worker_{of}"

    # at the end of its standard input a worker kills its process group: not this one, and not yet
    theirs, ours = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    os.close(theirs)
    os.close(ours)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_server_names_the_extra() -> None:
    """No binary anywhere."""
    code = "from once_core import devserver\ndevserver.find_server_binary = lambda: None"

    result = once(code, "demo")

    assert (result.returncode, result.stdout) == (2, "")
    assert "pip install 'once-tasks[demo]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_windows_is_told_the_truth() -> None:
    """There is nothing to start there."""
    code = "import once_core.__main__, types\nonce_core.__main__.sys = types.SimpleNamespace("
    code += "platform='win32', stderr=sys.stderr, stdout=sys.stdout)"

    result = once(code, "demo")

    assert result.returncode == 2
    assert "run it under WSL" in result.stderr


def test_importing_once_core_imports_neither_the_demo_nor_a_task_queue() -> None:
    """The command imports them when it is called."""
    code = "import sys, once_core.__main__; print([name for name in sys.modules if "
    code += "name.startswith(('celery', 'dramatiq', 'kombu', 'once_celery', 'once_core.demo', "
    code += "'once_dramatiq', 'rich'))])"

    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert output == "[]\n"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """``once --help``."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    assert "demo" in capsys.readouterr().out


def test_version_is_that_of_the_distribution(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``once --version``."""
    monkeypatch.setitem(vars(once_core), "__version__", "1.2.3")

    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == "once 1.2.3\n"


@pytest.mark.parametrize("arguments", [["dmeo"], [], ["demo", "--fast"]])
def test_unknown_arguments_end_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As argparse does it."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "usage: once" in capsys.readouterr().err


def test_what_a_ledger_is_told_comes_back_once(tmp_path: Path) -> None:
    """Reading goes on where it stopped, and waits for a line that is half written."""
    ledger, other = Ledger(tmp_path / "ledger"), Ledger(tmp_path / "ledger")

    written = other.note("start", unit="a", message_id="m", fence=7)

    assert ledger.read() == [written]
    assert ledger.read() == []
    with (tmp_path / "ledger").open("a") as file:
        file.write('{"what": "end", ')
    assert ledger.read() == []
    with (tmp_path / "ledger").open("a") as file:
        file.write('"at": 1.5}\n')
    assert ledger.read() == [Entry("end", 1.5)]
    ledger.close()
    other.close()


def sent(at: float, message_id: str, unit: str = "a") -> list[Entry]:
    """A trigger that was accepted, and the arrival of its message."""
    return [
        Entry("trigger", at, unit, message_id, is_sent=True),
        Entry("received", at + 0.01, message_id=message_id),
    ]


def ran(at: float, end: float | None, message_id: str, pid: int, fence: int) -> list[Entry]:
    """A run, without an end if there is none."""
    start = Entry("start", at, "a", message_id, pid, f"w{pid // 10}", "host", fence)
    return [start] if end is None else [start, replace(start, what="end", at=end)]


GOOD = [
    *sent(0.0, "m1"),
    *ran(0.1, 3.1, "m1", 10, 1),
    *sent(0.2, "m2"),
    Entry("trigger", 0.3, "a", "m2"),
    *ran(3.2, 6.2, "m2", 20, 2),
]


def test_a_good_ledger_breaks_nothing() -> None:
    """Every trigger is followed by a run that starts after it, one run at a time."""
    verdict = judge(reversed(GOOD), recover_within=1.0)

    assert verdict.broken == ()
    assert (verdict.triggers, verdict.refused, verdict.deliveries) == (3, 1, 2)
    assert verdict.messages == {"m1", "m2"}
    assert len(verdict.runs) == 2


def test_two_runs_at_once_are_an_overlap() -> None:
    """Decided by the intervals of the bodies."""
    verdict = judge(
        [
            *sent(0.0, "m1"),
            *sent(0.2, "m2"),
            *ran(0.1, 3.1, "m1", 10, 1),
            *ran(3.0, 6, "m2", 20, 2),
        ],
        recover_within=1.0,
    )

    assert len(verdict.overlaps) == 1
    assert verdict.broken == ("overlap: a ran in process 10 and, 2.90 s later, in process 20 too",)


def test_a_run_cut_off_by_a_kill_ends_at_the_kill() -> None:
    """What starts after that is a recovery and no overlap; what starts before is one."""
    kill = Entry("kill", 1.0, pid=1, worker="w1")
    begin = [*sent(0.0, "m1"), *ran(0.1, None, "m1", 10, 1), kill]

    after = judge([*begin, *ran(1.5, 4.5, "m1", 20, 2)], recover_within=1.0)
    before = judge([*begin, *ran(0.9, 4.5, "m1", 20, 2)], recover_within=1.0)

    assert after.broken == ()
    assert [(each.unit, each.after, each.is_redelivery) for each in after.recoveries] == [
        ("a", 0.5, True)
    ]
    assert len(before.overlaps) == 1


def test_a_trigger_without_a_later_run_is_lost() -> None:
    """The run that was going on already does not count, for it may have read old data."""
    verdict = judge([*GOOD, Entry("trigger", 3.3, "a", "m2")], recover_within=1.0)

    assert [entry.at for entry in verdict.lost] == [3.3]
    assert verdict.broken == (
        "lost: no run of a started after its last trigger and came to its end (1 trigger)",
    )


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (ran(6.3, None, "m2", 20, 3), "stuck: the run of a in process 20 did not end"),
        ([*sent(7, "m3"), *sent(7.1, "m4")], "pile: 4 messages for 2 runs of a"),
        (
            [Entry("trigger", 0.1, "a", "m9", is_sent=True)],
            "messages: 1 were sent, and no worker received them",
        ),
        (
            [Entry("received", 0.1, message_id="m9")],
            "messages: 1 were received that nobody says to have sent",
        ),
        (
            [Entry("failed", 0.1, "a", text="OSError()")],
            "triggers: 1 raised an error, the first OSError()",
        ),
        (ran(6.3, 6.4, "m2", 20, 2), "fence: that of a went from 2 to 2"),
        (
            [*ran(6.3, None, "m2", 20, 3), Entry("kill", 6.5, worker="w2")],
            "stuck: a was cut off and did not start again",
        ),
        (
            [
                *ran(6.3, None, "m2", 20, 3),
                Entry("kill", 6.5, worker="w2"),
                *ran(9.5, 9.6, "m2", 30, 4),
            ],
            "stuck: a was cut off and took 3.0 s to recover",
        ),
    ],
)
def test_each_broken_promise_has_its_sentence(more: Sequence[Entry], told: str) -> None:
    """Whatever else it breaks as well."""
    assert told in judge([*GOOD, *more], recover_within=1.0).broken


def feed(board: Board) -> list[str]:
    """A short story: a run is cut off, comes back, and ends."""
    unit = scenario.ACCOUNTS[0]
    start = Entry("start", 1.0, unit, "m1", 10, "one", "host", 42)
    return board.add(
        [
            Entry("ready", 0.5, pid=1, worker="one"),
            Entry("trigger", 0.9, unit, "m1", is_sent=True),
            start,
            Entry("trigger", 1.1, unit, "m2", is_sent=True),
            Entry("trigger", 1.2, unit, "m2"),
            Entry("received", 1.3, message_id="m2", worker="one"),
            Entry("event", 1.4, message_id="m2", text="deferred: m1 runs"),
            Entry("kill", 2.0, pid=1, worker="one"),
            replace(start, at=3.5, pid=20, worker="two", fence=43),
            replace(start, what="end", at=6.5, pid=20, worker="two", fence=43),
            Entry("event", 6.6, message_id="m2", text="superseded: a newer message"),
            Entry("failed", 7.0, unit, text="OSError()"),
        ]
    )


def test_the_board_tells_who_holds_what_and_what_recovered() -> None:
    """The lines of the demo without a terminal."""
    board = Board(0.0, CELERY)
    unit = scenario.ACCOUNTS[0]

    lines = feed(board)

    children = scenario.CHILDREN
    assert "\n".join(lines) == (
        f"[  0.5 s] worker one is ready (pid 1, {children} children)\n"
        f"[  1.0 s] {unit} runs: host:10 of one, fence 42, 0 refused before\n"
        f"[  2.0 s] KILLED worker one in the middle of {unit}: SIGKILL to pid 1 and its {children} "
        f"children; it also had the waiting messages of {unit}\n"
        f"[  3.5 s] RECOVERED {unit} after 1.5 s, the same message, redelivered: host:20 of two, "
        "fence 43\n"
        f"[  6.5 s] {unit} is done after 3.0 s\n"
        f"[  6.6 s] {unit}: superseded: a newer message\n"
        f"[  7.0 s] a trigger of {unit} raised OSError()"
    )
    row = board.units[unit]
    assert (row.runs, row.triggers, row.refused, row.deferred) == (2, 4, 1, 1)
    assert board.is_idle()
    assert board.refused == 1


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_view_shows_the_board(width: int) -> None:
    """In a narrow terminal and in a wide one."""
    board, file = Board(0.0, CELERY), io.StringIO()
    view = LiveView(board, Console(file=file, force_terminal=True, width=width, height=40))
    unit = scenario.ACCOUNTS[1]

    view.open(["server   some"])
    feed(board)
    board.add([Entry("start", 8.0, unit, "m5", 77, "two", "host", 1795249230490026)])
    view.show([], "burst", 0.5)
    view.close()
    view.conclude([("overlaps", "0")], [])

    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    for word in ("server   some", "burst", "host:77", "1795249230490026", "RECOVERED", "All prom"):
        assert word in text
    assert ("put back" in text) == (width == 140)


def test_the_plain_view_prints_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """And a sentence for each broken promise."""
    view = PlainView(Board(0.0, CELERY))

    view.open(["server   some"])
    view.show(["[  1.0 s] something"], "burst", 0.5)
    view.close()
    view.conclude([("overlaps", "1")], ["overlap: a ran twice", "lost: a"])

    view.conclude([], [f"lost: {number}" for number in range(20)])

    assert capsys.readouterr().out == (
        "server   some\n[  1.0 s] something\n\noverlaps         1\n\n"
        "2 times a promise was broken:\n  overlap: a ran twice\n  lost: a\n"
        "\n\n20 times a promise was broken:\n"
        + "".join(f"  lost: {number}\n" for number in range(12))
        + "  ... and 8 more\n"
    )
