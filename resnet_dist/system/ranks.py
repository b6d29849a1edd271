"""This process's place among those that torchrun started. Does not import torch."""

from __future__ import annotations

import os
from typing import NamedTuple

from resnet_dist.errors import UserError

ELASTIC_VARIABLE = "TORCHELASTIC_RUN_ID"
"""Environment variable of torchrun: the id of its rendezvous."""

JOB_VARIABLE = "RESNET_DIST_JOB"
"""Environment variable: what all starts of one job have in common, where a launcher gives each of
them a rendezvous id of its own."""

_LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


_TASK_COUNTS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}


class Ranks(NamedTuple):
    """This process among all of them, in numbers."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def launched_ranks() -> Ranks:
    """What torchrun's variables say; one process where it started none.

    Raises UserError if some of them are set and others are not.
    """
    present = [name in os.environ for name in _LAUNCH_VARIABLES]
    if not any(present):
        _refuse_other_launchers()
        return Ranks(0, 1, 0, 1)
    if not all(present):
        missing = [name for name in _LAUNCH_VARIABLES if name not in os.environ]
        raise UserError(
            f"environment ({', '.join(missing)}): not set although other variables of torchrun "
            f"are; start with `torchrun --nproc_per_node N -m resnet_dist.train`"
        )
    odd = [name for name in _LAUNCH_VARIABLES if not os.environ[name].isdecimal()]
    if odd:
        raise UserError(
            f"environment ({odd[0]}={os.environ[odd[0]]!r}): is no number; unset the variables of "
            f"torchrun ({', '.join(_LAUNCH_VARIABLES)}), or start with torchrun"
        )
    return Ranks(*(int(os.environ[name]) for name in _LAUNCH_VARIABLES))


def _refuse_other_launchers() -> None:
    """Raise UserError for one of several tasks that know nothing of each other."""
    for name, launcher in _TASK_COUNTS.items():
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise UserError(
                f"{launcher} (-n {count}): started {count} tasks without torchrun, each of which "
                f"would train alone; start one task per node that runs `torchrun ... -m "
                f"resnet_dist.train`, or use `python -m launch.submit`"
            )


def is_started_by_torchrun() -> bool:
    """Whether an agent waits for how this process ends."""
    return ELASTIC_VARIABLE in os.environ


def is_first() -> bool:
    """Whether this process speaks for all before they know each other."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def elastic_job() -> str | None:
    """What all processes of one job, restarted ones too, have in common: RESNET_DIST_JOB, or the
    `--rdzv-id` of torchrun."""
    if JOB_VARIABLE in os.environ:
        return os.environ[JOB_VARIABLE]
    job = os.environ.get(ELASTIC_VARIABLE)
    return None if job == "none" else job  # "none" is torchrun's default, so any job's
