"""Asking Slurm and telling it: the only place that runs its commands.

States come from `squeue` while Slurm runs or will run a job, else from `scontrol` and `sacct`; not
from submitit, which takes NODE_FAIL for an end although Slurm runs the job again.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.errors import UserError

_TIMEOUT_S = 60
_NEEDED = ("sbatch", "srun", "squeue", "scontrol", "sinfo")

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
    """Slurm refused; the message holds its words."""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job."""

    job_id: str
    state: str
    """PENDING, RUNNING, COMPLETING, REQUEUED ...; one of ENDED when it is over."""
    reason: str = ""
    """Why it is pending, or how it ended."""
    nodes: str = ""
    """As Slurm writes a node list."""
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


def ask(*command: str) -> str:
    """Run one of Slurm's commands; what it printed. Raises SlurmError with its words."""
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: not found; is this a machine of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer in {_TIMEOUT_S} s; is slurmctld up?") from None
    if ended.returncode != 0:
        words = " ".join((ended.stderr or ended.stdout).split())
        raise SlurmError(f"{command[0]}: {words or f'exit code {ended.returncode}'}")
    return ended.stdout


@dataclass(frozen=True)
class Partition:
    """What the nodes of a partition offer."""

    num_nodes: int
    most_gpus: int
    """On one node."""
    time_min: float
    """Its time limit, minutes."""
    is_up: bool


def partitions() -> dict[str, Partition]:
    """Every partition that the user can see."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "--noheader", "--format=%R|%a|%D|%G|%l").splitlines():
        name, available, nodes, gres, limit = line.split("|")
        before = found.get(name, Partition(0, 0, 0.0, False))
        found[name] = Partition(
            before.num_nodes + _count(nodes),
            max(before.most_gpus, gpus_of(gres)),
            max(before.time_min, limit_min(limit)),
            available == "up",
        )
    return found


def _count(text: str) -> int:
    """Of nodes; sinfo writes 2048 as 2K."""
    for power, unit in enumerate("KMG", start=1):
        if text.endswith(unit):
            return round(float(text.removesuffix(unit)) * (1 << 10 * power))
    return int(text)


def gpus_of(gres: str) -> int:
    """GPUs in a node's generic resources: `gpu:a100:8(S:0-1),nvme:1` has 8."""
    return sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def limit_min(text: str) -> float:
    """Minutes of a partition's time limit (D-HH:MM:SS, MM:SS, infinite)."""
    if text in ("infinite", "UNLIMITED", "n/a"):
        return float("inf")
    days, _, clock = text.rpartition("-")
    parts = [float(part) for part in clock.split(":")]
    if len(parts) == 3 or days:
        parts += [0.0] * (3 - len(parts))
        return float(days or 0) * 1440 + parts[0] * 60 + parts[1] + parts[2] / 60
    return parts[0] + (parts[1] / 60 if len(parts) > 1 else 0.0)


def check_request(names: str | None, *, nodes: int, gpus_per_node: int, time_min: int) -> None:
    """See that one of the partitions can run such a job at all. Raises UserError."""
    known = partitions()
    asked = names.split(",") if names else list(known)
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"--partition ({name}): there is none of that name{hint}; there are: "
                f"{', '.join(sorted(known))}"
            )
    offers = [known[name] for name in asked]
    where = f"partition {names}" if names else "any partition"
    most_gpus = max((offer.most_gpus for offer in offers), default=0)
    if gpus_per_node > most_gpus:
        raise UserError(
            f"--gpus-per-node ({gpus_per_node}): no node of {where} has more than {most_gpus}; ask "
            f"for fewer, and for more nodes"
        )
    most_nodes = max((offer.num_nodes for offer in offers), default=0)
    if nodes > most_nodes:
        raise UserError(f"--nodes ({nodes}): {where} has no more than {most_nodes}; ask for fewer")
    longest = max((offer.time_min for offer in offers), default=0.0)
    if time_min > longest:
        raise UserError(
            f"--time ({time_min} minutes): {where} allows {longest:.0f} minutes at most; ask for "
            f"less, the run is requeued at the limit and goes on"
        )


def test_submission(script: Path) -> str:
    """Have Slurm check a script without submitting it; its forecast. Raises UserError."""
    command = ["sbatch", "--test-only", str(script)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"sbatch: no answer in {_TIMEOUT_S} s; is slurmctld up?") from None
    words = " ".join((ended.stderr or ended.stdout).split())
    if ended.returncode != 0:
        raise SlurmError(f"Slurm would refuse the job: {words}")
    return words


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
        if "Invalid job id" in str(error):
            return None
        raise
    if not text.strip():
        return None
    state, reason, nodes, left = text.splitlines()[0].split("|")
    return JobState(job_id, state, "" if reason == "None" else reason, nodes, left)


def _from_scontrol(job_id: str) -> JobState | None:
    try:
        text = ask("scontrol", "--oneliner", "show", "job", job_id)
    except SlurmError:
        return None
    values = dict(re.findall(r"(\w+)=(\S*)", text))
    if "JobState" not in values:
        return None
    reason = values.get("Reason", "")
    nodes = values.get("NodeList", "").replace("(null)", "")
    return JobState(job_id, values["JobState"], "" if reason == "None" else reason, nodes)


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
    names = found[1] if found else ""
    return [] if names in ("", "(null)") else expand_hosts(names)


def expand_hosts(nodes: str) -> list[str]:
    """Host names of a node list such as `node[1-3,7]`."""
    return ask("scontrol", "show", "hostnames", nodes).split()


def send_signal(job_id: str, name: str) -> None:
    """Send a signal to the tasks of a running job."""
    ask("scancel", f"--signal={name}", job_id)


def cancel(job_id: str) -> None:
    """End a job, or take it out of the queue."""
    ask("scancel", job_id)
