"""Named places where a test, or the self-test, makes a fault happen.

    RESNET_DIST_FAILPOINT="checkpoint.before_rename"      die there, the first time it is passed
    RESNET_DIST_FAILPOINT="step.before_optimizer@7:1"     the seventh time, on rank 1 alone
    RESNET_DIST_FAILPOINT="step.loss@5-8=damage"          the fifth to the eighth time
    RESNET_DIST_FAILPOINT="step.begin@3:2=sleep:60"       sleep there, seconds
    RESNET_DIST_FAILPOINT="step.begin@3=kill;step.loss=damage"   several

Actions: `kill` (SIGKILL, as a power cut; the default), `stop` (SIGSTOP: the process hangs),
`sleep:SECONDS`, `damage` (the caller spoils what it holds). With `RESNET_DIST_FAILPOINT_LOG=FILE`
each fault that happens is first written to that file, `<spec> rank <rank> step <count>`, and one
that is in it already from an earlier process does not happen again, so that a run that is started
again gets past it. Without the variable a failpoint costs one look-up. Owns nothing else.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VARIABLE = "RESNET_DIST_FAILPOINT"
LOG_VARIABLE = "RESNET_DIST_FAILPOINT_LOG"

KILL_NAMES = (
    "checkpoint.before_snapshot",
    "checkpoint.after_snapshot",
    "records.before_jsonl_flush",
    "records.after_jsonl_flush",
    "records.before_tensorboard_flush",
    "records.after_tensorboard_flush",
    "checkpoint.before_write",
    "checkpoint.mid_write",
    "checkpoint.before_fsync",
    "checkpoint.before_rename",
    "checkpoint.before_folder_fsync",
    "checkpoint.after_commit",
    "checkpoint.before_best",
    "checkpoint.before_retention",
    "checkpoint.after_retention",
    "step.begin",
    "step.before_optimizer",
    "step.after_optimizer",
    "evaluate.mid",
    "resume.before_load",
    "resume.after_load",
)
"""Where the kill-anywhere suite kills."""

DAMAGE_NAMES = ("step.loss", "step.parameters", "checkpoint.digest")
"""Where `damage` spoils: the loss becomes NaN, one parameter of this rank changes, the digest of
the next batch is another."""

NAMES = (*KILL_NAMES, *DAMAGE_NAMES)


@dataclass(frozen=True)
class _Fault:
    spec: str
    name: str
    first: int
    last: float
    rank: str | None
    action: str


_passed: Counter[str] = Counter()
_is_disarmed = False


@contextmanager
def disarmed() -> Iterator[None]:
    """Inside, no failpoint does anything or is counted: for code that runs to be recorded."""
    global _is_disarmed
    _is_disarmed = True
    try:
        yield
    finally:
        _is_disarmed = False


def is_armed() -> bool:
    """Whether the environment asks for any fault."""
    return bool(os.environ.get(VARIABLE))


def failpoint(name: str) -> bool:
    """Do here what the environment says. True: the caller is to spoil what it holds."""
    armed = os.environ.get(VARIABLE)
    if not armed or _is_disarmed:
        return False
    assert name in NAMES, name
    _passed[name] += 1
    damage = False
    for fault in _parse(armed):
        is_due = name == fault.name and fault.first <= _passed[name] <= fault.last
        if is_due and fault.rank in (None, _rank()) and _log(fault):
            damage |= _act(fault.action)
    return damage


def _rank() -> str:
    return os.environ.get("RANK", "0")


def _act(action: str) -> bool:
    if action == "damage":
        return True
    if action.startswith("sleep:"):
        time.sleep(float(action.removeprefix("sleep:")))
    else:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action])
    return False


@cache
def _parse(armed: str) -> tuple[_Fault, ...]:
    faults = []
    for spec in armed.split(";"):
        place, _, action = spec.partition("=")
        name, _, rest = place.partition("@")
        count, _, rank = rest.partition(":")
        first, dash, last = (count or "1").partition("-")
        assert name in NAMES, f"{VARIABLE}: no failpoint is called {name!r}"
        end = float(last or "inf") if dash else float(first)
        faults.append(_Fault(spec, name, int(first), end, rank or None, action or "kill"))
    return tuple(faults)


def _log(fault: _Fault) -> bool:
    """Write the fault down; whether it is to happen."""
    path = os.environ.get(LOG_VARIABLE)
    if path is None:
        return True
    mine = f"{fault.spec} rank {_rank()}"
    if mine in _happened_before(path):
        return False
    with Path(path).open("a") as file:
        file.write(f"{mine} step {_passed[fault.name]}\n")
    return True


@cache
def _happened_before(path: str) -> frozenset[str]:
    """What is in the file when this process first asks."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return frozenset(line.rpartition(" step ")[0] for line in lines)
