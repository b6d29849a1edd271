"""From what the user asked for to jobs: checked here and now, not from the queue an hour later."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import epilogue, executor, runs, slurm
from launch.attempt import AttemptName, withdraw_cancel, write_json
from launch.cluster import ClusterConfig
from launch.job import Place, TrainJob, run_task
from launch.snapshot import copy_code
from resnet_dist.config import Config
from resnet_dist.config.help.listing import describe
from resnet_dist.config.load import Resolved
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.run.folder import run_folder
from resnet_dist.system.files import replace_file

STOPPED_CODE = 75
"""Exit code of --local for a run that was stopped, as of the trainer."""


@dataclass(frozen=True)
class Request:
    """One run, or the runs of a sweep, to be submitted together."""

    root: Path
    """The run folder; of a sweep, the folder of the run folders."""
    names: list[str]
    """Of the runs of a sweep; empty for a single run."""
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

    @property
    def number(self) -> int:
        """Of this submission, the same in all folders."""
        return max(runs.next_number(path) for path in [self.root, *self.run_dirs])

    @property
    def folder(self) -> Path:
        """Of this submission."""
        return runs.submission_folder(self.root, self.number)


def absolute(resolved: Resolved) -> Resolved:
    """The same config with absolute paths: a job does not start where it was submitted."""
    config = resolved.config
    run, data = config.run, config.data
    resume = run.resume
    if resume not in ("auto", "never", "required"):
        resume = str(_absolute(resume))
    run = dataclasses.replace(run, dir=str(_absolute(run_folder(run))), resume=resume)
    data = dataclasses.replace(
        data,
        root=str(_absolute(data.root)) if data.root is not None else None,
        cache_dir=str(_absolute(data.cache_dir)) if data.cache_dir is not None else None,
    )
    changed = dataclasses.replace(config, run=run, data=data)
    return dataclasses.replace(resolved, config=changed)


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 (keeps links)


def check_config(config: Config, cluster: ClusterConfig) -> None:
    """What can be known before any data is seen. Raises UserError."""
    if config.run.evaluate_only:
        raise UserError(
            "run.evaluate_only (True): a job trains; run it with `srun torchrun` instead"
        )
    wanted = config.dist.world_size
    if wanted not in (None, cluster.world_size):
        raise UserError(
            f"dist.world_size ({wanted}): but {cluster.nodes} nodes of "
            f"{cluster.num_ranks_per_node} ranks were asked for; leave it out"
        )
    choose_batch_split(config.train, cluster.world_size)


def check_folder(run_dir: Path, *, has_slurm: bool) -> list[str]:
    """See that nothing is done or going on in a run folder. Returns what the user should know.

    Raises UserError.
    """
    before = runs.submissions(run_dir)
    if has_slurm and before and before[-1].job_id is not None:
        state = slurm.states([before[-1].job_id])[before[-1].job_id]
        if state.is_active:
            raise UserError(
                f"run.dir ({run_dir}): its run is {state.state} as job {state.job_id}; see "
                f"`python -m launch.status {run_dir}`, stop it with `python -m launch.cancel`, or "
                f"give another run.dir"
            )
    owner = runs.lock_owner(run_dir)
    if owner is not None:
        raise UserError(
            f"run.dir ({run_dir}): is in use by a running training ({owner}); stop that first, or "
            f"give another run.dir"
        )
    if runs.last_outcome(run_dir) == "finished":
        raise UserError(
            f"run.dir ({run_dir}): holds a finished run; give another run.dir or run.name"
        )
    step = epilogue.newest_step(run_dir)
    return [f"goes on in {run_dir} from step {step}"] if step else []


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


def job_of(request: Request, code: Path, i: int) -> TrainJob:
    """What submitit carries."""
    run_dir = request.run_dirs[i]
    config = runs.submission_folder(run_dir, request.number) / "config.yaml"
    return TrainJob(
        run_dir=str(run_dir),
        submission=request.number,
        config=str(config),
        code=str(code),
        cluster=request.cluster,
        module=request.module,
    )


def script_of(request: Request) -> str:
    """The batch script as it would be submitted."""
    folder, code, mounts = _places(request)
    values = _parameters(request, code, mounts)
    python = executor.python_command(request.cluster, mounts)
    return executor.script(folder / "slurm", values, python, count=len(request.resolved))


def _places(request: Request) -> tuple[Path, Path, list[str]]:
    """The submission's folder, the code's, and what a container must see."""
    code = request.code or request.folder / "code"
    mounts = [f"{request.root}:{request.root}"]
    if request.root not in code.parents:
        mounts.append(f"{code}:{code}")
    return request.folder, code, mounts


def _parameters(request: Request, code: Path, mounts: Sequence[str]) -> dict[str, object]:
    cluster = request.cluster
    return executor.parameters(
        cluster,
        name=request.resolved[0].config.run.name.partition("/")[0],
        code=code,
        epilogue=executor.epilogue_command(cluster, request.run_dirs, request.number),
        mounts=mounts,
    )


def check_with_slurm(request: Request) -> str:
    """Have Slurm say whether it would take the job; its forecast. Raises UserError."""
    slurm.require_slurm()
    cluster = request.cluster
    slurm.check_request(
        cluster.partition,
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        time_min=cluster.time_min,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script_of(request))
        return slurm.test_submission(path)


def _write_config(path: Path, resolved: Resolved) -> None:
    text = describe(resolved) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def prepare(request: Request) -> None:
    """Write the snapshot, the configs and the names of a sweep's runs."""
    folder, code, _ = _places(request)
    for path in [request.root, *request.run_dirs]:
        check_writable(path)
    number = request.number
    folder.mkdir(parents=True)
    if request.code is None:
        copy_code(code)
    for run_dir, resolved in zip(request.run_dirs, request.resolved, strict=True):
        own = runs.submission_folder(run_dir, number)
        own.mkdir(parents=True, exist_ok=True)
        _write_config(own / "config.yaml", resolved)
        withdraw_cancel(run_dir)
    if request.names:
        known = runs.sweep_names(request.root)
        names = list(dict.fromkeys([*known, *request.names]))
        write_json(request.root / "sweep.json", {"runs": names})


def _withdraw(request: Request, number: int) -> None:
    """Remove what was prepared for a submission that failed."""
    for path in [request.root, *request.run_dirs]:
        shutil.rmtree(runs.submission_folder(path, number), ignore_errors=True)


def _write_submissions(
    request: Request, number: int, code: Path, job_ids: Sequence[str | None]
) -> list[runs.Submission]:
    written = []
    for run_dir, job_id in zip(request.run_dirs, job_ids, strict=True):
        submission = runs.Submission(
            run_dir=run_dir,
            number=number,
            job_id=job_id,
            code=code,
            module=request.module,
            slurm_folder=runs.submission_folder(request.root, number) / "slurm",
            cluster=dataclasses.asdict(request.cluster),
            time=time.time(),
        )
        submission.write()
        written.append(submission)
    return written


def send(request: Request) -> list[runs.Submission]:
    """Submit to Slurm. Raises UserError, and then nothing is left behind."""
    number = request.number
    _, code, mounts = _places(request)
    jobs = [job_of(request, code, i) for i in range(len(request.resolved))]
    values = _parameters(request, code, mounts)
    python = executor.python_command(request.cluster, mounts)
    try:
        prepare(request)
        job_ids = executor.submit(
            runs.submission_folder(request.root, number) / "slurm", values, python, jobs
        )
    except Exception as error:
        _withdraw(request, number)
        if isinstance(error, UserError):
            raise
        raise UserError(f"the job could not be submitted: {error}") from error
    return _write_submissions(request, number, code, job_ids)


def run_here(request: Request) -> int:
    """Run the same job objects one after the other on this machine. Returns the exit code."""
    if request.cluster.nodes != 1:
        raise UserError(
            f"--nodes ({request.cluster.nodes}): --local runs on this machine alone; leave it out"
        )
    number = request.number
    _, code, _ = _places(request)
    jobs = [job_of(request, code, i) for i in range(len(request.resolved))]
    prepare(request)
    _write_submissions(request, number, code, [None] * len(jobs))
    worst = 0
    for job in jobs:
        place = Place("local", 0, 0, (socket.gethostname(),), "localhost")
        ended = run_task(job, place)
        name, run_dir = AttemptName(job.submission, 0), Path(job.run_dir)
        ending = epilogue.judge(run_dir, name, code=ended, max_failures=1)
        epilogue.write_end(run_dir, name, ending, ())
        print(f"{run_dir}: {ending.outcome}: {ending.reason}", file=sys.stderr, flush=True)
        worst = worst or (STOPPED_CODE if ending.outcome in _STOPS else ending.code)
        if ending.outcome in _STOPS:
            break
    return worst


_STOPS = (epilogue.STOPPED, epilogue.CANCELLED)
