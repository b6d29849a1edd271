"""A request: one run, or the runs of a sweep, and how it becomes jobs."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import slurm
from launch.cluster.options import ClusterConfig
from launch.cluster.partitions import check_request
from launch.node.job import TrainJob
from launch.records.attempt import withdraw_cancel
from launch.records.submissions import (
    Submission,
    next_number,
    submission_folder,
    sweep_names,
)
from launch.submission import sbatch
from launch.submission.checks import check_writable
from launch.submission.snapshot import copy_code
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import Resolved
from resnet_dist.config.run import RESUME_WORDS
from resnet_dist.errors import UserError
from resnet_dist.run.folder import run_folder
from resnet_dist.system.files import replace_file
from resnet_dist.system.json_files import write_json
from resnet_dist.system.paths import expanded


@dataclass(frozen=True)
class Request:
    """One run, or the runs of a sweep, to be submitted together."""

    root: Path
    """The run folder; of a sweep, the folder of the run folders."""
    names: list[str]
    """Names of the runs of a sweep; empty for a single run."""
    resolved: list[Resolved]
    """The config of each run, with absolute paths."""
    cluster: ClusterConfig
    module: str = "resnet_dist.train"
    code: Path | None = None
    """A snapshot to run; None: make one of the code that runs now."""

    @property
    def run_dirs(self) -> list[Path]:
        """The folder of each run."""
        return [run_folder(each.config.run) for each in self.resolved]

    def numbered(self) -> Numbered:
        """The request with the number of its submission, as the folders are now."""
        return Numbered(self, max(next_number(path) for path in [self.root, *self.run_dirs]))


@dataclass(frozen=True)
class Numbered:
    """A request that has its number, the same in all run folders, and so its places."""

    request: Request
    number: int

    @property
    def folder(self) -> Path:
        """The folder of this submission."""
        return submission_folder(self.request.root, self.number)

    @property
    def slurm_folder(self) -> Path:
        """The folder of submitit's files and of the logs."""
        return self.folder / "slurm"

    @property
    def code(self) -> Path:
        """The folder of the packages that the job runs."""
        return self.request.code or self.folder / "code"

    @property
    def mounts(self) -> list[str]:
        """The folders that a container must see."""
        root = self.request.root
        mounts = [f"{root}:{root}"]
        if root not in self.code.parents:
            mounts.append(f"{self.code}:{self.code}")
        return mounts

    @property
    def python(self) -> str:
        """The shell words that start Python in a task."""
        return sbatch.python_command(self.request.cluster, self.mounts)

    def parameters(self) -> dict[str, object]:
        """submitit's parameters."""
        request = self.request
        return sbatch.parameters(
            request.cluster,
            name=request.resolved[0].config.run.name.partition("/")[0],
            code=self.code,
            folder=self.slurm_folder,
            is_array=len(request.resolved) > 1,
            requeue=sbatch.requeue_command(request.cluster, request.run_dirs, self.number),
            mounts=self.mounts,
        )

    def jobs(self) -> list[TrainJob]:
        """The jobs that submitit carries, one per run."""
        return [
            TrainJob(
                run_dir=str(run_dir),
                submission=self.number,
                config=str(submission_folder(run_dir, self.number) / "config.yaml"),
                code=str(self.code),
                cluster=self.request.cluster,
                module=self.request.module,
            )
            for run_dir in self.request.run_dirs
        ]

    def script(self) -> str:
        """The batch script as it would be submitted."""
        count = len(self.request.resolved)
        return sbatch.script_text(self.slurm_folder, self.parameters(), self.python, count=count)

    def prepare(self) -> None:
        """Write the snapshot, the configs and the names of a sweep's runs."""
        request = self.request
        for path in [request.root, *request.run_dirs]:
            check_writable(path)
        self.folder.mkdir(parents=True)
        if request.code is None:
            copy_code(self.code)
        for run_dir, resolved in zip(request.run_dirs, request.resolved, strict=True):
            own = submission_folder(run_dir, self.number)
            own.mkdir(parents=True, exist_ok=True)
            _write_config(own / "config.yaml", resolved)
            withdraw_cancel(run_dir)
        if request.names:
            known = sweep_names(request.root)
            names = list(dict.fromkeys([*known, *request.names]))
            write_json(request.root / "sweep.json", {"runs": names})

    def withdraw(self) -> None:
        """Remove what was prepared for a submission that failed."""
        for path in [self.request.root, *self.request.run_dirs]:
            shutil.rmtree(submission_folder(path, self.number), ignore_errors=True)

    def write_submissions(self, job_ids: Sequence[str | None]) -> list[Submission]:
        """Write what was asked for, and the job that each run became."""
        written = []
        for run_dir, job_id in zip(self.request.run_dirs, job_ids, strict=True):
            submission = Submission(
                run_dir=run_dir,
                number=self.number,
                job_id=job_id,
                code=self.code,
                module=self.request.module,
                slurm_folder=self.slurm_folder,
                cluster=dataclasses.asdict(self.request.cluster),
                time=time.time(),
            )
            submission.write()
            written.append(submission)
        return written


def absolute(resolved: Resolved) -> Resolved:
    """The same config with absolute paths: a job does not start where it was submitted."""
    config = resolved.config
    run, data = config.run, config.data
    resume = run.resume
    if resume not in RESUME_WORDS:
        resume = str(_absolute(resume))
    run = dataclasses.replace(run, dir=str(_absolute(run_folder(run))), resume=resume)
    data = dataclasses.replace(
        data,
        root=str(_absolute(data.root)) if data.root is not None else None,
        cache_dir=str(_absolute(data.cache_dir)) if data.cache_dir is not None else None,
    )
    model = config.model
    if model.weights is not None and not model.weights.startswith("torchvision:"):
        model = dataclasses.replace(model, weights=str(_absolute(model.weights)))
    changed = dataclasses.replace(config, run=run, data=data, model=model)
    return dataclasses.replace(resolved, config=changed)


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(expanded(path, "path")))  # noqa: PTH100 (keeps links)


def _write_config(path: Path, resolved: Resolved) -> None:
    text = describe(resolved) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def check_with_slurm(request: Request) -> list[str]:
    """Ask Slurm whether it would take the job. Returns remarks for the user, its forecast last.

    Raises UserError.
    """
    slurm.require_slurm()
    slurm.leave_caller_job()
    cluster = request.cluster
    remarks = check_request(
        cluster.partition,
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        time_min=cluster.time_min,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        path.write_text(request.numbered().script())
        return [*remarks, slurm.test_submission(path)]


def submit(request: Request) -> list[Submission]:
    """Submit to Slurm. Raises UserError, and then nothing is left behind."""
    numbered = request.numbered()
    try:
        numbered.prepare()
        job_ids = sbatch.submit(
            numbered.slurm_folder, numbered.parameters(), numbered.python, numbered.jobs()
        )
    except Exception as error:
        numbered.withdraw()
        if isinstance(error, UserError):
            raise
        raise UserError(f"the job could not be submitted: {error}") from error
    return numbered.write_submissions(job_ids)
