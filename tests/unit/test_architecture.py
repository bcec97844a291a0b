"""What keeps the code as it is meant to be: one-way imports, small modules, no work at import."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import once_celery
import once_core
import once_dramatiq

CORE, CELERY = Path(once_core.__file__).parent, Path(once_celery.__file__).parent
ROOT = CORE.parent
PACKAGES = ("once_core", "once_celery", "once_dramatiq", "once_pytest")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
LUA = sorted((CORE / "lua").glob("*.lua"))

LINES = 400
"""At most, in a module; and fewer in a function."""

LAYERS = [
    {
        "errors",
        "_clock",
        "_diversion",
        "_native",
        "_host",
        "_scripts",
        "_canonical",
        "envelope",
        "_surroundings",
    },
    {"events", "keys", "_lease", "_answers", "protocol", "_flow", "_replicas"},
    {"_checks", "_option_table", "_breaker", "_client", "options"},
    {"_line", "_channel", "_cluster"},
    {"store", "aio"},
    {"stream"},
    {"guard", "_heartbeat"},
    {
        "_strangers",
        "publish",
        "attempt",
        "delays",
        "lost",
        "sharing",
        "configuration",
        "turn",
        "_places",
    },
    {"_function_types", "_guarded"},
    {"functions", "leasing", "survey", "explain", "bulk", "finding", "permissions"},
    {"backlog", "task_checkup", "purging", "metrics"},
    {"checkup", "prometheus", "opentelemetry"},
]
"""Modules of the core, lowest first; each may import what is below or beside it."""


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


@cache
def _imports(node: ast.AST) -> set[str]:
    """All modules that are imported anywhere, but for annotations."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            found |= {each.name for each in child.names}
        elif isinstance(child, ast.ImportFrom):
            found |= {child.module or "", *(f"{child.module}.{each.name}" for each in child.names)}
        found |= _imports(child)
    return found


def _packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in _imports(_tree(path))}


def _of(package: str) -> list[str]:
    return [name for name in MODULES if name.partition(".")[0] == package]


@pytest.mark.parametrize("name", _of("once_core"))
def test_core_knows_no_framework(name: str) -> None:
    """The core imports neither Celery, Dramatiq nor pytest; only the demo and its command do."""
    if name.startswith(("once_core.demo", "once_core.cli")) or name == "once_core.__main__":
        return
    frameworks = {"celery", "kombu", "billiard", "dramatiq", "pytest", "django", *PACKAGES[1:]}

    assert _packages(MODULES[name]) & frameworks == set()


@pytest.mark.parametrize("name", [*_of("once_celery"), *_of("once_dramatiq")])
def test_bindings_know_no_lua(name: str) -> None:
    """Bindings talk of steps and answers, never of scripts or Redis commands."""
    text = MODULES[name].read_text(encoding="utf-8")
    others = set(PACKAGES[1:]) - {name.partition(".")[0]}

    assert not re.search(r"\bEVALSHA\b|\bevalsha\b|\.lua\b|\bLua\b|\bimport redis\b", text)
    assert _imports(_tree(MODULES[name])) & {"once_core._scripts", "redis"} == set()
    assert _packages(MODULES[name]) & others == set()


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("_canonical", "keys"),
        ("keys", "options"),
        ("options", "store"),
        ("options", "aio"),
        ("protocol", "store"),
        ("protocol", "aio"),
        ("store", "guard"),
        ("guard", "publish"),
        ("guard", "attempt"),
    ],
)
def test_imports_go_one_way(lower: str, upper: str) -> None:
    """What is below never imports what is above, not even in a roundabout way."""
    above = f"once_core.{upper}"

    assert above not in _reached(f"once_core.{lower}")


def _reached(name: str) -> set[str]:
    """All modules that this one imports, or they, in turn; packages count as nothing."""
    todo, seen = {name}, set()
    while todo:
        found = _imports(_tree(MODULES[todo.pop()])) & set(MODULES) - set(PACKAGES)
        todo |= found - seen
        seen |= found
    return seen


def test_layers() -> None:
    """Every module of the core imports only what is in its layer or below."""
    level = {f"once_core.{name}": number for number, names in enumerate(LAYERS) for name in names}
    wrong = [
        (name, imported)
        for name in level
        for imported in _imports(_tree(MODULES[name])) & set(level)
        if level[imported] > level[name]
    ]

    assert wrong == []


def test_no_import_in_circles() -> None:
    """No module reaches itself through its imports."""
    assert [name for name in MODULES if name in _reached(name)] == []


def test_protocol_is_pure() -> None:
    """Steps are values: their module imports nothing that talks to anybody."""
    assert _imports(_tree(MODULES["once_core.protocol"])) & set(MODULES) == {
        "once_core._answers",
        "once_core._scripts",
    }
    assert _packages(MODULES["once_core.protocol"]) & {"redis", "socket", "time", "os"} == set()


def test_one_place_makes_clients() -> None:
    """Only `_client` makes Redis clients, and the throwaway server its own."""
    makers = [
        name
        for name, path in MODULES.items()
        if re.search(
            r"\b(Redis|RedisCluster|StrictRedis|ConnectionPool|Sentinel)(\.from_url)?\(",
            path.read_text(encoding="utf-8"),
        )
    ]

    assert set(makers) <= {"once_core._client", "once_core.devserver", "once_core._orphans"}


IMPORTED = """
import json, sys, threading

calls = []
def watch(event, args):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.system"):
        calls.append(event)
sys.addaudithook(watch)
before = threading.active_count()
import {package}
print(json.dumps({{
    "calls": calls,
    "threads": threading.active_count() - before,
    "modules": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "scripts": sys.modules["once_core._scripts"].script.cache_info().currsize,
}}))
"""


@pytest.mark.parametrize("package", ["once_core", "once_celery", "once_dramatiq"])
def test_importing_does_no_work(package: str) -> None:
    """Importing starts no thread, opens no connection, reads no script; the core no framework."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(package=package)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)

    assert (found["calls"], found["threads"], found["scripts"]) == ([], 0, 0)
    foreign = {"pytest", "fakeredis", "rich", "flask"}
    if package != "once_dramatiq":
        foreign.add("dramatiq")
    if package != "once_celery":
        foreign |= {"celery", "kombu", "billiard", "django"}
    assert set(found["modules"]) & foreign == set()


@pytest.mark.parametrize(
    "package", [once_core, once_celery, once_dramatiq], ids=lambda each: each.__name__
)
def test_public_names_of_packages(package: ModuleType) -> None:
    """__all__ is sorted, and exactly the public names of the package."""
    names = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }

    assert list(package.__all__) == sorted(package.__all__)
    assert set(package.__all__) == names


@pytest.mark.parametrize("name", MODULES)
def test_public_names_of_modules(name: str) -> None:
    """Every module with public functions or classes says by __all__ which are promised."""
    tree = _tree(MODULES[name])
    public = {
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    }
    promised = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "__all__"
        ),
        None,
    )

    assert promised is not None or not public
    assert promised is None or len(set(promised)) == len(promised)
    if promised is not None and not name.startswith("once_core.demo"):
        module = importlib.import_module(name)
        assert [each for each in promised if not hasattr(module, each)] == []


def test_version() -> None:
    """The version is the distribution's; other unknown names are the usual error."""
    with pytest.raises(AttributeError) as caught:
        _ = once_core.no_such_name

    assert str(caught.value) == "module 'once_core' has no attribute 'no_such_name'"


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_small(name: str) -> None:
    """No module is longer than 400 lines."""
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_small(name: str) -> None:
    """No function, its docstring left out, is longer than 60 lines."""
    too_long = []
    for node in ast.walk(_tree(MODULES[name])):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            has_text = ast.get_docstring(node, clean=False) is not None
            body = node.body[1:] if has_text and len(node.body) > 1 else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            if lines > 60:
                too_long.append((node.name, lines))

    assert too_long == []


def _without_docstring(tree: ast.Module, *, is_private: bool) -> list[str]:
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            members = node.body if isinstance(node, ast.ClassDef) and not is_private else []
            for each in (node, *members):
                if not isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    continue
                is_overload = "overload" in {ast.unparse(one) for one in each.decorator_list}
                if is_overload or each.name.startswith("_"):
                    continue  # what it overloads says it
                if not ast.get_docstring(each):
                    missing.append(f"{node.name}.{each.name}")
    return missing


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    """Every module, and every public class, function and method, says what it is for."""
    is_private = name.rpartition(".")[2].startswith("_")

    assert _without_docstring(_tree(MODULES[name]), is_private=is_private) == []


@pytest.mark.parametrize("name", MODULES)
def test_annotations_are_lazy(name: str) -> None:
    """Every module with code starts with `from __future__ import annotations`."""
    tree = _tree(MODULES[name])
    code = [node for node in tree.body if not isinstance(node, ast.Expr)]

    assert not code or "__future__.annotations" in _imports(tree)


def test_no_script_at_import() -> None:
    """Scripts and clients are made when they are needed, never when a module is imported."""
    made = []
    for name, path in MODULES.items():
        for node in _tree(path).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                text = ast.unparse(node)
                if re.search(r"\b(script|make_client|Store|start_thread)\(", text):
                    made.append((name, text))

    assert made == []


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.stem)
def test_lua_has_no_globals(path: Path) -> None:
    """A global in a script would end a fakeredis server for good; every name is local."""
    text = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
    text = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "''", text)
    while text != (text := re.sub(r"\{[^{}]*\}", "0", text)):
        pass  # tables, from the innermost: their fields are no variables
    prelude = re.sub(r"--[^\n]*", "", (CORE / "lua" / "prelude.lua").read_text(encoding="utf-8"))
    declared = _declared(text) | _declared(prelude)
    assigned = set()
    for match in re.finditer(
        r"(?:^|[;\n]|\bthen\b|\bdo\b|\belse\b)\s*([A-Za-z_][\w, ]*?)\s*=[^=]", text
    ):
        assigned |= {name.strip() for name in match[1].split(",")}
    functions = set(re.findall(r"(?<!local )\bfunction\s+([A-Za-z_]\w*)", text))

    assert {name for name in assigned if name.isidentifier()} - declared == set()
    assert functions - declared == set()


def _declared(text: str) -> set[str]:
    names: set[str] = set()
    for match in re.finditer(r"\blocal\s+(?!function)([\w, ]+)", text):
        names |= {name.strip() for name in match[1].split(",")}
    names |= set(re.findall(r"\blocal\s+function\s+(\w+)", text))
    for match in re.finditer(r"\bfunction\s*\w*\s*\(([^)]*)\)", text):
        names |= {name.strip() for name in match[1].split(",")}
    for match in re.finditer(r"\bfor\s+([\w, ]+?)\s*(?:=|\bin\b)", text):
        names |= {name.strip() for name in match[1].split(",")}
    return names


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.stem)
def test_lua_uses_what_every_server_has(path: Path) -> None:
    """Scripts use nothing that fakeredis or an old server lacks, and one key."""
    text = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))

    assert not re.search(r"\b(cmsgpack|bit|struct|cjson|loadstring|require|os|io)\.", text)
    assert not text.startswith("#!")
    assert not re.search(r"KEYS\[[^1]\]", text)


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.stem)
def test_lua_heads(path: Path) -> None:
    """Each step's file begins with its name; the loader knows all of them."""
    from once_core._scripts import STEPS, script

    if path.stem == "prelude":
        return
    assert path.stem in STEPS
    assert script(path.stem).name == path.stem
    assert script(path.stem).arguments == tuple(dict.fromkeys(script(path.stem).arguments))
    assert path.read_text(encoding="utf-8").startswith(f"-- {path.stem}: ")


def test_steps_send_what_their_heads_say() -> None:
    """Every step sends as many arguments as the head of its script names."""
    from once_core import protocol
    from once_core.protocol import Message

    message = Message("m", 1)
    work = {"ttl": 1.0, "heal_after": 1.0}
    steps = [
        protocol.claim("k", "m", **work),
        protocol.confirm("k", 1, ttl=1.0),
        protocol.withdraw("k", message),
        protocol.start("k", message, "a", where="h", lease=1.0, **work),
        protocol.renew("k", message, "a", where="h", lease=1.0, fence=1, held=0.0),
        protocol.finish("k", message, "a", "success", **work),
        protocol.reap("k", "m"),
        protocol.inspect("k"),
        protocol.age("k", 1.0),
        protocol.leave("k", "a"),
        protocol.release("k"),
    ]

    assert {step.script.name: len(step.args) for step in steps} == {
        step.script.name: len(step.script.arguments) for step in steps
    }
