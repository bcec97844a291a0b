"""The examples in the docstrings of the installed packages."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re

import pytest

PACKAGES = ("once_core", "once_celery", "once_dramatiq", "once_pytest")


def find_modules() -> list[str]:
    """List the modules of all packages, as installed; importing is for the tests."""
    names = []
    for package in PACKAGES:
        paths = importlib.import_module(package).__path__
        names.append(package)
        names += [found.name for found in pkgutil.walk_packages(paths, f"{package}.")]
    # a worker's app or broker is made from its environment when the worker imports it
    return [name for name in names if not re.search(r"__main__$|demo\.worker_", name)]


@pytest.mark.parametrize("name", find_modules())
def test_examples_show_what_happens(name: str) -> None:
    """Every example in a docstring gives what it says."""
    result = doctest.testmod(importlib.import_module(name))

    assert result.failed == 0
