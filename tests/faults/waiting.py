"""Waiting in tests for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(is_so: Callable[[], bool], *, what: str, timeout_s: float = 100.0) -> None:
    """Poll a condition. Raises TimeoutError that says what did not happen."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"within {timeout_s} s not: {what}")
        time.sleep(0.02)
