"""Checks at submission: what cannot work is rejected here, not from the queue an hour later."""

from __future__ import annotations

import tempfile
from pathlib import Path

from launch.cluster import slurm
from launch.cluster.options import ClusterConfig
from launch.records.progress import last_outcome
from launch.records.submissions import last_submission
from resnet_dist.config import Config
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.run.checkpoint_files import newest_step
from resnet_dist.run.lock import owner_of
from resnet_dist.run.outcome import Outcome


def check_config(config: Config, cluster: ClusterConfig) -> None:
    """Check what can be known before any data is seen. Raises UserError."""
    if config.run.evaluate_only:
        raise UserError(
            "run.evaluate_only (True): a job trains; run it with `srun torchrun` instead"
        )
    wanted = config.dist.world_size
    if wanted not in (None, cluster.world_size):
        raise UserError(
            f"dist.world_size ({wanted}): but {cluster.nodes} nodes of "
            f"{cluster.num_ranks_per_node} ranks were requested; leave it out"
        )
    choose_batch_split(config.train, cluster.world_size)


def check_folder(run_dir: Path, *, has_slurm: bool, may_change: bool = False) -> list[str]:
    """Check that a run folder holds no finished and no running run. Returns remarks for the user.

    `may_change`: run.allow_config_change, by which a finished run is trained for longer.

    Raises UserError.
    """
    last = last_submission(run_dir)
    job_id = None if last is None else last.own_job
    if has_slurm and job_id is not None:
        state = slurm.states([job_id])[job_id]
        if state.is_active:
            raise UserError(
                f"run.dir ({run_dir}): its run is {state.state} as job {state.job_id}; see "
                f"`python -m launch.status {run_dir}`, stop it with `python -m launch.cancel`, or "
                f"give another run.dir"
            )
    owner = owner_of(run_dir)
    if owner is not None:
        raise UserError(
            f"run.dir ({run_dir}): is in use by a running training ({owner}); stop that first, or "
            f"give another run.dir"
        )
    if last_outcome(run_dir) is Outcome.FINISHED and not may_change:
        raise UserError(
            f"run.dir ({run_dir}): holds a finished run; give another run.dir or run.name, or "
            f"train it for longer with run.allow_config_change=true and more train.epochs"
        )
    step = newest_step(run_dir)
    return [f"resumes in {run_dir} from step {step}"] if step else []


def check_writable(folder: Path) -> None:
    """Make a folder and see that it can be written to. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe"):
            pass
    except OSError as error:
        raise UserError(
            f"run.dir ({folder}): cannot be written to ({error.strerror}), and logs and "
            f"checkpoints go there; give another run.dir"
        ) from error
