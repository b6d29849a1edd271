"""Slurm's commands: the only place that runs them.

States come from `squeue` while Slurm runs or will run a job, else from `scontrol` and `sacct`; not
from submitit, which takes NODE_FAIL for an end although Slurm runs the job again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.errors import UserError

_TIMEOUT_S = 60
_NEEDED = ("sbatch", "srun", "squeue", "scontrol", "sinfo")

_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")
"""A user's own, which say how to reach Slurm."""
_NO_CLUSTER = ("Unable to contact slurm controller", "Could not establish a configuration source")
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")

ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


class SlurmError(UserError):
    """Slurm refused. The message holds what its command printed."""


@dataclass(frozen=True)
class JobState:
    """A job as Slurm sees it."""

    job_id: str
    state: str
    """PENDING, RUNNING, COMPLETING, REQUEUED ...; one of ENDED when it is over."""
    reason: str = ""
    """Reason why it is pending, or how it ended."""
    nodes: str = ""
    """Slurm's node list, such as node[1-3]."""
    time_left: str = ""
    """Until the time limit of this attempt."""

    @property
    def is_active(self) -> bool:
        """Whether Slurm runs it, or will."""
        return self.state not in ENDED and self.state != "UNKNOWN"


def require_slurm() -> None:
    """Raises UserError where Slurm's commands are not installed."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"Slurm ({', '.join(missing)}): not found on PATH; submit from a login node of the "
            f"cluster, or use --local to run here, or --dry-run to see the script"
        )


def leave_caller_job() -> None:
    """Forget the job in whose shell this process runs, if any.

    sbatch hands its environment on, and srun obeys it: the memory, cores and array of the caller's
    job would become the new job's.
    """
    if "SLURM_JOB_ID" in os.environ:
        for name in _GPU_VARIABLES:
            os.environ.pop(name, None)
    for name in list(os.environ):
        if name.startswith(("SLURM", "SRUN_", "PMI_", "PMIX_")) and name not in _KEPT_VARIABLES:
            del os.environ[name]


def ask(*command: str) -> str:
    """Run one of Slurm's commands; what it printed. Raises SlurmError."""
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: not found; is this a machine of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer in {_TIMEOUT_S} s; is slurmctld up?") from None
    if ended.returncode != 0:
        printed = " ".join((ended.stderr or ended.stdout).split())
        if any(sign in printed for sign in _NO_CLUSTER):
            raise SlurmError(
                f"{command[0]}: {printed}; Slurm's tools are installed here, but no cluster "
                f"answers: submit from a login node, or use --local to run on this machine"
            )
        raise SlurmError(f"{command[0]}: {printed or f'exit code {ended.returncode}'}")
    return ended.stdout


def test_submission(script: Path) -> str:
    """Have Slurm check a script without submitting it; its forecast. Raises SlurmError."""
    command = ["sbatch", "--test-only", str(script)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"sbatch: no answer in {_TIMEOUT_S} s; is slurmctld up?") from None
    printed = " ".join((ended.stderr or ended.stdout).split())
    if ended.returncode != 0:
        raise SlurmError(f"Slurm would refuse the job: {printed}")
    return printed


def states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """The state of each job; UNKNOWN for those of which nothing is known any more."""
    found: dict[str, JobState] = {}
    for job_id in job_ids:
        found[job_id] = (
            _from_squeue(job_id)
            or _from_scontrol(job_id)
            or _from_sacct(job_id)
            or JobState(job_id, "UNKNOWN")
        )
    return found


def _from_squeue(job_id: str) -> JobState | None:
    try:
        text = ask("squeue", "--noheader", "-r", "-j", job_id, "-o", "%T|%r|%N|%L")
    except SlurmError as error:
        if _is_unknown_job(error):
            return None
        raise
    if not text.strip():
        return None
    state, reason, nodes, left = text.splitlines()[0].split("|")
    return JobState(job_id, state, _given(reason), nodes, left)


def _given(value: str) -> str:
    """A field of Slurm's, empty where Slurm writes that there is none."""
    return "" if value in ("None", "(null)") else value


def _is_unknown_job(error: SlurmError) -> bool:
    """Whether squeue failed because it no longer knows the job. A controller that cannot be reached
    ends it with the same exit code, 1; only the text of ESLURM_INVALID_JOB_ID tells them apart."""
    return "Invalid job id" in str(error)


def _from_scontrol(job_id: str) -> JobState | None:
    try:
        text = ask("scontrol", "--oneliner", "show", "job", job_id)
    except SlurmError:
        return None
    values = dict(re.findall(r"(\w+)=(\S*)", text))
    if "JobState" not in values:
        return None
    reason, nodes = (_given(values.get(name, "")) for name in ("Reason", "NodeList"))
    return JobState(job_id, values["JobState"], reason, nodes)


def _from_sacct(job_id: str) -> JobState | None:
    rows = history(job_id)
    return JobState(job_id, rows[-1].state, nodes=rows[-1].nodes) if rows else None


def history(job_id: str) -> list[JobState]:
    """Each start of a job in the accounting, oldest first; empty where there is none."""
    fields = "State,NodeList"
    try:
        text = ask("sacct", "-X", "-n", "-P", "--duplicates", "-j", job_id, "-o", fields)
    except SlurmError:
        return []
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 1]
    return [JobState(job_id, state.split()[0], "", nodes) for state, nodes in rows if state]


def own_id(job_id: str) -> str:
    """The number of the job of this process in Slurm's commands. One element of an array has the
    number of the array as its own: by that, all elements would be meant, those that have finished
    too."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else job_id


def is_cancelled_by_preemption(job_id: str) -> bool:
    """Whether Slurm ends the job for another one, in a partition where it will not run it again
    (PreemptMode=CANCEL). Raises SlurmError."""
    job = dict(re.findall(r"(\w+)=(\S*)", ask("scontrol", "--oneliner", "show", "job", job_id)))
    if job.get("PreemptTime", "None") == "None" or job.get("JobState") == "RUNNING":
        return False
    partition = ask("scontrol", "--oneliner", "show", "partition", job.get("Partition", ""))
    return "PreemptMode=CANCEL" in partition.split()


def requeue(job_id: str) -> None:
    """End the job's processes and put it into the queue again."""
    ask("scontrol", "requeue", job_id)


def exclude(job_id: str, hosts: Sequence[str]) -> None:
    """Leave nodes out when a pending job starts."""
    ask("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(hosts)}")


def excluded(job_id: str) -> list[str]:
    """The nodes that a job leaves out."""
    text = ask("scontrol", "--oneliner", "show", "job", job_id)
    found = re.search(r"ExcNodeList=(\S*)", text)
    names = _given(found[1]) if found else ""
    return expand_hosts(names) if names else []


def expand_hosts(nodes: str) -> list[str]:
    """Host names of a node list such as `node[1-3,7]`."""
    return ask("scontrol", "show", "hostnames", nodes).split()


def send_signal(job_id: str, name: str) -> None:
    """Send a signal to the tasks of a running job."""
    ask("scancel", f"--signal={name}", job_id)


def cancel(job_id: str) -> None:
    """End a job, or take it out of the queue."""
    ask("scancel", job_id)
