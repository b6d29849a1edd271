"""The batch script of a `ClusterConfig`, by way of submitit.

The only file that uses a name of submitit that is not public: the function that makes the script's
text. submitit has no public way to see a script without submitting it, and the script must be seen
before (`--dry-run`, `sbatch --test-only`). pyproject.toml bounds submitit's version because of it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.slurm.slurm import _make_sbatch_string

from launch.cluster.options import ClusterConfig
from launch.node.job import TrainJob
from resnet_dist.errors import UserError, has_control_characters

NO_LIMIT = 1_000_000
"""Bound of submitit's count of reached time limits, which takes every short job for one."""


def parameters(
    cluster: ClusterConfig,
    *,
    name: str,
    code: Path,
    folder: Path,
    requeue: str,
    mounts: Sequence[str] = (),
    is_array: bool = False,
) -> dict[str, Any]:
    """submitit's parameters. `folder`: of the logs; `requeue`: a shell command that reads srun's
    exit code in `$code`."""
    log = log_pattern(folder, is_array=is_array)
    ranks = cluster.num_ranks_per_node
    cpus = cluster.cpus_per_gpu * ranks if cluster.cpus_per_gpu else None
    memory = f"{_megabytes(cluster.mem_gb_per_gpu * ranks)}MB" if cluster.mem_gb_per_gpu else None
    further: dict[str, Any] = {
        "requeue": True,
        # `python -m` puts the working directory first on its path: let that be the snapshot.
        "chdir": str(code),
        "reservation": cluster.reservation,
        "open-mode": "append",
        "output": log.replace("%t", "0"),
        **cluster.sbatch_args,
    }
    values: dict[str, Any] = {
        "job_name": cluster.job_name or name,
        "partition": cluster.partition,
        "time": cluster.time_min,
        "nodes": cluster.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "gpus_per_node": cluster.gpus_per_node or None,
        "qos": cluster.qos,
        "mem": memory,
        "signal_delay_s": cluster.signal_delay_s,
        "comment": cluster.comment,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "account": cluster.account,
        "nodelist": cluster.nodelist,
        "exclusive": cluster.exclusive or None,
        "array_parallelism": cluster.array_parallelism,
        "stderr_to_stdout": True,
        "srun_args": [f"--output={log}", *_srun_arguments(cluster, cpus, code, mounts)],
        "additional_parameters": {k: v for k, v in further.items() if v is not None},
        "setup": _setup(cluster, code),
        "teardown": ["code=$?", requeue],
    }
    return {key: value for key, value in values.items() if value is not None}


def log_pattern(folder: Path, *, is_array: bool) -> str:
    """Slurm's pattern of submitit's log files, for a folder with any letters."""
    job = "%A_%a" if is_array else "%j"
    return f"{str(folder).replace('%', '%%')}/{job}_%t_log.out"


def check_names(name: str, folder: Path) -> None:
    """Raise UserError for what would begin a line of the batch script, or be taken for a pattern by
    Slurm or submitit, whatever is done."""
    for key, text in (("run.name", name), ("run.dir", str(folder))):
        if has_control_characters(text):
            raise UserError(
                f"{key} ({text!r}): must hold no control characters, such as a newline; give "
                f"another name"
            )
    found = [one for one in ("\\", "%j", "%t", "%A", "%a") if one in str(folder)]
    if found:
        raise UserError(
            f"run.dir ({folder}): holds {', '.join(found)}, which Slurm's file names use for "
            f"something else; give a folder without it"
        )


def _srun_arguments(
    cluster: ClusterConfig, cpus: int | None, code: Path, mounts: Sequence[str]
) -> list[str]:
    # The script's variables reach the tasks also where SBATCH_EXPORT=NONE kept out the caller's.
    arguments = ["--kill-on-bad-exit=1", "--export=ALL"]
    if cpus:
        arguments.append(f"--cpus-per-task={cpus}")  # since Slurm 22.05 srun does not inherit it
    if cluster.container and cluster.container_runtime == "pyxis":
        all_mounts = [*mounts, *cluster.container_mounts]
        arguments += [f"--container-image={cluster.container}", f"--container-workdir={code}"]
        arguments.append("--container-mounts=" + ",".join(all_mounts))
    return [*arguments, *cluster.srun_args]


def _setup(cluster: ClusterConfig, code: Path) -> list[str]:
    return [
        # Without a handler bash dies of it, and Slurm takes the job for ended while its tasks still
        # save. This one is run when srun has ended.
        "trap ended=--was-ended TERM",
        "trap : USR1 USR2",
        *(f"export {key}={shlex.quote(value)}" for key, value in cluster.env.items()),
        *cluster.setup,
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]


def _megabytes(gigabytes: float) -> int:
    return round(gigabytes * 1024)


def python_command(cluster: ClusterConfig, mounts: Sequence[str]) -> str:
    """The shell words that start Python in a task."""
    python = shlex.quote(cluster.python or sys.executable)
    if cluster.container is None or cluster.container_runtime == "pyxis":
        return python
    words = ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else [])]
    for mount in [*mounts, *cluster.container_mounts]:
        words += ["--bind", mount]
    return f"{shlex.join([*words, cluster.container])} {python}"


def requeue_command(cluster: ClusterConfig, run_dirs: Sequence[Path], number: int) -> str:
    """The shell command after srun. In an array each element has a run folder of its own."""
    # In a container there are none of Slurm's commands, and outside perhaps none of our packages.
    python = "python3" if cluster.container else shlex.quote(cluster.python or sys.executable)
    if len(run_dirs) == 1:
        folder, lines = shlex.quote(str(run_dirs[0])), ""
    else:
        quoted = " ".join(shlex.quote(str(path)) for path in run_dirs)
        folder, lines = '"${run_dirs[$SLURM_ARRAY_TASK_ID]}"', f"run_dirs=({quoted})\n"
    flags = f"--submission {number} --code $code --max-failures {cluster.max_failures} $ended"
    if cluster.exclude_bad_nodes:
        flags += " --exclude-bad"
    return f"{lines}exec {python} -m launch.node.requeue {folder} {flags}"


def script_text(folder: Path, values: dict[str, Any], python: str, *, count: int = 1) -> str:
    """The text that would be submitted."""
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    array: dict[str, Any] = {"map_count": count} if count > 1 else {}
    return str(_make_sbatch_string(command=command, folder=folder, **values, **array))


def submit(
    folder: Path, values: dict[str, Any], python: str, jobs: Sequence[TrainJob]
) -> list[str]:
    """Submit one job, or several as an array. Returns their numbers."""
    executor = SlurmExecutor(folder, max_num_timeout=NO_LIMIT, python=python)
    executor.update_parameters(**values)
    return [str(job.job_id) for job in executor.submit_array(jobs)]
