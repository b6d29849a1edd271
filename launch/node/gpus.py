"""The GPUs of this task, however Slurm counts them.

With cgroup-limited devices the task sees only its own, numbered from 0, and so does
CUDA_VISIBLE_DEVICES; without, it sees all, and CUDA_VISIBLE_DEVICES picks. In some containers the
two are mixed: only the task's own are there, but the variable still has the node's numbers, and
CUDA would find none.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.errors import UserError

_QUERY = ("nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader")
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver names it."""

    uuid: str
    name: str


DRIVER = Path("/dev/nvidiactl")
"""Exists where the driver is."""


def can_be_listed() -> bool:
    """Whether `installed_gpus` can tell: not in a container that has the driver but no nvidia-smi.
    There the ranks find out for themselves whether each has a GPU of its own."""
    return shutil.which(_QUERY[0]) is not None or not DRIVER.exists()


def installed_gpus() -> list[Gpu]:
    """The GPUs that this process can see, in the driver's order. Raises UserError."""
    try:
        ended = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        raise UserError(
            "neither nvidia-smi nor the GPU driver is found, on the node or in the container "
            "(dist.device=cpu trains on CPUs)"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"nvidia-smi does not answer in {_TIMEOUT_S} s: a GPU hangs") from None
    if ended.returncode != 0:
        printed = " ".join((ended.stdout + ended.stderr).split())
        raise UserError(f"nvidia-smi failed: {printed}")
    gpus = []
    for line in ended.stdout.splitlines():
        uuid, comma, name = line.partition(",")
        if not comma or not uuid.startswith(("GPU-", "MIG-")):
            raise UserError(f"nvidia-smi reports an unhealthy GPU: {line.strip()}")
        gpus.append(Gpu(uuid.strip(), name.strip()))
    return gpus


def assign(gpus: Sequence[Gpu], visible: str | None, wanted: int) -> tuple[str, list[str]]:
    """The value of CUDA_VISIBLE_DEVICES for `wanted` ranks, and the names of their GPUs.

    `visible`: its value now. Raises UserError if there are too few.
    """
    if visible is None:
        chosen = list(range(len(gpus)))
        entries = [str(number) for number in chosen]
        names = [gpu.uuid for gpu in gpus]
    else:
        entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
        entries, names = _resolve(gpus, entries)
    if len(entries) < wanted:
        raise UserError(
            f"{wanted} GPUs were asked for, but {len(entries)} are there "
            f"(CUDA_VISIBLE_DEVICES={visible}, the driver shows {len(gpus)})"
        )
    if len(set(names[:wanted])) < wanted:
        raise UserError(f"CUDA_VISIBLE_DEVICES={visible} names a GPU twice")
    return ",".join(entries[:wanted]), names[:wanted]


def _resolve(gpus: Sequence[Gpu], entries: list[str]) -> tuple[list[str], list[str]]:
    if not all(entry.isdigit() for entry in entries):
        return entries, [_full_name(gpus, entry) for entry in entries]
    numbers = [int(entry) for entry in entries]
    if any(number >= len(gpus) for number in numbers):
        if len(gpus) != len(numbers):
            raise UserError(
                f"CUDA_VISIBLE_DEVICES={','.join(entries)} names GPUs that the driver does not "
                f"show ({len(gpus)} GPUs)"
            )
        numbers = list(range(len(gpus)))  # only ours are there: the numbers are the node's
    return [str(number) for number in numbers], [gpus[number].uuid for number in numbers]


def _full_name(gpus: Sequence[Gpu], entry: str) -> str:
    """The UUID that an entry abbreviates; MIG devices are not in the driver's list of GPUs.

    Raises UserError for a GPU that is not there.
    """
    matches = [gpu.uuid for gpu in gpus if gpu.uuid.startswith(entry)]
    if entry.startswith("GPU-") and not matches:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES names {entry}, which the driver does not show ({len(gpus)} GPUs)"
        )
    return matches[0] if len(matches) == 1 else entry
