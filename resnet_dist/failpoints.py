"""Named places where a test, or the self-test, makes this process die.

`RESNET_DIST_FAILPOINT="name"` or `"name@n"` (the n-th time it is passed, counted from 1) or
`"name@n:rank"` kills the process with SIGKILL there, as a power cut would. Without the variable a
failpoint costs one look-up of a variable. Owns nothing else.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "RESNET_DIST_FAILPOINT"

NAMES = (
    "checkpoint.before_write",
    "checkpoint.mid_write",
    "checkpoint.before_fsync",
    "checkpoint.before_rename",
    "checkpoint.before_folder_fsync",
    "checkpoint.after_commit",
    "checkpoint.before_best",
    "checkpoint.before_retention",
    "checkpoint.after_retention",
    "records.before_flush",
    "records.after_flush",
    "step.before_optimizer",
    "step.after_optimizer",
    "evaluate.mid",
    "resume.before_load",
    "resume.after_load",
)

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here if the environment says so."""
    armed = os.environ.get(VARIABLE)
    if armed is None:
        return
    assert name in NAMES, name
    wanted, _, rest = armed.partition("@")
    count, _, rank = rest.partition(":")
    if name != wanted or (rank and os.environ.get("RANK", "0") != rank):
        return
    _passed[name] += 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
