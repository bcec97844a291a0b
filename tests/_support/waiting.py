"""Waiting without sleeping blindly: poll, with a deadline and a message."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(probe: Callable[[], T], description: str, *, within: float = 30.0) -> T:
    """Return the first truthy value of `probe`; fail with the last one seen."""
    deadline = time.monotonic() + within
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {description}; last seen: {value!r}")
        time.sleep(0.02)
